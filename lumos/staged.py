"""Verbs that work on the local disk, with paths in buckets: what they read is copied first, what they write is uploaded at the end.

Workdirs, data, manifests and tokens are read and written where they lie; this is for reports, exports, samples and single files.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lumos import files
from lumos.errors import UserError, printable

_OUTPUTS = ("out", "to", "sheet")


@contextlib.contextmanager
def staged(values: Any, names: Sequence[str]) -> Iterator[None]:
    """Give local paths to the flags of these names, whose values are URLs, while a verb runs.

    What a verb has written is uploaded also when it fails, so that one which goes on where it was can: a folder that is there is
    copied before. Raises UserError where a bucket cannot be read or written.
    """
    with tempfile.TemporaryDirectory(prefix="lumos-staged-") as folder:
        outputs = []
        for name in names:
            remote = files.path(values[name].value)
            local = Path(folder) / name / remote.name
            local.parent.mkdir()
            if name in _OUTPUTS:
                files.probe(remote.parent, f"--{name}")
                outputs.append((local, remote))
            if remote.is_dir():
                files.get_tree(remote, local)
            elif name not in _OUTPUTS:
                files.get(remote, local)
            values[name].value = str(local)
        before = {local: _versions(local) for local, _ in outputs}
        try:
            yield
        finally:
            for local, remote in outputs:
                _upload(local, remote, before[local])


def _versions(local: Path) -> dict[Path, tuple[int, int]]:
    """Return the size and time of a file, or of all files of a folder."""
    found = filter(Path.is_file, sorted(local.rglob("*"))) if local.is_dir() else [local] if local.exists() else []
    return {file: (file.stat().st_size, file.stat().st_mtime_ns) for file in found}


def _upload(local: Path, remote: Path, before: dict[Path, tuple[int, int]]) -> None:
    """Upload what is new, or other than it was before: of several processes one writes."""
    changed = [file for file, version in _versions(local).items() if before.get(file) != version]
    try:
        for file in changed:
            files.put(file, remote if file == local else remote / file.relative_to(local).as_posix())
    except Exception as error:
        raise UserError(f"{printable(str(remote))}: cannot be written ({files.reason_of(error)})") from error
    if changed:
        print(f"uploaded to {printable(str(remote))}", file=sys.stderr)
