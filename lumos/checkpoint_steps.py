"""Which checkpoints of a run are meant: a number, several, "best" or "all"."""

from __future__ import annotations

from pathlib import Path

from lumos.checkpoint import Checkpointer
from lumos.errors import UserError
from lumos.runtime import metrics_writer

_LOWER_IS_BETTER = {"nll": True, "psnr": False}


def resolve(workdir: str | Path, text: str) -> list[int]:
    """Return the steps that `text` means, in ascending order: "" or "latest", "best", "all", or numbers with commas.

    "best" is the checkpoint with the best evaluation during training: the least `nll`, or the highest `psnr` of a tokenizer.

    Raises UserError: nothing of that kind, or no such checkpoint.
    """
    steps = saved_steps(workdir)
    if not steps:
        raise UserError(f"no checkpoint in {workdir}/checkpoints")
    if text in ("", "latest", "-1"):
        return steps[-1:]
    if text == "all":
        return steps
    if text == "best":
        return [_best(workdir, steps)]
    try:
        wanted = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise UserError(f"--step={text}: give a number, several with commas, best, or all") from None
    if missing := [step for step in wanted if step not in steps]:
        raise UserError(f"no checkpoint of step {missing[0]} in {workdir}; there are {steps}")
    return wanted


def saved_steps(workdir: str | Path) -> list[int]:
    """Return the steps of the checkpoints in a workdir that another process may be writing to."""
    checkpointer = Checkpointer(workdir, read_only=True)
    try:
        return checkpointer.all_steps()
    finally:
        checkpointer.close()


def _best(workdir: str | Path, steps: list[int]) -> int:
    found = [
        (value if lower else -value, line["step"])
        for line in metrics_writer.read(workdir, "eval")
        for name, lower in _LOWER_IS_BETTER.items()
        if (value := line.get(name)) is not None and line["step"] in steps
    ]
    if not found:
        raise UserError(
            f"--step=best: no checkpoint of {workdir} was evaluated in training; make train.checkpoint_every a multiple of "
            f"train.eval_every, or choose among {steps}"
        )
    return min(found)[1]
