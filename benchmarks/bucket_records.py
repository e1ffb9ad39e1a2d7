"""Records a second of a training pipeline whose tokens lie in a bucket: `python benchmarks/bucket_records.py --records=20000 --shards=40`.

The bucket is one of a server on this machine (tests/buckets.py). Records have grids of 5x32x32 random codes, about 15 kB; the local copies may hold
--cache_gb. Prints a line of JSON: seconds until the first batch, records a second from the 11th batch on, memory, records kept.
"""

import argparse
import json
import sys
import tempfile
import time
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
    arguments = parser.parse_args()
    storage = buckets.start()
    url = buckets.make(storage, "records")
    from lumos import files
    from lumos.config import Config, DataConfig, ModelConfig
    from lumos.data.pipeline import make_pipeline
    from lumos.data.records import RecordWriter

    rng, per_shard = np.random.default_rng(0), arguments.records // arguments.shards
    with tempfile.TemporaryDirectory() as name:
        for k in range(arguments.shards):
            with RecordWriter(Path(name) / f"train-{k:05d}-of-{arguments.shards:05d}.array_record") as writer:
                for i in range(per_shard):
                    tokens = rng.integers(0, 64000, (5, 32, 32), dtype=np.uint32)
                    writer.write({"tokens": tokens, "caption": f"clip {i}", "id": f"{k}/{i}"})
        (Path(name) / "manifest.json").write_text(json.dumps({"grid": [5, 32, 32], "codebook_size": 64000}))
        files.put_tree(Path(name), files.path(f"{url}/t"))
    data = DataConfig(
        source="tokens", path=f"{url}/t", buckets=((5, 32, 32),), batch_size=64, cache_gb=arguments.cache_gb
    )
    before, began = rss_gb(), time.perf_counter()
    config = Config(data=data, model=ModelConfig(visual_vocab=64000))
    with make_pipeline(config, "train", process_index=0, process_count=1) as pipeline:
        next(pipeline)
        first = time.perf_counter() - began
        for _ in range(10):
            next(pipeline)
        began = time.perf_counter()
        for _ in range(arguments.batches):
            next(pipeline)
        rate = 64 * arguments.batches / (time.perf_counter() - began)
        remote = pipeline._reader.sources[0]._records.remote
        kept = len(remote._kept)
    storage.process.terminate()
    facts = {"records": arguments.records, "first_batch_s": round(first, 2), "records_a_second": round(rate)}
    print(json.dumps(facts | {"rss_more_gb": round(rss_gb() - before, 3), "records_kept": kept}))


if __name__ == "__main__":
    main()
