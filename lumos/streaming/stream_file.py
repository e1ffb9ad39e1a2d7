"""`lumos stream`: a script of prompts in, a video that is written while it is made."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np

from lumos import outputs, provenance
from lumos.errors import UserError
from lumos.generation.session import SWITCHES
from lumos.streaming import script
from lumos.streaming.growing_video import GrowingVideo
from lumos.streaming.live import Live, Options, read_beginning
from lumos.videos.generator import Generator


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What to stream. prompt: a script (`streaming.script`). seconds: 0 = those of the script, and without end if its last part has
    none. switch: how prompts change (`Session.switch`). given: path of an image or a video whose frames come first. save: folder to
    go on from later; resume: folder that an earlier stream has saved. profile: JSON file to write.
    """

    prompt: str = ""
    seconds: float = 0.0
    seed: int = 0
    switch: str = "recache"
    given: str = ""
    save: str = ""
    resume: str = ""
    profile: str = ""


def stream(workdir: str | Path, request: Request, out: str | Path, overrides: dict[str, Any] | None = None) -> dict:
    """Write a video as long as asked for, or until SIGINT or SIGTERM; return what the profile says. Raises UserError."""
    parts = script.parse(request.prompt)
    if request.switch not in SWITCHES:
        raise UserError(f"--switch={request.switch}: allowed: {', '.join(SWITCHES)}")
    if request.seconds < 0:
        raise UserError(f"--seconds={request.seconds:g} must be at least 0 (0 = as long as the script)")
    file = outputs.check_file(out, "--out", (".mp4",))
    for path, flag in ((request.save, "--save"), (request.profile, "--profile")):
        if path:
            outputs.check_folder(Path(path).absolute().parent, flag)
    generator = Generator.load(workdir, overrides)
    fps = generator.config.generate.fps
    given = read_beginning(generator, request.given) if request.given else None
    live = Live(generator, [parts[0].prompt], given=given, options=Options(seed=request.seed))
    first = 0
    if request.resume:
        live.restore(request.resume)
        first = live.frame
    starts = [first + start for start in script.starts(parts, live.frames_per_second)]
    script_seconds = None if parts[-1].seconds is None else sum(part.seconds for part in parts)
    seconds = request.seconds or script_seconds
    # The first latent frame of a video is one frame of pixels, before its seconds.
    end = None if seconds is None else first + round(seconds * live.frames_per_second) + (first == 0)
    facts = provenance.of_file(generator.config, workdir, step=generator.step, seed=request.seed)
    for start, part in zip(starts, parts):
        live.at(start, functools.partial(_begin, live, part, request.switch))
    with _stopped_by_signals() as asked, GrowingVideo(file, fps, {"prompt": request.prompt} | facts) as video:
        while not asked and (end is None or live.frame < end):
            shown = next(live)
            with live.profile.timed("file"):
                video.write(shown.pixels[0])
    if request.save:
        live.save(request.save)
    profile = live.profile.summary() | {
        "passes_per_frame": live.session.num_forwards / max(live.session.frame - first, 1),
        "cache_bytes": live.session.num_bytes,
    }
    if request.profile:
        Path(request.profile).write_text(json.dumps(profile, indent=1) + "\n")
    return profile


def _begin(live: Live, part: script.Part, how: str) -> None:
    """Begin a part of a script. A prompt that holds already is no switch."""
    if not all(map(np.array_equal, live.generator.encode_prompts([part.prompt]), live.session.text)):
        live.switch([part.prompt], how)
    if part.cut:
        live.cut()


@contextlib.contextmanager
def _stopped_by_signals():
    """Give a list that has an entry once the process was asked to stop; a second request stops it at once."""
    asked: list[int] = []

    def ask(number, frame):
        if asked:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        asked.append(number)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
