"""The causal 3D VAE with a discrete bottleneck: video [B, F, Y, X, 3] <-> tokens [B, T, H, W].

The factorised network of the Cosmos tokenizer (Cosmos-0.1-Tokenizer-DV4x8x8; arXiv 2501.03575, section 4.1): Haar
patcher, convolutional encoder, quantiser, mirrored decoder, un-patcher. It is causal in time: latent frame 0 is the
first video frame alone, latent frame j covers the next `temporal_compression` frames and sees nothing later. So an
image is a one-frame video, and a clip has 1 + temporal_compression * k frames.

Parameter names follow the released checkpoints: `encoder.down.0.block.1.conv2.0.conv3d.weight` is
`encoder/down/0/block/1/conv2/spatial/kernel` here.

`outer_norm=False` is the form for training small networks. It has no norm before the bottleneck and before the
output, so with residual branches that start at zero there is a linear path from patcher to un-patcher: brightness and
saturation are the length of the feature vector, a norm at these two places removes it, and a narrow network then
stalls below the PSNR of a clip's mean colour. And the maps between bands and features are 1x1x1: in a narrow network
3x3x3 ones would cost more than all the rest.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from lumos.config import TokenizerConfig
from lumos.config_rules import check_clip_shape
from lumos.model.definition import Definition
from lumos.tokenizers.holistic import HolisticVAE
from lumos.tokenizers.layers import NORMS, Attention, Dense, Downsample, FactorizedConv, ResidualBlock, Upsample
from lumos.tokenizers.quantizer_factory import make_quantizer
from lumos.tokenizers.quantizers import Quantized
from lumos.tokenizers.streaming import Stream
from lumos.tokenizers.wavelet import haar_patch, haar_unpatch

ENCODER_PARTS = ("encoder", "quant_conv", "quantizer")  # the parameters that make tokens


class Stage(nnx.Module):
    """One level of the encoder or decoder: residual blocks, then an optional resampling."""

    def __init__(self, in_dim: int, out_dim: int, num_blocks: int, norm: str, rngs: nnx.Rngs):
        dims = [in_dim] + [out_dim] * num_blocks
        self.block = _numbered(ResidualBlock(dims[i], out_dim, rngs, norm=norm) for i in range(num_blocks))

    def __call__(self, x_BTHWC: jax.Array, stream: Stream | None = None) -> jax.Array:
        for block in _in_order(self.block):
            x_BTHWC = block(x_BTHWC, stream)
        for resample in ("downsample", "upsample"):
            if hasattr(self, resample):
                x_BTHWC = getattr(self, resample)(x_BTHWC, stream)
        return x_BTHWC


class Middle(nnx.Module):
    """Residual block, spatial and temporal attention (optional), residual block, at the latent resolution."""

    def __init__(self, dim: int, config: TokenizerConfig, rngs: nnx.Rngs):
        norm = config.norm
        self.block_1 = ResidualBlock(dim, dim, rngs, norm=norm)
        if config.mid_attention:
            space = Attention(dim, rngs, over="space", norm=norm)
            time = Attention(dim, rngs, over="time", window=config.temporal_window, norm=norm)
            self.attn_1 = nnx.Dict(space=space, time=time)
        self.block_2 = ResidualBlock(dim, dim, rngs, norm=norm)

    def __call__(self, x_BTHWC: jax.Array, stream: Stream | None = None) -> jax.Array:
        x = self.block_1(x_BTHWC, stream)
        if hasattr(self, "attn_1"):
            x = self.attn_1["time"](self.attn_1["space"](x), stream)
        return self.block_2(x, stream)


class Encoder(nnx.Module):
    """Video [B, F, Y, X, 3] -> features [B, T, H, W, z_channels]."""

    def __init__(self, config: TokenizerConfig, rngs: nnx.Rngs):
        self.patch, self.remat = _patch(config), config.remat
        num_space, num_time = _num_strides(config)
        dims = [config.channels * mult for mult in (1, *config.channel_mult)]
        samples = math.prod(self.patch)
        # Nearly all power of the Haar bands is in the three averages; the gain restores the scale of the pixels.
        conv_in = FactorizedConv if config.outer_norm else Dense
        self.conv_in = conv_in(3 * samples, dims[0], rngs, gain=samples**0.5)
        self.down = _numbered(
            Stage(dims[level], dims[level + 1], config.num_res_blocks, config.norm, rngs)
            for level in range(len(dims) - 1)
        )
        for level in range(max(num_space, num_time)):
            self.down[str(level)].downsample = Downsample(
                dims[level + 1], rngs, space=level < num_space, time=level < num_time
            )
        self.mid = Middle(dims[-1], config, rngs)
        if config.outer_norm:
            self.norm_out = NORMS[config.norm](dims[-1])
        self.conv_out = FactorizedConv(dims[-1], config.z_channels, rngs, axis=None)

    def __call__(self, video_BFYXC: jax.Array, stream: Stream | None = None) -> jax.Array:
        stream = stream or Stream(forgets=True)
        bands = haar_patch(video_BFYXC, self.patch[1], first=stream.first, frames=self.patch[0])
        x = self.conv_in(bands, stream) if isinstance(self.conv_in, FactorizedConv) else self.conv_in(bands)
        for stage in _in_order(self.down):
            x = _run_stage(stage, x, stream, self.remat)
        x = self.mid(x, stream)
        if hasattr(self, "norm_out"):
            x = jax.nn.silu(self.norm_out(x))
        return self.conv_out(x, stream)


class Decoder(nnx.Module):
    """Features [B, T, H, W, z_channels] -> video [B, F, Y, X, 3], not clipped."""

    def __init__(self, config: TokenizerConfig, rngs: nnx.Rngs):
        self.patch, self.remat = _patch(config), config.remat
        num_space, num_time = _num_strides(config)
        dims = [config.channels * mult for mult in (*config.channel_mult, config.channel_mult[-1])]
        top = len(config.channel_mult) - 1
        samples = math.prod(self.patch)
        self.conv_in = FactorizedConv(config.z_channels, dims[-1], rngs)
        self.mid = Middle(dims[-1], config, rngs)
        self.up = _numbered(
            Stage(dims[level + 1], dims[level], config.num_res_blocks + 1, config.norm, rngs)
            for level in range(top + 1)
        )
        # Stages run from the top down. Time is doubled from the second one on; space begins with it, or before when
        # there are more strides in space than in time.
        first = 0 if num_space > num_time else 1
        in_space, in_time = range(first, first + num_space), range(1, 1 + num_time)
        num_used = 1 + max([*in_space, *in_time], default=-1)
        for position in range(num_used):
            level = top - position
            if position in in_space or position in in_time:
                self.up[str(level)].upsample = Upsample(
                    dims[level], rngs, space=position in in_space, time=position in in_time
                )
        if config.outer_norm:
            self.norm_out = NORMS[config.norm](dims[0])
        conv_out = FactorizedConv if config.outer_norm else Dense
        self.conv_out = conv_out(dims[0], 3 * samples, rngs, axis=None, gain=samples**-0.5)

    def __call__(self, z_BTHWC: jax.Array, stream: Stream | None = None) -> jax.Array:
        stream = stream or Stream(forgets=True)
        x = self.mid(self.conv_in(z_BTHWC, stream), stream)
        for stage in reversed(_in_order(self.up)):
            x = _run_stage(stage, x, stream, self.remat)
        if hasattr(self, "norm_out"):
            x = jax.nn.silu(self.norm_out(x))
        bands = self.conv_out(x, stream) if isinstance(self.conv_out, FactorizedConv) else self.conv_out(x)
        return haar_unpatch(bands, self.patch[1], first=stream.first, frames=self.patch[0])


class CausalVAE(nnx.Module):
    """Encoder, quantiser, decoder."""

    def __init__(self, config: TokenizerConfig, rngs: nnx.Rngs):
        self.config = config
        self.quantizer = make_quantizer(config, rngs)
        self.encoder = Encoder(config, rngs)
        self.quant_conv = Dense(config.z_channels, self.quantizer.dim, rngs, axis=None)
        self.post_quant_conv = Dense(self.quantizer.dim, config.z_channels, rngs, axis=None)
        self.decoder = Decoder(config, rngs)

    def latents(self, video_BFYXC: jax.Array) -> jax.Array:
        """Return what the quantiser rounds, float32 [B, T, H, W, d], for a video in [-1, 1]."""
        return self.latents_of_chunk(video_BFYXC, Stream(forgets=True))[0]

    def latents_of_chunk(self, video_BFYXC: jax.Array, stream: Stream) -> tuple[jax.Array, list]:
        """Return the latents of a chunk of video and what the next chunk needs (see `streaming`)."""
        frames, height, width = video_BFYXC.shape[1:4]
        check_clip_shape(frames + (not stream.first), height, width, self.config)
        features = self.encoder(video_BFYXC.astype(self.config.dtype), stream)
        return self.quant_conv(features).astype(jnp.float32), stream.memory

    def encode(self, video_BFYXC: jax.Array) -> jax.Array:
        """Turn a video in [-1, 1] into int32 tokens [B, *token grid], [B, T, H, W] where a cell has one code."""
        return self.quantizer(self.latents(video_BFYXC)).indices

    def decode(self, indices_BTHW: jax.Array) -> jax.Array:
        """Turn tokens into a float32 video [B, F, Y, X, 3], nominally in [-1, 1] (not clipped)."""
        return self._decode_codes(self.quantizer.indices_to_codes(indices_BTHW))

    def decode_chunk(self, indices_BTHW: jax.Array, stream: Stream) -> tuple[jax.Array, list]:
        """Return the video of a chunk of tokens and what the next chunk needs (see `streaming`)."""
        return self._decode_codes(self.quantizer.indices_to_codes(indices_BTHW), stream), stream.memory

    def reconstruct(self, video_BFYXC: jax.Array, key: jax.Array | None = None) -> tuple[jax.Array, Quantized]:
        """Return the reconstruction and what the quantiser made; differentiable. `key`: in training only."""
        quantized = self.quantizer(self.latents(video_BFYXC), key)
        return self._decode_codes(quantized.codes), quantized

    def _decode_codes(self, codes_BTHWC: jax.Array, stream: Stream | None = None) -> jax.Array:
        features = self.post_quant_conv(codes_BTHWC.astype(self.config.dtype))
        return self.decoder(features, stream).astype(jnp.float32)


def make_tokenizer(config: TokenizerConfig, rngs: nnx.Rngs) -> CausalVAE | HolisticVAE:
    """Build the network that `config.body` names."""
    return (HolisticVAE if config.body == "holistic" else CausalVAE)(config, rngs)


@functools.lru_cache(maxsize=4)
def make_definition(config: TokenizerConfig) -> Definition:
    """Describe the tokenizer: init, parameter shapes and axes, and `bind(params)` -> the network."""
    return Definition(functools.partial(make_tokenizer, config))


def _patch(config: TokenizerConfig) -> tuple[int, int, int]:
    """Return the frames, rows and columns of a patch: no more frames than a latent frame stands for."""
    return min(config.patch_size, config.temporal_compression), config.patch_size, config.patch_size


def _num_strides(config: TokenizerConfig) -> tuple[int, int]:
    """Return the number of halvings (space, time) that remain after the patcher."""
    frames, side, _ = _patch(config)
    space, time = config.spatial_compression // side, config.temporal_compression // frames
    return space.bit_length() - 1, time.bit_length() - 1


def _run_stage(stage: Stage, x: jax.Array, stream: Stream, remat: bool) -> jax.Array:
    """Run a level; with `remat` its activations are computed again in the backward pass instead of being kept."""
    if not (remat and stream.forgets):
        return stage(x, stream)
    graph, params = nnx.split(stage)
    return jax.checkpoint(lambda params, x: nnx.merge(graph, params)(x, Stream(forgets=True)))(params, x)


def _numbered(modules) -> nnx.Dict:
    return nnx.Dict({str(i): module for i, module in enumerate(modules)})


def _in_order(modules: nnx.Dict) -> list[nnx.Module]:
    return [modules[str(i)] for i in range(len(modules))]
