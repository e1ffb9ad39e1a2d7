"""Slot 6, sampler and guidance: draw a code for every unknown cell, keep the confident ones.

`draw` and `keep_confident` are the method of MaskGIT and Lumos-1; `reference_draw` and `reference_keep` make the same
decisions as the released Lumos-1 code, number by number. Noise comes from outside, as Gumbel numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_SMALLEST = 1e-20  # the released code takes logarithms of no less


class Noise(NamedTuple):
    """Gumbel noise of one step. draw(first cell, cells, codes) -> [B, cells, codes]; keep() -> [B, J]."""

    draw: Callable[[jax.Array, int, int], jax.Array]
    keep: Callable[[], jax.Array]


def row_keys(seed: int, num_rows: int) -> jax.Array:
    """Return the random key of each clip of a batch, [B]: row i is the clip of seed + i."""
    return jnp.stack([jax.random.key(seed + i) for i in range(num_rows)])


def seeded(keys_B: jax.Array, num_cells: int) -> Noise:
    """Return the noise of one random key for each row.

    Every row and every cell draws for itself: a clip is the same in any batch, and however many cells are drawn at a time.
    """
    draw_keys, keep_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys_B), 1, 0)

    def draw(start, cells, codes):
        of_cells = jax.vmap(jax.random.fold_in, (None, 0))
        keys_BJ = jax.vmap(of_cells, (0, None))(draw_keys, start + jnp.arange(cells))
        return jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, (codes,))))(keys_BJ)

    return Noise(draw, lambda: jax.vmap(lambda key: jax.random.gumbel(key, (num_cells,)))(keep_keys))


def recorded(
    uniform: Callable[[int, int], tuple[np.ndarray, np.ndarray]], shape: tuple[int, int, int], frame, step
) -> Noise:
    """Return the noise of recorded uniform numbers, fetched from the host at each step.

    `uniform(frame, step)` returns ([B, J, V] for the draw of the codes, [B, J] for the confidence), in (0, 1]; frame
    counts generated frames. Code v of a cell is drawn with E = -log(u_v): argmax(p_v / E_v).
    """

    def host(frame, step):
        parts = uniform(int(frame), int(step))
        parts = [np.broadcast_to(np.asarray(part, np.float64), size) for part, size in zip(parts, (shape, shape[:2]))]
        clip = lambda x: np.maximum(x, _SMALLEST)
        return tuple((-np.log(clip(-np.log(clip(part))))).astype(np.float32) for part in parts)

    out = tuple(jax.ShapeDtypeStruct(size, jnp.float32) for size in (shape, shape[:2]))
    draw, keep = jax.pure_callback(host, out, frame, step)
    # The last chunk of cells may reach past the frame: its surplus is never used.
    padded = lambda cells: jnp.pad(draw, ((0, 0), (0, -shape[1] % cells), (0, 0)))
    return Noise(lambda start, cells, codes: jax.lax.dynamic_slice_in_dim(padded(cells), start, cells, 1), lambda: keep)


def guide(logits: jax.Array, scale: float) -> jax.Array:
    """Classifier-free guidance on rows [conditional..., unconditional...]: u + scale (c - u). Scale 1 takes plain rows."""
    if scale == 1.0:
        return logits
    conditional, unconditional = jnp.split(logits, 2)
    return unconditional + scale * (conditional - unconditional)


def draw(
    noise: Noise, hidden_BJD: jax.Array, head_DV: jax.Array, *, guidance: float, top_k: int, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """Draw one code per cell and return (codes int32 [B, J], log-probability of the drawn code [B, J]).

    `hidden_BJD` has 2B rows under guidance. Logits exist for `chunk` cells at a time.
    """

    def choose(logits, gumbel):
        if top_k:
            least = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][..., -1:]
            logits = jnp.where(logits < least, -jnp.inf, logits)
        codes = _argmax(logits + gumbel)
        return codes, _at(logits, codes) - jax.nn.logsumexp(logits, axis=-1)

    return _in_chunks(choose, noise, hidden_BJD, head_DV, guidance, chunk)


def reference_draw(
    noise: Noise, hidden_BJD: jax.Array, head_DV: jax.Array, *, guidance: float, top_k: int, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """As `draw`, through float32 probabilities: argmax(p / E), log(max(p, 1e-20)). Saturated probabilities tie."""
    if top_k:
        raise ValueError("the released sampler draws from all codes: top_k must be 0")

    def choose(logits, gumbel):
        p = jax.nn.softmax(logits, axis=-1)
        codes = _argmax(p * jnp.exp(gumbel))
        return codes, jnp.log(jnp.maximum(_at(p, codes), _SMALLEST))

    return _in_chunks(choose, noise, hidden_BJD, head_DV, guidance, chunk)


def _argmax(x_BJV):
    """As jnp.argmax of finite numbers, in two passes: a CPU does not vectorise one that carries the index along.

    The barrier keeps both from making the noise again.
    """
    x_BJV = jax.lax.optimization_barrier(x_BJV)
    peak = x_BJV.max(axis=-1, keepdims=True)
    return jnp.where(x_BJV == peak, jnp.arange(x_BJV.shape[-1]), x_BJV.shape[-1]).min(axis=-1)


def _at(values, codes):
    return jnp.take_along_axis(values, codes[..., None], axis=-1)[..., 0]


def _in_chunks(choose, noise: Noise, hidden_BJD, head_DV, guidance: float, chunk: int):
    num = hidden_BJD.shape[1]
    chunk = min(chunk, num)
    padded = jnp.pad(hidden_BJD, ((0, 0), (0, -num % chunk), (0, 0)))
    chunks = jnp.moveaxis(padded.reshape(padded.shape[0], -1, chunk, padded.shape[-1]), 1, 0)

    def one(slices):
        index, hidden = slices
        logits = guide(jnp.einsum("bjd,dv->bjv", hidden, head_DV, preferred_element_type=jnp.float32), guidance)
        codes, log_p = choose(logits, noise.draw(index * chunk, chunk, logits.shape[-1]))
        return codes.astype(jnp.int32), log_p

    if chunks.shape[0] == 1:
        return one((0, chunks[0]))
    codes, log_p = jax.lax.map(one, (jnp.arange(chunks.shape[0]), chunks))
    return tuple(jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)[:, :num] for x in (codes, log_p))


def keep_confident(
    noise: Noise, log_p_BJ: jax.Array, known_BJ: jax.Array, num_unknown: jax.Array, temperature: jax.Array
) -> jax.Array:
    """Return the new known mask: all but the `num_unknown` least confident cells (log p + temperature * Gumbel).

    Known cells stay known (MaskGIT; Lumos-1 section 3.4).
    """
    confidence = log_p_BJ + temperature * noise.keep()
    confidence = jnp.where(known_BJ, jnp.inf, confidence)
    rank = jnp.argsort(jnp.argsort(confidence, axis=-1), axis=-1)
    return known_BJ | (rank >= num_unknown)


def reference_keep(
    noise: Noise, log_p_BJ: jax.Array, known_BJ: jax.Array, target: jax.Array, temperature: jax.Array
) -> jax.Array:
    """Return the new known mask as the released code decides it.

    The number of unknown cells follows from how many there are, max(1, min(unknown - 1, target)), and cells that tie
    with the first kept one are kept. Known cells enter with the largest float32 as their probability.
    """
    known_log_p = np.log(np.finfo(np.float32).max)
    confidence = jnp.where(known_BJ, known_log_p, log_p_BJ) + temperature * noise.keep()
    unknown_B1 = jnp.sum(~known_BJ, axis=-1, keepdims=True)
    count_B1 = jnp.maximum(1, jnp.minimum(unknown_B1 - 1, target))
    cut_B1 = jnp.take_along_axis(jnp.sort(confidence, axis=-1), count_B1, axis=-1)
    return confidence >= cut_B1
