"""Causal video tokenizers, 4x8x8 compression, sizes XS, S, M, B (variants xs, s, m, b).

Run:       lumos train --config=configs/tokenizer_sizes.py:s --workdir=... --config.data.path=clips.jsonl
Expected:  0.48 M, 1.4 M, 26 M, 105 M parameters; not trained here (configs/tokenizer_quantizers.py is nearest to S).
"""

from lumos import config_loading

# channels, mult, residual blocks, side of the training clips
_SIZES = {
    "xs": (16, (1, 2, 2), 1, 64),
    "s": (32, (1, 2, 2), 1, 128),
    "m": (64, (2, 4, 4), 2, 256),
    "b": (128, (2, 4, 4), 2, 256),
}


def get_config(variant: str = "s"):
    """Variants: xs, s, m, b, each also with ",smoke"."""
    size, _, rest = variant.partition(",")
    config = config_loading.default()
    config.name, config.task = f"tokenizer {size}", "tokenizer"
    channels, mult, blocks, side = _SIZES[size]
    config.tokenizer.channels, config.tokenizer.channel_mult, config.tokenizer.num_res_blocks = channels, mult, blocks
    config.tokenizer.levels = (8, 5, 5, 5) if size == "xs" else (8, 8, 8, 5, 5, 5)
    config.data.source = "clips"
    config.data.batch_size = 64
    config.data.image_fraction = 0.2
    config.data.buckets = ((17, side, side),)
    config.mesh.replica, config.mesh.fsdp = -1, 1  # small enough to be whole on every device
    config.optimizer.learning_rate = 1e-3 if size in ("xs", "s") else 1e-4
    config.optimizer.beta2 = 0.99
    config.optimizer.weight_decay = 0.01
    config.train.num_steps = 100_000
    config.optimizer.ema_decay = 0.9999 if size in ("m", "b") else 0.999
    if rest == "smoke":
        config.tokenizer.channels, config.data.batch_size, config.train.num_steps = 8, 2, 2
        config.data.buckets, config.data.image_fraction = ((5, 32, 32),), 0.0
    return config
