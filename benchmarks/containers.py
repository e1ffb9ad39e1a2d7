"""How fast clips are read at random out of loose files, tars and parquet files: `python benchmarks/containers.py`.

Prints a line of JSON: clips a second of each, and as a share of loose files. 64 clips of 49 frames at 256x256, read in a random order by two
threads, as training reads them (nothing kept decoded); rounds of all kinds take turns, and the best round of each counts. The shares of processor
time (of this process and its decoders) do not depend on what else the machine does.
"""

import json
import os
import random
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pyarrow
from pyarrow import parquet

from lumos.config import DataConfig
from lumos.data import decoder, media
from lumos.data.decoder import read_clip
from lumos.data.index import index
from lumos.data.manifest import read_manifest
from lumos.data.video_writer import write_video

CLIPS, ROUNDS = 64, 5


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, clips = Path(name), Path(name) / "clips"
        rng = np.random.default_rng(0)
        for i in range(CLIPS):
            coarse = rng.integers(0, 255, (49, 16, 16, 3), dtype=np.uint8)
            write_video(clips / f"{i:03d}.mp4", coarse.repeat(16, 1).repeat(16, 2), 24)
        paths = sorted(clips.iterdir())
        with tarfile.open(folder / "clips.tar", "w") as tar:
            for path in paths:
                tar.add(path, path.name)
        table = pyarrow.Table.from_pylist(
            [{"video": {"bytes": path.read_bytes(), "path": path.name}} for path in paths]
        )
        parquet.write_table(table, folder / "plain.parquet", row_group_size=16, compression="NONE")
        parquet.write_table(table, folder / "snappy.parquet", row_group_size=16, compression="snappy")
        sources = {"loose": clips, "tar": folder / "clips.tar", "parquet": folder / "plain.parquet"}
        sources["parquet_snappy"] = folder / "snappy.parquet"
        rows = {}
        for kind, source in sources.items():
            rows[kind] = list(read_manifest(index(source, folder / f"{kind}.jsonl", DataConfig()).manifest))
        best, least = dict.fromkeys(rows, 0.0), dict.fromkeys(rows, float("inf"))
        read = lambda row: read_clip(media.of_row(row), start=0.5, num_frames=17, fps=12.0, height=128, width=128)
        with ThreadPoolExecutor(2) as pool:
            for number in range(ROUNDS + 1):  # the first one starts the workers
                for kind, found in rows.items():
                    order = random.Random(number).sample(found, len(found))
                    began, cpu = time.perf_counter(), cpu_seconds()
                    list(pool.map(read, order))
                    least[kind] = min(least[kind], cpu_seconds() - cpu) if number else least[kind]
                    best[kind] = max(best[kind], len(found) / (time.perf_counter() - began)) if number else 0.0
        print(json.dumps({"clips": CLIPS, "mb": sum(p.stat().st_size for p in paths) / 1e6, "clips_a_second": best}))
        print(json.dumps({kind: round(rate / best["loose"], 3) for kind, rate in best.items()}))
        shares = {kind: round(least["loose"] / seconds, 3) for kind, seconds in least.items()}
        print(json.dumps({"by_processor_time": shares, "load": os.getloadavg()[0]}))


def cpu_seconds() -> float:
    """Return the processor time of this process and its decoders so far."""
    seconds = time.process_time()
    for worker in decoder._started:
        fields = Path(f"/proc/{worker._process.pid}/stat").read_text().rpartition(")")[2].split()
        seconds += sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
    return seconds


if __name__ == "__main__":
    main()
