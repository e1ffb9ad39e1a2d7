"""Latent actions: an inverse model names what happened between two frames, a forward model makes the second one of the first and the name.

Genie (arXiv 2402.15391, section 2.1), on latent frames of tokens instead of pixels: labels then need nothing but shards, whatever made
them. The name is one of a few codes, so it cannot carry the next frame, and what remains to be named is what the past does not tell. Both
are convolutions and no transformers as in Genie: with positions, an inverse model names where things are.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lumos.latent_actions.codebook import Codebook
from lumos.model.cross_entropy import CrossEntropy, linear_cross_entropy
from lumos.model.definition import Definition, param
from lumos.model.transformer import embed
from lumos.sequence.streams import ActionsConfig
from lumos.tokenizers.holistic import LayerNorm
from lumos.tokenizers.layers import Dense
from lumos.tokenizers.quantizers import Quantized

_CHUNK = 1024  # positions whose logits exist at once


class Explained(NamedTuple):
    """What the model makes of pairs of frames: their codes, and how well the second frame is predicted, [P, H * W] each."""

    quantized: Quantized
    next: CrossEntropy


class LatentActions(nnx.Module):
    """Inverse model, codebook, forward model. Frames are codes in [0, num_codes), int32 [P, frames, H, W], the newest last."""

    def __init__(self, config: ActionsConfig, num_codes: int, rngs: nnx.Rngs):
        width = config.width
        self.inverse = Side(config, config.history + 1, num_codes, rngs)
        self.to_code = Dense(width, config.code_dim, rngs, axis=None)
        self.codebook = Codebook(config, rngs)
        self.forward = Side(config, config.history, num_codes, rngs)
        self.of_code = Dense(config.code_dim, width, rngs, axis=None)

    def infer(self, frames_PFHW: jax.Array, key: jax.Array | None = None) -> Quantized:
        """Return the actions that led to the last frame, codes [P, code_dim] and indices [P]. `key`: in training only."""
        # What the last frame changes: places where nothing happens say nothing.
        still_PFHW = jnp.concatenate([frames_PFHW[:, :-1], frames_PFHW[:, -2:-1]], axis=1)
        change_PHWD = self.inverse(frames_PFHW) - self.inverse(still_PFHW)
        return self.codebook(self.to_code(change_PHWD.mean((1, 2))), key)

    def predict(self, frames_PFHW: jax.Array, codes_PC: jax.Array) -> jax.Array:
        """Return features of the frame after the last one, [P, H * W, width]; `head` makes logits of them."""
        x_PHWD = self.forward(frames_PFHW, self.of_code(codes_PC)[:, None, None])
        return x_PHWD.reshape(len(x_PHWD), -1, x_PHWD.shape[-1])

    def head(self) -> jax.Array:
        """Return the matrix of logits, [width, num_codes]: the table of the forward model, so that it begins as a copy."""
        return self.forward.table[...].T

    def score(self, frames_PFHW: jax.Array, codes_PC: jax.Array) -> CrossEntropy:
        """Return how well the last frame is predicted from those before it and an action, [P, H * W]."""
        features_PND = self.predict(frames_PFHW[:, :-1], codes_PC)
        labels_PN = frames_PFHW[:, -1].reshape(features_PND.shape[:2])
        return linear_cross_entropy(features_PND, self.head(), labels_PN, jnp.ones(labels_PN.shape), chunk=_CHUNK)

    def explain(self, frames_PFHW: jax.Array, key: jax.Array | None = None) -> Explained:
        """Name what led to the last frames, and predict these by the names."""
        quantized = self.infer(frames_PFHW, key)
        return Explained(quantized, self.score(frames_PFHW, quantized.codes))


class Side(nnx.Module):
    """A table of codes, and residual convolutions over the rows and columns of a few frames of them, which lie in the channels.

    Convolutions, because what happened is a change of place: they find it in any place, and a mean over places says it. With attention
    and positions an inverse model first says where things are, which also tells something of the next frame, and stays there.
    """

    def __init__(self, config: ActionsConfig, num_frames: int, num_codes: int, rngs: nnx.Rngs):
        width = config.width
        self.table = param(jax.random.normal(rngs.params(), (num_codes, width)) * width**-0.5, ("vocab", "embed"))
        # The newest frame as it is, and what the others add.
        self.older = Dense(num_frames * width, width, rngs, axis=None)
        self.blocks = nnx.Dict({str(i): Block(width, rngs) for i in range(config.num_layers)})
        self.norm = LayerNorm(width)

    def __call__(self, frames_PFHW: jax.Array, added_P11D: jax.Array | float = 0.0) -> jax.Array:
        """Return features of the places, [P, H, W, width]; `added_P11D` enters every block."""
        num_pairs, num_frames, height, width = frames_PFHW.shape
        table_VD = self.table[...]
        x_PLD = embed(table_VD, frames_PFHW.reshape(num_pairs, -1)) * table_VD.shape[1] ** 0.5
        x_PFHWD = x_PLD.reshape(num_pairs, num_frames, height, width, -1)
        all_PHWX = jnp.moveaxis(x_PFHWD, 1, 3).reshape(num_pairs, height, width, -1)
        x_PHWD = x_PFHWD[:, -1] + self.older(all_PHWX)
        for i in range(len(self.blocks)):
            x_PHWD = self.blocks[str(i)](x_PHWD, added_P11D)
        return self.norm(x_PHWD)


class Block(nnx.Module):
    """Two 3x3 convolutions with a residual. Neither begins at zero: whatever moves would look alike wherever it goes."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.norm = LayerNorm(width)
        self.first, self.second = Conv(width, rngs), Conv(width, rngs)

    def __call__(self, x_PHWD: jax.Array, added_P11D: jax.Array | float) -> jax.Array:
        return x_PHWD + self.second(jax.nn.silu(self.first(self.norm(x_PHWD) + added_P11D)))


class Conv(nnx.Module):
    """A 3x3 convolution that repeats the border: zeros there would tell where things are, and an action could be named by that."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        kernel = jax.random.normal(rngs.params(), (3, 3, width, width)) / np.sqrt(9 * width)
        self.kernel = param(kernel, (None, None, None, None))
        self.bias = param(jnp.zeros(width), (None,))

    def __call__(self, x_PHWD: jax.Array) -> jax.Array:
        x_PHWD = jnp.pad(x_PHWD, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        kernel = self.kernel[...].astype(x_PHWD.dtype)
        y = jax.lax.conv_general_dilated(x_PHWD, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return y + self.bias[...].astype(x_PHWD.dtype)


def make_definition(config: ActionsConfig, num_codes: int) -> Definition:
    """Describe the model for a codebook of the frames."""
    return Definition(lambda rngs: LatentActions(config, num_codes, rngs))


def pairs(tokens_BTHW: jax.Array, history: int) -> jax.Array:
    """Return every frame but the first, behind the `history` frames before it, [B * (T - 1), history + 1, H, W].

    Before the first frame stands the first frame.
    """
    batch, num_frames, *grid = tokens_BTHW.shape
    index = np.maximum(np.arange(num_frames - 1)[:, None] + np.arange(1 - history, 2), 0)
    return tokens_BTHW[:, index].reshape(batch * (num_frames - 1), history + 1, *grid)


def as_stream(indices_P: jax.Array, num_rows: int, null: int) -> jax.Array:
    """Return the codes of pairs as a stream, int32 [B, T, 1]: null at the first frame, to which nothing led."""
    led_BT = indices_P.reshape(num_rows, -1)
    return jnp.pad(led_BT, ((0, 0), (1, 0)), constant_values=null)[..., None]
