"""What a stream shows and when: `a red car[5s] | it rains[10s#]`."""

from __future__ import annotations

import re
from typing import NamedTuple

from lumos.errors import UserError

_LENGTH = re.compile(r"\[\s*(\d+(?:\.\d+)?)\s*s\s*(#?)\s*\]\s*$")


class Part(NamedTuple):
    """A prompt, for how many seconds it holds (None = to the end), and whether a new scene begins with it (#)."""

    prompt: str
    seconds: float | None
    cut: bool = False


def parse(text: str) -> tuple[Part, ...]:
    """Read a script: prompts with their seconds, separated by |. Raises UserError.

    Only the last part may be without seconds. `\\|` stands for the character itself.
    """
    pieces = [piece.replace("\\|", "|").strip() for piece in re.split(r"(?<!\\)\|", text)]
    parts = []
    for number, piece in enumerate(pieces, start=1):
        found = _LENGTH.search(piece)
        if found is None and re.search(r"\[[^\]]*s?\s*#?\s*\]\s*$", piece):
            raise UserError(
                f"--prompt: part {number}, {piece!r}, ends with no length: write [5s], or [5s#] for a new scene"
            )
        seconds = float(found.group(1)) if found else None
        if seconds is not None and seconds <= 0:
            raise UserError(f"--prompt: part {number} lasts {seconds:g} seconds; it must be above 0")
        if seconds is None and number < len(pieces):
            raise UserError(f"--prompt: part {number}, {piece!r}, needs its seconds, as in [5s]: another one follows")
        cut = bool(found and found.group(2))
        if cut and number == 1:
            raise UserError("--prompt: the first part cannot be a cut (#): nothing comes before it")
        parts.append(Part(piece[: found.start()].strip() if found else piece, seconds, cut))
    return tuple(parts)


def starts(parts: tuple[Part, ...], frames_per_second: float) -> tuple[int, ...]:
    """Return the latent frame that each part begins with, at so many latent frames a second."""
    out, seconds = [], 0.0
    for part in parts:
        out.append(round(seconds * frames_per_second))
        seconds += part.seconds or 0.0
    return tuple(out)
