"""The cache in 8 bits: half the memory, the same video."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from test_laws_generation import ARRANGEMENTS, setup

from lumos.errors import UserError
from lumos.generation.cache import Cache
from lumos.generation.compress import Compress
from lumos.generation.policy import FullCache, Window, keep_index
from lumos.generation.sampler import row_keys
from lumos.generation.session import Session
from lumos.generation.storage import AsComputed, Int8, quantise
from lumos.sequence.arrangement import Compact
from lumos.sequence.tokens import Tokens
from lumos.slots import slot
from lumos.training.transformer_objective import TransformerObjective
from lumos.videos.generator import make_engine

BATCH = 16
LEARNT = {
    "corruption__level": slot("uniform"), "corruption__frames": slot("clean_prefix"), "generate__history_ratio": 0.0,
    "generate__guidance": slot("none"), "model__init_std": 0.1, "model__visual_vocab": 8,
}  # fmt: skip


def clips(seed):
    """Pictures of one code, which is one more in every frame."""
    config = tiny.transformer(data__batch_size=BATCH, **LEARNT)
    batch = tiny.token_batch(config, seed)
    return batch | {
        "tokens": (batch["tokens"][:, :1, :1, :1] + np.arange(3)[:, None, None] + np.zeros((4, 4), int)) % 8
    }


@pytest.fixture(scope="module")
def trained():
    """A transformer of two layers that has learnt how these clips go on."""
    config, num = tiny.transformer(data__batch_size=BATCH, **LEARNT), 100
    objective = TransformerObjective(config)
    params, adam = objective.definition.init(jax.random.key(0)), optax.adam(optax.cosine_decay_schedule(1e-2, num))

    @jax.jit
    def steps(params, state, batches):
        def step(carry, i_and_batch):
            (params, state), (i, batch) = carry, i_and_batch
            loss = lambda params: (lambda out: out.sum / out.weight)(objective.loss(params, batch, jax.random.key(i)))
            updates, state = adam.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), (jnp.arange(num), batches))[0][0]

    batches = jax.tree.map(lambda *x: np.stack(x), *(clips(seed) for seed in range(num)))
    return config, objective, steps(params, adam.init(params), batches)


@pytest.fixture(scope="module")
def random():
    return setup(model__init_std=0.3, model__dtype="bfloat16")


def begin(run, storage, batch=None, cache=None, given=1):
    config, objective, params, *rest = run
    batch = batch or rest[0]
    settings = dataclasses.replace(config.generate, storage=storage, cache=cache or FullCache())
    session = Session(make_engine(config, objective.definition, settings=settings), params)
    session.prefill(batch["text"], batch["text_length"], row_keys(1, len(batch["text"])), batch["tokens"][:, :given])
    return session


@pytest.mark.slow
def test_a_trained_model_makes_the_same_video(trained):
    batch = clips(1000)
    made = [np.stack(list(begin(trained, storage, batch).frames(2)), axis=1) for storage in (AsComputed(), Int8())]
    assert (made[0] == batch["tokens"][:, 1:]).mean() > 0.9  # it has learnt what follows
    assert (made[0] != made[1]).mean() < 0.01


@pytest.mark.parametrize("axis", [2, 4])
def test_an_integer_is_half_a_step_off_at_most(axis):
    x = jax.random.normal(jax.random.key(0), (2, 3, 16, 2, 32)) * jnp.exp(jax.random.normal(jax.random.key(1), (32,)))
    codes, scale = quantise(x, axis)
    assert codes.dtype == jnp.int8 and int(jnp.abs(codes).max()) == 127 and scale.shape[axis] == 1
    assert (jnp.abs(codes * scale - x) <= scale * (0.5 + 1e-4)).all()


def test_keys_with_large_channels_are_kept_well():
    """Scales for each channel, not each token: with two channels 20 times as large the keys of the others survive."""
    x = jax.random.normal(jax.random.key(0), (1, 1, 64, 1, 32)).at[..., :2].multiply(20.0)
    error = [float(jnp.abs((lambda c, s: c * s)(*quantise(x, axis)) - x)[..., 2:].max()) for axis in (2, 4)]
    assert error[0] * 5 < error[1]


def prefilled(run, storage, **settings):
    """Shapes of the cache behind a prompt."""
    config, objective, params, batch = run
    settings = dataclasses.replace(config.generate, storage=storage, **settings)
    engine = make_engine(config, objective.definition, settings=settings)
    text = batch["text"], batch["text_length"], batch["tokens"]
    return jax.eval_shape(lambda keys: engine.prefill(params, *text, keys, 0), row_keys(1, 2)).cache


def test_half_the_bytes(random):
    """One byte in place of two; a number for each token of the values, and one for each channel of the text and of three frames."""
    sizes = [prefilled(random, storage, cache=Window(width=3, sink=1)).num_bytes for storage in (AsComputed(), Int8())]
    slots = 6 + 3 * 16
    numbers, tables = 2 * 4 * slots * 32 * 2, (11 * slots + 1) * 4  # 2 layers and 4 rows of keys and of values
    assert sizes == [2 * numbers + tables, numbers + 4 * 2 * 4 * (slots + 4 * 32) + tables + 4 * slots]
    # Markers behind the last group, which are never cached, have a block too.
    marked = prefilled(setup(**ARRANGEMENTS["lumos1"]), Int8())
    assert marked.scales.block.shape == marked.k.shape[2:3] and marked.scales.k.shape[2] == 1 + 4 + 1


def test_blocks_stay_what_they_are_when_others_are_dropped_and_written():
    """A new group takes the block of a dropped one; nothing else changes by a bit."""
    config, objective, *_ = setup()
    layout = make_engine(config, objective.definition).layout
    first, slots = layout.prefix_length, layout.prefix_length + 48
    x = jax.random.normal(jax.random.key(0), (2, 2, 1, 2, slots + 16, 2, 32))
    k, v = x[0, :, 0, :, :slots], x[1, :, 0, :, :slots]
    new = tuple(x[:, :, 0, :, slots:])
    tokens = Tokens(*(jnp.asarray(field[:slots]) for field in layout.tokens))
    slot_S = jnp.arange(slots)
    index = keep_index((slot_S < first) | (slot_S >= first + 16))

    @jax.jit
    def written():
        k_stored, v_stored, scales = Int8().pack(k, v, first, 16)
        cache = Cache(k_stored, v_stored, tokens, jnp.int32(slots), scales=scales)
        return cache, cache.gather(index).write(new, layout.tokens.at(slice(0, 16)), 16)

    cache, after = written()
    blocks = np.asarray(after.scales.block)[[0, *range(first, slots, 16)]]
    np.testing.assert_array_equal(blocks, [0, 2, 3, 1])
    kept = np.asarray(index[: slots - 16])
    for axis, was, now, fresh in zip((2, 4), cache.read("float32"), after.read("float32"), new):
        np.testing.assert_array_equal(was[:, :, kept], now[:, :, : slots - 16])
        codes, scale = quantise(fresh, axis)
        np.testing.assert_array_equal(now[:, :, slots - 16 :], codes * scale)


def test_another_prompt_and_what_does_not_go_together(random):
    config, objective, params, batch = run = random
    session = begin(run, Int8())
    text = np.roll(batch["text"], 1, axis=0)
    session.switch(text, batch["text_length"], "keep")
    cold = begin(run, Int8(), batch | {"text": text})
    first = session._engine.layout.prefix_length
    for got, want in zip(session.state.cache.read("float32"), cold.state.cache.read("float32")):
        np.testing.assert_allclose(got[:, :, :first], want[:, :, :first], atol=1e-5)
    with pytest.raises(UserError, match="which the cache 'compress' breaks up"):
        begin(run, Int8(), cache=Compress())
    changed = dataclasses.replace(
        config, sequence=dataclasses.replace(config.sequence, layout=Compact(block=(1, 1, 2)))
    )
    with pytest.raises(UserError, match="of 4 tokens at least"):
        begin((changed, objective, params, batch), Int8())
