"""How good a world is to play: whether it obeys, how near it stays to the truth, how fast it answers, and how it wears."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lumos.data.sources import parse_paths
from lumos.errors import UserError
from lumos.evaluation import distribution, metric
from lumos.evaluation.frames import compare_frames, frame_statistics
from lumos.evaluation.long_video import PARTS, frames_per_part
from lumos.evaluation.metric import Metric
from lumos.evaluation.subject import Clip, Subject
from lumos.latent_actions.trained import Labeller
from lumos.streaming.serve import Viewer
from lumos.videos.progress import progress
from lumos.worlds import clips as recordings
from lumos.worlds.play import Arcade, warm
from lumos.worlds.readers import ActionReader
from lumos.worlds.world import World

_FRAMES = 16  # latent frames of a clip, the first of which is given
_TIMES = (1, 4, 8)  # frames after the given one at which true actions are compared with others
_HELD = 8  # latent frames for which one action is held
_SHOWN = 6  # clips of a group that are kept to look at
_KEYS = 40  # that are pressed to measure how long an answer takes
_LONGEST_WAIT = 60.0  # seconds for an answer
_LONGEST = 64  # latent frames of each of them, at most
_LEARNT_FROM = 256  # recordings that the inverse model learns from
_MOST_OFF = 2.0  # times: a world whose sharpness or motion is further off the usual has collapsed
_WEAR = ("sharpness", "motion")  # of which a world that has collapsed has far less, or more


class _Held(NamedTuple):
    """Held-out recordings: true frames uint8 [N, F, Y, X, 3] and their codes [N, T, H, W], the codes of the action that led to
    each latent frame int32 [N, T, tokens] (null at the first), captions, and what the tokenizer makes of the frames."""

    video: np.ndarray
    codes: np.ndarray
    led: np.ndarray
    captions: list[str]
    through: np.ndarray


def world(subject: Subject) -> tuple[dict[str, Metric], list[Clip]]:
    """Everything that is measured of a world; see docs/howto.md ("Measure a world").

    Where actions are latent, the true ones are those that their model infers from the true frames (Genie, arXiv 2402.15391).
    """
    generator, c = subject.generator, subject.settings
    if len(generator.config.sequence.streams) != 1:
        raise UserError(
            f"config.sequence.streams={generator.config.sequence.streams}: measure 'world' needs one stream, the action"
        )
    player = World(generator)
    if not player.starts.streams:
        raise UserError(
            f"{generator.config.data.path}: its manifest does not say what its streams are; tokenize with config.data.streams"
        )
    stream, stride = player.starts.streams[0], generator.tokenizer.config.temporal_compression
    num_frames = 1 + (_FRAMES - 1) * stride
    labeller = Labeller.of_tokens(parse_paths(generator.config.data.path)[0][0])
    columns = () if labeller else (stream.name,)
    read = lambda split, num, most=0: recordings.read(
        subject.tokenizer_config, split, num, num_frames, generator.frame_size, columns, most
    )
    truth, learnt = read(c.split, c.num_clips), read("train", _LEARNT_FROM, _LONGEST * stride)
    tokenizer = generator.tokenizer
    if labeller:
        inferred = lambda clips: np.stack([labeller([tokenizer.encode(video[None])[0]])[0] for video in clips.video])
        coded, led_NT = inferred(truth), inferred(learnt)[..., 0]
    else:
        coded = np.stack([stream.encode(values, stride) for values in truth.columns[stream.name]])
        led_NT = recordings.led(learnt, stream)[:, ::stride]
    codes = tokenizer.encode(truth.video)
    held = _Held(truth.video, codes, coded, truth.captions, tokenizer.decode(codes))
    reader = ActionReader.learn(learnt.video[:, ::stride], led_NT, player.num_actions)
    metrics, clips = _against_truth(subject, held, reader, player)
    for found, more in (
        _control(subject, held, reader, player),
        _answers(player),
        _wear(subject, lambda: read(c.split, c.num_clips, _LONGEST * stride).video, reader, player),
    ):
        metrics, clips = metrics | found, clips + more
    return metrics, clips


def _make(subject: Subject, held: _Held, led: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the given frames and those behind them under these actions, uint8 [N, F, Y, X, 3], and their codes [N, T, H, W]."""
    generator, size = subject.generator, subject.settings.batch_size
    num, stride, videos, codes = len(led), generator.tokenizer.config.temporal_compression, [], []
    for start in progress(range(0, num, size), "clips", num, lambda _: size):
        rows = np.minimum(np.arange(start, start + size), num - 1)  # batches of one size
        options = {"given": held.codes[rows, :1], "streams": [led[rows]], "num_frames": 1 + (led.shape[1] - 1) * stride}
        made = generator.generate([held.captions[i] for i in rows], seed=seed + start, **options)
        videos.append(made.videos[: num - start])
        codes.append(made.tokens[: num - start])
    return np.concatenate(videos), np.concatenate(codes)


def _against_truth(subject: Subject, held: _Held, reader: ActionReader, player: World):
    """PSNR, SSIM, LPIPS of each frame, FVD, codes in use; what true actions are worth (Genie, arXiv 2402.15391 section 3); actions that
    are read back."""
    rng, stride = np.random.default_rng(subject.seed), subject.generator.tokenizer.config.temporal_compression
    rolled = held.led[rng.permutation(len(held.led))] if len(held.led) > 1 else held.led
    drawn = held.led.copy()
    drawn[:, 1:] = rng.integers(player.num_actions, size=(*drawn.shape[:1], drawn.shape[1] - 1, 1))
    made, codes = {}, {}
    for name, led in (("true", held.led), ("random", drawn), ("shuffled", rolled)):
        made[name], codes[name] = _make(subject, held, led, subject.seed)
    protocol = (
        f"{len(held.video)} recordings of split {subject.settings.split!r}, one frame given, {_FRAMES - 1} latent frames made, seeds from "
        f"{subject.seed}"
    )
    found, metrics = compare_frames(held.video, made["true"], subject.settings.networks), {}
    shown = compare_frames(held.video, held.through)
    for name, values_NF in found.items():
        better = "low" if "lpips" in name else "high"
        metrics[f"{name}_frames"] = metric.mean(values_NF, f"by frame, with true actions; {protocol}", better)
        metrics[f"{name}"] = metric.mean(values_NF[:, 1:].mean(1), f"mean of the frames made; {protocol}", better)
    metrics["psnr_tokenizer"] = metric.mean(
        shown["psnr"][:, 1:].mean(1), f"of the true frames through the tokenizer; {protocol}", "high"
    )
    if "i3d" in subject.settings.networks:
        real = distribution.reference(held.video)
        metrics |= distribution.distances(real, made["true"], f"the given frame among them; {protocol}")
        what = "control: the true clips through the tokenizer"
        through = distribution.features(held.through)
        metrics |= distribution.both("_of_tokenizer", real.features, through, what, paired=True)
    size = subject.generator.tokenizer.codebook_size
    for name, used, of in (("", codes["true"], "made"), ("_real", held.codes, "true")):
        what = f"share of {size} codes in use behind the given frame, in {of} frames; {protocol}"
        metrics[f"code_usage{name}"] = metric.statistic(metric.usage(used[:, 1:], size), (len(used),), what)
    for name in ("random", "shuffled"):
        other = compare_frames(held.video, made[name])["psnr"]
        for t in _TIMES:
            gain = found["psnr"][:, t * stride] - other[:, t * stride]
            what = f"PSNR with true actions minus that with {name} ones, {t} latent frames behind the given one, dB"
            metrics[f"delta{t}_psnr_{name}"] = metric.mean(gain, f"{what}; {protocol}", "high")
    for name, video, led in (
        ("real", held.video, held.led),
        ("true", made["true"], held.led),
        ("shuffled", made["shuffled"], rolled),
    ):
        right = reader(video[:, ::stride]) == led[:, 1:, -1]
        what = (
            f"share of actions that an inverse model, learnt from {_LEARNT_FROM} recordings, reads back: {_READ[name]}"
        )
        metrics[f"read_back_{name}"] = metric.mean(right.mean(1), f"{what}; {protocol}", "high")
    sides = np.concatenate([held.video, made["true"], made["random"]], axis=3)
    clips = [
        Clip("world", sides[i], f"{held.captions[i]}   [truth | true actions | random actions]", subject.seed)
        for i in range(min(_SHOWN, len(sides)))
    ]
    return metrics, clips


_READ = {
    "real": "from true frames, the most there can be",
    "true": "from frames made with the true actions",
    "shuffled": "from frames made with those of another clip",
}


def _control(subject: Subject, held: _Held, reader: ActionReader, player: World):
    """Hold every action from every start, and read back which it was."""
    names, num = player.actions, len(held.led)
    videos, protocol = (
        [],
        f"{num} held-out starts, each action held for {_HELD} latent frames, read back by the inverse model",
    )
    stride, shares = subject.generator.tokenizer.config.temporal_compression, []
    for action in range(len(names)):
        led = np.repeat(held.led[:, :1], _HELD + 1, axis=1)
        led[:, 1:] = action
        videos.append(_make(subject, held, led, subject.seed)[0])
    logits = [reader.logits(video[:, ::stride]) for video in videos]
    shares = np.stack([(x.argmax(-1) == action).mean(1) for action, x in enumerate(logits)], axis=1)
    metrics = {
        "control": metric.mean(shares.mean(1), f"share of frames, all actions alike; {protocol}", "high"),
        "control_actions": metric.mean(shares, f"by action ({', '.join(names)}); {protocol}", "high"),
    }
    sides = {
        side: next((i for i, name in enumerate(names) if side in name.split()), None) for side in ("left", "right")
    }
    if None not in sides.values():
        left, right = sides["left"], sides["right"]
        # Read from all frames of a start together, as a player would see it.
        total = [x.sum(1) for x in logits]
        is_right = np.stack([total[a][:, a] > total[a][:, b] for a, b in ((left, right), (right, left))], axis=1)
        what = f"share of starts at which {names[left]} is told from {names[right]}"
        metrics["left_right"] = metric.mean(is_right.mean(1), f"{what}; {protocol}", "high")
    clips = [
        Clip("control", np.concatenate([video[i] for video in videos], axis=2), f"[{' | '.join(names)}]", subject.seed)
        for i in range(min(_SHOWN, num))
    ]
    return metrics, clips


class _Page:
    """Someone at the page, by its messages: seconds from each key to the first picture under it."""

    def __init__(self, arcade: Arcade):
        self.arcade, self.viewer, self.shown = arcade, Viewer(self._take), threading.Event()
        self._action, self._pressed, self.seconds = 0, time.perf_counter(), []
        arcade.enter(self.viewer)
        arcade.ask(self.viewer, {"do": "start", "seed": 0})

    def press(self, action: int) -> None:
        """Change the key, and wait for its picture. Raises RuntimeError where none comes."""
        self.shown.clear()
        self._action, self._pressed = action, time.perf_counter()
        self.arcade.ask(self.viewer, {"do": "act", "action": action})
        if not self.shown.wait(_LONGEST_WAIT):
            raise RuntimeError(f"no frame under action {action} within {_LONGEST_WAIT} seconds")

    def _take(self, data: str | bytes) -> None:
        if isinstance(data, str):
            return
        self.viewer.backlog -= 1
        if not self.shown.is_set() and json.loads(data.partition(b"\n")[0])["action"] == self._action:
            self.seconds.append(time.perf_counter() - self._pressed)
            self.shown.set()


def _answers(player: World):
    """How long a single player waits for the picture behind a key, and how many frames a second there can be."""
    warm(player)
    began = time.perf_counter()
    for i in range(_KEYS):
        player.step({0: i % player.num_actions})
    rate = player.stride * _KEYS / (time.perf_counter() - began)
    arcade, rng = Arcade(player), np.random.default_rng(0)
    page = _Page(arcade)
    page.shown.wait(_LONGEST_WAIT)
    for i in range(_KEYS):
        time.sleep(rng.uniform(0, 2 / player.fps))  # at any moment between two frames
        page.press((i + 1) % player.num_actions)
    arcade.leave(page.viewer)
    arcade.stop()
    ms = 1000 * np.array(page.seconds[1:])
    at_page = f"from the key to the picture that the page is sent, {_KEYS} keys at any moment, else {player.fps:.3g} latent frames a second"
    single = lambda value, what, better: Metric(float(value), float(value), float(value), _KEYS, what, better)
    return {
        "latency_ms": single(np.median(ms), f"median, milliseconds; {at_page}", "low"),
        "latency_p95_ms": single(np.quantile(ms, 0.95), f"95 % quantile, milliseconds; {at_page}", "low"),
        "frames_per_s": single(rate, f"frames of pixels a second, {_KEYS} latent frames without a pause", "high"),
    }, []


def _alive(found: dict[str, np.ndarray], usual: dict[str, float]) -> np.ndarray:
    """Return which sessions, by the means of their statistics, have not collapsed, bool [N]."""
    ratios = np.stack([found[name] / max(usual[name], 1e-6) for name in _WEAR])
    return ((1 / _MOST_OFF <= ratios) & (ratios <= _MOST_OFF)).all(axis=0)


def _wear(subject: Subject, recorded: Callable[[], np.ndarray], reader: ActionReader, player: World):
    """Statistics of each tenth of long sessions, whether they are such as recordings have, and whether actions are still read back.

    `recorded` reads long held-out clips, uint8 [N, F, Y, X, 3].
    """
    if not subject.settings.long_seconds:
        return {}, []
    per_part, rng = frames_per_part(subject.generator), np.random.default_rng(subject.seed)
    tokenizer, real, true = subject.generator.tokenizer, recorded(), []
    stride = tokenizer.config.temporal_compression
    for video in np.array_split(real, -(-len(real) // subject.settings.batch_size)):
        statistics = frame_statistics(tokenizer.decode(tokenizer.encode(video)))
        true.append({name: statistics[name].mean(1) for name in _WEAR})
    true = {name: np.concatenate([of_clips[name] for of_clips in true]) for name in _WEAR}
    rows = min(subject.settings.num_clips, subject.settings.batch_size)
    many = World(subject.generator, rows, starts=player.starts)
    last = {row: many.reset(row, seed=subject.seed + row)[-1:] for row in range(rows)}
    keys, left, parts, film = dict.fromkeys(last, 0), dict.fromkeys(last, 0), [], []
    usual = {name: np.median(values) for name, values in true.items()}
    for _ in progress(range(PARTS), "parts", PARTS, lambda _: 1):
        videos, led = {row: [frames] for row, frames in last.items()}, {row: [] for row in last}
        for _ in range(per_part):
            for row in last:
                if not left[row]:
                    keys[row], left[row] = int(rng.integers(many.num_actions)), int(rng.integers(1, 6))
                left[row] -= 1
                led[row].append(keys[row])
            for row, pixels in many.step(keys).items():
                videos[row].append(pixels)
        video = np.stack([np.concatenate(videos[row]) for row in last])
        last = {row: video[i, -1:] for i, row in enumerate(last)}
        statistics = frame_statistics(video)
        found = {name: statistics[name].mean(1) for name in _WEAR}
        found["alive"] = _alive(found, usual)
        found["read_back"] = (reader(video[:, ::stride]) == np.array([led[row] for row in last])).mean(1)
        parts.append(found)
        film.append(video[:, 1:])
    protocol = f"{rows} sessions of {PARTS * per_part} latent frames under random held actions, in {PARTS} parts"
    what = {
        "alive": f"share of sessions whose {' and '.join(_WEAR)} are at most {_MOST_OFF:g} times more or less than the median of true clips "
        "through the tokenizer; ",
    }
    metrics = {
        f"{name}_parts": metric.mean(
            np.stack([part[name] for part in parts], axis=1).astype(float),
            what.get(name, "") + protocol,
            "" if name in _WEAR else "high",
        )
        for name in parts[0]
    }
    metrics["alive"] = metric.mean(
        parts[-1]["alive"].astype(float), f"in the last part, {what['alive']}{protocol}", "high"
    )
    metrics["alive_real"] = metric.mean(
        _alive(true, usual).astype(float),
        f"the same of {len(real)} true clips of {real.shape[1]} frames through the tokenizer",
        "high",
    )
    for name in (*_WEAR, "read_back"):
        first, end = parts[0][name], parts[-1][name]
        metrics[f"{name}_last_to_first"] = metric.ratio(end, first, f"last part to the first; {protocol}")
    return metrics, [
        Clip("session", video, f"session of {PARTS * per_part} frames") for video in np.concatenate(film, axis=1)[:2]
    ]
