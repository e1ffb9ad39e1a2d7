"""The sampler of the released Lumos-1 code, decision by decision, with its departures from the paper.

The temperature shrinks cumulatively over passes and frames, so that only the first frame sees noise; probabilities are
float32 numbers that saturate and tie; given frames keep all their tokens; a history ratio of 0 still masks one cell.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lumos.generation.sampler import Noise, Sampler, argmax, at

_SMALLEST = 1e-20  # it takes logarithms of no less


@dataclasses.dataclass(frozen=True, kw_only=True)
class Released(Sampler, name="released"):
    """The released Lumos-1 sampler, quirks included."""

    temperature: float = 1.0  # of the Gumbel noise in the first pass of the first frame

    masks_given, always_masks, reads_log_p, NUMBERS = False, True, True, {"temperature": None}

    def __post_init__(self):
        super().__post_init__()
        if self.eta:
            raise ValueError("eta must be 0: the released sampler keeps what it has kept")

    def temperatures(self, steps, is_first):
        shrinking = self.temperature * np.cumprod(1.0 - np.arange(1, steps + 1) / steps)
        return jnp.asarray(shrinking, jnp.float32) * is_first

    def counts(self, num_cells, steps):
        """Return floor(N cos(pi/2 (s+1)/S)) of each pass in float32: where it aims.

        Single precision decides it: at two thirds of the steps 2 N cos is just below N.
        """
        ratio = (np.arange(1, steps + 1) / steps).astype(np.float32)
        cosines = np.cos(ratio * np.float32(math.pi) * np.float32(0.5))
        return np.floor(np.float32(num_cells) * cosines).astype(np.int32)

    def __call__(self, noise: Noise, log_p_BJ, known_BJ, num_hidden, temperature, order_J=None):
        """The number of hidden cells follows from how many there are, max(1, min(hidden - 1, target)), and cells that tie with
        the first kept one are kept. Known cells enter with the largest float32 as their probability."""
        known_log_p = np.log(np.finfo(np.float32).max)
        confidence = jnp.where(known_BJ, known_log_p, log_p_BJ) + temperature * noise.keep()
        hidden_B1 = jnp.sum(~known_BJ, axis=-1, keepdims=True)
        count_B1 = jnp.maximum(1, jnp.minimum(hidden_B1 - 1, num_hidden))
        # What is compared is what was sorted: XLA may compute the confidence once more, and round it in another way.
        cell_BJ = jnp.broadcast_to(jnp.arange(confidence.shape[-1]), confidence.shape)
        rising_BJ, cell_BJ = jax.lax.sort((confidence, cell_BJ), num_keys=1)
        kept_BJ = rising_BJ >= jnp.take_along_axis(rising_BJ, count_B1, axis=-1)
        return jnp.take_along_axis(kept_BJ, jnp.argsort(cell_BJ, axis=-1), axis=-1)

    def choose(self, logits_V, gumbel_V, top_k, top_p):
        """As `sampler.choose`, through float32 probabilities: argmax(p / E), log(max(p, 1e-20)). Saturated ones tie."""
        p = jax.nn.softmax(logits_V, axis=-1)
        codes = argmax(p * jnp.exp(gumbel_V))
        return codes, jnp.log(jnp.maximum(at(p, codes), _SMALLEST))


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
    return Noise(
        lambda start, cells, codes, factor=0: jax.lax.dynamic_slice_in_dim(padded(cells), start, cells, 1), lambda: keep
    )
