"""Deep Forcing: Training-Free Long Video Generation with Deep Sink and Participative Compression (arXiv 2512.05081).

Mechanism:  no training: much of the cache is a sink of first frames; when the cache is full, each layer keeps of the frames between sink
            and recent ones the tokens that recent queries attended to most; the sink stands in time directly before the others.
Not here:   queries of the first pass over the next frame among those that choose; the distilled four-step diffusion model it was shown on.
Published:  21 cached frames, sink 10 (10 to 15 work, 18 repeats the video), recent 4, two frames' worth of tokens between them; 15.75
            frames a second (15.78 without). VBench-Long of 60 s: dynamic degree 57.2, against 43.5 (LongLive) and 31.4 (Rolling Forcing).
Run:        lumos train --config=configs/recipes/deep_forcing.py --workdir=deep_forcing --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=deep_forcing --prompt="a red circle moves left" --frames=401 --out=deep_forcing.mp4
Expected:   not measured yet.
Law:        tests/test_cache_policies.py::test_what_is_dropped_is_masked
Figure:     none yet
"""

from lumos.configs.recipes.lumos1 import get_config as lumos1
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = lumos1(variant)
    config.name = "deep forcing"
    width = max(config.sequence.grid[0] - 1, 4)
    config.generate.cache = slot("compress", width=width, sink=width - 3, recent=1, budget=1)
    config.generate.positions = slot("realigned")
    return config
