"""The commands of README.md, CONTRIBUTING.md and docs/*.md, as they stand there."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

from absl import flags

from lumos.cli import _split_overrides
from lumos.errors import UserError
from lumos.verbs import VERBS

REPO = Path(__file__).resolve().parents[1]
_GENERATED = ("config.md", "systems.md", "findings.md")
_PROGRAMS = r"(?:\.venv/bin/)?(?:PYTHONPATH=\.|HF_HUB_OFFLINE=1 |lumos|make|pip|python|kill|source)\b"
_BLOCK = re.compile(rf"^    ({_PROGRAMS} (?:.*\\\n)*.*)$", re.MULTILINE)
_INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")


class Command(NamedTuple):
    page: str
    text: str  # one line, without the remark behind it
    is_block: bool  # or a part of a sentence, which may be half a command


def commands():
    """Return them in their order, each once a page."""
    found = {}
    for path in (REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").glob("*.md"))):
        if path.name in _GENERATED:
            continue
        page = path.read_text()
        places = [(match.start(), match[1], True) for match in _BLOCK.finditer(page)]
        inline = [(match.start(), match[1], False) for match in _INLINE.finditer(page)]
        places += [place for place in inline if re.match(f"{_PROGRAMS} ", place[1])]
        for _, text, is_block in sorted(places):
            text = " ".join(re.sub(r"\s{2,}#.*", "", text.replace("\\\n", " ")).split())
            found.setdefault((path.name, text), Command(path.name, text, is_block))
    return list(found.values())


class Parsed(NamedTuple):
    verb: str
    flags: flags.FlagValues
    overrides: dict[str, str]
    is_whole: bool  # whether all that must be given is


def parse(words):
    """Parse the words behind `lumos` as the command line does, but for what is missing. Raises UserError: no such verb or flag."""
    words, verb = list(words), ""
    while words and f"{verb} {words[0]}".strip() in {*VERBS, "data", "config", "findings"} and verb not in VERBS:
        verb = f"{verb} {words.pop(0)}".strip()
    if verb not in VERBS:
        raise UserError(f"unknown command {verb or words[0]!r}")
    definition, values = VERBS[verb], flags.FlagValues()
    if "--" in words:
        cut = words.index("--")
        parse(words[cut + 1 :])
        words = words[:cut] + [f"--verb={word}" for word in words[cut + 1 :]]
    words, overrides = _split_overrides(words)
    definition.define(values)
    required = [name for name in values if values[name].validators]
    given = {word.lstrip("-").partition("=")[0] for word in words if word.startswith("--")}
    for name in required:
        if name not in given:
            words.append(f"--{name}=MISSING")
    try:
        rest = values([f"lumos {verb}", *words])[1:]
    except flags.Error as error:
        raise UserError(f"lumos {verb}: {error}") from error
    if verb == "launch" and not values.verb:
        required = [*required, "verb"]
    named = [name for name in definition.words if values[name].default is None and not values[name].present]
    if len(rest) > len(definition.words) and not definition.rest:
        raise UserError(f"lumos {verb}: {rest} has no flag")
    if overrides and definition.no_overrides:
        raise UserError(definition.no_overrides)
    return Parsed(verb, values, overrides, not set(required) - given and len(named) <= len(rest))


def split(text):
    return shlex.split(text.replace("<(", "(").replace("(lumos", "lumos").removesuffix(")") if "<(" in text else text)
