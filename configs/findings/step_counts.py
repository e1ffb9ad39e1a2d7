"""How many forward passes a video takes: counted on the layouts and plans of the recipes (T5, T7, T8, T9, T11)."""

import dataclasses

from lumos import config_loading
from lumos.findings.finding import Exact, Statement
from lumos.generation.plan import Diagonal
from lumos.layouts import make_layout
from lumos.sequence.arrangement import Regions


def get_finding() -> Exact:
    return Exact(
        name="step_counts",
        claim="What is generated together takes one forward pass: the passes of a video follow from the order of its codes.",
        paper="NAR (2503.10696), PAR (2412.15119), NBP (2502.07737), AR-Diffusion (2503.07418), Lumos-1 (2507.08801)",
        published="passes of a video, as in the tables of the papers",
        statements=(
            Statement("next token, 5 x 16 x 16 codes", 1280, lambda: _groups("next_token", (5, 16, 16))),
            Statement("NAR, 4 x 16 x 16 codes: t + 2 n - 2", 34, lambda: _groups("nar", (4, 16, 16))),
            Statement("PAR, 5 x 16 x 16 codes, 4 regions", 323, lambda: _regions((5, 16, 16), 2)),
            Statement("PAR, 5 x 16 x 16 codes, 16 regions", 95, lambda: _regions((5, 16, 16), 4)),
            Statement("PAR, an image of 16 x 16 codes, 4 regions", 67, lambda: _regions((1, 16, 16), 2)),
            Statement("NBP, rows of 5 x 16 x 16 codes from nothing: 16 + 79", 95, lambda: _nbp(0)),
            Statement("NBP, rows of 5 x 16 x 16 codes behind 2 given latent frames", 48, lambda: _nbp(2)),
            Statement(
                "AR-Diffusion, 7 frames, 50 steps, lags 0, 1, 5, 10, 25, 50", [50, 56, 80, 110, 200, 350],
                lambda: [Diagonal(passes=lag).num_iterations(50, 7) for lag in (0, 1, 5, 10, 25, 50)],
            ),
            Statement(
                "Lumos-1, 7 latent frames, 50 passes: tokens without a cache over tokens with one (a pass more writes a frame)", 3.92,
                lambda: round(50 * sum(range(1, 8)) / (51 * 7), 2),
            ),
        ),
        note="The last statement is arithmetic of the published setting; the published seconds are 383 without a "
        "cache and 77.8 with one.",
    )  # fmt: skip


def _layout(recipe, grid):
    config = config_loading.load(
        f"configs/recipes/{recipe}.py", {"model.text_vocab": 8, "model.visual_vocab": 64, "sequence.grid": grid}
    )
    return make_layout(config)


def _groups(recipe, grid):
    return len(_layout(recipe, grid).groups)


def _regions(grid, num):
    return int(dataclasses.replace(Regions(), rows=num, columns=num).stages(grid).max()) + 1


def _nbp(given):
    """The codes of the first block come one by one, where no frames are given."""
    layout = _layout("nbp", (5, 16, 16))
    return sum(int(layout.tokens.t[group[0]]) >= given for group in layout.groups)
