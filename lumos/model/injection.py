"""How layers learn of what comes with each frame, such as actions: the streams beside the video (`sequence.streams`)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lumos.model.definition import param
from lumos.slots import Slot

if TYPE_CHECKING:
    from lumos.config import ModelConfig


class OfFrames(NamedTuple):
    """Where frames and the tokens of their streams are among some tokens: index int32 [F, tokens], and the frame of each token int32 [Q],
    -1 = none."""

    index: np.ndarray
    frame: np.ndarray


class Condition(NamedTuple):
    """What layers are told of each frame, [B, F, D], and the frame of each token int32 [Q], -1 = none."""

    of_frame_BFD: jax.Array
    frame: np.ndarray

    def of_tokens(self, x_BFC: jax.Array) -> jax.Array:
        """Return values of frames for each token, [B, Q, C]; 0 for tokens of none."""
        return jnp.pad(x_BFC, ((0, 0), (0, 1), (0, 0)))[:, self.frame]


class Injection(Slot):
    """What becomes of the codes of streams. `in_sequence`: they are tokens that others attend to; else the tokens show [MASK]."""

    in_sequence = False
    modulates = False  # every layer scales and shifts its input by what comes with the frame

    def build(self, config: ModelConfig, num_tokens: int, rngs: nnx.Rngs):
        """Return the map of the embeddings of a frame's stream tokens, [tokens * D, D], or None."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Token(Injection, name="token"):
    """Tokens before the codes of their frame, which all that follow attend to."""

    in_sequence = True

    def build(self, config, num_tokens, rngs):
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Added(Injection, name="added"):
    """A linear map of them is added to the embeddings of their frame's codes, 0 at the start (iVideoGPT, Genie)."""

    def build(self, config, num_tokens, rngs):
        shape = (num_tokens * config.model_dim, config.model_dim)
        return param(jnp.zeros(shape, config.param_dtype), (None, "embed"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaLN(Injection, name="adaln"):
    """Every layer scales and shifts the normed input of its branches by a linear map of them, 0 at the start (NFD)."""

    modulates = True

    def build(self, config, num_tokens, rngs):
        shape = (num_tokens * config.model_dim, config.model_dim)
        weight = jax.random.normal(rngs.params(), shape) / np.sqrt(shape[0]) / config.init_std
        return param(weight.astype(config.param_dtype), (None, "embed"))


def modulated(x_BQD: jax.Array, change_BQ2D: jax.Array) -> jax.Array:
    """Return a normed input scaled and shifted."""
    scale, shift = jnp.split(change_BQ2D.astype(x_BQD.dtype), 2, axis=-1)
    return x_BQD * (1 + scale) + shift
