"""What the model is given in generation: tokens, where they stand, and what they see of the cache and of each other.

Everything follows from the table of tokens, the rule, the cache policy and the position rule. Rows R are the branches of
guidance, B clips each; they differ in what they lack.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from lumos.generation.cache import Cache
from lumos.generation.groups import Groups
from lumos.generation.guidance import Branch
from lumos.generation.policy import EMPTY
from lumos.generation.positions import Absolute
from lumos.model import transformer
from lumos.sequence.key_ranges import KeyRanges, StaticRanges
from lumos.sequence.layout import Layout
from lumos.sequence.rule import Axial, Rule, compile_rule
from lumos.sequence.tokens import CODE, LINE_END, STREAM, Positions, Tokens, coordinates

if TYPE_CHECKING:
    from lumos.config import GenerateConfig

_HIDDEN = -1e30  # added to the logits of keys that a row does not see


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """Static choices. `undo`: frames that a bounded cache keeps beside those that are seen."""

    layout: Layout
    settings: GenerateConfig
    rule: Rule
    undo: int = 0

    def __post_init__(self):
        if (self.layout.tokens.group[self.layout.tokens.kind == STREAM] < 0).any():
            raise ValueError("streams come with whole frames: use sequence.layout 'compact' with block=(1, 0, 0)")
        if self.bounded and not self.groups.per_frame:
            raise ValueError(
                f"cache {self.settings.cache.name!r} drops frames, so groups must be parts of single frames"
            )
        lines = any(isinstance(rule, Axial) and rule.axis == "t" for rule in self.rule.layers())
        self.settings.cache.check(self)
        self.settings.storage.check(self)
        if self.layout.memory and self.settings.cache.name != "ladder":
            raise ValueError(
                f"old frames are seen through memory tokens alone: use cache 'ladder', not {self.settings.cache.name!r}"
            )
        if self.settings.plan.both_ways and any(isinstance(rule, Axial) for rule in self.rule.layers()):
            raise ValueError(f"plan {self.settings.plan.name!r} does not go with axial attention")
        if lines and not (self.groups.per_frame == 1 and len(self.groups.cells) == self.groups.size):
            raise ValueError(
                f"attention {self.rule.name!r} follows cells through time, which generation does frame by frame and without markers: "
                "use sequence.layout 'compact' with block=(1, 0, 0)"
            )

    @cached_property
    def groups(self) -> Groups:
        return Groups(self.layout)

    @cached_property
    def branches(self) -> tuple[Branch, ...]:
        return self.settings.guidance.branches()

    @property
    def bounded(self) -> bool:
        return self.settings.cache.bounded

    @property
    def history_frames(self) -> int:
        """How many frames the cache holds: those that are seen, and `undo`."""
        return self.settings.cache.num_frames(self.layout.grid[0]) + self.undo

    @cached_property
    def num_slots(self) -> int:
        if not self.bounded:
            return self.layout.length + (0 if self.groups.is_uniform else self.groups.size)
        return self.settings.cache.num_slots(self)

    @property
    def sizes(self) -> tuple[int, int]:
        """Slots of the text, and of each frame (0 where groups are not parts of frames)."""
        return self.layout.prefix_length, self.groups.per_frame * self.groups.size

    # Tokens ---------------------------------------------------------------------------------------------------------

    def flight(self, groups_W: jax.Array, cut: jax.Array) -> tuple[Tokens, jax.Array]:
        """Return the tokens of groups and the ids of their markers, [W * N] each; they stand `cut` frames later."""
        tokens = jax.vmap(self.groups.tokens)(groups_W)
        tokens = Tokens(*(field.reshape(-1) for field in tokens))
        if self.groups.per_frame:
            tokens = self.groups.moved(tokens, cut)
        return tokens, jax.vmap(self.groups.template)(groups_W).reshape(-1)

    def prefix(self, num_groups: int, numbers: tuple[jax.Array, jax.Array] | None) -> tuple[Tokens, jax.Array]:
        """Return the tokens of the text and of the first groups, and the time of the last frame.

        `numbers`: the numbers of the latent frames that the groups make up, and how many frames each stands later by cuts; by
        default 0, 1, ... and 0.
        """
        tokens = self.layout.tokens.at(slice(0, int(self.groups.starts[num_groups])))
        tokens, now = Tokens(*(jnp.asarray(field) for field in tokens)), jnp.int32(0)
        if self.groups.per_frame and num_groups:
            frame = jnp.arange(num_groups // self.groups.per_frame)
            frames_F, cuts_F = (frame, 0 * frame) if numbers is None else numbers
            in_frame = tokens.group >= 0
            old = jnp.where(in_frame, tokens.group // self.groups.per_frame, 0)
            tokens = self.groups.later(tokens, jnp.where(in_frame, frames_F[old] - old, 0))
            tokens = self.groups.moved(tokens, jnp.where(in_frame, cuts_F[old], 0))
            now = frames_F[-1] + cuts_F[-1]
        return tokens, now

    def frames(self, tokens: Tokens, used: jax.Array | bool = True) -> jax.Array:
        """Return the frame number of tokens, -1 for text and markers before the video, EMPTY where `used` is false."""
        frame = jnp.where(tokens.group >= 0, tokens.group // max(self.groups.per_frame, 1), -1)
        return jnp.where(used, frame, EMPTY)

    def is_first(self, tokens: Tokens) -> jax.Array:
        """Return which tokens are codes of the first latent frame of the video, bool [1, tokens]."""
        return ((self._in_frames(tokens).t == 0) & (tokens.kind == CODE))[None]

    # Positions ------------------------------------------------------------------------------------------------------

    def place(self, tokens: Tokens, first_R, slots: Tokens, used, now: jax.Array) -> Positions:
        """Return positions [R, tokens], when frame time `now` is generated from some slots ([layers, R, S] where layers differ).

        They count from the first visible token of each row, as if it stood there alone. Attention depends on differences only,
        but float32 angles far from 0 are coarse: so the arithmetic is that of a sequence without padding, and rows without
        text start at 0 like the sequences they were trained as.
        """
        if self.groups.per_frame and not isinstance(self.settings.positions, Absolute):
            num_sink, frame_S = self.settings.cache.num_sink, self.frames(slots, used)
            behind_sink = (frame_S >= num_sink) & (frame_S < EMPTY)
            oldest = jnp.minimum(jnp.min(jnp.where(behind_sink, slots.t, EMPTY)), now)
            in_frame = tokens.group >= 0
            in_sink = in_frame & (self.frames(tokens) < num_sink)
            in_cache = jnp.where((frame_S >= 0) & (frame_S < num_sink), frame_S + 1, 0).max(initial=0)
            t = self.settings.positions(tokens.t, now, in_sink, in_cache, oldest)
            tokens = self.groups.moved(tokens, jnp.where(in_frame, t - tokens.t, 0))
        *places, is_content = coordinates(tokens, self.layout.offset)
        shifted = (a - first_R[:, None] for a in places)
        return Positions(*shifted, jnp.broadcast_to(is_content, (len(first_R), len(tokens.kind))))

    # Who sees whom --------------------------------------------------------------------------------------------------

    def first_visible(self, text_length_B: jax.Array) -> jax.Array:
        """Return the first visible text slot of the rows of all branches, int32 [R]."""
        first_B = self.layout.first_key(text_length_B)
        dropped_B = jnp.full_like(first_B, self.layout.drop_to)
        return jnp.concatenate([dropped_B if "text" in branch.drop else first_B for branch in self.branches])

    def prefix_keys(self, tokens: Tokens, num_groups: int, first_R) -> tuple[KeyRanges, ...]:
        """Return what the `tokens` of a prefix see of each other, for each turn of the layers."""
        alike = self.layout.tokens.at(slice(0, int(self.groups.starts[num_groups])))

        def of(rule):
            keys = _keys(compile_rule(rule, alike, alike), first_R, rule.bias(self._in_frames(tokens)))
            return dataclasses.replace(keys, gated=of(rule.gated())) if rule.gated() else keys

        return tuple(of(rule) for rule in self.rule.layers())

    def own_keys(self, tokens: Tokens, first: jax.Array, width: int, num_rows: int) -> tuple[KeyRanges, ...]:
        """Return what the tokens of `width` consecutive groups see of each other, from group `first` on."""
        keys = self._own_keys(tokens, first, width)
        if width == 1 or not self._lacks("neighbours", num_rows).any():
            return keys
        # Rows that lack their neighbours see the keys of their own group alone.
        lacks_R1 = self._lacks("neighbours", num_rows)[:, None]
        low = np.repeat(np.arange(width), self.groups.size) * self.groups.size
        start = lambda k: jnp.where(lacks_R1, jnp.maximum(k.start_RBQ, low), k.start_RBQ)
        end = lambda k: jnp.where(lacks_R1, jnp.minimum(k.end_RBQ, low + self.groups.size), k.end_RBQ)
        if any(k.order_S is not None for k in keys):
            raise ValueError("guidance 'neighbours' does not go with axial attention")
        return tuple(KeyRanges(start(k), end(k), k.bias_BS) for k in keys)

    def begun(self, keys: tuple[KeyRanges, ...], first, end) -> tuple[KeyRanges, ...]:
        """Return what tokens in flight see of each other when the groups from `first` to `end` have begun ([] or [R, 1] each);
        others see themselves and those."""
        size = self.groups.size
        own = np.repeat(np.arange(keys[0].end_RBQ.shape[-1] // size), size)
        low, high = jnp.minimum(first, own) * size, jnp.maximum(end, own + 1) * size
        narrow = lambda k: KeyRanges(jnp.maximum(k.start_RBQ, low), jnp.minimum(k.end_RBQ, high), k.bias_BS)
        return tuple(map(narrow, keys))

    def _own_keys(self, tokens: Tokens, first: jax.Array, width: int) -> tuple[KeyRanges, ...]:
        keys = []
        for rule, ranges in zip(self.rule.layers(), self._own_ranges(width)):
            bias = _row(rule.bias(self._in_frames(tokens)))
            if len(ranges) == 1:
                keys.append(_keys(ranges[0], None, bias))
                continue
            start, end = (
                jnp.asarray(np.stack(x))[self.groups.row(first)] for x in zip(*((r.start_RQ, r.end_RQ) for r in ranges))
            )
            keys.append(KeyRanges(start[:, None], end[:, None], bias))
        return tuple(keys)

    def _own_ranges(self, width: int) -> list[list[StaticRanges]]:
        """Return the ranges of consecutive groups, for each turn of the layers: from every group on, or one for all of them."""
        out = []
        for rule in self.rule.layers():
            alike = self.groups.is_uniform and width <= self.groups.num
            groups = [self._in_flight(g, width) for g in range(1 if alike else self.groups.num)]
            ranges = [compile_rule(rule, tokens, tokens) for tokens in groups]
            num = max(r.start_RQ.shape[0] for r in ranges)
            pad = lambda x_RQ, num=num: np.pad(x_RQ, ((0, num - len(x_RQ)), (0, 0)))
            out.append([StaticRanges(pad(r.start_RQ), pad(r.end_RQ), r.order_S) for r in ranges])
        return out

    def _in_flight(self, first: int, width: int) -> Tokens:
        """Return the tokens of consecutive groups; where those in flight see each other both ways they share their stages."""
        tokens = self.groups.consecutive(first, width)
        if not self.settings.plan.both_ways:
            return tokens
        stage_WN = tokens.stage.reshape(width, -1)
        return tokens._replace(stage=(stage_WN - stage_WN[:, :1] + stage_WN[0, 0]).reshape(-1))

    def seen(self, cache: Cache, now: jax.Array) -> jax.Array:
        """Return which slots of a bounded cache the generation of frame `now` sees, bool [S]."""
        frame_S = self.frames(cache.tokens, cache.used_S)
        return self.settings.cache.sees(frame_S, now, cache.tokens.t - frame_S)

    def cache_keys(self, cache: Cache, first_R, groups_W: jax.Array, hidden_RS=None) -> tuple[KeyRanges, ...]:
        """Return what the tokens of each group see of the cache; `hidden_RS`: more that is added to the logits."""
        query = jax.vmap(lambda g: self.groups.tokens(g).at(0))(groups_W)
        slots, in_cache_WS = self._in_frames(cache.tokens), cache.used_S[None]
        if self.bounded:
            now_W = groups_W // self.groups.per_frame
            in_cache_WS = jax.vmap(lambda now: self.seen(cache, now))(now_W)
        bias_RS = _sum(self._without_history(cache, len(first_R)), hidden_RS)

        def of(rule):
            bias = _sum(rule.bias(slots), bias_RS)
            if isinstance(rule, Axial) and rule.axis == "t":
                return self._line_keys(in_cache_WS, first_R, bias)
            # All tokens of a group see the same of the cache, in which no other line crosses theirs.
            sees_WS = rule(Tokens(*(x[:, None] for x in query)), Tokens(*(x[None] for x in slots)))
            start, end = (
                jnp.repeat(x, self.groups.size, axis=1)[:, None]
                for x in _runs(sees_WS & in_cache_WS, self._num_ranges(rule))
            )
            keys = KeyRanges(jnp.maximum(start, first_R[:, None]), end, _row(bias), alike=len(groups_W) == 1)
            return dataclasses.replace(keys, gated=of(rule.gated())) if rule.gated() else keys

        return tuple(of(rule) for rule in self.rule.layers())

    def _line_keys(self, in_cache_WS: jax.Array, first_R, bias) -> KeyRanges:
        """Return the keys of attention along time: the text, and the query's cell in the frames that are seen.

        Keys are taken in another order, in which the frames of a cell follow one another.
        """
        prefix, size = self.layout.prefix_length, self.groups.size
        num_frames = (self.num_slots - prefix) // size
        cell_N, frame_F = np.arange(size), np.arange(num_frames)
        order = np.concatenate(
            [np.arange(prefix), (prefix + frame_F * size + cell_N[:, None]).reshape(-1), np.arange(prefix + num_frames * size, self.num_slots)]
        )  # fmt: skip
        seen_WF = in_cache_WS[:, prefix + frame_F * size]
        start_RW, end_RW = _runs(
            seen_WF, 1 + self.settings.cache.num_gaps + (self.settings.cache.num_sink > 0 and self.undo > 0)
        )
        line = prefix + cell_N * num_frames
        of_cells = lambda x_RW: (x_RW[..., None] + line).reshape(len(x_RW), -1)
        start, end = of_cells(start_RW), of_cells(end_RW)
        text = jnp.zeros_like(start[:1])
        start = jnp.concatenate([text, start])[:, None]
        end = jnp.concatenate([text + prefix, end])[:, None]
        full = StaticRanges(np.stack([0 * line, line]), np.stack([0 * line + prefix, line + num_frames]), order)
        return KeyRanges(jnp.maximum(start, first_R[:, None]), end, _row(bias), static=full)

    @cached_property
    def _num_ranges(self) -> Callable[[Rule], int]:
        """Returns the ranges of keys that a query has at most under a rule; what is kept unseen makes one more."""
        tokens, more = self.layout.tokens, self.settings.cache.num_gaps + (1 if self.bounded and self.undo else 0)
        return functools.cache(lambda rule: compile_rule(rule, tokens, tokens).start_RQ.shape[0] + more)

    def _in_frames(self, tokens: Tokens) -> Tokens:
        """Return tokens whose time is their frame number, whatever was cut: what rules go by."""
        if not self.groups.per_frame:
            return tokens
        return tokens._replace(t=jnp.where(tokens.group >= 0, tokens.group // self.groups.per_frame, tokens.t))

    def _without_history(self, cache: Cache, num_rows: int) -> jax.Array | None:
        """Return a bias [R, S] that hides finished frames from the rows of branches that lack the history."""
        lacks_R = self._lacks("history", num_rows) | self._lacks("neighbours", num_rows)
        if not lacks_R.any():
            return None
        return jnp.where(lacks_R[:, None] & (cache.tokens.group >= 0), _HIDDEN, 0.0)

    def _lacks(self, what: str, num_rows: int) -> np.ndarray:
        """Return which rows do not see something, bool [R]."""
        return np.repeat([what in branch.drop for branch in self.branches], num_rows // len(self.branches))

    # Rows -----------------------------------------------------------------------------------------------------------

    def rows(self, x_B: jax.Array) -> jax.Array:
        """Return the rows of all branches."""
        return jnp.tile(x_B, (len(self.branches), *(1,) * (x_B.ndim - 1))) if len(self.branches) > 1 else x_B

    def ids(self, ids_BQ: jax.Array, tokens: Tokens) -> jax.Array:
        """Return the ids of tokens in the rows of all branches; a branch without streams has [MASK] in their place."""
        ids_RQ = self.rows(ids_BQ)
        lacks_R = self._lacks("streams", len(ids_RQ))
        if not lacks_R.any():
            return ids_RQ
        return jnp.where(lacks_R[:, None] & (tokens.kind == STREAM), self.layout.vocabulary.mask, ids_RQ)

    def level(self, model: transformer.Transformer, tokens: Tokens, level_BQ, num_rows: int) -> dict[str, jax.Array]:
        """Return the levels of tokens [B or 1, Q or 1] as an argument of a model that embeds them, in the rows of all branches.

        What cannot be hidden (markers, memory tokens) has level 0, as in training.
        """
        if not model.config.level_embedding:
            return {}
        can_hide_Q = (tokens.kind == CODE) | (tokens.kind == LINE_END)
        level_BQ = level_BQ.astype(jnp.float32) * can_hide_Q
        return {"level_BQ": jnp.tile(level_BQ, (num_rows // len(level_BQ), 1))}


def _keys(ranges: StaticRanges, first_R, bias_S) -> KeyRanges:
    keys = KeyRanges.of(ranges, first_R, _row(bias_S))
    # Ranges of this call alone: nothing that a schedule is built for, but for the order of the keys.
    if ranges.order_S is not None:
        return keys
    return KeyRanges(keys.start_RBQ, keys.end_RBQ, keys.bias_BS, runs=keys.runs, alike=ranges.alike)


def _sum(a, b):
    return b if a is None else a if b is None else a + b


def _row(bias):
    """Return a bias as float32 [B or 1, S], or None."""
    return None if bias is None else jnp.atleast_2d(jnp.asarray(bias, jnp.float32))


def _runs(sees_WS: jax.Array, num: int) -> tuple[jax.Array, jax.Array]:
    """Return start and end of the first `num` runs of true values in each row, int32 [num, W] each; empty where there are
    fewer."""
    size = sees_WS.shape[1]
    index = jnp.arange(size, dtype=jnp.int32)
    before = jnp.pad(sees_WS, ((0, 0), (1, 0)))[:, :size]
    behind = jnp.pad(sees_WS, ((0, 0), (0, 1)))[:, 1:]
    first = lambda edge_WS: -jax.lax.top_k(-jnp.where(edge_WS, index, size), num)[0].T
    start, last = first(sees_WS & ~before), first(sees_WS & ~behind)
    return start, jnp.minimum(last + 1, size)
