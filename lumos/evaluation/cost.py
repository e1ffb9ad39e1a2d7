"""What generated clips cost, before any is made."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp

from lumos.config import Config
from lumos.layouts import make_layout
from lumos.model.transformer import make_definition

_SIZE = 1024


def flops_of_clip(config: Config) -> float:
    """Return the FLOPs of the matmuls of one generated clip: 2 a weight and token, in each pass and branch of guidance."""
    layout = make_layout(config, copies=1)
    weights = make_definition(config.model, layout.vocabulary).num_params
    return 2.0 * weights * layout.length * passes_of_clip(config)


def passes_of_clip(config: Config) -> int:
    """Return how often the model goes over each code of a clip: in every pass and branch of guidance."""
    passes = config.generate.steps + 1 if config.sequence.targets.name == "in_place" else 1
    return passes * len(config.generate.guidance.branches())


def measured_rate(dtype: str) -> float:
    """Return the FLOP/s of a matmul on one device here."""
    x = jnp.ones((_SIZE, _SIZE), dtype)
    multiply = jax.jit(lambda x: x @ x)
    multiply(x).block_until_ready()
    start, count = time.perf_counter(), 0
    while (seconds := time.perf_counter() - start) < 0.2:
        multiply(x).block_until_ready()
        count += 1
    return count * 2.0 * _SIZE**3 / seconds
