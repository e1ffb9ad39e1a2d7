"""How videos take another prompt: whether the next frames show it, and what of the old video is still there."""

from __future__ import annotations

import dataclasses

import numpy as np

from lumos.errors import UserError
from lumos.evaluation import metric
from lumos.evaluation.metric import Metric
from lumos.evaluation.subject import Clip, Subject
from lumos.generation.session import SWITCHES
from lumos.streaming.live import Live, Options
from lumos.videos.progress import progress

_NEAR = 0.25  # of a frame's side: how far an object that stays may go in a latent frame
_SHOWN = 4  # videos of each kind that are kept to look at


def prompt_switch(subject: Subject) -> tuple[dict[str, Metric], list[Clip]]:
    """For each way to switch: adherence in the first latent frame made under a prompt of another colour, and in the last one, and
    identity, the share of videos whose object is still near its place in that first frame.

    Videos are as many latent frames long as clips in training when the prompt changes, and go on for as many. Reads moving_shapes.
    """
    if not subject.is_shapes:
        raise UserError(
            "measure 'switch' reads colours of moving_shapes: its prompts must be those of the data, without --prompts"
        )
    from lumos.data import moving_shapes, shapes_scene

    c, num = subject.settings, subject.generator.config.sequence.grid[0]
    colours = list(shapes_scene.COLOURS)
    asked = [_with_colour(p, colours[(colours.index(p.colour) + 1) % len(colours)]) for p in subject.shapes_prompts]
    found = {f"{how}_{what}": [] for how in SWITCHES for what in ("first", "last", "identity")}
    clips: list[Clip] = []
    for start in progress(range(0, len(asked), c.batch_size), "videos", len(asked), lambda _: c.batch_size):
        rows = slice(start, start + c.batch_size)
        # Nothing is made ahead, so that a switch applies to the next frame.
        live = Live(subject.generator, subject.distinct[rows], options=Options(seed=subject.seed + start, ahead=0))
        before = [next(live).pixels for _ in range(num)]
        old = [moving_shapes.read(video) for video in before[-1]]
        side = min(before[-1].shape[2:4])
        for how in SWITCHES:
            other = live.fork()
            other.switch([prompt.caption for prompt in asked[rows]], how)
            after = [next(other).pixels for _ in range(num)]
            first, last = ([moving_shapes.read(video) for video in after[i]] for i in (0, -1))
            for what, readings in (("first", first), ("last", last)):
                found[f"{how}_{what}"] += [r.colour == p.colour for r, p in zip(readings, asked[rows])]
            found[f"{how}_identity"] += [
                # In its first frames of pixels the object has both colours at times, and no centre is read.
                bool((np.linalg.norm(new.centre_F2 - was.centre_F2[-1], axis=1) < _NEAR * side).any())
                for new, was in zip(first, old)
            ]
            if not start:
                videos = np.concatenate([*before, *after], axis=1)[:_SHOWN]
                clips += [
                    Clip(f"switch {how}", v, p.caption, subject.seed + i) for i, (v, p) in enumerate(zip(videos, asked))
                ]
    protocol = (
        f"{len(asked)} videos whose prompt changes its colour after {num} latent frames, seeds from {subject.seed}"
    )
    return {f"switch_{name}": metric.mean(np.array(x, float), protocol, "high") for name, x in found.items()}, clips


def _with_colour(prompt, colour: str):
    return dataclasses.replace(prompt, colour=colour, caption=prompt.caption.replace(prompt.colour, colour))
