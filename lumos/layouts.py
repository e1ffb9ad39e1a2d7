"""From a config to the layout of a grid."""

from __future__ import annotations

import dataclasses

import numpy as np

from lumos import geometry
from lumos.config import Config
from lumos.errors import UserError
from lumos.sequence import targets
from lumos.sequence.layout import Layout
from lumos.sequence.targets import Targets


def make_layout(config: Config, grid: tuple[int, int, int] | None = None, *, copies: int = 0) -> Layout:
    """Build the layout of a run (of another grid, if given). `model.text_vocab` and `visual_vocab` must be resolved.

    `copies` = 1 is the layout of generation, where no noisy copy stands beside the clean tokens. Raises UserError.
    """
    c, grid = config.sequence, tuple(grid or config.sequence.grid)
    if not any(grid):
        raise UserError(
            f"config.sequence.grid={grid} is the grid of the tokens, which only lumos train reads from config.data.path; give it: "
            "latent frames, rows, columns"
        )
    if not config.model.visual_vocab or not (config.model.text_vocab or c.layout.name == "lumos1"):
        raise ValueError("model.text_vocab and model.visual_vocab must be resolved before a layout is built")
    start = c.targets.start
    sizes, counts = zip(*c.streams) if c.streams else ((), ())
    memory = config.model.memory
    try:
        ids = c.layout.vocabulary(
            config.model.text_vocab,
            config.model.visual_vocab,
            start=start != "none",
            streams=sizes,
            memory=bool(memory),
        )
        ids = dataclasses.replace(ids, stream_tokens=tuple(counts))
        layout = c.layout.layout(
            ids, c.text_length, grid, timing=timing(config, grid[0]), copies=copies or c.copies, start=start, streams=counts, memory=memory
        )  # fmt: skip
        where = c.targets(layout)
    except ValueError as error:
        raise UserError(f"config.sequence.layout={c.layout.name!r}: {error}") from error
    _check_hidden(config, layout, where)
    return layout


def _check_hidden(config: Config, layout: Layout, where: Targets) -> None:
    """Raise UserError if a token sees the code (or the text) that it predicts."""
    tokens, c = layout.tokens, config.sequence
    pairs = {"config.sequence": [(source, where.target) for source in where.source.T if c.targets.name != "in_place"]}
    if layout.clean_index is not None:
        pairs["config.sequence.copies=2"] = [(layout.visual_index, layout.clean_index)]
    if config.loss.text_weight:
        text = targets.text(layout)
        pairs["config.loss.text_weight"] = [(text.source[:, 0], text.target)]
    for name, sides in pairs.items():
        for source, target in sides:
            used = source >= 0
            for rule in c.attention.layers():
                if np.any(rule(tokens.at(source[used]), tokens.at(target[used]))):
                    raise UserError(
                        f"{name}: with attention={c.attention.name!r} tokens see what they predict; use attention='causal'"
                    )


def timing(config: Config, num_frames: int) -> tuple[int, int]:
    """Return the frames per second and the seconds that are written into a sequence for a clip of so many latent frames.

    A clip of a single frame is an image: both are 1, as in the released data. `sequence.duration` is that of `sequence.grid`;
    other lengths last as long as their frames, in whole seconds.
    """
    c, frames = config.sequence, geometry.num_frames(config.tokenizer, num_frames)
    if frames == 1:
        return 1, 1
    if num_frames == c.grid[0] and c.duration:
        return c.fps, c.duration
    return c.fps, max(1, round(frames / c.fps))
