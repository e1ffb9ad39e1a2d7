"""A trained tokenizer, ready to use: pixels to tokens and back."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lumos import config_loading, geometry, sharding
from lumos.checkpoint import Checkpointer, fingerprint, read_config
from lumos.config import Config, TokenizerConfig
from lumos.errors import UserError
from lumos.model.definition import Params
from lumos.tokenizers.causal_vae import ENCODER_PARTS, make_definition
from lumos.tokenizers.pixel_quality import to_float, to_uint8
from lumos.tokenizers.streaming import VideoStream
from lumos.weights import release

_CHUNK_FRAMES = 64  # videos longer than one frame and a chunk are streamed


class Tokenizer:
    """Weights, geometry and identity of a tokenizer.

    Attributes:
      config: its TokenizerConfig.
      fingerprint: hash of the weights that make tokens, those of the decoder left out; token shards carry it.
    """

    def __init__(self, config: TokenizerConfig, params):
        self.config, self.params = config, params
        self.fingerprint = fingerprint({name: params[name] for name in ENCODER_PARTS if name in params})
        self.definition = definition = make_definition(config)
        self._encode = jax.jit(lambda params, video: definition.bind(params).encode(to_float(video)))
        self._decode = jax.jit(lambda params, tokens: to_uint8(definition.bind(params).decode(tokens)))

    @property
    def codebook_size(self) -> int:
        return int(np.prod(self.config.levels))

    def token_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        return geometry.token_shape(self.config, frames, height, width)

    def frame_size(self, rows: int, columns: int) -> tuple[int, int]:
        """Return height and width in pixels of the frames behind a token grid of these rows and columns."""
        return geometry.frame_size(self.config, rows, columns)

    def stream(self) -> VideoStream:
        """Return a new stream: a video of any length encoded, or its tokens decoded, chunk by chunk."""
        if self.config.body == "holistic":
            raise UserError("a holistic tokenizer codes whole clips; it has no stream")
        return VideoStream(self.definition, self.config, self.params)

    @sharding.on_one_device()
    def encode(self, video_BFYXC: np.ndarray) -> np.ndarray:
        """uint8 [B, F, Y, X, 3] -> int32 tokens [B, T, H, W]. Long videos are streamed: memory does not grow."""
        if video_BFYXC.shape[1] <= 1 + _CHUNK_FRAMES or self.config.body == "holistic":
            return np.asarray(self._encode(self.params, video_BFYXC))
        self.token_shape(*video_BFYXC.shape[1:4])  # refuses what has no whole groups
        stream, starts = self.stream(), range(1, video_BFYXC.shape[1], _CHUNK_FRAMES)
        chunks = [video_BFYXC[:, :1], *(video_BFYXC[:, start : start + _CHUNK_FRAMES] for start in starts)]
        return np.concatenate([stream.encode(np.asarray(to_float(chunk))) for chunk in chunks], axis=1)

    @sharding.on_one_device()
    def decode(self, tokens_BTHW: np.ndarray) -> np.ndarray:
        """int32 tokens [B, T, H, W] -> uint8 [B, F, Y, X, 3]. Many latent frames are streamed."""
        chunk = _CHUNK_FRAMES // self.config.temporal_compression
        if tokens_BTHW.shape[1] <= 1 + chunk:
            return np.asarray(self._decode(self.params, jnp.asarray(tokens_BTHW)))
        stream, starts = self.stream(), range(1, tokens_BTHW.shape[1], chunk)
        chunks = [tokens_BTHW[:, :1], *(tokens_BTHW[:, start : start + chunk] for start in starts)]
        return np.concatenate([np.asarray(to_uint8(stream.decode(chunk))) for chunk in chunks], axis=1)


@functools.lru_cache(maxsize=2)
def load(workdir: str | Path) -> Tokenizer:
    """Load the tokenizer that `lumos train` left in a workdir (its EMA weights), or of a release. Raises UserError."""
    config = config_loading.parse(read_config(workdir))
    if config.task != "tokenizer":
        raise UserError(f"{workdir} holds a run with task {config.task!r}, not a tokenizer")
    return Tokenizer(config.tokenizer, _restore(workdir, config))


def _restore(workdir: str | Path, config: Config) -> Params:
    """Return the weights of the VAE; a discriminator beside it is left out."""
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    definition = make_definition(config.tokenizer)
    if release.is_release(workdir):
        return release.read(workdir, definition, jax.tree.map(lambda _: place, definition.abstract))
    checkpointer = Checkpointer(workdir, read_only=True)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), definition.abstract)
    try:
        return checkpointer.restore_params({"vae": abstract}, part="vae")["vae"]
    finally:
        checkpointer.close()
