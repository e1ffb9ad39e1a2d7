"""Files to which lines are added, on a disk or in a bucket, where nothing can be added to an object."""

from __future__ import annotations

import time
from pathlib import Path

from lumos.files import is_remote, read_text, write_text

_UPLOAD_EVERY = 30.0  # seconds between uploads of a file that grows


class Appended:
    """A text file to which lines are added, also by later starts. In a bucket all of it is uploaded now and then."""

    def __init__(self, path: Path):
        self._path, self._uploaded = path, time.monotonic()
        if is_remote(path):
            self._text = read_text(path) if path.exists() else ""
            torn = self._text[-1:] not in ("", "\n")
        else:
            self._text = None
            torn = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
            self._file = open(path, "a", buffering=1)
        if torn:  # killed while writing a line: the next one must not be glued to it
            self.write("")

    def write(self, line: str) -> None:
        if self._text is None:
            self._file.write(line + "\n")
            return
        self._text += line + "\n"
        if time.monotonic() - self._uploaded > _UPLOAD_EVERY:
            self.flush()

    def flush(self) -> None:
        """Make what was written last."""
        if self._text is not None:
            write_text(self._path, self._text)
            self._uploaded = time.monotonic()

    def close(self) -> None:
        self.flush()
        if self._text is None:
            self._file.close()
