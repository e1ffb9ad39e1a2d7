"""Benchmarks of video generation and prediction on your own copy of their clips: what is given, predicted and counted.

Runs:      lumos data benchmark --name=ucf101 --input=FOLDER --out=ucf101/clips.csv
           lumos data index --input=ucf101/clips.csv --out=ucf101/clips.jsonl          (bair: FOLDER is softmotion30_44k)
           lumos train      --config=configs/benchmarks.py:ucf101,tokenizer   --workdir=ucf101/tokenizer
           lumos tokenize   --config=configs/benchmarks.py:ucf101,tokenizer   --workdir=ucf101/tokenizer --out=ucf101/tokens
           lumos train      --config=configs/benchmarks.py:ucf101,transformer --workdir=ucf101/transformer
           lumos evaluate   --workdir=ucf101/transformer --out=ucf101/report   (lumos-video[metrics])
TokenBench and DAVIS score a tokenizer alone: lumos generate --layout=tokenbench --video=FOLDER --workdir=TOKENIZER --out=FOLDER
Protocols: MAGVIT (arXiv 2212.05199) appendix B. FVD falls with the number of clips, so every figure says its own; for another
           number --config.evaluate.num_prompts and num_clips (ucf101: 2048 as StyleGAN-V and Latte have it).
"""

from lumos import config_loading
from lumos.slots import slot

# Pixel frames and size of a clip; split in training's evaluations; what `evaluate` has of its own.
_PROTOCOLS = {
    # Class names as captions; real clips are random ones of the training set; 10 000 clips (4 folds: --seed=0, 10000, ...).
    "ucf101": ((17, 128, 128), "test", {"num_given": 0, "split": "train", "num_prompts": 10_000, "num_clips": 10_000}),
    # 5 frames are given, 11 predicted, all 16 count; made at 128, compared at 64; 50 000 clips.
    "kinetics600": (
        (17, 128, 128), "validation",
        {"num_given": 2, "split": "validation", "num_prompts": 64, "num_clips": 50_000, "frame_size": 64},
    ),
    # 1 frame is given, 15 predicted; 256 clips, 100 continuations of each.
    "bair": (
        (17, 64, 64), "test",
        {"num_given": 1, "split": "test", "num_prompts": 1, "num_clips": 256, "samples_per_prompt": 100},
    ),
}  # fmt: skip


def get_config(variant: str = "ucf101,transformer"):
    """Variants: "ucf101", "kinetics600", "bair", each with ",tokenizer" or ",transformer", and ",smoke" (seconds, for tests)."""
    name, _, rest = variant.partition(",")
    task, _, size = rest.partition(",")
    clip, eval_split, protocol = _PROTOCOLS[name]
    config = config_loading.default()
    config.name, config.task = f"{name} {task}", task
    config.tokenizer_workdir = f"{name}/tokenizer"
    config.tokenizer.levels = (8, 8, 8, 6, 5)
    if task == "tokenizer":
        config.data.source, config.data.path = "clips", f"{name}/clips.jsonl"
        config.data.buckets = (clip,)
        config.data.batch_size = 32
        config.train.num_steps = 200_000
    else:
        config.data.source, config.data.path = "tokens", f"{name}/tokens"
        config.data.batch_size = 256
        config.model.num_layers, config.model.model_dim, config.model.mlp_dim = 24, 1024, 2816
        config.model.num_heads = config.model.num_kv_heads = 16
        config.model.dtype = "bfloat16"
        config.train.num_steps = 500_000
        if protocol["num_given"]:  # the past is clean in generation, so it must be in part of training
            config.corruption.frames = slot("independent")
            config.corruption.cells = slot("frame")
            config.corruption.level = slot("uniform")
            config.generate.history_ratio = 0.0
    config.data.eval_split = eval_split
    config.evaluate.update(protocol)
    config.evaluate.num_frames = 16
    config.evaluate.networks = ("vgg", "i3d")
    if size == "smoke":
        frames = 9
        config.data.batch_size, config.train.num_steps, config.train.eval_batches = 2, 1, 1
        config.train.num_samples = 0
        config.tokenizer.channels, config.tokenizer.channel_mult = 8, (1, 1)
        config.tokenizer.num_res_blocks, config.tokenizer.mid_attention = 0, False
        if task == "tokenizer":
            config.data.buckets = ((frames, 32, 32),)
        config.model.num_layers, config.model.model_dim, config.model.mlp_dim = 1, 64, 64
        config.model.num_heads = config.model.num_kv_heads = 2
        config.model.head_dim, config.model.dtype = 32, "float32"
        config.generate.steps = 2
        config.evaluate.num_frames = 8
        config.evaluate.num_prompts = config.evaluate.num_clips = config.evaluate.batch_size = 4
        config.evaluate.samples_per_prompt = min(config.evaluate.samples_per_prompt, 2)
        config.evaluate.frame_size = min(config.evaluate.frame_size, 16)
        config.evaluate.networks = ()
    return config
