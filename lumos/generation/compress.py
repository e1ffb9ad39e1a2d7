"""A cache policy that keeps single tokens: those that recent frames attended to most."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from lumos.generation.policy import Window
from lumos.model.salience import MEASURES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compress(Window, name="compress"):
    """The first frames, the newest ones, and the tokens between them that were attended to most (Deep Forcing's participative
    compression, arXiv 2512.05081).

    When a written frame fills the cache, every layer and row keeps the `budget * size` best tokens of the frames between the
    sink and the recent ones, in their order. They keep their rows and columns, and stand in time as the `budget` frames
    before the recent ones. The queries are those of the last `recent` writes, without those of the first pass over the next
    frame (its ablation: imaging quality 68.5 against 69.3 with both). With sink + budget + recent = width it is a window.
    """

    width: int = 21  # latent frames that fill the cache
    sink: int = 10  # first frames that are always kept
    recent: int = 4  # newest frames that are kept whole, and whose queries choose
    budget: int = 2  # frames' worth of tokens that are kept between them
    score: str = "logit_sum"  # logit_sum (q k, the paper's) | softmax_mass (attention probabilities)
    is_shared = False

    def __post_init__(self):
        kept = self.sink + self.budget + self.recent
        if min(self.sink, self.budget) < 0 or self.recent < 1 or kept > self.width:
            raise ValueError(
                f"sink={self.sink}, budget={self.budget} (at least 0 each) and recent={self.recent} (at least 1) must fit into "
                f"width={self.width}"
            )
        if self.score not in MEASURES:
            raise ValueError(f"score={self.score!r}: allowed: {', '.join(MEASURES)}")

    @property
    def measure(self):
        return MEASURES[self.score]

    @property
    def num_writes(self):
        return self.recent

    def settle(self, cache, view):
        prefix, size = view.sizes
        first, last = prefix + self.sink * size, cache.num_slots - self.recent * size
        num, empty = self.budget * size, jnp.full(last - first - self.budget * size, -1)

        def compress(cache):
            score_LRS = cache.score.sum(2)[..., first:last]
            top_LRS = first + jnp.sort(jax.lax.top_k(score_LRS, num)[1], axis=-1)
            spread = lambda x_S: jnp.broadcast_to(x_S, (*top_LRS.shape[:2], len(x_S)))
            sink_S, recent_S = jnp.arange(first), jnp.arange(last, cache.num_slots)
            own_LRS = jnp.concatenate([spread(sink_S), top_LRS, spread(recent_S), spread(empty)], axis=-1)
            index_S = jnp.concatenate([sink_S, jnp.arange(last - num, cache.num_slots), empty])
            return cache.gather(index_S, own_LRS)

        return jax.lax.cond(cache.count == cache.num_slots, compress, lambda cache: cache, cache)

    def check(self, view):
        if view.undo:
            raise ValueError(f"undo={view.undo}: tokens that the cache {self.name!r} has dropped cannot be taken back")
        if len(view.groups.cells) != view.groups.size:
            raise ValueError(f"cache {self.name!r} keeps single codes: use a layout without markers, such as 'compact'")
        if any({"y", "x"} & set(rule.reads) for rule in view.rule.layers()):
            raise ValueError(f"cache {self.name!r} breaks up the lines of attention {view.rule.name!r}: use 'causal'")
