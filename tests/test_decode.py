import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lumos.generation.decode import Decoder
from lumos.sequence import attention
from lumos.training.transformer_task import TransformerTask


def _setup(**changes):
    config = tiny.transformer(data__batch_size=3, model__init_std=0.3, **changes)
    task = TransformerTask(config)
    return config, task, task.definition.init(jax.random.key(0)), tiny.token_batch(config)


def _decode(config, task, params, batch, num_given=0, seed=1, key=None, **settings):
    options = {name: settings.pop(name) for name in ("use_cache", "num_codes") if name in settings}
    chunk = settings.pop("chunk", 7)
    decoder = Decoder(task.definition, task.layout, dataclasses.replace(config.generate, **settings), chunk, **options)
    key = jax.random.key(seed) if key is None else key
    return np.asarray(decoder(params, batch["text"], batch["text_length"], batch["tokens"], key, num_given))


@pytest.mark.parametrize("style", ["compact", "lumos1"])
@pytest.mark.parametrize("num_given", [0, 2])
def test_cached_decoding_equals_recomputing_everything(style, num_given):
    setup = _setup(sequence__style=style)
    cached = _decode(*setup, num_given=num_given)
    np.testing.assert_array_equal(cached, _decode(*setup, num_given=num_given, use_cache=False))
    np.testing.assert_array_equal(cached[:, :num_given], setup[3]["tokens"][:, :num_given])
    assert cached.min() >= 0 and cached.max() < 30


@pytest.mark.parametrize("style", ["compact", "lumos1"])
def test_cached_hidden_states_equal_uncached(style):
    """Frame 2 given frames 0 and 1: through the cache, and in one pass over the whole sequence."""
    config, task, params, batch = _setup(sequence__style=style)
    plan, model = task.layout, task.definition.bind(params)
    ids = plan.assemble(batch["text"], batch["tokens"])
    first = plan.first_key(jnp.asarray(batch["text_length"]))
    whole = model.hidden(ids, plan.positions, attention.layout_range(plan, first))

    from lumos.generation.decode import _Cached

    decoder = Decoder(task.definition, plan, dataclasses.replace(config.generate, guidance=1.0))
    cached = _Cached(decoder, model, first)
    seen = cached.open(cached.prefill(ids, 2), 2)
    got = cached.hidden(seen, decoder._block(ids, 2), 2)
    np.testing.assert_allclose(got, decoder._block(whole, 2), atol=2e-4)


def test_padding_and_other_rows_do_not_matter():
    """A row decodes to the same codes whatever lies in its padding."""
    config, task, params, batch = _setup()
    changed = dict(batch, text=batch["text"].copy())
    for row, length in enumerate(batch["text_length"]):
        changed["text"][row, : config.sequence.text_length - length] = 9
    np.testing.assert_array_equal(_decode(config, task, params, batch), _decode(config, task, params, changed))


def test_seeds_decide_and_guidance_one_ignores_the_unconditional_branch():
    setup = _setup()
    assert (_decode(*setup, seed=1) == _decode(*setup, seed=1)).all()
    assert not (_decode(*setup, seed=1) == _decode(*setup, seed=2)).all()
    assert not (_decode(*setup, guidance=1.0) == _decode(*setup, guidance=6.0)).all()


def test_codes_do_not_depend_on_how_many_cells_are_drawn_at_a_time():
    setup = _setup()
    for chunk in (3, 16, 1000):
        np.testing.assert_array_equal(_decode(*setup, chunk=chunk), _decode(*setup, chunk=7))


def test_a_clip_is_the_same_alone_and_in_any_batch():
    config, task, params, batch = _setup()
    keys = jnp.stack([jax.random.key(seed) for seed in (5, 6, 7)])
    rows = lambda index: {name: value[index] for name, value in batch.items()}
    together = _decode(config, task, params, batch, key=keys)
    assert not (together[0] == together[1]).all()
    for index in ([1], [2, 0], [2, 1, 0, 1]):
        got = _decode(config, task, params, rows(np.array(index)), key=keys[np.array(index)])
        np.testing.assert_array_equal(got, together[index])


def test_no_code_outside_of_the_codebook_is_drawn():
    """The vocabulary may have room for more codes than the tokenizer has."""
    setup = _setup()
    assert _decode(*setup).max() >= 10
    few = _decode(*setup, num_codes=10)
    assert few.max() == 9 and few.min() == 0


def test_top_one_at_one_step_is_the_argmax_of_the_model():
    config, task, params, batch = _setup(generate__steps=1)
    codes = _decode(config, task, params, batch, num_given=2, top_k=1, guidance=1.0, history_ratio=0.0)
    plan, model = task.layout, task.definition.bind(params)
    ids = plan.assemble(batch["text"], batch["tokens"])
    last = plan.visual_index.reshape(3, -1)[2]
    ids = ids.at[:, last].set(plan.vocabulary.mask)
    keys = attention.layout_range(plan, plan.first_key(jnp.asarray(batch["text_length"])))
    logits = model.hidden(ids, plan.positions, keys)[:, last] @ model.head(
        plan.vocabulary.visual_start, plan.vocabulary.visual_end
    )
    np.testing.assert_array_equal(codes[:, 2].reshape(3, -1), logits.argmax(-1))
