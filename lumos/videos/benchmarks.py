"""Files as the official scorers of benchmarks read them: names, counts, seeds. Prompt files and images are the benchmark's own."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from lumos.errors import UserError
from lumos.videos.prompts import read_entries


@dataclasses.dataclass(frozen=True)
class Item:
    """A clip to make. name: its file; text: what is generated, often the prompt in the name; image: its first frame."""

    name: str
    text: str
    image: str = ""


@dataclasses.dataclass(frozen=True)
class Files:
    """What a benchmark wants: clips, further small files by name, images instead of videos, and the command that scores them."""

    items: list[Item]
    command: str
    more: dict[str, str] = dataclasses.field(default_factory=dict)
    are_images: bool = False


def plan(layout: str, prompts: str, out: str, *, images: str = "", samples: int = 0) -> Files:
    """Return the files of a benchmark. A line of the prompt file may give another text to generate as "rewritten".

    Args:
      prompts: the benchmark's own file of prompts.
      images: vbench-i2v: the folder of its images, of one aspect.
      samples: clips of each prompt instead of the official number.

    Raises UserError: an unknown layout, entries without what it needs, names that a file cannot have.
    """
    if layout not in LAYOUTS:
        raise UserError(f"--layout={layout}; allowed: {', '.join(LAYOUTS)}, tokenbench")
    if not prompts:
        raise UserError(f"--layout={layout} needs the benchmark's file of prompts: --prompts=FILE")
    files = LAYOUTS[layout](read_entries(prompts), Path(prompts).stem, out, images, samples)
    for item in files.items:
        name = Path(item.name).name
        if item.name.count("/") != files.items[0].name.count("/") or "\0" in name or len(name.encode()) > 255:
            raise UserError(f"--layout={layout}: the prompt {item.text[:60]!r} cannot be the name of a file")
    names = [item.name for item in files.items]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"--layout={layout}: {twice!r} would be written twice; the file of prompts has a line twice")
    return files


def _vbench(entries, stem, out, images, samples, command="") -> Files:
    """`{prompt}-{0..4}.mp4` flat; 25 of each where temporal flickering is scored (0.1.5: vbench/__init__.py)."""
    items, seen = [], {}
    for entry in entries:
        dimensions = entry.get("dimension") or [stem]
        count = samples or (25 if "temporal_flickering" in dimensions else 5)
        prompt = entry["prompt"]
        seen[prompt] = max(seen.get(prompt, 0), count)  # some prompts are listed in two places
    for entry in entries:
        prompt = entry["prompt"]
        items += [Item(f"{prompt}-{i}.mp4", entry.get("rewritten", prompt)) for i in range(seen.pop(prompt, 0))]
    command = command or f"vbench evaluate --videos_path {out} --dimension <DIMENSION>"
    return Files(items, command)


def _vbench_long(entries, stem, out, images, samples) -> Files:
    command = (
        f"python vbench2_beta_long/eval_long.py --videos_path {out} --dimension <DIMENSION> --mode long_vbench_standard"
    )
    return _vbench(entries, stem, out, images, samples, command)


def _vbench_i2v(entries, stem, out, images, samples) -> Files:
    """`{prompt}-{0..4}.mp4`, each from its image."""
    if not images or not Path(images).is_dir():
        raise UserError("--layout=vbench-i2v needs the folder of the benchmark's images, of one aspect: --image=FOLDER")
    items, seen = [], set()
    for entry in entries:
        prompt, image = entry["prompt"], Path(images) / str(entry.get("image_name", f"{entry['prompt']}.jpg"))
        if prompt in seen:  # one entry for each dimension
            continue
        seen.add(prompt)
        if not image.is_file():
            raise UserError(f"--layout=vbench-i2v: {image}: no such file")
        items += [Item(f"{prompt}-{i}.mp4", entry.get("rewritten", prompt), str(image)) for i in range(samples or 5)]
    command = f"python evaluate_i2v.py --videos_path {out} --dimension <DIMENSION> --ratio <RATIO OF {images}>"
    return Files(items, command)


def _geneval(entries, stem, out, images, samples) -> Files:
    """`{00000}/metadata.jsonl` and `{00000}/samples/{0000..0003}.png`."""
    items, more = [], {}
    for number, entry in enumerate(entries):
        if "tag" not in entry:
            raise UserError(
                "--layout=geneval needs evaluation_metadata.jsonl, whose lines have a tag beside the prompt"
            )
        own = {name: value for name, value in entry.items() if name != "rewritten"}
        more[f"{number:05d}/metadata.jsonl"] = json.dumps(own)
        text = entry.get("rewritten", entry["prompt"])
        items += [Item(f"{number:05d}/samples/{i:04d}.png", text) for i in range(samples or 4)]
    command = (
        f"python evaluation/evaluate_images.py {out} --outfile results.jsonl --model-path <OBJECT_DETECTOR_FOLDER>"
    )
    return Files(items, command, more, are_images=True)


def _t2i_compbench(entries, stem, out, images, samples) -> Files:
    """`<category>/samples/{prompt}_{number}.png`, ten of each prompt, numbered through: scorers sort by the number."""
    category, items = stem.removesuffix("_val"), []
    for entry in entries:
        prompt = entry["prompt"]
        items += [
            Item(f"{category}/samples/{prompt}_{len(items) + i:06d}.png", entry.get("rewritten", prompt))
            for i in range(samples or 10)
        ]
    scorers = {
        "spatial": "UniDet_eval/determine_position_for_eval.py --outpath",
        "non_spatial": "CLIPScore_eval/CLIP_similarity.py --outpath",
    }
    scorers["complex"] = "3_in_1_eval/3_in_1.py --outpath"
    command = f"python {scorers.get(category, 'BLIPvqa_eval/BLIP_vqa.py --out_dir')}={out}/{category}/"
    return Files(items, command, are_images=True)


LAYOUTS = {
    "vbench": _vbench, "vbench-i2v": _vbench_i2v, "vbench-long": _vbench_long, "geneval": _geneval, "t2i-compbench": _t2i_compbench,
}  # fmt: skip
