"""A cache policy that remembers more frames than are seen, and brings back those that matter now."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from lumos.generation.policy import Window

_HIDDEN = -1e30  # added to the logits of slots that stay empty in a row


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retrieve(Window, name="retrieve"):
    """The first frames, the newest ones, and of those between them the ones that are like the newest (BlockVid's semantic
    cache, arXiv 2511.22973, with keys of frames in place of prompts).

    The mass of an older frame is the softmax, over all of them, of its mean key times that of the newest frame, averaged over
    layers and heads. Before a frame is generated each row brings back the fewest frames whose masses reach `mass`, at
    most `most`, in their order; in time they stand directly before the recent ones.
    """

    width: int = 64  # latent frames that are remembered
    sink: int = 1  # first frames that are always seen
    recent: int = 5  # newest frames that are always seen
    most: int = 2  # older frames that are brought back at most
    mass: float = 1.0  # of the older frames' mass; 1 = as many as `most`
    is_shared = False

    def __post_init__(self):
        if min(self.sink, self.most) < 0 or self.recent < 1 or self.sink + self.recent + self.most > self.width:
            raise ValueError(
                f"sink={self.sink}, most={self.most} (at least 0 each) and recent={self.recent} (at least 1) must fit into "
                f"width={self.width}"
            )
        if not 0 < self.mass <= 1:
            raise ValueError(f"mass={self.mass} must lie in (0, 1]")

    def recall(self, cache, view):
        prefix, size = view.sizes
        num, held = (cache.count - prefix) // size, (cache.num_slots - prefix) // size
        total, sink = self.sink + self.most + self.recent, self.sink
        shown = jnp.minimum(num, total)  # frames that are seen, the first of which are the sink
        chosen_RM = self._choose(cache.k[:, :, prefix:], num, held, size)
        place_P = jnp.arange(total)
        like_P = jnp.where(place_P < sink, place_P, num - shown + place_P)  # the frame whose time a place has
        between_P = (place_P >= sink) & (place_P < shown - self.recent)
        index_P = jnp.clip(place_P - (shown - self.recent) + self.most, 0, max(self.most - 1, 0))
        from_RP = jnp.where(between_P, chosen_RM[:, index_P], like_P) if self.most else like_P[None]
        slots = lambda frame: jnp.concatenate(
            [
                jnp.broadcast_to(jnp.arange(prefix), (*frame.shape[:-1], prefix)),
                (prefix + frame[..., None] * size + jnp.arange(size)).reshape(*frame.shape[:-1], -1),
            ],
            axis=-1,
        )
        is_used_S = jnp.arange(prefix + total * size) < prefix + shown * size
        seen = cache.gather(jnp.where(is_used_S, slots(like_P), -1), slots(jnp.clip(from_RP, 0, held - 1))[None])
        is_empty_RP = jnp.repeat(from_RP < 0, size, axis=1)
        return seen, jnp.where(jnp.pad(is_empty_RP, ((0, 0), (prefix, 0))), _HIDDEN, 0.0)

    def _choose(self, k, num, held, size):
        """Return the frames that are brought back, int32 [R, most] in their order; -1 first where there are fewer."""
        layers, rows, _, heads, dim = k.shape
        mean = k.reshape(layers, rows, held, size, heads, dim).astype(jnp.float32).mean(3)
        newest = jnp.take(mean, num - 1, axis=2)
        frame_F = jnp.arange(held)
        is_older_F = (frame_F >= self.sink) & (frame_F < num - self.recent)
        logits = jnp.where(is_older_F, jnp.einsum("lrfka,lrka->lrkf", mean, newest) * dim**-0.5, -jnp.inf)
        mass_RF = jnp.where(is_older_F, jax.nn.softmax(logits).mean((0, 2)), -1.0)
        best_RM, order_RM = jax.lax.top_k(mass_RF, self.most)
        # Rounded sums must not leave out the last frame where all are wanted.
        is_needed_RM = (jnp.cumsum(best_RM, axis=1) - best_RM < self.mass) | (self.mass == 1)
        return jnp.sort(jnp.where((best_RM >= 0) & is_needed_RM, order_RM, -1), axis=1)

    def check(self, view):
        if view.undo:
            raise ValueError(
                f"undo={view.undo} does not go with the cache {self.name!r}, which chooses among all frames it has"
            )
        if view.groups.per_frame != 1:
            raise ValueError(f"cache {self.name!r} brings back whole frames: each must be one group, as in 'compact'")
        if any({"y", "x"} & set(rule.reads) for rule in view.rule.layers()):
            raise ValueError(f"cache {self.name!r} breaks up the lines of attention {view.rule.name!r}: use 'causal'")
