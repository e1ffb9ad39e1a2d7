"""The compiled parts of generation: prefill, a round of passes over hidden groups, a step to the next group.

State in, state out: `decode` scans them over a whole clip in one program, a `Session` calls them frame by frame. A round
opens the cache once (rotated keys, what each query sees), works on the groups in flight, and writes the finished one with
its history mask applied: history must look as it did in training (Lumos-1 section 3.4). Noise is folded from the row's
key, the group and the pass, so a finished frame depends on its seed, its number and what it sees.
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
from lumos.generation.cache import Cache
from lumos.generation.groups import Groups
from lumos.generation.plan import history_mask
from lumos.generation.policy import keep_index
from lumos.generation.sampler import Noise
from lumos.generation.view import View
from lumos.model import transformer
from lumos.model.definition import Definition
from lumos.model.heads import gather_arms
from lumos.sequence.layout import Layout
from lumos.sequence.rule import Rule
from lumos.sequence.targets import InPlace, TargetRule
from lumos.sequence.tokens import Tokens

if TYPE_CHECKING:
    from lumos.config import GenerateConfig


class State(NamedTuple):
    """Everything that generation goes on with. Rows R are the branches of guidance, B clips each."""

    cache: Cache
    first_R: jax.Array  # first visible slot of the text
    keys_B: jax.Array  # random keys
    first: jax.Array  # the first group that is generated
    group: jax.Array  # the first group in flight
    cut: jax.Array  # latent frames that what comes stands later
    codes_BWC: jax.Array  # of the W groups in flight
    known_BWC: jax.Array  # which of these codes are kept
    log_p_BWC: jax.Array  # their log-probabilities when they were drawn
    # Hidden states of the last tokens, which predict the next group; none where hidden tokens predict themselves.
    features_RND: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Engine:
    """Static choices of the programs; call its functions under jit."""

    definition: Definition
    layout: Layout  # one copy; as long as the clip, or at least two frames for an endless video
    settings: GenerateConfig
    rule: Rule
    targets: TargetRule = InPlace()
    chunk: int = 1024
    num_codes: int = 0  # of the codebook; 0 = as many as the vocabulary has
    undo: int = 0  # frames that a bounded cache keeps beside those that are seen, so that they can be taken back
    # Recorded uniform numbers instead of random ones: see released.recorded.
    uniform: Callable[[int, int], tuple[np.ndarray, np.ndarray]] | None = None

    def __post_init__(self):
        _ = self.view, self.rounds  # what does not go together is refused now, not when it is compiled

    @cached_property
    def view(self) -> View:
        return View(self.layout, self.settings, self.rule, self.undo)

    @property
    def groups(self) -> Groups:
        return self.view.groups

    @property
    def in_place(self) -> bool:
        return isinstance(self.targets, InPlace)

    @cached_property
    def rounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Passes of the first round and of later ones; see `Plan.rounds`."""
        if not self.in_place:
            return np.zeros((1, 1), int), np.zeros((1, 1), int)
        if self.view.bounded and not self.settings.plan.lag(self.settings.steps):
            raise ValueError("a plan that works on all groups at once needs the cache 'full'")
        return self.settings.plan.rounds(self.settings.steps, 2**30 if self.view.bounded else self.groups.num)

    @property
    def width(self) -> int:
        """Groups in flight."""
        return self.rounds[0].shape[1]

    @cached_property
    def _counts(self) -> np.ndarray:
        """How many cells stay hidden after each pass, int32 [groups, steps]."""
        count = lambda num: self.settings.sampler.counts(int(num), self.settings.steps)
        if self.groups.is_uniform:
            return np.broadcast_to(count(len(self.groups.cells)), (self.groups.num, self.settings.steps))
        sizes = self.groups.num_codes
        of_size = {size: count(size) for size in set(sizes.tolist())}
        return np.stack([of_size[size] for size in sizes.tolist()])

    @cached_property
    def _sources(self) -> np.ndarray:
        """Which of the last hidden states predict each code of a group, int32 [groups, C, arms], -1 = not by this arm."""
        where, size = self.targets(self.layout), self.groups.size
        of_token = dict(zip(where.target.tolist(), where.source.tolist()))
        table = np.full((self.groups.num, size, where.source.shape[1]), -1, np.int32)
        for g, (tokens, start) in enumerate(zip(self.layout.groups, self.groups.starts)):
            source = np.array([of_token[i] for i in tokens.tolist()])
            table[g, : len(source)] = np.where(source < 0, -1, source - start + size)
            if np.any((source >= 0) & (source - start + size < 0)):
                raise ValueError("codes are predicted from tokens further back than a group")
        return table

    @cached_property
    def _history_N(self) -> np.ndarray:
        """Which tokens of a finished group are hidden before it is written, bool [N]."""
        hidden, content = np.zeros(self.groups.size, bool), self.groups.content
        always = self.settings.sampler.always_masks
        hidden[content] = history_mask(len(content), self.settings.history_ratio, always=always)
        return hidden

    # Prefill --------------------------------------------------------------------------------------------------------

    def prefill(self, params, text_BP, text_length_B, given_BTHW, keys_B, num_given: int) -> State:
        """Start with a prompt, and with the first `num_given` latent frames of `given_BTHW` (kept as they are)."""
        if not keys_B.ndim:
            keys_B = jax.vmap(jax.random.fold_in, (None, 0))(keys_B, jnp.arange(len(text_BP)))
        first_R, first = self.view.first_visible(text_length_B), self.first_group(num_given)
        ids_BL = self.layout.assemble(text_BP, given_BTHW)
        cache, hidden_RQD = self.run_prefix(params, ids_BL, first_R, first)
        shape = (len(text_BP), self.width, len(self.groups.cells))
        num_features = 0 if self.in_place else self.groups.size
        return State(
            cache=cache,
            first_R=first_R,
            keys_B=keys_B,
            first=jnp.int32(first),
            group=jnp.int32(first),
            cut=jnp.int32(0),
            codes_BWC=jnp.zeros(shape, jnp.int32),
            known_BWC=self._begin(jnp.int32(first) + jnp.arange(self.width), shape),
            log_p_BWC=jnp.zeros(shape, jnp.float32),
            features_RND=jnp.pad(hidden_RQD, ((0, 0), (num_features, 0), (0, 0)))[:, hidden_RQD.shape[1] :],
        )

    def first_group(self, num_given: int) -> int:
        """Return the group behind so many latent frames."""
        group = self.groups.before_frame(num_given) if num_given else 0
        if group is None:
            raise UserError(
                f"{num_given} given latent frames end inside a group of config.sequence.layout: frames can be given where groups follow "
                "them in time, as in 'compact' with blocks of one frame or less"
            )
        return group

    def run_prefix(self, params, ids_BL, first_R, num_groups: int, numbers: tuple | None = None):
        """Run the text and the first groups of a sequence. Return the cache behind them and their hidden states [R, Q, D].

        `numbers`: the numbers of the latent frames that the groups make up, and the cuts before them; by default 0, 1, ... and 0.
        """
        view, model, length = self.view, self.definition.bind(params), int(self.groups.starts[num_groups])
        tokens, now = view.prefix(num_groups, numbers)
        hidden_Q = np.zeros(length, bool)
        if num_groups and self.in_place and self.groups.is_uniform and self.settings.sampler.masks_given:
            hidden_Q[self.layout.prefix_length :] = np.tile(self._history_N, num_groups)
        ids_BQ = jnp.where(jnp.asarray(hidden_Q), self.layout.vocabulary.mask, ids_BL[:, :length])
        level_Q = jnp.where(tokens.group >= 0, self.settings.history_ratio if self.in_place else 0.0, 0.0)
        hidden_RQD, kv = model(
            view.rows(ids_BQ), view.place(tokens, first_R, tokens, True, now), view.prefix_keys(tokens, num_groups, first_R),
            **view.level(model, level_Q[None], len(first_R)),
        )  # fmt: skip
        spare = view.num_slots - length
        if spare < 0:
            raise UserError(
                f"{num_groups // max(self.groups.per_frame, 1)} given latent frames do not fit into a cache of {view.history_frames}; give "
                "fewer, set config.generate.cache to a wider one, or use a session, which keeps the newest"
            )
        k, v = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, spare), (0, 0), (0, 0))), kv)
        return Cache(k, v, Tokens(*(jnp.pad(field, (0, spare)) for field in tokens)), jnp.int32(length)), hidden_RQD

    # Hidden tokens that predict themselves --------------------------------------------------------------------------

    def round(self, params, state: State, passes_PW: np.ndarray) -> tuple[State, jax.Array]:
        """Work on the groups in flight, finish the first one and write it. Return its codes, [B, C]."""
        model, c = self.definition.bind(params), self.settings
        groups_W = state.group + jnp.arange(self.width)
        tokens, template, run = self._open(model, state, groups_W)
        cells = (jnp.arange(self.width)[:, None] * self.groups.size + self.groups.cells).reshape(-1)
        counts_WS = jnp.asarray(self._counts)[self.groups.row(groups_W)]
        temperatures_S = c.sampler.temperatures(c.steps, state.group == state.first)
        is_full = bool((passes_PW >= 0).all())

        def one(carry, pass_W):
            codes, known, log_p = carry
            share_BW = (~known).sum(-1) / known.shape[-1]
            ids_BQ = self._with_codes(template, groups_W, codes, known)
            features = run(ids_BQ, jnp.repeat(share_BW, self.groups.size, axis=1))[0][:, cells]
            step_W = jnp.maximum(pass_W, 0)
            noise = self._noise(state, groups_W, step_W)
            drawn, drawn_log_p = self._draw(model, features, noise)
            new_codes = jnp.where(known, codes, drawn.reshape(codes.shape))
            new_log_p = jnp.where(known, log_p, drawn_log_p.reshape(codes.shape))
            gumbel_BWC, num_W = noise.keep().reshape(codes.shape), counts_WS[jnp.arange(self.width), step_W]
            keep = jax.vmap(self._keep, in_axes=(1, 1, 1, 0, 0), out_axes=1)
            new_known = keep(gumbel_BWC, new_log_p, known, num_W, temperatures_S[step_W])
            new_known |= self._begin(groups_W, codes.shape)
            new = (new_codes, new_known, new_log_p)
            if is_full:
                return new, None
            works_W1 = (pass_W >= 0)[:, None]
            return jax.tree.map(lambda new, old: jnp.where(works_W1, new, old), new, carry), None

        carry = (state.codes_BWC, state.known_BWC, state.log_p_BWC)
        (codes, known, log_p), _ = jax.lax.scan(one, carry, jnp.asarray(passes_PW))
        if self.width > 1:
            tokens, template, run = self._open(model, state, state.group[None])
        history_BN = self._with_codes(template, state.group[None], codes[:, :1])
        history_BN = jnp.where(jnp.asarray(self._history_N), self.layout.vocabulary.mask, history_BN)
        _, kv = run(history_BN, jnp.full((1, self.groups.size), c.history_ratio))
        joins = self._begin((state.group + self.width)[None], (*codes.shape[:1], 1, codes.shape[2]))
        shift = lambda x, new: jnp.concatenate([x[:, 1:], new], axis=1)
        return state._replace(
            cache=self._make_room(state).write(kv, tokens, self.groups.num_tokens(state.group)),
            group=state.group + 1,
            codes_BWC=shift(codes, jnp.zeros_like(codes[:, :1])),
            known_BWC=shift(known, joins),
            log_p_BWC=shift(log_p, jnp.zeros_like(log_p[:, :1])),
        ), codes[:, 0]

    def _begin(self, groups_W: jax.Array, shape) -> jax.Array:
        """Return which codes of groups that begin count as known: padding, [B, W, C]."""
        if self.groups.is_uniform:
            return jnp.zeros(shape, bool)
        return jnp.broadcast_to(~self._is_code(groups_W), shape)

    def _is_code(self, groups_W: jax.Array) -> jax.Array:
        """Return which of the C codes each group has, bool [W, C]; the others are padding."""
        num_W = jnp.asarray(self.groups.num_codes)[self.groups.row(groups_W)]
        return jnp.arange(len(self.groups.cells)) < num_W[:, None]

    # Tokens that predict the next group -----------------------------------------------------------------------------

    def draw_next(self, params, state: State) -> jax.Array:
        """Draw the next group from the hidden states of the last tokens; return its codes, [B, C]."""
        model = self.definition.bind(params)
        source = jnp.asarray(self._sources)[self.groups.row(state.group)]
        if source.shape[1] == 1:
            features = state.features_RND[:, jnp.maximum(source[:, 0], 0)]
        else:
            features = gather_arms(model.config.head.arms(model, state.features_RND), source)
        return self._draw(model, features, self._noise(state, state.group[None], jnp.zeros(1, jnp.int32)))[0]

    def feed(self, params, state: State, codes_BC) -> State:
        """Run a drawn group, keep its keys and values, and the hidden states that predict the next one."""
        model = self.definition.bind(params)
        tokens, template, run = self._open(model, state, state.group[None])
        ids_BN = self._with_codes(template, state.group[None], codes_BC[:, None])
        hidden_RND, kv = run(ids_BN, jnp.zeros((1, self.groups.size)))
        num = self.groups.num_tokens(state.group)
        features = jnp.concatenate([state.features_RND, hidden_RND], axis=1)
        return state._replace(
            cache=self._make_room(state).write(kv, tokens, num),
            group=state.group + 1,
            features_RND=jax.lax.dynamic_slice_in_dim(features, num, self.groups.size, axis=1),
        )

    # Whole clips ----------------------------------------------------------------------------------------------------

    def next_group(self, params, state: State, passes_PW: np.ndarray) -> tuple[State, jax.Array]:
        """Generate one more group and write it; return its codes, [B, C]. `passes_PW`: see `Plan.rounds`."""
        if self.in_place:
            return self.round(params, state, passes_PW)
        codes_BC = self.draw_next(params, state)
        return self.feed(params, state, codes_BC), codes_BC

    def decode(self, params, text_BP, text_length_B, given_BTHW, keys_B, num_given: int) -> jax.Array:
        """Return the codes of a whole clip, int32 [B, T, H, W]; the first `num_given` latent frames are those given.

        Every row draws with a random key of its own; where one key is given instead of [B], that of row i is folded with i.
        """
        state, first = (
            self.prefill(params, text_BP, text_length_B, given_BTHW, keys_B, num_given),
            self.first_group(num_given),
        )
        (passes, later), num, parts = self.rounds, self.groups.num - first, []
        if len(passes) != len(later):  # the first round is longer
            state, codes_BC = self.round(params, state, passes)
            parts, num = [codes_BC[None]], num - 1
        step = lambda state, _: self.next_group(params, state, later)
        if self.in_place:
            parts.append(jax.lax.scan(step, state, None, length=num)[1])
        else:  # nothing follows the last group: it is not fed
            state, codes_GBC = jax.lax.scan(step, state, None, length=num - 1)
            parts += [codes_GBC, self.draw_next(params, state)[None]]
        codes_BGC = jnp.moveaxis(jnp.concatenate(parts), 0, 1) + self.layout.vocabulary.visual_start
        ids_BL = jnp.pad(self.layout.assemble(text_BP, given_BTHW), ((0, 0), (0, 1)))  # one more, where padding goes
        return self.layout.codes(ids_BL.at[:, self.groups.cell_index[first:]].set(codes_BGC))

    # Parts ----------------------------------------------------------------------------------------------------------

    def _open(self, model: transformer.Transformer, state: State, groups_W: jax.Array):
        """Rotate the cache and return the tokens of groups, the ids of their markers, and the function that runs them:
        (ids [B, Q], levels [B or 1, Q]) -> (hidden states [R, Q, D], keys and values)."""
        view, cache, first_R = self.view, state.cache, state.first_R
        tokens, template = view.flight(groups_W, state.cut)
        now = self.groups.tokens(state.group).t[0] + state.cut
        place = lambda tokens: view.place(tokens, first_R, cache.tokens, cache.used_S, now)
        k_rotated = transformer.rotate_cache(cache.k, place(cache.tokens), model.config)
        past = transformer.Past(k_rotated, cache.v, view.cache_keys(cache, first_R, groups_W))
        positions, own = place(tokens), view.own_keys(tokens, groups_W[0], len(groups_W), len(first_R))

        def run(ids_BQ, level_BQ):
            return model(view.rows(ids_BQ), positions, own, past, **view.level(model, level_BQ, len(first_R)))

        return tokens, template, run

    def _make_room(self, state: State) -> Cache:
        """Let the cache policy drop what must go before a group is written."""
        if not self.view.bounded:
            return state.cache
        cache, oldest = state.cache, state.group // self.groups.per_frame + 1 - self.undo
        seen = lambda cache: self.settings.cache.sees(self.view.frames(cache.tokens, cache.used_S), oldest)
        drop = lambda cache: cache.gather(keep_index(seen(cache)))
        return jax.lax.cond(cache.count + self.groups.size > cache.num_slots, drop, lambda cache: cache, cache)

    def _with_codes(self, template_Q, groups_W, codes_BWC, known_BWC=None):
        """Return ids [B, Q] of groups: codes where they are known, [MASK] elsewhere, and the markers of the template."""
        cells = (jnp.arange(len(groups_W))[:, None] * self.groups.size + self.groups.cells).reshape(-1)
        ids = codes_BWC + self.layout.vocabulary.visual_start
        if known_BWC is not None:
            ids = jnp.where(known_BWC, ids, self.layout.vocabulary.mask)
        if not self.groups.is_uniform:
            ids = jnp.where(self._is_code(groups_W), ids, template_Q[cells].reshape(ids.shape[1:]))
        batch = codes_BWC.shape[0]
        return jnp.broadcast_to(template_Q, (batch, len(template_Q))).at[:, cells].set(ids.reshape(batch, -1))

    def _draw(self, model: transformer.Transformer, features_RJF, noise: Noise) -> tuple[jax.Array, jax.Array]:
        combine = lambda logits_R: guidance.combine(logits_R, self.view.branches)
        choose = lambda logits, gumbel: self.settings.sampler.choose(
            logits, gumbel, self.settings.top_k, self.settings.top_p
        )
        return model.config.head.draw(model, features_RJF, noise.draw, combine, choose, self.chunk, self.num_codes)

    def _keep(self, gumbel_BC, log_p_BC, known_BC, num_hidden, temperature):
        return self.settings.sampler(Noise(None, lambda: gumbel_BC), log_p_BC, known_BC, num_hidden, temperature)

    def _noise(self, state: State, groups_W: jax.Array, pass_W: jax.Array) -> Noise:
        num_cells = len(self.groups.cells)
        if self.uniform is not None:
            shape = (len(state.keys_B), num_cells, self.num_codes or self.layout.vocabulary.visual_size)
            return released.recorded(self.uniform, shape, state.group - state.first, pass_W[0])
        fold_in = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
        keys_BW = jax.vmap(jax.vmap(jax.random.fold_in), (0, None))(fold_in(state.keys_B, groups_W), pass_W)
        return sampler.seeded(keys_BW, num_cells)
