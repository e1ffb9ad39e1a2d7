"""Slot 6, guidance: several branches of a clip that lack something, and what their logits are worth.

The logits of a cell are the weighted sum of its logits in all branches. Classifier-free guidance is the branch with
everything, weighted `scale`, and the one without text, weighted `1 - scale`. The branches are rows of one batch.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from lumos.slots import Slot


class Branch(NamedTuple):
    """weight: of its logits. drop: what it does not see: "text", "history" (what is finished), "neighbours" (all other groups,
    finished or in flight), "streams" (beside the video, such as actions)."""

    weight: float
    drop: frozenset[str]


class Guidance(Slot):
    """Which branches are computed."""

    NUMBERS: ClassVar[dict[str, float | None]] = {}  # see `lumos.generation.numbers`

    def branches(self) -> tuple[Branch, ...]:
        """Return the branches; the first one has everything."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoGuidance(Guidance, name="none"):
    """The clip itself, and no other branch."""

    def branches(self):
        return (Branch(1.0, frozenset()),)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextGuidance(Guidance, name="text"):
    """Classifier-free guidance: u + scale (c - u), where u lacks the text."""

    scale: float = 3.0  # 1 = off

    NUMBERS = {"scale": 1.0}

    def branches(self):
        if not isinstance(self.scale, jax.Array) and self.scale == 1.0:
            return NoGuidance().branches()
        return Branch(self.scale, frozenset()), Branch(1 - self.scale, frozenset({"text"}))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextAndHistory(Guidance, name="text_history"):
    """Three branches: n + history (u - n) + text (c - u), where u lacks the text, and n the text and the history (MAGI-1)."""

    text: float = 7.5  # scale of what the text adds
    history: float = 1.5  # scale of what the history adds

    NUMBERS = {"text": None, "history": None}

    def branches(self):
        return (
            Branch(self.text, frozenset()),
            Branch(self.history - self.text, frozenset({"text"})),
            Branch(1 - self.history, frozenset({"text", "history"})),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextAndStreams(Guidance, name="text_streams"):
    """Three branches: n + streams (u - n) + text (c - u), where u lacks the text, and n the text and the streams beside the video
    (guidance on actions; train with `corruption.stream_drop`)."""

    text: float = 1.0  # scale of what the text adds
    streams: float = 2.0  # scale of what the streams add

    NUMBERS = {"text": None, "streams": None}

    def branches(self):
        return (
            Branch(self.text, frozenset()),
            Branch(self.streams - self.text, frozenset({"text"})),
            Branch(1 - self.streams, frozenset({"text", "streams"})),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neighbours(Guidance, name="neighbours"):
    """(1 + scale) c - scale u, where u sees neither text nor other groups (omni guidance of Generative View Stitching, arXiv
    2510.24718 section 3.2); groups in flight see each other by the plan 'diagonal'."""

    scale: float = 1.0  # 0 = off

    NUMBERS = {"scale": None}

    def branches(self):
        return Branch(1 + self.scale, frozenset()), Branch(-self.scale, frozenset({"text", "neighbours"}))


def combine(logits_R: jax.Array, branches: tuple[Branch, ...]) -> jax.Array:
    """Return the weighted sum over branches, which lie behind each other on the first axis."""
    if len(branches) == 1:
        return logits_R
    parts = jnp.split(logits_R, len(branches))
    if len(branches) == 2:  # as the difference, so that equal branches leave the logits as they are
        return parts[1] + branches[0].weight * (parts[0] - parts[1])
    return sum(branch.weight * part for branch, part in zip(branches, parts))
