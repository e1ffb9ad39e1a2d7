"""The compiled programs of a session: its first frame, later ones, and what happens between them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lumos import sharding
from lumos.generation.engine import Engine, State
from lumos.generation.policy import keep_index


class Programs:
    """The compiled programs of a session, shared by its forks."""

    def __init__(self, engine: Engine):
        first, later = engine.rounds
        self._engine, self.num_frame_programs = engine, 0
        self.make_frame = functools.partial(_frame, engine, later, later)
        self.first_frame = jax.jit(self._counted(functools.partial(_frame, engine, first, later)))
        self.next_frame = jax.jit(self._counted(self.make_frame)) if len(first) != len(later) else self.first_frame
        self.prefill = functools.cache(self._prefill)
        self.recache = functools.cache(self._recache)
        self.gather = jax.jit(lambda cache, keep_S: cache.gather(keep_index(keep_S)))
        self.new_text = jax.jit(functools.partial(_new_text, engine))
        self.rows = jax.jit(functools.partial(_rows, engine))

    def _counted(self, function):
        """Return the function, which counts how often it is traced."""

        def traced(*arguments):
            self.num_frame_programs += 1
            return function(*arguments)

        return traced

    def _prefill(self, num_given: int):
        return jax.jit(
            lambda params, text, length, codes, keys, streams: self._engine.prefill(
                params, text, length, codes, keys, num_given, streams=streams
            )
        )

    def _recache(self, num_frames: int):
        return jax.jit(functools.partial(_recache, self._engine, num_frames))


def _frame(engine: Engine, first: np.ndarray, later: np.ndarray, params, state: State, streams=()):
    """Generate the groups of one latent frame, with the codes [B, tokens] of its streams; return the state and the codes of the
    frame in raster order, [B, H * W]."""
    parts = []
    if streams:
        starts = engine.layout.vocabulary.stream_starts
        ids_BS = jnp.concatenate([codes + first_id for codes, first_id in zip(streams, starts)], axis=1)
        row = engine.groups.row(state.group)
        state = state._replace(streams_BGS=state.streams_BGS.at[:, row].set(ids_BS))
    for i in range(engine.groups.per_frame // engine.at_once):
        state, codes_BC = engine.next_group(params, state, later if i else first)
        parts.append(codes_BC)
    # Every process of a run reads them.
    return state, sharding.constrain(engine.groups.frame_codes(jnp.concatenate(parts, axis=1)), (None, None))


def _new_text(engine: Engine, params, state: State, text_BP, text_length_B) -> State:
    """Put another prompt into the slots of the text."""
    first_R = engine.view.first_visible(text_length_B)
    ids_BL = engine.layout.assemble(text_BP, jnp.zeros((len(text_BP), *engine.layout.grid), jnp.int32), None)
    prefix, _ = engine.run_prefix(params, ids_BL, first_R, 0)
    return state._replace(cache=state.cache.with_text(prefix, engine.layout.prefix_length), first_R=first_R)


def _recache(
    engine: Engine, num_frames: int, params, state: State, text_BP, text_length_B, codes_BTHW, streams, frames_F, cuts_F
) -> State:
    """Compute the history again: prompt and frames in one pass, as a prefill does."""
    first_R = engine.view.first_visible(text_length_B)
    ids_BL = engine.layout.assemble(text_BP, codes_BTHW, streams)
    num_groups = num_frames * engine.groups.per_frame
    numbers = (frames_F, cuts_F) if num_frames else None
    cache, hidden = engine.run_prefix(params, ids_BL, first_R, num_groups, numbers)
    features = state.features_RND if engine.in_place else hidden[:, -engine.groups.size :]
    newest_BP = engine.passes.newest(engine.passes.prefix_ids(ids_BL, num_groups), num_groups)
    return state._replace(cache=cache, first_R=first_R, features_RND=features, newest_BP=newest_BP)


def _rows(engine: Engine, state: State, index_B) -> State:
    batch = len(state.keys_B)
    index_R = jnp.concatenate([index_B + i * batch for i in range(len(engine.view.branches))])
    return state._replace(
        cache=state.cache.rows(index_R),
        first_R=state.first_R[index_R],
        keys_B=state.keys_B[index_B],
        cells=jax.tree.map(lambda x: x[index_B], state.cells),
        newest_BP=state.newest_BP[index_B],
        features_RND=state.features_RND[index_R],
        streams_BGS=None if state.streams_BGS is None else state.streams_BGS[index_B],
        log_p=jax.tree.map(lambda x: x[index_B], state.log_p),
    )
