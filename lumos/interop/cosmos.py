"""The released Cosmos-0.1-Tokenizer-DV4x8x8 (arXiv 2501.03575) on the causal VAE that lumos trains.

tokenizer = cosmos.load("Cosmos-0.1-Tokenizer-DV4x8x8")   # safetensors, or encoder.jit + decoder.jit (needs torch)
indices = tokenizer.encode(video)                         # [-1, 1] float [B, F, H, W, 3] -> int32 [B, T, H/8, W/8]
video = tokenizer.decode(indices)
stream = tokenizer.stream()                               # the same, chunk by chunk
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lumos.config import TokenizerConfig
from lumos.errors import UserError
from lumos.interop import cosmos_weights
from lumos.tokenizers.causal_vae import make_definition
from lumos.tokenizers.streaming import VideoStream, reflect_index
from lumos.weights import safetensors_files

_DV4X8X8 = TokenizerConfig(
    channels=128,
    channel_mult=(2, 4, 4),
    num_res_blocks=2,
    patch_size=4,
    spatial_compression=8,
    temporal_compression=4,
    z_channels=16,
    levels=(8, 8, 8, 5, 5, 5),
    outer_norm=True,
)
# The released discrete video tokenizers of the 0.1 family: they differ in their compression alone.
CONFIGS = {
    "dv4x8x8": _DV4X8X8,
    "dv8x8x8": dataclasses.replace(_DV4X8X8, temporal_compression=8),
    "dv8x16x16": dataclasses.replace(_DV4X8X8, temporal_compression=8, spatial_compression=16),
}


class CosmosTokenizer:
    """A Cosmos tokenizer. Video is float [B, F, H, W, 3] in [-1, 1]; H and W are multiples of the spatial compression.

    A video may have any number of frames: one that is not 1 + 4k is continued as the released code does it (84 frames
    give 22 latent frames), and decodes to 4 (T - 1) + 1 frames, more than it had.

    Attributes:
      config, params, definition: of the causal VAE.
      ignored: weights of the checkpoint that its network builds but never runs; `save` writes them back.
    """

    def __init__(self, config: TokenizerConfig, params: Any, ignored: Mapping[str, np.ndarray] | None = None):
        self.config, self.params, self.ignored = config, params, dict(ignored or {})
        self.definition = make_definition(config)
        bind = self.definition.bind
        self._latents = jax.jit(lambda params, video: bind(params).latents(video))
        self._encode = jax.jit(lambda params, video: bind(params).encode(video))
        self._decode = jax.jit(lambda params, indices: bind(params).decode(indices))

    @property
    def codebook_size(self) -> int:
        return int(np.prod(self.config.levels))

    def latents(self, video) -> jax.Array:
        """Return what the quantiser rounds, float32 [B, T, H, W, 6]."""
        return self._latents(self.params, self._continued(video))

    def encode(self, video) -> jax.Array:
        """Return token indices in [0, 64000), int32 [B, T, H, W]; token id of Lumos-1 = 65536 + index."""
        return self._encode(self.params, self._continued(video))

    def decode(self, indices) -> jax.Array:
        """Return the video, float32 [B, 1 + 4 (T - 1), 8 H, 8 W, 3], not clipped."""
        return self._decode(self.params, jnp.asarray(indices))

    def stream(self) -> VideoStream:
        """Return a new stream: the same results chunk by chunk (`lumos.tokenizers.streaming`)."""
        return VideoStream(self.definition, self.config, self.params)

    def save(self, path: str | Path) -> None:
        """Write `model.safetensors` with the official names into a folder."""
        tensors = dict(cosmos_weights.export(self.params, self.definition)) | self.ignored
        safetensors_files.write(path, sorted(tensors.items()))

    def _continued(self, video) -> jax.Array:
        video = jnp.asarray(video)
        if video.ndim != 5 or video.shape[-1] != 3 or not jnp.issubdtype(video.dtype, jnp.floating):
            raise UserError(f"video must be float [B, F, H, W, 3] in [-1, 1], got {video.dtype} {list(video.shape)}")
        index = reflect_index(video.shape[1], self.config.temporal_compression)
        return video if len(index) == video.shape[1] else video[:, index]


def load(path: str | Path, config: str | TokenizerConfig = "dv4x8x8", *, dtype: str = "float32") -> CosmosTokenizer:
    """Load a released tokenizer.

    Args:
      path: a safetensors file, a folder of them, or the released TorchScript archives (a folder with encoder.jit and
        decoder.jit, or one file): those are read by torch, which `pip install lumos-video[convert]` brings.
      config: "dv4x8x8", "dv8x8x8", "dv8x16x16", or a TokenizerConfig. The width is read from the weights.
      dtype: of compute. Tokens near a decision edge differ between float32 and bfloat16.

    Raises:
      UserError: nothing to read, another network, or tensors that do not fit it.
    """
    if isinstance(config, str):
        if config not in CONFIGS:
            raise UserError(f"cosmos config {config!r}; known: {', '.join(CONFIGS)}")
        config = CONFIGS[config]
    tensors = cosmos_weights.read(path)
    config = dataclasses.replace(cosmos_weights.fit(config, tensors), dtype=dtype)
    params, ignored = cosmos_weights.load(tensors, make_definition(config))
    return CosmosTokenizer(config, params, ignored)
