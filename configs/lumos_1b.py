r"""Lumos-1 "1B" (1.5 B parameters; arXiv 2507.08801): 25 frames of 448x256 at 12 fps, AR-DF on Cosmos DV4x8x8 tokens.

12,544 codes and 256 text slots. Heads are twice as wide as those of the released models, which have 64 channels and leave half of a
TPU's matrix unit idle; the number of parameters is the same. Released weights need the variant "released". The variant "lumos1" adds
the markers of the released models (sizes, newlines, frame rate: 258 tokens); they cost 3 % of MFU on a TPU, as frames no longer
fill whole blocks of the attention kernel (docs/plans.md).

The variant "wide" has fewer, wider layers with about as many parameters (the tables have more), and heads of 256 channels, as Gemma
(arXiv 2403.08295). Less of a step goes to attention and norms: in the plans 4 to 10 points of MFU more, on v6e most (docs/plans.md).
It is not the default: the demo's model learns less with half of its layers (docs/results.md).

Run:       lumos train --config=configs/lumos_1b.py --workdir=... --config.data.path=TOKENS \
             --config.tokenizer_workdir=TOKENIZER --config.mesh.fsdp=64    (64 devices; docs/plans.md has others)
Expected:  not trained here; shapes and parameter counts are tested (tests/test_configs.py).
"""

from lumos import config_loading
from lumos.slots import slot

# layers, model_dim, mlp_dim, and of the released models: heads, kv heads, head_dim
_SIZES = {
    "500m": (16, 1024, 4096, 16, 4, 64),
    "1b": (16, 2048, 8192, 32, 8, 64),
    "3b": (28, 3072, 8192, 24, 8, 128),
}
_WIDE = {
    "500m": (6, 1536, 8192, 6, 2, 256),
    "1b": (7, 3072, 12_288, 12, 4, 256),
    "3b": (28, 3072, 8192, 12, 4, 256),  # wide as it is: only its heads change
}


def get_config(variant: str = ""):
    """Variants: "wide", "released" (heads of the released models), "lumos1" (their sequence too), "smoke" (seconds on a CPU), "lumos1,smoke"."""
    return sized("1b", variant)


def sized(size: str, variant: str):
    """Return the config of one released size."""
    config = config_loading.default()
    config.name = f"lumos {size}"
    config.data.source = "tokens"
    config.data.batch_size = 256
    config.sequence.grid = (7, 32, 56)  # that of the tokens; lumos plan has none
    config.sequence.text_length = 256
    model = config.model
    shape = (_WIDE if "wide" in variant else _SIZES)[size]
    model.num_layers, model.model_dim, model.mlp_dim, model.num_heads, model.num_kv_heads, model.head_dim = shape
    if model.head_dim < 128 and not {"released", "lumos1"} & set(variant.split(",")):
        wider = 128 // model.head_dim
        model.num_heads, model.num_kv_heads, model.head_dim = model.num_heads // wider, model.num_kv_heads // wider, 128
    model.text_vocab, model.visual_vocab = 65_536, 64_000
    model.dtype = "bfloat16"
    # What a 16 GB device has room for with one clip (docs/plans.md).
    model.remat = "minimal" if size == "3b" else "save:query,key,value,attention,out,gate,up"
    config.tokenizer.levels = (8, 8, 8, 5, 5, 5)
    config.loss.chunk = 4096
    config.optimizer.learning_rate = 1e-4 if size == "3b" else 5e-5
    config.optimizer.schedule = "constant"
    config.optimizer.clip_norm = 4.0
    config.optimizer.warmup_steps = 1000
    config.optimizer.ema_decay = 0.0
    config.train.num_steps = 100_000
    config.generate.steps = 50
    config.generate.guidance.scale = 15.0
    if "lumos1" in variant:
        config.sequence.layout = slot("lumos1")
    if "smoke" in variant:
        model.num_layers, model.model_dim, model.mlp_dim, model.num_heads, model.num_kv_heads = 2, 64, 128, 2, 1
        model.head_dim, model.dtype = 32, "float32"
        config.sequence.grid, config.sequence.text_length = (2, 4, 4), 8
        config.data.batch_size, config.train.num_steps, config.generate.steps = 2, 2, 2
    return config
