"""`lumos data record`: clips of games played at random, as a data set that everyone can make again.

The game engines come from PyPI (lumos-video[games]): VizDoom with its scenarios and the free Freedoom levels (phase 1 for
training, phase 2 for test), or the Arcade Learning Environment. A clip depends on the seed and its number alone. Test
clips come from seeds and from levels or games that no training clip has; validation clips from seeds of their own.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from lumos.data.video_writer import write_video
from lumos.errors import UserError

FPS = 8.75  # VizDoom runs at 35 tics a second; every fourth one is kept
_SKIP = 4
_SCENARIOS = {
    "train": ("basic", "defend_the_center", "defend_the_line", "health_gathering", "deadly_corridor", "take_cover"),
    "test": ("my_way_home", "predict_position"),
}
_FREEDOOM = {
    "train": tuple(f"E{episode}M{level}" for episode in range(1, 5) for level in range(1, 10)),
    "test": tuple(f"MAP{level:02d}" for level in range(1, 33)),
}
_BUTTONS = ("MOVE_FORWARD", "TURN_LEFT", "TURN_RIGHT", "ATTACK", "USE")  # in a scenario its own
_LEVELS = {split: _SCENARIOS[split] + _FREEDOOM[split] for split in _SCENARIOS}
_GAMES = {
    "train": ("breakout", "enduro", "freeway", "ms_pacman", "pong", "qbert", "seaquest", "space_invaders"),
    "test": ("asterix", "boxing", "river_raid"),
}


def record(
    game: str, out: str | Path, num_clips: int, *, num_frames: int = 33, seed: int = 0, workers: int = 2
) -> Path:
    """Play and write `num_clips` clips, an eighth of them for test and an eighth for validation.

    Args:
      game: "vizdoom" (160x120) or "ale" (160x210).
      out: folder for the clips and `clips.jsonl`, the list that `lumos data index` reads.

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
    if num_clips < 1 or num_frames < 1:
        raise UserError(f"--clips={num_clips} and --frames={num_frames} must be at least 1")
    out = Path(out)
    jobs = [(game, out, number, num_frames, seed) for number in range(num_clips)]
    with ProcessPoolExecutor(workers) as pool:
        rows = list(pool.map(_record_one, jobs, chunksize=max(1, num_clips // (8 * workers))))
    path = out / "clips.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def split_of(number: int) -> str:
    """Return the split of a clip: of eight, six are for training."""
    return {6: "validation", 7: "test"}.get(number % 8, "train")


def _record_one(job: tuple[str, Path, int, int, int]) -> dict[str, str]:
    game, out, number, num_frames, seed = job
    split = split_of(number)
    places = (_LEVELS if game == "vizdoom" else _GAMES)["test" if split == "test" else "train"]
    place = places[number // 8 % len(places)]
    rng = np.random.default_rng([seed, number])
    play = _play_vizdoom if game == "vizdoom" else _play_ale
    # Some openings stand still: start somewhere within the first ten seconds.
    skipped = int(rng.integers(0, 10 * FPS))
    frames = []
    for i, frame in enumerate(play(place, rng)):
        if i >= skipped:
            frames.append(frame)
        if len(frames) == num_frames:
            break
    name = f"{split}/{place}_{number:06d}.mp4"
    write_video(out / name, np.stack(frames), FPS)
    return {"path": name, "id": name, "caption": place.replace("_", " "), "split": split}


def _play_vizdoom(level: str, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield frames of random play, actions held for a few frames; a new episode follows the last."""
    import vizdoom

    game = vizdoom.DoomGame()
    freedoom = next((f"freedoom{i}" for i, split in ((1, "train"), (2, "test")) if level in _FREEDOOM[split]), None)
    game.load_config(str(Path(vizdoom.scenarios_path) / f"{freedoom or level}.cfg"))
    if freedoom:
        game.set_doom_map(level)
        game.set_available_buttons([getattr(vizdoom.Button, name) for name in _BUTTONS])
        game.set_automap_buffer_enabled(False)
    game.set_audio_buffer_enabled(False)
    game.set_render_hud(False)
    game.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    game.set_window_visible(False)
    game.set_sound_enabled(False)
    game.set_mode(vizdoom.Mode.PLAYER)
    game.set_seed(int(rng.integers(2**31)))
    folder = tempfile.TemporaryDirectory()
    with contextlib.chdir(folder.name):  # where the engine leaves its settings
        game.init()
    try:
        action, left = [0] * game.get_available_buttons_size(), 0
        while True:
            if game.is_episode_finished():
                game.new_episode()
            yield game.get_state().screen_buffer.copy()
            if not left:
                action, left = [0] * len(action), int(rng.integers(1, 6))
                action[rng.integers(len(action))] = 1
            left -= 1
            game.make_action(action, _SKIP)
    finally:
        game.close()
        folder.cleanup()


def _play_ale(rom: str, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield frames of random play, actions held for a few frames; a new game follows the last."""
    import ale_py
    from ale_py import roms

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    ale = ale_py.ALEInterface()
    ale.setInt("random_seed", int(rng.integers(2**31)))
    ale.setFloat("repeat_action_probability", 0.0)
    ale.loadROM(roms.get_rom_path(rom))
    actions = ale.getMinimalActionSet()
    action, left = actions[0], 0
    while True:
        if ale.game_over():
            ale.reset_game()
        yield ale.getScreenRGB()
        if not left:
            action, left = actions[rng.integers(len(actions))], int(rng.integers(1, 6))
        left -= 1
        for _ in range(_SKIP):
            ale.act(action)
