"""Loss against the number of parameters (T21)."""

import numpy as np

from lumos.findings.finding import Above, Arm, Finding
from lumos.findings.measures import Loss, Parameters
from lumos.findings.worlds import World

_SIZES = {"1 layer of 32": (1, 32), "2 layers of 64": (2, 64), "3 layers of 96": (3, 96), "4 layers of 128": (4, 128)}


def get_finding() -> Finding:
    def arm(layers, dim):
        heads = dim // 32
        sizes = {
            "num_layers": layers,
            "model_dim": dim,
            "mlp_dim": 8 * dim // 3 // 16 * 16,
            "num_heads": heads,
            "num_kv_heads": heads,
        }
        return Arm(recipe="next_token", train={f"model.{name}": value for name, value in sizes.items()})

    return Finding(
        name="scale",
        claim="The loss falls with the number of parameters, along a power law.",
        paper="DiCoDe (arXiv 2412.04446), G3PT (arXiv 2409.06322), LARP (arXiv 2410.21264), NBP (arXiv 2502.07737)",
        published="K600 FVD 25.5, 23.0, 19.5 with 0.7, 1.2, 3 B parameters (NBP); a power law of the loss (G3PT)",
        mechanism=("test_findings_known.py::test_a_power_law_is_found",),
        world=World(side=4, frames=4),
        arms={name: arm(*size) for name, size in _SIZES.items()},
        measures=(Loss(draws=1), Parameters()),
        derived=_fit,
        checks=(
            *(
                Above(text=f"loss: {small} against {large}", high=f"{small}:nll", low=f"{large}:nll", expected=0.02)
                for small, large in zip(list(_SIZES), list(_SIZES)[1:])
            ),
            Above(text="R2 of a straight line in logarithms is above 0.9", high="all:r2", low=0.9, expected=0.05),
        ),
        steps=600,
        cost=1.5,
    )


def _fit(arms):
    x, y = (np.log([metrics[name] for metrics in arms.values()]) for name in ("parameters", "nll"))
    slope, offset = np.polyfit(x, y, 1)
    return {
        "r2": float(1 - ((y - slope * x - offset) ** 2).sum() / ((y - y.mean()) ** 2).sum()),
        "exponent": float(-slope),
    }
