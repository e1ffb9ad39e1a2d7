"""A cache policy of videos with several shots."""

from __future__ import annotations

import dataclasses

from lumos.generation.policy import EMPTY, Window


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shots(Window, name="shots"):
    """The first frames of the video, the first ones of the current shot, and the newest ones, `width` in all (LongLive 2's
    multi-shot sink, arXiv 2605.18739). A shot begins with `Session.cut`; its first frames take the place of the last shot's when
    they are there. Without cuts it is a window.
    """

    width: int = 32  # latent frames that are seen, those of the sinks included
    sink: int = 8  # first frames of the video that are always seen
    pin: int = 8  # first frames of the current shot that are always seen
    offset: int = 8  # latent frames that a shot stands later than it follows: what `Session.cut` takes
    num_gaps = 1

    def __post_init__(self):
        if min(self.sink, self.pin) < 0 or self.sink + self.pin >= self.width:
            raise ValueError(
                f"sink={self.sink} and pin={self.pin} must be at least 0, and fewer together than width={self.width}"
            )

    @property
    def shot_offset(self):
        return self.offset

    def sees(self, frame_S, now, cut_S=0):
        cut_S = cut_S + 0 * frame_S
        is_frame = (frame_S >= 0) & (frame_S < EMPTY)
        newest = frame_S.max(where=is_frame, initial=-1)
        is_shot = is_frame & (cut_S == cut_S.max(where=is_frame & (frame_S == newest), initial=-EMPTY))
        first = frame_S.min(where=is_shot, initial=EMPTY)
        pinned = (frame_S >= first) & (frame_S < first + self.pin)
        near = frame_S >= now - (self.width - self.sink - self.pin)
        return (frame_S < EMPTY) & ((frame_S < self.sink) | pinned | near)
