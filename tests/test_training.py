import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from lumos import config_loading, sharding
from lumos.config import MeshConfig, OptimizerConfig
from lumos.errors import UserError
from lumos.model import flops
from lumos.objective import Loss, Objective
from lumos.sequence.corruption import Corrupted
from lumos.sequence.rule import count_pairs
from lumos.training import state as state_lib
from lumos.training.from_config import make_objective
from lumos.training.optimizer import decays, make_optimizer, make_schedule
from lumos.training.state import TrainState, abstract_state, create_state, state_shardings
from lumos.training.step import make_train_step
from lumos.training.transformer_objective import TransformerObjective


def _losses(config, num_devices=1, steps=3, objective_class=TransformerObjective):
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:num_devices])
    objective = objective_class(config)
    optimizer = make_optimizer(config.optimizer, 100)
    with jax.set_mesh(mesh):
        state = create_state(objective.definition, optimizer, mesh, seed=0, ema=True)
        step = make_train_step(objective, optimizer, config, mesh)
        losses = []
        for s in range(steps):
            state, metrics = step(state, sharding.put_batch(mesh, tiny.token_batch(config, seed=s)))
            losses.append(float(metrics["loss"]))
    return losses, state


@pytest.fixture(scope="module")
def reference():
    return _losses(tiny.transformer(optimizer__learning_rate=1e-2))


_slow = pytest.mark.slow


@pytest.mark.fast("shape0")
@pytest.mark.parametrize("shape", [
    {"fsdp": 4, "tensor": 2}, {"fsdp": 2, "context": 4},
    pytest.param({"fsdp": 8}, marks=_slow), pytest.param({"replica": 2, "fsdp": 4}, marks=_slow),
])  # fmt: skip
def test_eight_devices_give_the_losses_of_one(reference, shape):
    config = tiny.transformer(optimizer__learning_rate=1e-2, model__num_kv_heads=2)
    one, _ = _losses(config)
    config = dataclasses.replace(config, mesh=MeshConfig(**{"fsdp": 1, **shape}))
    eight, state = _losses(config, num_devices=8)
    np.testing.assert_allclose(eight, one, atol=1e-5)
    q_proj = state.params["layers"]["self_attn"]["q_proj"]["kernel"]
    assert q_proj.addressable_shards[0].data.size < q_proj.size


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon", "schedule_free_adamw", "lion"])
def test_no_state_is_silently_replicated(name):
    config = tiny.transformer(optimizer__name=name, model__model_dim=128, model__mlp_dim=256)
    mesh = sharding.make_mesh(MeshConfig(fsdp=8), jax.devices())
    objective, optimizer = TransformerObjective(config), make_optimizer(config.optimizer, 10)
    state = abstract_state(objective.definition, optimizer, mesh, ema=True)
    places = state_shardings(objective.definition, optimizer, mesh, ema=True)
    assert places.ema == places.params
    large = [x for x in jax.tree.leaves(state) if x.size > 1024]  # factored moments of these shapes are 512 and less
    assert len(large) > 20 and not any(x.sharding.is_fully_replicated for x in large)
    if name == "adamw":
        for moment in ("mu", "nu"):
            assert optax.tree_utils.tree_get(places.opt_state, moment) == places.params


def test_schedule_free_evaluates_its_average():
    config = tiny.transformer(optimizer__name="schedule_free_adamw", optimizer__ema_decay=0.0)
    optimizer = make_optimizer(config.optimizer, 10)
    params = {"w": jnp.ones(4)}
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), None)
    for _ in range(3):
        updates, opt_state = optimizer.update({"w": jnp.full(4, 0.1)}, state.opt_state, state.params)
        state = TrainState(state.step, optax.apply_updates(state.params, updates), opt_state, None)
    want = optax.contrib.schedule_free_eval_params(state.opt_state[1], state.params)
    np.testing.assert_array_equal(state.eval_params["w"], want["w"])
    assert np.abs(state.eval_params["w"] - state.params["w"]).max() > 0


class FixedNoise(TransformerObjective):
    """Masks and drops that depend on the rows alone, so that any split of a batch has the same."""

    def _corruption(self, layout, batch, key):
        del key
        mask_BTC = (batch["tokens"] % 3 == 0).reshape(*batch["tokens"].shape[:2], -1)
        drawn = Corrupted(mask_BTC, mask_BTC.mean(-1), jnp.ones(mask_BTC.shape[:2], bool))
        return drawn, batch["text"][:, -1] % 4 == 0


@pytest.mark.slow
@pytest.mark.parametrize("text_weight", [pytest.param(0.0, marks=pytest.mark.slow), 0.7])
def test_accumulation_equals_one_large_batch(text_weight):
    """Every row masks its own number of codes and has its own number of text tokens, or none: means of means are wrong."""
    config = tiny.transformer(optimizer__learning_rate=1e-2, loss__text_weight=text_weight, loss__z_loss=1e-3)
    whole, whole_state = _losses(config, objective_class=FixedNoise)
    for num_micro, mesh in ((2, {}), (8, {}), (2, {"fsdp": 4})):
        parts = dataclasses.replace(
            config,
            train=dataclasses.replace(config.train, accumulation=num_micro),
            mesh=MeshConfig(**{"fsdp": 1, **mesh}),
        )
        losses, state = _losses(parts, num_devices=mesh.get("fsdp", 1), objective_class=FixedNoise)
        np.testing.assert_allclose(losses, whole, rtol=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), state.params, whole_state.params
        )


@pytest.mark.parametrize("seed", range(3))
def test_every_term_of_a_loss_is_a_mean_over_the_whole_step(seed):
    """An objective of three terms with random weights, some of them 0 in whole microbatches, against the closed form."""
    rng = np.random.default_rng(seed)
    names, num_rows = ("a", "b", "c"), 12
    batch = {name: rng.random((num_rows, 2)).astype(np.float32) for name in names}
    for name in names:
        batch[name][:, 1] *= rng.random(num_rows) > 0.5

    class Terms(Objective):
        def weights(self, batch, key):
            return {name: batch[name][:, 1].sum() for name in names}

        def loss(self, params, batch, key, step, extra, totals):
            sums = {name: (jnp.square(params[name] - batch[name][:, 0]) * batch[name][:, 1]).sum() for name in names}
            total = sum(sums[name] / totals[name] * totals["a"] for name in names)
            return Loss(total, batch["a"][:, 1].sum(), {})

    class Model:
        abstract = {name: jax.ShapeDtypeStruct((), jnp.float32) for name in names}
        axes = {name: () for name in names}

    objective = Terms()
    objective.definition = Model()
    want = sum(np.average(np.square(batch[name][:, 0]), weights=batch[name][:, 1]) for name in names)
    slope = [-2 * np.average(batch[name][:, 0], weights=batch[name][:, 1]) for name in names]
    mesh = sharding.make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    for num_micro in (1, 2, 3, 4, 6, 12):
        config = tiny.transformer(data__batch_size=num_rows, train__accumulation=num_micro, optimizer__ema_decay=0.0)
        optimizer = optax.sgd(1.0)
        params = {name: jnp.zeros(()) for name in names}
        state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), None)
        with jax.set_mesh(mesh):
            state, metrics = make_train_step(objective, optimizer, config, mesh)(state, batch)
        np.testing.assert_allclose(metrics["loss"], want, rtol=1e-5)
        np.testing.assert_allclose([state.params[name] for name in names], -np.array(slope), rtol=1e-5)


@pytest.mark.slow
def test_scanned_and_unrolled_layers_and_remat_agree(reference):
    for changes in ({"model__scan_layers": False}, {"model__remat": "full"}, {"model__remat": "dots"}):
        losses, _ = _losses(tiny.transformer(optimizer__learning_rate=1e-2, **changes))
        np.testing.assert_allclose(losses, reference[0], rtol=1e-5)


def test_training_overfits_one_batch():
    config = tiny.transformer(optimizer__learning_rate=3e-3, optimizer__warmup_steps=5, optimizer__schedule="constant")
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    objective, optimizer = TransformerObjective(config), make_optimizer(config.optimizer, 150)
    with jax.set_mesh(mesh):
        state = create_state(objective.definition, optimizer, mesh, seed=0, ema=False)
        step = make_train_step(
            objective,
            optimizer,
            dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, ema_decay=0.0)),
            mesh,
        )
        batch = sharding.put_batch(mesh, tiny.token_batch(config))
        for _ in range(150):
            state, metrics = step(state, batch)
    assert metrics["loss"] < 0.75 * np.log(30)


def test_text_loss_is_reported_and_trains_the_text_head():
    config = tiny.transformer(loss__text_weight=1.0)
    objective = TransformerObjective(config)
    params = objective.definition.init(jax.random.key(0))
    batch = tiny.token_batch(config)
    loss = lambda p: (lambda out: (out.sum / out.weight, out.metrics))(objective.loss(p, batch, jax.random.key(0)))
    grads, metrics = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert metrics["text_nll"] > 0
    assert np.abs(grads["lm_head"]["kernel"][:, : config.model.text_vocab]).max() > 0


def test_frame_cross_entropy_is_binned_by_true_frame():
    config = tiny.transformer(data__buckets=((3, 4, 4),))
    objective = TransformerObjective(config)
    sums = objective.evaluate_batch(objective.definition.init(jax.random.key(0)), tiny.token_batch(config))
    summary = objective.summarize(jax.tree.map(np.asarray, sums))
    np.testing.assert_array_equal(sums["count"], [8 * round(0.7 * 16)] * 3)
    np.testing.assert_allclose(np.mean(summary["frame_nll"]), summary["nll"], rtol=1e-6)
    np.testing.assert_allclose(summary["nll"], np.log(30), rtol=0.1)


def test_evaluations_of_clips_and_images_add_up():
    """Frame 0 has the codes of both buckets, the other frames those of the clips."""
    config = tiny.transformer(data__buckets=((3, 4, 4), (1, 4, 4)))
    objective, clips = TransformerObjective(config), tiny.token_batch(config)
    images = {**clips, "tokens": clips["tokens"][:, :1]}
    params = objective.definition.init(jax.random.key(0))
    evaluate_batch = jax.jit(objective.evaluate_batch)
    parts = [jax.tree.map(np.asarray, evaluate_batch(params, batch)) for batch in (clips, images)]
    both = objective.summarize(jax.tree.map(np.add, *parts))
    count = 8 * round(0.7 * 16)
    assert [list(part["count"]) for part in parts] == [[count] * 3, [count, 0, 0]] and len(both["frame_nll"]) == 3
    nll = [part["nll"].sum() for part in parts]
    assert both["nll"] == pytest.approx(sum(nll) / (4 * count), rel=1e-6)
    assert both["frame_nll"][0] == pytest.approx((parts[0]["nll"][0] + nll[1]) / (2 * count), rel=1e-6)
    assert len(objective.summarize(parts[1])["frame_nll"]) == 1


def test_text_loss_of_images_under_context_parallelism_is_that_of_one_device():
    config = tiny.transformer(loss__text_weight=1.0, model__num_kv_heads=2, corruption__text_drop=0.0)
    objective, batch = TransformerObjective(config), tiny.token_batch(config)
    batch["tokens"] = batch["tokens"][:, :1]
    params, losses = objective.definition.init(jax.random.key(0)), []
    for context in (1, 4):
        mesh = sharding.make_mesh(MeshConfig(fsdp=1, context=context), jax.devices()[:context])
        with jax.set_mesh(mesh):
            out = jax.jit(objective.loss)(params, sharding.put_batch(mesh, batch), jax.random.key(0))
            losses.append([float(out.sum / out.weight), float(out.metrics["text_nll"] / out.weight)])
    np.testing.assert_allclose(*losses, rtol=1e-5)


def _flops_with_dense_attention(config, objective):
    """The formula, with every pair and every position of the loss: what the dense oracle computes."""
    m, plan, rule = config.model, objective.layout, config.sequence.attention
    invisible = plan.length**2 - count_pairs(plan, rule)
    return 8 * (
        flops.forward_flops(m, plan, rule, m.visual_vocab)
        + 4 * m.num_layers * m.num_heads * m.head_dim * invisible
        # A chunk of the loss holds all kinds of positions, the formula only those with a code.
        + 2 * m.model_dim * m.visual_vocab * (plan.length - len(plan.visual_index))
    )


def test_flop_formula_equals_the_jaxpr():
    config = tiny.transformer(model__attention="dense")
    objective, batch = TransformerObjective(config), tiny.token_batch(config)
    counted = flops.count_matmul_flops(
        lambda p: objective.loss(p, batch, jax.random.key(0)).sum, objective.definition.abstract
    )
    np.testing.assert_allclose(counted, _flops_with_dense_attention(config, objective), rtol=1e-6)


def test_flops_are_those_that_xla_counts():
    """XLA counts elementwise work too, and a loop once: layers are unrolled and computed once, and matrices large beside vectors."""
    wide = {"model_dim": 128, "mlp_dim": 256, "visual_vocab": 512}
    config = tiny.transformer(
        model__attention="dense",
        model__scan_layers=False,
        model__remat="none",
        **{f"model__{name}": size for name, size in wide.items()},
    )
    objective, batch = TransformerObjective(config), tiny.token_batch(config)
    formula = _flops_with_dense_attention(config, objective)
    loss = lambda p: objective.loss(p, batch, jax.random.key(0)).sum
    forward = jax.jit(loss).lower(objective.definition.abstract).cost_analysis()["flops"]
    assert formula < forward < 1.03 * formula
    backward = jax.jit(jax.grad(loss)).lower(objective.definition.abstract).cost_analysis()["flops"]
    logits_again = 8 * 2 * config.model.model_dim * config.model.visual_vocab * objective.layout.length
    assert 3 * formula + logits_again < backward < 1.03 * (3 * formula + logits_again)


def test_schedules():
    for name, last in (("cosine", 0.1), ("wsd", 0.1), ("constant", 1.0)):
        schedule = make_schedule(OptimizerConfig(learning_rate=1.0, schedule=name, warmup_steps=10), 100)
        assert 0 < schedule(0) < 0.2 and np.isclose(schedule(10), 1.0)
        np.testing.assert_allclose(schedule(100), last, atol=1e-6)
    wsd = make_schedule(OptimizerConfig(learning_rate=1.0, schedule="wsd", warmup_steps=10, decay_fraction=0.2), 100)
    assert wsd(79) == 1.0 and wsd(85) < 1.0


@pytest.mark.fast("adamw", "muon")
@pytest.mark.parametrize("name", ["adamw", pytest.param("lion", marks=_slow), "muon", "sgd", "adafactor"])
def test_optimizers_by_name_take_a_step(name):
    config = tiny.transformer(optimizer__name=name)
    losses, _ = _losses(config, steps=2)
    assert np.isfinite(losses).all()


@pytest.mark.fast("adamw-matrices", "muon-matrices", "adafactor-all", "lamb-all")
@pytest.mark.parametrize("decay", ["matrices", "all"])
@pytest.mark.parametrize("name", ["adamw", "lion", "muon", "sgd", "adafactor", "adagrad", "lamb"])
def test_weight_decay_acts_by_rule_with_every_optimizer(name, decay):
    """Without gradients an update is the decay alone: -learning rate * weight_decay * parameter."""
    config = tiny.transformer(model__attention_bias=True, model__mlp_bias=True).optimizer
    config = dataclasses.replace(
        config, name=name, schedule="constant", warmup_steps=0, learning_rate=0.25, weight_decay=0.5, decay=decay
    )
    definition = TransformerObjective(tiny.transformer(model__attention_bias=True, model__mlp_bias=True)).definition
    params = jax.tree.map(lambda x: jnp.ones(x.shape), definition.abstract)
    optimizer = make_optimizer(config, 10)
    gradients = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(optimizer.update)(gradients, jax.jit(optimizer.init)(params), params)
    spared = {"bias"} | {"weight"} if decay == "matrices" else set()  # of linear layers and norms
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        if name == "lamb":  # scales the step to the size of the parameter
            assert bool(np.any(update)) == (path[-1].key not in spared)
        else:
            want = 0.0 if path[-1].key in spared else -0.125
            np.testing.assert_allclose(update, want, rtol=1e-6, err_msg=str(path))


def test_of_a_tokenizer_kernels_and_tables_decay():
    params = {"conv": {"kernel": np.ones((3, 3, 4, 4)), "bias": np.ones(4)}, "norm1": {"scale": np.ones(4)}}
    params["layers"] = {"q_norm": {"weight": np.ones((2, 3, 8))}, "gate": {"kernel": np.ones((2, 4, 4))}}
    assert decays(params) == {
        "conv": {"kernel": True, "bias": False},
        "norm1": {"scale": False},
        "layers": {"q_norm": {"weight": False}, "gate": {"kernel": True}},
    }


def test_blocks_of_a_holistic_tokenizer_decay_as_other_layers_do():
    """They are numbered, not stacked: a kernel has two axes of its own."""
    config = config_loading.default()
    config.task, config.data.buckets = "tokenizer", ((5, 32, 32),)
    changes = {"body": "holistic", "channels": 32, "clip": (5, 32, 32), "num_queries": 4, "quantizer": "svq"}
    config.tokenizer.update(changes | {"levels": (16,), "temporal_compression": 4, "patch_size": 4})
    blocks = decays(make_objective(config_loading.parse(config)).definition.abstract)["vae"]["encoder"]["blocks"]
    block = blocks["layers"]["0"]
    assert block["query"] == {"kernel": True, "bias": False} and block["up"]["kernel"] and block["down"]["kernel"]
    assert block["norm1"] == {"scale": False, "bias": False}


@pytest.mark.parametrize("name", ["schedule_free_adamw", "schedule_free_sgd"])
def test_schedule_free_optimizers_spare_norms_and_biases_too(name):
    params = {"gate": {"kernel": jnp.full((3, 3), 0.5), "bias": jnp.full(3, 0.5)}, "norm": {"weight": jnp.full(3, 0.5)}}
    gradients = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape), params)

    def after(**changes):
        config = OptimizerConfig(name=name, warmup_steps=0, learning_rate=0.1, clip_norm=0.0, **changes)
        optimizer, new = make_optimizer(config, 10), params
        state = optimizer.init(new)
        for _ in range(3):
            updates, state = optimizer.update(gradients, state, new)
            new = optax.apply_updates(new, updates)
        return new

    without, sparing, decayed = after(weight_decay=0.0), after(weight_decay=0.5), after(weight_decay=0.5, decay="all")
    np.testing.assert_allclose(sparing["gate"]["kernel"], decayed["gate"]["kernel"], rtol=1e-6)
    assert (np.abs(without["gate"]["kernel"] - sparing["gate"]["kernel"]) > 1e-3).all()
    for part, leaf in (("gate", "bias"), ("norm", "weight")):
        np.testing.assert_allclose(sparing[part][leaf], without[part][leaf], rtol=1e-6)
        assert (np.abs(decayed[part][leaf] - without[part][leaf]) > 1e-3).all()


@pytest.mark.parametrize("name", ["lbfgs", "rprop", "sm3", "dpsgd", "schedule_free", "momo", "sophia"])
def test_optimizers_that_ask_for_more_than_gradients_are_refused(name):
    with pytest.raises(UserError, match=f"config.optimizer.name='{name}' cannot be used: [^\\n]*$"):
        make_optimizer(OptimizerConfig(name=name), 10)


@pytest.mark.parametrize(
    "name, field, used",
    [
        ("adamw", "beta1", True), ("adamw", "beta2", True), ("sgd", "beta1", False), ("sgd", "beta2", False),
        ("muon", "beta1", False), ("muon", "beta2", True), ("lion", "beta1", True), ("rmsprop", "beta2", False),
        ("schedule_free_adamw", "beta2", True),
    ],
)  # fmt: skip
def test_a_field_of_the_optimizer_has_an_effect_or_is_refused(name, field, used):
    config = OptimizerConfig(name=name, schedule="constant", warmup_steps=0)
    changed = dataclasses.replace(config, **{field: 0.3})
    if not used:
        with pytest.raises(UserError, match=f"config.optimizer.{field}=0.3 has no effect on {name} "):
            make_optimizer(changed, 10)
        return
    params = {"gate": {"kernel": jnp.eye(4) + 0.1}, "embed_tokens": jnp.full((4, 4), 0.5)}

    def three_steps(config):
        optimizer, new = make_optimizer(config, 10), params
        state = optimizer.init(new)
        for step in range(3):
            gradients = jax.tree.map(lambda p, step=step: jnp.cos(7 * p + step), params)
            updates, state = optimizer.update(gradients, state, new)
            new = optax.apply_updates(new, updates)
        return jnp.concatenate([x.reshape(-1) for x in jax.tree.leaves(new)])

    assert np.abs(three_steps(changed) - three_steps(config)).max() > 1e-5


def test_unknown_optimizer_is_a_user_error():
    config = tiny.transformer(optimizer__name="adamv")
    with pytest.raises(UserError, match="did you mean"):
        make_optimizer(config.optimizer, 10)


def test_mesh_errors_say_what_to_change():
    with pytest.raises(UserError, match="does not fit 8 devices"):
        sharding.make_mesh(MeshConfig(fsdp=3), jax.devices())
    with pytest.raises(UserError, match="at most one may be -1"):
        sharding.make_mesh(MeshConfig(fsdp=-1, tensor=-1), jax.devices())
    config = tiny.transformer(model__model_dim=36)
    objective = TransformerObjective(config)
    with pytest.raises(UserError, match="not divisible"):
        sharding.param_shardings(
            sharding.make_mesh(MeshConfig(fsdp=8), jax.devices()),
            objective.definition.axes,
            objective.definition.abstract,
        )


def test_initialisation_and_steps_use_different_random_numbers(monkeypatch):
    """Every key that initialisation draws with, against those of the first steps and their microbatches."""
    drawn = []
    objective = TransformerObjective(tiny.transformer())
    monkeypatch.setattr(objective.definition, "init", lambda key: drawn.append(key) or {"w": jnp.zeros(2)})
    monkeypatch.setattr(state_lib, "state_shardings", lambda *_, **__: None)
    mesh = sharding.make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    with jax.disable_jit():
        create_state(objective.definition, optax.sgd(1.0), mesh, seed=5, ema=False)
    (key,), seed = drawn, jax.random.key(5)
    of_layers = [jax.random.fold_in(key, i) for i in range(50)] + list(jax.random.split(key, 50))
    steps = [jax.random.fold_in(seed, s) for s in range(50)]
    of_steps = [seed, *steps, *(jax.random.fold_in(steps[0], i) for i in range(50)), *jax.random.split(steps[0])]
    as_bytes = lambda keys: {jax.random.key_data(key).tobytes() for key in keys}
    assert not as_bytes([key, *of_layers]) & as_bytes(of_steps)
