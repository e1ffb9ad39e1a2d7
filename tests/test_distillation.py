"""Distillation from a frozen teacher: the KL, what a step does with it, and runs whose teacher's folder goes away."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tokens import one_device, run_config, write_tokens  # noqa: F401

from lumos import config_loading, sharding
from lumos.checkpoint import Checkpointer, fingerprint
from lumos.config import MeshConfig
from lumos.errors import UserError
from lumos.info.kinds import describe
from lumos.sequence.corruption import Corrupted
from lumos.training.distillation import linear_kl
from lumos.training.from_config import make_objective, make_objective_optimizer
from lumos.training.initialize import initial_state
from lumos.training.loop import train
from lumos.training.match_data import match_data
from lumos.training.replay import replay
from lumos.training.state import create_state
from lumos.training.step import make_train_step
from lumos.training.transformer_objective import TransformerObjective

pytestmark = pytest.mark.usefixtures("one_device")

WIDER = {"model__model_dim": 64, "model__num_layers": 2, "model__num_heads": 4}


def _dense_kl(temperature, student, head, teacher, teacher_head, weights):
    """The definition, with all logits at once."""
    log_p = [jax.nn.log_softmax(x / temperature) for x in (student @ head, teacher @ teacher_head)]
    return temperature**2 * (jnp.exp(log_p[1]) * (log_p[1] - log_p[0])).sum(-1) * weights


def _inputs(shape, num_codes=12):
    keys = jax.random.split(jax.random.key(0), 5)
    student, teacher = (jax.random.normal(key, (*shape, width)) for key, width in zip(keys, (8, 16)))
    heads = [jax.random.normal(key, (width, num_codes)) for key, width in zip(keys[2:], (8, 16))]
    weights = jnp.where(jax.random.uniform(keys[4], shape) > 0.4, 1.5, 0.0)
    return student, heads[0], teacher, heads[1], weights


def _value_and_gradients(kl, student, head, *rest):
    """Of a sum in which every position counts differently."""
    scale = jnp.cos(jnp.arange(rest[-1].size)).reshape(rest[-1].shape)
    total = lambda student, head: (lambda out: ((out * scale).sum(), out))(kl(student, head, *rest))
    return jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(student, head)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("chunk", [5, 7, 100])
def test_chunked_kl_is_the_dense_one_with_its_gradients(chunk, temperature):
    inputs = _inputs((23,))
    got = _value_and_gradients(functools.partial(linear_kl, chunk=chunk, temperature=temperature), *inputs)
    want = _value_and_gradients(functools.partial(_dense_kl, temperature), *inputs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)


@pytest.mark.parametrize("mesh", [{"fsdp": 2}, {"fsdp": 2, "tensor": 2, "context": 2}])
def test_sharded_kl_is_that_of_one_device(mesh):
    inputs = _inputs((4, 6))
    kl = functools.partial(linear_kl, chunk=3, temperature=2.0)
    want = _value_and_gradients(kl, *inputs)
    with jax.set_mesh(sharding.make_mesh(MeshConfig(**mesh), jax.devices()[: np.prod(list(mesh.values()))])):
        got = _value_and_gradients(kl, *inputs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, want)


def test_a_student_that_is_its_teacher_has_no_kl_and_no_gradient():
    student, head, _, _, weights = _inputs((23,))
    (_, kl), gradients = _value_and_gradients(
        functools.partial(linear_kl, chunk=5), student, head, student, head, weights
    )
    assert np.abs(kl).max() < 1e-6 and max(np.abs(g).max() for g in gradients) < 1e-6


def test_the_teacher_has_no_gradient():
    inputs = _inputs((23,))
    gradients = jax.grad(lambda *x: linear_kl(*x, inputs[4], chunk=5).sum(), (2, 3))(*inputs[:4])
    assert not any(np.any(g) for g in gradients)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tokens(tmp_path_factory.mktemp("data") / "tokens")


@pytest.fixture(scope="module")
def teacher(folder, tmp_path_factory, one_device):  # noqa: F811
    """The workdir of a teacher, wider and deeper than the students."""
    workdir = tmp_path_factory.mktemp("teacher")
    fast = {"optimizer__learning_rate": 0.05, "optimizer__warmup_steps": 0}
    train(run_config(folder, train__num_steps=2, **fast, **WIDER), workdir)
    return workdir


class FixedNoise(TransformerObjective):
    """Masks that depend on the rows alone, so that any split of a batch has the same."""

    def _corruption(self, layout, batch, key):
        mask_BTC = (batch["tokens"] % 3 == 0).reshape(*batch["tokens"].shape[:2], -1)
        drawn = Corrupted(mask_BTC, mask_BTC.mean(-1), jnp.ones(mask_BTC.shape[:2], bool))
        return drawn, batch["text"][:, -1] % 4 == 0


class Steps:
    """A few steps of a student, by hand."""

    def __init__(self, config, num_devices=1, num=2, objective=FixedNoise):
        self.config = config = match_data(config)
        self.mesh = sharding.make_mesh(MeshConfig(fsdp=num_devices), jax.devices()[:num_devices])
        self.objective = objective(config)
        optimizer = make_objective_optimizer(self.objective, config)
        with jax.set_mesh(self.mesh):
            definition, extra = self.objective.definition, self.objective.extra_state()
            self.state = create_state(definition, optimizer, self.mesh, seed=0, ema=True, extra=extra)
            self.first = fingerprint(self.state.extra)
            step = make_train_step(self.objective, optimizer, config, self.mesh)
            self.metrics, self.buffers = [], []
            for seed in range(num):
                batch = sharding.put_batch(self.mesh, tiny.token_batch(config, seed=seed))
                self.state, metrics = step(self.state, batch)
                self.metrics.append({name: float(value) for name, value in metrics.items()})
                shards = [shard for leaf in jax.tree.leaves(self.state.extra) for shard in leaf.addressable_shards]
                self.buffers.append([shard.data.unsafe_buffer_pointer() for shard in shards])
        self.last = fingerprint(self.state.extra)

    def of(self, name):
        return [metrics[name] for metrics in self.metrics]


CHANGES = {"loss__teacher_weight": 0.5, "loss__teacher_temperature": 2.0, "optimizer__learning_rate": 1e-2}


@pytest.fixture(scope="module")
def student(folder, teacher):
    return Steps(run_config(folder, loss__teacher=str(teacher), **CHANGES))


def test_steps_follow_the_teacher_and_leave_it_where_it_is(student, folder, teacher):
    """The same bits in the same memory: a donated state does not copy its teacher, once it is where the first step put it."""
    plain, kl = Steps(run_config(folder, **CHANGES)), student.of("teacher_kl")
    assert student.last == student.first and student.buffers[0] == student.buffers[1]
    assert min(kl) > 1e-3 and "teacher_kl" not in plain.metrics[0]
    np.testing.assert_allclose(student.of("loss")[0], plain.of("loss")[0] + 0.5 * kl[0], rtol=1e-6)
    assert fingerprint(student.state.params) != fingerprint(plain.state.params)
    forward = student.objective.flops_per_step() - plain.objective.flops_per_step()
    of_teacher = TransformerObjective(config_loading.load(str(teacher / "config.json"))).flops_per_step()
    assert forward == pytest.approx(of_teacher / 3)


def test_two_microbatches_on_two_devices_give_the_steps_of_one(student, folder, teacher):
    config = run_config(folder, loss__teacher=str(teacher), train__accumulation=2, **CHANGES)
    other = Steps(config, num_devices=2)
    kernel = other.state.extra["teacher"]["lm_head"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 2
    assert other.last == other.first == student.first and other.buffers[0] == other.buffers[1]
    for name in ("loss", "teacher_kl"):
        np.testing.assert_allclose(other.of(name), student.of(name), rtol=1e-5)


@pytest.fixture(scope="module")
def distilled(folder, teacher, tmp_path_factory, one_device):  # noqa: F811
    """A run of 5 steps whose third is bad, and one that resumes from its second after the teacher's folder has gone."""
    base = tmp_path_factory.mktemp("runs")
    shutil.copytree(teacher, base / "teacher")
    config = run_config(folder, loss__teacher=str(base / "teacher"), train__num_steps=5, train__keep_checkpoints=3)
    with pytest.MonkeyPatch.context() as patch:
        loss = TransformerObjective.loss

        def poisoned(self, params, batch, key, step, extra, totals):
            out = loss(self, params, batch, key, step, extra, totals)
            return out._replace(sum=out.sum * jnp.where(step == 2, jnp.inf, 1.0))

        patch.setattr(TransformerObjective, "loss", poisoned)
        train(config, base / "whole")
        shutil.copytree(base / "whole", base / "parts")
        for step in ("4", "5"):
            shutil.rmtree(base / "parts" / "checkpoints" / step)
        shutil.rmtree(base / "teacher")
        train(config, base / "parts")
        yield base, config


def _state(config, workdir):
    config, checkpointer = match_data(config), Checkpointer(workdir, read_only=True)
    objective = make_objective(config, checkpointer.read_facts())
    mesh = sharding.make_mesh(config.mesh)
    state, meta = initial_state(config, objective, make_objective_optimizer(objective, config), mesh, checkpointer)
    return jax.device_get(state), meta


@pytest.mark.slow
def test_a_run_resumes_bit_for_bit_without_the_folder_of_its_teacher(distilled, teacher):
    base, config = distilled
    (whole, meta), (parts, _) = _state(config, base / "whole"), _state(config, base / "parts")
    assert whole.step == 5 and meta["objective"]["teacher"]["workdir"] == config.loss.teacher
    jax.tree.map(np.testing.assert_array_equal, parts, whole)
    read = Checkpointer(teacher, read_only=True).restore_params(whole.extra["teacher"])
    assert fingerprint(read) == fingerprint(whole.extra["teacher"])
    assert "extra" in describe(base / "parts")["arrays"]
    TransformerObjective(match_data(config))  # as evaluation and generation build it: neither needs the teacher


@pytest.mark.slow
def test_a_bad_step_is_replayed_bitwise_without_the_folder_of_the_teacher(distilled):
    base, _ = distilled
    result = replay(base / "whole" / "dumps" / "00000003")
    assert result["bitwise"] and result["metrics"]["skipped"] == 1 and result["metrics"]["teacher_kl"] > 0


@pytest.mark.parametrize(
    "began, changes, message",
    [
        ("distilled", {"loss__teacher": ""}, "/5 has teacher, but the config asks for no extra state: "),
        ("distilled", {"loss__teacher": "other"}, "config.loss.teacher='other', but this run began with '.*teacher'"),
        ("plain", {}, "/2 has no extra state, but the config asks for teacher: "),
    ],
)
def test_a_run_goes_on_with_the_teacher_it_began_with(distilled, teacher, folder, tmp_path, began, changes, message):
    base, config = distilled
    workdir = base / "whole"
    if began == "plain":  # the teacher itself
        workdir = shutil.copytree(teacher, tmp_path / "plain")
        changes = WIDER | {"loss__teacher": str(teacher)}
    asked = run_config(folder, train__num_steps=7, **{"loss__teacher": config.loss.teacher} | changes)
    with pytest.raises(UserError, match=message + "[^\\n]*$"):
        train(asked, workdir)


def test_a_teacher_of_other_tokens_is_refused_and_what_differs_is_named(folder, teacher, tmp_path):
    def refused(config, message):
        with pytest.raises(UserError, match=message + "[^\\n]*$"):
            make_objective(match_data(config)).extra_state()

    ask = {"loss__teacher": str(teacher)}
    refused(run_config(folder, model__visual_vocab=40, **ask), "has model.visual_vocab=30, this run 40: ")
    refused(run_config(folder, sequence__text_length=8, **ask), "has sequence.text_length=6, this run 8: ")
    grid = {"sequence__grid": (2, 4, 4)}
    refused(run_config(folder, **grid, **ask), r"has sequence.grid=\(3, 4, 4\), this run \(2, 4, 4\): ")
    shutil.copytree(folder, tmp_path / "tokens")
    manifest = json.loads((folder / "manifest.json").read_text()) | {"tokenizer": {"fingerprint": "newer"}}
    (tmp_path / "tokens" / "manifest.json").write_text(json.dumps(manifest))
    refused(run_config(tmp_path / "tokens", **ask), "on tokens of tokenizer none, this run has those of newer; ")
    refused(run_config(folder, loss__teacher=str(tmp_path)), "is not a training workdir: ")


def test_values_of_a_teacher_are_checked(folder):
    for changes, message in (
        ({"loss__teacher_temperature": 0.0}, "config.loss.teacher_temperature=0.0 must be positive"),
        ({"loss__teacher_weight": -1.0}, "config.loss.teacher_weight=-1.0 must be at least 0"),
        (
            {"loss__teacher": "run", "task": "tokenizer", "data__buckets": ((9, 32, 32),)},
            "config.loss.teacher is for task 'transformer'",
        ),
    ):
        with pytest.raises(UserError, match=message):
            run_config(folder, **changes)
