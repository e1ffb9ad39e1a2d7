"""What a token folder is being made of, pinned by whoever begins it, so that old and new tokens never mix.

`plan.json` holds the tokenizer, the buckets, the shards and a fingerprint of the clips with their captions;
`plan.clips.jsonl` lists these clips, so that a refusal can name those that differ. Neither has paths: data may move.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lumos import files
from lumos.errors import UserError, short

_CLIPS = "plan.clips.jsonl"
_ADVICE = "choose another --out or delete it"


def pin(out: Path, plan: dict[str, Any], clips: dict[str, Iterable[dict]]) -> None:
    """Write the plan of an empty folder, or check that the one that is there is the same.

    Args:
      plan: of JSON values; plan["data"] has the "fingerprint" of the clips of every split.
      clips: for every split what its clips are (`Source.facts`).

    Raises:
      UserError: the folder holds other tokens; says what differs.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "plan.json"
    if not path.exists():
        write_whole(out / _CLIPS, (json.dumps(row) + "\n" for row in _rows(clips)))
        write_json(path, plan)  # last: where it is, the list of clips is too
        return
    try:
        found, wanted = json.loads(files.read_text(path)), json.loads(json.dumps(plan))
    except ValueError as error:
        raise UserError(f"{path} is damaged, so nobody can tell what {out} holds; {_ADVICE}") from error
    if found != wanted:
        differences = list(_differences(found, wanted, out / _CLIPS, clips))
        if not differences:
            raise UserError(
                f"{out} was begun by a lumos that did not record the clips and captions, so nobody can tell whether its tokens are "
                f"of these: it can be trained on as it is, but not continued; to tokenize again {_ADVICE}"
            )
        raise UserError(f"{out} holds other tokens ({'; '.join(differences)}); {_ADVICE}")


def write_json(path: Path, value: dict[str, Any]) -> None:
    write_whole(path, [json.dumps(value, indent=1) + "\n"])


def write_whole(path: Path, lines: Iterable[str]) -> None:
    """Write a text file that appears under its name when it is complete."""
    try:
        with files.written(path) as partial, partial.open("w", encoding="utf-8") as file:
            file.writelines(lines)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def _rows(clips: dict[str, Iterable[dict]]) -> Iterator[dict]:
    for split, facts in clips.items():
        for fact in facts:
            yield {"split of": split} | {name: value for name, value in fact.items() if name != "path"}


def _differences(found: dict, wanted: dict, listed: Path, clips: dict[str, Iterable[dict]]) -> Iterator[str]:
    """Yield what differs, in words. Nothing where the plan is older than the fingerprint and agrees in the rest."""
    was, now = found.get("data", {}), wanted["data"]
    ours, theirs = (plan["tokenizer"].get("fingerprint") for plan in (wanted, found))
    if ours != theirs:
        yield f"different tokenizer: {theirs}, now {ours}"
    for name in ("buckets", "grid", "codebook_size", "streams"):
        if found.get(name) != wanted.get(name):
            yield f"different {name}: {short(found.get(name))}, now {short(wanted.get(name))}"
    for name in ("source", "fps"):
        if was.get(name) != now[name]:
            yield f"different data.{name}: {was.get(name)!r}, now {now[name]!r}"
    if "fingerprint" not in was:
        return
    if was["fingerprint"].keys() != now["fingerprint"].keys():
        yield f"different splits: {', '.join(was['fingerprint'])}, now {', '.join(now['fingerprint'])}"
    changed = [s for s, value in was["fingerprint"].items() if now["fingerprint"].get(s, value) != value]
    if changed:
        old, new = _by_split(_read(listed)), _by_split(_rows(clips))
        for split in changed:
            yield f"split {split!r}: " + (", ".join(_changes(old.get(split, []), new[split])) or "other clips")
    elif found["shards"] != wanted["shards"] or was.get("identity") != now["identity"]:
        yield "different shards: the same clips are divided in another way"


def _read(path: Path) -> Iterator[dict]:
    try:
        with files.borrowed(path) as local, local.open(encoding="utf-8") as file:
            yield from map(json.loads, file)
    except (OSError, ValueError):  # deleted or damaged: the fingerprint alone says that something differs
        return


def _by_split(rows: Iterable[dict]) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for row in rows:
        found.setdefault(row.pop("split of"), []).append(row)
    return found


def _changes(old: list[dict], new: list[dict]) -> Iterator[str]:
    """Yield what has become of the clips of a split."""
    if not old:
        return
    if "id" not in new[0] or "id" not in old[0]:  # a set that is made at once
        if old[0] != new[0]:
            yield f"prepared as {_settings(old[0])}, now {_settings(new[0])}"
        return
    before, after = ({row["id"]: row for row in rows} for rows in (old, new))
    for text, ids in (
        ("no longer there", [name for name in before if name not in after]),
        ("new", [name for name in after if name not in before]),
    ):
        if ids:
            yield f"{_clips(ids)} {text}"
    both = [name for name in before if name in after]
    captions = [name for name in both if before[name].get("caption") != after[name].get("caption")]
    if captions:
        first = captions[0]
        yield (
            f"captions changed of {len(captions)} of {len(both)} clips (first {short(first)}: "
            f"{short(before[first].get('caption'))}, now {short(after[first].get('caption'))})"
        )
    fields = sorted({f for name in both for f in before[name].keys() | after[name].keys()} - {"caption"})
    for field in fields:
        ids = [name for name in both if before[name].get(field) != after[name].get(field)]
        if ids:
            yield f"{field} changed of {_clips(ids)}"
    if [row["id"] for row in old] != [row["id"] for row in new] and before.keys() == after.keys():
        yield "another order of clips"


def _clips(ids: list[str]) -> str:
    return f"{len(ids)} clip{'s' if len(ids) > 1 else ''} (first {short(ids[0])})"


def _settings(fact: dict) -> str:
    return " ".join(str(value) for value in fact.values())
