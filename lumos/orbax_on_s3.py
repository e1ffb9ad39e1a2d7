"""Checkpoints on s3://: Orbax knows gs:// alone, though TensorStore, which writes its arrays, knows s3:// as well.

To Orbax all buckets are alike: a checkpoint has its final name from the start, and its marker is written last. So s3:// becomes
one more kind of what it takes for gs://, with TensorStore's other driver. Four names inside of Orbax are replaced for that;
one that has moved in another version of it is an error in one line, before anything is written.
"""

from __future__ import annotations

import functools
import importlib
import os
from typing import Any

import orbax.checkpoint as ocp

from lumos import files
from lumos.errors import UserError

_REPLACED = {
    "orbax.checkpoint._src.path.gcs_utils": ("is_gcs_path", "get_kvstore_for_gcs"),
    "orbax.checkpoint._src.serialization.tensorstore_utils": ("_use_gcs_driver", "_normalize_path"),
}


def prepare(path: str | os.PathLike) -> None:
    """Let Orbax of this process read and write a path; on s3:// it has to be taught. Raises UserError."""
    if files.scheme_of(path) == "s3":
        _teach()


@functools.cache
def _teach() -> None:
    """Let Orbax take s3:// for what it knows. Raises UserError where this version of it cannot be taught."""
    try:
        paths, arrays = (importlib.import_module(module) for module in _REPLACED)
        is_bucket, use_driver, normalised, store = (
            paths.is_gcs_path, arrays._use_gcs_driver, arrays._normalize_path, paths.get_kvstore_for_gcs,
        )  # fmt: skip
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"checkpoints on s3:// need orbax-checkpoint 0.12; this is {ocp.__version__} ({error}): install it, or give a local path or gs://"
        ) from error
    paths.is_gcs_path = lambda path: files.scheme_of(path) == "s3" or is_bucket(path)
    paths.get_kvstore_for_gcs = lambda path: _store(path) if files.scheme_of(path) == "s3" else store(path)
    arrays._use_gcs_driver = lambda path: files.scheme_of(path) == "s3" or use_driver(path)
    arrays._normalize_path = lambda path: (
        f"s3://{os.path.normpath(path[5:])}" if files.scheme_of(path) == "s3" else normalised(path)
    )


def _store(path: str) -> dict[str, Any]:
    """Return TensorStore's description of a folder in a bucket, at the server that s3fs writes to."""
    bucket, _, inside = path.removeprefix("s3://").partition("/")
    spec: dict[str, Any] = {"driver": "s3", "bucket": bucket, "path": inside}
    endpoint, region = files.s3_server()
    if endpoint:  # of Amazon's own servers TensorStore finds the bucket's by itself
        spec |= {"endpoint": endpoint, "aws_region": region}
    if (
        "AWS_ACCESS_KEY_ID" in os.environ
    ):  # else it looks where they may lie, and complains of each file that is not there
        spec["aws_credentials"] = {"type": "environment"}
    return spec
