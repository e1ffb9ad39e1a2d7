"""A folder of tokens, written by `lumos tokenize`: what was planned, and what is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lumos.errors import UserError
from lumos.info.reading import read_object, reason, size_of

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.array_record")


def recognise(path: Path) -> bool:
    if not path.is_dir() or (path / "checkpoints").is_dir():
        return False
    named = any(_SHARD.fullmatch(child.name) for child in path.glob("*-of-*.array_record"))
    return named or any("grid" in read_object(path / name, []) for name in ("manifest.json", "plan.json"))


def describe(path: Path) -> dict[str, Any]:
    problems: list[str] = []
    manifest, plan = (read_object(path / name, problems) for name in ("manifest.json", "plan.json"))
    about = manifest or plan
    shards = sorted(child for child in path.iterdir() if _SHARD.fullmatch(child.name))
    missing = _missing(shards, plan, manifest)
    finished = bool(manifest) and not missing
    splits = _splits(shards, manifest, problems)
    if missing:
        problems.append(f"{len(missing)} shards are not there: {', '.join(missing[:4])}{' ...' * (len(missing) > 4)}")
    if not about:
        problems.append("neither manifest.json nor plan.json says what the tokens are")
    if plan and manifest and (differ := sorted(n for n in plan.keys() & manifest.keys() if plan[n] != manifest[n])):
        problems.append(f"manifest.json and plan.json differ in {', '.join(differ)}")
    records, promised = sum(row["records"] for row in splits.values()), manifest.get("records")
    if promised is not None and records != promised:
        problems.append(f"{records} records are there, manifest.json says {promised}")
    tokenizer, data = _dict(about.get("tokenizer")), _dict(about.get("data"))
    versions = _dict(_dict(about.get("provenance")).get("versions"))
    facts = {
        "what": f"tokens of {records:,} clips" + ("" if finished else ", unfinished: lumos tokenize completes them"),
        "finished": finished,
        "grid": about.get("grid"),
        "buckets": about.get("buckets"),
        "codebook_size": about.get("codebook_size"),
        "fps": about.get("fps"),
        "tokenizer_fingerprint": tokenizer.get("fingerprint"),
        "source": data.get("source"),
        "records": records,
        "shards": len(shards),
        "missing_shards": missing,
        "being_written": sorted(child.name for child in path.glob("*.array_record*.partial")),
        "bytes": sum(map(size_of, shards)),
        "splits": splits,
        "clips_fingerprint": data.get("fingerprint") if isinstance(data.get("fingerprint"), dict) else {},
        "versions": {name: versions[name] for name in ("lumos", "python", "jax") if name in versions},
    }
    return facts | {"problems": problems}


def _missing(shards: list[Path], plan: dict, manifest: dict) -> list[str]:
    """Return the names of shards that the plan, the manifest or the names of the others promise."""
    there = {shard.name for shard in shards}
    listed = plan.get("shards") or manifest.get("shards") or []
    promised = {str(name) for name in listed} if isinstance(listed, list) else set()
    for name in there:
        split, _, count = _SHARD.fullmatch(name).groups()
        promised |= {f"{split}-{k:05d}-of-{count}.array_record" for k in range(int(count))}
    return sorted(promised - there)


def _splits(shards: list[Path], manifest: dict, problems: list[str]) -> dict[str, dict[str, Any]]:
    """Return for every split its shards and records, and what the manifest says became of its clips."""
    from lumos.data.records import RecordSource

    rows: dict[str, dict[str, Any]] = {}
    for shard in shards:
        row = rows.setdefault(_SHARD.fullmatch(shard.name)[1], {"shards": 0, "records": 0})
        row["shards"] += 1
        try:
            row["records"] += len(RecordSource([shard]))
        except UserError as error:
            problems.append(reason(error).removeprefix(f"{shard.parent}/"))
    for split, counted in _dict(manifest.get("splits")).items():
        skipped = _dict(_dict(counted).get("skipped"))
        row = rows.setdefault(split, {"shards": 0, "records": 0})
        row |= {
            name: counted.get(name) for name in ("clips", "encoded", "windows_left_out") if isinstance(counted, dict)
        }
        row |= skipped
    return rows


def _dict(value: Any) -> dict:
    return value if isinstance(value, dict) else {}
