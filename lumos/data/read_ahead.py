"""Records in a bucket are fetched before they are needed: which they are is known, as batches are a function of the step."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
from absl import logging

_STEPS = 100  # batches that are fetched ahead, where the copies have room for them
_AT_A_TIME = 8


class ReadAhead:
    """A thread that stays ahead of a pipeline.

    Args:
      clips_of: the (source, clip) pairs of the batch of a step, [b, 2].
      fetch: brings the clips of a source: (number of the source, clips).
      room: clips that may be there before they are read.
    """

    def __init__(
        self, clips_of: Callable[[int], np.ndarray], fetch: Callable[[int, np.ndarray], None], room: int, step: int
    ):
        self._clips_of, self._fetch, self._room = clips_of, fetch, room
        self._step = self._next = step
        self._changed, self._closed, self._warned = threading.Condition(), False, False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def move_to(self, step: int) -> None:
        """Say which batch is read next."""
        with self._changed:
            if not self._step <= step <= self._next:
                self._next = step
            self._step = step
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        ahead = _STEPS
        while True:
            with self._changed:
                while not self._closed and self._next >= self._step + ahead:
                    self._changed.wait()
                if self._closed:
                    return
                first, last = self._next, min(self._next + _AT_A_TIME, self._step + ahead)
                self._next = last
            try:
                batches = [self._clips_of(step) for step in range(first, last)]
                ahead = max(1, min(_STEPS, self._room // max(1, len(batches[0]))))
                clips_N2 = np.concatenate(batches)
                for number in np.unique(clips_N2[:, 0]).tolist():
                    self._fetch(number, clips_N2[clips_N2[:, 0] == number, 1])
            except Exception as error:  # what is not here is fetched when it is read, which says what is wrong
                if not self._warned:
                    self._warned = True
                    logging.warning("reading ahead from the bucket: %s: %s", type(error).__name__, error)
