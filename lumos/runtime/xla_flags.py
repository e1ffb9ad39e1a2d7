"""Keeps XLA's CPU compiler from a library whose sums are wrong.

XLA gives products and sums on a CPU to YNNPACK. With jaxlib 0.10.2, the last one for Python 3.11, sums of products come out wrong without an
error where there are many rows (jax-ml/jax#39103), and some sums of many axes end the process (jax-ml/jax#40412). Without it, training is about as fast
(docs/results.md).
"""

import os

_YNNPACK = "--xla_cpu_experimental_ynn_fusion_type"


def avoid_ynnpack() -> None:
    """Switch YNNPACK off in this process and those that it starts, unless XLA_FLAGS says otherwise.

    XLA reads its flags once, when it first compiles: this must come before.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _YNNPACK not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_YNNPACK}=".strip()
