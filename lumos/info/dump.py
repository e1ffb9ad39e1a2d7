"""The dump of a bad step, `<workdir>/dumps/<step>`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lumos.info import checkpoints
from lumos.info.reading import read_object, size_of
from lumos.info.released import tensors_of


def recognise(path: Path) -> bool:
    return (path / "dump.json").is_file()


def describe(path: Path) -> dict[str, Any]:
    problems: list[str] = []
    dump = read_object(path / "dump.json", problems)
    saved = checkpoints.of_workdir(path, problems)
    batch = {}
    for file in sorted(path.glob("batch-*.safetensors")):
        batch |= {
            f"{file.stem.removeprefix('batch-')}: {name}": {"shape": shape, "dtype": dtype}
            for name, (shape, dtype) in tensors_of(file, problems).items()
        }
    from_step, processes = dump.get("from_step"), dump.get("processes")
    if dump and from_step is not None and str(from_step) not in saved["checkpoints"]:
        problems.append(f"the checkpoint of step {from_step} is not there: the step cannot be run again")
    files = len(list(path.glob("batch-*.safetensors")))
    if isinstance(processes, int) and files != processes:
        problems.append(f"{files} batches of {processes} processes are there: the step cannot be run again")
    step = dump.get("step")
    return {
        "what": f"dump of step {step + 1}" if isinstance(step, int) else "dump of a step",
        "step": step + 1 if isinstance(step, int) else None,
        "reason": dump.get("reason"),
        "batch_number": dump.get("batch_number"),
        "from_step": from_step,
        "processes": processes,
        "next": f"lumos replay {path}",
        "bytes": size_of(path),
        "metrics": {name: _number(value) for name, value in _dict(dump.get("metrics")).items()},
        "batch": batch,
        "problems": problems,
    }


def _number(value: Any) -> Any:
    try:
        return float.fromhex(value)  # as dumps hold them
    except (TypeError, ValueError):
        return value


def _dict(value: Any) -> dict:
    return value if isinstance(value, dict) else {}
