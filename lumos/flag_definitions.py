"""Definitions of command line flags as values: each function returns one that adds a flag to a set of flags."""

from __future__ import annotations

from collections.abc import Callable

from absl import flags


def text(name: str, default: str | None, help_text: str, *, required: bool = False) -> Callable:
    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string(name, default, help_text, flag_values=values)
        if required:
            flags.mark_flag_as_required(name, flag_values=values)

    return define


def number(name: str, default: int, help_text: str) -> Callable:
    return lambda values: flags.DEFINE_integer(name, default, help_text, flag_values=values)


def switch(name: str, default: bool, help_text: str) -> Callable:
    return lambda values: flags.DEFINE_boolean(name, default, help_text, flag_values=values)


def many(name: str, help_text: str) -> Callable:
    return lambda values: flags.DEFINE_multi_string(name, [], help_text, flag_values=values)


def group(*definitions: Callable) -> Callable:
    return lambda values: [define(values) for define in definitions]
