"""Named rematerialisation policies: which activations of a layer the backward pass finds in memory.

Layers name what is worth keeping (`keep`): query, key, value (before rotation), attention (the kernel's output and
log-sum-exp), out (the attention projection), gate, up, down (the MLP).

    none             everything is kept: least arithmetic, most memory
    minimal          query, key, value, attention: attention and its projections are not run again, the MLP and norms are (the default)
    dots             results of all matmuls
    full             only the layer's input: every layer runs twice
    save:<a,b>       the named activations
    offload:<a,b>    the named activations, in host memory
"""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax.ad_checkpoint import checkpoint_name

from lumos.errors import UserError
from lumos.model import cudnn
from lumos.model.splash import RESIDUALS

NAMES = ("query", "key", "value", RESIDUALS, "out", "gate", "up", "down")
POLICIES = ("none", "minimal", "dots", "full")
keep = checkpoint_name


def saved_names(policy: str) -> tuple[str, ...]:
    """Return the named activations that a policy keeps on the device. Raises UserError on an unknown policy or name."""
    kind, _, names_text = policy.partition(":")
    if policy in POLICIES:
        return {"none": NAMES, "minimal": NAMES[:4], "dots": NAMES, "full": ()}[policy]
    names = tuple(name for name in names_text.split(",") if name)
    unknown = [name for name in names if name not in NAMES]
    if kind not in ("save", "offload") or not names or unknown:
        raise UserError(
            f"config.model.remat={policy!r} must be one of {', '.join(POLICIES)}, or save:<names> or offload:<names> with names "
            f"from {', '.join(NAMES)}"
        )
    return names if kind == "save" else ()


def offloaded_names(policy: str) -> tuple[str, ...]:
    """Return the named activations that a policy keeps in host memory."""
    kind, _, names = policy.partition(":")
    return tuple(names.split(",")) if kind == "offload" else ()


def wrap(policy: str, unrolled: bool = False) -> Callable | None:
    """Return the transformation of a layer body, or None if nothing is recomputed.

    Where layers are unrolled, the compiler sees that a layer is computed twice, and would keep the first result after all; a scan hides it.
    """
    saved, policies = saved_names(policy), jax.checkpoint_policies
    if policy == "none":
        return None
    if policy == "dots":
        rule = _both(policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(RESIDUALS))
    elif offloaded_names(policy):
        rule = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[], names_which_can_be_offloaded=list(offloaded_names(policy)),
            offload_src="device", offload_dst="pinned_host",
        )  # fmt: skip
    else:
        rule = policies.save_only_these_names(*saved) if saved else None
    if RESIDUALS in saved:
        rule = _both(rule, _is_from_cudnn)
    return lambda body: jax.checkpoint(body, policy=rule, prevent_cse=unrolled)


_both = jax.checkpoint_policies.save_from_both_policies


def _is_from_cudnn(primitive, *_, **__) -> bool:
    """Whether a value is made by cuDNN's attention: names cannot be given to what it keeps for its backward pass."""
    return primitive.name.startswith(cudnn.PRIMITIVE)
