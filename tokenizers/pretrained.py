"""A trained tokenizer, ready to use: pixels to tokens and back."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lumos import config as config_lib
from lumos import sharding
from lumos.checkpoint import Checkpointer, fingerprint, read_config
from lumos.errors import UserError
from lumos.tokenizers.causal_vae import latent_shape, make_definition
from lumos.tokenizers.metrics import to_float, to_uint8


class Tokenizer:
    """Weights, geometry and identity of a tokenizer.

    Attributes:
      config: its TokenizerConfig.
      fingerprint: hash of the weights; token shards carry it.
    """

    def __init__(self, config: config_lib.TokenizerConfig, params):
        self.config, self.params = config, params
        self.fingerprint = fingerprint(params)
        definition = make_definition(config)
        self._encode = jax.jit(lambda params, video: definition.bind(params).encode(to_float(video)))
        self._decode = jax.jit(lambda params, tokens: to_uint8(definition.bind(params).decode(tokens)))

    @property
    def codebook_size(self) -> int:
        return int(np.prod(self.config.levels))

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        return latent_shape(self.config, frames, height, width)

    @sharding.on_one_device()
    def encode(self, video_BFYXC: np.ndarray) -> np.ndarray:
        """uint8 [B, F, Y, X, 3] -> int32 tokens [B, T, H, W]."""
        return np.asarray(self._encode(self.params, video_BFYXC))

    @sharding.on_one_device()
    def decode(self, tokens_BTHW: np.ndarray) -> np.ndarray:
        """int32 tokens [B, T, H, W] -> uint8 [B, F, Y, X, 3]."""
        return np.asarray(self._decode(self.params, jnp.asarray(tokens_BTHW)))


@functools.lru_cache(maxsize=2)
def load(workdir: str | Path) -> Tokenizer:
    """Load the tokenizer that `lumos train` left in a workdir (its EMA weights). Raises UserError."""
    config = config_lib.parse(read_config(workdir))
    if config.task != "tokenizer":
        raise UserError(f"{workdir} holds a {config.task} run, not a tokenizer")
    checkpointer = Checkpointer(workdir, read_only=True)
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), make_definition(config.tokenizer).abstract
    )
    try:
        return Tokenizer(config.tokenizer, checkpointer.restore_params(abstract))
    finally:
        checkpointer.close()
