"""Slot 3, targets: which position, with which head, predicts which token, and what each prediction weighs."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lumos.sequence.layout import Layout
from lumos.slots import Slot


class Targets(NamedTuple):
    """Static arrays: the token at `target[j]` is predicted by head a from position `source[j, a]`; -1 = head a is not used.

    source: int32 [J, heads]; the logits of several heads are averaged. target: int32 [J].
    """

    source: np.ndarray
    target: np.ndarray


_AXES = ("column", "row", "time")  # in the order of the heads


class TargetRule(Slot):
    """Which positions predict the codes of a video."""

    start = "none"  # what stands before the first codes: see `sequence.layout.build`

    def __call__(self, layout: Layout) -> Targets:
        """Return the targets of all codes in raster order."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class InPlace(TargetRule, name="in_place"):
    """A hidden token predicts itself (Lumos-1 section 3.3, MaskGIT, diffusion forcing); with two copies, the noisy one does."""

    def __call__(self, layout):
        return Targets(layout.visual_index[:, None], layout.visual_index)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Next(TargetRule, name="next"):
    """A token predicts that in its place of the next stage: the next token, or the same slot of the next block (NBP)."""

    # How the first stage begins: "token" = one start token, and the codes of the first stage follow one by one (NBP's hybrid
    # start, and PAR's); "block" = a start token for each of its codes.
    first: str = "token"

    def __post_init__(self):
        if self.first not in ("token", "block"):
            raise ValueError(f"first={self.first!r}: allowed: token, block")

    @property
    def start(self):
        return self.first

    def __call__(self, layout):
        sizes = [len(group) for group in layout.groups]
        size = max(sizes)
        # Codes that come one by one follow the token before; all others the block before, or what stands for it.
        single = next((i for i, n in enumerate(sizes) if n > 1), len(sizes))
        if any(n != size for n in sizes[single:]) or (size > 1 and single not in (0, size)):
            raise ValueError(
                f"targets 'next' need blocks of one size; this layout has blocks of {sorted(set(sizes))} codes"
            )
        if size > 1 and layout.stream_index:
            raise ValueError("targets 'next' with blocks would not see the streams of a new frame; use block=(1, 1, 1)")
        is_block = np.array(sizes)[layout.tokens.group[layout.visual_index]] > 1
        source = layout.visual_index - np.where(is_block, size, 1)
        return _from_earlier(layout, Targets(source[:, None], layout.visual_index))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neighbours(TargetRule, name="neighbours"):
    """A token predicts its next column, row and frame, with a head for each axis (NAR, arXiv 2503.10696 section 3.2)."""

    alone: str = ""  # axis whose head predicts alone what it reaches: column, row or time (ablations of the paper); "" = the mean of all
    start = "one"

    def __post_init__(self):
        if self.alone not in ("", *_AXES):
            raise ValueError(f"alone={self.alone!r}; allowed: {', '.join(_AXES)}, or '' for the mean of all heads")

    def __call__(self, layout):
        place = layout.visual_index.reshape(layout.grid)
        sources = []
        for axis in (2, 1, 0):  # the order of the heads: columns, rows, time
            before = np.roll(place, 1, axis=axis)
            edge = np.indices(layout.grid)[axis] == 0
            sources.append(np.where(edge, -1, before).reshape(-1))
        source = np.stack(sources, axis=1).astype(np.int32)
        source[0, 0] = layout.prefix_length - 1  # the start token
        if self.alone:
            arm = _AXES.index(self.alone)
            source = np.where((source[:, arm] >= 0)[:, None] & (np.arange(3) != arm), -1, source)
        if layout.stream_index:
            raise ValueError("targets 'neighbours' would not see the streams of a new frame")
        return _from_earlier(layout, Targets(source, layout.visual_index))


def _from_earlier(layout: Layout, where: Targets) -> Targets:
    """Return targets that are predicted from tokens of earlier stages. Raises ValueError for others, which see the answer."""
    stage = layout.tokens.stage
    if np.any((where.source >= 0) & (stage[where.source] >= stage[where.target][:, None])):
        raise ValueError("codes of one stage see each other, so they cannot predict each other in this layout")
    return where


def text(layout: Layout) -> Targets:
    """Return next-token targets inside the text slots."""
    index = np.arange(layout.num_text, dtype=np.int32)
    return Targets(index[:-1, None], index[1:])


class LossWeights(Slot):
    """What each prediction weighs: (mask bool [B, J], ratio [B, J]) -> (weight of the loss, count for the mean), [B, J] each.

    predicted: bool [B, J], False for codes of frames that are context (`sequence.given`), which weigh nothing.
    """

    def __call__(self, mask_BJ: jax.Array, ratio_BJ: jax.Array, predicted_BJ: jax.Array | bool = True):
        weight_BJ, count_BJ = self.of(mask_BJ, ratio_BJ)
        return (weight_BJ, count_BJ) if predicted_BJ is True else (weight_BJ * predicted_BJ, count_BJ * predicted_BJ)

    def of(self, mask_BJ: jax.Array, ratio_BJ: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return weight and count of codes that are predicted."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masked(LossWeights, name="masked"):
    """Hidden tokens count 1 each."""

    def of(self, mask_BJ, ratio_BJ):
        weight = mask_BJ.astype(jnp.float32)
        return weight, weight


@dataclasses.dataclass(frozen=True, kw_only=True)
class All(LossWeights, name="all"):
    """Every token counts (next-token training, uniform replacement)."""

    def of(self, mask_BJ, ratio_BJ):
        ones = jnp.ones(mask_BJ.shape, jnp.float32)
        return ones, ones


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bound(LossWeights, name="bound"):
    """Hidden tokens weigh 1 / ratio, and the mean is over all tokens: the bound of masked diffusion on the negative
    log-likelihood, in nats a token (MDLM, arXiv 2406.07524 section 3.3).

    With k of n cells hidden, k uniform in 1..n (level "counts"), it is the mean over all orders of generation, exactly. Ratios
    near 0 that still hide one cell, as rounded ones do, would have no finite mean.
    """

    def of(self, mask_BJ, ratio_BJ):
        return mask_BJ / jnp.where(mask_BJ, ratio_BJ, 1.0), jnp.ones(mask_BJ.shape, jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Commit(LossWeights, name="commit"):
    """Three parts: visible codes that are seen as they are, hidden ones, and codes of frames that are context (COMMIT, MAGVIT,
    arXiv 2212.05199 section 3.3: equal weights). The mean is over the codes that weigh something."""

    reconstruct: float = 1.0  # visible codes of predicted frames
    mask: float = 1.0  # hidden codes
    refine: float = 1.0  # codes of frames that are context

    def __post_init__(self):
        if min(self.reconstruct, self.mask, self.refine) < 0 or not self.mask:
            raise ValueError(
                f"reconstruct={self.reconstruct} and refine={self.refine} must be at least 0, and mask={self.mask} above 0"
            )

    def __call__(self, mask_BJ, ratio_BJ, predicted_BJ=True):
        weight_BJ = jnp.where(predicted_BJ, jnp.where(mask_BJ, self.mask, self.reconstruct), self.refine)
        return weight_BJ, (weight_BJ > 0).astype(jnp.float32)
