"""Counts the FLOPs of a model. docs/method.md states the formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax

from lumos.model.mixer import SOFTMAX
from lumos.sequence.layout import Layout
from lumos.sequence.rule import Rule, count_pairs

if TYPE_CHECKING:
    from lumos.config import ModelConfig


def forward_flops(model: ModelConfig, layout: Layout, rule: Rule, num_candidates: int) -> float:
    """Return FLOPs of one forward pass of one sequence, counting only visible (query, key) pairs.

    Per token and layer: 2 FLOPs per weight of the projections and the MLP; per visible pair 4 * heads * head_dim
    (logits and values), in layers with linear attention 2 * head_dim^2 per head for sums and values; the head over `num_candidates` tokens at every visual position.
    """
    attention = model.model_dim * model.head_dim * (2 * model.num_heads + 2 * model.num_kv_heads)
    mlp = 3 * model.model_dim * model.mlp_dim
    dense = 2.0 * layout.num_read * model.num_layers * (attention + mlp)
    softmax = model.mixer.kinds.count(SOFTMAX) / len(model.mixer.kinds)  # share of the layers
    pairs = 4.0 * softmax * model.num_layers * model.num_heads * model.head_dim * count_pairs(layout, rule)
    heads = model.num_heads + model.num_kv_heads
    pairs += 2.0 * (1 - softmax) * model.num_layers * layout.num_read * heads * model.head_dim**2
    head = len(layout.visual_index) * model.head.flops(model, num_candidates)
    return dense + pairs + head


def count_matmul_flops(function: Callable, *args) -> float:
    """Return the FLOPs of every matmul and convolution in `function`, by walking its jaxpr (loops times their length)."""
    return _jaxpr_sum(jax.make_jaxpr(function)(*args).jaxpr, _flops_of)


def _flops_of(equation) -> float:
    out = equation.outvars[0].aval
    if equation.primitive.name == "dot_general":
        (contract, _), _ = equation.params["dimension_numbers"]
        return 2.0 * out.size * math.prod(equation.invars[0].aval.shape[axis] for axis in contract)
    kernel = equation.invars[1].aval
    out_axis = equation.params["dimension_numbers"].rhs_spec[0]
    return 2.0 * out.size * kernel.size / kernel.shape[out_axis]


def _jaxpr_sum(jaxpr, value: Callable) -> float:
    """Sum `value(equation)` over all matmuls and convolutions."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            total += value(equation)
        repeats = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for inner in _inner(equation):
            total += repeats * _jaxpr_sum(inner, value)
    return total


def _inner(equation):
    for parameter in equation.params.values():
        for part in parameter if isinstance(parameter, (tuple, list)) else (parameter,):
            part = getattr(part, "jaxpr", part)
            if hasattr(part, "eqns"):
                yield part


def count_matmul_outputs(function: Callable, *args) -> float:
    """Return how many numbers the matmuls and convolutions of `function` produce, loops times their length."""
    return _jaxpr_sum(jax.make_jaxpr(function)(*args).jaxpr, lambda equation: equation.outvars[0].aval.size)
