"""Lists of the clips of benchmarks, from their folders as they are published: `lumos data benchmark`.

    benchmark    folder                                                         captions             splits
    ucf101       UCF-101/<Class>/*.avi, ucfTrainTestlist/{train,test}list01.txt  the class, in words  train, test
    kinetics600  train/ and val/, each <class>/*.mp4 or *.mp4                    the class, or none   train, validation
    bair         train/ and test/, each of traj_*.tfrecords, or of clips         none                 train, test

Records of BAIR become lossless videos in a folder beside the list, `<list>_clips`. Clips stand in random order, the same each time. The list goes through `lumos data index` like any other, which says what cannot be read.
"""

from __future__ import annotations

import csv
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from lumos.data import bair
from lumos.errors import UserError

_SUFFIXES = (".avi", ".gif", ".mkv", ".mp4", ".webm")
Row = tuple[Path, str, str]  # path, caption, split


def write_list(name: str, folder: str | Path, out: str | Path) -> dict[str, int]:
    """Write the list of a benchmark in `folder` as CSV; return the number of clips by split.

    Raises UserError: an unknown benchmark, or a folder that is not laid out as it is published.
    """
    if name not in LISTS:
        raise UserError(f"--name={name}; allowed: {', '.join(LISTS)}")
    folder, out, counts = Path(folder), Path(out), {}
    if name == "bair":
        folder = _without_records(folder, out.with_name(f"{out.stem}_clips"))
    rows = list(LISTS[name](folder))
    random.Random(0).shuffle(
        rows
    )  # an evaluation of N clips takes the first N, which should not be those of a few classes
    partial = out.with_name(f"{out.name}.partial")
    with open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "id", "caption", "split"])
        for path, caption, split in rows:
            where = path.absolute()
            if where.is_relative_to(out.parent.absolute()):  # a list beside its clips can be moved with them
                where = where.relative_to(out.parent.absolute())
            writer.writerow([where, path.relative_to(folder).as_posix(), caption, split])
            counts[split] = counts.get(split, 0) + 1
    os.replace(partial, out)
    return counts


def _ucf101(folder: Path) -> Iterator[Row]:
    """The first of its three divisions into training and test."""
    for split in ("train", "test"):
        path = folder / "ucfTrainTestlist" / f"{split}list01.txt"
        if not path.is_file():
            raise UserError(f"{path}: no such file; --input is the folder with UCF-101/ and ucfTrainTestlist/")
        for line in filter(str.strip, path.read_text().splitlines()):
            name = line.split()[0]  # training lists have the number of the class behind it
            words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.partition("/")[0]).lower()
            yield folder / "UCF-101" / name, words, split


def _of_folders(**splits: str) -> Callable[[Path], Iterator[Row]]:
    """Return the list of clips in folders of their splits: clips in a folder of a class have its name as caption."""

    def rows(folder: Path) -> Iterator[Row]:
        for name, split in splits.items():
            paths = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in _SUFFIXES)
            if not paths:
                raise UserError(
                    f"{folder / name}: no clips; --input is the folder with {' and '.join(f'{n}/' for n in splits)}"
                )
            for path in paths:
                yield path, path.parent.name.replace("_", " ") if path.parent != folder / name else "", split

    return rows


def _without_records(folder: Path, out: Path) -> Path:
    """Return the folder of the clips of BAIR: `out`, with videos made of its records, or the folder itself where it holds no records."""
    splits = [path for path in (folder / "train", folder / "test") if next(path.glob(f"*{bair.SUFFIX}"), None)]
    for path in splits:
        bair.unpack(path, out / path.name)
    return out if splits else folder


def _without_captions(rows: Callable[[Path], Iterator[Row]]) -> Callable[[Path], Iterator[Row]]:
    return lambda folder: ((path, "", split) for path, _, split in rows(folder))


LISTS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "ucf101": _ucf101,
    "kinetics600": _of_folders(train="train", val="validation"),
    "bair": _without_captions(_of_folders(train="train", test="test")),
}
