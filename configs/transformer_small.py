r"""Small transformers for study runs, compact layout, 17 frames of 64x64: variants 1m, 5m, 20m, 100m.

The recipes of other systems (configs/recipes) are these with other slots.

Run:       lumos train --config=configs/transformer_small.py:20m --workdir=... --config.data.path=TOKENS \
             --config.tokenizer_workdir=TOKENIZER
Expected:  parameter counts within 25 % of the names (tests/test_configs.py); not trained here.
"""

from lumos import config_loading
from lumos.errors import UserError

# layers, model_dim, mlp_dim, heads, kv heads
_SIZES = {
    "1m": (4, 128, 352, 2, 2),
    "5m": (6, 256, 704, 4, 2),
    "20m": (10, 384, 1088, 6, 3),
    "100m": (12, 768, 2048, 12, 4),
}


def get_config(variant: str = "5m"):
    """Variants: 1m, 5m, 20m, 100m, each also with ",smoke"; "smoke" alone is that of 5m."""
    size, _, smoke = ("5m,smoke" if variant == "smoke" else variant).partition(",")
    if size not in _SIZES or smoke not in ("", "smoke"):
        raise UserError(f"variant {variant!r}; allowed: {', '.join(_SIZES)}, each also with ',smoke'")
    config = config_loading.default()
    config.name = f"transformer {size}"
    config.data.source = "tokens"
    config.data.batch_size = 32
    config.sequence.grid = (5, 8, 8)  # recipes take the widths of caches from it, and lumos plan needs it
    model = config.model
    model.num_layers, model.model_dim, model.mlp_dim, model.num_heads, model.num_kv_heads = _SIZES[size]
    config.train.num_steps = 20_000
    config.optimizer.learning_rate = 6e-4 if size == "100m" else 1e-3
    if smoke:
        model.num_layers, model.scan_layers, config.data.batch_size, config.train.num_steps = 1, False, 2, 2
        config.sequence.grid, config.sequence.text_length = (3, 4, 4), 8
        config.train.log_every, config.train.eval_batches, config.generate.steps = 1, 1, 3
    return config
