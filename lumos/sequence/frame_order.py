"""Slot 1, order: in which order the frames of a clip take the ranks of the layout, drawn for each clip in training.

Sequences are stored by rank, so a drawn order moves the codes of a clip and their positions, row by row: positions keep true time,
while ranges of keys stay those of the layout. What is drawn for frames (levels, prefixes) goes by rank. A model that is
trained in drawn orders generates in any of them, with layout "ranks" (plans of anchors and infill, MMPL arXiv 2508.03334).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lumos.sequence.layout import Layout
from lumos.sequence.tokens import Positions
from lumos.slots import Slot


class FrameOrder(Slot):
    """(key, batch, frames) -> the frame of each rank, int32 [B, T]; None where it is time for all clips."""

    def __call__(self, key: jax.Array, batch: int, num_frames: int) -> jax.Array | None:
        raise NotImplementedError

    def check(self, num_frames: int) -> None:
        """Raise ValueError if clips cannot have so many latent frames. Single frames (images) have one order."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InTime(FrameOrder, name="time"):
    """Frames in the order of the layout."""

    def __call__(self, key, batch, num_frames):
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomOrder(FrameOrder, name="random"):
    """Any order, each as likely, in a share of the clips; the others are in time."""

    share: float = 1.0  # probability that the order of a clip is drawn
    first: int = 0  # first frames that keep their place

    def __post_init__(self):
        if not 0 <= self.share <= 1 or self.first < 0:
            raise ValueError(f"share={self.share} must lie in [0, 1], and first={self.first} be at least 0")

    def __call__(self, key, batch, num_frames):
        order_key, clip_key = jax.random.split(key)
        frame_T = jnp.arange(num_frames)
        u_BT = jax.random.uniform(order_key, (batch, num_frames))
        drawn_B1 = jax.random.uniform(clip_key, (batch, 1)) < self.share
        return jnp.argsort(jnp.where(drawn_B1 & (frame_T >= self.first), u_BT, frame_T - num_frames), axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneOf(FrameOrder, name="one_of"):
    """One of several orders, each as likely."""

    orders: tuple[tuple[int, ...], ...] = ()  # the frames of each, by rank

    def __post_init__(self):
        if any(sorted(order) != list(range(len(self.orders[0]))) for order in self.orders):
            raise ValueError(f"orders={self.orders} must each hold all latent frames 0, 1, ... once")

    def check(self, num_frames):
        if not self.orders or len(self.orders[0]) != num_frames:
            raise ValueError(f"orders={self.orders} must be at least one, of the {num_frames} latent frames of clips")

    def __call__(self, key, batch, num_frames):
        return jnp.asarray(self.orders)[jax.random.randint(key, (batch,), 0, len(self.orders))]


def reorder(order: FrameOrder, key: jax.Array, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Return a batch whose codes [B, T, ...] lie by rank, and its "order" [B, T]; as it is where that is time."""
    batch_size, num_frames = batch["tokens"].shape[:2]
    if num_frames == 1:
        return batch
    order.check(num_frames)
    order_BT = order(key, batch_size, num_frames)
    if order_BT is None:
        return batch
    of_frames = {name: x for name, x in batch.items() if name == "tokens" or name.startswith("stream_")}
    by_rank = jax.vmap(lambda x_T, order_T: x_T[order_T])
    return batch | {name: by_rank(x, order_BT) for name, x in of_frames.items()} | {"order": order_BT}


def positions(layout: Layout, order_BT: jax.Array) -> Positions:
    """Return the rotary coordinates of every token, [B, L] each, where the frames of a clip have the ranks of an order."""
    index_BL = jnp.broadcast_to(jnp.arange(layout.length), (len(order_BT), layout.length))
    tables = [layout.visual_index, *layout.stream_index, *(rung.index for rung in layout.memory)]
    for table in tables if layout.clean_index is None else [*tables, layout.clean_index]:
        of_frames = np.asarray(table).reshape(layout.grid[0], -1)
        moved = jnp.asarray(of_frames)[order_BT].reshape(len(order_BT), -1)
        index_BL = index_BL.at[:, of_frames.reshape(-1)].set(moved)
    return Positions(*(jnp.asarray(field)[index_BL] for field in layout.positions))
