"""`lumos data record`: clips of games played at random, as a data set that everyone can make again.

The game engines come from PyPI (lumos-video[games]): VizDoom with its scenarios and the free Freedoom levels (phase 1 for
training, phase 2 for test), or the Arcade Learning Environment. A clip depends on the seed and its number alone. Test
clips come from seeds and from levels or games that no training clip has; validation clips from seeds of their own. Of a single
level all clips are, those of test too: a world to learn.

Beside each clip lies `<clip>.npz` with a row for every frame: `action`, the number of the action that led to it; `reward` since the
frame before; `done`, whether an episode ended there, so that this frame begins the next one. `lumos data index` refers to it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lumos import files
from lumos.data import actions as references
from lumos.data.video_writer import write_video
from lumos.errors import UserError, suggest

_TICS = {"vizdoom": 35, "ale": 60}  # a second
_MOST_SKIPPED = 87  # frames: some openings stand still
_SCENARIOS = {
    "train": ("basic", "defend_the_center", "defend_the_line", "health_gathering", "deadly_corridor", "take_cover"),
    "test": ("my_way_home", "predict_position"),
}
_FREEDOOM = {
    "train": tuple(f"E{episode}M{level}" for episode in range(1, 5) for level in range(1, 10)),
    "test": tuple(f"MAP{level:02d}" for level in range(1, 33)),
}
_BUTTONS = ("MOVE_FORWARD", "TURN_LEFT", "TURN_RIGHT", "ATTACK", "USE")  # in a scenario its own
_TURNS = {"turn left": -1, "turn right": 1}  # the sign of their angles
_LEVELS = {split: _SCENARIOS[split] + _FREEDOOM[split] for split in _SCENARIOS}
_GAMES = {
    "train": ("breakout", "enduro", "freeway", "ms_pacman", "pong", "qbert", "seaquest", "space_invaders"),
    "test": ("asterix", "boxing", "river_raid"),
}


def record(
    game: str,
    out: str | Path,
    num_clips: int,
    *,
    num_frames: int = 33,
    seed: int = 0,
    workers: int = 2,
    level: str = "",
    skip: int = 4,
    actions: tuple[str, ...] = (),
    turn: float = 0.0,
) -> Path:
    """Play and write `num_clips` clips, an eighth of them for test and an eighth for validation.

    Args:
      game: "vizdoom" (160x120) or "ale" (160x210).
      out: folder for the clips and `clips.jsonl`, the list that `lumos data index` reads.
      level: of VizDoom, or game of ALE, that all clips are of; "" = many. With one, no button is an action too.
      skip: tics of the game between two frames; an action lasts as long.
      actions: names of those that are played, numbered in this order; () = all of the level, "none" first.
      turn: degrees that "turn left" and "turn right" of VizDoom turn from frame to frame; 0 = as the game does, slowly at first.

    Returns:
      The path of `clips.jsonl`.

    Raises:
      UserError: unknown game, or its engine is not installed.
    """
    packages = {"vizdoom": "vizdoom", "ale": "ale_py"}
    if game not in packages:
        raise UserError(f"--game={game!r}; allowed: {', '.join(packages)}")
    if importlib.util.find_spec(packages[game]) is None:
        raise UserError(f"{packages[game]} is not installed; pip install 'lumos-video[games]'")
    if min(num_clips, num_frames, skip) < 1:
        raise UserError(f"--clips={num_clips}, --frames={num_frames} and --skip={skip} must be at least 1")
    if level and level not in (known := sum(_places(game).values(), ())):
        raise UserError(f"--level={level!r}{suggest(level, known)}")
    if actions and not level:
        raise UserError(f"--actions={','.join(actions)} needs --level: every level has actions of its own")
    if unknown := sorted(set(actions) - set(names := actions_of(game, level))) if actions else ():
        raise UserError(f"--actions: {unknown[0]!r} is none of {level}{suggest(unknown[0], names)}")
    if turn < 0 or (turn and game != "vizdoom"):
        raise UserError(f"--turn={turn:g} is an angle from 0 on, of --game=vizdoom alone")
    out = Path(out)
    jobs = [Job(game, out, number, num_frames, seed, level, skip, actions, turn) for number in range(num_clips)]
    with ProcessPoolExecutor(workers) as pool:
        rows = list(pool.map(_record_one, jobs, chunksize=max(1, num_clips // (8 * workers))))
    path = out / "clips.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def split_of(number: int) -> str:
    """Return the split of a clip: of eight, six are for training."""
    return {6: "validation", 7: "test"}.get(number % 8, "train")


class Job(NamedTuple):
    """A clip to record; see `record`."""

    game: str
    out: Path
    number: int
    num_frames: int
    seed: int
    level: str = ""
    skip: int = 4
    actions: tuple[str, ...] = ()
    turn: float = 0.0


class Step(NamedTuple):
    """A frame, uint8 [Y, X, 3]; the number of the action that led to it, and its reward; whether that ended an episode before it."""

    frame: np.ndarray
    action: int
    reward: float
    done: bool


def actions_of(game: str, level: str) -> tuple[str, ...]:
    """Return the names of the actions of a level, in the order of their numbers."""
    start = _start_vizdoom if game == "vizdoom" else _start_ale
    with start(level, 0) as (_, names):
        return names


def _places(game: str) -> dict[str, tuple[str, ...]]:
    return _LEVELS if game == "vizdoom" else _GAMES


def _record_one(job: Job) -> dict[str, str]:
    split, places = split_of(job.number), _places(job.game)
    places = places["test" if split == "test" else "train"]
    place = job.level or places[job.number // 8 % len(places)]
    rng = np.random.default_rng([job.seed, job.number])
    skipped = int(rng.integers(0, _MOST_SKIPPED))
    played = play(job.game, place, rng, job.skip, idle=bool(job.level), names=job.actions, turn=job.turn)
    steps = list(itertools.islice(played, skipped, skipped + job.num_frames))
    name = f"{split}/{place}_{job.number:06d}"
    write_video(job.out / f"{name}.mp4", np.stack([step.frame for step in steps]), _TICS[job.game] / job.skip)
    columns = {name: np.array([getattr(step, name) for step in steps]) for name in ("action", "reward", "done")}
    with files.written(job.out / f"{name}.npz") as partial, partial.open("wb") as file:
        np.savez(file, **columns)
    reference = references.reference(f"{name}.npz", "action", 0, len(steps))
    return {
        "path": f"{name}.mp4",
        "id": f"{name}.mp4",
        "caption": place.replace("_", " "),
        "split": split,
        "actions": reference,
    }


def play(
    game: str,
    level: str,
    rng: np.random.Generator,
    skip: int,
    *,
    idle: bool,
    names: tuple[str, ...] = (),
    turn: float = 0.0,
) -> Iterator[Step]:
    """Yield the frames of random play, actions held for a few of them; a new episode follows the last.

    `idle`: no button is an action; `names`: of the actions to play, in the order of their numbers; `turn`: see `record`.
    """
    start = functools.partial(_start_vizdoom, turn=turn) if game == "vizdoom" else _start_ale
    action, left, reward, done = 0, 0, 0.0, False
    with start(level, int(rng.integers(2**31))) as (engine, known):
        codes = [known.index(name) for name in names or known]
        first = 0 if idle or game == "ale" else 1
        while True:
            yield Step(engine.frame(), action, reward, done)
            if not left:
                left, action = int(rng.integers(1, 6)), int(rng.integers(len(codes) - first)) + first
            left -= 1
            reward, done = engine.act(codes[action], skip)


class _VizDoom:
    """A game and its buttons; with `turn`, the last of them takes the degrees of every tic."""

    def __init__(self, game, turn: float):
        self._game, self._turn = game, turn
        self.names = tuple(
            b.name.lower().replace("_", " ") for b in game.get_available_buttons()[: -1 if turn else None]
        )

    def frame(self) -> np.ndarray:
        return self._game.get_state().screen_buffer.copy()

    def act(self, action: int, skip: int) -> tuple[float, bool]:
        """Hold a button, 0 = none; return the reward, and whether the episode ended and another one began."""
        pressed = [float(i + 1 == action) for i in range(len(self.names))]
        if self._turn:
            angle = sum(sign * pressed[self.names.index(name)] for name, sign in _TURNS.items() if name in self.names)
            pressed = [held * (name not in _TURNS) for name, held in zip(self.names, pressed)] + [
                angle * self._turn / skip
            ]
        reward = self._game.make_action(pressed, skip)
        done = self._game.is_episode_finished()
        if done:
            self._game.new_episode()
        return reward, done


@contextlib.contextmanager
def _start_vizdoom(level: str, seed: int, turn: float = 0.0) -> Iterator[tuple[_VizDoom, tuple[str, ...]]]:
    import vizdoom

    game = vizdoom.DoomGame()
    freedoom = next((f"freedoom{i}" for i, split in ((1, "train"), (2, "test")) if level in _FREEDOOM[split]), None)
    game.load_config(str(Path(vizdoom.scenarios_path) / f"{freedoom or level}.cfg"))
    if freedoom:
        game.set_doom_map(level)
        game.set_available_buttons([getattr(vizdoom.Button, name) for name in _BUTTONS])
        game.set_automap_buffer_enabled(False)
    if turn:
        game.add_available_button(vizdoom.Button.TURN_LEFT_RIGHT_DELTA)
    game.set_audio_buffer_enabled(False)
    game.set_render_hud(False)
    game.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    game.set_window_visible(False)
    game.set_sound_enabled(False)
    game.set_mode(vizdoom.Mode.PLAYER)
    game.set_seed(seed)
    folder = tempfile.TemporaryDirectory()
    with contextlib.chdir(folder.name):  # where the engine leaves its settings
        game.init()
    try:
        engine = _VizDoom(game, turn)
        yield engine, ("none", *engine.names)
    finally:
        game.close()
        folder.cleanup()


class _Ale:
    def __init__(self, ale):
        self._ale, self._actions = ale, ale.getMinimalActionSet()

    def frame(self) -> np.ndarray:
        return self._ale.getScreenRGB()

    def act(self, action: int, skip: int) -> tuple[float, bool]:
        """Hold an action; return the reward, and whether the game ended and another one began."""
        reward = float(sum(self._ale.act(self._actions[action]) for _ in range(skip)))
        done = self._ale.game_over()
        if done:
            self._ale.reset_game()
        return reward, done


@contextlib.contextmanager
def _start_ale(rom: str, seed: int) -> Iterator[tuple[_Ale, tuple[str, ...]]]:
    import ale_py
    from ale_py import roms

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    ale = ale_py.ALEInterface()
    ale.setInt("random_seed", seed)
    ale.setFloat("repeat_action_probability", 0.0)
    ale.loadROM(roms.get_rom_path(rom))
    yield _Ale(ale), tuple(action.name.lower() for action in ale.getMinimalActionSet())
