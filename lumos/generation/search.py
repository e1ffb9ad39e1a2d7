"""Slot 5, search: several candidates go on together, and the best one stays.

A candidate is a row of a session; branching and pruning are forks. The first candidate draws what there would be without a
search, others with random keys of their own, the same ones however many there are.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lumos.errors import UserError
from lumos.slots import Slot

if TYPE_CHECKING:
    from lumos.generation.session import Session


class Candidates(NamedTuple):
    """What a score sees of N candidates: the codes made so far [N, T, H, W], the ids of the prompts [N, P] and their lengths [N],
    and log-probabilities of all drawn codes [N]: of the model as it is, and without the text (None without such a branch)."""

    codes_NTHW: np.ndarray
    text_NP: np.ndarray
    text_length_N: np.ndarray
    log_p_N: np.ndarray
    log_p_without_text_N: np.ndarray | None


def likelihood(candidates: Candidates) -> np.ndarray:
    """How probable the codes were, at temperature 1 and without guidance."""
    return candidates.log_p_N


def text_ratio(candidates: Candidates) -> np.ndarray:
    """How much more probable the text made them. Raises UserError."""
    if candidates.log_p_without_text_N is None:
        raise UserError("search score 'text_ratio' needs a branch without text: set config.generate.guidance to 'text'")
    return candidates.log_p_N - candidates.log_p_without_text_N


SCORES = {score.__name__: score for score in (likelihood, text_ratio)}


def find_score(name: str) -> Callable[[Candidates], np.ndarray]:
    """Return a score by its name, or "module:function". Raises ValueError."""
    module, _, function = name.partition(":")
    if not function:
        if name not in SCORES:
            raise ValueError(f"score={name!r}: allowed: {', '.join(SCORES)}, or module:function")
        return SCORES[name]
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"score={name!r}: {error}") from error


class Search(Slot):
    """Which candidates there are, and which of them stay. Called with a session behind its prefill and a number of latent frames;
    returns their codes [B, T, H, W] and how many frames were generated for each row."""

    is_on = True  # whether the engine keeps log-probabilities for it

    def __call__(self, session: Session, num_frames: int) -> tuple[np.ndarray, int]:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoSearch(Search, name="none"):
    """What is drawn first."""

    is_on = False

    def __call__(self, session, num_frames):
        return np.stack(list(session.frames(num_frames)), axis=1), num_frames


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tree(Search, name="tree"):
    """A tree of frames: rows branch before some frames, and the best ones stay (Video-T1, arXiv 2503.18942 section 3.3)."""

    # Candidates that each one becomes before the first frame, the second, ...; later 1
    branches: tuple[int, ...] = (5,)
    prune: tuple[int, ...] = (4,)  # behind so many frames only the best stay; behind the last one, the best
    keep: int = 1  # how many stay
    score: str = "likelihood"  # likelihood | text_ratio | module:function, which gets `search.Candidates`

    def __post_init__(self):
        if min(self.branches, default=1) < 1 or min(self.prune, default=1) < 1 or self.keep < 1:
            raise ValueError(
                f"branches={self.branches}, prune={self.prune} and keep={self.keep} must be at least 1 everywhere"
            )
        find_score(self.score)

    def __call__(self, session, num_frames):
        batch, frames, cost = len(session.keys_B), [], 0
        for depth in range(num_frames):
            more = self.branches[depth] if depth < len(self.branches) else 1
            if more > 1:
                rows = np.repeat(np.arange(len(session.keys_B)), more)
                session = session.fork(rows, _branch(session.keys_B, more))
                frames = [codes[rows] for codes in frames]
            frames.append(np.asarray(session.advance()))
            num, is_last = len(session.keys_B) // batch, depth + 1 == num_frames
            cost += num
            if num > 1 and (is_last or depth + 1 in self.prune):
                keep = 1 if is_last else min(self.keep, num)
                scores = np.asarray(find_score(self.score)(_candidates(session, frames))).reshape(batch, num)
                best = np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :keep], axis=1)
                rows = (np.arange(batch)[:, None] * num + best).reshape(-1)
                session = session.fork(rows)
                frames = [codes[rows] for codes in frames]
        return np.stack(frames, axis=1), cost


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestOf(Search, name="best_of"):
    """The best of some clips (random search)."""

    num: int = 4  # clips
    score: str = "likelihood"  # as of the tree

    def __post_init__(self):
        self._tree  # noqa: B018  (it checks them)

    @property
    def _tree(self) -> Tree:
        return Tree(branches=(self.num,), prune=(), score=self.score)

    def __call__(self, session, num_frames):
        return self._tree(session, num_frames)


def _branch(keys_B: jax.Array, num: int) -> jax.Array:
    """Return the keys of the candidates that each row becomes; the first one keeps its key."""
    # Numbers that no group has: groups count from 0.
    fold = lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, 2**31 - 1 - jnp.arange(num - 1))
    return jnp.concatenate([keys_B[:, None], jax.vmap(fold)(keys_B)], axis=1).reshape(-1)


def _candidates(session: Session, frames: list[np.ndarray]) -> Candidates:
    log_p, without = session.log_p
    return Candidates(np.stack(frames, axis=1), *session.text, log_p, without)
