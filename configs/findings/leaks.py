"""How often a hidden code has a visible twin in an earlier frame (T1): the masks are drawn, the shares counted."""

import jax
import numpy as np

from lumos.findings.finding import Exact, Statement
from lumos.sequence.corruption import Clip, CorruptionConfig, Cosine, Independent, NonDecreasing, PerFrame

_FRAMES = (1, 2, 3, 4, 5, 6, 9)


def get_finding() -> Exact:
    independent = {"cells": PerFrame(), "frames": Independent()}
    return Exact(
        name="leaks",
        claim="Random and independent masks leave a visible twin of a hidden code in earlier frames, the more often "
        "the later the frame; tubes "
        "never do.",
        paper="Lumos-1 (arXiv 2507.08801), section 3.3; derived from its levels max(cos(pi u / 2), 0.7)",
        published="shares of hidden codes with a twin in one of 1, 2, 3, 4, 5, 6, 9 earlier frames",
        statements=(
            Statement("random masks", [0.18, 0.32, 0.42, 0.49, 0.55, 0.59, 0.68], lambda: _twins(cells=Clip()), within=0.015),
            Statement("independent masks", [0.20, 0.36, 0.49, 0.59, 0.67, 0.74, 0.87], lambda: _twins(**independent), within=0.015),
            Statement("tubes", [0.0] * 7, _twins),
            Statement("mean of the levels", 0.8, lambda: _levels()[0], within=0.005),
            Statement("share of levels that are 0.7", 0.494, lambda: _levels()[1], within=0.005),
            Statement(
                "AR-Diffusion: mean of the levels of 7 frames, which "
                "never fall", [0.18, 0.30, 0.40, 0.49, 0.58, 0.67, 0.80], _non_decreasing,
                within=0.015,
            ),
        ),
    )  # fmt: skip


def _twins(**changes):
    mask_BTC = np.asarray(CorruptionConfig(**changes).draw(jax.random.key(0), 2048, 10, 100).mask_BTC)
    seen = np.logical_or.accumulate(~mask_BTC, axis=1)
    return [round(float(seen[:, f - 1][mask_BTC[:, f]].mean()), 3) for f in _FRAMES]


def _levels():
    ratio_B = np.asarray(Cosine()(jax.random.uniform(jax.random.key(1), (200_000,))))
    return round(float(ratio_B.mean()), 4), round(float(np.isclose(ratio_B, 0.7).mean()), 4)


def _non_decreasing():
    levels_BT = NonDecreasing().steps(jax.random.key(2), 20_000, 7)
    return [round(float(x), 3) for x in np.asarray(levels_BT).mean(0) / 50]
