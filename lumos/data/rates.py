"""Frames per second: one rate for what is made of many clips."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

import numpy as np

from lumos.config import Config
from lumos.errors import UserError, warn_once
from lumos.geometry import num_frames

# Rates are written with a few digits (30 for 29.97), and nobody sees one per cent.
_TOLERANCE = 0.01
UNKNOWN = 8.0  # at which clips are shown that nobody knows the rate of


def agree(rates: Iterable[float]) -> bool:
    """Return whether rates are the same but for rounding; unknown ones (0) agree with all."""
    known = _known(rates)
    return not len(known) or bool(known.max() <= known.min() * (1 + _TOLERANCE))


def _known(rates: Iterable[float]) -> np.ndarray:
    rates = rates if isinstance(rates, np.ndarray) else np.array(list(rates), float)
    return rates if rates.all() else rates[rates != 0]  # there may be millions


def common_rate(name: str, rates: Iterable[float]) -> float:
    """Return the rate of clips that each have one: theirs if they agree, else their median, with a warning; 0 = unknown.

    Args:
      name: of what holds the clips, for the warning.
      rates: of the clips; those that have none (0: still pictures, tokens made elsewhere) do not count.
    """
    known = _known(rates)
    if not len(known):
        return 0.0
    rate = float(np.quantile(known, 0.5, method="lower"))  # one that a clip has
    if not agree(known):
        warn_once(
            f"{name}: clips of {known.min():g} to {known.max():g} frames a second keep their rates (config.data.fps=0), so what is "
            f"made of them is written at the median, {rate:g}; set config.data.fps to bring all to one rate"
        )
    return rate


def with_rate_of_tokens(config: Config, rates: dict[str, float]) -> Config:
    """Return the config of a transformer with `generate.fps` filled in: the rate of its tokens.

    Args:
      rates: frames a second of the clips behind every token folder; 0 = unknown.

    Raises:
      UserError: folders of several rates, or another rate than the one that is written into every sequence.
    """
    known, given = {path: rate for path, rate in rates.items() if rate}, config.generate.fps
    found = ", ".join(f"{rate:g} ({path})" for path, rate in known.items())
    if not given and not agree(known.values()):
        raise UserError(
            f"config.data.path: tokens of clips of different frames a second, {found}; make them at one (config.data.fps of lumos "
            "tokenize), or set config.generate.fps to the rate at which videos shall be read and written"
        )
    if given and not agree([given, *known.values()]):
        warn_once(
            f"config.generate.fps={given:g}, but the frames a second of the clips are {found}: videos are read and written at "
            f"{given:g}; 0 takes the rate of the data"
        )
    if not given and not known and config.tokenizer_workdir:  # without a tokenizer there are no videos
        warn_once(
            f"{', '.join(rates)}: nothing says how many frames a second the clips have, so videos are written at {UNKNOWN:g}; set "
            "config.generate.fps"
        )
    # A single frame is written as an image, whatever the rate.
    written = config.sequence.layout.name == "lumos1" or re.search("{(fps|frames)}", config.text.template)
    if (
        written
        and num_frames(config.tokenizer, config.sequence.grid[0]) > 1
        and not agree([config.sequence.fps, *known.values()])
    ):
        fits = round(next(rate for rate in known.values() if not agree([config.sequence.fps, rate])))
        raise UserError(
            f"config.sequence.fps={config.sequence.fps} is written into every sequence, but the frames a second of the clips are "
            f"{found}; set config.sequence.fps={fits}, or tokenize the clips with config.data.fps={config.sequence.fps}"
        )
    fps = given or next(iter(known.values()), UNKNOWN)
    return dataclasses.replace(config, generate=dataclasses.replace(config.generate, fps=fps))
