"""A head that may copy: a pointer into the frame before, beside a softmax over all codes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lumos.model.cross_entropy import CrossEntropy, linear_cross_entropy
from lumos.model.heads import Categorical, Head, in_chunks, refuse, times
from lumos.model.layers import Linear

_NONE = -1e30  # logit of what cannot be copied


@dataclasses.dataclass(frozen=True, kw_only=True)
class Copy(Head, name="copy"):
    """p = sum over cells o near one's own of gate_o [code = code of o one frame before] + gate_new softmax(logits).

    The gates are a softmax of their own. It is the pointer mixture that stands for ART-V's mask between what is copied from
    the frame before and what is made anew (arXiv 2311.18834 section 3.2); the loss is the likelihood of the mixture. What is
    copied is what the model sees: hidden codes cannot be, so train on a clean history.
    """

    reach: int = 0  # cells that a code may have moved, along rows and columns; 0 = the same cell alone
    in_raster, reads_before = True, True

    def __post_init__(self):
        if self.reach < 0:
            raise ValueError(f"reach={self.reach} must be at least 0")

    def build(self, config, vocab_size, num_codes, rngs):
        return _CopyHead(rngs, config, vocab_size, (2 * self.reach + 1) ** 2 + 1)

    def loss(self, model, features_BJF, codes_BJ, weights_BJ, context=None, *, chunk, **options):
        refuse("copy", **options)
        counted_BJ = (weights_BJ != 0).astype(jnp.float32)
        new = linear_cross_entropy(
            features_BJF, Categorical().factors(model)[0].matrix_FV, codes_BJ, counted_BJ, chunk=chunk
        )
        near_BJO = self._near(context.before_BTHW)
        gates_BJO, right_BJO = self._gates(model.lm_head.gates(features_BJF), near_BJO), near_BJO == codes_BJ[..., None]
        copied_BJO = jnp.where(right_BJO, gates_BJO[..., :-1], _NONE)
        made_BJ = gates_BJO[..., -1] - new.loss
        nll_BJ = -weights_BJ * jax.nn.logsumexp(jnp.concatenate([copied_BJO, made_BJ[..., None]], axis=-1), axis=-1)
        likely_BJ = gates_BJO.argmax(-1)  # which way the code most likely comes
        way_BJO = jnp.concatenate([right_BJO, (new.correct != 0)[..., None]], axis=-1)
        correct_BJ = jnp.take_along_axis(way_BJO, likely_BJ[..., None], axis=-1)[..., 0]
        return CrossEntropy(nll_BJ, nll_BJ, weights_BJ * correct_BJ)

    def draw(self, model, features_RJF, noise, combine, choose, chunk, num_codes=0, context=None):
        matrix, near_BJO = Categorical().factors(model, num_codes)[0].matrix_FV, self._near(context.before_BTHW)
        gates_RJO = model.lm_head.gates(features_RJF).astype(jnp.float32)
        gates_BJO = self._gates(combine(gates_RJO), near_BJO)

        def one(start, features, near, gates):
            logits = combine(times(features, matrix))
            p = jnp.exp(gates[..., -1:]) * jax.nn.softmax(logits, axis=-1)
            rows, columns = np.ogrid[: p.shape[0], : p.shape[1]]
            copies = jnp.exp(gates[..., :-1])
            p = p.at[rows[..., None], columns[..., None], jnp.maximum(near, 0)].add(jnp.where(near < 0, 0, copies))
            return choose(jnp.log(p), noise(start, *p.shape[1:], 0))

        return in_chunks(one, chunk, features_RJF, near_BJO, gates_BJO)

    def _near(self, before_BTHW):
        """Return the codes of the cells near each cell, int32 [B, J, O], -1 outside of the frame."""
        side, (_, _, rows, columns) = 2 * self.reach + 1, before_BTHW.shape
        edge = (self.reach, self.reach)
        padded = jnp.pad(before_BTHW, ((0, 0), (0, 0), edge, edge), constant_values=-1)
        shifted = [padded[:, :, y : y + rows, x : x + columns] for y in range(side) for x in range(side)]
        return jnp.stack(shifted, axis=-1).reshape(len(before_BTHW), -1, side * side)

    def _gates(self, gates_BJO, near_BJO):
        """Return the logarithms of the gates; what is not there gets none."""
        there = jnp.pad(near_BJO >= 0, ((0, 0), (0, 0), (0, 1)), constant_values=True)
        return jax.nn.log_softmax(jnp.where(there, gates_BJO.astype(jnp.float32), _NONE), axis=-1)


class _CopyHead(Linear):
    """The matrix of the softmax, and one for the gates, which starts at 0: all alike."""

    def __init__(self, rngs, config, vocab_size: int, num_gates: int):
        super().__init__(rngs, (config.model_dim, vocab_size), ("embed", "vocab"), config)
        self.gates = Linear(rngs, (config.model_dim, num_gates), ("embed", None), config)
