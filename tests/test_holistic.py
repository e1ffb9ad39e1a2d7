"""The tokenizer of learnt queries: shapes, its prior, and that a transformer can train on its tokens."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lumos.config import AdversarialConfig, Config, DataConfig, OptimizerConfig, TokenizerConfig
from lumos.errors import UserError
from lumos.geometry import token_shape
from lumos.tokenizers.causal_vae import make_definition
from lumos.tokenizers.holistic import Prior, position_codes
from lumos.tokenizers.objective import TokenizerObjective
from lumos.tokenizers.pretrained import Tokenizer
from lumos.tokenizers.quantizer_factory import make_quantizer

TINY = TokenizerConfig(
    body="holistic",
    clip=(5, 16, 32),
    num_queries=6,
    channels=32,
    quantizer="svq",
    levels=(16,),
    code_dim=4,
    prior_weight=0.06,
)


@pytest.fixture(scope="module")
def objective():
    return TokenizerObjective(
        Config(
            task="tokenizer",
            tokenizer=TINY,
            data=DataConfig(buckets=((5, 16, 32),)),
            optimizer=OptimizerConfig(ema_decay=0),
        )
    )


@pytest.fixture(scope="module")
def params(objective):
    """Random weights everywhere, so that no branch is zero."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: 0.2 * rng.normal(size=x.shape).astype(np.float32), objective.definition.abstract)


def test_a_clip_becomes_a_row_of_tokens_and_back(params):
    tokenizer = Tokenizer(TINY, params["vae"])
    video = np.random.default_rng(0).integers(0, 256, (3, 5, 16, 32, 3)).astype(np.uint8)
    tokens = tokenizer.encode(video)
    assert tokens.shape == (3, 1, 1, 6) and token_shape(TINY, 5, 16, 32) == (1, 1, 6)
    assert 0 <= tokens.min() and tokens.max() < tokenizer.codebook_size == 16
    pixels = tokenizer.decode(tokens)
    assert pixels.shape == video.shape and pixels.dtype == np.uint8
    other = tokens.copy()
    other[0, 0, 0, 2] = (other[0, 0, 0, 2] + 1) % 16
    changed = tokenizer.decode(other).astype(int) != pixels  # one token speaks about the whole clip
    assert changed[0].any(axis=(1, 2, 3)).all() and not changed[1:].any()
    with pytest.raises(UserError, match="no stream"):
        tokenizer.stream()


def test_loss_has_the_prior_and_gradients_reach_everything(objective, params):
    batch = {"video": np.random.default_rng(1).integers(0, 256, (2, 5, 16, 32, 3)).astype(np.uint8)}

    def mean_loss(params):
        out = objective.loss(params, batch, jax.random.key(0), 0)
        return out.sum / out.weight, out.metrics

    (loss, metrics), grads = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))(params)
    assert {"prior", "commitment", "codebook"} <= set(metrics) and np.isfinite(loss)
    assert 0 < metrics["prior"] / 2 / 0.06 < 100
    dead = [jax.tree_util.keystr(p) for p, g in jax.tree_util.tree_leaves_with_path(grads) if not np.abs(g).max() > 0]
    assert not dead, dead
    assert set(objective.summarize(jax.tree.map(np.asarray, jax.jit(objective.evaluate_batch)(params, batch)))) >= {
        "psnr",
        "usage",
    }


def test_remat_changes_no_gradient(objective, params):
    video = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (1, 5, 16, 32, 3)), jnp.float32)
    gradients = []
    for remat in (False, True):
        definition = make_definition(dataclasses.replace(TINY, remat=remat))
        loss = lambda p, definition=definition: jnp.square(definition.bind(p).reconstruct(video)[0]).sum()
        gradients.append(jax.jit(jax.grad(loss))(params["vae"]))
        assert ("remat" in str(jax.make_jaxpr(loss)(params["vae"]))) == remat
    scale = max(np.abs(g).max() for g in jax.tree.leaves(gradients[0]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), *gradients)


def test_the_adversarial_stage_takes_a_holistic_body():
    """Both players and the prior in one loss; the adaptive weight finds the decoder's last layer."""
    config = Config(
        task="tokenizer",
        tokenizer=dataclasses.replace(TINY, outer_norm=True),  # a field of the causal body, without effect here
        data=DataConfig(buckets=((5, 16, 32),)),
        adversarial=AdversarialConfig(weight=0.2, channels=8, num_layers=2, feature_weight=0.5, lecam_weight=0.05),
    )
    objective, rng = TokenizerObjective(config), np.random.default_rng(0)
    params = jax.tree.map(lambda x: 0.2 * rng.normal(size=x.shape).astype(np.float32), objective.definition.abstract)
    batch = {"video": rng.integers(0, 256, (2, 5, 16, 32, 3)).astype(np.uint8)}

    @jax.jit
    def step(params):
        run = lambda params: objective.loss(params, batch, jax.random.key(0), 5)
        out, grads = _value_aux_grad(run, params)
        return (
            {name: value / out.weight for name, value in out.metrics.items()},
            grads,
            objective.update_statistics(params, out.statistics),
        )

    metrics, grads, updated = step(params)
    assert {"prior", "generator", "discriminator", "lecam"} <= set(metrics)
    assert all(np.isfinite(value) for value in metrics.values()) and metrics["adaptive_weight"] > 0
    for player in ("vae", "discriminator"):
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads[player]))
    assert np.abs(grads["vae"]["encoder"]["queries"]).max() > 0
    assert np.abs(grads["discriminator"]["video"]["conv0"]["kernel"]).max() > 0
    means = [tree["discriminator"]["mean_logits"] for tree in (params, updated)]
    assert np.abs(means[1] - means[0]).max() > 0


def _value_aux_grad(run, params):
    """Return the loss that `run` returns, and the gradient of its sum."""
    (_, loss), grads = jax.value_and_grad(lambda p: (lambda out: (out.sum, out))(run(p)), has_aux=True)(params)
    return loss, grads


def test_prior_is_autoregressive_and_uses_its_table():
    prior = Prior(4, TINY, nnx.Rngs(0))
    rng = np.random.default_rng(0)
    table = rng.normal(size=(8, 4)).astype(np.float32)
    codes, indices = jnp.asarray(rng.normal(size=(1, 5, 4)), jnp.float32), jnp.array([[0, 1, 2, 3, 4]])
    per_code = jax.jit(jax.grad(lambda codes: prior.loss(codes, indices, table)))(codes)
    assert np.abs(per_code[0, :-1]).max() > 0 and not np.abs(per_code[0, -1]).max()  # the last code predicts nothing
    assert not np.abs(jax.jit(jax.grad(lambda table: prior.loss(codes, indices, table)))(table)).max()


def test_stochastic_quantiser_draws_in_training_and_takes_the_nearest_after():
    svq = make_quantizer(TokenizerConfig(quantizer="svq", levels=(2,), code_dim=2), nnx.Rngs(0))
    svq.codebook[...] = jnp.array([[3.0, 0.0], [0.0, 2.0]])
    z = jnp.tile(jnp.array([[1.02, 1.0]]) * 7, (4000, 1))
    assert (svq(z).indices == 0).all()
    np.testing.assert_allclose(svq(z).codes[0], [1, 0], atol=1e-6)
    gap = 0.02 / np.hypot(1.02, 1.0) / 0.03
    share = float((svq(z, jax.random.key(0)).indices == 0).mean())
    assert share == pytest.approx(1 / (1 + np.exp(-gap)), abs=0.03)


def test_the_entropy_loss_of_the_stochastic_quantiser_is_least_where_all_codes_are_used():
    svq = make_quantizer(TokenizerConfig(quantizer="svq", levels=(2,), code_dim=2, entropy_weight=0.5), nnx.Rngs(0))
    svq.codebook[...] = jnp.eye(2)
    collapsed, spread = (svq(z).losses["entropy"] for z in (jnp.array([[1.0, 0], [1, 0]]), jnp.eye(2)))
    np.testing.assert_allclose([collapsed, spread], [0, -0.5 * np.log(2)], atol=1e-6)


def test_position_codes_tell_positions_apart():
    codes = position_codes((2, 3, 4), 32)
    assert codes.shape == (24, 32) and len(np.unique(codes.round(5), axis=0)) == 24


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"body": "holistic"}, "needs num_queries"),
        ({"body": "holistic", "num_queries": 4, "clip": (5, 16, 16), "channels": 48}, "multiple of 32"),
        ({**vars(TINY), "quantizer": "fsq", "levels": (4, 4)}, "prior_weight"),
        ({**vars(TINY), "clip": (5, 32, 32)}, "a clip has size"),
        ({"prior_weight": 0.06}, "prior_weight is for body 'holistic'"),
    ],
)
def test_what_does_not_fit_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        Config(tokenizer=TokenizerConfig(**fields), data=DataConfig(buckets=((5, 16, 32),)))


def test_the_causal_body_is_the_default():
    assert (
        type(make_definition(TokenizerConfig()).bind(make_definition(TokenizerConfig()).abstract)).__name__
        == "CausalVAE"
    )


def test_at_the_start_a_token_already_depends_most_on_the_patch_at_its_place():
    """Without it a short run learns the mean of all pixels and stays there. 16 patches of 8x8 (2, 2, 4), as many queries."""
    config = dataclasses.replace(TINY, num_queries=16, channels=96, num_res_blocks=2)
    definition = make_definition(config)
    latents = jax.jit(lambda video: definition.bind(params).latents(video)[0, 0, 0])
    params = definition.init(jax.random.key(0))
    video = jax.random.uniform(jax.random.key(1), (1, 5, 16, 32, 3), minval=-1)
    hits = 0
    for patch in range(8):  # those of the first frame
        row, column = 8 * (patch // 4), 8 * (patch % 4)
        changed = latents(video.at[:, 0, row : row + 8, column : column + 8].multiply(-1))
        hits += int(np.argmax(np.linalg.norm(changed - latents(video), axis=1)) == patch)
    assert hits >= 6


def test_queries_beyond_the_patches_start_at_places_of_their_own():
    params = make_definition(dataclasses.replace(TINY, num_queries=25)).init(jax.random.key(0))
    queries = np.asarray(params["encoder"]["queries"])
    assert len(np.unique(queries.round(4), axis=0)) == 25
