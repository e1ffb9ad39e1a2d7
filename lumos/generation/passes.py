"""A pass over the groups in flight: what is drawn for their cells, and what is kept of it.

`View` says what the model is given, `Passes` what is made of its answer. Noise is folded from the row's key, the group and
the pass, so a finished group depends on its seed, its number and what it sees.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lumos.errors import UserError
from lumos.generation import guidance, released, sampler
from lumos.generation.plan import history_mask
from lumos.generation.sampler import Noise
from lumos.generation.view import View
from lumos.model import heads, transformer

if TYPE_CHECKING:
    from lumos.config import GenerateConfig


class Cells(NamedTuple):
    """The cells of W groups in flight, [B, W, C] each: their codes, which of these are kept, which were never to be drawn (given
    codes, padding), what the sampler ranks them by, and with a search their log-probabilities in each branch of guidance: all as
    they were when they were drawn."""

    codes: jax.Array
    known: jax.Array
    fixed: jax.Array
    log_p: jax.Array
    of_branches: tuple[jax.Array, ...] = ()

    def shift(self, new: Cells) -> Cells:
        """Return the cells when the first group leaves and a new one joins."""
        return jax.tree.map(lambda x, last: jnp.concatenate([x[:, 1:], last], axis=1), self, new)

    def where(self, mask, other: Cells) -> Cells:
        """Return these cells where a mask [B or 1, W, C or 1] is true, others elsewhere."""
        return jax.tree.map(lambda x, y: jnp.where(mask, x, y), self, other)


class Kept(NamedTuple):
    """Codes that are kept as they are given, in any place of a clip: codes int32 and which of them are kept, bool."""

    codes_BGC: jax.Array
    kept_BGC: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Passes:
    """Static choices; see `Engine`."""

    view: View
    settings: GenerateConfig
    in_place: bool  # whether hidden tokens predict themselves
    chunk: int
    num_codes: int
    uniform: Callable[[int, int], tuple[np.ndarray, np.ndarray]] | None

    def __post_init__(self):
        self.settings.noise.check(self.view.groups.per_frame)
        if not self.settings.sampler.masks and self.settings.history_ratio:
            raise ValueError(
                f"sampler {self.settings.sampler.name!r} knows no [MASK], which history_ratio={self.settings.history_ratio} puts into "
                "finished frames: set history_ratio to 0"
            )

    @cached_property
    def _counts(self) -> np.ndarray:
        """How many cells stay hidden after each pass, int32 [groups, steps]."""
        groups = self.view.groups
        count = lambda num: self.settings.sampler.counts(int(num), self.settings.steps)
        if groups.is_uniform:
            return np.broadcast_to(count(len(groups.cells)), (groups.num, self.settings.steps))
        of_size = {size: count(size) for size in set(groups.num_codes.tolist())}
        return np.stack([of_size[size] for size in groups.num_codes.tolist()])

    @cached_property
    def _order_GC(self) -> np.ndarray | None:
        """The place of each cell in the order of the sampler, int32 [groups, C], if it has one; padding comes last."""
        groups, tokens = self.view.groups, self.view.layout.tokens
        cells_G = [index[:num] for index, num in zip(groups.cell_index, groups.num_codes)]
        of_group = lambda cells: self.settings.sampler.order(tokens.t[cells], tokens.y[cells], tokens.x[cells])
        if of_group(cells_G[0]) is None:
            return None
        padded = lambda order: np.concatenate([order, np.arange(len(order), len(groups.cells))])
        return np.stack([padded(of_group(cells)) for cells in cells_G])

    @cached_property
    def history_N(self) -> np.ndarray:
        """Which tokens of a finished group are hidden before it is written, bool [N]."""
        hidden, content = np.zeros(self.view.groups.size, bool), self.view.groups.content
        always = self.settings.sampler.always_masks
        hidden[content] = history_mask(len(content), self.settings.history_ratio, always=always)
        return hidden

    def kept(self, given_BTHW, num_given: int, kept_BTHW) -> Kept | None:
        """Return the codes that are given inside of groups that are generated, if there are any."""
        if kept_BTHW is None:
            if not num_given or self.view.groups.before_frame(num_given) is not None:
                return None
            kept_BTHW = np.broadcast_to(
                np.arange(self.view.layout.grid[0])[:, None, None] < num_given, given_BTHW.shape
            )
        if not self.in_place:
            raise UserError("codes that predict the next ones cannot be given in any place; give the first frames")
        cells_GC = self.view.groups.raster_index
        at = lambda x_BTHW, fill: (
            jnp.asarray(x_BTHW).reshape(len(x_BTHW), -1).at[:, cells_GC].get(mode="fill", fill_value=fill)
        )
        return Kept(at(given_BTHW, 0).astype(jnp.int32), at(kept_BTHW, False))

    def prefix_ids(self, ids_BL, num_groups: int) -> jax.Array:
        """Return the ids of the text and the first groups, as the history mask leaves them."""
        hidden_Q = np.zeros(int(self.view.groups.starts[num_groups]), bool)
        if num_groups and self.in_place and self.view.groups.is_uniform and self.settings.sampler.masks_given:
            hidden_Q[self.view.layout.prefix_length :] = np.tile(self.history_N, num_groups)
        return jnp.where(jnp.asarray(hidden_Q), self.view.layout.vocabulary.mask, ids_BL[:, : len(hidden_Q)])

    def newest(self, ids_BQ, num_groups: int) -> jax.Array:
        """Return the last code in each place of a frame among the first groups, -1 where there is none, [B, H * W]."""
        last_P, ids = self.view.groups.last_in_place(num_groups), self.view.layout.vocabulary
        ids_BP = jnp.where(last_P >= 0, ids_BQ[:, last_P], -1)
        return jnp.where((ids_BP >= ids.visual_start) & (ids_BP < ids.visual_end), ids_BP - ids.visual_start, -1)

    def remember(self, newest_BP, groups_W: jax.Array, codes_BWC) -> jax.Array:
        """Return the newest codes behind finished groups of a frame, as the history mask leaves them, [B, H * W]."""
        places_WC = jnp.asarray(self.view.groups.places)[self.view.groups.row(groups_W)]
        seen_BWC = jnp.where(self.history_N[self.view.groups.cells], -1, codes_BWC) if self.in_place else codes_BWC
        return newest_BP.at[:, places_WC].set(seen_BWC, mode="drop")

    def begin(self, keys_B: jax.Array, groups_W: jax.Array, newest_BP: jax.Array, given: Kept | None = None) -> Cells:
        """Return the cells of groups that begin: hidden, but for padding and given codes."""
        groups = self.view.groups
        places_WC = jnp.asarray(groups.parents)[groups.row(groups_W)]
        coarse_BWC = newest_BP.at[:, places_WC].get(mode="fill", fill_value=-1)
        # Of a pass that there is not.
        keys_BW = self._keys(keys_B, groups_W, jnp.full(len(groups_W), self.settings.steps))
        codes, shape = self.settings.sampler.begin(keys_BW, self._num_codes, coarse_BWC), coarse_BWC.shape
        zeros, fixed = jnp.zeros(shape, jnp.float32), self.padding(groups_W, shape)
        if given is not None:
            is_given = given.kept_BGC.at[:, groups_W].get(mode="fill", fill_value=False)
            codes = jnp.where(is_given, given.codes_BGC.at[:, groups_W].get(mode="fill", fill_value=0), codes)
            fixed |= is_given
        certain = jnp.where(fixed, jnp.inf, zeros)  # no sampler hides these
        return Cells(codes, fixed, fixed, certain, (zeros,) * self.num_noted)

    @property
    def num_noted(self) -> int:
        """Branches of guidance whose log-probabilities are noted: all, with a search."""
        return len(self.view.branches) if self.settings.search.is_on else 0

    def note(self, model: transformer.Transformer, features_RJF, codes_BJ, context) -> tuple[jax.Array, ...]:
        """Return the log-probabilities of drawn codes in each branch that is noted, [B, J] each."""
        if not self.num_noted:
            return ()
        codes_RJ = self.view.rows(codes_BJ)
        ones = jnp.ones(codes_RJ.shape, jnp.float32)
        if context is not None:
            context = heads.Context(self.view.rows(context.before_BTHW))
        losses = model.config.head.loss(model, features_RJF, codes_RJ, ones, context, chunk=self.chunk)
        return tuple(jnp.split(-losses.nll, self.num_noted))

    @property
    def _num_codes(self) -> int:
        return self.num_codes or self.view.layout.vocabulary.visual_size

    def padding(self, groups_W: jax.Array, shape) -> jax.Array:
        """Return which codes of groups are padding, which counts as known, [B, W, C]."""
        if self.view.groups.is_uniform:
            return jnp.zeros(shape, bool)
        return jnp.broadcast_to(~self.view.groups.is_code(groups_W), shape)

    def noise(self, keys_B: jax.Array, groups_W: jax.Array, pass_W: jax.Array, first: jax.Array) -> Noise:
        """Return the noise of groups in these passes; `first` is the first group that is generated."""
        num_cells = len(self.view.groups.cells)
        if self.uniform is not None:
            shape = (len(keys_B), num_cells, self._num_codes)
            return released.recorded(self.uniform, shape, groups_W[0] - first, pass_W[0])
        return sampler.seeded(self._keys(keys_B, groups_W, pass_W), num_cells)

    def _keys(self, keys_B: jax.Array, groups_W: jax.Array, pass_W: jax.Array) -> jax.Array:
        """Return the random key of each row for a pass over each group, [B, W]."""
        numbers_W = self.settings.noise(groups_W, self.view.groups.per_frame)
        fold_in = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
        return jax.vmap(jax.vmap(jax.random.fold_in), (0, None))(fold_in(keys_B, numbers_W), pass_W)

    def context(self, model: transformer.Transformer, newest_BP, cells: Cells | None = None) -> heads.Context | None:
        """Return what the head needs to draw the codes of the frames in flight: one, or those of `cells`."""
        if not model.config.head.reads_before:
            return None
        before_BWC = newest_BP[:, None]
        if cells is not None:
            earlier_BWC = jnp.where(cells.known, cells.codes, -1)[:, :-1]
            before_BWC = jnp.concatenate([before_BWC, earlier_BWC], axis=1)
        return heads.Context(before_BWC.reshape(*before_BWC.shape[:2], *self.view.layout.grid[1:]))

    def draw(self, model: transformer.Transformer, features_RJF, noise: Noise, context: heads.Context | None):
        """Return codes for cells and what the sampler ranks them by, [B, J] each."""
        c, branches = self.settings, self.view.branches
        combine = lambda logits_R: guidance.combine(logits_R, branches)
        choose = lambda logits, gumbel: c.sampler.choose(logits, gumbel, c.top_k, c.top_p)
        head = model.config.head
        return head.draw(model, features_RJF, noise.draw, combine, choose, self.chunk, self.num_codes, context)

    def at(self, keys_B, groups_W, step_W, first: jax.Array) -> Pass:
        """Return the pass over some groups that is their `step_W`-th; `first` is the first group that is generated."""
        temperatures_S = self.settings.sampler.temperatures(self.settings.steps, groups_W[0] == first)
        return Pass(self, groups_W, step_W, self.noise(keys_B, groups_W, step_W, first), temperatures_S[step_W])

    def num_hidden(self, groups_W, step_W) -> jax.Array:
        return jnp.asarray(self._counts)[self.view.groups.row(groups_W), step_W]

    def order(self, groups_W) -> jax.Array | None:
        return None if self._order_GC is None else jnp.asarray(self._order_GC)[self.view.groups.row(groups_W)]


class Pass(NamedTuple):
    """One pass over the groups in flight: where each of them stands, and its noise."""

    rules: Passes
    groups_W: jax.Array
    step_W: jax.Array
    noise: Noise
    temperature_W: jax.Array

    def level(self, cells: Cells) -> jax.Array:
        """Return the share of each group that is hidden before the pass, [B, W]."""
        return self.rules.settings.sampler.level(cells.known, self.step_W, self.rules.settings.steps)

    def draw(self, model, features_RJF, cells: Cells, newest_BP) -> Cells:
        """Return the cells behind the pass: codes are drawn from features, and some are kept."""
        context = self.rules.context(model, newest_BP, cells)
        codes_BJ, log_p_BJ = self.rules.draw(model, features_RJF, self.noise, context)
        notes = self.rules.note(model, features_RJF, codes_BJ, context)
        shaped = lambda x: x.reshape(cells.codes.shape)
        drawn = cells._replace(codes=shaped(codes_BJ), log_p=shaped(log_p_BJ), of_branches=tuple(map(shaped, notes)))
        gumbel = shaped(self.noise.keep())
        taken = self.rules.settings.sampler.taken(gumbel, cells.known, self.temperature_W[:, None])
        return self.keep(drawn.where(taken & ~cells.fixed, cells))

    def keep(self, cells: Cells) -> Cells:
        """Return the cells of which the sampler keeps as many as the pass says."""
        gumbel, rules = self.noise.keep().reshape(cells.codes.shape), self.rules
        of_group = lambda gumbel, *rest: rules.settings.sampler(Noise(None, lambda: gumbel), *rest)
        of_groups = jax.vmap(of_group, in_axes=(1, 1, 1, 0, 0, 0), out_axes=1)
        num_W, order_WC = rules.num_hidden(self.groups_W, self.step_W), rules.order(self.groups_W)
        known = of_groups(gumbel, cells.log_p, cells.known, num_W, self.temperature_W, order_WC)
        return cells._replace(known=known | cells.fixed)
