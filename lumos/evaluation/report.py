"""The static page of an evaluation or a sweep: a table, plots, and videos side by side; CSV and JSON beside it.

It opens from a disk, without a network: one HTML file that links the videos. What it shows goes in as JSON, and text as text.
"""

from __future__ import annotations

import csv
import html
import json
import os
import string
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from lumos.errors import UserError
from lumos.evaluation import best as best_cell
from lumos.evaluation import rows
from lumos.runtime import metrics_writer

_HERE = Path(__file__).parent
_LATER = ["reconstruction"]  # groups of videos that are looked at behind the others
_DETAILS = {
    "prompt_accuracy": "Prompt following",
    "prompt_accuracy_reconstructed": "Prompt following of true clips, reconstructed",
    "reconstruction": "Reconstruction",
    "continuation": "Continuation",
    "masked_cross_entropy": "Masked cross-entropy (nats)",
    "generate": "Generation",
    "world": "World",
    "versions": "Versions",
}


def write(
    out: Path,
    folders: list[Path],
    results: dict[str, Any] | None = None,
    runs: dict[str, Path] | None = None,
    *,
    failed: list[dict[str, Any]] = (),
    title: str = "",
    notes: list[str] = (),
    best: str = "",
) -> Path:
    """Write `index.html`, `rows.csv` and `rows.json` into `out`, of all rows in or below some folders; return the page.

    Where the run's own settings are among several cells, the best one is compared with them, in words and in `best.json`.

    Args:
      results: tables of a single evaluation, shown below.
      runs: workdirs whose training curves are shown.
      notes: commands that score files of a benchmark.
      failed: cells without a row, {"cell": ..., "reason": ...} each.
      best: the metric that says which cell is best; by default one in which they differ.
    """
    read = rows.read_all(folders)
    found = [_entry(folder, content, out) for folder, content in read]
    found += [{"cell": line["cell"], "reason": line["reason"], "metrics": {}, "videos": []} for line in failed]
    fields = _fields(found)
    for row in found:
        row["name"] = ", ".join(f"{_short(name)} {row['cell'][name]}" for name in fields if name in row["cell"]) or row[
            "cell"
        ].get("run", "")
    names = list(dict.fromkeys(name for row in found for name in row["metrics"]))
    is_curve = {
        name: isinstance(next(r["metrics"][name] for r in found if name in r["metrics"])["value"], list)
        for name in names
    }
    data = {
        "rows": found,
        "fields": fields,
        "scalars": [name for name in names if not is_curve[name]],
        "curves": [name for name in names if is_curve[name]],
        "groups": sorted(dict.fromkeys(video["group"] for row in found for video in row["videos"]), key=_LATER.count),
    }
    title = title or str((results or {}).get("name") or f"{len(found)} cells")
    compared = best_cell.compare(read, best) if len(read) > 1 else None
    for row in found:
        row["is_best"] = bool(compared) and best_cell.without_seed(row["cell"]) == compared["best"]["cell"]
    data["best"] = compared["metric"] if compared else best
    if compared:
        _write(out / "best.json", json.dumps(compared, indent=1) + "\n")
    parts = {
        "best": f'<p class="best-cell">{html.escape(best_cell.sentence(compared))}</p>' if compared else "",
        "title": html.escape(title),
        "css": (_HERE / "page.css").read_text(),
        "js": (_HERE / "page.js").read_text(),
        "notes": "".join(f'<p class="note">Scored by: <code>{html.escape(note)}</code></p>' for note in notes),
        "table": _table_of(data),
        "details": _details(out, results or {}, runs or {}),
        "data": json.dumps(_for_page(data), separators=(",", ":")).replace(
            "<", "\\u003c"
        ),  # so that no text in it ends the script
    }
    _write(out / "rows.json", json.dumps(found, indent=1) + "\n")
    _write_csv(out / "rows.csv", data)
    return _write(out / "index.html", string.Template((_HERE / "page.html").read_text()).substitute(parts))


def _for_page(data: dict[str, Any]) -> dict[str, Any]:
    """Return what the page draws: six digits of a number, and each protocol once."""
    protocols: dict[str, int] = {}
    short = lambda x: [short(item) for item in x] if isinstance(x, list) else float(f"{x:.6g}")
    lines = []
    for row in data["rows"]:
        metrics = {}
        for name, found in row["metrics"].items():
            numbers = {key: short(found[key]) for key in ("value", "low", "high")}
            place = protocols.setdefault(found["protocol"], len(protocols))
            metrics[name] = numbers | {"n": found["n"], "better": found["better"], "protocol": place}
        videos = [{key: video[key] for key in ("group", "src", "caption", "prompt")} for video in row["videos"]]
        lines.append(
            {key: value for key, value in row.items() if key != "facts"} | {"metrics": metrics, "videos": videos}
        )
    return data | {"rows": lines, "protocols": list(protocols)}


def merge(folders: list[str], out: str | Path, best: str = "") -> Path:
    """Write one page of all rows below several folders (`lumos report`). Raises UserError where there are none, or none with `best`."""
    paths = [Path(folder) for folder in folders]
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path}: no such folder")
        if not any(path.rglob(rows.NAME)) and not _beside(path).exists():
            raise UserError(
                f"{path}: no {rows.NAME} in it or below; lumos evaluate and lumos sweep write one for each cell"
            )
    if best and not best_cell.metric_of([row for _, row in rows.read_all(paths)], best):
        raise UserError(
            f"--best={best}: no row has this metric, or it has no better side; their names are those of rows.json"
        )
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    notes = [json.loads(_beside(path).read_text())["note"] for path in paths if _beside(path).exists()]
    return write(out, paths, title=" and ".join(path.resolve().name for path in paths), notes=notes, best=best)


def _beside(folder: Path) -> Path:
    """Return where `lumos generate --layout` says how the files of a folder were made, and what scores them."""
    return folder.with_name(f"{folder.name}.lumos.json")


def _entry(folder: Path, content: dict[str, Any], out: Path) -> dict[str, Any]:
    """Return a row as the page reads it, with the paths of its videos as seen from the page."""
    base = os.path.relpath(folder, out)
    videos = []
    for video in content["videos"]:
        source = "/".join(("" if base == "." else base + "/").split(os.sep)) + video["file"]
        prompt = video["caption"].split("   [")[0]  # what the checker said of it stands behind
        videos.append(video | {"src": _quote(source), "prompt": prompt})
    kept = {name: content.get(name) for name in ("cell", "default", "metrics", "facts")}
    return kept | {"videos": videos}


def _quote(path: str) -> str:
    from urllib.parse import quote

    return quote(path)


def _fields(found: list[dict[str, Any]]) -> list[str]:
    """Return the fields that tell cells apart."""
    names = list(dict.fromkeys(name for row in found for name in row["cell"]))
    values = {name: {json.dumps(row["cell"].get(name)) for row in found} for name in names}
    return [name for name in names if len(values[name]) > 1]


def _short(field: str) -> str:
    return field.removeprefix("generate.").removeprefix("evaluate.")


def _table_of(data: dict[str, Any]) -> str:
    """Return the table as HTML, for readers without scripts."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("cell", *data["scalars"]))
    lines = []
    for row in data["rows"]:
        cells = [_number(row["metrics"][name]["value"]) if name in row["metrics"] else "" for name in data["scalars"]]
        cells = cells if "reason" not in row else [f"failed: {row['reason']}"]
        lines.append(
            f"<tr><th>{html.escape(row['name'])}</th>" + "".join(f"<td>{html.escape(x)}</td>" for x in cells) + "</tr>"
        )
    return f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"


def _number(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(f"{item:.3f}" for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _write_csv(path: Path, data: dict[str, Any]) -> None:
    """Write a line a cell: its fields, then each metric with the ends of its interval and its number of clips."""
    cell_names = list(dict.fromkeys(name for row in data["rows"] for name in row["cell"]))
    ends = ("value", "low", "high", "n")
    with open(f"{path}.partial", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                *cell_names,
                *(name if end == "value" else f"{name} {end}" for name in data["scalars"] for end in ends),
                "failed",
            ]
        )
        for row in data["rows"]:
            numbers = [row["metrics"].get(name, {}).get(end, "") for name in data["scalars"] for end in ends]
            writer.writerow([*(row["cell"].get(name, "") for name in cell_names), *numbers, row.get("reason", "")])
    os.replace(f"{path}.partial", path)


def _write(path: Path, text: str) -> Path:
    """Write a file at once: who looks meanwhile sees the old one."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
    return path


def _details(out: Path, results: dict[str, Any], runs: dict[str, Path]) -> str:
    parts = [f"<h2>{title}</h2>{_table(results[key])}" for key, title in _DETAILS.items() if key in results]
    curves = _curves(out, runs)
    if curves:
        parts.append(f'<h2>Training</h2><img src="{curves.name}" alt="training curves">')
    return "\n".join(parts)


def _table(values: dict[str, Any]) -> str:
    kind = lambda value: "words" if isinstance(value, str) else "number"
    lines = (
        f"<tr><th>{html.escape(name)}</th><td class={kind(value)}>{html.escape(_number(value))}</td></tr>"
        for name, value in values.items()
    )
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def _curves(out: Path, runs: dict[str, Path]) -> Path | None:
    """Plot training loss and the main evaluation metric of each run."""
    panels = []
    for name, workdir in runs.items():
        for kind, keys in (("train", ("loss",)), ("eval", ("psnr", "frame_nll", "nll"))):
            lines = metrics_writer.read(workdir, kind)
            key = next((k for k in keys if lines and k in lines[-1]), None)
            if key:
                panels.append((f"{name}: {kind} {key}", lines, key))
    if not panels:
        return None
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3), squeeze=False)
    for axis, (title, lines, key) in zip(axes[0], panels):
        steps = [line["step"] for line in lines]
        series = [line[key] for line in lines]
        marker = "o" if len(steps) < 20 else None
        if isinstance(series[0], list):
            for frame, values in enumerate(zip(*series)):
                axis.plot(steps, values, marker=marker, label=f"latent frame {frame}")
            axis.legend(fontsize=7)
        else:
            axis.plot(steps, series, marker=marker)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    figure.tight_layout()
    path = out / "curves.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
