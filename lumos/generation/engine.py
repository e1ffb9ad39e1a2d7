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
from lumos.generation import jacobi, keeping, stitched
from lumos.generation.cache import Cache
from lumos.generation.groups import Groups
from lumos.generation.passes import Cells, Kept, Passes
from lumos.generation.sampler import keys_of_rows
from lumos.generation.view import View
from lumos.model import added, transformer
from lumos.model.definition import Definition
from lumos.model.heads import gather_arms
from lumos.sequence.layout import Layout
from lumos.sequence.rule import Rule
from lumos.sequence.targets import InPlace, TargetRule

if TYPE_CHECKING:
    from lumos.config import GenerateConfig, ModelConfig


class State(NamedTuple):
    """Everything that generation goes on with. Rows R are the branches of guidance, B clips each."""

    cache: Cache
    first_R: jax.Array  # first visible slot of the text
    keys_B: jax.Array  # random keys
    first: jax.Array  # the first group that is generated
    group: jax.Array  # the first group in flight
    cut: jax.Array  # latent frames that what comes stands later
    cells: Cells  # of the W groups in flight
    given: Kept | None  # codes of groups to come, where some of their cells are given
    streams_BGS: jax.Array | None  # ids of the streams beside the video, of the groups of the layout
    newest_BP: jax.Array  # the last finished code in each place of a frame, as the cache has it; -1 = none, or hidden
    # Hidden states of the last tokens, which predict the next group; none where hidden tokens predict themselves.
    features_RND: jax.Array
    forwards: jax.Array  # how often the model was run since the prefill
    # With a search: log-probabilities of the codes of all finished groups in each branch, summed, [B] each.
    log_p: tuple[jax.Array, ...]


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
        # What does not go together is refused now, not when it is compiled.
        self.settings.plan.check(self.groups, self.in_place)
        _ = self.view, self.passes, self.rounds, self.at_once
        self.model_config.mixer.check_generation(self.view)

    @cached_property
    def model_config(self) -> ModelConfig:
        return self.definition.bind(self.definition.abstract).config

    def bind(self, params) -> transformer.Transformer:
        """Return the model with these parameters, for many passes."""
        return self.definition.bind(params).for_passes()

    @cached_property
    def view(self) -> View:
        return View(self.layout, self.settings, self.rule, self.undo)

    @cached_property
    def passes(self) -> Passes:
        return Passes(self.view, self.settings, self.in_place, self.chunk, self.num_codes, self.uniform)

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
    def at_once(self) -> int:
        """Groups that are finished at a time."""
        return self.settings.sampler.at_once(self.view, self.in_place)

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

    # Prefill --------------------------------------------------------------------------------------------------------

    def prefill(
        self, params, text_BP, text_length_B, given_BTHW, keys_B, num_given: int, kept_BTHW=None, streams=()
    ) -> State:
        """Start with a prompt, and with the first `num_given` latent frames of `given_BTHW` (kept as they are), or with its codes
        where `kept_BTHW` is true. `streams`: the codes [B, T, tokens] of each stream beside the video."""
        if len(streams) != len(self.layout.stream_index):
            raise UserError(
                f"{len(streams)} streams beside the video are given, config.sequence.streams has {len(self.layout.stream_index)}"
            )
        keys_B = keys_of_rows(keys_B, len(text_BP))
        first_R, first = self.view.first_visible(text_length_B), self.first_group(num_given)
        ids_BL = self.layout.assemble(text_BP, given_BTHW, streams)
        cache, hidden_RQD = self.run_prefix(params, ids_BL, first_R, first)
        num_features = 0 if self.in_place else self.groups.size
        newest_BP = self.passes.newest(self.passes.prefix_ids(ids_BL, first), first)
        given = self.passes.kept(given_BTHW, num_given, kept_BTHW)
        return State(
            cache=cache,
            first_R=first_R,
            keys_B=keys_B,
            first=jnp.int32(first),
            group=jnp.int32(first),
            cut=jnp.int32(0),
            cells=self.passes.begin(keys_B, jnp.int32(first) + jnp.arange(self.width), newest_BP, given)
            if self.at_once == 1
            else jacobi.guess(self, ids_BL, keys_B, first),
            given=given,
            streams_BGS=self.groups.stream_ids(ids_BL) if streams else None,
            newest_BP=newest_BP,
            features_RND=jnp.pad(hidden_RQD, ((0, 0), (num_features, 0), (0, 0)))[:, hidden_RQD.shape[1] :],
            forwards=jnp.int32(0),
            log_p=(jnp.zeros(len(text_BP), jnp.float32),) * self.passes.num_noted,
        )

    def first_group(self, num_given: int) -> int:
        """Return the group behind so many latent frames."""
        group = self.groups.before_frame(num_given) if num_given else 0
        if group is None and not self.in_place:
            raise UserError(
                f"{num_given} given latent frames end inside a group of config.sequence.layout, whose codes are predicted together: frames "
                "can be given where groups follow them in time, as in 'compact' with blocks of one frame or less"
            )
        return group or 0

    def run_prefix(self, params, ids_BL, first_R, num_groups: int, numbers: tuple | None = None):
        """Run the text and the first groups of a sequence. Return the cache behind them and their hidden states [R, Q, D].

        `numbers`: the numbers of the latent frames that the groups make up, and the cuts before them; by default 0, 1, ... and 0.
        """
        view, model, length = self.view, self.bind(params), int(self.groups.starts[num_groups])
        num_frames = num_groups // max(self.groups.per_frame, 1)
        if view.bounded and num_frames > view.history_frames:
            raise UserError(
                f"{num_frames} given latent frames do not fit into a cache of {view.history_frames}; give fewer, set config.generate.cache "
                "to a wider one, or use a session, which keeps the newest"
            )
        tokens, now = view.prefix(num_groups, numbers)
        ids_RQ = view.ids(self.passes.prefix_ids(ids_BL, num_groups), tokens)
        rungs = tuple(rung.frames(num_frames) for rung in self.layout.memory if num_frames)
        level_11 = jnp.full((1, 1), self.settings.history_ratio if self.in_place else 0.0)
        index, frame = self.layout.of_frames
        ids_RQ, more = added.inputs(model, ids_RQ, rungs, view.is_first(tokens), (index[:num_frames], frame[:length]))
        hidden_RQD, own = model(
            ids_RQ, view.place(tokens, first_R, tokens, True, now), view.prefix_keys(tokens, num_groups, first_R),
            **view.level(model, tokens, level_11, len(first_R)), **more,
        )  # fmt: skip
        return keeping.begin(view, own, tokens, max(view.num_slots - length, 0)), hidden_RQD

    # Hidden tokens that predict themselves --------------------------------------------------------------------------

    def round(self, params, state: State, passes_PW: np.ndarray) -> tuple[State, jax.Array]:
        """Work on the groups in flight, finish the first one and write it. Return its codes, [B, C]."""
        return self.watched_round(params, state, passes_PW)[:2]

    def watched_round(self, params, state: State, passes_PW: np.ndarray) -> tuple[State, jax.Array, Cells]:
        """As `round`; return too the cells behind each pass, [P, B, W, C] each."""
        model, c = self.bind(params), self.settings
        groups_W = state.group + jnp.arange(self.width)
        opened = _, template, run = self._open(model, state, groups_W)
        index = (jnp.arange(self.width)[:, None] * self.groups.size + self.groups.cells).reshape(-1)
        is_full = bool((passes_PW >= 0).all())

        def step(cells, pass_W):
            now = self.passes.at(state.keys_B, groups_W, jnp.clip(pass_W, 0, c.steps - 1), state.first)
            level_BQ = jnp.repeat(now.level(cells), self.groups.size, axis=1)
            known_BWC = cells.known if c.sampler.masks else None
            begun = (0, self.groups.num_begun(pass_W, state.group, self.view.bounded)) if c.plan.both_ways else None
            hidden_RQD, _ = run(self._with_codes(template, groups_W, cells.codes, known_BWC), level_BQ, begun=begun)
            return now.draw(model, hidden_RQD[:, index], cells, state.newest_BP), now

        def one(carry, pass_W):
            cells, forwards = carry
            new, now = step(cells, pass_W)
            new, more = c.sampler.look_ahead(step, now, cells, new, pass_W, c.steps)
            new = new if is_full else new.where((pass_W >= 0)[:, None], cells)
            return (new, forwards + 1 + more), new

        (cells, forwards), watched = jax.lax.scan(one, (state.cells, state.forwards), jnp.asarray(passes_PW))
        opened = self._open(model, state, state.group[None]) if self.width > 1 else opened
        after = self._close(state._replace(forwards=forwards), opened, cells.codes[:, :1])
        joins = self.passes.begin(state.keys_B, (state.group + self.width)[None], after.newest_BP, state.given)
        log_p = tuple(total + new[:, 0].sum(-1) for total, new in zip(state.log_p, cells.of_branches))
        return after._replace(cells=cells.shift(joins), log_p=log_p), cells.codes[:, 0], watched

    def _close(self, state: State, opened: tuple, codes_B1C: jax.Array) -> State:
        """Write the first group in flight, which is finished, with its history mask. `opened`: what `_open` says of it."""
        tokens, template, run = opened
        history_BN = self._with_codes(template, state.group[None], codes_B1C)
        history_BN = jnp.where(jnp.asarray(self.passes.history_N), self.layout.vocabulary.mask, history_BN)
        _, own = run(history_BN, jnp.full((1, self.groups.size), self.settings.history_ratio), is_write=True)
        return state._replace(
            cache=keeping.write(self.view, state.cache, own, tokens, state.group, self.model_config),
            group=state.group + 1,
            newest_BP=self.passes.remember(state.newest_BP, state.group[None], codes_B1C),
            forwards=state.forwards + 1,
        )

    # Tokens that predict the next group -----------------------------------------------------------------------------

    def draw_next(self, params, state: State) -> tuple[jax.Array, State]:
        """Draw the next group from the hidden states of the last tokens; return its codes, [B, C], and the state with their
        log-probabilities."""
        return self.draw_from(self.bind(params), state.features_RND, state, state.group[None], 0)

    def draw_from(self, model, before_RQD, state: State, groups_W, begins_J) -> tuple[jax.Array, State]:
        """Draw groups from the hidden states of the tokens before them, of which those of each code begin at `begins_J`; see
        `draw_next`."""
        source = jnp.asarray(self._sources)[self.groups.row(groups_W)]
        source = source.reshape(-1, source.shape[-1])
        source = jnp.where(source < 0, -1, source + jnp.reshape(begins_J, (-1, 1)))
        if source.shape[1] == 1:
            features = before_RQD[:, jnp.maximum(source[:, 0], 0)]
        else:
            features = gather_arms(model.config.head.arms(model, before_RQD), source)
        noise = self.passes.noise(state.keys_B, groups_W, jnp.zeros(len(groups_W), jnp.int32), state.first)
        context = self.passes.context(model, state.newest_BP)
        codes_BJ = self.passes.draw(model, features, noise, context)[0]
        notes = self.passes.note(model, features, codes_BJ, context)
        return codes_BJ, state._replace(log_p=tuple(total + new.sum(-1) for total, new in zip(state.log_p, notes)))

    def feed(self, params, state: State, codes_BC) -> State:
        """Run a drawn group, keep its keys and values, and the hidden states that predict the next one."""
        model = self.bind(params)
        tokens, template, run = self._open(model, state, state.group[None])
        ids_BN = self._with_codes(template, state.group[None], codes_BC[:, None])
        hidden_RND, own = run(ids_BN, jnp.zeros((1, self.groups.size)), is_write=True)
        num = self.groups.num_tokens(state.group)
        features = jnp.concatenate([state.features_RND, hidden_RND], axis=1)
        return state._replace(
            cache=keeping.write(self.view, state.cache, own, tokens, state.group, self.model_config),
            group=state.group + 1,
            newest_BP=self.passes.remember(state.newest_BP, state.group[None], codes_BC[:, None]),
            features_RND=jax.lax.dynamic_slice_in_dim(features, num, self.groups.size, axis=1),
            forwards=state.forwards + 1,
        )

    # Whole clips ----------------------------------------------------------------------------------------------------

    def next_group(self, params, state: State, passes_PW: np.ndarray) -> tuple[State, jax.Array]:
        """Generate one more group and write it; return its codes, [B, C], or the next ones `at_once`. `passes_PW`: see `Plan.rounds`."""
        if self.in_place:
            return self.round(params, state, passes_PW)
        if self.at_once > 1:
            return jacobi.solve(self, params, state)
        codes_BC, state = self.draw_next(params, state)
        return self.feed(params, state, codes_BC), codes_BC

    def decode(
        self, params, text_BP, text_length_B, given_BTHW, keys_B, num_given: int, kept_BTHW=None, streams=()
    ) -> jax.Array:
        """Return the codes of a whole clip, int32 [B, T, H, W]; the first `num_given` latent frames are those given.

        kept_BTHW: bool, which other codes of `given_BTHW` are kept (a future, an outline); codes must predict themselves.
        streams: the codes [B, T, tokens] of each stream beside the video (actions).
        Every row draws with a random key of its own; where one key is given instead of [B], that of row i is folded with i.
        """
        return self.clip(params, text_BP, text_length_B, given_BTHW, keys_B, num_given, kept_BTHW, streams)[1]

    def clip(self, params, text_BP, text_length_B, given_BTHW, keys_B, num_given: int, kept_BTHW=None, streams=()):
        """As `decode`; return the state behind it too: (state, codes)."""
        if self.settings.plan.is_whole:
            return stitched.clip(self, params, text_BP, text_length_B, given_BTHW, keys_B, num_given, kept_BTHW)
        state = self.prefill(params, text_BP, text_length_B, given_BTHW, keys_B, num_given, kept_BTHW, streams)
        first = self.first_group(num_given)
        (passes, later), num, parts = self.rounds, (self.groups.num - first) // self.at_once, []
        if len(passes) != len(later):  # the first round is longer
            state, codes_BC = self.round(params, state, passes)
            parts, num = [codes_BC[None]], num - 1
        step = lambda state, _: self.next_group(params, state, later)
        if self.in_place or self.at_once > 1:
            state, codes_GBC = jax.lax.scan(step, state, None, length=num)
            parts.append(codes_GBC)
        else:  # nothing follows the last group: it is not fed
            state, codes_GBC = jax.lax.scan(step, state, None, length=num - 1)
            codes_BC, state = self.draw_next(params, state)
            parts += [codes_GBC, codes_BC[None]]
        codes_BGC = jnp.moveaxis(jnp.concatenate(parts), 0, 1).reshape(len(text_BP), -1, len(self.groups.cells))
        return state, self.groups.clip(text_BP, given_BTHW, codes_BGC)

    # Parts ----------------------------------------------------------------------------------------------------------

    def _open(self, model: transformer.Transformer, state: State, groups_W: jax.Array):
        """Rotate the cache and return the tokens of groups, the ids of their markers, and the function that runs them:
        (ids [B, Q], levels [B or 1, Q]; the first and the end of the groups that have begun, where later ones are seen; whether they
        are written) -> (hidden states [R, Q, D], what is written of them)."""
        view, first_R = self.view, state.first_R
        tokens, template = view.flight(groups_W, state.cut)
        template = self._with_streams(template, state, groups_W)
        now = self.groups.tokens(state.group).t[0] + state.cut
        cache, bias_RS = self.settings.cache.recall(keeping.anchored(view, state.cache, now, model.config), view)
        place = lambda tokens: view.place(tokens, first_R, cache.tokens, cache.used_S, now)
        k, v = transformer.remembered(*cache.read(model.config.dtype), place(cache.tokens), model.config)
        past = transformer.Past(k, v, view.cache_keys(cache, first_R, groups_W, bias_RS), sums=cache.sums)
        positions, own = place(tokens), view.own_keys(tokens, groups_W[0], len(groups_W), len(first_R))

        def run(ids_BQ, level_BQ, begun=None, is_write=False):
            keys = own if begun is None else view.begun(own, *begun)
            seen = past._replace(measure=self.settings.cache.measure if is_write else None)
            ids_RQ = view.ids(ids_BQ, tokens)
            of_frames = self.groups.of_frames(len(groups_W))
            ids_RQ, more = added.inputs(
                model, ids_RQ, self.groups.memory(len(groups_W)), view.is_first(tokens), of_frames
            )
            return model(ids_RQ, positions, keys, seen, **view.level(model, tokens, level_BQ, len(first_R)), **more)

        return tokens, template, run

    def _with_streams(self, template_Q, state: State, groups_W):
        """Return the ids of markers with those of the streams of groups, [B, Q]; as they are where there are no streams."""
        if state.streams_BGS is None:
            return template_Q
        index = (jnp.arange(len(groups_W))[:, None] * self.groups.size + self.groups.streams).reshape(-1)
        ids_BS = state.streams_BGS[:, self.groups.row(groups_W)].reshape(len(state.keys_B), -1)
        return jnp.broadcast_to(template_Q, (len(ids_BS), len(template_Q))).at[:, index].set(ids_BS)

    def _with_codes(self, template_Q, groups_W, codes_BWC, known_BWC=None):
        """Return ids [B, Q] of groups: codes where they are known, [MASK] elsewhere, and the others of the template ([Q] or [B, Q])."""
        cells = (jnp.arange(len(groups_W))[:, None] * self.groups.size + self.groups.cells).reshape(-1)
        ids = codes_BWC + self.layout.vocabulary.visual_start
        if not self.settings.sampler.masks:
            ids = jnp.where(codes_BWC < 0, self.layout.vocabulary.mask, ids)
        if known_BWC is not None:
            ids = jnp.where(known_BWC, ids, self.layout.vocabulary.mask)
        if not self.groups.is_uniform:
            ids = jnp.where(self.groups.is_code(groups_W), ids, template_Q[..., cells].reshape(-1, *ids.shape[1:]))
        batch = codes_BWC.shape[0]
        return jnp.broadcast_to(template_Q, (batch, template_Q.shape[-1])).at[:, cells].set(ids.reshape(batch, -1))
