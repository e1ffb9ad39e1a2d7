"""Finds the findings of configs/findings."""

from __future__ import annotations

import importlib

from lumos.config_loading import PACKAGED
from lumos.errors import UserError, suggest
from lumos.findings.finding import Exact, Finding


def names() -> list[str]:
    """Return the names of all findings, sorted."""
    return sorted(path.stem for path in (PACKAGED / "findings").glob("*.py"))


def load(name: str) -> Finding | Exact:
    """Return a finding by its name. Raises UserError where there is none."""
    known = names()
    if name not in known:
        raise UserError(f"finding {name!r}{suggest(name, known)}; see lumos findings list")
    return importlib.import_module(f"lumos.configs.findings.{name}").get_finding()
