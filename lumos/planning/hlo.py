"""Reading compiled HLO: what travels between devices, and what takes the most memory."""

from __future__ import annotations

import collections
import dataclasses
import math
import re

_BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "f32": 4,
    "s32": 4,
    "u32": 4,
    "s64": 8,
    "f64": 8,
}
_KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPERATION = re.compile(r" ([\w\-]+)\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations)=\{?((?:%?[\w.\-]+(?:, )?)+)\}?")


@dataclasses.dataclass
class Collectives:
    """Executions per step and bytes per device and step, by kind."""

    count: dict[str, float]
    bytes: dict[str, float]


def collectives(text: str) -> Collectives:
    """Count collectives, those in loops times the trip count. Bytes are the size of the larger side."""
    bodies = _computations(text)
    entry = next(name for name in bodies if f"ENTRY %{name} " in text or f"ENTRY {name} " in text)
    count: dict[str, float] = collections.defaultdict(float)
    size: dict[str, float] = collections.defaultdict(float)

    def walk(name: str, times: float) -> None:
        for line in bodies.get(name, ()):
            kind = _kind(line)
            if kind:
                inside = [text for name in _called(line) for text in bodies.get(name, ())]
                count[kind] += times
                size[kind] += times * max(map(_moved, [line, *filter(_kind, inside)]))
            if " while(" in line:
                called = dict(re.findall(r"(body|condition)=%?([\w.\-]+)", line))
                walk(called["body"], times * _trip_count(line, bodies.get(called["condition"], ())))
                continue
            if kind:
                continue  # a reduce-scatter is a fusion around the all-reduce that implements it
            for inner in _called(line):
                walk(inner, times)

    walk(entry, 1.0)
    return Collectives(dict(count), dict(size))


def _called(line: str) -> list[str]:
    return [name for names in _CALLED.findall(line) for name in re.findall(r"[\w.\-]+", names)]


def _kind(line: str) -> str | None:
    match = _OPERATION.search(line.split(" = ", 1)[-1])
    if not match:
        return None
    op = match[1].removesuffix("-start")
    if op in _KINDS:
        return op
    if op == "fusion" and "calls=%all-reduce-scatter" in line:
        return "reduce-scatter"
    return None


def _moved(line: str) -> float:
    """Return the bytes of a collective's larger side; arrays that travel together add up."""
    body = line.split(" = ", 1)[-1].split(", metadata=")[0]
    operation = _OPERATION.search(body)
    sizes = [_size(*shape) for shape in _SHAPE.findall(body[: operation.start()]) if shape[0] in _BYTES]
    if operation[1].endswith("-start"):  # what it makes holds its operands too
        return max(sizes, default=0)
    return sum(sizes) * (_group_size(body) if operation[1] == "reduce-scatter" else 1)


def _group_size(text: str) -> int:
    groups = re.search(r"replica_groups=(?:\{\{([\d,]+)\}|\[\d+,(\d+)\]|mesh(\[[^\]]*\]) \{([^}]*)\})", text)
    if not groups:
        return 1
    if groups[1]:
        return len(groups[1].split(","))
    if groups[2]:
        return int(groups[2])
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", groups[3]))
    return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", groups[4]))


def _size(dtype: str, dims: str) -> int:
    return _BYTES[dtype] * math.prod(int(d) for d in dims.split(",") if d)


def _trip_count(line: str, condition) -> float:
    known = re.search(r'known_trip_count\\?":\{\\?"n\\?":\\?"(\d+)', line)
    if known:
        return float(known[1])
    constants = [int(n) for text in condition for n in re.findall(r"constant\((\d+)\)", text)]
    return float(max(constants, default=1))


def _computations(text: str) -> dict[str, list[str]]:
    bodies: dict[str, list[str]] = {}
    name = None
    for line in text.splitlines():
        match = _COMPUTATION.match(line)
        if match:
            name = match[1]
            bodies[name] = []
        elif name is not None:
            if _INSTRUCTION.match(line):
                bodies[name].append(line)
            elif bodies[name]:  # custom calls span lines
                bodies[name][-1] += line
    return bodies


def largest_arrays(text: str, num: int = 5) -> list[tuple[str, int]]:
    """Return the largest arrays that instructions of loops and of the entry make, as (shape, bytes)."""
    found: dict[str, int] = {}
    for lines in _computations(text).values():
        for line in lines:
            body = line.split(" = ", 1)[-1]
            match = _SHAPE.match(body.strip())
            if match and match[1] in _BYTES and " parameter(" not in body and " bitcast(" not in body:
                found[f"{match[1]}[{match[2]}]"] = _size(*match.groups())
    return sorted(found.items(), key=lambda item: -item[1])[:num]
