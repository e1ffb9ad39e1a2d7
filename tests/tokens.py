"""A folder of made-up tokens and a tiny run on it, for tests that need a training run but no video."""

import json

import numpy as np
import tiny

from lumos.data.records import RecordWriter

NUM_CODES = 30


def write_tokens(folder, num=64, seed=0):
    """Write a finished token folder of two shards for training and one for validation; return it."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"):
        with RecordWriter(folder / f"{name}.array_record") as writer:
            for i in range(num // 2):
                grid = rng.integers(0, NUM_CODES, (3, 4, 4)).astype(np.uint32)
                writer.write({"tokens": grid, "caption": f"a red circle {i}", "id": f"{name}/{i}"})
    manifest = {"grid": [3, 4, 4], "codebook_size": NUM_CODES, "tokenizer": {"fingerprint": "none"}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def run_config(folder, **changes):
    """Return the config of a run that takes well under a second a step."""
    defaults = {
        "data__path": str(folder),
        "data__buckets": ((9, 32, 32),),
        "model__text_vocab": 0,
        "model__num_layers": 1,
        "train__num_steps": 6,
        "train__log_every": 1,
        "train__eval_every": 0,
        "train__eval_batches": 1,
        "train__checkpoint_every": 2,
        "train__num_samples": 0,
    }
    return tiny.transformer(**(defaults | changes))
