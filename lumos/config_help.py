"""`lumos help`: the config's sections and fields, with defaults, allowed values and comments."""

from __future__ import annotations

import difflib
import shutil
import textwrap
from collections.abc import Collection

from lumos.config_docs import Field, Member, Section, meaning, sections
from lumos.errors import UserError

_MEANINGS = 44  # column at which meanings begin at the latest


def describe(name: str, verbs: Collection[str] = ()) -> str:
    """Return the help on a section or field of the config, `config.` in front or not; on all sections for "".

    Args:
      verbs: names of verbs; one that is asked for is pointed to, for some sections are called as verbs are.

    Raises:
      UserError: there is no such section or field; says which one may be meant.
    """
    known = sections()
    asked = name.partition("=")[0].removeprefix("config").removeprefix(".").rstrip(".")
    if not asked:
        return _all(known)
    for section in known:
        if asked == section.name:
            also = f"The verb of this name: lumos {asked} --help\n" if asked in verbs else ""
            return _section(section) + also
        for field in section.fields:
            if asked == field.name:
                return _field(field)
            settings = [(m, s) for m in field.members for s in m.settings if s.name == asked]
            if settings:
                return "\n".join(_setting(field, member, setting) for member, setting in settings)
    if asked in verbs:
        return f"{asked} is a verb: lumos {asked} --help\n"
    raise UserError(f"no config field {name!r}{_meant(asked, known)}")


def all_fields() -> str:
    """Return every section with its fields and their meaning."""
    return "".join(f"\n{_section(section)}" for section in sections())


def _meant(asked: str, known: tuple[Section, ...]) -> str:
    """Return the end of the message about an unknown field: those of this name in any section, else similar ones."""
    fields = [field.name for section in known for field in section.fields]
    fields += dict.fromkeys(s.name for section in known for f in section.fields for m in f.members for s in m.settings)
    tail = asked.rpartition(".")[2]
    exact = [name for name in fields if name.rpartition(".")[2] == tail]
    if asked == tail and exact or len(exact) == 1:
        return f"; did you mean {' or '.join(exact)}?"
    near = difflib.get_close_matches(asked, [*fields, *(section.name for section in known)], n=1)
    if not near and asked == tail:
        tails = difflib.get_close_matches(tail, {name.rpartition(".")[2] for name in fields}, n=1)
        near = [name for name in fields if name.rpartition(".")[2] in tails]
    return f"; did you mean {' or '.join(near)}?" if near else "; lumos help lists all sections"


def _all(known: tuple[Section, ...]) -> str:
    width = max(len(section.name) for section in known)
    lines = [
        "Sections of the config. lumos help SECTION lists the fields of one, lumos help SECTION.FIELD says more.",
        "",
    ]
    for section in known[1:]:
        lines.append(f"  {section.name:{width}}  {section.about}")
    lines += ["", f"Fields of no section: {', '.join(field.name for field in known[0].fields)}."]
    return "\n".join([*lines, "lumos --help lists the verbs."]) + "\n"


def _section(section: Section) -> str:
    lines = [f"{section.name}: {section.about}" if section.name else "fields of no section:", ""]
    names = {field: f"  {field.name} = {field.default!r}" for field in section.fields}
    column = min(max(map(len, names.values())), _MEANINGS) + 2
    for field, text in names.items():
        if len(text) + 2 > column:  # a long default has its meaning below
            lines.append(text)
            text = ""
        lines += _wrapped(meaning(field), text.ljust(column), " " * column)
    return "\n".join(lines) + "\n"


def _field(field: Field) -> str:
    lines = [f"--config.{field.name}={_as_flag(field)}", ""]
    allowed = " | ".join(field.choices)
    if field.comment and field.comment != allowed:
        lines += _wrapped(field.comment, "  ", "  ")
    rows = {"default": repr(field.default), "type": field.kind, "allowed": allowed}
    lines += [f"  {name:8} {value}" for name, value in rows.items() if value]
    for member in field.members:
        lines += ["", *_wrapped(f"{member.name}: {member.about}", "  ", "    ")]
        for setting in member.settings:
            lines += _wrapped(meaning(setting), f"    --config.{setting.name}={_as_flag(setting)}  ", "      ")
    return "\n".join(lines) + "\n"


def _setting(slot: Field, member: Member, setting: Field) -> str:
    return f"--config.{slot.name}={member.name} {_field(setting)}"


def _as_flag(field: Field) -> str:
    if isinstance(field.default, str):
        return field.default
    text = repr(field.default)
    return f"'{text}'" if isinstance(field.default, tuple) else text


def _wrapped(text: str, first: str, others: str) -> list[str]:
    width = max(80, min(shutil.get_terminal_size((120, 24)).columns, 120))
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=others, break_on_hyphens=False) or [first]
