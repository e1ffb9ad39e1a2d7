"""What a verb of the command line is, and definitions of flags as values: functions that add a flag to a set of flags."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable
from typing import NamedTuple

from absl import flags


def text(name: str, default: str | None, help_text: str, *, required: bool = False) -> Callable:
    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string(name, default, help_text, flag_values=values)
        if required:
            flags.mark_flag_as_required(name, flag_values=values)

    return define


def number(name: str, default: int, help_text: str) -> Callable:
    return lambda values: flags.DEFINE_integer(name, default, help_text, flag_values=values)


def decimal(name: str, default: float, help_text: str) -> Callable:
    return lambda values: flags.DEFINE_float(name, default, help_text, flag_values=values)


def switch(name: str, default: bool, help_text: str) -> Callable:
    return lambda values: flags.DEFINE_boolean(name, default, help_text, flag_values=values)


def many(name: str, help_text: str) -> Callable:
    return lambda values: flags.DEFINE_multi_string(name, [], help_text, flag_values=values)


def group(*definitions: Callable) -> Callable:
    return lambda values: [define(values) for define in definitions]


def describe(values: flags.FlagValues) -> str:
    """Return a line for each flag: how it is given, and what it means; defaults that are not empty are shown."""
    lines = []
    for name in [name for name in values if name not in ("flagfile", "undefok")]:  # absl adds these two
        flag = values[name]
        if flag.boolean:
            default = "" if not flag.default else f" (on; --no{name} switches it off)"
        else:
            default = f" (default: {flag.default})" if flag.default not in (None, "", []) else ""
        form = f"  --{name}" + ("" if flag.boolean else "=...")
        width = max(80, min(shutil.get_terminal_size((120, 24)).columns, 120))
        help_text = " ".join(flag.help.partition(";\n")[0].split())  # absl adds a line to flags that may be repeated
        lines += textwrap.wrap(help_text + default, width, initial_indent=f"{form:23} ", subsequent_indent=" " * 24)
    return "\n".join(lines) + "\n"


class Verb(NamedTuple):
    define: Callable  # its flags
    run: Callable  # (values of the flags, config overrides) -> exit code or None
    words: tuple[str, ...] = ()  # flags that may stand without their names, in this order; those without a default must
    rest: str = ""  # the flag that takes all further words
    shows_fields: bool = False  # whether its --help lists every field of the config
    no_overrides: str = ""  # what to say to --config.section.field=value, where the verb does not take it


def join_processes() -> None:
    """Connect to the other processes, where a launcher started several."""
    from lumos.runtime import processes

    processes.join()
    processes.census()
