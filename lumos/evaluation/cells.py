"""The cells of a sweep: checkpoints x settings x seeds x sets of prompts, each with a name that stays the same."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from pathlib import Path
from typing import Any

from lumos.errors import UserError

_SECTIONS = ("generate", "evaluate")


@dataclasses.dataclass(frozen=True)
class Cell:
    """What is evaluated at once. settings: dotted config fields and their values as text. prompts: name of a set, "" = held-out."""

    run: str
    step: int
    seed: int = 0
    settings: tuple[tuple[str, str], ...] = ()
    prompts: str = ""
    digest: str = (
        ""  # of what the fields do not show: the prompts themselves, weights, what is measured, other overrides
    )

    @property
    def name(self) -> str:
        """A folder name that says what it is; its end tells cells apart that would look alike."""
        return self._name([f"step_{self.step:08d}"], self.step)

    @property
    def curve(self) -> str:
        """A name that cells share which differ in the checkpoint alone."""
        return self._name([], None)

    def _name(self, parts: list[str], step: int | None) -> str:
        settings = [f"{field.partition('.')[2]}={value}" for field, value in self.settings]
        parts = [*parts, *settings, *([self.prompts] if self.prompts else []), f"seed{self.seed}"]
        text = re.sub(r"[^\w.=+-]+", "_", "-".join(parts))[:120]
        key = json.dumps([self.run, step, self.seed, self.settings, self.prompts, self.digest])
        return f"{text}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of a row of the report."""
        found = {"run": self.run, "step": self.step, **{field: _value(text) for field, text in self.settings}}
        return found | ({"prompts": self.prompts} if self.prompts else {}) | {"seed": self.seed}


def _value(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, (int, float)) else text


def parse_settings(words: list[str], *, zipped: bool = False) -> list[tuple[tuple[str, str], ...]]:
    """Return the combinations of `field=a,b,c`, each a tuple of (field, value): their product, or side by side if `zipped`.

    Raises UserError: no such section, no value, or lists of different lengths side by side.
    """
    axes: list[list[tuple[str, str]]] = []
    for word in words:
        field, equals, text = word.partition("=")
        field = field.removeprefix("config.")
        if field.split(".")[0] not in _SECTIONS or "." not in field:
            raise UserError(
                f"--set={word}: a field is generate.NAME or evaluate.NAME, such as generate.guidance.scale=1,3,5"
            )
        values = split_values(text) if equals else []
        if not values:
            raise UserError(f"--set={word}: no value; give one or several with commas")
        if field in [axis[0][0] for axis in axes]:
            raise UserError(f"--set={word}: {field} is there twice")
        axes.append([(field, value) for value in values])
    if not zipped:
        return list(itertools.product(*axes))
    if len({len(axis) for axis in axes}) > 1:
        lengths = ", ".join(f"{axis[0][0]} has {len(axis)}" for axis in axes)
        raise UserError(f"--zip takes the values of all fields side by side: {lengths}; give as many of each")
    return list(zip(*axes)) or [()]


def split_values(text: str) -> list[str]:
    """Split at commas that stand in no bracket and no quotes."""
    parts = re.findall(r"""(?:\([^()]*\)|\[[^\[\]]*\]|"[^"]*"|'[^']*'|[^,])+""", text)
    return [part.strip() for part in parts if part.strip()]


def expand(
    run: str,
    steps: list[int],
    settings: list[tuple[tuple[str, str], ...]],
    seeds: list[int],
    prompts: dict[str, list[str]],
    common: Any,
) -> list[Cell]:
    """Return all cells, those of one checkpoint behind each other. `common`: what all cells share beside (JSON)."""
    digests = {
        name: hashlib.sha256(json.dumps([lines, common], sort_keys=True).encode()).hexdigest()[:16]
        for name, lines in (prompts or {"": []}).items()
    }
    return [
        Cell(run, step, seed, setting, name, digest)
        for step in steps
        for setting in settings
        for name, digest in digests.items()
        for seed in seeds
    ]


def own_first(cells: list[Cell], shard: tuple[int, int]) -> list[Cell]:
    """Return the cells in the order in which a worker looks for work: those of its own part, then those of the others."""
    index, count = shard
    return [cell for part in range(count) for cell in cells[(index + part) % count :: count]]


def parse_shard(text: str, environ: dict[str, str]) -> tuple[int, int]:
    """Return (index, count) of `--shard=i/n`, by default of a SLURM array or of the processes that a launcher started."""
    if text:
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if not found or int(found[1]) >= int(found[2]):
            raise UserError(f"--shard={text} must be i/n with 0 <= i < n, such as 0/4")
        return int(found[1]), int(found[2])
    index, total = 0, 1
    for name, size, first in (
        ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN"), ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES", ""),
    ):  # fmt: skip
        if (
            environ.get(name, "").isdigit() and environ.get(size, "").isdigit()
        ):  # jobs of an array may have processes each
            count = int(environ[size])
            index, total = index * count + (int(environ[name]) - int(environ.get(first) or 0)) % count, total * count
    return index, total


def prompt_sets(paths: list[str]) -> dict[str, list[str]]:
    """Return the sets of prompts by the names of their files. Raises UserError where two files have one name."""
    from lumos.videos.prompts import read_prompts

    sets: dict[str, list[str]] = {}
    for path in paths:
        name = Path(path).stem
        if name in sets:
            raise UserError(
                f"--prompts: two files are called {name}; rename one, their names are the names of the sets"
            )
        sets[name] = read_prompts(path)
    return sets
