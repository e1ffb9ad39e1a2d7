"""Memory of a GPU: JAX takes three quarters of it at the start, and nothing more later; plans count on nearly all of it."""

import os

_NAME, _VALUE = "XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95"


def use_device_memory() -> None:
    """Let JAX take nearly all memory of a GPU, unless the user says how much."""
    os.environ.setdefault(_NAME, _VALUE)
