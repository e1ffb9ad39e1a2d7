"""Records a second of a training pipeline whose tokens lie in a bucket: `python benchmarks/bucket_records.py --records=20000 --shards=40`.

The bucket is one of a server on this machine (tests/buckets.py). Records have grids of --grid random codes (5,32,32: about 15 kB); of the shards
--distinct are made, the others are copies of them, so that ten million records are there in minutes:
`--records=10000000 --shards=2000 --distinct=4 --grid=1,4,4`. The local copies may hold --cache_gb. Prints a line of JSON: seconds until the shards
are open and until the first batch, records a second from the 11th batch on, memory more than before when the first and the last batch are there,
records kept. `cpu_ms` is the processor time of this process for a record, which other work on the machine does not change.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "tests")]

# ruff: noqa: E402
import buckets
import numpy as np
from many_clips import rss_gb


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, default=20000)
    parser.add_argument("--shards", type=int, default=40)
    parser.add_argument("--batches", type=int, default=150)
    parser.add_argument("--cache_gb", type=float, default=0.1)
    parser.add_argument("--distinct", type=int, default=0, help="shards that are made; 0 = all")
    parser.add_argument("--grid", default="5,32,32")
    arguments = parser.parse_args()
    grid = tuple(map(int, arguments.grid.split(",")))
    storage = buckets.start()
    url = buckets.make(storage, "records")
    from lumos import files
    from lumos.config import Config, DataConfig, ModelConfig
    from lumos.data.pipeline import make_pipeline
    from lumos.data.records import RecordWriter

    rng, per_shard = np.random.default_rng(0), arguments.records // arguments.shards
    with tempfile.TemporaryDirectory() as name:
        made = [Path(name) / f"train-{k:05d}-of-{arguments.shards:05d}.array_record" for k in range(arguments.shards)]
        for k, path in enumerate(made):
            if 0 < arguments.distinct <= k:
                for suffix in ("", ".places"):
                    os.link(f"{made[k % arguments.distinct]}{suffix}", f"{path}{suffix}")
                continue
            with RecordWriter(path) as writer:
                for i in range(per_shard):
                    tokens = rng.integers(0, 64000, grid, dtype=np.uint32)
                    writer.write({"tokens": tokens, "caption": f"clip {i}", "id": f"{k}/{i}"})
        (Path(name) / "manifest.json").write_text(json.dumps({"grid": grid, "codebook_size": 64000}))
        root = files.path(f"{url}/t")
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda path: files.put(path, root / path.name), sorted(Path(name).iterdir())))
    data = DataConfig(source="tokens", path=f"{url}/t", buckets=(grid,), batch_size=64, cache_gb=arguments.cache_gb)
    before, began, cpu = rss_gb(), time.perf_counter(), time.process_time()
    config = Config(data=data, model=ModelConfig(visual_vocab=64000))
    with make_pipeline(config, "train", process_index=0, process_count=1) as pipeline:
        opened, opened_cpu = time.perf_counter() - began, time.process_time() - cpu
        next(pipeline)
        first, rss = time.perf_counter() - began, rss_gb() - before
        for _ in range(10):
            next(pipeline)
        began, cpu = time.perf_counter(), time.process_time()
        for _ in range(arguments.batches):
            next(pipeline)
        number = 64 * arguments.batches
        rate, cpu = number / (time.perf_counter() - began), 1000 * (time.process_time() - cpu) / number
        remote = pipeline._reader.sources[0]._records.remote
        kept = len(remote._kept)
    storage.process.terminate()
    facts = {
        "records": arguments.records,
        "shards": arguments.shards,
        "opened_s": round(opened, 2),
        "opened_cpu_s": round(opened_cpu, 2),
        "first_batch_s": round(first, 2),
    }
    facts |= {
        "records_a_second": round(rate),
        "cpu_ms": round(cpu, 2),
        "rss_more_gb": [round(rss, 3), round(rss_gb() - before, 3)],
    }
    print(json.dumps(facts | {"records_kept": kept}))


if __name__ == "__main__":
    main()
