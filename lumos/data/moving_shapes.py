"""moving_shapes: captioned clips of moving coloured shapes, generated, and packed as a TFDS data set.

Small enough to learn in minutes on a CPU, and checkable: captions name colour, shape and direction, the test split
holds combinations that training never shows, and `score` reads all three back from generated pixels. Levels:

    easy    one large flat object, 4 directions, smooth background
    endless as easy, but to and fro between the edges for ever: a cut of a long clip looks like any other
    medium  1-2 objects, 3 sizes and speeds, 8 directions, bounces, light texture behind
    hard    1-3 objects, most of them textured, before a textured background that a moving camera pans over; occlusion

TensorFlow is not needed: TFDS writes ArrayRecord files and reads them back as a random-access source.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from tqdm import tqdm

from lumos.config import ShapesConfig
from lumos.data.shapes_caption import Prompt, test_prompts, write_caption
from lumos.data.shapes_checker import Reading, read, score
from lumos.data.shapes_render import render
from lumos.data.shapes_scene import SPLITS, check_clip_shape, combinations, sample_scene
from lumos.errors import UserError

__all__ = [
    "FPS",
    "MovingShapes",
    "MovingShapesConfig",
    "Prompt",
    "Reading",
    "ShapesSplit",
    "make_clip",
    "open_split",
    "prepare",
    "read",
    "score",
    "test_prompts",
]


FPS = 8.0  # the clips are drawn frame by frame; this is the rate at which they are shown


def make_clip(level: str, clip_shape: tuple[int, int, int], seed: int, split: str, index: int) -> dict[str, Any]:
    """Draw clip `index` of a split; a pure function of its arguments.

    Args:
      level: "easy", "endless", "medium" or "hard".
      clip_shape: (frames, height, width), at least (2, 32, 32).
      seed: changes the clips, never which combinations a split holds.
      split: "train", "validation" or "test".
      index: from 0, no upper limit.

    Returns:
      video uint8 [F, Y, X, 3], caption, id, and of the main object colour, shape and direction; num_objects,
      bounce (of the main object) and occlusion (whether objects overlap in some frame).

    Raises:
      UserError: unknown level or split, or a clip shape that is too small.
    """
    scene = sample_scene(level, clip_shape, seed, split, index)
    return {
        "video": render(scene),
        "caption": write_caption(scene, seed, split, index),
        "id": f"{split}-{index:06d}",
        "colour": scene.main.colour,
        "shape": scene.main.shape,
        "direction": scene.main.direction,
        "num_objects": len(scene.objects),
        "bounce": scene.main.bounces,
        "occlusion": scene.occlusion,
    }


@dataclasses.dataclass(eq=False, kw_only=True)
class MovingShapesConfig(tfds.core.BuilderConfig):
    """Everything that decides the clips; the name spells it out, so other settings never share a folder."""

    name: str = dataclasses.field(init=False, default="")
    shapes: ShapesConfig
    clip_shape: tuple[int, int, int]
    seed: int

    def __post_init__(self):
        frames, height, width = self.clip_shape
        s = self.shapes
        counts = f"{s.num_train}-{s.num_validation}-{s.num_test}"
        self.name = f"{s.level}_{frames}x{height}x{width}_{counts}_seed{self.seed}"


class MovingShapes(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of the three splits. Record i of a split is `make_clip(..., split, i)`."""

    VERSION = tfds.core.Version("1.0.0")
    # Nothing is downloaded. With None TFDS does not look for checksums beside this file, for which it needs the
    # package importlib_resources, although it does not require it.
    code_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        text, flag = tfds.features.Text(), tfds.features.Scalar(np.bool_)
        return tfds.core.DatasetInfo(
            builder=self,
            description="Captioned clips of moving coloured shapes.",
            features=tfds.features.FeaturesDict(
                {
                    "video": tfds.features.Tensor(
                        shape=(*self.builder_config.clip_shape, 3), dtype=np.uint8, encoding="zlib"
                    ),
                    **{name: text for name in ("caption", "id", "colour", "shape", "direction")},
                    "num_objects": tfds.features.Scalar(np.int32),
                    "bounce": flag,
                    "occlusion": flag,
                }
            ),
            disable_shuffling=True,  # the clips are in random order as they come
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        counts = {split: getattr(self.builder_config.shapes, f"num_{split}") for split in SPLITS}
        return {split: self._generate_examples(split, count) for split, count in counts.items() if count}

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        c = self.builder_config
        # disable=None: a bar only on a terminal.
        for index in tqdm(range(count), desc=f"moving_shapes {split}", unit=" clips", disable=None, leave=False):
            yield index, make_clip(c.shapes.level, c.clip_shape, c.seed, split, index)


def prepare(data_dir: str | Path, shapes: ShapesConfig, clip_shape: tuple[int, int, int], seed: int) -> Path:
    """Write the data set below `data_dir`, unless it is there already, and return its own folder.

    It is written beside its place and renamed when complete, so that an interrupted preparation counts for nothing,
    and processes that prepare the same folder at once agree.

    Raises:
      UserError: unknown level, clips too small, a negative count or seed, or a folder prepared with other settings.
    """
    check_clip_shape(clip_shape)
    combinations(shapes.level, "train")
    counts = {f"num_{split}": getattr(shapes, f"num_{split}") for split in SPLITS}
    if min(counts.values()) < 0 or not any(counts.values()):
        raise UserError(f"config.shapes: {counts}: counts must be at least 0, and one of them positive")
    if seed < 0:
        raise UserError(f"config.seed={seed} must be at least 0")
    config = MovingShapesConfig(shapes=shapes, clip_shape=tuple(clip_shape), seed=seed)
    with _quiet():
        builder = MovingShapes(config=config, data_dir=data_dir, file_format="array_record")
        target = Path(builder.data_dir)
        others = [folder for folder in _prepared(data_dir) if folder != target]
        if others:
            raise UserError(
                f"{data_dir} was prepared as {others[0].parent.name} {others[0].name}, now asked for "
                f"{config.name} {target.name}; delete it or choose another folder"
            )
        if target not in _prepared(data_dir):
            try:
                builder.download_and_prepare()
            except OSError:
                # Another process was faster: its complete copy is in the way of the last rename.
                if target not in _prepared(data_dir):
                    raise
    return target


def open_split(path: str | Path, split: str) -> ShapesSplit:
    """Open a split of a prepared data set.

    Args:
      path: the `data_dir` given to `prepare`, or the folder that it returned.
      split: "train", "validation" or "test".

    Raises:
      UserError: nothing (or more than one data set) is prepared there, or it has no such split.
    """
    folders = [Path(path)] if (Path(path) / "dataset_info.json").exists() else _prepared(path)
    if len(folders) != 1:
        found = ", ".join(map(str, folders)) or "none"
        raise UserError(f"{path} must hold one prepared moving_shapes data set, found {found}; run `lumos data shapes`")
    with _quiet():
        builder = tfds.builder_from_directory(folders[0])
        if split not in builder.info.splits:
            raise UserError(f"{path} has no split {split!r}; it has: {', '.join(builder.info.splits)}")
        return ShapesSplit(builder.as_data_source(split), _facts(folders[0]))


class ShapesSplit:
    """Random access to the clips of a split: `len(split)` and `split[i]`, which is what `make_clip` returned.

    Attributes:
      facts: what decides the clips, wherever the folder lies.
    """

    def __init__(self, source: tfds.core.data_sources.BaseDataSource, facts: dict[str, str]):
        self._source, self.facts = source, facts

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self._source[index]
        clip = {name: value.decode() if isinstance(value, bytes) else value for name, value in record.items()}
        return clip | {"num_objects": int(clip["num_objects"])} | {k: bool(clip[k]) for k in ("bounce", "occlusion")}


def _facts(folder: Path) -> dict[str, str]:
    """Return the settings that a data set was prepared with, and a hash of what TFDS says of it (sizes in bytes, too)."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.json")):
        digest.update(file.name.encode() + file.read_bytes())
    return {"settings": f"{folder.parent.name} {folder.name}", "hash": digest.hexdigest()[:16]}


def _prepared(data_dir: str | Path) -> list[Path]:
    """Return the complete data sets below a folder; TFDS names one that is being written `incomplete.*`."""
    found = sorted(Path(data_dir).glob(f"{MovingShapes.name}/*/*/dataset_info.json"))
    return [file.parent for file in found if not file.parent.name.startswith("incomplete.")]


@contextlib.contextmanager
def _quiet():
    """Silence what TFDS says about downloads: prints on stdout, log lines and its own progress bars."""
    verbosity = logging.get_verbosity()
    tfds.disable_progress_bar()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
