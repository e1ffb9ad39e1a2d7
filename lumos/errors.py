"""The exceptions that end a command, its exit codes, and pieces of their messages; warnings that come once."""

import difflib
import functools
import logging
import unicodedata
from collections.abc import Iterable

EXIT_USER_ERROR = 2
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: saved, start me again
EXIT_STUCK = 76  # the watchdog gave up waiting: start me again


class UserError(Exception):
    """Bad input. The message is one line: what came, what is allowed, how to fix it.

    The command line prints the message without a traceback and exits with code 2.
    """


class Preempted(Exception):
    """The run was asked to stop, and everything is saved. The command line exits with code 75: start it again."""


def suggest(name: str, allowed: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the one that was probably meant, or all that are allowed."""
    near = difflib.get_close_matches(name, allowed := list(allowed), n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; allowed: {', '.join(allowed)}"


def printable(text: str) -> str:
    """Return the text on one line that any file or terminal takes: line ends, control characters and what is not UTF-8
    in a file name become backslash escapes."""
    if text.isprintable():
        return text
    odd = ("Cc", "Cs", "Zl", "Zp")
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in odd else c for c in text)


def short(value: object) -> str:
    """Return repr(value), cut to fit into a message."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


@functools.cache
def warn_once(text: str) -> None:
    """Log a warning, but not the same one again: data are opened anew for every evaluation."""
    logging.getLogger(__name__).warning("%s", text)
