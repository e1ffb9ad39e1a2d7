"""The static HTML page of an evaluation: numbers, curves and videos side by side. No scripts, every text escaped."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from lumos.runtime import metrics_writer

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px; padding: 0 1rem; color: #222 }
h1, h2 { font-weight: 600 } table { border-collapse: collapse; margin: 0.5rem 0 1.5rem }
td, th { border-bottom: 1px solid #ddd; padding: 0.25rem 0.8rem; text-align: left } td.number { text-align: right }
.clips { display: flex; flex-wrap: wrap; gap: 14px } figure { margin: 0; width: 160px } figure.wide { width: 320px }
video { width: 100%; image-rendering: pixelated } figcaption { font-size: 12px; color: #555 }
img { max-width: 100% }
"""


def write(out: Path, results: dict[str, Any], runs: dict[str, Path]) -> Path:
    """Write `index.html` (and its curves) into an evaluation folder that already holds its videos; return its path."""
    parts = [f"<h1>{html.escape(str(results['name']))}</h1>"]
    for title, key in (
        ("Prompt following", "prompt_accuracy"),
        ("Prompt following of true clips, reconstructed", "prompt_accuracy_reconstructed"),
        ("Reconstruction", "reconstruction"),
        ("Continuation", "continuation"),
        ("Masked cross-entropy (nats)", "masked_cross_entropy"),
        ("Generation", "generate"),
        ("Versions", "versions"),
    ):
        if key in results:
            parts.append(f"<h2>{title}</h2>" + _table(results[key]))
        if key == "prompt_accuracy":
            parts.append(_clips(out, "prompts"))
        if key in ("reconstruction", "continuation"):
            parts.append(_clips(out, key, wide=True))
    curves = _curves(out, runs)
    if curves:
        parts.append(f'<h2>Training</h2><img src="{curves.name}" alt="training curves">')
    page = (
        f"<!doctype html><meta charset=utf-8><title>{html.escape(str(results['name']))}</title><style>{_STYLE}</style>"
    )
    path = out / "index.html"
    path.write_text(page + "\n".join(parts) + "\n")
    return path


def _table(values: dict[str, Any]) -> str:
    rows = []
    for name, value in values.items():
        if isinstance(value, list):
            text = " ".join(f"{item:.3f}" for item in value)
        else:
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
        rows.append(f"<tr><th>{html.escape(name)}</th><td class=number>{html.escape(text)}</td></tr>")
    return "<table>" + "".join(rows) + "</table>"


def _clips(out: Path, name: str, wide: bool = False) -> str:
    folder = out / name
    if not folder.exists():
        return ""
    captions = json.loads((folder / "captions.json").read_text())
    figures = [
        f'<figure class="{"wide" if wide else ""}"><video src="{name}/{i:02d}.mp4" autoplay loop muted playsinline></video>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for i, caption in enumerate(captions)
    ]
    return '<div class="clips">' + "".join(figures) + "</div>"


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
