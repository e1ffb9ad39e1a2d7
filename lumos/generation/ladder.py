"""A cache policy that keeps old frames as their memory tokens alone."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from lumos.generation.policy import Fifo


@dataclasses.dataclass(frozen=True, kw_only=True)
class LadderCache(Fifo, name="ladder"):
    """What the rule "ladder" still needs: the cells of near frames, and the memory tokens of `width` frames (FAR)."""

    width: int = 64  # latent frames that are remembered

    def num_slots(self, view):
        rungs, sizes = self._rungs(view), self._sizes(view)
        return view.sizes[0] + sum(num * size for num, size in zip(rungs, sizes)) + view.groups.size

    def settle(self, cache, view):
        """Keep what coming frames see; the text first, then the rungs from the oldest on, then the cells."""
        frame_S, rung_S = view.frames(cache.tokens, cache.used_S), jnp.maximum(-cache.tokens.stream, 0)
        now = jnp.where(cache.used_S, frame_S, -1).max() + 1
        keep_S = cache.used_S & ((frame_S < 0) | (now - frame_S <= jnp.asarray(self._rungs(view))[rung_S]))
        order_S = jnp.lexsort((jnp.arange(len(keep_S)), -rung_S, frame_S >= 0, ~keep_S))
        return cache.gather(jnp.where(jnp.arange(len(keep_S)) < keep_S.sum(), order_S, -1).astype(jnp.int32))

    def begin(self, cache, view):
        return self.settle(cache, view).first(view.num_slots)

    def check(self, view):
        if view.rule.name != self.name:
            raise ValueError(f"cache {self.name!r} is that of attention 'ladder', not {view.rule.name!r}")
        if view.undo:
            raise ValueError(f"undo={view.undo}: cells that the cache {self.name!r} has dropped cannot be taken back")
        if view.settings.storage.name != "computed":
            raise ValueError(
                f"cache {self.name!r} sorts its slots, which storage {view.settings.storage.name!r} does not"
            )

    def _rungs(self, view) -> tuple[int, ...]:
        """Return how many frames before the next one are kept: their cells, then the memory tokens of each rung."""
        return tuple(min(frames - 1, self.width) for frames in view.rule.frames) + (self.width,)

    @staticmethod
    def _sizes(view) -> tuple[int, ...]:
        memory = [rung.index.shape[1] for rung in view.layout.memory]
        return (view.groups.size - sum(memory), *memory)
