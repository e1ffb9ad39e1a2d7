"""Matmuls of linear layers in 8 bits (`model.matmul_dtype`); qwix quantises and multiplies (extra `qwix`).

Two of the three matmuls of a training step run in 8 bits: the product itself, and the gradient of its input. Every token has
a scale of its own, and so has every column of the weight that is not summed over. The gradient of the weight adds over all
tokens of a batch, where small terms would be lost: it stays in the compute dtype. Gradients pass the rounding as if it were not
there. Weights, their updates and everything else are as without.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lumos.errors import UserError

# What the forward pass multiplies in, and the gradients: they need range more than precision.
_DTYPES = {"int8": (jnp.int8, jnp.int8), "float8": (jnp.float8_e4m3fn, jnp.float8_e5m2)}


@functools.cache
def matmul_in(kind: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Return (x [..., in], kernel [in, out]) -> x @ kernel in 8 bits. Raises UserError if qwix is not installed."""
    if importlib.util.find_spec("qwix") is None:
        raise UserError(f"config.model.matmul_dtype={kind!r} needs qwix: pip install 'lumos-video[qwix]'")
    import qwix

    forward_dtype, gradient_dtype = _DTYPES[kind]

    def product(x, kernel, dtype, kernel_axis):
        """Contract the last axis of x with the axis of the kernel that is not `kernel_axis`."""
        x_q = qwix.quantize(x, dtype, channelwise_axes=range(x.ndim - 1))
        kernel_q = qwix.quantize(kernel, forward_dtype, channelwise_axes=(kernel_axis,))
        return qwix.dot_general(x_q, kernel_q, (((x.ndim - 1,), (1 - kernel_axis,)), ((), ()))).astype(x.dtype)

    @jax.custom_vjp
    def matmul(x, kernel):
        return product(x, kernel, forward_dtype, 1)

    def forward(x, kernel):
        return matmul(x, kernel), (x, kernel)

    def backward(saved, dy):
        x, kernel = saved
        tokens = tuple(range(x.ndim - 1))
        dkernel = jax.lax.dot_general(x, dy, ((tokens, tokens), ((), ())))
        return product(dy, kernel, gradient_dtype, 0), dkernel

    matmul.defvjp(forward, backward)
    return matmul
