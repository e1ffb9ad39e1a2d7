"""Training on rollouts: the gradient of attention over a cache, the window that has the loss, memory, and resumed streams."""

import functools
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lumos import sharding
from lumos.checkpoint import Checkpointer
from lumos.config import MeshConfig
from lumos.errors import UserError
from lumos.generation import rollouts
from lumos.model import attention
from lumos.objective import ExtraState
from lumos.sequence.corruption import Corrupted
from lumos.sequence.key_ranges import KeyRanges
from lumos.slots import slot
from lumos.training.from_config import make_objective, make_objective_optimizer
from lumos.training.state import create_state
from lumos.training.step import make_train_step


def test_attention_over_a_cache_has_the_gradient_of_one_over_all_keys():
    rng, (rows, queries, cached) = np.random.default_rng(0), (2, 5, 2000)  # several blocks of keys
    q = jnp.asarray(rng.normal(size=(rows, queries, 4, 32)), jnp.float32)
    k, v = (jnp.asarray(rng.normal(size=(rows, cached + queries, 2, 32)), jnp.float32) for _ in range(2))
    start, end = rng.integers(0, 4, (1, rows, queries)), rng.integers(4, cached + 1, (1, rows, queries))
    past = KeyRanges(jnp.asarray(start), jnp.asarray(end), jnp.asarray(rng.normal(size=(1, cached)), jnp.float32))
    own = KeyRanges(jnp.zeros((1, rows, queries), int), jnp.tile(jnp.arange(queries) + 1, (1, rows, 1)))
    both = KeyRanges(
        *(jnp.concatenate([a, b + cached]) for a, b in ((past.start_RBQ, own.start_RBQ), (past.end_RBQ, own.end_RBQ))),
        jnp.pad(past.bias_BS, ((0, 0), (0, queries))),
    )
    scale = jnp.cos(jnp.arange(q.size)).reshape(q.shape)
    parts = lambda k, v: [(k[:, :cached], v[:, :cached], past), (k[:, cached:], v[:, cached:], own)]
    merged = lambda *qkv: (attention.attend_parts(qkv[0], parts(*qkv[1:])) * scale).sum()
    dense = lambda *qkv: (attention.dense(*qkv, both) * scale).sum()
    got, want = (jax.jit(jax.value_and_grad(f, (0, 1, 2)))(q, k, v) for f in (merged, dense))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)


class Fake:
    """A teacher that is not read from files."""

    facts = {"workdir": "fake"}

    def __init__(self, objective):
        self.model, self.definition = objective.config.model, objective.definition

    def extra_state(self):
        start = lambda places: jax.tree.map(
            jax.device_put, {"teacher": self.definition.init(jax.random.key(7))}, places
        )
        return ExtraState({"teacher": self.definition.abstract}, {"teacher": self.definition.axes}, start)


def _objective(rollout, **changes):
    defaults = {
        "model__num_layers": 1, "model__scan_layers": False, "model__attention": "dense", "sequence__grid": (2, 4, 4), "loss__teacher": "fake", "data__batch_size": 2, "generate__steps": 2,
        "generate__cache": slot("window", width=3, sink=1), "generate__history_ratio": 0.25,
        "optimizer__ema_decay": 0.0, "optimizer__learning_rate": 3e-3, "optimizer__warmup_steps": 0,
    }  # fmt: skip
    objective = make_objective(
        tiny.transformer(train__rollout=rollout, **defaults | changes), {"teacher": {"workdir": "fake", "model": {}}}
    )
    objective._teacher = Fake(objective)
    return objective


class Run:
    """Steps by hand."""

    def __init__(self, rollout, **changes):
        self.objective = _objective(rollout, **changes)
        self.config = config = self.objective.config
        self.mesh = sharding.make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
        optimizer = make_objective_optimizer(self.objective, config)
        with jax.set_mesh(self.mesh):
            kinds = {"seed": 0, "ema": False, "extra": self.objective.extra_state()}
            self.start = functools.partial(create_state, self.objective.definition, optimizer, self.mesh, **kinds)
            self.step = make_train_step(self.objective, optimizer, config, self.mesh)

    def steps(self, state, first, last):
        self.kl = []
        with jax.set_mesh(self.mesh):
            for seed in range(first, last):
                batch = sharding.put_batch(self.mesh, tiny.token_batch(self.config, seed=seed))
                state, metrics = self.step(state, batch)
                self.kl.append(float(metrics["teacher_kl"]))
        return state


@pytest.mark.slow
def test_streams_live_on_begin_anew_and_resume_bit_for_bit():
    """Seven frames at most are three clips of two; a resumed run goes on within a video. The student comes nearer to the teacher."""
    run = Run(slot("streaming", most=7))
    half = run.steps(run.start(), 0, 2)
    places = jax.tree.map(lambda x: x.sharding, half)
    saved = jax.device_get(half)
    assert saved.extra["rollout"]["frames"] == 4
    np.testing.assert_array_equal(saved.extra["rollout"]["text"], tiny.token_batch(run.config, seed=0)["text"])
    again = jax.device_get(run.steps(jax.device_put(saved, places), 2, 4))
    state = run.steps(run.start(), 0, 4)
    whole = jax.device_get(state)
    jax.tree.map(np.testing.assert_array_equal, again, whole)
    assert whole.extra["rollout"]["frames"] == 2  # a second video
    np.testing.assert_array_equal(whole.extra["rollout"]["text"], tiny.token_batch(run.config, seed=3)["text"])
    jax.tree.map(np.testing.assert_array_equal, whole.extra["teacher"], saved.extra["teacher"])
    first = run.kl
    run.steps(state, 4, 16)
    assert np.mean(run.kl[-3:]) < 0.8 * np.mean(first[:3]) and min(first) > 1e-3
    assert run.step._cache_size() == 1


def test_videos_that_live_on_are_saved_with_the_run(tmp_path):
    state = Run(slot("streaming", most=7)).start()
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(0, state, {})
    checkpointer.wait()
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    again, _ = checkpointer.restore(like)
    checkpointer.close()
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again), jax.device_get(state))


def test_memory_does_not_depend_on_how_long_videos_are():
    """The same arrays live on, and the one program above counts frames at run time."""
    short, long = (_objective(slot("streaming", most=most)).extra_state().abstract for most in (2, 2000))
    assert short == long
    cache = short["rollout"]["state"]["000"].shape  # layers, rows, slots, heads, channels
    assert cache[2] == 6 + 3 * 16


@pytest.mark.slow
def test_a_step_takes_the_same_bytes_for_two_and_for_twenty_clips():
    """What XLA plans for the compiled step: arguments, results and temporary memory."""

    def planned(num_clips):
        run = Run(slot("streaming", most=2 * num_clips))
        with jax.set_mesh(run.mesh):
            batch = sharding.put_batch(run.mesh, tiny.token_batch(run.config))
            stats = run.step.lower(run.start(), batch).compile().memory_analysis()
        return stats.argument_size_in_bytes, stats.output_size_in_bytes, stats.temp_size_in_bytes

    two = planned(2)
    assert two == planned(20) and two[2] > 0


def test_the_student_s_pass_over_a_clip_is_that_over_the_whole_video():
    """By another path: the history and the clip as one sequence, without a cache. So the teacher differs in its weights and in
    the history alone."""
    objective = _objective(
        slot("window", frames=4),
        generate__cache=slot("fifo", width=4),
        generate__history_ratio=0.0,
        model__num_layers=2,
    )
    engine, grid = objective.engine, (4, 4, 4)
    batch = jax.tree.map(jnp.asarray, tiny.token_batch(objective.config))
    params, prompts = objective.definition.init(jax.random.key(0)), (batch["text"], batch["text_length"])
    mask_BTC = jax.random.uniform(jax.random.key(1), (2, 2, 16)) < 0.5
    drawn = Corrupted(mask_BTC, jnp.ones((2, 2)), jnp.ones((2, 2), bool))

    roll = jax.jit(lambda state: rollouts.roll(engine, params, state, engine.groups.num))
    before, first = roll(jax.jit(lambda: rollouts.start(engine, params, jax.random.key(2), prompts))())
    _, second = roll(before)

    @jax.jit
    def student(before):
        return objective._student(params, rollouts.Rolled(before, second, prompts), drawn)[1]

    @jax.jit
    def whole(codes):
        layout = objective._layout_of(grid)
        hidden = jnp.concatenate([jnp.zeros((2, 2, 16), bool), mask_BTC], axis=1)
        drawn = Corrupted(hidden, hidden.mean(-1), jnp.ones(hidden.shape[:2], bool))
        clip = batch | {"tokens": codes.reshape(2, *grid)}
        run = objective._forward(layout, objective.definition, params, clip, drawn, None, jax.random.key(0))
        return run.hidden_BLD[:, layout.visual_index][:, -32:]

    codes = jnp.concatenate([part.reshape(2, -1)[:, objective._raster] for part in (first, second)], axis=1)
    np.testing.assert_allclose(student(before), whole(codes), rtol=1e-4, atol=1e-5)


def test_a_window_is_of_new_videos_with_the_prompts_of_the_batch():
    objective, seen = _objective(slot("window", frames=6)), []
    forward = objective._forward
    objective._forward = lambda layout, definition, params, clip, *rest: (
        seen.append(clip) or forward(layout, definition, params, clip, *rest)
    )
    batch = jax.tree.map(jnp.asarray, tiny.token_batch(objective.config))
    params = objective.definition.abstract
    out = jax.eval_shape(
        lambda *args: objective.loss(args[0], batch, jax.random.key(0), 0, args[1]), params, {"teacher": params}
    )
    (clip,) = seen  # the teacher's
    assert clip["text"] is batch["text"] and clip["text_length"] is batch["text_length"]
    assert clip["tokens"] is not batch["tokens"] and clip["tokens"].shape == (2, 2, 4, 4)
    assert set(out.metrics) == {"teacher_kl"} and set(out.extra) == {"teacher"}


class Counter(NamedTuple):
    """An engine that counts groups; its own state."""

    group: jax.Array
    layout = SimpleNamespace(grid=(2, 1, 1))
    groups = SimpleNamespace(num=4, per_frame=2)
    rounds = (None, None)

    def prefill(self, params, text_BP, text_length_B, given_BTHW, keys_B, num_given):
        return self

    def next_group(self, params, state, passes):
        return state._replace(group=state.group + 1), jnp.full((1, 1), state.group)


def test_windows_begin_at_any_frame_alike():
    def begins(key):
        prompts = jnp.zeros((1, 1), jnp.int32), jnp.ones(1, jnp.int32)
        rolled = rollouts.WindowOfRollout(frames=5)(Counter(jnp.int32(0)), None, key, prompts, None)
        return rolled.before.group, rolled.codes_BGC

    group_N, codes_NBGC = jax.jit(jax.vmap(begins))(jax.random.split(jax.random.key(0), 4000))
    np.testing.assert_array_equal(codes_NBGC[:, 0, :, 0], group_N[:, None] + np.arange(4))
    counts = np.bincount(group_N, minlength=7)
    np.testing.assert_allclose(counts[::2] / 4000, 1 / 4, atol=5 * (3 / 16 / 4000) ** 0.5)
    assert not counts[1::2].any()


def test_rollouts_refuse_what_they_cannot_learn_from():
    def refused(message, rollout="streaming", **changes):
        with pytest.raises(UserError, match=f"config.train.rollout='{rollout}' {message}[^\n]*$"):
            _objective(slot(rollout, **changes.pop("settings", {})), **changes)

    refused("needs config.loss.teacher", loss__teacher="")
    refused("needs a cache for videos of any length", generate__cache=slot("full"))
    refused("needs config.generate.plan='one_by_one', not 'diagonal'", generate__plan=slot("diagonal"))
    refused("needs config.corruption.errors='none', not 'own'", corruption__errors=slot("own"))
    refused("rolls 1 latent frames, but a clip has 2", "window", settings={"frames": 1})
