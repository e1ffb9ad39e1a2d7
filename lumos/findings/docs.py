"""docs/findings.md from the results that are committed: `python -m lumos.findings.docs > docs/findings.md`."""

from __future__ import annotations

import json
from pathlib import Path

from lumos.findings import load, results
from lumos.findings.finding import Exact
from lumos.findings.results import Results

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "findings"
_HEAD = """# Findings

What papers claim, run again: tiny models (about 0.1 M parameters) on worlds of codes, a few hundred steps, several seeds. Every claim, its
budget and its metric are in `configs/findings/NAME.py`, and were there before the run. `lumos findings run NAME` runs one, `lumos findings
report` draws it. This page is generated from `docs/findings/*.jsonl`; each line there has its seed, commit, versions and devices.

A statement compares two numbers seed by seed. **reproduced**: the mean gap has the claimed sign and is more than two deviations of the
difference over seeds. **contradicted**: the same with the opposite sign. **underpowered**: the 95 % interval of the gap holds both no effect
and the expected one. **not shown**: anything else. Numbers are means ± standard deviations over seeds, gaps with their interval. A statement
that two numbers are equal (=) is reproduced where the gap and two deviations lie inside of its margin. Losses are in nats a code, shares in 0 to 1.
Minutes are those of all arms and seeds on two cores (`--workers=2`), from the processor time of the two processes. The rows of `axis_heads`, `files`,
`four_tasks`, `images_first`, `jacobi`, `passes`, `schedules` and `tubes`, and some of `history_mask` and `temperature`, have wall time on busy cores instead,
which is longer.

A verdict is that of the budget that was written down first. `lumos findings run NAME --longer` runs what is not shown or contradicted once more, with twice
the steps; the second verdict stands behind the first, and does not replace it. {longer} of {doubted} such statements have been run again.
What such a statement compares is checked by tests on cases whose answer is known; they are named with it, and lie in `tests/`.

These are statements about the mechanism at this size. Published figures stand beside ours for orientation; they are not comparable.
"""


def render(folder: Path = RESULTS) -> str:
    """Return the page."""
    found = [results.results(name, folder) for name in load.names()]
    trained, exact = [x for x in found if isinstance(x, Results)], [x for x in found if isinstance(x, Exact)]
    again, doubted = (sum(len(getattr(item, name)) for item in trained) for name in ("longer", "doubted"))
    lines = [
        _HEAD.format(longer=again, doubted=doubted),
        "## Trained",
        "",
        "| claim | paper | published | verdict | command | minutes |",
        "|---|---|---|---|---|---|",
    ]
    for item in trained:
        f = item.finding
        cells = (
            f.claim,
            f.paper,
            f.published,
            f"**{item.word}**",
            f"`lumos findings run {f.name}`",
            f"{item.minutes:.0f}",
        )
        lines.append(_row(cells))
    for item in trained:
        f = item.finding
        lines += ["", f"### {f.name}", "", f"{f.claim} {f.paper}. {_budget(item)}{f' {f.note}' if f.note else ''}", ""]
        if f.mechanism:
            lines += [
                "Checked on known answers: " + ", ".join(f"`{test.split('::')[1]}`" for test in f.mechanism) + ".",
                "",
            ]
        lines += ["| statement | ours | gap | verdict |", "|---|---|---|---|"]
        lines += [_row(line.values()) for line in results.lines(item)]
    lines += ["", "## Exact", "", "Counts and identities, which need no training.", ""]
    lines += ["| claim | statement | published | ours | verdict |", "|---|---|---|---|---|"]
    for item in exact:
        for statement in item.statements:
            ours = statement.ours()
            word = "holds" if statement.holds(ours) else "does not hold"
            lines.append(
                _row((f"{item.claim} ({item.paper})", statement.text, _text(statement.published), _text(ours), word))
            )
    return "\n".join(lines) + "\n"


def _budget(item: Results) -> str:
    f = item.finding
    seeds = len({seed for _, seed in item.rows}) or "no"
    return (
        f"{len(f.arms)} arms, {f.steps} steps, {seeds} seeds yet."
        if seeds != len(f.seeds)
        else f"{len(f.arms)} arms, {f.steps} steps, {seeds} seeds."
    )


def _row(cells) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _text(value) -> str:
    return value if isinstance(value, str) else json.dumps(value)


if __name__ == "__main__":
    print(render(), end="")
