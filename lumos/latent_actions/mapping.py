"""What latent actions have to do with real ones: a table learnt from a few labelled frames, and what it is worth on others."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Mapping:
    """counts: how often each latent code stood at each real action, int64 [codes, actions]."""

    counts_KA: np.ndarray

    @classmethod
    def learn(cls, codes: np.ndarray, actions: np.ndarray, num_codes: int, num_actions: int):
        """Count codes and actions of the same frames, integers of any one shape."""
        counts_KA = np.zeros((num_codes, num_actions), np.int64)
        np.add.at(counts_KA, (codes.reshape(-1), actions.reshape(-1)), 1)
        return cls(counts_KA)

    @property
    def action_of(self) -> np.ndarray:
        """The action that each code most often stood at, int [codes]; of a code that was never seen the most frequent one."""
        unseen_K = self.counts_KA.sum(1) == 0
        return np.where(unseen_K, self.counts_KA.sum(0).argmax(), self.counts_KA.argmax(1))

    @property
    def code_of(self) -> np.ndarray:
        """The code by which each action is most often named, int [actions]: with it a real action is given to a latent world."""
        return self.counts_KA.argmax(0)

    def accuracy(self, codes: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Return where the action is read off the code rightly, bool of their shape."""
        return self.action_of[codes] == actions

    @property
    def information(self) -> tuple[float, float]:
        """Mutual information of codes and actions, and the entropy of the actions, in nats."""
        joint_KA = self.counts_KA / max(self.counts_KA.sum(), 1)
        codes_K1, actions_1A = joint_KA.sum(1, keepdims=True), joint_KA.sum(0, keepdims=True)
        log = lambda x: np.log(np.where(x > 0, x, 1))
        shared = (joint_KA * (log(joint_KA) - log(codes_K1) - log(actions_1A))).sum()
        return float(max(shared, 0.0)), float(-(actions_1A * log(actions_1A)).sum())
