"""A head for each axis of the video."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from lumos.model.definition import param, stack
from lumos.model.heads import Factor, Head
from lumos.model.layers import MLP, RMSNorm

if TYPE_CHECKING:
    from lumos.config import ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Axes(Head, name="axes"):
    """A head for each axis: the next column, row and frame; where several predict a code, their logits are averaged (NAR,
    arXiv 2503.10696 section 3.2). Each head has an MLP of its own on the hidden states."""

    shared: bool = False  # one head for all axes (the ablation of the paper)
    num_arms = 3

    def build(self, config, vocab_size, num_codes, rngs):
        return _AxisHeads(config, num_codes, rngs, 1 if self.shared else 3)

    def factors(self, model, num_codes=0):
        matrix_NDV = model.lm_head.kernel[...][..., : num_codes or None].astype(model.config.dtype)
        matrix_NDV = jnp.broadcast_to(matrix_NDV, (self.num_arms, *matrix_NDV.shape[1:]))
        return (Factor(matrix_NDV.reshape(-1, matrix_NDV.shape[-1]), 1, matrix_NDV.shape[-1]),)

    def flops(self, config, num_codes):
        adapter = 2.0 * 3 * config.model_dim * config.mlp_dim
        return self.num_arms * (2.0 * config.model_dim * num_codes + adapter)

    def arms(self, model, hidden_BQD):
        return model.lm_head(hidden_BQD)


class _AxisHeads(nnx.Module):
    def __init__(self, config: ModelConfig, num_codes: int, rngs: nnx.Rngs, num: int):
        self.num = num
        self.adapters = stack(lambda r: _Adapter(config, r), num, rngs)
        kernel = config.init_std * jax.random.normal(rngs.params(), (num, config.model_dim, num_codes))
        self.kernel = param(kernel.astype(config.param_dtype), (None, "embed", "vocab"))

    def __call__(self, x_BQD):
        graph, params = nnx.split(self.adapters)
        of_arm = lambda a: nnx.merge(graph, jax.tree.map(lambda x: x[a], params))(x_BQD)
        return jnp.stack([of_arm(a) for a in range(self.num)] * (3 // self.num), axis=2)


class _Adapter(nnx.Module):
    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.mlp = MLP(config, rngs)
        self.norm = RMSNorm(config.model_dim, "embed", config)

    def __call__(self, x_BQD):
        return self.norm(x_BQD + self.mlp(x_BQD))
