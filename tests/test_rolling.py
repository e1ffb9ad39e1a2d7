"""A rolling window of frames that see each other both ways: its passes, and a loop without rounds and caches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
import tiny

from lumos.errors import UserError
from lumos.generation.plan import Diagonal, Rolling, cosine
from lumos.generation.sampler import Confidence, Noise, choose
from lumos.sequence.key_ranges import KeyRanges
from lumos.sequence.rule import StageCausal, compile_rule
from lumos.slots import slot
from lumos.training.transformer_objective import TransformerObjective
from lumos.videos.generator import make_engine

FRAMES, STEPS = small.FRAMES, 3
SAMPLER = Confidence(eta=0.7)


def test_the_passes_are_those_of_the_diagonal():
    """N groups take N + S - 1 passes; each group gets all its passes, and leaves in order (Rolling Forcing, 104 for 100)."""
    assert Rolling().num_iterations(5, 100) == 104 and Rolling(window=1).num_iterations(5, 100) == 500
    assert Rolling(window=3).in_flight(6, 9) == 3 and Rolling(window=5).in_flight(4, 9) == 4
    for mine, other in zip(Rolling().rounds(5, 9), Diagonal(passes=1).rounds(5, 9)):
        np.testing.assert_array_equal(mine, other)


def test_a_window_is_what_recomputing_gives():
    """Every pass runs the whole sequence: finished frames see earlier ones, those in flight also each other."""
    got, forwards = small.clip(small.engine(plan=Rolling(), sampler=SAMPLER, steps=STEPS))
    assert forwards == (FRAMES + STEPS - 1) + FRAMES  # each frame is written once
    _, definition, params, batch = small.model()
    engine = small.engine()
    layout, model, v = engine.layout, definition.bind(params), engine.layout.vocabulary
    first_B, cells_FC = layout.first_key(jnp.asarray(batch["text_length"])), layout.visual_index.reshape(FRAMES, 4)
    hidden_of = jax.jit(
        lambda ids, keys: model.hidden(ids, layout.positions, keys) @ model.head(v.visual_start, v.visual_end)
    )

    @jax.jit
    def keep(key, logits, codes, known, log_p, count, temperature):
        draw_key, keep_key = jax.random.split(key)
        gumbel = jax.vmap(lambda c: jax.random.gumbel(jax.random.fold_in(draw_key, c), (30,)))(jnp.arange(4))
        drawn, drawn_log_p = choose(logits, gumbel)
        codes, log_p = jnp.where(known, codes, drawn), jnp.where(known, log_p, drawn_log_p)
        noise = Noise(None, lambda: jax.random.gumbel(keep_key, (1, 4)))
        return codes, SAMPLER(noise, log_p[None], known[None], count, temperature)[0], log_p

    codes, known, log_p = np.zeros((2, FRAMES, 4), int), np.zeros((2, FRAMES, 4), bool), np.zeros((2, FRAMES, 4))
    for n in range(FRAMES + STEPS - 1):
        flight = range(max(0, n - STEPS + 1), min(FRAMES, n + 1))  # frame f has pass n - f
        stage = layout.tokens.stage.copy()
        for f in flight:
            stage[cells_FC[f]] = stage[cells_FC[flight[0]]]
        tokens = layout.tokens._replace(stage=stage)
        keys = KeyRanges.of(compile_rule(StageCausal(), tokens, tokens), first_B)
        keys = KeyRanges(keys.start_RBQ, keys.end_RBQ)
        ids = np.array(layout.assemble(jnp.asarray(batch["text"]), jnp.asarray(batch["tokens"])))
        ids[:, cells_FC] = np.where(known, codes + v.visual_start, v.mask)
        logits = hidden_of(jnp.asarray(ids), keys)
        for f in flight:
            for b in range(2):
                key = jax.random.fold_in(jax.random.fold_in(jax.random.key(1 + b), f), n - f)
                inside = logits[b, cells_FC[f]], codes[b, f], known[b, f], log_p[b, f]
                count, temperature = cosine(4, STEPS)[n - f], 1.0 - (n - f + 1) / STEPS
                codes[b, f], known[b, f], log_p[b, f] = keep(key, *inside, count, temperature)
    np.testing.assert_array_equal(got, codes)


def test_a_window_of_one_is_one_by_one():
    codes, forwards = small.clip(small.engine(plan=Rolling(window=1)))
    np.testing.assert_array_equal(codes, small.baseline()[0])
    assert forwards == small.baseline()[1]


def test_axial_attention_is_refused():
    config = tiny.transformer(sequence__attention=slot("space_time"), generate__plan=slot("rolling"))
    with pytest.raises(UserError, match="plan 'rolling' does not go with axial attention"):
        make_engine(config, TransformerObjective(config).definition)
