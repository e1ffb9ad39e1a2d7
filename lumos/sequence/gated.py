"""An attention rule whose first frames are seen through a learnt gate."""

from __future__ import annotations

import dataclasses

from lumos.sequence.rule import Window, stage_causal


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatedWindow(Window, name="gated_window"):
    """A window; what of the sink lies before it is seen apart, through the gate of `model.mixer` 'gated' (StreamingT2V)."""

    sink: int = 1  # first latent frames that are seen through the gate

    def __call__(self, q, k):
        return stage_causal(q, k) & ((q.t < 0) | (q.t - k.t < self.width) | (k.t < 0))

    def gated(self):
        return _Sink(width=self.width, sink=self.sink, decay=self.decay)


class _Sink(Window):
    """The frames of the sink that lie before the window."""

    def __call__(self, q, k):
        return stage_causal(q, k) & (q.t - k.t >= self.width) & (k.t >= 0) & (k.t < self.sink)
