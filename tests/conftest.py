import atexit
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

# Eight virtual CPU devices, so that sharding is tested everywhere, and programs that are compiled fast, as most of them run
# once: without optimization, and by the older emitters of loops where this version of XLA has both (2.4 times as fast; a
# version that does not know a flag ends the process). Must precede the first import of jax.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    + " --xla_cpu_use_fusion_emitters=false" * version("jaxlib").startswith("0.10."),
)

# Compiled programs are shared among all tests, the processes that run them and the commands they start.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="lumos-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import pytest

GOLDEN = Path(__file__).parent / "golden"
_LARGE = Path(__file__).resolve().parents[2] / "shared" / "golden"


@pytest.fixture(scope="session")
def golden():
    """Return a loader of the golden arrays in the repository, by file name."""
    import numpy as np

    return lambda name: np.load(GOLDEN / name)


@pytest.fixture(scope="session")
def large_golden():
    """Return the path of a golden file that is too large for the repository, by its name; skip where it is not at hand."""

    def find(name: str) -> Path:
        if not (_LARGE / name).exists():
            pytest.skip(f"{name} is too large for the repository, and not in {_LARGE}")
        return _LARGE / name

    return find


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items):
    """Mark variants that are not in the suite (`fast` in pyproject.toml). Begin with the files that take longest, so that no worker is left alone with one at the end."""
    for item in items:
        mark = item.get_closest_marker("fast")
        if mark and item.callspec.id not in mark.args:
            item.add_marker("slow")
    longest = ("test_torture.py", "test_end_to_end.py", "test_adversarial.py", "test_training.py")
    items.sort(key=lambda item: longest.index(item.path.name) if item.path.name in longest else len(longest))
