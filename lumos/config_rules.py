"""Which config values are allowed, alone and together. Every error is one line that says what is allowed."""

from __future__ import annotations

import math
import operator
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from lumos import training_rules
from lumos.errors import UserError, short, suggest
from lumos.files import is_remote
from lumos.runtime.trackers import TRACKERS
from lumos.sequence import streams

if TYPE_CHECKING:
    from lumos.config import Config, ModelConfig, TokenizerConfig

# The least value of numbers; what is not here may be negative. In tuples every entry counts.
_AT_LEAST = {
    1: """data.batch_size data.buckets shapes.num_train shapes.num_validation shapes.num_test
        text.vocab_size tokenizer.parts tokenizer.code_dim adversarial.channels adversarial.num_layers tokenizer.channels tokenizer.channel_mult tokenizer.z_channels sequence.text_length
        sequence.streams sequence.fps actions.code_dim actions.history actions.width actions.num_layers model.num_layers model.model_dim model.mlp_dim model.num_heads model.num_kv_heads
        model.head_dim model.qk_norm_groups loss.chunk train.num_steps train.accumulation train.log_every train.eval_batches
        train.keep_checkpoints generate.steps evaluate.num_prompts evaluate.num_clips evaluate.batch_size
        evaluate.samples_per_prompt""",
    0: """seed data.fps data.cache_gb data.num_threads data.prefetch data.limits
        tokenizer.num_queries tokenizer.clip tokenizer.prior_weight tokenizer.prior_start tokenizer.commitment_weight tokenizer.entropy_weight
        tokenizer.fsq_entropy_weight tokenizer.fsq_latent_weight
        tokenizer.entropy_boost_steps tokenizer.codebook_reset perceptual.weight perceptual.start_step perceptual.gram_weight
        perceptual.gram_start_step adversarial.weight adversarial.start_step adversarial.ramp_steps adversarial.feature_weight
        adversarial.lecam_weight adversarial.r1_weight adversarial.learning_rate adversarial.beta1
        tokenizer.num_res_blocks tokenizer.temporal_window tokenizer.l1_weight tokenizer.l2_weight tokenizer.motion_weight
        sequence.grid sequence.duration actions.commitment_weight actions.codebook_reset actions.weight loss.frame_weights model.text_vocab model.visual_vocab model.rope_theta
        model.norm_eps model.init_std loss.z_loss loss.label_smoothing loss.text_weight loss.teacher_weight optimizer.learning_rate
        optimizer.warmup_steps optimizer.decay_fraction optimizer.final_fraction optimizer.beta1 optimizer.beta2
        optimizer.weight_decay optimizer.clip_norm optimizer.ema_decay train.eval_every train.sample_every
        train.num_samples train.checkpoint_every train.keep_every train.deadlines generate.top_k generate.fps
        evaluate.num_given evaluate.num_frames evaluate.frame_size""",
}

CHOICES = {
    "task": ("transformer", "tokenizer", "actions"),
    "data.source": ("moving_shapes", "clips", "tokens"),
    "shapes.level": ("easy", "endless", "medium", "hard"),
    "tokenizer.body": ("causal", "holistic"),
    "tokenizer.quantizer": ("fsq", "lfq", "bsq", "vq", "simvq", "ibq", "svq"),
    "tokenizer.composition": ("single", "grouped", "residual", "layers"),
    "tokenizer.norm": ("frame", "position"),
    "perceptual.net": ("vgg", "alex"),
    "adversarial.loss": ("hinge", "nonsaturating"),
    "adversarial.discriminator": ("video", "frame", "both"),
    "model.qk_norm": ("none", "rms", "layer"),
    "model.rope": ("mm", "3d", "1d"),
    "model.dtype": ("float32", "bfloat16"),
    "model.param_dtype": ("float32", "bfloat16"),
    "model.matmul_dtype": ("same", "int8", "float8"),
    "tokenizer.dtype": ("float32", "bfloat16"),
    "model.attention": ("auto", "flash", "splash", "dense"),
    "optimizer.decay": ("matrices", "all"),
    "optimizer.schedule": ("cosine", "wsd", "constant"),
    "train.on_bad_steps": ("stop", "rewind"),
}


def check(config: Config) -> None:
    """Raise UserError unless all values are allowed and fit together."""
    for dotted, allowed in CHOICES.items():
        value = operator.attrgetter(dotted)(config)
        if value not in allowed:
            raise UserError(f"config.{dotted}={value!r}{suggest(str(value), allowed)}")
    for least, names in _AT_LEAST.items():
        for dotted in names.split():
            value = operator.attrgetter(dotted)(config)
            if any(number < least for number in _numbers(value)):
                raise UserError(f"config.{dotted}={short(value)} must be at least {least}")
    _check_model(config.model)
    _check_tokenizer(config.tokenizer)
    _check_data(config)
    streams.check(config.data.streams, config.data.source, config.tokenizer.body)
    training_rules.check_actions(config)
    local = {"text.model": config.text.model} | {
        "data.path": config.data.path if config.data.source == "moving_shapes" else ""
    }
    for name, value in local.items():
        if is_remote(value):
            raise UserError(f"config.{name}={value} must be on a local disk; copy it there")
    if config.task == "transformer":
        _check_method(config)
    unknown = set(config.evaluate.networks) - {"alex", "vgg", "i3d"}
    if unknown:
        raise UserError(f"config.evaluate.networks: unknown {short(min(unknown))}; allowed: alex, vgg, i3d")
    if unknown := set(config.train.trackers) - set(TRACKERS):
        raise UserError(f"config.train.trackers: unknown {short(min(unknown))}; allowed: {', '.join(TRACKERS)}")
    if config.train.sample_prompts and (config.task != "transformer" or not config.train.num_samples):
        raise UserError(
            "config.train.sample_prompts is for transformer runs that make samples: set config.train.num_samples above 0, or "
            "config.train.sample_prompts=''"
        )
    if config.task != "tokenizer" and config.freeze_encoder:
        raise UserError("config.freeze_encoder is for task 'tokenizer': other runs never train the tokenizer")
    if config.task != "transformer" and config.loss.teacher:
        raise UserError("config.loss.teacher is for task 'transformer': it teaches the distribution of codes")
    if config.loss.teacher_temperature <= 0:
        raise UserError(f"config.loss.teacher_temperature={config.loss.teacher_temperature} must be positive")
    if len(config.train.deadlines) != 6:
        raise UserError(f"config.train.deadlines={short(config.train.deadlines)} must be six numbers of seconds")
    if config.data.batch_size % config.train.accumulation:
        raise UserError(
            f"config.data.batch_size={config.data.batch_size} is not divisible by config.train.accumulation="
            f"{config.train.accumulation}"
        )
    for dotted, value in {
        "generate.history_ratio": config.generate.history_ratio,
        "generate.top_p": config.generate.top_p,
        "data.image_fraction": config.data.image_fraction,
        "evaluate.mask_ratio": config.evaluate.mask_ratio,
        "tokenizer.part_drop": config.tokenizer.part_drop,
        "tokenizer.codebook_decay": config.tokenizer.codebook_decay,
        "actions.codebook_decay": config.actions.codebook_decay,
    }.items():
        if not 0.0 <= value <= 1.0:
            raise UserError(f"config.{dotted}={value} must lie in [0, 1]")


def _numbers(value: Any) -> list[float]:
    return [number for item in value for number in _numbers(item)] if isinstance(value, tuple) else [value]


def _check_model(model: ModelConfig) -> None:
    if model.head_dim % 32:
        raise UserError(
            f"config.model.head_dim={model.head_dim} must be a multiple of 32: MM-RoPE assigns axes in groups of 16 "
            "channels and both halves of a rotation pair need the same axis"
        )
    if model.num_kv_heads < 1 or model.num_heads % model.num_kv_heads:
        raise UserError(
            f"config.model.num_heads={model.num_heads} must be a multiple of config.model.num_kv_heads={model.num_kv_heads}"
        )
    if model.qk_norm_groups < 1 or model.num_kv_heads % model.qk_norm_groups:
        raise UserError(
            f"config.model.qk_norm_groups={model.qk_norm_groups} must divide config.model.num_kv_heads={model.num_kv_heads}"
        )


def _check_method(config: Config) -> None:
    """Values of different slots must fit together; what one slot needs of the grid, its layout says."""
    c, g = config.sequence, config.generate
    if any(c.grid):
        _check_grid(config)
    training_rules.check(config)
    try:
        config.model.mixer.check(c.attention)
    except ValueError as error:
        raise UserError(f"config.model.mixer={config.model.mixer.name!r}: {error}") from error
    turns = math.lcm(len(c.attention.layers()), len(config.model.mixer.kinds))
    if config.model.num_layers % turns:
        raise UserError(
            f"config.model.num_layers={config.model.num_layers} must be a multiple of {turns}: layers take turns with "
            f"config.sequence.attention={c.attention.name!r} and config.model.mixer={config.model.mixer.name!r}"
        )
    in_place = c.targets.name == "in_place"
    if c.copies not in (1, 2) or (c.copies == 2 and not in_place):
        raise UserError(
            f"config.sequence.copies={c.copies} must be 1, or 2 with config.sequence.targets='in_place': the noisy copy predicts itself"
        )
    if not in_place and (config.corruption.level.name, config.loss.weights.name) != ("constant", "all"):
        raise UserError(
            f"config.sequence.targets={c.targets.name!r} predicts all tokens from clean ones: set "
            "config.corruption.level=slot('constant', ratio=0.0) and config.loss.weights=slot('all')"
        )
    if (config.model.head.num_arms > 1) != (c.targets.name == "neighbours"):
        raise UserError(
            f"config.model.head={config.model.head.name!r} does not go with config.sequence.targets={c.targets.name!r}: 'axes' has a "
            "head for each axis, which 'neighbours' needs and no other"
        )
    if config.loss.weights.name == "bound" and (
        config.corruption.level.name != "counts" or config.corruption.frames.name not in ("shared", "independent")
    ):
        raise UserError(
            f"config.loss.weights='bound' is a bound with uniform levels alone, not with config.corruption.level="
            f"{config.corruption.level.name!r} and frames={config.corruption.frames.name!r}: set level='counts' and frames='shared' "
            "or 'independent'"
        )
    if config.loss.text_weight and config.model.head.name != "categorical":
        raise UserError(
            f"config.loss.text_weight={config.loss.text_weight} needs config.model.head='categorical', which has columns for "
            f"text; {config.model.head.name!r} has none"
        )
    _check_memory(config)
    if not config.model.streams.in_sequence and (not c.streams or config.model.post_norm):
        raise UserError(
            f"config.model.streams={config.model.streams.name!r} needs config.sequence.streams (now {c.streams}) and config.model.post_norm=False"
        )
    if config.model.code_levels and config.model.head.name != "categorical":
        raise UserError("config.model.code_levels shares parts of the head 'categorical'; set it to () with others")
    if g.sampler.single_pass and g.steps != 1:
        raise UserError(
            f"config.generate.steps={g.steps} must be 1 with the sampler {g.sampler.name!r}, which draws all codes in one pass"
        )
    if in_place and config.corruption.kernel.name not in g.sampler.kernels:
        raise UserError(
            f"config.generate.sampler={g.sampler.name!r} shows the model what config.corruption.kernel={config.corruption.kernel.name!r} "
            f"never showed it: the sampler goes with kernel {' or '.join(map(repr, g.sampler.kernels))}; 'jumps' goes with 'replace' and "
            "'metric', 'next_scale' with 'upsampled'"
        )
    if g.sampler.name == "released" and (g.top_k or g.top_p < 1):
        raise UserError(
            "config.generate.top_k must be 0 and top_p 1 with the sampler 'released', which draws from all codes"
        )


def _check_memory(config: Config) -> None:
    c, memory = config.sequence, config.model.memory
    if (c.attention.name == "ladder") != bool(memory):
        raise UserError(
            f"config.model.memory={memory} and config.sequence.attention={c.attention.name!r} do not go together: memory tokens are seen "
            "with attention='ladder' alone, which sees nothing else of old frames"
        )
    if not memory:
        return
    if len(memory) != len(c.attention.frames) or min(memory) < 1:
        raise UserError(
            f"config.model.memory={memory} must be one size for each of the distances config.sequence.attention.frames={c.attention.frames}"
        )
    for field, value, allowed in (
        ("copies", c.copies, 1),
        ("streams", c.streams, ()),
        ("targets", c.targets.name, "in_place"),
    ):
        if value != allowed:
            raise UserError(f"config.model.memory needs config.sequence.{field}={allowed!r}, not {value!r}")


def _check_grid(config: Config) -> None:
    """What is said of the grid must fit it, once it is known."""
    c = config.sequence
    if not all(c.grid):
        raise UserError(
            f"config.sequence.grid={c.grid} must be at least 1 latent frame, row and column, or (0, 0, 0) to take the grid of the tokens"
        )
    try:
        c.layout.check(c.grid)
    except ValueError as error:
        raise UserError(f"config.sequence.layout={c.layout.name!r}: {error}") from error
    training_rules.check_grid(config)
    if c.attention.name == "full" and c.layout.name != "lumos1" and len(np.unique(c.layout.stages(c.grid))) > 1:
        raise UserError(
            f"config.sequence.attention='full' sees later groups, which generation has not made: use config.sequence.layout="
            f"slot('compact', block=(0, 0, 0)), whose clip is one group, or attention='causal' with {c.layout.name!r}"
        )
    if config.loss.frame_weights and len(config.loss.frame_weights) < c.grid[0]:
        raise UserError(
            f"config.loss.frame_weights has {len(config.loss.frame_weights)} entries for {c.grid[0]} latent frames of config.sequence.grid"
        )
    if config.evaluate.num_given >= c.grid[0]:
        raise UserError(
            f"config.evaluate.num_given={config.evaluate.num_given} must lie in [0, {c.grid[0] - 1}]: at least one latent frame is generated"
        )


def _check_tokenizer(tokenizer: TokenizerConfig) -> None:
    for name in ("patch_size", "spatial_compression", "temporal_compression"):
        value = getattr(tokenizer, name)
        if value < 1 or value & (value - 1):
            raise UserError(f"config.tokenizer.{name}={value} must be a power of two")
        if value < tokenizer.patch_size and name != "temporal_compression":  # a patch has fewer frames then
            raise UserError(
                f"config.tokenizer.{name}={value} must be at least config.tokenizer.patch_size={tokenizer.patch_size}"
            )
    if not tokenizer.levels or min(tokenizer.levels) < 2:
        raise UserError(f"config.tokenizer.levels={tokenizer.levels}: every level must be at least 2")
    if math.prod(tokenizer.levels) >= 2**31:
        raise UserError(f"config.tokenizer.levels={tokenizer.levels}: at most 2**31 codes; use config.tokenizer.parts")
    if tokenizer.quantizer in ("lfq", "bsq"):
        if set(tokenizer.levels) != {2} or len(tokenizer.levels) > 18:
            raise UserError(
                f"config.tokenizer.levels={tokenizer.levels}: {tokenizer.quantizer} takes a 2 for each bit, at most 18 of "
                "them, as (2,) * 10; more bits per cell: config.tokenizer.parts"
            )
    if tokenizer.composition == "residual" and tokenizer.quantizer not in ("fsq", "vq", "simvq"):
        raise UserError(
            f"config.tokenizer.composition='residual' does not go with {tokenizer.quantizer}; allowed: fsq (with levels of 2: "
            "bits), vq, simvq"
        )
    (_check_holistic if tokenizer.body == "holistic" else _check_causal)(tokenizer)
    if tokenizer.parts > 16 or (tokenizer.parts == 1) != (tokenizer.composition == "single"):
        raise UserError(
            f"config.tokenizer.parts={tokenizer.parts} does not go with composition {tokenizer.composition!r}: 1 part is "
            "'single', 2 to 16 are 'grouped', 'residual' or 'layers'"
        )
    if tokenizer.entropy_temperature <= 0:
        raise UserError(f"config.tokenizer.entropy_temperature={tokenizer.entropy_temperature} must be positive")
    if tokenizer.part_drop and tokenizer.composition not in ("residual", "layers"):
        raise UserError(
            "config.tokenizer.part_drop leaves out the last parts of a code: it needs composition 'residual' or 'layers'"
        )
    if tokenizer.composition == "residual" and (tokenizer.fsq_entropy_weight or tokenizer.fsq_latent_weight):
        raise UserError(
            "config.tokenizer.fsq_entropy_weight and fsq_latent_weight have no effect with composition 'residual'; set both to 0"
        )


def _check_causal(tokenizer: TokenizerConfig) -> None:
    for name in ("num_queries", "clip", "prior_weight", "prior_start"):
        if getattr(tokenizer, name):
            raise UserError(f"config.tokenizer.{name} is for body 'holistic'; this one is {tokenizer.body!r}")
    space, time = (
        int(math.log2(max(compression // tokenizer.patch_size, 1)))
        for compression in (tokenizer.spatial_compression, tokenizer.temporal_compression)
    )
    # The decoder doubles time from its second level on, and space with it, or from the first where there is more of it.
    needed = 1 + max(space + (space <= time) if space else 0, time + 1 if time else 0)
    if needed > len(tokenizer.channel_mult):
        raise UserError(
            f"config.tokenizer.channel_mult={tokenizer.channel_mult} needs at least {needed} entries: beyond the patcher, space is "
            f"halved {space} times and time {time} times"
        )


def _check_holistic(tokenizer: TokenizerConfig) -> None:
    if tokenizer.num_queries < 1 or len(tokenizer.clip) != 3:
        raise UserError(
            f"config.tokenizer.body='holistic' needs num_queries (got {tokenizer.num_queries}) and clip, the (frames, height, "
            f"width) of every clip (got {tokenizer.clip})"
        )
    if tokenizer.temporal_compression != tokenizer.patch_size or tokenizer.channels % 32:
        raise UserError(
            f"config.tokenizer.body='holistic' needs temporal_compression={tokenizer.temporal_compression} equal to patch_size="
            f"{tokenizer.patch_size} and channels={tokenizer.channels} a multiple of 32 (heads)"
        )
    if tokenizer.composition not in ("single", "grouped"):
        raise UserError(f"config.tokenizer.composition={tokenizer.composition!r} needs cells; body 'holistic' has none")
    if tokenizer.prior_weight and (tokenizer.composition != "single" or tokenizer.quantizer in ("fsq", "lfq", "bsq")):
        raise UserError("config.tokenizer.prior_weight needs a single table of codes: vq, simvq, ibq or svq")
    if tokenizer.prior_start and not tokenizer.prior_weight:
        raise UserError(f"config.tokenizer.prior_start={tokenizer.prior_start} needs config.tokenizer.prior_weight > 0")


def _check_data(config: Config) -> None:
    tokenizer = config.tokenizer
    if config.data.source != "tokens":  # whose buckets are grids
        for frames, height, width in config.data.buckets:
            check_clip_shape(frames, height, width, tokenizer)
    if config.task == "tokenizer":
        if not config.data.buckets:
            raise UserError("config.data.buckets is empty; give at least one (frames, height, width)")
        _check_frame_sizes(config)
        if config.data.image_fraction and tokenizer.body == "holistic":
            raise UserError("config.data.image_fraction must be 0: a holistic tokenizer takes clips of one size")
    if config.text.template:
        found = re.findall(r"{(\w*)}", config.text.template)
        unknown = set(found) - {"caption", "width", "height", "frames", "fps"}
        if unknown or found.count("caption") != 1:
            raise UserError(
                f"config.text.template={config.text.template!r} must hold {{caption}} once, and beside it only {{width}}, "
                "{height}, {frames} and {fps}"
            )


def _check_frame_sizes(config: Config) -> None:
    """Networks and metrics have a smallest frame, below which nothing is left of it."""
    c, smallest = config.perceptual, min(min(height, width) for _, height, width in config.data.buckets)
    needed = {"SSIM": 11}
    if c.weight or c.gram_weight:  # three rows and columns are cut off (tokenizers/losses.py)
        needed[f"config.perceptual.net={c.net!r}"] = 34 if c.net == "alex" else 19
    needed |= {
        f"{name!r} of config.evaluate.networks": size
        for name, size in (("alex", 31), ("vgg", 16))
        if name in config.evaluate.networks
    }
    for name, size in needed.items():
        if smallest < size:
            raise UserError(
                f"config.data.buckets={config.data.buckets}: {name} needs frames of at least {size}x{size} pixels"
            )


def check_clip_shape(frames: int, height: int, width: int, tokenizer: TokenizerConfig) -> None:
    """Raise UserError unless the tokenizer can encode a clip of this size."""
    if tokenizer.body == "holistic" and (frames, height, width) != tuple(tokenizer.clip):
        raise UserError(f"config.tokenizer.clip={tokenizer.clip}, but a clip has size {(frames, height, width)}")
    if frames < 1 or (frames - 1) % tokenizer.temporal_compression:
        raise UserError(
            f"a clip of {frames} frames does not fit temporal compression {tokenizer.temporal_compression}: frames must be "
            f"1 + {tokenizer.temporal_compression}k (1, {1 + tokenizer.temporal_compression}, "
            f"{1 + 2 * tokenizer.temporal_compression}, ...)"
        )
    for name, size in (("height", height), ("width", width)):
        if size < 1 or size % tokenizer.spatial_compression:
            raise UserError(
                f"clip {name} {size} is not a multiple of the spatial compression {tokenizer.spatial_compression}"
            )
        if tokenizer.composition == "layers" and size % (tokenizer.spatial_compression << (tokenizer.parts - 1)):
            raise UserError(
                f"clip {name} {size} is not a multiple of {tokenizer.spatial_compression << (tokenizer.parts - 1)}, a cell of "
                f"the coarsest of {tokenizer.parts} layers"
            )
