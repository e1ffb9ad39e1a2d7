"""How a layer gathers values from what its tokens see: attention, with a learnt gate or without softmax."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from lumos.slots import Slot

if TYPE_CHECKING:
    from lumos.generation.view import View
    from lumos.sequence.rule import Rule

SOFTMAX, LINEAR = "softmax", "linear"


class Mixer(Slot):
    """What layers compute with queries, keys and values."""

    kinds = (SOFTMAX,)  # of consecutive layers, which repeat
    has_gate = False  # whether each layer has a learnt gate for what `Rule.gated` says

    def check(self, rule: Rule) -> None:
        """Raise ValueError if the mixer does not go with an attention rule."""
        if self.has_gate != any(of_layer.gated() is not None for of_layer in rule.layers()):
            raise ValueError(
                "a learnt gate needs the attention rule 'gated_window', and the rule needs the mixer 'gated'"
            )
        if LINEAR in self.kinds and (rule.name != "causal" or rule.decay):
            raise ValueError(
                f"sums over all earlier tokens need config.sequence.attention='causal' without decay, not {rule.name!r}"
            )

    def check_generation(self, view: View) -> None:
        """Raise ValueError if the mixer does not go with how videos are generated."""
        if LINEAR not in self.kinds:
            return
        cache, positions = view.settings.cache, view.settings.positions
        if not cache.is_shared or view.undo:
            raise ValueError(
                f"a sum over tokens has no single ones to choose or take back: not with cache {cache.name!r} or undo"
            )
        if any(set(branch.drop) & {"history", "neighbours"} for branch in view.branches):
            raise ValueError("a sum over tokens cannot leave out the history: use guidance 'text' or 'none'")
        if not view.groups.per_frame or len(view.groups.cells) != view.groups.size:
            raise ValueError(
                "sums over tokens are moved in time as a whole: use a layout whose groups are frames, without markers"
            )
        if not positions.moves_all or getattr(positions, "horizon", 2**30) < view.layout.grid[0]:
            raise ValueError(
                f"positions {positions.name!r} move frames apart, which a sum over them cannot: use 'absolute', or 'relative' with a "
                f"horizon of at least {view.layout.grid[0]}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Softmax(Mixer, name="softmax"):
    """Softmax attention."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gated(Mixer, name="gated"):
    """Softmax attention, plus SiLU(alpha) times attention to the sink, with an alpha for each layer that starts at 0
    (StreamingT2V's appearance module, arXiv 2403.14773). At the start the sink is not seen."""

    has_gate = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear(Mixer, name="linear"):
    """Linear attention in all layers, or in all but every `every`-th, which has softmax (SANA-Video). Generation keeps sums of
    constant size, and sees with them all earlier frames, whatever the cache policy says of the layers with softmax."""

    every: int = 0  # 2 = layers take turns, the second has softmax; 0 = none has

    def __post_init__(self):
        if self.every < 0 or self.every == 1:
            raise ValueError(f"every={self.every} must be 0 (all layers are linear) or at least 2")

    @property
    def kinds(self):
        return (*[LINEAR] * (self.every - 1), SOFTMAX) if self.every else (LINEAR,)
