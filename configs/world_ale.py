r"""A world to play: Breakout of the Arcade Learning Environment from nothing, on two CPU cores.

Runs:      lumos demo --config=configs/world_ale.py --workdir=breakout
           lumos play --workdir=breakout/transformer
By hand:   as in configs/world_vizdoom.py, with lumos data record --game=ale --level=breakout --clips=640 --frames=65 --out=breakout/clips
Expected:  docs/results.md ("Breakout"): the paddle obeys; the ball, which is one pixel large, is lost

The model of configs/world_vizdoom.py, with frames of 80x64: a square cut out of the middle would lose the paddle.
"""

from lumos import config_loading
from lumos.configs.world_vizdoom import sized
from lumos.slots import slot

_SEEN = 3  # frames before one's own that attention sees


def get_config(variant: str = "transformer"):
    """Variants: "tokenizer", "tokens" (the tokenizer's, with longer clips), "transformer", each also with ",smoke"."""
    part, _, size = variant.partition(",")
    config = config_loading.default()
    config.task = "transformer" if part == "transformer" else "tokenizer"
    config.name = f"ale world {part}"
    actions = ("noop", "fire", "right", "left")
    sized(config, part, size, "breakout", "--game=ale --level=breakout", actions, frame=(80, 64))
    # Nearly all of a frame never changes. Without this weight the latents stay where tanh is flat, and the paddle gets no code.
    config.tokenizer.fsq_latent_weight = 0.01
    if config.task == "transformer":
        # One copy: half of the frames are whole, as a finished history is; the others are hidden in part and have the loss.
        config.sequence.copies, config.corruption.frames = 1, slot("independent", clean=0.5)
        config.sequence.attention, config.generate.cache = slot("window", width=_SEEN + 1), slot("fifo", width=_SEEN)
    if config.task == "transformer" and size != "smoke":
        config.data.batch_size, config.train.num_steps, config.train.eval_every = 28, 400, 400
    return config
