"""The tokens of each group of a layout, looked up by a traced group number.

Groups of different sizes are padded to the largest. A layout that repeats from frame to frame serves videos of any
length: the groups of later frames are those of the last one, moved in time.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from lumos.sequence.layout import Layout
from lumos.sequence.memory import Rung
from lumos.sequence.tokens import CODE, STREAM, Tokens


@dataclasses.dataclass(frozen=True, eq=False)
class Groups:
    """Static tables of a layout's groups: G groups, at most N tokens in each, C codes of them."""

    layout: Layout

    @cached_property
    def starts(self) -> np.ndarray:
        """Sequence index of the first token of each group, and the end of the last, int32 [G + 1].

        Tokens between groups (start tokens of blocks) belong to the group before them.
        """
        groups = self.layout.groups
        return np.array([*(group[0] for group in groups), groups[-1][-1] + 1], np.int32)

    @property
    def num(self) -> int:
        return len(self.layout.groups)

    @cached_property
    def size(self) -> int:
        """Tokens of the largest group."""
        return int(np.diff(self.starts).max())

    @cached_property
    def cells(self) -> np.ndarray:
        """Offsets of the codes inside a group, int32 [C]; where groups have codes alone, all offsets."""
        largest = max(self._codes, key=len)
        if any(not np.array_equal(own, largest[: len(own)]) for own in self._codes):
            raise ValueError("codes must have the same places in every group")
        return largest.astype(np.int32)

    @cached_property
    def content(self) -> np.ndarray:
        """Offsets of what a history mask may hide inside a group (codes, and new_lines in lumos1)."""
        first = self.layout.groups[0] if self.is_uniform else max(self.layout.groups, key=len)
        kinds = self.layout.tokens.kind[first]
        return np.flatnonzero((kinds >= CODE) & (kinds < STREAM)).astype(np.int32)

    def memory(self, width: int) -> tuple[Rung, ...]:
        """Return where memory tokens and their cells are in `width` consecutive groups."""
        start = int(self.starts[0])
        more = start - self.size * np.arange(width)[:, None]
        tile = lambda x_T: np.concatenate([x_T[:1] - more[w] for w in range(width)])
        return tuple(Rung(tile(rung.index), tile(rung.cells)) for rung in self.layout.memory)

    def of_frames(self, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Return where the stream tokens of `width` consecutive groups are, [width, S], and the group of each token [width * N]."""
        first = np.arange(width)
        return first[:, None] * self.size + self.streams, np.repeat(first, self.size)

    @cached_property
    def streams(self) -> np.ndarray:
        """Offsets of the tokens of streams inside a group, int32 [S]."""
        return np.flatnonzero(self.layout.tokens.kind[self.starts[0] : self.starts[1]] == STREAM).astype(np.int32)

    def stream_ids(self, ids_BL: jax.Array) -> jax.Array:
        """Return the ids of the streams of each group of assembled sequences, [B, G, S]."""
        return ids_BL[:, self.starts[:-1, None] + self.streams]

    @property
    def is_uniform(self) -> bool:
        """Whether all groups have the same number of tokens."""
        return len(set(np.diff(self.starts))) == 1

    @cached_property
    def per_frame(self) -> int:
        """Groups in each latent frame; 0 where groups and frames do not follow one another in time."""
        t, group = self.layout.tokens.t, self.layout.tokens.group
        num_frames = self.layout.grid[0]
        frame_of = [set(t[group == g]) for g in range(self.num)]
        per_frame = self.num // num_frames
        in_order = all(frame_of[g] == {g // per_frame} for g in range(self.num)) if per_frame else False
        return per_frame if in_order and self.num == per_frame * num_frames and self.is_uniform else 0

    def before_frame(self, frame: int) -> int | None:
        """Return how many groups come before a latent frame; None where groups do not follow the frames in time."""
        t = [self.layout.tokens.t[group] for group in self.layout.groups]
        if any(a.max() > b.min() for a, b in zip(t, t[1:])):
            return None
        inside = [bool(own.min() < frame <= own.max()) for own in t]
        return None if any(inside) else sum(1 for own in t if own.max() < frame)

    @cached_property
    def _index(self) -> np.ndarray:
        """Sequence index of the tokens of each group, int32 [G, N]; padding repeats the last one."""
        offset = np.arange(self.size)[None]
        return np.minimum(self.starts[:-1, None] + offset, self.starts[1:, None] - 1).astype(np.int32)

    @cached_property
    def cell_index(self) -> np.ndarray:
        """Sequence index of the codes of each group, int32 [G, C]; padding has the length of the sequence."""
        index = self._index[:, self.cells]
        is_padding = np.arange(len(self.cells)) >= self.num_codes[:, None]
        return np.where(is_padding, self.layout.length, index).astype(np.int32)

    @cached_property
    def raster_index(self) -> np.ndarray:
        """Place in raster order of each code of a group, int32 [G, C]; padding has the number of codes."""
        num = len(self.layout.visual_index)
        place = np.full(self.layout.length + 1, num, np.int32)
        place[self.layout.visual_index] = np.arange(num)
        return place[self.cell_index]

    @property
    def num_places(self) -> int:
        """Places of cells in a frame, H * W."""
        return self.layout.grid[1] * self.layout.grid[2]

    @cached_property
    def places(self) -> np.ndarray:
        """Place in its frame of each code of a group, int32 [G, C]; `num_places` at padding, and where a later frame of the
        group has a code in the same place."""
        table = np.full_like(self.cell_index, self.num_places)
        for row, index in zip(table, self.cell_index):
            tokens = self.layout.tokens.at(index[index < self.layout.length])
            last = {
                (y, x): i
                for i, y, x in sorted(zip(range(len(index)), tokens.y, tokens.x), key=lambda c: tokens.t[c[0]])
            }
            for (y, x), i in last.items():
                row[i] = y * self.layout.grid[2] + x
        return table

    @cached_property
    def parents(self) -> np.ndarray:
        """Place of the parent of each code of a group (`Arrangement.parents`), int32 [G, C]; `num_places` at padding."""
        parents = self.layout.parents if self.layout.parents is not None else np.arange(self.num_places)
        return np.append(parents, self.num_places)[self.places].astype(np.int32)

    def last_in_place(self, num_groups: int) -> np.ndarray:
        """Return the index of the last code in each place of a frame among the first groups, -1 if there is none, [H * W]."""
        last_P = np.full(self.num_places + 1, -1)
        for places_C, index_C in zip(self.places[:num_groups], self.cell_index):
            last_P[places_C] = index_C
        return last_P[:-1]

    def frame_codes(self, codes_BJ: jax.Array) -> jax.Array:
        """Return the codes of a frame in raster order from those of its groups, [B, H * W] each."""
        stored = self.cell_index[: self.per_frame].reshape(-1)
        place_of = {index: i for i, index in enumerate(stored.tolist())}
        return codes_BJ[:, np.array([place_of[i] for i in self.layout.visual_index[: len(stored)].tolist()])]

    def clip(self, text_BP, given_BTHW, codes_BGC: jax.Array) -> jax.Array:
        """Return the codes of a clip [B, T, H, W] from those of its last G groups; those before are given."""
        ids_BL = jnp.pad(
            self.layout.assemble(text_BP, given_BTHW, None), ((0, 0), (0, 1))
        )  # one more, where padding goes
        index = self.cell_index[self.num - codes_BGC.shape[1] :]
        return self.layout.codes(ids_BL.at[:, index].set(codes_BGC + self.layout.vocabulary.visual_start))

    def consecutive(self, first: int, num: int) -> Tokens:
        """Return the tokens of some consecutive groups of the layout, NumPy [num * N] each; `valid` is 0 at padding."""
        groups = first + np.arange(num)
        index = self._index[np.minimum(groups, self.num - 1)]
        tokens = self.layout.tokens.at(index.reshape(-1))
        size_W = np.where(groups < self.num, np.diff(self.starts)[np.minimum(groups, self.num - 1)], 0)
        return tokens._replace(valid=(np.arange(self.size) < size_W[:, None]).reshape(-1).astype(np.int32))

    def num_tokens(self, g: jax.Array) -> jax.Array | int:
        """Return how many tokens a group has."""
        return self.size if self.is_uniform else jnp.asarray(np.diff(self.starts))[self.row(g)]

    @cached_property
    def num_codes(self) -> np.ndarray:
        """Codes of each group, int32 [G]: its first tokens, but for markers."""
        return np.array([len(group) for group in self._codes], np.int32)

    @cached_property
    def _codes(self) -> tuple[np.ndarray, ...]:
        """Offsets of the codes inside each group."""
        kinds = self.layout.tokens.kind
        return tuple(np.flatnonzero(kinds[start:end] == CODE) for start, end in zip(self.starts[:-1], self.starts[1:]))

    def is_code(self, groups_W: jax.Array) -> jax.Array:
        """Return which of the C codes each group has, bool [W, C]; the others are padding."""
        num_W = jnp.asarray(self.num_codes)[self.row(groups_W)]
        return jnp.arange(len(self.cells)) < num_W[:, None]

    def num_begun(self, pass_W: jax.Array, first: jax.Array, endless: bool) -> jax.Array:
        """Return how many groups from `first` on have begun in a pass, of those that there are."""
        num = (pass_W >= 0).sum()
        return num if endless else jnp.minimum(num, self.num - first)

    def row(self, g):
        """Return the group of the layout that a group is like."""
        if not self.per_frame:
            return jnp.minimum(g, self.num - 1)
        return jnp.minimum(g, self.num - self.per_frame + g % self.per_frame)

    def tokens(self, g: jax.Array) -> Tokens:
        """Return the tokens of a group, [N] each; `valid` is 0 behind its end."""
        row = self.row(g)
        index_N = jnp.asarray(self._index)[row]
        tokens = Tokens(*(jnp.asarray(field)[index_N] for field in self.layout.tokens))
        tokens = tokens._replace(valid=(jnp.arange(self.size) < self.num_tokens(g)).astype(jnp.int32))
        # Beyond the layout's last frame.
        return self.later(tokens, (g - row) // self.per_frame) if self.per_frame else tokens

    def later(self, tokens: Tokens, frames: jax.Array) -> Tokens:
        """Return the tokens of groups so many frames later."""
        moved = self.moved(tokens, frames)
        return moved._replace(
            stage=tokens.stage + frames * self._steps[1], group=tokens.group + frames * self.per_frame
        )

    def moved(self, tokens: Tokens, frames: jax.Array) -> Tokens:
        """Return the same tokens at another time: what rotary positions go by."""
        return tokens._replace(t=tokens.t + frames, index=tokens.index + frames * self._steps[0])

    @cached_property
    def _steps(self) -> tuple[int, int]:
        """What a frame adds to the index and the stage of its tokens."""
        if self.layout.grid[0] == 1:
            tokens = self.layout.tokens.at(self._index[: self.per_frame].reshape(-1))
            return len(tokens.index), int(np.ptp(tokens.stage)) + 2
        first, second = self._index[0, 0], self._index[self.per_frame, 0]
        tokens = self.layout.tokens
        return int(tokens.index[second] - tokens.index[first]), int(tokens.stage[second] - tokens.stage[first])

    def template(self, g: jax.Array) -> jax.Array:
        """Return the ids of a group's markers, int32 [N]; 0 at codes."""
        return jnp.asarray(self.layout.template)[jnp.asarray(self._index)[self.row(g)]]
