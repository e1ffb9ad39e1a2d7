"""Slot 1, the layout: prompt + video grid (+ streams) -> one flat sequence, and back.

A layout is static: NumPy int arrays built once. Text is right-aligned against the video (padding on the left), so the
video starts at the same index in every row whatever the caption's length; rotary attention sees only position
differences, so shifting a whole row by its padding changes nothing. Dropping the text of a row (classifier-free guidance)
is then the choice of a later first visible key, not another sequence.

The cells of the video are stored in the order in which they are generated (`Arrangement`): whoever is generated together
lies together, and the keys that a token sees are a few ranges. Where a cell stands in the video says its entry in the
table of tokens alone.

    compact     [text x P] [start] [cells, sorted by stage]         two copies: [text x P] [clean cells] [noisy cells]
                blocks after single cells: [text x P] [start] [cell x k] [start x (k-1)] [block of k] [block of k] ...
    lumos1      [text x P] sep video_start duration fps {image_start h w (W codes, new_line) x H image_end} x T video_end sep
"""

from __future__ import annotations

import dataclasses
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from lumos.sequence import memory as memory_tokens
from lumos.sequence.tokens import CODE, MARKER, MEMORY, START, STREAM, TEXT, Positions, Tokens, coordinates, make_tokens
from lumos.sequence.vocabulary import Vocabulary

Grid = tuple[int, int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """One static sequence shape. Arrays are int32."""

    vocabulary: Vocabulary
    grid: Grid
    num_text: int  # text slots, at the start
    drop_to: int  # first index that stays visible when the text is dropped
    template: np.ndarray  # [L] ids of markers, 0 at text and codes
    tokens: Tokens  # [L] each
    visual_index: np.ndarray  # [T*H*W] sequence index of each cell in raster order: of the noisy one, with two copies
    content_index: np.ndarray  # [T, cells] what corruption may mask in a frame (codes, and new_lines in lumos1)
    clean_index: np.ndarray | None = None  # [T*H*W] the clean cells, with two copies
    stream_index: tuple[np.ndarray, ...] = ()  # [T, tokens] of each stream
    memory: tuple[memory_tokens.Rung, ...] = ()  # where the tokens of each rung are
    parents: np.ndarray | None = None  # [H*W] see `Arrangement.parents`
    num_unread: int = 0  # tokens at the end that no prediction depends on: the last stage of the clean copy

    @property
    def length(self) -> int:
        return len(self.template)

    @property
    def num_read(self) -> int:
        """Number of tokens that a model has to run."""
        return self.length - self.num_unread

    @cached_property
    def offset(self) -> int:
        """Index of the first cell, where the axes of the video begin."""
        return int(self.tokens.index[self.tokens.kind == CODE].min())

    @cached_property
    def positions(self) -> Positions:
        """Rotary coordinates, [L] each."""
        return Positions(*(np.asarray(a, np.int32) for a in coordinates(self.tokens, self.offset)))

    @cached_property
    def of_frames(self) -> tuple[np.ndarray, np.ndarray]:
        """Sequence indices of the stream tokens of each frame, [T, tokens], and the frame of each token [L], -1 = none."""
        return np.concatenate([np.zeros((self.grid[0], 0), np.int32), *self.stream_index], axis=1), self.tokens.t

    @cached_property
    def groups(self) -> tuple[np.ndarray, ...]:
        """Sequence indices of each group of tokens that are generated together, in order."""
        group = self.tokens.group
        return tuple(np.flatnonzero(group == g).astype(np.int32) for g in range(group.max() + 1))

    @property
    def prefix_length(self) -> int:
        """Number of tokens before the first group."""
        return int(self.groups[0][0])

    def assemble(
        self, text_BP: jax.Array, tokens_BTHW: jax.Array, streams: tuple[jax.Array, ...] | None = ()
    ) -> jax.Array:
        """Return token ids [B, L] from text ids (right-aligned), codes in [0, codebook), and codes [B, T, tokens] of streams.

        Without streams (None) their tokens are 0.
        """
        batch = tokens_BTHW.shape[0]
        ids_BL = jnp.broadcast_to(jnp.asarray(self.template), (batch, self.length))
        ids_BL = ids_BL.at[:, : self.num_text].set(text_BP)
        starts = self.vocabulary.stream_starts
        for index, first, stream in zip(self.stream_index, starts, streams, strict=True) if streams is not None else ():
            ids_BL = ids_BL.at[:, index.reshape(-1)].set(stream.reshape(batch, -1) + first)
        return self.with_codes(ids_BL, tokens_BTHW.reshape(batch, -1))

    def with_codes(self, ids_BL: jax.Array, codes_BJ: jax.Array) -> jax.Array:
        """Return token ids with other codes in all cells (in raster order), of both copies if there are two."""
        ids_BJ = codes_BJ + self.vocabulary.visual_start
        if self.clean_index is not None:
            ids_BL = ids_BL.at[:, self.clean_index].set(ids_BJ)
        return ids_BL.at[:, self.visual_index].set(ids_BJ)

    def codes(self, ids_BL: jax.Array) -> jax.Array:
        """Return visual codes [B, T, H, W] of assembled sequences: the inverse of `assemble`."""
        codes = ids_BL[:, self.visual_index] - self.vocabulary.visual_start
        return codes.reshape(-1, *self.grid)

    def stream_codes(self, ids_BL: jax.Array) -> tuple[jax.Array, ...]:
        """Return the codes [B, T, tokens] of each stream of assembled sequences."""
        return tuple(ids_BL[:, i] - first for i, first in zip(self.stream_index, self.vocabulary.stream_starts))

    def first_key(self, text_length_B: jax.Array, dropped_B: jax.Array | None = None) -> jax.Array:
        """Return the index of the first visible key per row, int32 [B]: after the padding, or after a dropped text."""
        first = self.num_text - text_length_B
        return first if dropped_B is None else jnp.where(dropped_B, self.drop_to, first)


def build(
    ids: Vocabulary,
    num_text: int,
    stage_THW: np.ndarray,
    *,
    copies: int = 1,
    start: str = "none",
    streams: tuple[int, ...] = (),
    memory: tuple[int, ...] = (),
) -> Layout:
    """Build a layout of cells in the order of their stages.

    Args:
      stage_THW: any increasing integers; cells of one stage are generated together and see each other.
      copies: 2 = a clean copy, then a noisy one that sees the clean cells of earlier stages and its own stage.
      start: "none"; "one": one start token; "token": one, and the cells of the first stage follow one by one; "block": one
        for each cell of the first stage. With the last two, single cells before the first stage of k cells end with k - 1
        start tokens: each cell of that stage is predicted from a token of its own (PAR, arXiv 2412.15119 section 3.2).
      streams: tokens in each frame of the streams beside the video; they come before the first stage of their frame. As many as a frame
        has cells (a map of depths, say) stand where the cells do.
      memory: sizes k of the rungs of memory tokens, behind the cells of each frame (`sequence.memory`).
    """
    grid = stage_THW.shape
    num_cells, cells_per_frame = stage_THW.size, grid[1] * grid[2]
    t, y, x = np.indices(grid).reshape(3, -1)
    raster = np.arange(num_cells)
    stage = 2 * np.unique(stage_THW.reshape(-1), return_inverse=True)[1].reshape(-1)  # room for streams in between
    order = np.lexsort((raster, stage))
    first = order[: np.sum(stage == 0)]
    if start == "token":
        stage = stage + 2 * (len(first) - 1)
        stage[first] = 2 * np.arange(len(first))
    num_start = {"none": 0, "one": 1, "token": 1, "block": len(first)}[start]
    num_memory = sum(cells_per_frame // k**2 for k in memory)
    base, per_frame = num_text + num_start, sum(streams) + cells_per_frame + num_memory

    parts = [dict(kind=np.full(num_text, TEXT), index=np.arange(num_text), stage=np.arange(num_text) - num_text - 2)]
    if start in ("one", "token"):
        parts.append(dict(kind=np.array([MARKER]), index=np.array([num_text]), stage=np.array([-2])))
    elif start == "block":
        parts.append(_starts(num_text, -2, y[first], x[first]))
    in_frame = raster - t * cells_per_frame
    cells = dict(kind=np.full(num_cells, CODE), stage=stage, t=t, y=y, x=x)
    cells["index"] = base + t * per_frame + sum(streams) + in_frame
    rows = [cells]
    for stream, num in enumerate(streams):
        frame, place = np.indices((grid[0], num)).reshape(2, -1)
        start_of_frame = stage.reshape(grid[0], -1).min(axis=1)
        is_dense = num == cells_per_frame  # a token for each cell, and where it is
        row, column = np.divmod(place, grid[2]) if is_dense else (np.full(len(frame), -1 - stream), place)
        rows.append(
            dict(
                kind=np.full(len(frame), STREAM), stage=start_of_frame[frame] - 1, t=frame, y=row, x=column,
                index=base + frame * per_frame + sum(streams[:stream]) + place, stream=np.full(len(frame), 1 + stream),
            )
        )  # fmt: skip
    of_memory = memory_tokens.table(memory, stage.reshape(grid))
    for rung in of_memory:
        rows.append(rung | {"index": base + rung["t"] * per_frame + sum(streams) + rung["index"]})
    stages, sizes = np.unique(stage, return_counts=True)
    if start in ("token", "block") and sizes[0] == 1 < sizes.max():
        block = stages[np.argmax(sizes > 1)]
        slots = np.flatnonzero(stage == block)[1:]
        rows.append(_starts(base + grid[0] * per_frame, block - 1, y[slots], x[slots]))
    video = _join(rows)
    stored = np.lexsort((video["index"], video["stage"]))
    num_unread = int(np.sum(video["stage"] == stage.max())) if copies == 2 else 0
    read, unread = np.split(stored, [len(stored) - num_unread])
    parts.append({name: values[read] for name, values in video.items()})
    if copies == 2:  # of the cells alone; nothing sees the last clean ones, which stand behind them
        parts.append({name: values[order] for name, values in cells.items()} | {"copy": np.ones(num_cells, int)})
        parts.append({name: values[unread] for name, values in video.items()})
    table = _join(parts)
    length = len(table["kind"])
    is_cell = table["kind"] == CODE
    is_copy = table.get("copy", np.zeros(length, int)) == 1
    group = np.full(length, -1)
    group[is_cell] = np.unique(table["stage"][is_cell], return_inverse=True)[1]
    if (
        stage.reshape(grid[0], -1) == stage.reshape(grid[0], -1)[:, :1]
    ).all():  # what comes with a frame is of its group
        of_frame = np.zeros(grid[0], int)
        of_frame[table["t"][is_cell]] = group[is_cell]
        comes_along = np.isin(table["kind"], (MEMORY, STREAM))
        group[comes_along] = of_frame[table["t"][comes_along]]
    # Copies are known by their copy number: groups are those of what is generated.
    group[is_cell & is_copy] = -1
    tokens = make_tokens(**table, group=group)
    template = np.zeros(length, np.int32)
    template[np.isin(tokens.kind, (MARKER, START))] = ids.start
    template[tokens.kind == MEMORY] = ids.memory

    def where(mask):  # sequence index of each token of the mask, in natural order
        index = np.flatnonzero(mask)
        return index[np.argsort(tokens.index[index], kind="stable")].astype(np.int32)

    predicted = where(is_cell & (is_copy if copies == 2 else ~is_copy))
    return Layout(
        vocabulary=ids,
        grid=grid,
        num_text=num_text,
        drop_to=num_text,
        template=template,
        tokens=tokens,
        visual_index=predicted,
        content_index=predicted.reshape(grid[0], -1),
        clean_index=where(is_cell & ~is_copy) if copies == 2 else None,
        memory=memory_tokens.rungs(
            memory, [where(tokens.stream == -1 - i) for i in range(len(memory))], predicted.reshape(grid)
        ),
        stream_index=tuple(
            where((tokens.stream == 1 + i) & ~is_copy).reshape(grid[0], -1) for i in range(len(streams))
        ),
        num_unread=num_unread,
    )


def _starts(index: int, stage: int, y: np.ndarray, x: np.ndarray) -> dict[str, np.ndarray]:
    """Return the start tokens of cells, at their rows and columns."""
    num = len(y)
    index = index + np.arange(num)
    return dict(kind=np.full(num, START), index=index, stage=np.full(num, stage), t=np.full(num, -1), y=y, x=x)


def _join(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Concatenate tables; what a part does not have is 0, and -1 for the frame."""
    names = dict.fromkeys(name for part in parts for name in part)
    fill = {"t": -1}
    return {
        name: np.concatenate([part.get(name, np.full(len(part["kind"]), fill.get(name, 0))) for part in parts])
        for name in names
    }
