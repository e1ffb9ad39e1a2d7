"""Slot 2, the rule: who sees whom.

A rule is a predicate over two tables of tokens (`sequence.tokens`): its one definition, and the oracle of the tests. Kernels
take its compiled form, a few ranges of keys a query (`sequence.key_ranges`), because sequences are stored in the order of
their stages; nothing of size [L, L] is built. Which tokens share a stage (single codes, blocks, planes, frames, the
whole video) is the arrangement's choice, so next-token, block, plane, frame-causal and full attention are one rule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from lumos.errors import UserError
from lumos.sequence.key_ranges import StaticRanges
from lumos.sequence.layout import Layout
from lumos.sequence.storage import Storage
from lumos.sequence.tokens import TEXT, Tokens
from lumos.slots import Slot

_MOST_RANGES = 4  # a query may have; every one is another loop in the kernel
_ROWS = 1024  # queries compared with all keys at a time, when a rule is compiled
_KEY_FIELDS = (
    "kind",
    "t",
    "stage",
    "copy",
    "segment",
    "group",
    "valid",
)  # what a rule may read of a key, beside `reads`


def stage_causal(q: Tokens, k: Tokens):
    """The base of all rules: earlier stages and one's own; a noisy token sees clean earlier stages and its own noisy one.

    That is causal text (a stage each), block- and frame-causal video, full attention (one stage), other orders of frames,
    and the skip-causal mask of two copies (ACDiT, arXiv 2412.07720; BD3-LM).
    """
    same = q.copy == k.copy
    own_copy = (q.copy == 0) & (k.stage <= q.stage) | (q.copy == 1) & (k.stage == q.stage)
    return (k.valid > 0) & (same & own_copy | (k.copy < q.copy) & (k.stage < q.stage))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule(Slot):
    """Whether query q sees key k, for arrays of tokens that broadcast."""

    decay: float = 0.0  # added to the logit of a key for each latent frame that it is later (FAR's FlexRoPE): 0 = off

    def __call__(self, q: Tokens, k: Tokens):
        raise NotImplementedError

    # The fields of a query that the answer depends on: queries that share them share their keys.
    reads = ("stage", "copy")

    def layers(self) -> tuple[Rule, ...]:
        """Return the rules of consecutive layers, which repeat; most rules are the same in all."""
        return (self,)

    def gated(self) -> Rule | None:
        """Return what is seen apart, through a learnt gate of each layer (`model.mixer`)."""
        return None

    def key_order(self, k: Tokens) -> np.ndarray | None:
        """Return an order of the keys in which visible ones are contiguous, the text first, or None for that of the sequence."""
        return None

    def bias(self, k: Tokens):
        """Return what is added to the logit of every key, float32 shaped like the tokens, or None.

        A decay of slope * (t_k - t_q) needs the key's part alone: the query's cancels in the softmax.
        """
        return self.decay * k.t * k.is_cell if self.decay else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageCausal(Rule, name="causal"):
    """Earlier stages and one's own."""

    def __call__(self, q, k):
        return stage_causal(q, k)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Full(Rule, name="full"):
    """Everything sees everything (MaskGIT), but text sees text alone: generation computes it once, before the video."""

    reads = ("t",)

    def __call__(self, q, k):
        return (k.valid > 0) & ((k.t < 0) | (q.t >= 0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prefix(Rule, name="prefix"):
    """Causal, with a text that sees itself whole (VideoPoet)."""

    reads = ("stage", "copy", "kind")

    def __call__(self, q, k):
        return stage_causal(q, k) | (k.valid > 0) & (q.kind == TEXT) & (k.kind == TEXT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window(Rule, name="window"):
    """Causal, back to a number of latent frames; the text and the first frames (the sink) stay visible (LongLive)."""

    width: int = 8  # latent frames that are seen, one's own included
    sink: int = 0  # first latent frames that are always seen
    sink_gate: float = 0.0  # added to the logits of the sink's keys (log of a gate, StreamingT2V)
    reads = ("stage", "copy", "t")

    def __post_init__(self):
        if self.width < 1 or self.sink < 0:
            raise ValueError(f"width={self.width} must be at least 1 and sink={self.sink} at least 0")

    def __call__(self, q, k):
        near = (q.t - k.t < self.width) | (k.t < self.sink)  # text has t = -1
        return stage_causal(q, k) & ((q.t < 0) | near)

    def bias(self, k):
        decay = super().bias(k)
        gate = self.sink_gate * ((k.t >= 0) & (k.t < self.sink)) if self.sink_gate else None
        return gate if decay is None else decay if gate is None else decay + gate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scenes(Rule, name="scenes"):
    """Causal; text is seen by its own scene alone, and video by later scenes if `across` (Mask2DiT, arXiv 2503.19881).

    Scenes have equal parts of the text slots and equally many frames; with 0 they are the segments of the layout's tokens.
    """

    across: bool = True  # whether a scene sees the video of earlier ones
    text: int = 0  # text slots of each scene
    frames: int = 0  # latent frames of each scene
    reads = ("stage", "copy", "segment", "t")

    def __post_init__(self):
        if min(self.text, self.frames) < 0 or (self.text > 0) != (self.frames > 0):
            raise ValueError(f"text={self.text} and frames={self.frames} must both be at least 1, or both be 0")

    def _scene(self, tokens):
        if not self.frames:
            return tokens.segment
        # Markers before the video belong to all; text slots come first.
        of_text = (tokens.kind == TEXT) * (tokens.index // self.text + 1) - 1
        return (tokens.t >= 0) * (tokens.t // self.frames) + (tokens.t < 0) * of_text

    def __call__(self, q, k):
        of_q, of_k = self._scene(q), self._scene(k)
        same = (of_k == of_q) | (of_k < 0) | (of_q < 0)
        return stage_causal(q, k) & (same | (k.t >= 0) if self.across else same)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Local(Rule, name="local"):
    """The text and one's own latent frame."""

    reads = ("stage", "copy", "t")

    def __call__(self, q, k):
        return stage_causal(q, k) & ((k.t < 0) | (k.t == q.t))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Axial(Rule, name="axial"):
    """The text and the cells on one line through one's own (Axial Transformers, arXiv 1912.12180)."""

    axis: str = "t"  # t | y | x
    reads = ("stage", "copy", "t", "y", "x", "kind")

    def __post_init__(self):
        if self.axis not in ("t", "y", "x"):
            raise ValueError(f"axis={self.axis!r}: allowed: t, y, x")

    def __call__(self, q, k):
        others = [name for name in ("t", "y", "x") if name != self.axis]
        line = True
        for name in others:
            line = line & (getattr(k, name) == getattr(q, name))
        return stage_causal(q, k) & ((k.t < 0) | (line & (k.is_cell == q.is_cell)))

    def key_order(self, k):
        # What stands outside of frames comes first and in its own order, so that a row's padding is still at the start.
        outside = k.t < 0
        others = [getattr(k, name) for name in ("t", "y", "x") if name != self.axis]
        line = [np.where(outside, -1, value) for value in (k.is_cell, *others, k.copy)]
        return np.lexsort((np.where(outside, -1, getattr(k, self.axis)), k.stage, *line, ~outside))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalGlobal(Rule, name="local_global"):
    """Layers see their own frame only; every `every`-th layer sees all (STARFlow-V's global-local, Gemma)."""

    every: int = 2  # 2 = layers take turns

    def __post_init__(self):
        if self.every < 1:
            raise ValueError(f"every={self.every} must be at least 1")

    def layers(self):
        return (*[Local(decay=self.decay)] * (self.every - 1), StageCausal(decay=self.decay))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpaceTime(Rule, name="space_time"):
    """Layers take turns: one's own frame, then the same cell in earlier frames (ST-transformer; Genie, 1X)."""

    def layers(self):
        return Local(decay=self.decay), Axial(axis="t", decay=self.decay)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AxialTurns(Rule, name="axial_turns"):
    """Layers take turns along time, rows and columns."""

    def layers(self):
        return tuple(Axial(axis=axis, decay=self.decay) for axis in ("t", "y", "x"))


def visible(rule: Rule, q: Tokens, k: Tokens) -> np.ndarray:
    """Evaluate the predicate for every pair, bool [Q, K]: the definition, for tests and small inputs."""
    rows, columns = Tokens(*(a[:, None] for a in q)), Tokens(*(a[None, :] for a in k))
    return np.broadcast_to(np.asarray(rule(rows, columns), bool), (len(q.kind), len(k.kind)))


def compile_rule(rule: Rule, q: Tokens, k: Tokens) -> StaticRanges:
    """Return which keys each query sees, as ranges. Raises UserError if that takes more than a few of them."""
    order = rule.key_order(k)
    keys = k if order is None else k.at(order)
    # Neighbours that the rule cannot tell apart are compared once.
    query_starts, key_starts = _alike(q, rule.reads), _alike(keys, {*rule.reads, *_KEY_FIELDS})
    queries, keys = q.at(query_starts[:-1]), keys.at(key_starts[:-1])
    starts, ends = [], []
    for first in range(0, len(queries.kind), _ROWS):
        sees_CK = visible(rule, queries.at(slice(first, first + _ROWS)), keys)
        edge_CK = np.diff(np.pad(sees_CK, ((0, 0), (1, 1))).astype(np.int8), axis=1)
        starts.append(key_starts[_columns(edge_CK == 1)])
        ends.append(key_starts[_columns(edge_CK == -1)])
    inverse = np.repeat(np.arange(len(queries.kind)), np.diff(query_starts))
    num = max(1, *(part.shape[1] for part in starts))
    if num > _MOST_RANGES:
        raise UserError(
            f"config.sequence.attention={rule.name!r} gives {num} ranges of keys to one query in this layout, at most {_MOST_RANGES} are "
            "computed: choose a layout whose frames lie together, such as 'compact'"
        )
    pad = lambda parts: np.concatenate([np.pad(p, ((0, 0), (0, num - p.shape[1]))) for p in parts])[inverse]
    return StaticRanges(pad(starts).T, pad(ends).T, order)


def _alike(tokens: Tokens, names: Iterable[str]) -> np.ndarray:
    """Return where runs of tokens begin that are alike in some fields, and the end of the last run."""
    fields = np.stack([getattr(tokens, name) for name in sorted(names)])
    changes = np.flatnonzero((fields[:, 1:] != fields[:, :-1]).any(axis=0)) + 1
    return np.concatenate([[0], changes, [fields.shape[1]]]).astype(np.int32)


def _columns(mask_CK: np.ndarray) -> np.ndarray:
    """Return the columns that are true in each row, int32 [C, most in a row], 0 where a row has fewer."""
    count_C = mask_CK.sum(axis=1)
    found = np.zeros((len(mask_CK), max(1, count_C.max())), np.int32)
    row, column = np.nonzero(mask_CK)
    found[row, np.arange(len(row)) - np.repeat(np.cumsum(count_C) - count_C, count_C)] = column
    return found


def layout_ranges(layout: Layout, rule: Rule, storage: Storage | None = None) -> StaticRanges:
    """Return the ranges of a whole sequence whose queries lie in the slots of `storage`.

    Padding slots see what comes before them, and nothing sees them.
    """
    storage = storage or Storage(layout.num_read)
    tokens = layout.tokens.at(slice(storage.length))
    ranges = compile_rule(rule, tokens, tokens)
    extra = np.arange(storage.length, storage.num_slots)
    padding = np.zeros((ranges.start_RQ.shape[0], len(extra)), np.int32)
    end = np.concatenate([ranges.end_RQ, np.where(np.arange(len(padding))[:, None] == 0, extra + 1, padding)], axis=1)
    start = np.concatenate([ranges.start_RQ, padding], axis=1)
    order = ranges.order_S if ranges.order_S is None else np.concatenate([ranges.order_S, extra])
    return StaticRanges(start[:, storage.order], end[:, storage.order], order)


def count_pairs(layout: Layout, rule: Rule, text_length: float | None = None) -> float:
    """Return how many (query, key) pairs a row computes, averaged over the rule's layers: for FLOP counts."""
    first, tokens = layout.num_text if text_length is None else text_length, layout.tokens.at(slice(layout.num_read))
    first, counts, layers = layout.num_text - first, [], rule.layers()
    for of_layer in (*layers, *(of_layer.gated() for of_layer in layers if of_layer.gated())):
        ranges = compile_rule(of_layer, tokens, tokens)
        pairs_L = np.maximum(ranges.end_RQ - np.maximum(ranges.start_RQ, first), 0).sum(axis=0)
        counts.append(float(pairs_L[np.arange(layout.num_read) >= first].sum()))
    return sum(counts) / len(layers)
