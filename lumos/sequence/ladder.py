"""An attention rule under which older frames are seen through fewer tokens."""

from __future__ import annotations

import dataclasses

import numpy as np

from lumos.sequence.rule import Rule, stage_causal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ladder(Rule, name="ladder"):
    """Causal; near frames are seen whole, older ones through their memory tokens (FAR, arXiv 2503.19325 section 3.3; Yume).

    Memory tokens of a rung see what the cells of their frame see of other frames, and their own rung of their own frame. So
    nothing depends on how near a frame once was, and what is written once is never encoded again (FAR encodes the near
    frames again whenever one becomes old).
    """

    # Distance in latent frames from which each rung of `model.memory` is seen instead of the one before it.
    frames: tuple[int, ...] = (8,)
    reads = ("stage", "copy", "t", "stream")

    def __post_init__(self):
        if not self.frames or list(self.frames) != sorted(set(self.frames)) or self.frames[0] < 1:
            raise ValueError(f"frames={self.frames} must be one increasing distance of at least 1 for each rung")

    def __call__(self, q, k):
        own, distance = k.t == q.t, q.t - k.t
        rung = sum((distance >= frames) * 1 for frames in self.frames)
        in_sight = own & (_rung(k) == _rung(q)) | ~own & (_rung(k) == rung)
        return stage_causal(q, k) & ((k.t < 0) | in_sight)

    def key_order(self, k):
        # The oldest rung first, behind the text: what a query sees of a rung is one range then.
        return np.lexsort((np.arange(len(k.t)), -_rung(k), k.t >= 0))


def _rung(tokens):
    """Return the rung of memory tokens, counted from 1; 0 for all others."""
    return (tokens.stream < 0) * -tokens.stream
