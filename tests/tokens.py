"""A folder of made-up tokens and a tiny run on it, for tests that need a training run but no video."""

import json

import jax
import numpy as np
import pytest
import tiny

from lumos import sharding
from lumos.data.records import RecordWriter

NUM_CODES = 30


def write_tokens(folder, num=64, seed=0, grid=(3, 4, 4), tokenizer=None, streams=()):
    """Write a finished token folder of two shards for training and one for validation; return it. Streams follow the first cell."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"):
        with RecordWriter(folder / f"{name}.array_record") as writer:
            for i in range(num // 2):
                tokens = rng.integers(0, NUM_CODES, grid).astype(np.uint32)
                of_frames = {
                    f"stream_{s}": np.repeat(tokens[:, :1, 0] % size, count, axis=1)
                    for s, (size, count) in enumerate(streams)
                }
                writer.write({"tokens": tokens, "caption": f"a red circle {i}", "id": f"{name}/{i}"} | of_frames)
    manifest = {
        "grid": list(grid),
        "codebook_size": NUM_CODES,
        "tokenizer": {"fingerprint": "none", **(tokenizer or {})},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def run_config(folder, **changes):
    """Return the config of a run that takes well under a second a step."""
    defaults = {
        "data__path": str(folder),
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


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    """Runs of this module train on one of the eight test devices, and share their compiled programs: four times faster."""
    with pytest.MonkeyPatch.context() as patch:
        make_mesh = sharding.make_mesh
        patch.setattr(sharding, "make_mesh", lambda mesh, devices=None: make_mesh(mesh, devices or jax.devices()[:1]))
        names = {"jax_compilation_cache_dir": str(tmp_path_factory.mktemp("cache"))}
        names["jax_persistent_cache_min_compile_time_secs"] = 0.0
        before = {name: getattr(jax.config, name) for name in names}
        for name, value in names.items():
            jax.config.update(name, value)
        yield
        for name, value in before.items():
            jax.config.update(name, value)
