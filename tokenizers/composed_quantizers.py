"""Several codes for each latent cell: grouped, residual, and coarse-to-fine layers.

The tokens of a cell stand side by side, so a composed quantiser widens the token grid instead of the codebook: two
groups turn [T, H, W] cells into [T, H, 2 W] tokens of the same vocabulary. Coarse-to-fine layers keep their tokens of one
area together, in rows of the coarsest layer (`geometry.token_grid`).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lumos.config import TokenizerConfig
from lumos.model.definition import param
from lumos.tokenizers.quantizers import Quantized, Quantizer, join_digits, split_digits, straight_through


class _Composed(Quantizer):
    def __init__(self, parts: list[Quantizer], config: TokenizerConfig):
        self.parts = nnx.Dict({str(i): part for i, part in enumerate(parts)})
        self.levels, self.dim, self._drop = parts[0].levels, parts[0].dim, config.part_drop

    def _in_order(self) -> list[Quantizer]:
        return [self.parts[str(i)] for i in range(len(self.parts))]

    def update_statistics(self, statistics: dict[str, Any]) -> None:
        for name, part in statistics.items():
            self.parts[name].update_statistics(part)

    def _split(self, indices: jax.Array) -> list[jax.Array]:
        """Return the index of each part for every cell: [..., W n] -> n times [..., W]."""
        num = len(self.parts)
        return [indices[..., i::num] for i in range(num)]

    def by_part(self, indices: jax.Array) -> list[jax.Array]:
        return [part.reshape(-1) for part in self._split(indices)]


class Grouped(_Composed):
    """Slices of the channels, each with its own quantiser (OneVAE, arXiv 2508.09857; product quantisation)."""

    def __init__(self, parts: list[Quantizer], config: TokenizerConfig, rngs: nnx.Rngs):
        super().__init__(parts, config)
        self.dim *= len(parts)

    def __call__(self, z: jax.Array, key: jax.Array | None = None) -> Quantized:
        results = [part(x, _fold(key, i)) for i, (part, x) in enumerate(self._slices(z))]
        codes = jnp.concatenate([result.codes for result in results], axis=-1)
        return _join(results, codes, _interleave([result.indices for result in results]))

    def codes_to_indices(self, codes: jax.Array) -> jax.Array:
        return _interleave([part.codes_to_indices(x) for part, x in self._slices(codes)])

    def indices_to_codes(self, indices: jax.Array) -> jax.Array:
        pairs = zip(self._in_order(), self._split(indices))
        return jnp.concatenate([part.indices_to_codes(index) for part, index in pairs], axis=-1)

    def _slices(self, z: jax.Array):
        return zip(self._in_order(), jnp.split(z, len(self.parts), axis=-1))


class Residual(_Composed):
    """Every part quantises what the parts before left over (SoundStream, arXiv 2107.03312); the code is their sum.

    `codes_to_indices` encodes again, greedily: with learnt tables a sum may have several descriptions.
    """

    def __init__(self, parts: list[Quantizer], config: TokenizerConfig, rngs: nnx.Rngs):
        super().__init__(parts, config)

    def __call__(self, z: jax.Array, key: jax.Array | None = None) -> Quantized:
        z = z.astype(jnp.float32)
        results, left = [], z
        for i, part in enumerate(self._in_order()):
            results.append(part(left, _fold(key, i)))
            left = left - jax.lax.stop_gradient(results[-1].codes)
        kept = _num_kept(key, z, len(results), self._drop)
        total = sum(jnp.where(kept > i, result.codes, 0) for i, result in enumerate(results))
        indices = _interleave([result.indices for result in results])
        return _join(results, straight_through(z, lambda _: total), indices)

    def codes_to_indices(self, codes: jax.Array) -> jax.Array:
        return self(codes).indices

    def indices_to_codes(self, indices: jax.Array) -> jax.Array:
        return sum(part.indices_to_codes(index) for part, index in zip(self._in_order(), self._split(indices)))


class ResidualFSQ(Quantizer):
    """Digits of ever finer scale: part i divides the cell of part i - 1 into `levels` cells, on every channel.

    Latents are squashed to (-1, 1) once. A digit names a cell, not an end point as in the usual residual FSQ, so cells
    nest, every code has exactly one index, and n parts are a uniform quantiser of levels**n cells.
    """

    def __init__(self, config: TokenizerConfig):
        self.levels, self.dim = config.levels, len(config.levels)
        self._num, self._drop = config.parts, config.part_drop

    def __call__(self, z: jax.Array, key: jax.Array | None = None) -> Quantized:
        bounded = jnp.tanh(z.astype(jnp.float32))
        digits = self._digits(bounded)
        kept = _num_kept(key, z, self._num, self._drop)
        codes = straight_through(bounded, lambda _: self._codes(digits, kept))
        return Quantized(codes, _interleave([join_digits(d, self.levels) for d in digits]), {}, {})

    def codes_to_indices(self, codes: jax.Array) -> jax.Array:
        return _interleave([join_digits(digits, self.levels) for digits in self._digits(codes)])

    def indices_to_codes(self, indices: jax.Array) -> jax.Array:
        parts = [indices[..., i :: self._num] for i in range(self._num)]
        return self._codes([split_digits(part, self.levels) for part in parts], jnp.int32(self._num))

    def by_part(self, indices: jax.Array) -> list[jax.Array]:
        return [indices[..., i :: self._num].reshape(-1) for i in range(self._num)]

    def _digits(self, x: jax.Array) -> list[jax.Array]:
        levels = np.asarray(self.levels, np.int32)
        finest = levels**self._num
        cell = jnp.clip(jnp.floor((x + 1) / 2 * finest).astype(jnp.int32), 0, finest - 1)
        return [cell // levels ** (self._num - 1 - i) % levels for i in range(self._num)]

    def _codes(self, digits: list[jax.Array], kept: jax.Array) -> jax.Array:
        levels = np.asarray(self.levels, np.float32)
        centres = [((2 * d + 1) / levels - 1) / levels**i for i, d in enumerate(digits)]
        return sum(jnp.where(kept > i, centre, 0) for i, centre in enumerate(centres))


class CoarseToFine(_Composed):
    """Layers of halving grain, as in HiTVideo (arXiv 2503.11513): the first codes areas, the last single cells.

    Layer i has its own slice of the channels, averaged over its areas, less a learnt map of the codes of the layers above.
    The decoder sees the codes of all layers side by side. With `part_drop` it learns to do without the finer ones, whose
    codes are then a learnt vector: `indices_to_codes(..., num_layers)` decodes the first layers alone.
    """

    def __init__(self, parts: list[Quantizer], config: TokenizerConfig, rngs: nnx.Rngs):
        super().__init__(parts, config)
        self._dim, num = self.dim, len(parts)
        self.dim *= num
        self.absent = param(jnp.zeros((num, self._dim)), (None, None))
        self.from_above = nnx.Dict(
            {str(i): param(jnp.zeros((i * self._dim, self._dim)), (None, None)) for i in range(1, num)}
        )

    def __call__(self, z: jax.Array, key: jax.Array | None = None) -> Quantized:
        slices = jnp.split(z.astype(jnp.float32), len(self.parts), axis=-1)
        above, results = [], []
        for i, (part, x) in enumerate(zip(self._in_order(), slices)):
            x = _pool(x, self._side(i))
            if above:
                coarse = jnp.concatenate(above, axis=-1)[..., :: self._side(i), :: self._side(i), :]
                x = x - coarse @ self.from_above[str(i)][...]
            results.append(part(x, _fold(key, i)))
            above.append(_repeat(results[-1].codes, self._side(i)))
        kept = _num_kept(key, z, len(self.parts), self._drop)
        indices = self._weave([result.indices for result in results])
        return _join(results, self._present(above, kept), indices)

    def codes_to_indices(self, codes: jax.Array) -> jax.Array:
        slices = jnp.split(codes, len(self.parts), axis=-1)
        sides = [self._side(i) for i in range(len(self.parts))]
        layers = [x[..., ::side, ::side, :] for x, side in zip(slices, sides)]
        return self._weave([part.codes_to_indices(x) for part, x in zip(self._in_order(), layers)])

    def indices_to_codes(self, indices: jax.Array, num_layers: int | None = None) -> jax.Array:
        """Map tokens [..., *token_grid] to codes of cells; those of layers from `num_layers` on are not looked at."""
        layers = zip(self._in_order(), self._unweave(indices))
        codes = [_repeat(part.indices_to_codes(index), self._side(i)) for i, (part, index) in enumerate(layers)]
        return self._present(codes, jnp.int32(len(codes) if num_layers is None else num_layers))

    def by_part(self, indices: jax.Array) -> list[jax.Array]:
        return [layer.reshape(-1) for layer in self._unweave(indices)]

    def _side(self, layer: int) -> int:
        """Return the cells along each side of an area of a layer."""
        return 2 ** (len(self.parts) - 1 - layer)

    def _present(self, codes: list[jax.Array], kept: jax.Array) -> jax.Array:
        absent = self.absent[...]
        return jnp.concatenate([jnp.where(kept > i, x, absent[i]) for i, x in enumerate(codes)], axis=-1)

    def _weave(self, layers: list[jax.Array]) -> jax.Array:
        """Put the tokens of each coarsest area side by side: coarse first, finer areas row by row."""
        *lead, rows, columns = layers[0].shape
        areas = [
            x.reshape(*lead, rows, 2**i, columns, 2**i).swapaxes(-3, -2).reshape(*lead, rows, columns, 4**i)
            for i, x in enumerate(layers)
        ]
        return jnp.concatenate(areas, axis=-1).reshape(*lead, rows, -1)

    def _unweave(self, indices: jax.Array) -> list[jax.Array]:
        *lead, rows, tokens = indices.shape
        per_area = sum(4**i for i in range(len(self.parts)))
        areas = indices.reshape(*lead, rows, tokens // per_area, per_area)
        columns, layers, start = tokens // per_area, [], 0
        for i in range(len(self.parts)):
            part, start = areas[..., start : start + 4**i], start + 4**i
            part = part.reshape(*lead, rows, columns, 2**i, 2**i).swapaxes(-3, -2)
            layers.append(part.reshape(*lead, rows * 2**i, columns * 2**i))
        return layers


def _fold(key: jax.Array | None, part: int) -> jax.Array | None:
    return None if key is None else jax.random.fold_in(key, part)


def _num_kept(key: jax.Array | None, z: jax.Array, num: int, drop: float) -> jax.Array:
    """Return how many parts each clip keeps, int32 [B, 1, ...]: in training a share `drop` keeps a random number."""
    if key is None or not drop:
        return jnp.int32(num)
    draw, which = jax.random.split(jax.random.fold_in(key, num))
    shape = (len(z), *[1] * (z.ndim - 1))
    some = jax.random.randint(draw, shape, 1, num + 1)
    return jnp.where(jax.random.bernoulli(which, drop, shape), some, num)


def _interleave(parts: list[jax.Array]) -> jax.Array:
    """Put the indices of the parts of a cell side by side: n times [..., W] -> [..., W n]."""
    return jnp.stack(parts, axis=-1).reshape(*parts[0].shape[:-1], -1)


def _join(results: list[Quantized], codes: jax.Array, indices: jax.Array) -> Quantized:
    """Gather the results of the parts: mean losses, statistics by part."""
    losses = {name: sum(result.losses[name] for result in results) / len(results) for name in results[0].losses}
    statistics = {str(i): result.statistics for i, result in enumerate(results) if result.statistics}
    return Quantized(codes, indices, losses, statistics)


def _pool(x: jax.Array, side: int) -> jax.Array:
    """Average over squares of cells: [..., H, W, C] -> [..., H / side, W / side, C]."""
    *lead, rows, columns, dim = x.shape
    return x.reshape(*lead, rows // side, side, columns // side, side, dim).mean(axis=(-4, -2))


def _repeat(x: jax.Array, side: int) -> jax.Array:
    return jnp.repeat(jnp.repeat(x, side, axis=-3), side, axis=-2)
