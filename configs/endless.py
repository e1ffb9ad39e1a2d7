"""Endless video: shapes that go to and fro for ever, learnt from windows of long clips and generated as long as wanted.

Runs:      lumos demo --config=configs/endless.py --workdir=endless
By hand:   lumos data shapes --config=configs/endless.py:tokens
           lumos train       --config=configs/endless.py:tokenizer   --workdir=endless/tokenizer
           lumos tokenize    --config=configs/endless.py:tokens      --workdir=endless/tokenizer --out=endless/tokens
           lumos train       --config=configs/endless.py:frames      --workdir=endless/frames
           lumos train       --config=configs/endless.py:transformer --workdir=endless/transformer --init_from=endless/frames
           lumos generate    --workdir=endless/transformer --prompt="a red circle moves left and right" --frames=2401 --out=out.mp4
Expected:  docs/results.md ("Endless video"): for five minutes, by the checker, right colours, and in about nine of ten videos or more right shapes and routes

The tokenizer learns from short cuts, clips are tokenized whole, and the transformer learns single frames first, then windows that begin
at any latent frame: what a word looks like is learnt from 64 frames at the price of ten windows. Attention sees two frames back in training as in generation, whose cache holds two, so a video never leaves what was learnt.
"""

from lumos.configs.demo import get_config as demo
from lumos.slots import slot

_SEEN = 2  # latent frames before one's own that attention sees
_WINDOW = 4  # latent frames of a training window


def get_config(variant: str = "transformer"):
    """Variants: "tokenizer", "tokens" (the tokenizer's, with whole clips), "frames", "transformer", each also with ",smoke"."""
    part, _, size = variant.partition(",")
    config = demo(",".join(filter(None, ({"tokens": "tokenizer", "frames": "transformer"}.get(part, part), size))))
    config.name = f"endless {part}"
    config.shapes.level = "endless"
    config.shapes.num_train = 4096
    config.tokenizer_workdir = "endless/tokenizer"
    side = 32 if size == "smoke" else 48
    if part in ("tokenizer", "tokens"):
        # More, smaller steps: better pixels in less time.
        config.data.path, config.data.batch_size, config.train.num_steps = "endless/moving_shapes", 4, 1600
        config.train.eval_every = 800
        if part == "tokens":
            config.data.buckets = ((33, side, side),)
    else:
        config.data.path = "endless/tokens"
        config.data.windows = 0.3  # the other windows begin with the first frame, which is learnt from them alone
        config.model.first_frame = True
        # Faster to train at these lengths than unrolled layers, and to compile.
        config.model.scan_layers, config.model.remat = True, "minimal"
    if part == "frames":
        config.data.buckets = ((1, side // 8, side // 8),)
        config.data.batch_size = 64
        config.train.num_steps, config.train.num_samples = 850, 0
    elif part == "transformer":
        config.starts_from = "frames"
        config.data.buckets = ((_WINDOW, side // 8, side // 8),)
        config.data.batch_size = 10
        # A frame is learnt from a finished history, as it is generated; some of its codes are wrong, as they will be.
        config.sequence.copies = 2
        config.corruption.errors = slot("uniform", clean=0.4, most=0.3)
        config.sequence.attention = slot("window", width=_SEEN + 1)
        config.train.num_steps = 900
        config.generate.cache = slot("fifo", width=_SEEN)
        config.generate.positions = slot("relative", horizon=_WINDOW - 1)
        config.generate.steps = 8
    if size == "smoke":
        config.shapes.num_train = 16
        config.data.batch_size = 4
        config.train.num_steps = 4
    return config
