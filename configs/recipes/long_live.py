"""LongLive: Real-time Interactive Long Video Generation (arXiv 2509.22622), with the shots of LongLive 2 (arXiv 2605.18739).

Mechanism:  a short window and a sink of first frames; a new prompt computes the cached frames again (generation/session.py:
            switch(how="recache")); a shot has first frames of its own that stay. Then streaming long tuning: every step rolls the next clip
            of videos that live on, and learns from a frozen teacher on that clip alone.
Not here:   score distillation with a learnt critic (the loss is the KL to the teacher's distribution of codes); low-rank adapters; 4-bit
            storage (8 bits: --config.generate.storage=int8).
Published:  window 12, sink 3; clips of 21 latent frames, at most 240; LongLive 2: window 32, sink 8, shots 8 frames apart. 20.7 frames a
            second; recache adds 6 % to a clip of 10 s with one switch. Background / subject / CLIP of keep 94.8 / 93.7 / 25.9, of recache
            94.8 / 94.0 / 27.9.
Run:        lumos train --config=configs/recipes/long_live.py --workdir=long_live --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos train --config=configs/recipes/long_live.py --workdir=long_live_2 --config.loss.teacher=long_live --config.train.rollout=streaming
              --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER --config.optimizer.learning_rate=1e-5
            lumos stream --workdir=long_live_2 --prompt="a red circle moves left[5s] | a red circle moves right[5s]" --out=long_live.mp4
Expected:   not measured yet.
Law:        tests/test_shots.py::test_the_first_frames_of_the_current_shot_stay
Figure:     none yet
"""

from lumos.configs.recipes.lumos1 import get_config as lumos1
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = lumos1(variant)
    config.name = "long live"
    last = config.sequence.grid[0] - 1
    config.generate.cache = slot("shots", width=max(last, 3), sink=1, pin=1, offset=last)
    config.generate.positions = slot("relative", horizon=last)
    return config
