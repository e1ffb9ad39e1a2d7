"""Heads of other kinds than a softmax: what they give is a distribution over codes, and they draw from it."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
import tiny
from recompute import Recompute

from lumos.errors import UserError
from lumos.generation.plan import Diagonal
from lumos.generation.policy import Window
from lumos.generation.sampler import row_keys
from lumos.generation.session import Session
from lumos.model.continuous_heads import Flow, Mixture, digits, nearest, points
from lumos.model.copy_head import Copy
from lumos.model.heads import Categorical, Context
from lumos.slots import slot
from lumos.training.transformer_objective import TransformerObjective
from lumos.videos.generator import make_engine

LEVELS = (5, 2, 3)
PLAIN = lambda logits: logits


def setup(head, **changes):
    defaults = dict(
        sequence__grid=(3, 2, 3), sequence__text_length=4, data__batch_size=2, model__init_std=0.3, model__attention="dense",
        corruption__text_drop=0.0, model__head=head,
    )  # fmt: skip
    config = tiny.transformer(**(defaults | changes))
    objective = TransformerObjective(config)
    return config, objective, objective.definition.init(jax.random.key(0)), tiny.token_batch(config)


def gumbel(seed=0):
    return lambda start, cells, codes, factor=0: jax.random.gumbel(
        jax.random.fold_in(jax.random.key(seed), start * 10 + factor), (1, cells, codes)
    )


def test_codes_are_points_and_back():
    codes = jnp.arange(30)
    z = points(codes, LEVELS)
    np.testing.assert_array_equal(nearest(z, LEVELS), codes)
    half = 1 / np.array(LEVELS)
    np.testing.assert_array_equal(nearest(z + 0.99 * half * np.array([1, -1, 1]), LEVELS), codes)
    assert sorted(set(np.asarray(z[:, 1]).tolist())) == [-0.5, 0.5] and np.abs(z).max() < 1
    np.testing.assert_array_equal(sum(d * s for d, s in zip(digits(codes, LEVELS), (1, 5, 10))), codes)


@pytest.fixture(scope="module")
def mixture():
    config, objective, params, batch = setup(slot("mixture", levels=LEVELS, components=3))
    return config, objective, params, batch, objective.definition.bind(params)


@pytest.mark.slow
def test_a_mixture_gives_every_code_the_mass_of_its_cell(mixture):
    config, objective, params, batch, model = mixture
    features = 2 * jax.random.normal(jax.random.key(1), (1, 4, config.model.model_dim))
    log_p = np.asarray(config.model.head.log_probabilities(model, features))
    np.testing.assert_allclose(np.exp(log_p).sum(-1), 1, rtol=1e-5)
    weights, mean, log_scale = (np.asarray(x, np.float64) for x in model.lm_head.parameters_of(features))
    want = 0
    for k, share in enumerate(np.moveaxis(scipy.special.softmax(weights, -1), -1, 0)):
        of_code = share[..., None]
        for i, (n, digit) in enumerate(zip(LEVELS, digits(np.arange(30), LEVELS))):
            edges = np.array([-np.inf, *np.linspace(-1, 1, n + 1)[1:-1], np.inf])
            cdf = scipy.stats.norm.cdf(edges, mean[..., k, i, None], np.exp(log_scale[..., k, i, None]))
            of_code = of_code * np.diff(cdf)[..., digit]
        want = want + of_code
    np.testing.assert_allclose(np.exp(log_p), want, rtol=2e-4, atol=1e-7)
    codes = jnp.array([[0, 7, 19, 29]])
    nll = config.model.head.loss(model, features, codes, jnp.ones((1, 4)), chunk=4).nll
    np.testing.assert_allclose(nll[0], -log_p[0, np.arange(4), codes[0]], rtol=1e-5)


def test_a_mixture_far_from_a_code_still_has_a_gradient(mixture):
    config, _, params, _, model = mixture
    features = 20.0 * jnp.ones((1, 1, config.model.model_dim))
    nll = lambda features, code: config.model.head.loss(model, features, code, jnp.ones((1, 1)), chunk=1).loss.sum()
    with_grad = jax.jit(jax.value_and_grad(nll))
    for code in range(30):
        value, grad = with_grad(features, jnp.array([[code]]))
        assert np.isfinite(value) and np.isfinite(grad).all() and np.abs(grad).sum() > 0


def test_a_flow_along_straight_lines_ends_in_the_data():
    """With one code for each position the best velocity is (point - z) / (1 - t), whose Euler steps end there exactly."""
    head, codes = Flow(levels=LEVELS, steps=3), jnp.array([[3, 17, 29, 0]])
    model = types.SimpleNamespace(lm_head=lambda features, z, t: (points(codes, LEVELS) - z) / (1 - t))
    features, context = jnp.zeros((1, 4, 8)), Context(None, jax.random.key(0))
    drawn, _ = head.draw(model, features, gumbel(), PLAIN, None, 4)
    np.testing.assert_array_equal(drawn, codes)
    out = head.loss(model, features, codes, jnp.ones((1, 4)), context, chunk=4)
    np.testing.assert_allclose(out.loss, 0, atol=1e-8)
    assert out.correct.all()


@pytest.mark.slow
@pytest.mark.parametrize("head", [
    pytest.param(slot("mixture", levels=LEVELS), marks=pytest.mark.slow), slot("flow", levels=LEVELS, steps=8),
])  # fmt: skip
def test_continuous_heads_learn_which_code_follows(head):
    """In clips that count upwards by 7, generation does after 150 steps."""
    config, objective, params, batch = setup(
        head, data__batch_size=8, model__init_std=0.02, sequence__layout=slot("compact", block=(1, 1, 1)),
        sequence__targets=slot("next"), loss__weights=slot("all"), corruption__level=slot("constant", ratio=0.0),
        generate__sampler=slot("random"), generate__guidance=slot("none"),
    )  # fmt: skip
    tokens = (np.arange(8)[:, None] * 3 + np.arange(18) * 7) % 30
    batch = batch | {"tokens": tokens.reshape(8, 3, 2, 3).astype(np.int32)}
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params, state, key):
        grads = jax.grad(lambda p: objective.loss(p, batch, key).sum / tokens.size)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for i in range(150):
        params, state = step(params, state, jax.random.key(i))
    engine = make_engine(config, objective.definition)
    decode = jax.jit(engine.decode, static_argnums=5)
    codes = decode(params, batch["text"], batch["text_length"], batch["tokens"], row_keys(0, 8), 0)
    assert (np.diff(np.asarray(codes).reshape(8, -1)) % 30 == 7).mean() > 0.9


def test_a_head_without_probabilities_is_not_ranked_by_them():
    config, objective, *_ = setup(slot("flow", levels=LEVELS))
    with pytest.raises(UserError, match="head 'flow' gives no probabilities, which sampler 'confidence' ranks by"):
        make_engine(config, objective.definition)
    with pytest.raises(UserError, match="head.levels=.* make 25 codes, but there are 30"):
        setup(slot("flow", levels=(5, 5)))


# Copying -------------------------------------------------------------------------------------------------------------

COPY = dict(sequence__copies=2, corruption__frames=slot("independent"), corruption__cells=slot("frame"))


def test_a_copy_head_is_a_mixture_of_pointers_and_a_softmax():
    config, objective, params, batch = setup(slot("copy", reach=1), **COPY)
    head, model = config.model.head, objective.definition.bind(params)
    rng = np.random.default_rng(0)
    before = rng.integers(-1, 5, (1, 2, 2, 3))
    features = jnp.asarray(rng.normal(size=(1, 12, config.model.model_dim)), jnp.float32)
    context = Context(jnp.asarray(before, jnp.int32))
    v = objective.layout.vocabulary
    made = jax.nn.softmax(features @ model.lm_head.kernel[...][:, v.visual_start : v.visual_end])
    gates = np.asarray(features @ model.lm_head.gates.kernel[...])
    want = np.zeros((12, 30))
    for j, (t, y, x) in enumerate(np.ndindex(2, 2, 3)):
        near = [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        codes = [before[0, t, a, b] if 0 <= a < 2 and 0 <= b < 3 else -1 for a, b in near]
        share = scipy.special.softmax([*np.where(np.array(codes) < 0, -np.inf, gates[0, j, :-1]), gates[0, j, -1]])
        want[j] = share[-1] * np.asarray(made)[0, j]
        for code, s in zip(codes, share):
            want[j, code] += s if code >= 0 else 0

    def log_p_of(code):
        take = lambda logits, noise: (jnp.argmax(logits, -1), logits[..., code])
        return head.draw(model, features, gumbel(), PLAIN, take, 12, context=context)[1]

    np.testing.assert_allclose(np.exp(jax.jit(jax.vmap(log_p_of))(jnp.arange(30)))[:, 0].T, want, rtol=1e-4, atol=1e-7)
    codes = jnp.asarray(rng.integers(0, 5, (1, 12)))
    nll = head.loss(model, features, codes, jnp.ones((1, 12)), context, chunk=5).nll
    np.testing.assert_allclose(np.exp(-nll[0]), want[np.arange(12), codes[0]], rtol=1e-4)
    nothing = Context(jnp.full_like(context.before_BTHW, -1))
    got, plain = (h.loss(model, features, codes, jnp.ones((1, 12)), nothing, chunk=5) for h in (head, Categorical()))
    np.testing.assert_allclose(got.loss, plain.loss, rtol=1e-6)
    np.testing.assert_array_equal(got.correct, plain.correct)


@pytest.fixture(scope="module")
def copying():
    return setup(slot("copy", reach=1), **COPY, generate__steps=2, generate__history_ratio=0.3)


@pytest.mark.fast("changes1")
@pytest.mark.parametrize("changes", [{}, {"plan": Diagonal(passes=1)}])
def test_generation_copies_what_it_sees(copying, changes):
    config, objective, params, batch = copying
    settings = dataclasses.replace(config.generate, **changes)
    engine = make_engine(config, objective.definition, settings=settings)
    given = batch["tokens"]
    arguments = (params, batch["text"], batch["text_length"], given, row_keys(3, 2), 1)
    got = jax.jit(engine.decode, static_argnums=5)(*arguments)
    np.testing.assert_array_equal(got, Recompute(config, objective.definition, settings=settings)(*arguments))


def test_a_session_takes_back_what_it_copied(copying):
    config, objective, params, batch = copying
    settings = dataclasses.replace(config.generate, cache=Window(width=2, sink=0))
    session = Session(make_engine(config, objective.definition, settings=settings, undo=2), params)
    session.prefill(batch["text"], batch["text_length"], row_keys(1, 2))
    frames = list(session.frames(3))
    newest = np.asarray(session.state.newest_BP)
    hidden = newest == -1
    np.testing.assert_array_equal(newest[~hidden], frames[-1].reshape(2, -1)[~hidden])
    assert hidden.sum(-1).tolist() == [round(0.3 * 6)] * 2
    session.rewind(2)
    np.testing.assert_array_equal(list(session.frames(2)), frames[1:])


def test_copying_needs_frames():
    config, objective, *_ = setup(slot("copy"), sequence__layout=slot("compact", block=(1, 1, 1)))
    with pytest.raises(UserError, match="head 'copy' reads the frame before: use layout 'compact'"):
        make_engine(config, objective.definition)
    with pytest.raises(UserError, match="config.loss.z_loss=0.1 does not go with model.head='copy'; set it to 0"):
        config, objective, params, batch = setup(slot("copy"), loss__z_loss=0.1)
        jax.eval_shape(objective.loss, params, batch, jax.random.key(0))


def test_members():
    with pytest.raises(ValueError, match="reach=-1"):
        Copy(reach=-1)
    with pytest.raises(ValueError, match="components=0"):
        Mixture(components=0)
    with pytest.raises(ValueError, match="levels=\\(1,\\)"):
        Flow(levels=(1,))
