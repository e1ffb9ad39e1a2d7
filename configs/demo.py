"""The demo: moving shapes from nothing to videos that follow a prompt, on two CPU cores in minutes.

Runs:      lumos demo --workdir=demo
By hand:   lumos data shapes --config=configs/demo.py:tokenizer
           lumos train       --config=configs/demo.py:tokenizer   --workdir=demo/tokenizer
           lumos tokenize    --config=configs/demo.py:tokenizer   --workdir=demo/tokenizer --out=demo/tokens
           lumos train       --config=configs/demo.py:transformer --workdir=demo/transformer
           lumos evaluate    --workdir=demo/transformer --out=demo/report
Expected:  docs/results.md
"""

from lumos import config_loading
from lumos.slots import slot


def get_config(variant: str = "transformer"):
    """Variants: "tokenizer", "tokens" (the same), "transformer", each also with ",smoke" (seconds, for tests)."""
    part, _, size = variant.partition(",")
    config = config_loading.default()
    task = "tokenizer" if part == "tokens" else part
    config.name, config.task = f"demo {task}", task
    config.sequence.text_length = 16
    config.shapes.level = "easy"
    config.tokenizer_workdir = "demo/tokenizer"
    config.tokenizer.channels = 32
    config.tokenizer.channel_mult = (1, 2)
    config.tokenizer.mid_attention = False
    config.tokenizer.l1_weight, config.tokenizer.l2_weight = 0.2, 1.0
    if task == "tokenizer":
        config.data.path = "demo/moving_shapes"
        config.data.buckets = ((5, 32, 32),) if size == "smoke" else ((9, 48, 48),)
        config.data.batch_size = 8
        config.optimizer.name = "muon"
        config.optimizer.learning_rate = 3e-3
        config.optimizer.warmup_steps = 50
        config.optimizer.weight_decay = 0.01
        config.optimizer.final_fraction = 0.02
        config.optimizer.ema_decay = 0.995
        config.train.num_steps = 600
        config.train.eval_every = 200
    else:
        config.data.source = "tokens"
        config.data.path = "demo/tokens"
        config.data.batch_size = 16
        config.model.num_layers = 6
        config.model.model_dim = 128
        config.model.mlp_dim = 384
        config.model.num_heads = 2
        config.model.num_kv_heads = 2
        config.model.code_levels = (8, 5, 5, 5)
        config.model.scan_layers, config.model.remat = False, "none"
        # After as many steps Muon is far ahead of AdamW (docs/results.md).
        config.optimizer.name = "muon"
        config.optimizer.learning_rate = 5e-3
        config.optimizer.final_fraction = 0.02
        config.optimizer.ema_decay = 0.995
        # Every frame with its own mask ratio, so that a nearly clean past and an unknown present occur in training as
        # they do in generation. Shared tubes (Lumos-1, the default) need more steps than there are here before motion
        # follows the prompt (docs/results.md).
        config.corruption.frames = slot("independent")
        config.corruption.cells = slot("frame")
        config.corruption.level = slot("uniform")
        config.train.num_steps = 1500
        config.train.eval_every = 500
        config.train.checkpoint_every = 750
        config.generate.history_ratio = 0.0
        config.generate.guidance.scale = 1.5
    # Codes in use are counted on 20 tokens for each entry of the codebook.
    config.shapes.num_test = config.evaluate.num_clips = 256
    if size == "smoke":
        config.shapes.num_train = config.shapes.num_validation = config.shapes.num_test = 16
        config.tokenizer.channels = 16
        config.data.batch_size = 4
        config.train.num_steps = 4
        config.train.eval_batches = config.train.num_samples = 1
        config.train.log_every = 2
        config.model.num_layers = 2
        config.model.model_dim = 64
        config.model.mlp_dim = 128
        config.generate.steps = 4
        config.evaluate.num_prompts = config.evaluate.num_clips = 4
        config.evaluate.batch_size = 4
    return config
