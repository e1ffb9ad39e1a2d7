r"""A world to play: the rooms of VizDoom's "my way home" from nothing, on two CPU cores.

Runs:      lumos demo --config=configs/world_vizdoom.py --workdir=doom
           lumos play --workdir=doom/transformer
By hand:   lumos data record --game=vizdoom --level=my_way_home --clips=640 --frames=65 --skip=3 --turn=10.6 --out=doom/clips \
             --actions="none,turn left,turn right,move forward"
           lumos data index  --input=doom/clips/clips.jsonl --out=doom/clips/manifest.jsonl
           lumos train       --config=configs/world_vizdoom.py:tokenizer   --workdir=doom/tokenizer
           lumos tokenize    --config=configs/world_vizdoom.py:tokens      --workdir=doom/tokenizer --out=doom/tokens
           lumos train       --config=configs/world_vizdoom.py:transformer --workdir=doom/transformer
           lumos evaluate    --what=world --workdir=doom/transformer --out=doom/report
Expected:  docs/results.md ("Worlds")

The player walks forward, turns left or right, or stands. Every frame of pixels is a latent frame of 64 tokens, with the action that led to
it, so a key shows in the very next frame. A turn is 10.6 degrees a frame, which moves the picture by eight pixels: codes move by one cell,
and what a turn does is a rule of codes. With the game's own turns, of 7 and then 11 pixels, no code comes back, and 430 steps learnt nothing.
"""

from lumos import config_loading
from lumos.slots import slot

_SEEN = 2  # frames before one's own that attention sees
_WINDOW = 5  # frames of a training window


def get_config(variant: str = "transformer"):
    """Variants: "tokenizer", "tokens" (the tokenizer's, with longer clips), "transformer", each also with ",smoke"."""
    part, _, size = variant.partition(",")
    config = config_loading.default()
    config.task = "transformer" if part == "transformer" else "tokenizer"
    config.name = f"vizdoom world {part}"
    flags = "--game=vizdoom --level=my_way_home --skip=3 --turn=10.6 --actions='none,turn left,turn right,move forward'"
    return sized(config, part, size, "doom", flags, ("none", "turn left", "turn right", "move forward"))


def sized(config, part: str, size: str, folder: str, flags: str, actions: tuple[str, ...], frame=(64, 64)):
    """Set what all worlds have in common. `flags`: of lumos data record; `actions`: names of what is played, by number; `frame`: its pixels."""
    config.data.record = f"{flags} {'--clips=16 --frames=17' if size == 'smoke' else '--clips=640 --frames=65'}"
    config.tokenizer_workdir = f"{folder}/tokenizer"
    config.sequence.text_length = 12
    config.tokenizer.temporal_compression = 1
    config.tokenizer.channels = 32
    config.tokenizer.channel_mult = (1, 2)
    config.tokenizer.mid_attention = False
    config.tokenizer.l1_weight, config.tokenizer.l2_weight = 0.2, 1.0
    if config.task == "tokenizer":
        config.data.source = "clips"
        config.data.path = f"{folder}/clips/manifest.jsonl"
        config.data.buckets = ((65 if part == "tokens" else 5, *frame),)
        config.data.batch_size = 2 if part == "tokens" else 4
        if part == "tokens":
            config.data.streams = ({"name": "action", "codes": len(actions), "names": actions},)
        config.optimizer.name = "muon"
        config.optimizer.learning_rate = 3e-3
        config.optimizer.warmup_steps = 50
        config.optimizer.weight_decay = 0.01
        config.optimizer.final_fraction = 0.02
        config.optimizer.ema_decay = 0.995
        config.train.num_steps = 1200
        config.train.eval_every = 400
    else:
        config.data.source = "tokens"
        config.data.path = f"{folder}/tokens"
        config.data.buckets = ((_WINDOW, frame[0] // 8, frame[1] // 8),)
        config.data.windows = 0.9
        config.data.batch_size = 14
        config.sequence.streams = ((len(actions) + 1, 1),)
        config.sequence.attention = slot("window", width=_SEEN + 1)
        config.model.num_layers = 6
        config.model.model_dim = 128
        config.model.mlp_dim = 384
        config.model.num_heads = 2
        config.model.num_kv_heads = 2
        config.model.code_levels = (8, 5, 5, 5)
        config.model.scan_layers, config.model.remat = False, "none"
        config.model.first_frame = True
        config.model.streams = slot(
            "adaln"
        )  # answers to keys were learnt sooner than with tokens (docs/results.md, "Worlds")
        config.optimizer.name = "muon"
        config.optimizer.learning_rate = 5e-3
        config.optimizer.final_fraction = 0.02
        config.optimizer.ema_decay = 0.995
        # A frame is learnt from a finished history, as it is made; some of its codes are wrong, as they will be.
        config.sequence.copies = 2
        config.corruption.frames = slot("independent")
        config.corruption.cells = slot("frame")
        config.corruption.level = slot("cosine", floor=0.0)
        config.corruption.errors = slot("uniform", clean=0.4, most=0.2)
        config.train.num_steps = 1600
        config.train.eval_every = 800
        config.train.checkpoint_every = 400
        config.train.num_samples = 0
        config.generate.steps = 4
        config.generate.history_ratio = 0.0
        config.generate.guidance = slot("none")
        config.generate.cache = slot("fifo", width=_SEEN)
        config.generate.positions = slot("relative", horizon=_WINDOW - 1)
    if size == "smoke":
        config.tokenizer.channels, config.data.batch_size = 8, 2
        if config.task == "tokenizer":
            config.data.buckets = ((17 if part == "tokens" else 3, *frame),)
        config.train.num_steps, config.train.eval_batches, config.train.log_every = 4, 1, 2
        config.model.num_layers, config.model.model_dim, config.model.mlp_dim = 2, 64, 128
        config.generate.steps = 2
        config.evaluate.num_clips = config.evaluate.batch_size = 4
        config.evaluate.long_seconds = 2.5
    return config
