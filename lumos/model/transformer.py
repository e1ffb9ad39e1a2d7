"""The Llama-style decoder of Lumos-1: shared text + visual vocabulary, MM-RoPE, QK-norm, SwiGLU, GQA."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lumos import sharding
from lumos.errors import UserError
from lumos.model import linear, remat, rope, splash
from lumos.model.definition import Definition, apart, param, scan, stack
from lumos.model.injection import Condition
from lumos.model.layers import Block, RMSNorm
from lumos.model.mixer import LINEAR, SOFTMAX
from lumos.sequence.key_ranges import KeyRanges
from lumos.sequence.storage import Storage
from lumos.sequence.tokens import Positions
from lumos.sequence.vocabulary import Vocabulary

if TYPE_CHECKING:
    from lumos.config import ModelConfig


# What each token sees, in every layer, or in layers that take turns (`sequence.rule.Rule.layers`).
Keys = KeyRanges | tuple[KeyRanges, ...]


class Past(NamedTuple):
    """What decoding attends to besides the current tokens: rotated keys and values of each layer, as `remembered` returns them.

    measure: how the queries score the keys (`model.salience`), if they do.
    sums: of the layers with linear attention, where there are some.
    """

    k: jax.Array
    v: jax.Array
    keys: Keys
    measure: Callable | None = None
    sums: linear.Sums | None = None


class Own(NamedTuple):
    """What a pass leaves of its tokens: keys and values before rotation, [layers, B, Q, K, A]; the scores that `Past.measure`
    gives to the past's keys, float32 [layers, B, S]; and sums over the tokens, of the layers with linear attention."""

    k: jax.Array
    v: jax.Array
    score: jax.Array | None = None
    sums: linear.Sums | None = None


class Transformer(nnx.Module):
    def __init__(self, config: ModelConfig, vocabulary: Vocabulary, rngs: nnx.Rngs):
        self.config, self.vocabulary, vocab_size = config, vocabulary, vocabulary.size
        c = config
        table = c.init_std * jax.random.normal(rngs.params(), (vocab_size, c.model_dim))
        self.embed_tokens = param(table.astype(c.param_dtype), ("vocab", "embed"))
        self.layers = stack(lambda r: Block(c, r), c.num_layers, rngs)
        self.norm = RMSNorm(c.model_dim, "embed", c)
        self.lm_head = c.head.build(c, vocab_size, vocabulary.visual_size, rngs)
        if c.code_levels:
            # Zero at the start: the shared digits only add to what the tables say.
            self.digit_embed = param(jnp.zeros((sum(c.code_levels), c.model_dim), c.param_dtype), (None, "embed"))
            self.digit_head = param(jnp.zeros((c.model_dim, sum(c.code_levels)), c.param_dtype), ("embed", None))
        if c.memory:  # codes of k x k cells to one token; an average at the start
            eye = jnp.eye(c.model_dim, dtype=c.param_dtype)
            average = (jnp.tile(eye, (k**2, 1)) / k**2 for k in c.memory)
            self.memory_embed = nnx.Dict({str(i): param(weight, (None, "embed")) for i, weight in enumerate(average)})
        if vocabulary.stream_tokens and (weight := c.streams.build(c, sum(vocabulary.stream_tokens), rngs)) is not None:
            self.stream_embed = weight
        if c.first_frame:
            self.first_embed = param(jnp.zeros(c.model_dim, c.param_dtype), ("embed",))
        if c.level_embedding:  # zero at the start too
            self.level_embed = param(jnp.zeros((_LEVEL_FEATURES, c.model_dim), c.param_dtype), (None, "embed"))

    def __call__(
        self,
        ids_BQ: jax.Array,
        positions: Positions,
        keys: Keys,
        past: Past | None = None,
        *,
        level_BQ: jax.Array | None = None,
        added_BQD: jax.Array | None = None,
        condition: Condition | None = None,
    ):
        """Return final hidden states [B, Q, D] and what the tokens leave (`Own`).

        Args:
          level_BQ: float32, the share of each token's frame that is hidden; read with `model.level_embedding`.
          added_BQD: added to the embeddings of the tokens (conditions of each frame, such as actions).
          condition: by which every layer scales and shifts its input (`model.streams` "adaln").
        """
        c = self.config
        cos, sin = rope.mm_rope(positions, c.head_dim, c.rope_theta, c.rope)
        x_BQD = embed(self.embeddings(), ids_BQ, self.vocabulary.mask)
        if c.level_embedding:
            if level_BQ is None:
                raise ValueError("config.model.level_embedding needs the level of every token")
            x_BQD = x_BQD + (_level_features(level_BQ) @ self.level_embed[...]).astype(x_BQD.dtype)
        if added_BQD is not None:
            x_BQD = x_BQD + added_BQD.astype(x_BQD.dtype)
        x_BQD = sharding.constrain(x_BQD, ("batch", "length", None))
        kinds = c.mixer.kinds
        given = {} if past is None else {SOFTMAX: (past.k, past.v), LINEAR: (past.sums,)}
        turns = keys if isinstance(keys, tuple) else (keys,)
        past_turns = () if past is None else past.keys if isinstance(past.keys, tuple) else (past.keys,)

        kinds *= math.lcm(len(turns), len(kinds)) // len(kinds)

        def layer(block, x_BQD, turn, *past_layer):
            kind, past_of_layer = kinds[turn], past_layer[0] if past_layer else None
            turn %= len(turns)
            if kind == SOFTMAX and past_layer:
                past_of_layer = Past(*past_layer, past_turns[turn], past.measure)
            x_BQD, own = block(x_BQD, cos, sin, turns[turn], past_of_layer, kind, condition)
            return sharding.constrain(x_BQD, ("batch", "length", None)), own

        given = {kind: given[kind] for kind in kinds if kind in given}
        unroll = not c.scan_layers
        x_BQD, own = scan(
            self.layers, layer, x_BQD, given, kinds=kinds, remat=remat.wrap(c.remat, unroll), unroll=unroll
        )
        none = jnp.zeros((0, *ids_BQ.shape, c.num_kv_heads, c.head_dim), c.dtype)
        return self.norm(x_BQD), Own(*own.get(SOFTMAX, (none, none)), sums=own.get(LINEAR))

    def for_passes(self) -> Transformer:
        """Return the model as loops want it that run it many times with the same weights."""
        if not self.config.scan_layers:
            self.layers = apart(self.layers)
        return self

    def hidden(self, ids_BL: jax.Array, positions: Positions, keys: Keys, **conditions) -> jax.Array:
        """Return final hidden states of whole sequences, [B, L, D]; K and V are not kept."""
        return self(ids_BL, positions, keys, **conditions)[0]

    def storage(self, length: int) -> Storage:
        """Return how sequences of a length lie in memory on the current mesh and platform."""
        shards = sharding.shards("length")
        return Storage(length, shards, splash.length_multiple(length, shards))

    def head(self, first: int, last: int) -> jax.Array:
        """Return the head's columns for token ids [first, last), [D, last - first], in compute dtype."""
        columns = self.lm_head.kernel[...][:, first:last]
        if self.config.code_levels:
            columns = columns + (self.digit_head[...] @ self._digits().T)[:, first:last]
        return columns.astype(self.config.dtype)

    def embeddings(self) -> jax.Array:
        """Return the embedding of every token id, [V, D], in compute dtype."""
        table = self.embed_tokens[...]
        if self.config.code_levels:
            table = table + self._digits() @ self.digit_embed[...]
        return table.astype(self.config.dtype)

    def _digits(self) -> np.ndarray:
        """Return which digits each token id has, 0/1 float32 [V, sum of levels]; zero rows outside the codebook."""
        v, levels = self.vocabulary, self.config.code_levels
        digits = np.zeros((v.size, sum(levels)), np.float32)
        code, offset = np.arange(v.visual_size), 0
        for level in levels:
            digits[v.visual_start + np.arange(v.visual_size), offset + code % level] = 1
            code, offset = code // level, offset + level
        return digits


_LEVEL_FEATURES = 16


def _level_features(level_BQ: jax.Array) -> jax.Array:
    """Return sines and cosines of a level in [0, 1], float32 [B, Q, features]."""
    angle = level_BQ[..., None] * jnp.pi * 2.0 ** jnp.arange(_LEVEL_FEATURES // 2)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def embed(table_VD: jax.Array, ids_BL: jax.Array, common: int = -1) -> jax.Array:
    """Look token ids up in a sharded table, [B, L, D]; `common` is the id that most tokens have, if there is one.

    Every device looks up its columns for the ids of all devices that share the table, and sends the rows to their
    owners: what moves is activations, never the table.
    """
    batch, length = sharding.axis_of(ids_BL.shape[0], "batch"), sharding.axis_of(ids_BL.shape[1], "length")
    if batch is None:
        return _rows(table_VD, ids_BL, common)

    def local(table, ids):
        ids = sharding.all_gather(ids, "embed", 0)
        if sharding.shards("vocab") > 1:
            first = sharding.shard_index("vocab") * table.shape[0]
            ids = ids - first
            mine = (ids >= 0) & (ids < table.shape[0])
            rows = _rows(table, jnp.clip(ids, 0, table.shape[0] - 1), common - first)
            rows = sharding.psum(jnp.where(mine[..., None], rows, 0), "vocab")
        else:
            rows = _rows(table, ids, common)
        return sharding.all_to_all(rows, "embed", split_dim=0, join_dim=2)

    return sharding.per_device(local, (("vocab", "embed"), (batch, length)), (batch, length, None))(table_VD, ids_BL)


def _rows(table_VD: jax.Array, ids_BL: jax.Array, common) -> jax.Array:
    return table_VD[ids_BL] if table_VD.dtype == jnp.float32 else _rows_of_half(table_VD, ids_BL, jnp.int32(common))


@jax.custom_vjp
def _rows_of_half(table_VD, ids_BL, common):
    """Return rows of a table in half precision. Their gradient is summed in float32, for the common id as a sum of its own:
    thousands of numbers added one by one in half precision lose most of them, and a GPU adds those of one row in turn."""
    return table_VD[ids_BL]


def _rows_of_half_bwd(saved, drows_BLD):
    table_VD, ids_BL, common = saved
    is_common_BL, drows_BLD = ids_BL == common, drows_BLD.astype(jnp.float32)
    others_BL = jnp.where(is_common_BL, len(table_VD), ids_BL)
    dtable_VD = jnp.zeros(table_VD.shape, jnp.float32).at[others_BL].add(drows_BLD, mode="drop")
    dcommon_D = jnp.where(is_common_BL[..., None], drows_BLD, 0).sum((0, 1))
    dtable_VD = dtable_VD.at[common].add(dcommon_D, mode="drop", wrap_negative_indices=False)
    return dtable_VD.astype(table_VD.dtype), *(np.zeros(x.shape, jax.dtypes.float0) for x in (ids_BL, common))


_rows_of_half.defvjp(lambda *operands: (_rows_of_half(*operands), operands), _rows_of_half_bwd)


def make_definition(config: ModelConfig, vocabulary: Vocabulary) -> Definition:
    """Describe the transformer for a vocabulary."""
    remat.saved_names(config.remat)  # refuses unknown policies now
    try:
        config.head.check(vocabulary.visual_size)
    except ValueError as error:
        raise UserError(f"config.model.{error}") from error
    if config.code_levels and math.prod(config.code_levels) != vocabulary.visual_size:
        raise UserError(
            f"config.model.code_levels={config.code_levels} has {math.prod(config.code_levels)} codes, but the vocabulary has "
            f"{vocabulary.visual_size} (config.model.visual_vocab, else the codebook); give the tokenizer's levels, or () to switch it off"
        )
    return Definition(lambda rngs: Transformer(config, vocabulary, rngs))


def remembered(
    k_LBSKA: jax.Array, v_LBSKA: jax.Array, positions: Positions, config: ModelConfig
) -> tuple[jax.Array, jax.Array] | tuple[tuple[jax.Array, ...], ...]:
    """Return cached keys, rotated by the positions of their slots (S of them), and values, as `Past` has them for many passes.

    They lie as attention reads them, keys [layers, B, K, A, S] and values [layers, B, K, S, A]; layers that are compiled on their own
    have theirs in a tuple. So no pass copies the cache.
    """
    cos, sin = rope.mm_rope(positions, config.head_dim, config.rope_theta, config.rope)
    laid = rope.rotate(k_LBSKA, cos, sin).transpose(0, 1, 3, 4, 2), v_LBSKA.transpose(0, 1, 3, 2, 4)
    return laid if config.scan_layers else tuple(map(tuple, laid))
