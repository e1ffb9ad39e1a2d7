"""What the slots of training need of one another (called by config_rules.py). Every error is one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lumos.errors import UserError

if TYPE_CHECKING:
    from lumos.config import Config


def check(config: Config) -> None:
    """Raise UserError unless the values of a transformer run's training slots fit together."""
    errors = config.corruption.errors
    if errors.in_loss and (config.loss.text_weight or config.loss.weights.name == "bound"):
        raise UserError(
            f"config.corruption.errors={errors.name!r} adds wrong codes to the loss, whose number is not known before: set "
            "config.loss.text_weight=0 and config.loss.weights='masked' or 'all', or use errors='own'"
        )
    _check_order(config)
    _check_windows(config)
    _check_rollout(config)
    layout, tokenizer = config.sequence.layout, config.tokenizer
    if layout.compositions and (tokenizer.composition not in layout.compositions or tokenizer.parts != layout.num):
        raise UserError(
            f"config.sequence.layout={layout.name!r} with num={layout.num} needs tokens of config.tokenizer.composition="
            f"{' or '.join(map(repr, layout.compositions))} with as many parts, not {tokenizer.composition!r} with {tokenizer.parts}"
        )
    if config.corruption.kernel.name == "metric":
        if config.loss.teacher:
            raise UserError(
                "config.corruption.kernel='metric' draws by the student's embeddings, so config.loss.teacher must be ''"
            )
        if errors.name != "none" or config.loss.weights.name == "masked":
            raise UserError(
                f"config.corruption.kernel='metric' changes every code: set config.loss.weights='all' (now {config.loss.weights.name!r}) "
                f"and config.corruption.errors='none' (now {errors.name!r})"
            )


def check_actions(config: Config) -> None:
    """Raise UserError unless the settings of latent actions are allowed, also beside a transformer."""
    c, actions = config, config.actions
    if actions.codes < 2 or actions.width % 32:
        raise UserError(
            f"config.actions.codes={actions.codes} must be at least 2, config.actions.width={actions.width} a multiple of 32"
        )
    if not actions.weight:
        return
    name = f"config.actions.weight={actions.weight}"
    if c.task != "transformer":
        raise UserError(f"{name} trains latent actions beside a transformer: set it to 0 with task {c.task!r}")
    if c.sequence.streams != ((actions.size, 1),):
        raise UserError(
            f"{name} makes the one stream of the transformer: set config.sequence.streams=(({actions.size}, 1),), one more than "
            f"config.actions.codes (now {c.sequence.streams})"
        )
    if c.train.rollout.name != "none" or c.loss.teacher or c.data.image_fraction:
        raise UserError(
            f"{name} goes with config.train.rollout='none', config.loss.teacher='' and config.data.image_fraction=0: label the tokens "
            "with `lumos data label` instead"
        )


def _check_windows(config: Config) -> None:
    c, windows = config, config.data.windows
    if not 0 <= windows <= 1:
        raise UserError(f"config.data.windows={windows} is a share of clips: it must lie in [0, 1]")
    if windows and not (c.data.source == "tokens" and c.model.first_frame):
        raise UserError(
            f"config.data.windows={windows} cuts clips of tokens at any latent frame: set config.data.source='tokens' (now "
            f"{c.data.source!r}) and config.model.first_frame=True (now {c.model.first_frame}), which tells the model where a video begins"
        )
    if c.model.first_frame and c.sequence.order.name != "time":
        raise UserError(
            f"config.model.first_frame=True needs config.sequence.order='time', not {c.sequence.order.name!r}"
        )


def _check_rollout(config: Config) -> None:
    c, g, name = config.sequence, config.generate, f"config.train.rollout={config.train.rollout.name!r}"
    if config.train.rollout.name == "none":
        return
    for field, value, allowed in (
        ("sequence.targets", c.targets.name, "in_place"),
        ("sequence.copies", c.copies, 1),
        ("sequence.streams", c.streams, ()),
        ("sequence.order", c.order.name, "time"),
        ("corruption.kernel", config.corruption.kernel.name, "mask"),
        ("corruption.errors", config.corruption.errors.name, "none"),
        ("loss.text_weight", config.loss.text_weight, 0),
        ("data.image_fraction", config.data.image_fraction, 0),
        ("data.buckets", config.data.buckets[1:], ()),
        ("generate.plan", g.plan.name, "one_by_one"),
    ):
        if value != allowed:
            raise UserError(f"{name} needs config.{field}={allowed!r}, not {value!r}")
    if config.train.rollout.name == "reward":
        _check_reward(config)
        return
    if not config.loss.teacher:
        raise UserError(
            f"{name} needs config.loss.teacher, the workdir of a trained run: its own clips have no other target"
        )
    if not g.sampler.masks:
        raise UserError(
            f"{name} hides codes again as [MASK], which config.generate.sampler={g.sampler.name!r} never shows"
        )
    if not g.cache.bounded:
        raise UserError(
            f"{name} needs a cache for videos of any length, config.generate.cache='window' or 'fifo', not {g.cache.name!r}"
        )


def _check_reward(config: Config) -> None:
    """The policy is what the sampler drew from, and what is known stays known."""
    g, rollout = config.generate, config.train.rollout
    for field, value, allowed in (
        ("loss.teacher", config.loss.teacher, ""),
        ("generate.top_k", g.top_k, 0),
        ("generate.top_p", g.top_p, 1.0),
        ("generate.sampler.eta", g.sampler.eta, 0.0),
        ("generate.storage", g.storage.name, "computed"),
    ):
        if value != allowed:
            raise UserError(f"config.train.rollout='reward' needs config.{field}={allowed!r}, not {value!r}")
    if not g.sampler.keeps_drawn or config.model.head.in_raster:
        keeping = ", ".join(name for name, member in g.sampler.choices.items() if member.keeps_drawn and member.masks)
        raise UserError(
            "config.train.rollout='reward' needs a sampler that keeps what it has drawn and a head of softmaxes: config.generate.sampler "
            f"in {keeping} (now {g.sampler.name!r}), config.model.head 'categorical' or 'digits' (now {config.model.head.name!r})"
        )
    rows = config.data.batch_size // config.train.accumulation
    if rows % rollout.samples:
        raise UserError(f"config.train.rollout.samples={rollout.samples} must divide the {rows} rows of a (micro)batch")
    if not rollout.function:
        raise UserError("config.train.rollout.function='' must be the reward, module:function")


def _check_order(config: Config) -> None:
    c, name = config.sequence, f"config.sequence.order={config.sequence.order.name!r}"
    if c.order.name == "time":
        return
    if any("t" in rule.reads or rule.decay for rule in c.attention.layers()):
        raise UserError(
            f"{name} goes by rank, but config.sequence.attention={c.attention.name!r} by time: use attention='causal'"
        )
    for field, value, allowed in (
        ("sequence.targets", c.targets.name, "in_place"),
        ("corruption.given", config.corruption.given.name, "none"),
        ("loss.frame_weights", config.loss.frame_weights, ()),
    ):
        if value != allowed:
            raise UserError(
                f"{name} needs config.{field}={allowed!r}, not {value!r}: what is said of a frame would be said of its rank"
            )


def check_grid(config: Config) -> None:
    """Raise UserError unless what training is given fits the grid."""
    c, num_frames = config.sequence, config.sequence.grid[0]
    for field, slot in (("corruption.given", config.corruption.given), ("sequence.order", c.order)):
        try:
            if num_frames > 1:
                slot.check(num_frames)
        except ValueError as error:
            raise UserError(f"config.{field}={slot.name!r}: {error}") from error
    longest = config.train.rollout.longest(num_frames)
    if longest < num_frames:
        raise UserError(
            f"config.train.rollout={config.train.rollout.name!r} rolls {longest} latent frames, but a clip has {num_frames} (config.sequence.grid)"
        )
    if c.order.name != "time" and num_frames > 1:
        stage_TC = c.layout.stages(c.grid).reshape(num_frames, -1) if c.layout.name != "lumos1" else np.zeros((2, 1))
        if (stage_TC[1:].min(1) <= stage_TC[:-1].max(1)).any():
            raise UserError(
                f"config.sequence.order={c.order.name!r} needs frames that follow one another in config.sequence.layout, as in 'compact' "
                f"with block=(1, 0, 0), not {c.layout.name!r}"
            )
