"""How far a long piece of work has come, shown on a terminal and nowhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax


def progress(batches: Iterable[Any], unit: str, total: int, size: Callable[[Any], int] = len) -> Iterator[Any]:
    """Yield batches; process 0 shows how many of `total` rows are done, where stderr is a terminal. size: rows of a batch."""
    if not sys.stderr.isatty() or jax.process_index():
        yield from batches
        return
    from tqdm import tqdm

    with tqdm(total=total, unit=f" {unit}", leave=False) as bar:
        for rows in batches:
            yield rows
            bar.update(min(size(rows), total - bar.n))
