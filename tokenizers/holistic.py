"""A tokenizer without a grid: learnt queries gather a whole clip into a sequence of tokens (LARP, arXiv 2410.21264).

Encoder: patches of the clip and N learnt queries go through a transformer; the outputs of the queries are quantised. Decoder:
the quantised queries and one blank query for each patch go through another; the outputs of the blanks are the patches.
Tokens have no place, so the token grid is [1, 1, N]. An optional small autoregressive model predicts each code from those
before; its loss orders the tokens in a way that a generator can learn, and it is not used afterwards.

What LARP leaves to long training starts right here, because short runs otherwise learn the mean of all pixels and stay there:
queries and blanks have no content, only positions, which attention adds to its queries and keys (as DETR does, arXiv
2005.12872); a learnt query starts at the place of a patch; keys start equal to queries, so that every element first attends
to what lies near (arXiv 2305.09828), and MLPs start at zero.

A clip has one size, `config.clip`. Patches are Haar bands, so it has 1 + 4k frames and the first one has patches of its own.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lumos.config import TokenizerConfig
from lumos.errors import UserError
from lumos.model.definition import param
from lumos.tokenizers.layers import Dense
from lumos.tokenizers.quantizer_factory import make_quantizer
from lumos.tokenizers.quantizers import Quantized
from lumos.tokenizers.wavelet import haar_patch, haar_unpatch

_HEAD_DIM = 32


class HolisticVAE(nnx.Module):
    """Encoder, quantiser, decoder and, for training, the prior. The interface of `CausalVAE` without streams."""

    def __init__(self, config: TokenizerConfig, rngs: nnx.Rngs):
        self.config = config
        self._side = config.spatial_compression // config.patch_size
        patch_dim = 3 * config.patch_size**3 * self._side**2
        self.quantizer = make_quantizer(config, rngs)
        self.encoder = HolisticEncoder(patch_dim, config, self._places(), rngs)
        self.quant_conv = Dense(config.channels, self.quantizer.dim, rngs, axis=None)
        self.post_quant_conv = Dense(self.quantizer.dim, config.channels, rngs, axis=None)
        self.decoder = HolisticDecoder(patch_dim, config, rngs)
        if config.prior_weight:
            self.prior = Prior(self.quantizer.dim, config, rngs)

    def latents(self, video_BFYXC: jax.Array) -> jax.Array:
        """Return what is quantised, float32 [B, 1, 1, N, d], for a video in [-1, 1]."""
        self._check(video_BFYXC.shape[1:4])
        patches = self._patches(video_BFYXC.astype(self.config.dtype))
        z = self.quant_conv(self.encoder(patches, self._positions()))
        return z.astype(jnp.float32)[:, None, None]

    def encode(self, video_BFYXC: jax.Array) -> jax.Array:
        """Turn a video in [-1, 1] into int32 tokens [B, 1, 1, N]."""
        return self.quantizer(self.latents(video_BFYXC)).indices

    def decode(self, indices_B11N: jax.Array) -> jax.Array:
        """Turn tokens into a float32 video [B, F, Y, X, 3], nominally in [-1, 1]."""
        return self._decode_codes(self.quantizer.indices_to_codes(indices_B11N))

    def reconstruct(self, video_BFYXC: jax.Array, key: jax.Array | None = None) -> tuple[jax.Array, Quantized]:
        """Return the reconstruction and what the quantiser made, with the prior's loss. `key`: in training only."""
        quantized = self.quantizer(self.latents(video_BFYXC), key)
        if hasattr(self, "prior") and key is not None:
            codes, indices = quantized.codes[:, 0, 0], quantized.indices[:, 0, 0]
            prior = self.config.prior_weight * self.prior.loss(codes, indices, self.quantizer.table())
            quantized = quantized._replace(losses={**quantized.losses, "prior": prior})
        return self._decode_codes(quantized.codes), quantized

    def _decode_codes(self, codes_B11ND: jax.Array) -> jax.Array:
        tokens = self.post_quant_conv(codes_B11ND[:, 0, 0].astype(self.config.dtype))
        patches = self.decoder(tokens, self._places(), self._positions())
        side, grid = self._side, self._grid
        bands = patches.reshape(len(patches), *grid, side, side, -1).swapaxes(3, 4)
        bands = bands.reshape(len(patches), grid[0], grid[1] * side, grid[2] * side, -1)
        return haar_unpatch(jax.lax.optimization_barrier(bands), self.config.patch_size).astype(jnp.float32)

    @property
    def _grid(self) -> tuple[int, int, int]:
        """Patches along time, rows and columns."""
        frames, height, width = self.config.clip
        cell, time = self.config.spatial_compression, self.config.temporal_compression
        return 1 + (frames - 1) // time, height // cell, width // cell

    def _positions(self) -> np.ndarray:
        """Return the position codes of the patches [P, width]."""
        return position_codes(self._grid, self.config.channels)

    def _places(self) -> np.ndarray:
        """Return the position codes [N, width] of the tokens: at equal distances along the patches, between two where needed."""
        positions = self._positions()
        at = np.linspace(0, len(positions) - 1, self.config.num_queries)
        patches = np.arange(len(positions))
        return np.stack([np.interp(at, patches, column) for column in positions.T], axis=1).astype(np.float32)

    def _patches(self, video: jax.Array) -> jax.Array:
        """Return patches [B, P, C]."""
        # Apart from the wavelet: together XLA (jaxlib 0.11) takes minutes over the reshapes of even a tiny clip.
        bands, side = jax.lax.optimization_barrier(haar_patch(video, self.config.patch_size)), self._side
        (frames, rows, columns), dim = self._grid, bands.shape[-1]
        cells = bands.reshape(-1, frames, rows, side, columns, side, dim).swapaxes(3, 4)
        return cells.reshape(len(bands), -1, side * side * dim)

    def _check(self, shape: tuple[int, ...]) -> None:
        if tuple(shape) != tuple(self.config.clip):
            raise UserError(
                f"this tokenizer takes clips of config.tokenizer.clip={self.config.clip}, got {tuple(shape)}"
            )


class HolisticEncoder(nnx.Module):
    """Patches [B, P, C] -> outputs of the queries [B, N, width]."""

    def __init__(self, patch_dim: int, config: TokenizerConfig, places_ND: np.ndarray, rngs: nnx.Rngs):
        self.embed = Dense(patch_dim, config.channels, rngs, gain=config.patch_size**1.5)
        self.queries = param(jnp.asarray(places_ND), (None, None))
        self.blocks = Blocks(config, rngs)

    def __call__(self, patches_BPC: jax.Array, positions_PD: np.ndarray) -> jax.Array:
        x = _with_blanks(self.embed(patches_BPC), len(self.queries))
        positions = jnp.concatenate([positions_PD, self.queries[...]])
        return self.blocks(x, positions)[:, len(positions_PD) :]


class HolisticDecoder(nnx.Module):
    """Quantised queries [B, N, width] -> patches [B, P, C]."""

    def __init__(self, patch_dim: int, config: TokenizerConfig, rngs: nnx.Rngs):
        self.blocks = Blocks(config, rngs)
        self.conv_out = Dense(config.channels, patch_dim, rngs, axis=None, gain=0.0)

    def __call__(self, tokens_BND: jax.Array, places_ND: np.ndarray, positions_PD: np.ndarray) -> jax.Array:
        x = _with_blanks(tokens_BND, len(positions_PD))
        x = self.blocks(x, np.concatenate([places_ND, positions_PD]))
        return self.conv_out(x[:, len(places_ND) :])


def _with_blanks(x_BLD: jax.Array, num: int) -> jax.Array:
    """Append `num` elements without content, which attention tells apart by their positions."""
    return jnp.pad(x_BLD, ((0, 0), (0, num), (0, 0)))


class Prior(nnx.Module):
    """Autoregressive model of the code vectors: the next direction, whose cosines with all codes are logits (LARP section 3.3).

    As in the released code the logits have temperature 1; 0.03 is that of the stochastic quantiser. LARP's prior learns 50 times faster
    than its tokenizer, which has Adam at 1e-4 (`config.optimizer.rates`), and also reads its own predictions in a second round; this
    one does not.
    """

    def __init__(self, dim: int, config: TokenizerConfig, rngs: nnx.Rngs):
        self.start = param(0.02 * jax.random.normal(rngs.params(), (dim,)), (None,))
        self.embed = Dense(dim, config.channels, rngs)
        self.blocks = Blocks(config, rngs, causal=True)
        self.head = Dense(config.channels, dim, rngs, axis=None)

    def loss(self, codes_BND: jax.Array, indices_BN: jax.Array, table_KD: jax.Array) -> jax.Array:
        """Return the mean cross-entropy in nats. Gradients reach the codes that are read, not the table."""
        start = jnp.broadcast_to(self.start[...], (len(codes_BND), 1, codes_BND.shape[-1]))
        x = self.embed(jnp.concatenate([start, codes_BND[:, :-1]], axis=1))
        predicted = _unit(self.head(self.blocks(x, position_codes((x.shape[1],), x.shape[-1]))))
        logits = predicted @ jax.lax.stop_gradient(_unit(table_KD)).T
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), indices_BN[..., None], axis=-1)
        return -picked.mean()


class Blocks(nnx.Module):
    """Pre-norm transformer blocks and a last norm over [B, L, D]; positions [L, D] are seen by attention alone."""

    def __init__(self, config: TokenizerConfig, rngs: nnx.Rngs, *, causal: bool = False):
        self._remat, self._causal = config.remat, causal
        self.layers = nnx.Dict({str(i): Block(config.channels, rngs) for i in range(config.num_res_blocks)})
        self.norm = LayerNorm(config.channels)

    def __call__(self, x_BLD: jax.Array, positions_LD: jax.Array) -> jax.Array:
        positions_LD = positions_LD.astype(x_BLD.dtype)
        for i in range(len(self.layers)):
            graph, params = nnx.split(self.layers[str(i)])
            run = lambda params, x, graph=graph: nnx.merge(graph, params)(x, positions_LD, self._causal)
            x_BLD = (jax.checkpoint(run) if self._remat else run)(params, x_BLD)
        return self.norm(x_BLD)


class Block(nnx.Module):
    """Multi-head attention and an MLP, each with a residual."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.norm1, self.norm2 = LayerNorm(width), LayerNorm(width)
        self.query, self.key, self.value = (Dense(width, width, rngs) for _ in range(3))
        self.key.kernel[...] = self.query.kernel[...]
        self.proj_out = Dense(width, width, rngs)
        self.up = Dense(width, 4 * width, rngs)
        self.down = Dense(4 * width, width, rngs, gain=0.0)

    def __call__(self, x_BLD: jax.Array, positions_LD: jax.Array, causal: bool) -> jax.Array:
        content = self.norm1(x_BLD)
        placed = content + positions_LD
        heads = lambda y: y.reshape(*y.shape[:2], -1, _HEAD_DIM)
        q, k, v = heads(self.query(placed)), heads(self.key(placed)), heads(self.value(content))
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=causal)
        x_BLD = x_BLD + self.proj_out(mixed.reshape(x_BLD.shape))
        return x_BLD + self.down(jax.nn.gelu(self.up(self.norm2(x_BLD))))


class LayerNorm(nnx.Module):
    """Layer norm over channels, float32 statistics."""

    def __init__(self, dim: int):
        self.scale, self.bias = param(jnp.ones(dim), (None,)), param(jnp.zeros(dim), (None,))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jax.nn.standardize(x.astype(jnp.float32), epsilon=1e-6)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


def position_codes(shape: tuple[int, ...], dim: int) -> np.ndarray:
    """Return sines and cosines of the coordinates along each axis, float32 [prod(shape), dim], zeros where none fit.

    Periods go from 4 steps to 4 times the axis. The amplitude of 2 makes them outweigh normed content at first.
    """
    per_axis = dim // (2 * len(shape))
    parts = []
    for size, coordinates in zip(shape, np.meshgrid(*(np.arange(size) for size in shape), indexing="ij")):
        angles = coordinates.reshape(-1, 1) * np.pi / 2 * float(size) ** (-np.arange(per_axis) / per_axis)
        parts += [2 * np.sin(angles), 2 * np.cos(angles)]
    codes = np.concatenate(parts, axis=1)
    return np.pad(codes, ((0, 0), (0, dim - codes.shape[1]))).astype(np.float32)


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.square(x).sum(axis=-1, keepdims=True) + 1e-12)
