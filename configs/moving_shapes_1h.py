"""Moving shapes in about an hour on two CPU cores: the demo's path with more data, larger nets and longer training.

Run:       lumos demo --config=configs/moving_shapes_1h.py --workdir=shapes_1h
Expected:  docs/results.md
"""

from lumos.configs.demo import get_config as demo


def get_config(variant: str = "transformer"):
    """Variants "tokenizer" and "transformer", each also with ",smoke"."""
    config = demo(variant)
    task, _, size = variant.partition(",")
    config.name = f"moving shapes 1h {task}"
    if size == "smoke":
        return config
    config.shapes.num_train = 24_000
    config.tokenizer.channels = 48
    config.tokenizer.l1_weight = 0.0
    if task == "tokenizer":
        config.train.num_steps = 5500
        config.train.eval_every = 1000
        config.train.checkpoint_every = 1000
    else:
        config.train.num_steps = 4500
        config.train.eval_every = 1000
        config.train.checkpoint_every = 1000
    return config
