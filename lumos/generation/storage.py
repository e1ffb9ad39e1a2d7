"""Slot 7, the storage: in how many bits the cache keeps keys and values."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from lumos.slots import Slot

if TYPE_CHECKING:
    from lumos.generation.view import View

_MOST = 127  # largest integer that is stored


class Scales(NamedTuple):
    """What stored integers are multiplied with, float32. k: [layers, rows, blocks, K, A], of each channel over a block of tokens;
    v: [layers, rows, S, K], of each token. block: int32 [S], the block of each slot; 0 is that of the text."""

    k: jax.Array
    v: jax.Array
    block: jax.Array

    def read(self, k: jax.Array, v: jax.Array, dtype) -> tuple[jax.Array, jax.Array]:
        """Return keys and values from stored ones, [layers, rows, S, K, A] each."""
        k_scale = jnp.take(self.k, self.block, axis=2)
        return (k * k_scale).astype(dtype), (v * self.v[..., None]).astype(dtype)

    def append(self, kv: tuple[jax.Array, jax.Array], used_S: jax.Array, count: jax.Array):
        """Return the integers of a block of new tokens, and the scales with those of the block."""
        (k, k_scale), (v, v_scale) = quantise(kv[0], axis=2), quantise(kv[1], axis=4)
        in_use = jnp.zeros(self.k.shape[2], bool).at[self.block].max(used_S)
        free = jnp.argmin(in_use).astype(jnp.int32)  # the first; the cache has room for a block
        put = jax.lax.dynamic_update_slice_in_dim
        block = put(self.block, jnp.full(k.shape[2], free), count, 0)
        return (k, v), Scales(put(self.k, k_scale, free, 2), put(self.v, v_scale[..., 0], count, 2), block)


def quantise(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """Return int8 and the scale of what shares an axis, which stays with size 1: x = integers * scale, half a scale off at most."""
    x = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(x).max(axis, keepdims=True) / _MOST, 1e-30)
    return jnp.round(x / scale).astype(jnp.int8), scale


class CacheStorage(Slot):
    """In which form keys and values are kept."""

    def check(self, view: View) -> None:
        """Raise ValueError if the form does not go with a layout or a cache policy."""

    def pack(self, k, v, prefix: int, size: int):
        """Return stored keys and values from those of all slots, [layers, rows, S, K, A]; and their scales, if any.

        prefix: slots of the text; size: of each group behind it.
        """
        return k, v, None


@dataclasses.dataclass(frozen=True, kw_only=True)
class AsComputed(CacheStorage, name="computed"):
    """In `model.dtype`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Int8(CacheStorage, name="int8"):
    """In 8 bits: keys before rotation with a scale for each channel of a group, values with one for each token (KIVI, arXiv
    2402.02750). Half the memory of bfloat16. They are read once for each frame, where keys are rotated."""

    def check(self, view):
        if not view.settings.cache.is_shared:
            raise ValueError(
                f"storage 'int8' has scales for whole groups, which the cache {view.settings.cache.name!r} breaks up"
            )
        if not view.groups.is_uniform or view.groups.size < 4:
            raise ValueError(
                "storage 'int8' has a scale for each channel of a group: groups must be equal, of 4 tokens at least"
            )

    def pack(self, k, v, prefix, size):
        num = k.shape[2]
        more = -(num - prefix) % size  # markers behind the last group
        groups = jnp.pad(k[:, :, prefix:], ((0, 0), (0, 0), (0, more), (0, 0), (0, 0)))
        groups = groups.reshape(*k.shape[:2], (num - prefix + more) // size, size, *k.shape[3:])
        (text, text_scale), (video, video_scale) = quantise(k[:, :, :prefix], 2), quantise(groups, 3)
        v, v_scale = quantise(v, 4)
        k_scale = jnp.concatenate([text_scale, video_scale[:, :, :, 0]], axis=2)
        video = video.reshape(*k.shape[:2], num - prefix + more, *k.shape[3:])
        k = jnp.concatenate([text, video], axis=2)[:, :, :num]
        slot = jnp.arange(num)
        block = jnp.where(slot < prefix, 0, 1 + (slot - prefix) // size)
        return k, v, Scales(k_scale, v_scale[..., 0], block.astype(jnp.int32))
