"""Slot 6, a sampler for tokens that predict the next ones: several groups are solved together, by iteration to a fixed point.

With frozen noise the next code is a function of the codes before it, so a sequence is the solution of x = f(x), where f does all
positions in one pass of the model. After n passes the first n + 1 codes are those of generation one by one: a chunk takes no
more passes than it has groups, and fewer where its codes are guessed well.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from lumos.generation import keeping
from lumos.generation.passes import Cells
from lumos.generation.sampler import Sampler

if TYPE_CHECKING:
    from lumos.generation.engine import Engine, State


@dataclasses.dataclass(frozen=True, kw_only=True)
class Jacobi(Sampler, name="jacobi"):
    """Jacobi iteration of next-token models (STARFlow-V, arXiv 2511.20462; Speculative Jacobi Decoding, arXiv 2410.01699)."""

    chunk: int = 32  # groups that are solved together; they must divide a frame
    from_previous: bool = True  # whether the iteration starts from the codes of the previous frame

    def __post_init__(self):
        super().__post_init__()
        if self.chunk < 1:
            raise ValueError(f"chunk={self.chunk} must be at least 1")
        if self.eta:
            raise ValueError("eta must be 0: what is solved is not revised")

    def at_once(self, view, in_place):
        period = view.groups.per_frame or view.groups.num
        if in_place:
            raise ValueError(
                "sampler 'jacobi' solves tokens that predict the next ones: use sequence.targets 'next', or another sampler"
            )
        if view.bounded:
            raise ValueError(f"sampler 'jacobi' needs the cache 'full', not {view.settings.cache.name!r}")
        if not view.groups.is_uniform or period % self.chunk:
            raise ValueError(f"sampler 'jacobi' has chunk={self.chunk}, which must divide {period} groups of one size")
        return self.chunk


def guess(engine: Engine, ids_BL: jax.Array, keys_B: jax.Array, first: int) -> Cells:
    """Return what the iteration starts from: the codes of the last frame before group `first`, 0 where there is none."""
    groups, from_previous = engine.groups, engine.settings.sampler.from_previous
    num = groups.per_frame if from_previous and groups.per_frame else engine.at_once
    nothing = jnp.full((len(keys_B), engine.groups.num_places), -1)
    cells = engine.passes.begin(keys_B, first + jnp.arange(num), nothing)
    if not (from_previous and groups.per_frame and first >= num):
        return cells
    codes = ids_BL[:, groups.cell_index[first - num : first]] - engine.layout.vocabulary.visual_start
    return cells._replace(codes=codes)


def solve(engine: Engine, params, state: State) -> tuple[State, jax.Array]:
    """Draw the next groups together and feed them; return their codes, [B, chunk * C]."""
    model, num, size = engine.bind(params), engine.at_once, engine.groups.size
    groups_W = state.group + jnp.arange(num)
    tokens, template, run = engine._open(model, state, groups_W)
    level_BQ = jnp.zeros((1, num * size))
    begins = jnp.repeat(jnp.arange(num) * size, len(engine.groups.cells))

    def step(carry):
        codes_BWC, forwards = carry[0], carry[-1]
        hidden_RQD, own = run(engine._with_codes(template, groups_W, codes_BWC), level_BQ)
        before_RQD = jnp.concatenate([state.features_RND, hidden_RQD], axis=1)
        new, after = engine.draw_from(model, before_RQD, state, groups_W, begins)
        new = new.reshape(codes_BWC.shape)
        return new, (new != codes_BWC).any(), hidden_RQD, own, after.log_p, forwards + 1

    codes_BWC = state.cells.codes[:, :num].at[:, 0].set(engine.draw_next(params, state)[0])
    shapes = jax.eval_shape(step, (codes_BWC, state.forwards))
    empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes[2:-1])
    carry = codes_BWC, jnp.bool_(True), *empty, state.forwards
    codes_BWC, _, hidden_RQD, own, log_p, forwards = jax.lax.while_loop(lambda carry: carry[1], step, carry)
    guesses = state.cells.codes
    if engine.settings.sampler.from_previous:
        guesses = jnp.concatenate([guesses[:, num:], codes_BWC], axis=1)
    return state._replace(
        cache=keeping.write(engine.view, state.cache, own, tokens, state.group, model.config),
        group=state.group + num,
        cells=state.cells._replace(codes=guesses),
        newest_BP=engine.passes.remember(state.newest_BP, groups_W, codes_BWC),
        features_RND=hidden_RQD[:, -size:],
        forwards=forwards,
        log_p=log_p,
    ), codes_BWC.reshape(len(codes_BWC), -1)
