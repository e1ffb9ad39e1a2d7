import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from recompute import Recompute

from lumos.generation.guidance import NoGuidance, TextGuidance
from lumos.model.transformer import Past, remembered
from lumos.sequence.key_ranges import KeyRanges
from lumos.sequence.rule import layout_ranges
from lumos.slots import slot
from lumos.training.transformer_objective import TransformerObjective
from lumos.videos.generator import make_engine


def _setup(**changes):
    config = tiny.transformer(data__batch_size=3, model__init_std=0.3, **changes)
    objective = TransformerObjective(config)
    return config, objective, objective.definition.init(jax.random.key(0)), tiny.token_batch(config)


@functools.cache
def _program(config, definition, settings, chunk, use_cache, num_codes):
    if not use_cache:
        return Recompute(config, definition, settings=settings, chunk=chunk, num_codes=num_codes)
    config = dataclasses.replace(config, loss=dataclasses.replace(config.loss, chunk=chunk))
    engine = make_engine(config, definition, settings=settings, num_codes=num_codes)
    return jax.jit(engine.decode, static_argnums=5)


def _decode(
    config, objective, params, batch, num_given=0, *, seed=1, key=None, chunk=7, use_cache=True, num_codes=0, **settings
):
    settings = dataclasses.replace(config.generate, **settings)
    decode = _program(config, objective.definition, settings, chunk, use_cache, num_codes)
    key = jax.random.key(seed) if key is None else key
    return np.asarray(decode(params, batch["text"], batch["text_length"], batch["tokens"], key, num_given))


def _assert_recomputing_changes_nothing(setup, num_given):
    for seed in (1, 2, 3):
        cached = _decode(*setup, num_given=num_given, seed=seed)
        np.testing.assert_array_equal(cached, _decode(*setup, num_given=num_given, use_cache=False, seed=seed))
        np.testing.assert_array_equal(cached[:, :num_given], setup[3]["tokens"][:, :num_given])
        assert cached.min() >= 0 and cached.max() < 30


@pytest.mark.fast("0-compact", "2-lumos1")
@pytest.mark.parametrize("name", ["compact", "lumos1"])
@pytest.mark.parametrize("num_given", [0, 2])
def test_cached_decoding_equals_recomputing_everything(name, num_given):
    _assert_recomputing_changes_nothing(_setup(sequence__layout=slot(name)), num_given)


_FROM_CLEAN = {"corruption__level": slot("constant", ratio=0.0), "loss__weights": slot("all")}


@pytest.mark.fast("1-changes0", "0-changes1", "0-changes5", "1-changes3")
@pytest.mark.parametrize(
    "num_given, changes",
    [
        (1, {
            "sequence__layout": slot("compact", block=(1, 2, 0)), "model__head": slot("digits", sizes=(5, 6)),
            "sequence__attention": slot("window", width=2, sink=1, sink_gate=-0.5, decay=0.1),
        }),
        (0, {
            "generate__plan": slot("diagonal", passes=1), "generate__guidance": slot("text_history"),
            "model__level_embedding": True,
        }),
        (1, {
            "generate__sampler": slot("random", eta=0.5), "generate__guidance": slot("none"),
            "sequence__attention": slot("local_global"), "generate__top_p": 0.8,
        }),
        (1, {"generate__sampler": slot("released")}),
        (0, {"sequence__layout": slot("regions"), "generate__sampler": slot("one_shot"), "generate__steps": 1}),
        (0, {"sequence__layout": slot("compact", block=(1, 1, 1)), "sequence__targets": slot("next"), **_FROM_CLEAN}),
        (1, {"sequence__targets": slot("next", first="block"), **_FROM_CLEAN}),
        (0, {
            "sequence__layout": slot("planes"), "sequence__targets": slot("neighbours"), "model__head": slot("axes"),
            **_FROM_CLEAN,
        }),
    ],
)  # fmt: skip
def test_every_slot_of_generation_equals_recomputing_everything(num_given, changes):
    _assert_recomputing_changes_nothing(_setup(**changes), num_given)


@pytest.mark.parametrize("name", ["compact", "lumos1"])
def test_cached_hidden_states_equal_uncached(name):
    """Frame 2 given frames 0 and 1: through the cache, and in one pass over the whole sequence."""
    config, objective, params, batch = _setup(sequence__layout=slot(name))
    plan, model = objective.layout, objective.definition.bind(params)
    ids = plan.assemble(batch["text"], batch["tokens"])
    first = plan.first_key(jnp.asarray(batch["text_length"]))
    keys = KeyRanges.of(layout_ranges(plan, config.sequence.attention), first)
    whole = model.hidden(ids, plan.positions, keys)

    settings = dataclasses.replace(config.generate, guidance=NoGuidance(), history_ratio=0.0)
    cache, _ = make_engine(config, objective.definition, settings=settings).run_prefix(params, ids, first, 2)
    block = plan.groups[2]
    start = int(block[0])
    assert int(cache.count) == start and cache.num_slots >= start
    before = KeyRanges(first[:, None] + jnp.zeros((1, 1, len(block)), int), jnp.full((1, 1, len(block)), start))
    used = (x[:, :, :start] for x in (cache.k, cache.v))
    past = Past(*remembered(*used, plan.positions.at(slice(0, start)), config.model), before)
    own = KeyRanges(jnp.zeros((1, 1, len(block)), int), jnp.full((1, 1, len(block)), len(block)))
    got, _ = model(ids[:, block], plan.positions.at(block), own, past)
    np.testing.assert_allclose(got, whole[:, block], atol=2e-4)


def _scans(jaxpr, length):
    """Yield the shapes of what goes into each loop of so many turns."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan" and equation.params["length"] == length:
            yield {x.aval.shape for x in equation.invars}
        for inner in equation.params.values():
            if hasattr(getattr(inner, "jaxpr", inner), "eqns"):
                yield from _scans(getattr(inner, "jaxpr", inner), length)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_layers_on_their_own_are_taken_apart_once_for_all_passes(scan_layers):
    """Not in every pass, which would copy the weights and the cache each time."""
    config, objective, params, batch = _setup(model__scan_layers=scan_layers, generate__steps=5)
    engine = make_engine(config, objective.definition)
    prompt = batch["text"], batch["text_length"], batch["tokens"], jax.random.key(0)
    state = jax.eval_shape(lambda params: engine.prefill(params, *prompt, 0), params)
    traced = jax.make_jaxpr(lambda params, state: engine.round(params, state, engine.rounds[0]))(params, state)
    layers, rows, slots, heads, dim = state.cache.k.shape
    stacked = {x.shape for x in jax.tree.leaves(params["layers"])} | {(layers, rows, heads, dim, slots)}
    (into_passes,) = _scans(traced.jaxpr, 5)
    assert stacked & into_passes == (stacked if scan_layers else set())


def test_layers_on_their_own_give_the_same_codes():
    scanned, apart = (_decode(*_setup(model__scan_layers=scan_layers)) for scan_layers in (True, False))
    np.testing.assert_array_equal(scanned, apart)


def test_padding_and_other_rows_do_not_matter():
    """A row decodes to the same codes whatever lies in its padding."""
    config, objective, params, batch = _setup()
    changed = dict(batch, text=batch["text"].copy())
    for row, length in enumerate(batch["text_length"]):
        changed["text"][row, : config.sequence.text_length - length] = 9
    np.testing.assert_array_equal(
        _decode(config, objective, params, batch), _decode(config, objective, params, changed)
    )


def test_seeds_decide_and_guidance_one_ignores_the_unconditional_branch():
    setup = _setup()
    assert (_decode(*setup, seed=1) == _decode(*setup, seed=1)).all()
    assert not (_decode(*setup, seed=1) == _decode(*setup, seed=2)).all()
    off = _decode(*setup, guidance=NoGuidance())
    np.testing.assert_array_equal(off, _decode(*setup, guidance=TextGuidance(scale=1.0)))
    assert not (off == _decode(*setup, guidance=TextGuidance(scale=6.0))).all()


def test_codes_do_not_depend_on_how_many_cells_are_drawn_at_a_time():
    setup = _setup()
    for chunk in (3, 16, 1000):
        np.testing.assert_array_equal(_decode(*setup, chunk=chunk), _decode(*setup, chunk=7))


@pytest.mark.slow
def test_a_clip_is_the_same_alone_and_in_any_batch():
    config, objective, params, batch = _setup()
    keys = jnp.stack([jax.random.key(seed) for seed in (5, 6, 7)])
    rows = lambda index: {name: value[index] for name, value in batch.items()}
    together = _decode(config, objective, params, batch, key=keys)
    assert not (together[0] == together[1]).all()
    for index in ([1], [2, 0], [2, 1, 0, 1]):
        got = _decode(config, objective, params, rows(np.array(index)), key=keys[np.array(index)])
        np.testing.assert_array_equal(got, together[index])


def test_no_code_outside_of_the_codebook_is_drawn():
    """The vocabulary may have room for more codes than the tokenizer has."""
    setup = _setup()
    assert _decode(*setup).max() >= 10
    few = _decode(*setup, num_codes=10)
    assert few.max() == 9 and few.min() == 0


def test_top_one_at_one_step_is_the_argmax_of_the_model():
    config, objective, params, batch = _setup(generate__steps=1)
    codes = _decode(config, objective, params, batch, num_given=2, top_k=1, guidance=NoGuidance(), history_ratio=0.0)
    plan, model = objective.layout, objective.definition.bind(params)
    ids = plan.assemble(batch["text"], batch["tokens"])
    last = plan.visual_index.reshape(3, -1)[2]
    ids = ids.at[:, last].set(plan.vocabulary.mask)
    first = plan.first_key(jnp.asarray(batch["text_length"]))
    keys = KeyRanges.of(layout_ranges(plan, config.sequence.attention), first)
    logits = model.hidden(ids, plan.positions, keys)[:, last] @ model.head(
        plan.vocabulary.visual_start, plan.vocabulary.visual_end
    )
    np.testing.assert_array_equal(codes[:, 2].reshape(3, -1), logits.argmax(-1))
