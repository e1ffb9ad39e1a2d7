"""Self-Forcing++: Towards Minute-Scale High-Quality Video Generation (arXiv 2510.02283).

Mechanism:  videos far longer than the clips of training are rolled with the cache of generation; a window of them, anywhere, is hidden in
            part again, and the student, with its long history, learns the distribution of a frozen teacher that sees the window alone.
Not here:   score distillation with a learnt critic (the loss is the KL to the teacher's distribution of codes); a judge of visual
            stability. Rewards are --config.train.rollout=reward.
Published:  windows of 21 latent frames of videos of up to 1,020; 50 s: text 26.4, dynamic degree 55.4, visual stability 90.9 (Self Forcing
            40.1); 100 s: 26.0 / 54.1 / 84.2 (22.0 / 26.4 / 32.0). 17.0 frames a second.
Run:        lumos train --config=configs/recipes/self_forcing_plus_plus.py --workdir=self_forcing_plus_plus --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos train --config=configs/recipes/self_forcing_plus_plus.py --workdir=long --config.loss.teacher=self_forcing_plus_plus
              --config.train.rollout=window --config.train.rollout.frames=50 --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=long --prompt="a red circle moves left" --frames=401 --out=long.mp4
Expected:   not measured yet.
Law:        tests/test_rollouts.py::test_the_student_s_pass_over_a_clip_is_that_over_the_whole_video
Figure:     none yet
"""

from lumos.configs.recipes.lumos1 import get_config as lumos1
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = lumos1(variant)
    config.name = "self-forcing++"
    last = config.sequence.grid[0] - 1
    config.generate.cache = slot("fifo", width=last)
    config.generate.positions = slot("relative", horizon=last)
    return config
