"""How much memory one device needs, from shapes: exact for the state, a model of the step for the rest.

The step is taken at its two high points: the backward pass of the last layer, when all kept activations are there, and
the loss, when the gathered head, the features and one chunk of logits are. docs/plans.md holds the estimate
against what the TPU compiler says.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from lumos import sharding
from lumos.chips import Topology
from lumos.config import Config, OptimizerConfig
from lumos.model.splash import block_sizes, is_fused
from lumos.planning.workload import Workload
from lumos.training.optimizer import make_optimizer
from lumos.training.state import abstract_state

_BF16, _F32 = 2, 4
_LANES = 128  # of a TPU: arrays whose last axis is a narrower head are padded to them
# Arrays as wide as all heads, and as wide as the model, that live at once in the backward pass of a layer, in bf16. From what
# the TPU compiler needs for heads of 64 and of 128 (docs/plans.md).
_HEADS_AT_ONCE, _WIDTHS_AT_ONCE = 17, 2.8


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device, by category."""

    params: float
    optimizer: float
    ema: float
    batch: float
    activations: float
    temporaries: float

    @property
    def total(self) -> float:
        return sum(dataclasses.astuple(self))

    @property
    def arguments(self) -> float:
        return self.params + self.optimizer + self.ema + self.batch


def abstract_mesh(sizes: dict[str, int]) -> jax.sharding.AbstractMesh:
    """Return a mesh that has no devices: enough to know every shard's shape."""
    names = sharding.MESH_AXES
    types = (jax.sharding.AxisType.Auto,) * len(names)
    return jax.sharding.AbstractMesh(tuple(sizes[name] for name in names), names, axis_types=types)


def local_bytes(tree: Any) -> int:
    """Return the bytes of one device's shards of abstract arrays, those in the memory of the host left out."""
    return sum(_shard_bytes(x) for x in jax.tree.leaves(tree) if not sharding.is_on_host(x.sharding))


def _shard_bytes(x: Any) -> int:
    return math.prod(x.sharding.shard_shape(x.shape)) * jnp.dtype(x.dtype).itemsize


def train_memory(config: Config, definition, w: Workload, sizes: dict[str, int], topology: Topology) -> Memory:
    """Estimate the train step of a transformer."""
    params, moments, ema, passing = _state_bytes(config.optimizer, definition, tuple(sizes.items()))
    rows = w.batch_size / (w.replica * w.fsdp)
    batch = 4 * rows * (math.prod(config.sequence.grid) + config.sequence.text_length)
    return Memory(
        params=params, optimizer=moments, ema=ema, batch=batch,
        activations=kept_bytes(w, config.model.remat),
        temporaries=_temporaries(config, w, params, topology) + passing,
    )  # fmt: skip


@functools.lru_cache(maxsize=256)
def _state_bytes(config: OptimizerConfig, definition, sizes: tuple) -> tuple[int, int, int, int]:
    """Return the bytes of parameters, moments, EMA, and of the offloaded moments that pass through the device at a time."""
    mesh = abstract_mesh(dict(sizes))
    state = abstract_state(
        definition, make_optimizer(config, 1), mesh, ema=config.ema_decay > 0, offload=config.offload
    )
    passing = 2 * max(map(_shard_bytes, jax.tree.leaves(state.opt_state))) if config.offload else 0
    return local_bytes(state.params), local_bytes(state.opt_state), local_bytes(state.ema), passing


def kept_bytes(w: Workload, remat: str) -> float:
    """Return the activations that wait for the backward pass: each layer's input and what the policy keeps."""
    split = {"query", "key", "value", "attention", "gate", "up"}
    kept = sum(w.widths[name] / (w.tensor if name in split else 1) for name in w.kept)
    if remat == "none":  # norms, rotated and normalised heads, the gated product
        kept += 6 * w.model_dim + 3 * w.num_heads * w.head_dim / w.tensor + 2 * w.mlp_dim / w.tensor
    return w.num_layers * w.tokens_per_device * _BF16 * (w.model_dim + kept)


def _temporaries(config: Config, w: Workload, params: float, topology: Topology) -> float:
    head_dim = max(w.head_dim, _LANES) if topology.is_tpu else w.head_dim
    heads, kv_heads = w.num_heads * head_dim / w.tensor, w.num_kv_heads * head_dim / w.tensor
    weights = 2 * w.layer_weights * _BF16 / w.tensor if w.fsdp > 1 else 0
    gathered_kv = 4 * kv_heads * w.tokens_per_device * w.context * _BF16 if w.context > 1 else 0
    # As wide as the MLP: the compiler holds one more on v6e (docs/plans.md).
    mlps = (2 if topology.chip_name == "v6e" else 1) * w.mlp_dim / w.tensor
    layer = w.tokens_per_device * _BF16 * (mlps + _HEADS_AT_ONCE * heads + _WIDTHS_AT_ONCE * w.model_dim)
    if topology.is_tpu and is_fused(w.length):
        _, _, keys_per_block = block_sizes(w.length // w.context, w.length)
        layer += w.length // keys_per_block * w.tokens_per_device * heads * _BF16  # a dq of each block of keys
    head = w.model_dim * w.head_size / w.tensor
    chunk = min(config.loss.chunk, w.tokens_per_device) * w.head_size / w.tensor
    loss = head * _BF16 + chunk * _F32 + 3 * w.tokens_per_device * w.model_dim * _F32
    gradients = params  # as wide as the parameters
    return gradients + max(weights + layer + gathered_kv, loss)
