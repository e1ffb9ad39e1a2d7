"""The library on one page (docs/core.py): it trains, generates, and stays one page."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "core.py"


@pytest.mark.slow
def test_the_page_trains_and_generates():
    spec = importlib.util.spec_from_file_location("core_page", PAGE)
    core = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(core)
    batch = core.make_batch(np.random.default_rng(0), 8)
    assert core.follows(batch["tokens"], batch["text"]).all()
    params, losses = core.train(60)
    assert losses[0] > 1.3 and np.mean(losses[-10:]) < 0.6  # ln 4 = 1.39 at the start
    codes = core.generate(params, batch["text"])
    assert codes.shape == (8, *core.GRID) and set(np.unique(codes)) <= set(range(1 + core.COLOURS))


def test_it_is_one_page():
    assert len(PAGE.read_text().splitlines()) <= 150
