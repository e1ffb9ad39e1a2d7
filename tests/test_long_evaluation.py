"""How long videos are measured."""

import copy
import types

import numpy as np
import pytest

from lumos.data import moving_shapes
from lumos.data.shapes_caption import Prompt
from lumos.errors import UserError
from lumos.evaluation import long_video as module
from lumos.evaluation import prompt_switch
from lumos.evaluation.long_video import deviation, long_video
from lumos.streaming.live import Shown

DAYS = 1.0 - 0.05 * np.arange(10)


def test_the_weighted_deviation_is_vde():
    """Known answers; the weights punish an early step more than a late collapse."""
    late, early = np.ones(10), np.ones(10)
    late[-1], early[1:] = 0.55, 0.95
    np.testing.assert_allclose(deviation(np.stack([np.ones(10), DAYS, late, early])), [0, 8.25, 0.45, 2.25])
    np.testing.assert_allclose(deviation(np.stack([np.ones(10), late, early]), weighted=False), [0, 0.05, 0.05])


class Scripted:
    """Shows true clips of the level endless; from some frame on they stand still."""

    frozen_from = None
    indices = range(6)  # of the clips

    def __init__(self, generator, prompts, *, options):
        clips = [
            moving_shapes.make_clip("endless", (201, 48, 48), 0, "train", i)["video"]
            for i in self.indices[: len(prompts)]
        ]
        self.videos, self.number = np.stack(clips), 0
        if self.frozen_from:
            self.videos[:, self.frozen_from :] = self.videos[:, self.frozen_from : self.frozen_from + 1]

    def __next__(self):
        start = 1 + 4 * (self.number - 1) if self.number else 0
        shown = Shown(self.number, self.videos[:, start : start + (4 if self.number else 1)], None)
        self.number += 1
        return shown


def subject(seconds=25.0):
    clips = [moving_shapes.make_clip("endless", (5, 48, 48), 0, "train", i) for i in range(6)]
    prompts = [Prompt(c["caption"], c["colour"], c["shape"], c["direction"]) for c in clips]
    settings = types.SimpleNamespace(long_seconds=seconds, batch_size=4)
    config = types.SimpleNamespace(generate=types.SimpleNamespace(fps=8.0), evaluate=settings)
    tokenizer = types.SimpleNamespace(config=types.SimpleNamespace(temporal_compression=4))
    return types.SimpleNamespace(
        settings=settings, is_shapes=True, shapes_prompts=prompts, seed=0,
        distinct=[p.caption for p in prompts], generator=types.SimpleNamespace(config=config, tokenizer=tokenizer),
    )  # fmt: skip


def test_every_part_is_read(monkeypatch):
    monkeypatch.setattr(module, "Live", Scripted)
    monkeypatch.setattr(Scripted, "frozen_from", 121)
    # Batches of four and two show clips 0 to 3 and 0 to 1: the last two prompts are those of other clips.
    only = subject()
    only.distinct, only.shapes_prompts = only.distinct[:4], only.shapes_prompts[:4]
    metrics, clips = long_video(only)
    assert metrics["direction_parts"].value == [1.0] * 6 + [0.0] * 4 and metrics["direction_last"].value == 0
    assert metrics["direction_change"].value == pytest.approx(-4 / 9) and metrics["colour_change"].value == 0
    assert metrics["colour_parts"].value == [1.0] * 10 and metrics["colour_last"].n == 4
    assert metrics["present_parts"].value == [1.0] * 10 and metrics["cuts_parts"].value == [0.0] * 10
    legal = metrics["legal_steps_parts"].value
    assert legal[:6] == [1.0] * 6 and legal[-1] == 0
    motion = np.array(metrics["motion_parts"].value)
    assert motion[:6].min() > 0 and not motion[6:].any()
    assert metrics["motion_deviation"].value > 0.4 and metrics["motion_vde"].value > 8
    assert len(clips) == 4 and clips[0].video.shape == (201, 48, 48, 3)


def test_prompts_are_read_with_their_own_videos(monkeypatch):
    monkeypatch.setattr(module, "Live", Scripted)
    metrics, _ = long_video(subject())
    assert 4 / 6 <= metrics["all_three_last"].value < 1 and metrics["all_three_last"].n == 6


def test_lengths_that_cannot_be_measured_are_refused():
    with pytest.raises(UserError, match="too short for ten parts of two latent frames; give at least 10"):
        long_video(subject(3.0))


class Switched(Scripted):
    """From the frame behind a switch on, "recache" shows a clip of another colour, "keep" changes nothing, "flush" a black frame."""

    def fork(self):
        other = copy.copy(self)
        return other

    def switch(self, prompts, how):
        assert self.number == 3 and [p.split()[0] for p in prompts] == ["green"] * len(prompts)
        if how == "recache":
            self.videos = self.videos[..., [1, 0, 2]]  # red becomes green where it stands
        if how == "flush":
            self.videos = np.zeros_like(self.videos)


def test_a_switch_is_read_in_the_next_frames(monkeypatch):
    monkeypatch.setattr(prompt_switch, "Live", Switched)
    clips = [moving_shapes.make_clip("endless", (5, 48, 48), 0, "train", i) for i in range(60)]
    chosen = [i for i, clip in enumerate(clips) if clip["colour"] == "red"][:2]
    monkeypatch.setattr(Switched, "indices", chosen)
    only = subject()
    only.shapes_prompts = [
        Prompt(f"red {clips[i]['shape']}", *(clips[i][k] for k in ("colour", "shape", "direction"))) for i in chosen
    ]
    only.distinct = [p.caption for p in only.shapes_prompts]
    only.generator.config.sequence = types.SimpleNamespace(grid=(3, 6, 6))
    metrics, shown = prompt_switch.prompt_switch(only)
    got = {name.removeprefix("switch_"): metric.value for name, metric in metrics.items()}
    assert got == {
        "recache_first": 1, "recache_last": 1, "recache_identity": 1, "keep_first": 0, "keep_last": 0, "keep_identity": 1,
        "flush_first": 0, "flush_last": 0, "flush_identity": 0,
    }  # fmt: skip
    assert len(shown) == 6 and shown[0].video.shape == (1 + 4 * 5, 48, 48, 3)
    only.is_shapes = False
    with pytest.raises(UserError, match="reads colours of moving_shapes"):
        prompt_switch.prompt_switch(only)
