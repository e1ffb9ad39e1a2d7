"""Your own folder of clips, end to end on a CPU: 64x64, 17 frames at 12 fps, overfitting a small collection.

Runs:      lumos data index --input=CLIPS --out=real/clips.jsonl
           lumos train      --config=configs/real_clips.py:tokenizer   --workdir=real/tokenizer
           lumos tokenize   --config=configs/real_clips.py:tokenizer   --workdir=real/tokenizer --out=real/tokens
           lumos train      --config=configs/real_clips.py:transformer --workdir=real/transformer
           lumos evaluate   --workdir=real/transformer --out=real/report
           lumos generate   --workdir=real/transformer --video=CLIP --prompt="..." --out=continued.mp4
Expected:  docs/results.md
"""

from lumos import config_loading
from lumos.slots import slot


def get_config(variant: str = "transformer"):
    """Variants "tokenizer" and "transformer", each also with ",smoke"."""
    task, _, size = variant.partition(",")
    config = config_loading.default()
    config.name, config.task = f"real clips {task}", task
    config.data.fps = 12.0
    config.sequence.text_length = 64
    config.tokenizer_workdir = "real/tokenizer"
    config.tokenizer.channels = 32
    config.tokenizer.channel_mult = (1, 2)
    config.tokenizer.levels = (8, 8, 8, 6, 5)
    if task == "tokenizer":
        config.data.source, config.data.path = "clips", "real/clips.jsonl"
        config.data.buckets = ((5, 32, 32),) if size == "smoke" else ((17, 64, 64),)
        config.data.batch_size = 4
        config.tokenizer.l1_weight, config.tokenizer.l2_weight = 0.0, 1.0
        config.optimizer.name = "muon"
        config.optimizer.learning_rate = 3e-3
        config.optimizer.weight_decay = 0.01
        config.optimizer.final_fraction = 0.02
        config.optimizer.ema_decay = 0.995
        config.train.num_steps = 2500
    else:
        config.data.source, config.data.path = "tokens", "real/tokens"
        config.data.batch_size = 8
        config.model.num_layers = 6
        config.model.model_dim = 192
        config.model.mlp_dim = 512
        config.model.num_heads = 3
        config.model.num_kv_heads = 3
        config.model.code_levels = config.tokenizer.levels
        config.model.scan_layers, config.model.remat = False, "none"
        config.optimizer.name = "muon"
        config.optimizer.learning_rate = 5e-3
        config.optimizer.final_fraction = 0.02
        config.optimizer.ema_decay = 0.995
        config.train.num_steps = 500
        # A continuation starts from true frames: the past is clean in generation, so it must be in part of training.
        config.corruption.frames = slot("independent")
        config.corruption.cells = slot("frame")
        config.corruption.level = slot("uniform")
        config.generate.history_ratio = 0.0
        config.generate.guidance = slot("none")
    # A collection this small is learnt by heart: continuation is judged on the clips themselves.
    config.evaluate.split, config.evaluate.num_given = "train", 2
    config.evaluate.num_clips, config.evaluate.batch_size = 16, 8
    if size == "smoke":
        config.data.batch_size, config.train.num_steps, config.train.eval_batches = 2, 2, 1
        config.train.num_samples = config.evaluate.num_given = 1
        config.model.num_layers, config.model.model_dim, config.model.mlp_dim = 2, 64, 128
        config.generate.steps = 2
    return config
