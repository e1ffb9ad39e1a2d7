"""The size of a clip in pixels, cells and tokens: what a tokenizer's settings alone say of it."""

from __future__ import annotations

from lumos.config import TokenizerConfig
from lumos.config_rules import check_clip_shape


def token_shape(config: TokenizerConfig, frames: int, height: int, width: int) -> tuple[int, int, int]:
    """Return the token grid (frames, rows, columns) of a clip. Raises UserError for sizes that the tokenizer cannot encode."""
    check_clip_shape(frames, height, width, config)
    if config.body == "holistic":
        return 1, 1, config.num_queries * config.parts
    return token_grid(config, latent_shape(config, frames, height, width))


def latent_shape(config: TokenizerConfig, frames: int, height: int, width: int) -> tuple[int, int, int]:
    """Return latent (T, H, W) of a clip in pixels: the first frame stands alone in time."""
    space = config.spatial_compression
    return 1 + (frames - 1) // config.temporal_compression, height // space, width // space


def token_grid(config: TokenizerConfig, cells: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the token grid (frames, rows, columns) of a latent grid (T, H, W)."""
    frames, rows, columns = cells
    if config.composition != "layers":
        return frames, rows, columns * config.parts
    coarsest = 2 ** (config.parts - 1)
    per_area = sum(4**i for i in range(config.parts))  # tokens of one cell of the coarsest layer
    return frames, rows // coarsest, columns // coarsest * per_area


def cells_of(config: TokenizerConfig, rows: int, columns: int) -> tuple[int, int]:
    """Return the rows and columns of cells behind those of a token grid, the inverse of `token_grid`."""
    if config.composition != "layers":
        return rows, columns // config.parts
    coarsest = 2 ** (config.parts - 1)
    per_area = sum(4**i for i in range(config.parts))
    return rows * coarsest, columns // per_area * coarsest


def frame_size(config: TokenizerConfig, rows: int, columns: int) -> tuple[int, int]:
    """Return height and width in pixels of the frames behind a token grid of these rows and columns."""
    if config.body == "holistic":
        return tuple(config.clip[1:])
    height, width = cells_of(config, rows, columns)
    return height * config.spatial_compression, width * config.spatial_compression


def num_frames(config: TokenizerConfig, latent_frames: int) -> int:
    """Return the frames in pixels behind so many latent frames: the first stands alone in time."""
    if config.body == "holistic":
        return config.clip[0]
    return 1 + (latent_frames - 1) * config.temporal_compression
