"""Slot, rollout: videos that the student makes itself in training, and which part of them a step learns from.

Distilled rollouts make clips as generation does, frame by frame with the caches and samplers of `config.generate`, without
guidance and without gradients. The step then hides a part of the newest clip again (`config.corruption`): the loss is the KL of
the student's distribution, given its long history, to that of a frozen teacher, which sees this clip alone. The history has no
gradient, so that memory does not depend on how long a video is.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from lumos.slots import Slot

if TYPE_CHECKING:
    from lumos.generation.engine import Engine, State

Prompts = tuple[jax.Array, jax.Array]  # text ids [B, P], their lengths [B]


class Rolled(NamedTuple):
    """A clip of a rolled video: the state before it, its codes by group, its prompts, and what the next step goes on from."""

    before: State
    codes_BGC: jax.Array
    prompts: Prompts
    live: Any = None


class Rollout(Slot):
    """What a step rolls. None: steps learn from data."""

    def live(self, engine: Engine, params: Any, prompts: Prompts) -> Any:
        """Return the shapes of what goes on from step to step, for prompts of these shapes; None for nothing. It begins as zeros."""
        return None

    def longest(self, clip_frames: int) -> int:
        """Return how many latent frames a video has at most."""
        return clip_frames

    def passes(self, steps: int, clip_frames: int) -> float:
        """Return how often a step runs the model over each frame of a clip, to roll, on average."""
        return 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoRollout(Rollout, name="none"):
    """Steps learn from the clips of the data."""


class Distilled(Rollout):
    """A clip of the student's own, with `loss.teacher` as its target."""

    def __call__(self, engine: Engine, params: Any, key: jax.Array, prompts: Prompts, live: Any) -> Rolled:
        """Roll with these parameters; `prompts` are those of the batch."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Streaming(Distilled, name="streaming"):
    """Every step rolls the next clip of videos that live on from step to step (LongLive's streaming long tuning, arXiv
    2509.22622). They begin anew, with the prompts of the batch, before they would be longer than `most`."""

    most: int = 240  # latent frames of a video

    def __post_init__(self):
        if self.most < 1:
            raise ValueError(f"most={self.most} must be at least 1 latent frame")

    def live(self, engine, params, prompts):
        def begin(params, text_BP, length_B):
            state = start(engine, params, jax.random.key(0), (text_BP, length_B))
            return {"state": pack(state), "text": text_BP, "text_length": length_B, "frames": jnp.int32(0)}

        return jax.eval_shape(begin, params, *prompts)

    def longest(self, clip_frames):
        return self.most

    def passes(self, steps, clip_frames):
        return steps + 1.0

    def __call__(self, engine, params, key, prompts, live):
        begins = live["frames"] == 0
        anew = lambda: pack(start(engine, params, key, prompts))
        state = unpack(engine, params, prompts, jax.lax.cond(begins, anew, lambda: live["state"]))
        prompts = tuple(jnp.where(begins, new, live[name]) for name, new in zip(("text", "text_length"), prompts))
        after, codes_BGC = roll(engine, params, state, engine.groups.num)
        frames = live["frames"] + engine.layout.grid[0]
        frames = jnp.where(frames + engine.layout.grid[0] > self.most, 0, frames)
        live = {"state": pack(after), "text": prompts[0], "text_length": prompts[1], "frames": frames}
        return Rolled(state, codes_BGC, prompts, live)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowOfRollout(Distilled, name="window"):
    """Every step rolls new videos and learns from a window of them as long as a clip, uniform in `frames` (Self-Forcing++, arXiv
    2510.02283). What would follow the window is not rolled."""

    frames: int = 100  # latent frames of a video

    def __post_init__(self):
        if self.frames < 1:
            raise ValueError(f"frames={self.frames} must be at least 1 latent frame")

    def longest(self, clip_frames):
        return self.frames

    def passes(self, steps, clip_frames):
        return (steps + 1.0) * (self.frames + clip_frames) / 2 / clip_frames

    def __call__(self, engine, params, key, prompts, live):
        place_key, noise_key = jax.random.split(key)
        first = jax.random.randint(place_key, (), 0, self.frames - engine.layout.grid[0] + 1)
        one = lambda _, state: roll(engine, params, state, 1)[0]
        state = start(engine, params, noise_key, prompts)
        state = jax.lax.fori_loop(0, first * engine.groups.per_frame, one, state)
        return Rolled(state, roll(engine, params, state, engine.groups.num)[1], prompts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reward(Rollout, name="reward"):
    """Policy gradients on clips of the student's own, compared with others of their prompt (GRPO, arXiv 2402.03300; for videos
    Self-Forcing++, arXiv 2510.02283).

    The policy is what the sampler drew from: the probability of every code in the pass that kept it. The reward of a clip, less
    the mean of its group and divided by their deviation, weighs the ratio of its probability to the one it was rolled with.
    """

    # module:function, (codes int32 [B, T, H, W], text [B, P], text length [B]) -> rewards [B], in JAX
    function: str = ""
    samples: int = 8  # clips of each prompt: consecutive rows of a (micro)batch, which take the prompt of the first
    clip: float = 0.2  # ratios further from 1 have no gradient that takes them further
    updates: int = 1  # steps that learn from the same clips

    def __post_init__(self):
        if self.samples < 2 or self.updates < 1 or self.clip <= 0:
            raise ValueError(
                f"samples={self.samples} must be at least 2, updates={self.updates} at least 1, and clip={self.clip} positive"
            )

    def advantages(self, reward_B: jax.Array) -> jax.Array:
        """Return rewards in deviations from the mean of their group, [B]."""
        reward_GS = reward_B.astype(jnp.float32).reshape(-1, self.samples)
        centred_GS = reward_GS - reward_GS.mean(1, keepdims=True)
        return (centred_GS / (reward_GS.std(1, keepdims=True) + 1e-6)).reshape(-1)

    def gains(self, log_p_BJ: jax.Array, old_log_p_BJ: jax.Array, advantage_B: jax.Array) -> jax.Array:
        """Return what every code adds to the objective that is to grow, [B, J]."""
        ratio_BJ, advantage_B1 = jnp.exp(log_p_BJ - old_log_p_BJ), advantage_B[:, None]
        return jnp.minimum(ratio_BJ * advantage_B1, jnp.clip(ratio_BJ, 1 - self.clip, 1 + self.clip) * advantage_B1)

    def passes(self, steps, clip_frames):
        return 4 * steps + (steps + 1.0) / self.updates  # a replay computes every pass again to differentiate it

    def live(self, engine, params, prompts):
        rows, (groups, cells) = len(prompts[0]), engine.groups.cell_index.shape
        whole, real = (functools.partial(jax.ShapeDtypeStruct, dtype=dtype) for dtype in (jnp.int32, jnp.float32))
        clips = {name: whole((rows, groups, cells)) for name in ("codes", "kept")}
        clips |= {"text": whole(prompts[0].shape), "text_length": whole((rows,))}
        return clips | {name: real((rows,)) for name in ("reward", "advantage")} | {
            "log_p": real((rows, groups * cells)), "used": whole(())
        }  # fmt: skip

    def roll(
        self, engine: Engine, params: Any, key: jax.Array, prompts: Prompts, reward: Callable
    ) -> dict[str, jax.Array]:
        """Roll a clip for every row; `reward` takes codes [B, G, C] and prompts."""
        text_BP, length_B = (x[: len(x) : self.samples].repeat(self.samples, axis=0) for x in prompts)
        prompts = text_BP, length_B
        codes_BGC, kept_BGC, _ = watch(engine, params, start(engine, params, key, prompts))
        reward_B = reward(codes_BGC, prompts).astype(jnp.float32)
        return {
            "codes": codes_BGC, "kept": kept_BGC, "text": text_BP, "text_length": length_B, "reward": reward_B,
            "advantage": self.advantages(reward_B),
        }  # fmt: skip


def start(engine: Engine, params: Any, key: jax.Array, prompts: Prompts) -> State:
    """Return the state before the first frame of new videos."""
    none = jnp.zeros((len(prompts[0]), *engine.layout.grid), jnp.int32)
    return engine.prefill(params, *prompts, none, jax.random.split(key, len(none)), 0)


def roll(engine: Engine, params: Any, state: State, num_groups: int) -> tuple[State, jax.Array]:
    """Generate the next groups; return the state behind them and their codes, [B, G, C]."""
    step = lambda state, _: engine.next_group(params, state, engine.rounds[1])
    state, codes_GBC = jax.lax.scan(step, state, None, length=num_groups)
    return state, jnp.moveaxis(codes_GBC, 0, 1)


def watch(engine: Engine, params: Any, state: State) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Generate a clip; return its codes, the pass that kept each of them, and the log-probability with which it was drawn,
    [B, G, C] each."""

    def step(state, _):
        state, codes_BC, cells = engine.watched_round(params, state, engine.rounds[1])
        return state, (codes_BC, (~cells.known[:, :, 0]).sum(0), cells.log_p[-1, :, 0])

    _, parts = jax.lax.scan(step, state, None, length=engine.groups.num)
    return tuple(jnp.moveaxis(x, 0, 1) for x in parts)


def replay(engine: Engine, params: Any, state: State, codes_BGC: jax.Array, kept_BGC: jax.Array) -> jax.Array:
    """Run the passes of a clip again, with a gradient; return the features that each code was drawn from, [B, G, C, D].

    state: before the clip. Activations are computed again in the backward pass, group by group and pass by pass.
    """
    model, size, cells = engine.bind(params), engine.groups.size, engine.groups.cells

    @jax.checkpoint
    def group(state, slices):
        codes_B1C, kept_BC = slices[0][:, None], slices[1]
        opened = _, template, run = engine._open(model, state, state.group[None])

        @jax.checkpoint
        def one(features_BCD, number):
            known_BC = kept_BC < number
            ids_BN = engine._with_codes(template, state.group[None], codes_B1C, known_BC[:, None])
            level_BN = jnp.broadcast_to((~known_BC).mean(-1, keepdims=True), (len(known_BC), size))
            new_BCD = run(ids_BN, level_BN)[0][:, cells]
            return jnp.where((kept_BC == number)[..., None], new_BCD, features_BCD), None

        zeros = jnp.zeros((*kept_BC.shape, model.config.model_dim), model.config.dtype)
        features_BCD, _ = jax.lax.scan(one, zeros, jnp.arange(engine.settings.steps))
        return engine._close(state, opened, codes_B1C), features_BCD

    slices = jnp.moveaxis(codes_BGC, 1, 0), jnp.moveaxis(kept_BGC, 1, 0)
    return jnp.moveaxis(jax.lax.scan(group, state, slices)[1], 0, 1)


def pack(state: State) -> dict[str, jax.Array]:
    """Return a state as named arrays of numbers, without the empty ones, which a checkpoint cannot hold."""
    leaves = jax.tree.leaves(state._replace(keys_B=jax.random.key_data(state.keys_B)))
    return {_name(i): leaf for i, leaf in enumerate(leaves) if leaf.size}


def _name(i: int) -> str:
    return f"{i:03d}"


def unpack(engine: Engine, params: Any, prompts: Prompts, leaves: dict[str, jax.Array]) -> State:
    """Undo `pack` for a state of this engine, of prompts and parameters of these shapes."""
    like = jax.eval_shape(lambda params, prompts: start(engine, params, jax.random.key(0), prompts), params, prompts)
    shapes, tree = jax.tree.flatten(like._replace(keys_B=jax.eval_shape(jax.random.key_data, like.keys_B)))
    leaf = lambda i, shape: leaves[_name(i)] if shape.size else jnp.zeros(shape.shape, shape.dtype)
    state = jax.tree.unflatten(tree, [leaf(i, shape) for i, shape in enumerate(shapes)])
    return state._replace(keys_B=jax.random.wrap_key_data(state.keys_B))
