import atexit
import os
import shutil
import tempfile
from pathlib import Path

# Eight virtual CPU devices, so that sharding is tested everywhere, and programs that are compiled in two thirds of the time,
# as most of them run once. Must precede the first import of jax.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0")

# Compiled programs are shared among all tests, the processes that run them and the commands they start.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="lumos-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture
def golden():
    """Return a loader of golden arrays that skips where the golden folder is absent."""
    import numpy as np

    def load(name: str):
        path = SHARED / "golden" / name
        if not path.exists():
            pytest.skip(f"golden data {name} is not here")
        return np.load(path)

    return load


def pytest_collection_modifyitems(items):
    """Begin with the files that take longest, so that no worker is left alone with one at the end."""
    longest = ("test_torture.py", "test_end_to_end.py", "test_adversarial.py", "test_training.py")
    items.sort(key=lambda item: longest.index(item.path.name) if item.path.name in longest else len(longest))
