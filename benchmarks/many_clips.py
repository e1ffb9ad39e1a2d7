"""Manifests and token folders of many clips: seconds until they are open and give a first batch, memory, reads a second.

    python benchmarks/many_clips.py --rows=10000000 --records=10000000 --shards=2000 --folder=/tmp/many

The data are made up: rows without files behind them, records of small grids. Each part runs in a process of its own, which
prints one line of JSON; `rss_gb` is the most memory that it ever had, `import_gb` what its imports took of that.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

STEPS = (0, 1_000_000)  # at which a run starts: a resume must cost no more


def rss_gb() -> float:
    """Return the most memory that this program had; that of the process which started it does not count."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


def make_config(source: str, path: Path, **data):
    from lumos.config import Config, DataConfig

    buckets = {"clips": ((17, 64, 64), (17, 48, 80), (33, 64, 64), (65, 64, 64)), "tokens": ((3, 4, 4),)}[source]
    return Config(data=DataConfig(source=source, path=str(path), buckets=buckets, batch_size=8, **data))


def write_manifest(path: Path, rows: int) -> None:
    from lumos.data.manifest_writer import ManifestWriter

    rng = np.random.default_rng(0)
    widths, frames = rng.choice([320, 640, 854, 1280], rows), rng.integers(17, 900, rows)
    with ManifestWriter(path, {"bytes"}) as writer:
        for i, (width, number) in enumerate(zip(widths.tolist(), frames.tolist())):
            name = f"part-{i // 1000:06d}/clip-{i:09d}.mp4"
            caption = f"clip {i}: a person walks a dog along the shore while the sun goes down behind some clouds"
            facts = {"duration": round(number / 24, 4), "fps": 24.0, "width": width, "height": 360, "frames": number}
            writer.write({"path": name, "id": name, "caption": caption, **facts, "bytes": 100_000 + i})


def write_records(folder: Path, records: int, shards: int) -> None:
    from lumos.data.records import RecordWriter

    rng, per_shard = np.random.default_rng(0), -(-records // shards)
    tokens_KTHW = rng.integers(0, 1000, (64, 3, 4, 4), dtype=np.uint32)
    for k in range(shards):
        with RecordWriter(folder / f"train-{k:05d}-of-{shards:05d}.array_record") as writer:
            for i in range(k * per_shard, min((k + 1) * per_shard, records)):
                writer.write({"tokens": tokens_KTHW[i % 64], "caption": f"clip {i}", "id": f"{i}"})
    (folder / "manifest.json").write_text(json.dumps({"grid": [3, 4, 4], "codebook_size": 1000}))


def open_manifest(path: Path) -> dict:
    """Open a pipeline over a manifest and take batches, at the start and late in a run; the decoder is left out."""
    from lumos.data import sources
    from lumos.data.pipeline import make_pipeline

    sources.read_clip = lambda path, *, num_frames, height, width, **_: np.zeros(
        (num_frames, height, width, 3), np.uint8
    )
    found = {"import_gb": rss_gb()}
    for step in STEPS:
        began = time.perf_counter()
        with make_pipeline(
            make_config("clips", path, cache_gb=0.0), "train", process_index=0, process_count=1, start_step=step
        ) as pipeline:
            next(pipeline)
            found[f"first_batch_s_at_step_{step}"] = time.perf_counter() - began
            if step == 0:
                began = time.perf_counter()
                for _ in range(250):
                    next(pipeline)
                found["rss_gb_at_first"] = rss_gb()
                found["clips_per_s"] = 2000 / (time.perf_counter() - began)
            found["clips"] = pipeline.num_clips
        del pipeline  # one at a time is in memory
    return found | {"rss_gb": rss_gb()}


def open_records(folder: Path, reads: int = 20_000) -> dict:
    from lumos.data.buckets import plan_buckets
    from lumos.data.sources import open_sources

    config = make_config("tokens", folder)
    found, began = {"import_gb": rss_gb()}, time.perf_counter()
    ((source, _),) = open_sources(config, "train")
    found |= {"open_s": time.perf_counter() - began, "open_gb": rss_gb()}
    (bucket,) = plan_buckets(config.data, config.tokenizer)
    places = np.random.default_rng(0).integers(0, len(source.sizes), reads).tolist()
    for name, part in (("first", places[: reads // 2]), ("second", places[reads // 2 :])):
        began = time.perf_counter()
        for place in part:
            source.load(place, bucket, 0.0)
        found |= {f"{name}_reads_per_s": len(part) / (time.perf_counter() - began), f"{name}_gb": rss_gb()}
    return found | {"records": len(source.sizes)}


PARTS = {"manifest": open_manifest, "records": open_records}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--folder", type=Path, required=True, help="where the data are made, or are from the last time")
    parser.add_argument("--part", choices=PARTS, help="one part, in this process")
    arguments = parser.parse_args()
    manifest = arguments.folder / f"{arguments.rows}.arrow"
    tokens = arguments.folder / f"tokens-{arguments.records}-{arguments.shards}"
    if arguments.part:
        path = {"manifest": manifest, "records": tokens}[arguments.part]
        print(json.dumps({"part": arguments.part} | PARTS[arguments.part](path)))
        return
    if not manifest.exists():
        write_manifest(manifest, arguments.rows)
    if not (tokens / "manifest.json").exists():
        write_records(tokens, arguments.records, arguments.shards)
    for part in PARTS:
        subprocess.run([sys.executable, *sys.argv, f"--part={part}"], check=True)


if __name__ == "__main__":
    main()
