"""A training step as numbers: matrix sizes, attention area, what is recomputed, how it is split over devices."""

from __future__ import annotations

import dataclasses

import numpy as np

from lumos.config import Config
from lumos.model.remat import offloaded_names, saved_names
from lumos.model.splash import block_sizes, is_fused, padding
from lumos.sequence.layout import Layout
from lumos.sequence.rule import Rule, compile_rule, count_pairs
from lumos.sequence.storage import Storage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """A decoder's training step. Counts are per sequence unless noted."""

    num_layers: int
    model_dim: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int  # rows of the embedding and columns of the head
    head_size: int  # columns of the head that the loss uses
    head_positions: int
    length: int  # with padding
    num_tokens: int  # without
    pairs: float  # visible (query, key) pairs: what counts as work
    computed_pairs: float  # pairs of the blocks that the kernel visits forward: what takes time
    backward_pairs: float  # ... and backward
    batch_size: int  # sequences per step, all devices
    kept: tuple[str, ...]  # named activations that the backward pass finds (lumos/model/remat.py)
    offloaded: tuple[str, ...] = ()
    backward_matmuls: int = 7  # of attention: 5 in one fused kernel, 7 in two
    replica: int = 1
    fsdp: int = 1
    context: int = 1
    tensor: int = 1
    accumulation: int = 1

    @property
    def num_devices(self) -> int:
        return self.replica * self.fsdp * self.context * self.tensor

    @property
    def tokens_per_device(self) -> float:
        """Tokens whose activations one device holds at a time, as if heads were not split."""
        return self.length * self.batch_size / self.accumulation / (self.replica * self.fsdp * self.context)

    @property
    def matrices(self) -> dict[str, int]:
        """Weights of the matmuls of one layer, under the name of their result."""
        d, inner, kv = self.model_dim, self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        mlp = d * self.mlp_dim
        return {
            "query": d * inner,
            "key": d * kv,
            "value": d * kv,
            "out": inner * d,
            "gate": mlp,
            "up": mlp,
            "down": mlp,
        }

    @property
    def widths(self) -> dict[str, int]:
        """Numbers per token of the named activations."""
        inner, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return {
            "query": inner, "key": kv, "value": kv, "attention": inner + 2 * self.num_heads, "out": self.model_dim,
            "gate": self.mlp_dim, "up": self.mlp_dim, "down": self.model_dim,
        }  # fmt: skip

    @property
    def layer_weights(self) -> int:
        return sum(self.matrices.values())

    @property
    def model_flops(self) -> float:
        """FLOPs of a step by the definition of MFU: 3 forward passes over visible pairs, nothing recomputed."""
        dense = 2.0 * self.num_layers * self.layer_weights * self.num_tokens
        attention = 4.0 * self.num_layers * self.num_heads * self.head_dim * self.pairs
        head = 2.0 * self.model_dim * self.head_size * self.head_positions
        return 3 * self.batch_size * (dense + attention + head)

    @property
    def dense_flops(self) -> float:
        """FLOPs of all matmuls but attention, recomputed ones included. The head's logits are always computed twice."""
        # The last matmul's result is only needed by the next layer, whose input is kept: it is never recomputed.
        again = sum(w for name, w in self.matrices.items() if name not in (*self.kept, *self.offloaded, "down"))
        layers = 2.0 * self.num_layers * self.length * (3 * self.layer_weights + again)
        return self.batch_size * (layers + 4 * 2.0 * self.model_dim * self.head_size * self.head_positions)

    @property
    def attention_flops(self) -> float:
        """FLOPs that the attention kernels execute, on whole blocks."""
        forward = 2 if "attention" in (*self.kept, *self.offloaded) else 4
        pairs = forward * self.computed_pairs + self.backward_matmuls * self.backward_pairs
        return 2.0 * self.batch_size * self.num_layers * self.num_heads * self.head_dim * pairs


def from_config(config: Config, layout: Layout, mesh: dict[str, int], *, tpu: bool) -> Workload:
    """Describe the train step of a resolved config."""
    model = config.model
    tokens = layout.num_read
    length = Storage(tokens, mesh["context"], padding(tokens, mesh["context"]) if tpu else 1).num_slots
    q, kv, kv_backward = block_sizes(length // mesh["context"], length) if tpu else (128, 128, 128)
    rule = config.sequence.attention
    pairs = [_block_pairs(layout, rule, q, block) for block in (kv, kv_backward)]
    return Workload(
        num_layers=model.num_layers, model_dim=model.model_dim, mlp_dim=model.mlp_dim, num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads, head_dim=model.head_dim, vocab_size=layout.vocabulary.size,
        head_size=layout.vocabulary.visual_size, head_positions=len(layout.visual_index), length=length,
        num_tokens=tokens,
        pairs=count_pairs(layout, rule), computed_pairs=pairs[0], backward_pairs=pairs[1],
        batch_size=config.data.batch_size, kept=saved_names(model.remat), offloaded=offloaded_names(model.remat),
        accumulation=config.train.accumulation, backward_matmuls=5 if not tpu or is_fused(length) else 7, **mesh,
    )  # fmt: skip


def _block_pairs(layout: Layout, rule: Rule, q: int, kv: int) -> float:
    """Return how many (query, key) pairs lie in the blocks that are computed, averaged over the rule's layers."""
    tokens, first, total = layout.tokens.at(slice(layout.num_read)), np.arange(0, layout.num_read, q), 0.0
    for of_layer in rule.layers():
        ranges = compile_rule(of_layer, tokens, tokens)
        for start, end in zip(ranges.start_RQ, ranges.end_RQ):
            low = np.minimum.reduceat(np.where(end > start, start, layout.num_read), first) // kv
            high = -(-np.maximum.reduceat(end, first) // kv)  # one past the last block of keys of each block of queries
            total += float((np.maximum(high - low, 0) * kv * q).sum())
    return total / len(rule.layers())
