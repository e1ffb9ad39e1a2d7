"""How the cache begins, and what becomes of it when a group is written: what the policy, the storage and the layers say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from lumos.generation.cache import Cache
from lumos.generation.policy import keep_index
from lumos.generation.view import View
from lumos.model import linear
from lumos.model.transformer import Own
from lumos.sequence.tokens import Tokens

if TYPE_CHECKING:
    from lumos.config import ModelConfig


def begin(view: View, own: Own, tokens: Tokens, spare: int) -> Cache:
    """Return the cache of the first tokens, with so many slots to spare."""
    k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, spare), (0, 0), (0, 0))) for x in (own.k, own.v))
    k, v, scales = view.settings.storage.pack(k, v, view.layout.prefix_length, view.groups.size)
    slots = Tokens(*(jnp.pad(field, (0, spare)) for field in tokens))
    shift = None if own.sums is None else jnp.int32(0)
    cache = Cache(k, v, slots, jnp.int32(len(tokens.kind)), scales=scales, sums=own.sums, shift=shift)
    num_writes = view.settings.cache.num_writes
    cache = cache.scored(num_writes * view.groups.per_frame) if num_writes else cache
    return view.settings.cache.begin(cache, view)


def anchored(view: View, cache: Cache, now: jax.Array, config: ModelConfig) -> Cache:
    """Return a cache whose sums stand as they do when frame time `now` is generated."""
    if cache.sums is None:
        return cache
    shift = view.settings.positions(now, now, False, 0, now) - now
    frames = shift - cache.shift
    nowhere = Tokens(*(jnp.int32(0) for _ in Tokens._fields))
    sums = linear.moved(cache.sums, frames, view.groups.moved(nowhere, frames).index, config)
    return cache._replace(sums=sums, shift=shift)


def make_room(view: View, cache: Cache, group: jax.Array) -> Cache:
    """Let the cache policy drop what must go before a group is written."""
    if not view.bounded:
        return cache
    oldest = group // view.groups.per_frame + 1 - view.undo
    drop = lambda cache: cache.gather(keep_index(view.seen(cache, oldest)))
    return jax.lax.cond(cache.count + view.groups.size > cache.num_slots, drop, lambda cache: cache, cache)


def write(view: View, cache: Cache, own: Own, tokens: Tokens, group: jax.Array, config: ModelConfig) -> Cache:
    """Write a finished group, or the equal ones that were finished together; `own` is what the model returned of it."""
    if own.score is not None:
        cache = cache.rate(own.score)
    if own.sums is not None:
        cache = anchored(view, cache, tokens.t[0], config)
        cache = cache._replace(sums=cache.sums + own.sums)
    num = len(tokens.kind) if view.groups.is_uniform else view.groups.num_tokens(group)
    cache = make_room(view, cache, group).write((own.k, own.v), tokens, num)
    return view.settings.cache.settle(cache, view)
