"""Small networks that look at two frames: which action led from one to the other, what it was worth, and whether an episode ended.

They see how well each part of the first frame, shifted, fits the second, and the colours of both.
They learn from recordings in a minute, and read what a world makes: whether it obeys, and what an agent inside it has earned.
"""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lumos import files
from lumos.errors import UserError

# Shifts of the picture that are tried, in 64ths of its width: to the sides, and up and down.
_SHIFTS = (*((0, x) for x in range(-12, 13)), *((y, 0) for y in (-6, -4, -2, 2, 4, 6)))
_GRID, _COARSE = 4, 8  # cells along each side: of shifts, and of colours
_HIDDEN = 128


@jax.jit
def _features(before_NYXC: jax.Array, after_NYXC: jax.Array) -> jax.Array:
    """Return what is looked at, float32 [N, F]: how well each part of one frame, shifted, fits the other, and the colours of both."""
    pair = [x.astype(jnp.float32) / 127.5 - 1 for x in (before_NYXC, after_NYXC)]
    before, after = (x.mean(-1) for x in pair)
    rows, columns = before.shape[1:]
    errors = []
    for y, x in _SHIFTS:
        moved = jnp.roll(before, (y * rows // 64, x * columns // 64), (1, 2))
        errors.append(_cells(jnp.abs(after - moved)[..., None], _GRID))
    errors_SNK = jnp.log(jnp.stack(errors) + 0.01)
    errors_SNK -= errors_SNK.mean(0)  # which shift fits best, whatever the contrast
    colours = [_cells(x, _COARSE) for x in (pair[0], pair[1], pair[1] - pair[0])]
    return jnp.concatenate([jnp.moveaxis(errors_SNK, 0, 1).reshape(len(before), -1), *colours], axis=1)


def _cells(x_NYXC: jax.Array, num: int) -> jax.Array:
    """Return the means of num x num parts of pictures, [N, num * num * C]."""
    height, width = (side // num for side in x_NYXC.shape[1:3])
    parts = x_NYXC[:, : num * height, : num * width].reshape(len(x_NYXC), num, height, num, width, -1)
    return parts.mean((2, 4)).reshape(len(x_NYXC), -1)


def _of_pairs(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    parts = range(0, len(before), 256)
    return np.concatenate([np.asarray(_features(before[i : i + 256], after[i : i + 256])) for i in parts])


def _apply(params: dict, features_NF: jax.Array) -> jax.Array:
    """Return the outputs [N, K] of features."""
    x = (features_NF - params["mean"]) / params["deviation"]
    return jax.nn.relu(x @ params["hidden"] + params["shift"]) @ params["out"] + params["bias"]


_run = jax.jit(_apply)


@functools.partial(jax.jit, static_argnames=("loss", "update"))
def _step(params, state, batch, loss, update):
    learnt = {name: x for name, x in params.items() if name not in ("mean", "deviation")}
    features_NF, targets = batch
    grads = jax.grad(lambda p: loss(_apply(params | p, features_NF), *targets))(learnt)
    updates, state = update(grads, state, learnt)
    return params | optax.apply_updates(learnt, updates), state


def _fit(before, after, targets: tuple[np.ndarray, ...], num_outputs: int, loss, *, seed: int, steps: int) -> dict:
    """Return the parameters that fit pairs of frames to their targets."""
    features_NF = _of_pairs(before, after)
    keys, size = jax.random.split(jax.random.key(seed)), features_NF.shape[1]
    learnt = {
        "hidden": jax.random.normal(keys[0], (size, _HIDDEN)) * np.sqrt(2 / size),
        "shift": jnp.zeros(_HIDDEN),
        "out": jax.random.normal(keys[1], (_HIDDEN, num_outputs)) * np.sqrt(1 / _HIDDEN),
        "bias": jnp.zeros(num_outputs),
    }
    optimizer = optax.adamw(optax.cosine_decay_schedule(1e-3, steps), weight_decay=0.1)
    state, rng = optimizer.init(learnt), np.random.default_rng(seed)
    params = learnt | {"mean": features_NF.mean(0), "deviation": features_NF.std(0) + 1e-3}
    for _ in range(steps):
        rows = rng.integers(len(features_NF), size=256)
        batch = features_NF[rows], tuple(x[rows] for x in targets)
        params, state = _step(params, state, batch, loss, optimizer.update)
    return params


def _outputs(params: dict, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return np.asarray(_run(params, _of_pairs(before, after)))


def _cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


class ActionReader:
    """Reads which action led from one frame to the next: an inverse model."""

    def __init__(self, params: dict):
        self._params = params

    @classmethod
    def learn(cls, video: np.ndarray, actions: np.ndarray, num_actions: int, *, seed: int = 0, steps: int = 600):
        """Learn from clips, uint8 [N, F, Y, X, 3], and the actions that led to their frames, int [N, F]."""
        before, after = (x.reshape(-1, *x.shape[2:]) for x in (video[:, :-1], video[:, 1:]))
        labels = actions[:, 1:].reshape(-1).astype(np.int32)
        return cls(_fit(before, after, (labels,), num_actions, _cross_entropy, seed=seed, steps=steps))

    def logits(self, video: np.ndarray) -> np.ndarray:
        """Return the logits of the actions that led to all frames but the first, float32 [N, F - 1, actions]."""
        before, after = (x.reshape(-1, *x.shape[2:]) for x in (video[:, :-1], video[:, 1:]))
        return _outputs(self._params, before, after).reshape(video.shape[0], video.shape[1] - 1, -1)

    def __call__(self, video: np.ndarray) -> np.ndarray:
        """Return the actions that it reads, int [N, F - 1]."""
        return self.logits(video).argmax(-1)


def _reward_loss(out_N2, rewards, dones):
    ended = optax.sigmoid_binary_cross_entropy(out_N2[:, 1], dones)
    return (jnp.square(out_N2[:, 0] - rewards) * (1 - dones)).mean() + ended.mean()


class Rewards:
    """Reward and end of an episode, learnt from recordings: the `reward` of `lumos.make_env`."""

    def __init__(self, params: dict):
        self._params = params

    @classmethod
    def learn(cls, video: np.ndarray, rewards: np.ndarray, dones: np.ndarray, *, seed: int = 0, steps: int = 600):
        """Learn from clips, uint8 [N, F, Y, X, 3], and the columns `reward` and `done` of their frames, [N, F]."""
        before, after = (x.reshape(-1, *x.shape[2:]) for x in (video[:, :-1], video[:, 1:]))
        targets = tuple(x[:, 1:].reshape(-1).astype(np.float32) for x in (rewards, dones))
        return cls(_fit(before, after, targets, 2, _reward_loss, seed=seed, steps=steps))

    def __call__(self, before: np.ndarray, actions: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return rewards [N] and whether episodes end, bool [N]; the action is read off the frames."""
        out_N2 = _outputs(self._params, before, after)
        return out_N2[:, 0], out_N2[:, 1] > 0

    def save(self, path: str | Path) -> None:
        """Write the network as a .npz."""
        with files.written(Path(path)) as partial, partial.open("wb") as file:
            np.savez(file, **self._params)

    @classmethod
    def load(cls, path: str | Path):
        """Read what `save` wrote. Raises UserError."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(dict(arrays))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} holds no network of rewards ({error})") from error
