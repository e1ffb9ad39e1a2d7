"""Tiny configs and batches that several tests share."""

import numpy as np

from lumos import config_loading


def transformer(**changes):
    """Return a parsed config of a two-layer transformer; `changes` are dotted fields with __ for the dot."""
    config = config_loading.default()
    config.model.num_layers = 2
    config.model.model_dim = 32
    config.model.mlp_dim = 64
    config.model.num_heads = 2
    config.model.num_kv_heads = 1
    config.model.head_dim = 32
    config.model.text_vocab = 20
    config.model.visual_vocab = 30
    config.sequence.grid = (3, 4, 4)
    config.sequence.text_length = 6
    config.data.batch_size = 8
    config.data.source = "tokens"
    config.generate.steps = 3
    for name, value in changes.items():
        *parents, leaf = name.split("__")
        node = config
        for parent in parents:
            node = node[parent]
        node[leaf] = value
    return config_loading.parse(config)


def token_batch(config, seed=0):
    rng = np.random.default_rng(seed)
    size, length = config.data.batch_size, config.sequence.text_length
    text_length = rng.integers(1, length + 1, size).astype(np.int32)
    text = rng.integers(4, config.model.text_vocab, (size, length)).astype(np.int32)
    text[np.arange(length) < length - text_length[:, None]] = 0
    tokens = rng.integers(0, config.model.visual_vocab, (size, *config.sequence.grid)).astype(np.int32)
    streams = {
        f"stream_{i}": rng.integers(0, codes, (size, config.sequence.grid[0], num)).astype(np.int32)
        for i, (codes, num) in enumerate(config.sequence.streams)
    }
    return {"tokens": tokens, "text": text, "text_length": text_length} | streams
