"""The model card of a release: what it is, how it is used, what it was trained and measured with. Nothing is made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lumos import geometry
from lumos.config import Config
from lumos.runtime import metrics_writer

_MEASURED = ("nll", "accuracy", "psnr", "ssim", "usage")  # of the evaluation during training


def model_card(config: Config, facts: dict[str, Any], workdir: Path, report: str, license: str) -> str:
    """Return README.md: the header that the Hugging Face Hub reads, then the card."""
    is_video = config.task == "transformer"
    header = {"license": license, "library_name": "lumos"} | ({"pipeline_tag": "text-to-video"} if is_video else {})
    lines = [
        "---",
        *(f"{name}: {value}" for name, value in header.items() if value),
        "tags:",
        "- jax",
        "- video",
        "---",
        "",
    ]
    what = "A text-to-video transformer on discrete tokens" if is_video else "A video tokenizer"
    lines += [f"# {config.name}", "", f"{what}, trained with lumos {facts['lumos']}.", "", *_usage(is_video)]
    lines += ["", "## Model", "", *_table(_model(config, facts))]
    lines += ["", "## Training", "", *_table(_training(config, facts))]
    lines += ["", "## Evaluation", "", *_evaluation(workdir, facts["step"], report)]
    lines += ["", "## Limitations", "", "Not described by those who trained it.", ""]
    return "\n".join(lines)


def _usage(is_video: bool) -> list[str]:
    if is_video:
        use = ["model = lumos.load(FOLDER)", 'video = model.generate("a prompt").videos[0]  # uint8 [F, Y, X, 3]']
    else:
        use = [
            "tokenizer = lumos.load_tokenizer(FOLDER)",
            "tokens = tokenizer.encode(video)  # uint8 [B, F, Y, X, 3] -> int32 [B, T, H, W]",
        ]
    return ["```python", "import lumos", "", *use, "```"]


def _model(config: Config, facts: dict[str, Any]) -> dict[str, Any]:
    rows: dict[str, Any] = {"parameters": f"{facts['parameters']:,}", "updates": f"{facts['step']:,}"}
    t = config.tokenizer
    codes = f"{t.quantizer}, levels {t.levels}" + (
        f", {t.composition} x {t.parts}" if t.composition != "single" else ""
    )
    if config.task == "tokenizer":
        compression = f"{t.temporal_compression}x{t.spatial_compression}x{t.spatial_compression}"
        return rows | {
            "codes": codes,
            "compression (time, height, width)": compression,
            "identity": facts["fingerprint"],
        }
    m, grid = config.model, config.sequence.grid
    height, width = geometry.frame_size(t, *grid[1:])
    return rows | {
        "clips": f"{geometry.num_frames(t, grid[0])} frames of {height} x {width} pixels, {config.generate.fps:g} a second",
        "tokens of a clip": f"{grid[0]} x {grid[1]} x {grid[2]}, of {m.visual_vocab:,} codes ({codes})",
        "layers, width, heads": f"{m.num_layers}, {m.model_dim}, {m.num_heads} ({m.num_kv_heads} of keys)",
        "method": f"layout {config.sequence.layout.name}, attention {config.sequence.attention.name}, targets {config.sequence.targets.name}",
        "sampling": f"{config.generate.sampler.name}, {config.generate.steps} steps, guidance {config.generate.guidance.name}",
    }


def _training(config: Config, facts: dict[str, Any]) -> dict[str, Any]:
    found = facts["provenance"]
    versions = found.get("versions") or {}
    return {
        "batch": f"{config.data.batch_size} clips",
        "optimizer": f"{config.optimizer.name}, learning rate {config.optimizer.learning_rate:g}",
        "seed": found.get("seed", config.seed),
        "data (fingerprint)": found.get("data"),
        "config (fingerprint)": found.get("config"),
        "commit": found.get("commit"),
        "devices": found.get("devices"),
        "versions": ", ".join(f"{name} {versions[name]}" for name in ("lumos", "jax", "python") if name in versions),
    }


def _evaluation(workdir: Path, step: int, report: str) -> list[str]:
    """Return the figures of `lumos evaluate`, or of the evaluation in training at this step."""
    rows: list[tuple[str, str, str]] = []
    if report:
        path = Path(report) / "row.json"
        found = json.loads(path.read_text())["metrics"] if path.is_file() else {}
        for name, metric in found.items():
            if isinstance(metric["value"], (int, float)):
                interval = f"{metric['low']:.4g} to {metric['high']:.4g}" if metric["low"] != metric["high"] else ""
                rows.append(
                    (name, f"{metric['value']:.4g} {f'({interval})' if interval else ''}".strip(), metric["protocol"])
                )
    else:
        lines = [line for line in metrics_writer.read(workdir, "eval") if line["step"] == step]
        for name in _MEASURED if lines else ():
            if name in lines[0]:
                rows.append((name, f"{lines[0][name]:.4g}", "evaluation split, during training"))
    if not rows:
        return ["Not evaluated."]
    return [
        "| metric | value (95 % interval) | protocol |",
        "|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _table(rows: dict[str, Any]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items() if value not in (None, ""))]
