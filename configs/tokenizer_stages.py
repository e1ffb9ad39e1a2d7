"""A tokenizer in four stages: images, images and video, a decoder for higher resolution, the adversarial stage.

Runs:      train() { lumos train --config=configs/tokenizer_stages.py:$1 --workdir=stages/$1 --config.data.path=clips.jsonl "${@:2}"; }
           train images
           train joint --init_from=stages/images
           train highres --init_from=stages/joint
           train adversarial --init_from=stages/highres --fresh=discriminator
Needs:     lumos-video[metrics] for the last two stages (LPIPS)
Expected:  not trained here. Every stage starts from the weights of the one before; in the last two the
           encoder is frozen, so tokens made after "joint" stay valid.
"""

from lumos.configs.tokenizer_sizes import get_config as sizes


def get_config(variant: str = "joint"):
    """Variants: images, joint, highres, adversarial; each also with ",smoke"."""
    stage, _, rest = variant.partition(",")
    smoke = rest == "smoke"
    config = sizes("m,smoke" if smoke else "m")
    config.name = f"tokenizer {stage}"
    config.tokenizer.norm = "position"
    config.tokenizer.temporal_window = 8
    config.optimizer.beta1 = 0.5
    side, frames = (32, 5) if smoke else (256 if stage in ("highres", "adversarial") else 128, 17)
    config.data.buckets = ((1 if stage == "images" else frames, side, side),)
    config.data.image_fraction = 0.2 if stage == "joint" and not smoke else 0.0
    if not smoke:
        config.train.num_steps = 10_000 if stage == "images" else 100_000
    if stage in ("highres", "adversarial"):
        config.freeze_encoder = True
        config.tokenizer.remat = True
        config.data.batch_size = 2 if smoke else 32
        config.perceptual.weight = 0.0 if smoke else 0.5
    if stage == "adversarial":
        config.perceptual.gram_weight = 0.0 if smoke else 0.06
        config.adversarial.weight = 0.2
        config.adversarial.discriminator = "both"
        config.adversarial.channels = 8 if smoke else 64
        config.adversarial.ramp_steps = 1000
        config.adversarial.lecam_weight = 0.005
    return config
