"""Someone who plays a world: the key that is held, what was shown, and how long it took."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np

from lumos import files
from lumos.data import actions as references
from lumos.data.video_writer import write_video
from lumos.errors import UserError
from lumos.worlds.world import World

# Keys of actions by words of their names: as a browser calls the keys, and letters.
_KEYS = (
    ("left", ("ArrowLeft", "a")),
    ("right", ("ArrowRight", "d")),
    ("forward", ("ArrowUp", "w")),
    ("up", ("ArrowUp", "w")),
    ("back", ("ArrowDown", "s")),
    ("down", ("ArrowDown", "s")),
    ("attack", (" ",)),
    ("fire", (" ",)),
)


def keys_of(actions: tuple[str, ...]) -> dict[str, int]:
    """Return which key means which action: digits are their numbers; arrows, letters and the space bar follow from their names. Without a
    key it is action 0."""
    keys = {str(number): number for number in range(min(len(actions), 10))}
    for word, names in _KEYS:
        for number, action in enumerate(actions):
            if word in action.split() or action == word:
                for name in names:
                    keys.setdefault(name, number)
    return keys


class Player:
    """One row of a world. `press` says which action is held, `tick` makes the next frame under it.

    speculate: the next frame is made before it is due, as if the action stayed; another action takes it back (NFD, arXiv 2506.01380).
    Frames are those that there would be without, bit for bit; the world needs undo=1.
    """

    def __init__(self, world: World, row: int = 0, *, seed: int = 0, speculate: bool = False):
        self.world, self.row, self.seed, self.action = world, row, seed, 0
        self.latencies: list[float] = []  # seconds from another key to the frame that it led to, made
        self.kept = self.drafted = 0
        self._pressed: float | None = None
        self._speculate, self._draft = speculate, None
        self.frames = list(world.reset(row, seed=seed))
        self._num_given = len(world.actions_of(row))

    @property
    def num_frames(self) -> int:
        """How many latent frames were shown."""
        return self._num_given + (len(self.frames) - self._pixels_given) // self.world.stride

    @property
    def _pixels_given(self) -> int:
        return 1 + (self._num_given - 1) * self.world.stride

    def press(self, action: int) -> bool:
        """Hold an action from the next frame on; return whether it is another one. Raises UserError where the world has no such action."""
        if not 0 <= action < self.world.num_actions:
            raise UserError(f"action {action}; allowed: 0 to {self.world.num_actions - 1}")
        if action == self.action:
            return False
        self._pressed = time.perf_counter() if self._pressed is None else self._pressed
        self.action = action
        return True

    def tick(self) -> np.ndarray:
        """Return the next latent frame under the held action, uint8 [F, Y, X, 3]."""
        action, (drafted, pixels) = self.action, self._draft or (None, None)
        self._draft = None
        if drafted is not None and drafted != action:
            self.world.rewind(self.row, 1)
        self.kept += drafted == action
        if drafted != action:
            pixels = self.world.step({self.row: action})[self.row]
        self.took(pixels)
        return pixels

    def took(self, pixels: np.ndarray) -> None:
        """Note a frame that was made under the held action, for all rows at once or by `tick`."""
        self.frames.extend(pixels)
        if self._pressed is not None:
            self.latencies.append(time.perf_counter() - self._pressed)
            self._pressed = None

    def look_ahead(self) -> None:
        """Make the next frame as if the action stayed, while there is time."""
        if self._speculate and self._draft is None:
            self._draft = self.action, self.world.step({self.row: self.action})[self.row]
            self.drafted += 1

    @property
    def latency_ms(self) -> float:
        """The median time from another key to its frame; nan before the first."""
        return 1000 * float(np.median(self.latencies)) if self.latencies else float("nan")

    def save(self, folder: str | Path, name: str) -> Path:
        """Write what was shown as `<name>.mp4` and `<name>.npz`, with the row `lumos data index` reads in `clips.jsonl`; return the video."""
        folder = Path(folder)
        shown = self.world.actions_of(self.row)[: self.num_frames]
        led = np.repeat(np.array(shown), [1] + [self.world.stride] * (len(shown) - 1))[: len(self.frames)]
        write_video(folder / f"{name}.mp4", np.stack(self.frames), self.world.generator.config.generate.fps)
        known = np.where(led < self.world.num_actions, led, 0)  # none leads to the first frame
        with files.written(folder / f"{name}.npz") as partial, partial.open("wb") as file:
            np.savez(file, action=known)
        row = {"path": f"{name}.mp4", "id": f"{name}.mp4", "caption": self.world.starts.clip(self.seed).caption}
        row["actions"] = references.reference(f"{name}.npz", "action", 0, len(known))
        with (folder / "clips.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        return folder / f"{name}.mp4"
