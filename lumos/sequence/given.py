"""Slot 4, given: which latent frames of a clip are context in training, clean and without a loss.

The other frames are corrupted as usual and predicted. A model sees a given frame if its layout and attention let it: future
frames with layout "ranks" (given ones first), or with attention "full".
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lumos.slots import Slot


class Given(Slot):
    """(key, batch, frames) -> which frames are given and which are hidden whole, bool [B, T] each; neither has a loss."""

    def __call__(self, key: jax.Array, batch: int, num_frames: int) -> tuple[jax.Array, jax.Array]:
        raise NotImplementedError

    def check(self, num_frames: int) -> None:
        """Raise ValueError if clips cannot have so many latent frames. Single frames (images) have no context."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoneGiven(Given, name="none"):
    """All frames are predicted."""

    def __call__(self, key, batch, num_frames):
        none = jnp.zeros((batch, num_frames), bool)
        return none, none


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segments(Given, name="segments"):
    """The past and the future, each hidden whole in some clips: four tasks in one model (MCVD, arXiv 2205.09853)."""

    sizes: tuple[int, int, int] = (1, 1, 0)  # latent frames of the past, of what is predicted, and of the future
    past_drop: float = 0.5  # probability that the past is hidden
    future_drop: float = 0.5  # probability that the future is hidden

    def __post_init__(self):
        if min(self.sizes) < 0 or not self.sizes[1]:
            raise ValueError(f"sizes={self.sizes} must be at least 0 latent frames, and 1 that is predicted")
        if not (0 <= self.past_drop <= 1 and 0 <= self.future_drop <= 1):
            raise ValueError(f"past_drop={self.past_drop} and future_drop={self.future_drop} must lie in [0, 1]")

    def check(self, num_frames):
        if sum(self.sizes) != num_frames:
            raise ValueError(f"sizes={self.sizes} are {sum(self.sizes)} frames of {num_frames}")

    def __call__(self, key, batch, num_frames):
        past, predicted, _ = self.sizes
        frame_T = np.arange(num_frames)
        is_context_T = (frame_T < past) | (frame_T >= past + predicted)
        u_B2 = jax.random.uniform(key, (batch, 2))
        dropped_BT = jnp.where(frame_T < past, u_B2[:, :1] < self.past_drop, u_B2[:, 1:] < self.future_drop)
        return is_context_T & ~dropped_BT, is_context_T & dropped_BT


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnySubset(Given, name="subset"):
    """Any frames but all: how many is drawn for each clip, each number as likely, and which ones, each set as likely."""

    none: float = 0.1  # probability that no frame is given, on top of the share of its number

    def __post_init__(self):
        if not 0 <= self.none <= 1:
            raise ValueError(f"none={self.none} must lie in [0, 1]")

    def __call__(self, key, batch, num_frames):
        number_key, none_key, set_key = jax.random.split(key, 3)
        number_B1 = jax.random.randint(number_key, (batch, 1), 0, num_frames)
        number_B1 = jnp.where(jax.random.uniform(none_key, (batch, 1)) < self.none, 0, number_B1)
        given_BT = jnp.argsort(jax.random.uniform(set_key, (batch, num_frames)), axis=1) < number_B1
        return given_BT, jnp.zeros_like(given_BT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tasks(Given, name="tasks"):
    """One of several tasks, each the frames that it gives: () from nothing, (0,) prediction, (0, -1) interpolation."""

    frames: tuple[tuple[int, ...], ...] = ((), (0,), (0, -1))  # of each task; negative ones count from the end
    shares: tuple[float, ...] = ()  # of the clips, for each task; () = equal

    def __post_init__(self):
        if not self.frames or (self.shares and len(self.shares) != len(self.frames)):
            raise ValueError(f"frames={self.frames} must be at least one task, and shares={self.shares} as many")
        if self.shares and (min(self.shares) < 0 or not sum(self.shares)):
            raise ValueError(f"shares={self.shares} must be at least 0, and not all 0")

    def check(self, num_frames):
        for task in self.frames:
            outside = [frame for frame in task if not -num_frames <= frame < num_frames]
            if outside or len({frame % num_frames for frame in task}) == num_frames:
                raise ValueError(f"task {task} must give some of {num_frames} latent frames, and not all of them")

    def __call__(self, key, batch, num_frames):
        table_NT = np.zeros((len(self.frames), num_frames), bool)
        for row_T, task in zip(table_NT, self.frames):
            row_T[list(task)] = True
        shares = np.array(self.shares or [1.0] * len(self.frames))
        task_B = jax.random.choice(key, len(self.frames), (batch,), p=jnp.asarray(shares / shares.sum()))
        given_BT = jnp.asarray(table_NT)[task_B]
        return given_BT, jnp.zeros_like(given_BT)
