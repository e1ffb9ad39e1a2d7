"""Loss against the number of parameters (T21)."""

import numpy as np

from lumos.findings.finding import Above, Arm, Finding
from lumos.findings.measures import Loss, Parameters
from lumos.findings.place_world import PlaceWorld

_SIZES = {
    "1 layer of 32": (1, 32),
    "2 layers of 64": (2, 64),
    "3 layers of 96": (3, 96),
    "4 layers of 160": (4, 160),
    "6 layers of 256": (6, 256),
}
_WORLD = PlaceWorld(side=4, frames=4)


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
        world=_WORLD,
        arms={name: arm(*size) for name, size in _SIZES.items()},
        measures=(Loss(draws=1), Parameters()),
        derived=_fit,
        checks=(
            *(
                Above(text=f"loss: {small} against {large}", high=f"{small}:nll", low=f"{large}:nll", expected=0.01)
                for small, large in zip(list(_SIZES), list(_SIZES)[1:])
            ),
            Above(text="R2 of a straight line in logarithms is above 0.9", high="all:r2", low=0.9, expected=0.05),
        ),
        steps=900,
        cost=4.0,
        note="The world has a long tail: 1,024 places, most of them rare. Its entropy, 0.116 nats a code, is known and taken off before the line "
        "is drawn. 900 steps are 0.5 million codes; a model of 1 M parameters that is to be fed as a large one is (20 tokens a parameter, "
        "Chinchilla, arXiv 2203.15556) would need 40 times as many, so above 1 M the number of codes is the limit, not the size. "
        "An earlier run had a world of stripes, which 0.5 M parameters learn to its floor, and did not take that floor off: R2 0.86.",
    )


def _fit(arms):
    parameters, nll = (np.array([metrics[name] for metrics in arms.values()]) for name in ("parameters", "nll"))
    x, y = np.log(parameters), np.log(nll - _WORLD.entropy)
    slope, offset = np.polyfit(x, y, 1)
    return {
        "r2": float(1 - ((y - slope * x - offset) ** 2).sum() / ((y - y.mean()) ** 2).sum()),
        "exponent": float(-slope),
    }
