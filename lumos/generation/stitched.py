"""Slot 5, a plan of windows: parts of a clip see their neighbours' unfinished frames, and all of them are worked on at once."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from lumos.generation.plan import Plan
from lumos.generation.sampler import keys_of_rows

if TYPE_CHECKING:
    from lumos.generation.engine import Engine


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stitched(Plan, name="stitched"):
    """Windows [past | target | future] that cover a clip with their targets (Generative View Stitching, arXiv 2510.24718).

    In every pass all windows are run, as rows of a batch; frames of a window see each other both ways, and of what is drawn the
    target alone is kept. So a clip may be longer than what the model sees at a time, and each frame depends on the future too.
    """

    past: int = 2  # latent frames before the target that a window sees
    target: int = 4  # latent frames that a window makes
    future: int = 2  # latent frames behind the target that a window sees
    loop: bool = False  # whether the clip is a circle, whose ends see each other (loop closing)

    both_ways, is_whole = True, True

    def __post_init__(self):
        if min(self.past, self.future) < 0 or self.target < 1:
            raise ValueError(
                f"past={self.past} and future={self.future} must be at least 0, target={self.target} at least 1"
            )

    def lag(self, steps):
        return 0

    def check(self, groups, in_place):
        num_frames = groups.layout.grid[0]
        if groups.layout.stream_index:
            raise ValueError("plan 'stitched' does not go with streams beside the video; use another")
        if not in_place or groups.per_frame != 1:
            raise ValueError(
                "plan 'stitched' works on frames of hidden tokens: use sequence.targets 'in_place' and layout 'compact' with "
                "block=(1, 0, 0)"
            )
        if num_frames % self.target or self.past + self.target + self.future > num_frames:
            raise ValueError(
                f"plan 'stitched': windows of {self.past} + {self.target} + {self.future} frames must fit into a clip of {num_frames} latent "
                "frames, and their targets divide it"
            )

    def windows(self, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the frames of each window, int [windows, frames], and which of them exist, first and last + 1, int [windows, 2]."""
        begins, size = np.arange(0, num_frames, self.target) - self.past, self.past + self.target + self.future
        exist = np.stack([np.maximum(-begins, 0), np.minimum(num_frames - begins, size)], axis=1)
        exist = np.broadcast_to([0, size], exist.shape) if self.loop else exist
        return (begins[:, None] + np.arange(size)) % num_frames, exist


def clip(engine: Engine, params, text_BP, text_length_B, given_BTHW, keys_B, num_given, kept_BTHW):
    """Return the state behind a clip, and its codes [B, T, H, W]; see `Engine.decode`."""
    if num_given and kept_BTHW is None:
        kept_BTHW = jnp.broadcast_to(jnp.arange(given_BTHW.shape[1])[:, None, None] < num_given, given_BTHW.shape)
    given = None if kept_BTHW is None else engine.passes.kept(given_BTHW, 0, kept_BTHW)
    keys_B = keys_of_rows(keys_B, len(text_BP))
    plan, c, groups, batch = engine.settings.plan, engine.settings, engine.groups, len(text_BP)
    num_frames, num_branches = groups.num, len(engine.view.branches)
    frames_NW, exist_N2 = plan.windows(num_frames)
    num, size = frames_NW.shape
    # Every window is a row: a clip's windows lie behind each other.
    model, rows = engine.bind(params), lambda x_B: jnp.repeat(x_B, num, axis=0)
    nothing = jnp.zeros((batch * num, *engine.layout.grid), jnp.int32)
    state = engine.prefill(params, rows(text_BP), rows(text_length_B), nothing, rows(keys_B), 0)
    cache = state.cache.gather(jnp.arange(engine.layout.prefix_length))  # nothing is written behind the text
    tokens, template, run = engine._open(model, state._replace(cache=cache), jnp.arange(size))
    low_R1, high_R1 = (jnp.tile(jnp.asarray(x), batch * num_branches)[:, None] for x in exist_N2.T)
    in_windows = lambda x_BT: x_BT[:, frames_NW].reshape(batch * num, size, *x_BT.shape[2:])
    frames_T, nothing_BP = jnp.arange(num_frames), jnp.full((batch, groups.num_places), -1)

    def targets(hidden_RQD):
        """Of the tokens of all windows, those that are codes of targets."""
        own = hidden_RQD.reshape(num_branches, batch, num, size, groups.size, -1)
        own = own[:, :, :, plan.past : plan.past + plan.target][..., groups.cells, :]
        return own.reshape(num_branches * batch, -1, own.shape[-1])

    def step(cells, pass_T):
        now = engine.passes.at(keys_B, frames_T, jnp.minimum(pass_T, c.steps - 1), jnp.int32(0))
        known = in_windows(cells.known) if c.sampler.masks else None
        ids_BQ = engine._with_codes(template, jnp.arange(size), in_windows(cells.codes), known)
        level_BQ = jnp.repeat(in_windows(now.level(cells)), groups.size, axis=1)
        return now.draw(model, targets(run(ids_BQ, level_BQ, begun=(low_R1, high_R1))[0]), cells, nothing_BP), now

    def one(carry, p):
        cells, forwards = carry
        pass_T = jnp.full(num_frames, p)
        new, now = step(cells, pass_T)
        new, more = c.sampler.look_ahead(step, now, cells, new, pass_T, c.steps)
        return (new, forwards + 1 + more), None

    begin = engine.passes.begin(keys_B, frames_T, nothing_BP, given), jnp.int32(0)
    (cells, forwards), _ = jax.lax.scan(one, begin, jnp.arange(c.steps))
    return state._replace(forwards=forwards), groups.clip(text_BP, given_BTHW, cells.codes)
