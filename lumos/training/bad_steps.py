"""What follows from bad steps: each is dumped; too many in a row stop the run, or take it back."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lumos.checkpoint import Checkpointer
from lumos.config import Config
from lumos.errors import UserError
from lumos.runtime.health import HealthMonitor
from lumos.training import replay

_log = logging.getLogger(__name__)

_MAX_REWINDS = 3  # in a row, without a good checkpoint in between


class BadSteps:
    """Judges the steps of one run.

    Args:
      new_terms_at: steps at which another term enters the loss: losses before and after are not compared.
      provenance: facts about the run, for dumps.
    """

    def __init__(self, config: Config, workdir: Path, checkpointer: Checkpointer, new_terms_at, provenance: dict):
        self._config, self._workdir, self._checkpointer = config, workdir, checkpointer
        self._new_terms_at, self._provenance = new_terms_at, provenance
        self.health, self._rewinds = HealthMonitor(), 0

    def judge(self, item, values: dict[str, float], data_plan: Any) -> None:
        """Look at the metrics of a step (`item` has step, batch_number, batch), and dump it if it is bad."""
        if item.step in self._new_terms_at:
            self.health.forget()
        reason = self.health.observe(item.step, item.batch_number, values["loss"], values["grad_norm"])
        if reason:
            _log.warning("step %d, batch %d: %s", item.step + 1, item.batch_number, reason)
            self._checkpointer.wait()
            replay.write_dump(
                self._workdir, self._config, self._checkpointer, item, values, reason, self._provenance, data_plan
            )

    def saved(self) -> None:
        """Take note of a checkpoint: if it is good, the run may be taken back as often as at its beginning."""
        if self.health.healthy:
            self._rewinds = 0

    def go_back(self, next_batch: int) -> int:
        """Return the step of the last good checkpoint, to go on from with batch `next_batch`; later ones are deleted.

        Raises UserError if the run shall stop: the config says so, there is no such checkpoint, or it was of no use before.
        """
        good, reason = self._checkpointer.last_good_step(), self.health.describe()
        if self._config.train.on_bad_steps == "stop" or good is None or self._rewinds == _MAX_REWINDS:
            raise UserError(
                f"{reason}. The last good checkpoint is {'none' if good is None else f'step {good}'}; the batches are in "
                f"{self._workdir / 'dumps'}: look with lumos replay, or set config.train.on_bad_steps=rewind to leave them out"
            )
        self._rewinds += 1
        _log.warning("%s; back to step %d, going on with batch %d", reason, good, next_batch)
        self._checkpointer.delete_after(good)
        self.health.forget()
        return good
