"""Transformer layers. Parameters carry logical axis names; nothing here knows of devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from lumos.model import attention, linear, rope
from lumos.model.definition import param
from lumos.model.injection import Condition, modulated
from lumos.model.mixer import LINEAR, SOFTMAX
from lumos.model.precision import matmul_in
from lumos.model.remat import keep
from lumos.sequence.key_ranges import KeyRanges

if TYPE_CHECKING:
    from lumos.config import ModelConfig


@jax.custom_vjp
def matmul(x, kernel):
    """Return x @ kernel, with a gradient that is twice as fast on a CPU as the one JAX derives.

    There the first operand of a contraction over tokens is copied in transposed order. JAX puts the gradient of the output
    first, which carries the derivative of the activation function into that copy; here it is x, once for all that reads it.
    """
    return x @ kernel


def _matmul_fwd(x, kernel):
    return x @ kernel, (x, kernel)


def _matmul_bwd(saved, dy):
    x, kernel = saved
    tokens = tuple(range(x.ndim - 1))
    return dy @ kernel.T, jax.lax.dot_general(x, dy, ((tokens, tokens), ((), ())))


matmul.defvjp(_matmul_fwd, _matmul_bwd)


class Linear(nnx.Module):
    """y = x W (+ b) with W of shape [in, out]."""

    def __init__(self, rngs, shape, axes, config: ModelConfig, *, bias=False, std=None):
        self._dtype = jnp.dtype(config.dtype)
        self._matmul = matmul if config.matmul_dtype == "same" else matmul_in(config.matmul_dtype)
        dtype = jnp.dtype(config.param_dtype)
        std = std or config.init_std
        # Drawn in float32, so that a run starts from the same weights in either precision.
        self.kernel = param((std * jax.random.normal(rngs.params(), shape)).astype(dtype), axes)
        if bias:
            self.bias = param(jnp.zeros(shape[1:], dtype), axes[1:])

    def __call__(self, x):
        y = self._matmul(x, self.kernel[...].astype(self._dtype))
        return y + self.bias[...].astype(self._dtype) if hasattr(self, "bias") else y


class RMSNorm(nnx.Module):
    """Root-mean-square norm: float32 statistics, weight applied after casting back (as Llama)."""

    def __init__(self, size: int, axis: str | None, config: ModelConfig):
        self._eps = config.norm_eps
        self.weight = param(jnp.ones((size,), config.param_dtype), (axis,))

    def __call__(self, x):
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self._eps)
        return x32.astype(x.dtype) * self.weight[...].astype(x.dtype)


class HeadLayerNorm(nnx.Module):
    """LayerNorm over head_dim with weight and bias, eps 1e-5: the QK-norm of Lumos-1 and Chameleon.

    With `qk_norm_groups` > 1, weight and bias are [groups, head_dim] and serve consecutive runs of heads.
    """

    def __init__(self, head_dim: int, config: ModelConfig):
        groups = config.qk_norm_groups
        shape = (head_dim,) if groups == 1 else (groups, head_dim)
        self.weight = param(jnp.ones(shape, config.param_dtype), (None,) * len(shape))
        self.bias = param(jnp.zeros(shape, config.param_dtype), (None,) * len(shape))

    def __call__(self, x_BLNA):
        x32 = x_BLNA.astype(jnp.float32)
        x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + 1e-5)
        weight, bias = self.weight[...], self.bias[...]
        if weight.ndim == 2:
            heads = x_BLNA.shape[-2] // weight.shape[0]
            weight, bias = jnp.repeat(weight, heads, axis=0), jnp.repeat(bias, heads, axis=0)
        return (x32 * weight + bias).astype(x_BLNA.dtype)


def _qk_norm(config: ModelConfig):
    if config.qk_norm == "layer":
        return HeadLayerNorm(config.head_dim, config)
    return RMSNorm(config.head_dim, None, config) if config.qk_norm == "rms" else None


class Attention(nnx.Module):
    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self._config = c = config
        inner, kv_inner = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        out_std = c.init_std / (2 * c.num_layers) ** 0.5
        self.q_proj = Linear(rngs, (c.model_dim, inner), ("embed", "heads"), c, bias=c.attention_bias)
        self.k_proj = Linear(rngs, (c.model_dim, kv_inner), ("embed", "kv_heads"), c, bias=c.attention_bias)
        self.v_proj = Linear(rngs, (c.model_dim, kv_inner), ("embed", "kv_heads"), c, bias=c.attention_bias)
        self.o_proj = Linear(rngs, (inner, c.model_dim), ("heads", "embed"), c, bias=c.attention_bias, std=out_std)
        if c.qk_norm != "none":
            self.q_norm, self.k_norm = _qk_norm(c), _qk_norm(c)
        if c.mixer.has_gate:
            self.sink_gate = param(jnp.zeros((), c.param_dtype), ())

    def __call__(self, x_BQD, cos, sin, keys: KeyRanges, past=None, kind=SOFTMAX):
        """Attend among the given tokens, and over `past` (a `transformer.Past`, or `linear.Sums`, of this layer) if there is one.

        Returns the output and the tokens' own (k, v) before rotation, which is what a cache stores, with the scores that
        `past.measure` gives to its keys; or their own sums.
        """
        c = self._config
        batch, length, _ = x_BQD.shape
        q = keep(self.q_proj(x_BQD), "query").reshape(batch, length, c.num_heads, c.head_dim)
        k = keep(self.k_proj(x_BQD), "key").reshape(batch, length, c.num_kv_heads, c.head_dim)
        v = keep(self.v_proj(x_BQD), "value").reshape(batch, length, c.num_kv_heads, c.head_dim)
        if c.qk_norm != "none":
            q, k = self.q_norm(q), self.k_norm(k)
        if kind == LINEAR:
            out, own = linear.attend(q, k, v, cos, sin, keys, past)
            return keep(self.o_proj(out.reshape(batch, length, -1)), "out"), own
        q, k_rotated = rope.rotate(q, cos, sin), rope.rotate(k, cos, sin)
        if past is None:
            out = attention.attend(q, k_rotated, v, keys, c.attention)
            if c.mixer.has_gate:
                out += self._gate() * attention.attend(q, k_rotated, v, keys.gated, c.attention)
            own = (k, v)
        else:
            past_k, past_v = past.k.transpose(0, 3, 1, 2), past.v.transpose(0, 2, 1, 3)
            own, parts = (k, v), [(past_k, past_v, past.keys), (k_rotated, v, keys)]
            if past.measure is None:
                out = attention.attend_parts(q, parts, c.attention)
            else:
                out, lse = attention.attend_parts_lse(q, parts)
                own = (k, v, past.measure(q, past_k, past.keys, lse))
            if c.mixer.has_gate:  # tokens in flight are within each other's window
                out += self._gate() * attention.attend_parts(q, [(past_k, past_v, past.keys.gated)], c.attention)
        return keep(self.o_proj(out.reshape(batch, length, -1)), "out"), own

    def _gate(self):
        return jax.nn.silu(self.sink_gate[...]).astype(self._config.dtype)


class MLP(nnx.Module):
    """SwiGLU: down(silu(gate x) * up x)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        c = config
        out_std = c.init_std / (2 * c.num_layers) ** 0.5
        self.gate_proj = Linear(rngs, (c.model_dim, c.mlp_dim), ("embed", "mlp"), c, bias=c.mlp_bias)
        self.up_proj = Linear(rngs, (c.model_dim, c.mlp_dim), ("embed", "mlp"), c, bias=c.mlp_bias)
        self.down_proj = Linear(rngs, (c.mlp_dim, c.model_dim), ("mlp", "embed"), c, bias=c.mlp_bias, std=out_std)

    def __call__(self, x):
        gate, up = keep(self.gate_proj(x), "gate"), keep(self.up_proj(x), "up")
        return keep(self.down_proj(jax.nn.silu(gate) * up), "down")


class Block(nnx.Module):
    """Pre-norm block; with post_norm the norm acts on each branch's output instead (Chameleon "swin_norm")."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self._post_norm = config.post_norm
        self.input_layernorm = RMSNorm(config.model_dim, "embed", config)
        self.self_attn = Attention(config, rngs)
        self.post_attention_layernorm = RMSNorm(config.model_dim, "embed", config)
        self.mlp = MLP(config, rngs)
        if config.streams.modulates:
            shape = (config.model_dim, 4 * config.model_dim)
            self.modulation = param(jnp.zeros(shape, config.param_dtype), ("embed", None))

    def __call__(self, x_BQD, cos, sin, keys, past=None, kind=SOFTMAX, condition: Condition | None = None):
        if condition is not None:
            return self._modulated(x_BQD, cos, sin, keys, past, kind, condition)
        if self._post_norm:
            branch, own = self.self_attn(x_BQD, cos, sin, keys, past, kind)
            x_BQD = x_BQD + self.input_layernorm(branch)
            return x_BQD + self.post_attention_layernorm(self.mlp(x_BQD)), own
        branch, own = self.self_attn(self.input_layernorm(x_BQD), cos, sin, keys, past, kind)
        x_BQD = x_BQD + branch
        return x_BQD + self.mlp(self.post_attention_layernorm(x_BQD)), own

    def _modulated(self, x_BQD, cos, sin, keys, past, kind, condition: Condition):
        of_frame_BFC = condition.of_frame_BFD @ self.modulation[...].astype(x_BQD.dtype)
        first, second = jnp.split(condition.of_tokens(of_frame_BFC), 2, axis=-1)
        normed_BQD = modulated(self.input_layernorm(x_BQD), first)
        branch, own = self.self_attn(normed_BQD, cos, sin, keys, past, kind)
        x_BQD = x_BQD + branch
        return x_BQD + self.mlp(modulated(self.post_attention_layernorm(x_BQD), second)), own
