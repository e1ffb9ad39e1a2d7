"""Data: manifests, sources and batches. Scripts need `lumos.data.open`; all else is for lumos itself."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lumos.api import open_data as open

    __all__ = ["open"]


def __getattr__(name: str) -> Any:
    # Above this folder, because a transformer's batches depend on what `lumos.training` reads from its tokens.
    if name == "open":
        return importlib.import_module("lumos.api").open_data
    raise AttributeError(f"module 'lumos.data' has no attribute {name!r}")
