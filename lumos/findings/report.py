"""The static page of findings: tables of statements, curves over frames with bands over seeds, and frames that the arms generate."""

from __future__ import annotations

import html
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from lumos.errors import UserError
from lumos.findings import load, results
from lumos.findings.finding import Exact
from lumos.findings.results import Results

_STYLE = (
    "body{font:15px system-ui,sans-serif;max-width:76rem;margin:2rem auto;padding:0 1rem;color:#222}table{border-collapse:collapse}"
    "td,th{padding:.3rem .7rem;border-bottom:1px solid #ddd;text-align:left;vertical-align:top}img{max-width:100%}"
    ".reproduced,.holds{color:#17753b}.contradicted{color:#b3261e}.underpowered,.not{color:#8a6100}"
)


def write(folder: Path, smoke: bool = False) -> Path:
    """Write `index.html` and its pictures beside the rows in `folder`; return the page. Raises UserError where there are no rows."""
    if not list(folder.glob("*.jsonl")):
        raise UserError(f"{folder}: no rows of findings; lumos findings run --out={folder} writes them")
    parts = []
    for name in load.names():
        found = results.results(name, folder, smoke)
        if isinstance(found, Results):
            parts += _trained(found, folder) if found.rows else []
        else:
            parts += _exact(found)
    page = folder / "index.html"
    page.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Findings</title><style>{_STYLE}</style><h1>Findings</h1>'
        + "".join(parts)
    )
    return page


def _trained(found: Results, folder: Path) -> list[str]:
    f = found.finding
    parts = [f"<h2>{_escaped(f.name)}: {_worded(found.word)}</h2><p>{_escaped(f.claim)}</p>"]
    parts += [f"<p><em>{_escaped(f.paper)}</em>. Published: {_escaped(f.published)}. {_escaped(f.note)}</p>"]
    rows = [[line["statement"], line["ours"], line["gap"], _worded(line["verdict"])] for line in results.lines(found)]
    parts += [_table(("statement", "ours", "gap", "verdict"), rows)]
    pictures = {"curves": _curves(found), "frames": _strips(found)}
    for kind, figure in pictures.items():
        if figure is not None:
            file = f"{f.name}-{kind}.png"
            figure.savefig(folder / file, dpi=110, bbox_inches="tight")
            plt.close(figure)
            parts.append(f'<p><img src="{file}" alt="{kind} of {_escaped(f.name)}"></p>')
    return parts


def _exact(found: Exact) -> list[str]:
    rows = []
    for statement in found.statements:
        ours = statement.ours()
        word = "holds" if statement.holds(ours) else "does not hold"
        rows.append([statement.text, str(statement.published), str(ours), _worded(word)])
    return [
        f"<h2>{_escaped(found.name)}</h2><p>{_escaped(found.claim)} <em>{_escaped(found.paper)}</em></p>",
        _table(("statement", "published", "ours", ""), rows),
    ]


def _curves(found: Results):
    """Return loss over steps, and the finding's curve over frames: means of the seeds with a band of their deviation."""
    names = ["losses", *([found.finding.curve] if found.finding.curve else [])]
    figure, axes = plt.subplots(1, len(names), figsize=(6 * len(names), 3.6), squeeze=False)
    for axis, name in zip(axes[0], names):
        for arm in found.finding.arms:
            values = found.values(arm, name)
            if not len(values):
                continue
            mean, deviation = values.mean(0), values.std(0)
            at = np.arange(len(mean)) * (found.steps(arm) / len(mean) if name == "losses" else 1)
            (drawn,) = axis.plot(at, mean, label=arm, linewidth=1.4)
            axis.fill_between(at, mean - deviation, mean + deviation, alpha=0.2, color=drawn.get_color(), linewidth=0)
        axis.set_xlabel("training step" if name == "losses" else "frame")
        axis.set_ylabel("training loss" if name == "losses" else name)
        axis.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][-1].legend(frameon=False, fontsize=8)
    return figure


def _strips(found: Results):
    """Return the first videos of the first seed: the world's, then one row an arm; None where no videos are made."""
    arms = {
        arm: row["metrics"]["clips"]
        for (arm, seed), row in found.rows.items()
        if seed == found.finding.seeds[0] and "clips" in row["metrics"]
    }
    if not arms:
        return None
    world, frames = found.finding.world, len(next(iter(arms.values()))[0])
    true = world.clips("test", 1, frames).codes
    rows = {"world": true[0]} | {arm: np.array(clips[0]) for arm, clips in arms.items()}
    figure, axes = plt.subplots(len(rows), 1, figsize=(min(1.1 * frames, 14), 1.15 * len(rows)), squeeze=False)
    for axis, (name, codes) in zip(axes[:, 0], rows.items()):
        gap = np.full((codes.shape[1], 1, 3), 255, np.uint8)
        cells = [part for frame in world.picture(codes) for part in (frame, gap)]
        axis.imshow(np.concatenate(cells[:-1], axis=1), interpolation="nearest")
        axis.set_title(name, fontsize=8, loc="left", pad=2)
        axis.axis("off")
    figure.tight_layout()
    return figure


def _table(head, rows) -> str:
    cells = lambda tag, values: "".join(f"<{tag}>{value}</{tag}>" for value in values)
    body = "".join(f"<tr>{cells('td', [*map(_escaped, row[:-1]), row[-1]])}</tr>" for row in rows)
    return f"<table><tr>{cells('th', head)}</tr>{body}</table>"


def _worded(word: str) -> str:
    return f'<span class="{_escaped(word.split()[0])}">{_escaped(word)}</span>'


def _escaped(text: str) -> str:
    return html.escape(str(text))
