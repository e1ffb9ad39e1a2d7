"""Configs that earlier versions saved beside their checkpoints, in today's form.

Runs go on for months and released weights for years, so the meaning of what they saved must not be lost.
"""

from __future__ import annotations

from typing import Any


def upgrade(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a saved config in today's form. What is already in it stays as it is."""
    values = {name: dict(value) if isinstance(value, dict) else value for name, value in values.items()}
    section = lambda name: values.get(name) if isinstance(values.get(name), dict) else {}
    if "optimizer" in values:
        section("optimizer").setdefault("decay", "all")  # before there was a choice
    _corruption(section("corruption"))
    _sequence(section("sequence"))
    _generate(section("generate"))
    _buckets(section("data") or {}, section("sequence") or {}, section("tokenizer") or {})
    return values


def _corruption(c: dict[str, Any]) -> None:
    fields = {name: c.pop(name) for name in ("segments", "past_drop", "future_drop") if name in c}
    if fields.get("segments"):  # () meant none, whatever the others were
        c.setdefault("given", {"name": "segments", "sizes": fields.pop("segments"), **fields})
    if not isinstance(c.get("level"), str):
        return
    level, floor = c.pop("level"), c.pop("floor", 0.7)
    if level in ("constant", "full"):
        c["level"] = {"name": "constant", "ratio": 1.0 if level == "full" else floor}
    else:
        c["level"] = {"name": level, "floor": floor}
    c["frames"] = {"name": c.pop("temporal", "shared")}
    c["cells"] = {"name": c.pop("spatial", "tube")}


def _sequence(s: dict[str, Any]) -> None:
    if "style" not in s:
        return
    style = s.pop("style")
    fields = {name: s.pop(name) for name in ("size_unit", "visual_start", "number_zero", "special_tokens") if name in s}
    s["layout"] = {"name": style, **(fields if style == "lumos1" else {})}


def _generate(g: dict[str, Any]) -> None:
    if isinstance(g.get("guidance"), (int, float)):
        g["guidance"] = {"name": "text", "scale": float(g["guidance"])}
    if "mode" in g or "temperature" in g:
        mode, temperature = g.pop("mode", "paper"), g.pop("temperature", 1.0)
        g["sampler"] = {"name": "released" if mode == "reference" else "confidence", "temperature": temperature}


def _buckets(data: dict[str, Any], s: dict[str, Any], tokenizer: dict[str, Any]) -> None:
    """Buckets of tokens were the pixel shapes behind their grids; that of `sequence.grid` came first, as it does now."""
    if data.get("source") != "tokens":
        return
    time, space = tokenizer.get("temporal_compression", 4), tokenizer.get("spatial_compression", 8)
    try:
        grids = [
            [1 + (frames - 1) // time, height // space, width // space] for frames, height, width in data["buckets"]
        ]
        before = [*data["buckets"][0]] != [*s["grid"]] == grids[0]
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError):  # what is wrong, parsing says
        return
    if before:
        data["buckets"] = grids
