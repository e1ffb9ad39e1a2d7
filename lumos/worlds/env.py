"""A world as an environment: `lumos.make_env`, with the vector interface of Gymnasium (lumos-video[worlds]).

All environments of a batch step in one program. Equal seeds and actions give equal frames, whatever happens beside them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from lumos.errors import UserError
from lumos.worlds.world import World

# (frames before uint8 [N, Y, X, 3], actions int64 [N], frames after) -> (rewards float [N], whether an episode ends bool [N])
Reward = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def find_reward(reward: str | Reward) -> Reward:
    """Return the function behind "module:function", or a function as it is; without one nothing is rewarded. Raises UserError."""
    if callable(reward):
        return reward
    if not reward:
        return lambda before, actions, after: (np.zeros(len(after)), np.zeros(len(after), bool))
    module, _, name = reward.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"reward={reward!r} is not module:function ({error})") from error


class WorldEnv(VectorEnv):
    """A batch of environments inside a model. Observations are frames, uint8 [N, Y, X, 3], the newest of each latent frame.

    An environment whose episode has ended begins anew with its next step (Gymnasium's autoreset "next step").
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": []}

    def __init__(self, world: World, *, reward: str | Reward = "", max_steps: int = 0):
        """max_steps: after which an episode is cut off (truncated); 0 = never."""
        self._world, self._reward, self._max_steps = world, find_reward(reward), max_steps
        self.num_envs = world.num_rows
        self.single_observation_space = gymnasium.spaces.Box(0, 255, (*world.frame_size, 3), np.uint8)
        self.single_action_space = gymnasium.spaces.Discrete(world.num_actions)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._frames = np.zeros((self.num_envs, *world.frame_size, 3), np.uint8)
        self._steps, self._ended = np.zeros(self.num_envs, int), np.ones(self.num_envs, bool)
        self._seeds: list[np.random.Generator] = []

    def reset(self, *, seed: int | list[int] | None = None, options: dict[str, Any] | None = None):
        """Begin all environments anew; environment i has seed + i, or the seed of its own."""
        if seed is None and self._seeds:
            seeds = [int(rng.integers(2**31)) for rng in self._seeds]
        else:
            first = np.random.default_rng().integers(2**30) if seed is None else seed
            seeds = [int(first) + i for i in range(self.num_envs)] if np.ndim(first) == 0 else list(first)
            if len(seeds) != self.num_envs:
                raise UserError(f"{len(seeds)} seeds for {self.num_envs} environments")
            self._seeds = [np.random.default_rng(s) for s in seeds]
        for row, row_seed in enumerate(seeds):
            self._begin(row, row_seed)
        return self._frames.copy(), {}

    def step(self, actions):
        """Return (frames, rewards, terminated, truncated, info) behind one action for each environment."""
        actions = np.asarray(actions)
        if not self._seeds:
            raise UserError("an environment begins with reset")
        if actions.shape != (self.num_envs,):
            raise UserError(f"actions of shape {actions.shape}; there are {self.num_envs} environments")
        before, anew = self._frames.copy(), self._ended.copy()
        for row in np.flatnonzero(anew):
            self._begin(row, int(self._seeds[row].integers(2**31)))
        going = np.flatnonzero(~anew)
        if len(going):
            for row, pixels in self._world.step({int(row): int(actions[row]) for row in going}).items():
                self._frames[row] = pixels[-1]
            self._steps[going] += 1
        rewards, terminated = (np.array(x) for x in self._reward(before, actions, self._frames.copy()))
        rewards = np.where(anew, 0.0, rewards).astype(np.float64)
        terminated = np.where(anew, False, terminated).astype(bool)
        truncated = ~anew & ~terminated & (self._steps >= self._max_steps) if self._max_steps else np.zeros_like(anew)
        self._ended = terminated | truncated
        return self._frames.copy(), rewards, terminated, truncated, {}

    def _begin(self, row: int, seed: int) -> None:
        self._frames[row] = self._world.reset(row, seed=seed)[-1]
        self._steps[row], self._ended[row] = 0, False
