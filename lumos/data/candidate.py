"""A clip that may go into a manifest, before anything was looked at."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from lumos.data.media import Member


@dataclasses.dataclass(frozen=True)
class Candidate:
    """`path` is the file that it is, or lies in; `member` says where in it.

    captions: None = look for a file beside the clip. span: (first, last second) of a clip in a longer file. more: fields of its row that
    are carried along. fault: known before the file is looked at. line: of the list. bytes: of the file, where they are known.
    """

    path: Path
    id: str
    captions: tuple[str, ...] | None = None
    split: str = ""
    fault: str = ""
    line: int = 0
    span: tuple[float, float] | None = None
    member: Member | None = None
    bytes: int = 0
    more: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """What a message calls it."""
        inside = f": {self.member.name}" if self.member else ""
        return f"{self.path}{inside}"
