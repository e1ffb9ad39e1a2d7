"""The command line `lumos <verb> --flags`: parses, runs a verb, and turns what it raises into one line and an exit code."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import traceback

from absl import flags
from absl import logging as absl_logging

from lumos.errors import EXIT_PREEMPTED, EXIT_USER_ERROR, Preempted, UserError, printable, refuse_url
from lumos.runtime import compile_cache
from lumos.runtime.huge_pages import use_huge_pages
from lumos.runtime.processes import started_by
from lumos.verbs import VERBS

_USAGE = """usage: lumos <verb> [flags]

  demo             everything below, tiny, on a CPU: ends with videos and a report
  data index       folder, glob or list of clips -> manifest
  data shapes      draw the moving_shapes data set of a config
  data record      play VizDoom or Atari games at random -> clips
  data vocab       train a sentencepiece model from captions
  train            train a tokenizer or a transformer; resumes by itself
  replay           run a step that went wrong again, from its dump
  tokenize         clips -> shards of tokens
  generate         prompts (and first frames) -> videos
  plan             will it fit, and how fast: compile a step for a TPU pod without one
  launch           run a verb as many processes, here or on a cluster
  evaluate         a training workdir -> results.jsonl and an HTML report
  convert          released Lumos-1 and Cosmos weights and tokens -> workdirs and token folders, and back
  info             what a path is: workdir, checkpoint, manifest, token folder, shard, released weights, config
  config show      the resolved fields of a config
  config diff      the fields in which two configs differ
  help             the config's sections and fields, with their meaning

`lumos <verb> --help` lists the flags of a verb, `lumos --version` says which lumos this is.
Config fields are set with --config.section.field=value; `lumos help` lists them.
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command; return the exit code: 2 for a user error (printed in one line), 75 after a preemption."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # as stderr does with characters that a terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE, end="")
        return 0
    if arguments[0] == "--version":
        from lumos.version import version_line

        print(version_line())
        return 0
    verb = arguments.pop(0)
    if verb in ("data", "config") and arguments and not arguments[0].startswith("-"):
        verb += " " + arguments.pop(0)
    if verb == "launch" and "--" in arguments:  # the verb to launch, with its own flags
        cut = arguments.index("--")
        arguments = arguments[:cut] + [f"--verb={word}" for word in arguments[cut + 1 :]]
    try:
        if verb not in VERBS:
            group = [name for name in VERBS if name.startswith(f"{verb.partition(' ')[0]} ")]
            raise UserError(f"unknown command {verb!r}; commands: {', '.join(group or VERBS)}")
        define, run, words, no_overrides = VERBS[verb]
        _refuse_odd_paths(arguments)
        arguments, overrides = _split_overrides(arguments)
        values = flags.FlagValues()
        define(values)
        if {"--help", "-h"} & set(arguments):
            print(f"flags of lumos {verb}:\n{values.get_help()}{'' if no_overrides else _FIELDS}")
            return 0
        try:
            rest = values([f"lumos {verb}", *arguments])[1:]
        except flags.Error as error:
            raise UserError(f"lumos {verb}: {' '.join(str(error).split())}; see lumos {verb} --help") from error
        _read_words(verb, words, values, rest)
        if overrides and no_overrides:
            raise UserError(no_overrides)
        if "workdir" in values and values.workdir:
            compile_cache.use(values.workdir)
        _start_logging()
        return run(values, overrides) or 0
    except UserError as error:
        return _fail(str(error), EXIT_USER_ERROR)
    except Preempted as error:
        return _fail(str(error), EXIT_PREEMPTED)
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        return _fail(f"{error.filename or 'writing failed'}: {error.strerror}", EXIT_USER_ERROR)


_FIELDS = (
    "\n--config.section.field=value sets a field of the config: `lumos help` lists the sections, `lumos help SECTION` their "
    "fields."
)


def _read_words(verb: str, names: tuple[str, ...], values: flags.FlagValues, rest: list[str]) -> None:
    """Give the arguments that stand without a flag to the flags that they are for. Raises UserError."""
    usage = " ".join([f"lumos {verb}", *(name.upper() for name in names)])
    for name in names:
        if rest and not values[name].present:
            values[name].value = rest.pop(0)
        if values[name].value in (None, "") and values[name].default is None:
            raise UserError(f"{usage}: {name} is missing ({values[name].help}); see lumos {verb} --help")
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}; flags are --name=value" + f", or {usage}" * bool(names))


def _refuse_odd_paths(arguments: list[str]) -> None:
    """Raise UserError where a path is a URL, or begins with a home folder that no shell has filled in.

    A URL or `~` would become a folder of that odd name.
    """
    words = [word.removeprefix("--verb=") for word in arguments]
    for word, following in zip(words, [*words[1:], ""]):
        name, equals, value = word.lstrip("-").partition("=")
        if not word.startswith("-") or name not in _PATHS:
            continue
        value = value if equals else following
        refuse_url(value, f"--{name}")
        home = os.path.expanduser(value)
        if home != value and not os.path.lexists(value.split("/")[0]):
            raise UserError(f"--{name}={value}: the shell fills in ~ only behind a blank; write {home}")


_PATHS = (
    "workdir", "out", "input", "to", "init_from", "image", "video", "manifest", "config", "dump", "text", "tokenizer", "ids", "path",
    "other", "config.data.path", "config.tokenizer_workdir", "config.text.model",
)  # fmt: skip


def run_and_exit() -> None:
    """Run the command of this process and end it."""
    use_huge_pages()
    try:
        code = main()
    except Exception:  # a bug, or another process of the run is gone
        if not started_by(os.environ):
            raise
        traceback.print_exc()
        code = 1
    if code not in (0, EXIT_PREEMPTED) and started_by(os.environ):
        # At its end a process waits for the others of the run, and they wait for this one in a collective.
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


# What a full or read-only disk and a wrong path say, wherever it is that something is written.
_DISK_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR,
    errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG,
}  # fmt: skip


def _fail(message: str, code: int) -> int:
    print(f"lumos: {'error: ' if code == EXIT_USER_ERROR else ''}{printable(message)}", file=sys.stderr)
    return code


def _split_overrides(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Take `--config.a.b=value` (or `--config.a.b value`) out of the arguments."""
    rest, overrides = [], {}
    queue = list(arguments)
    while queue:
        argument = queue.pop(0)
        if not argument.startswith("--config."):
            rest.append(argument)
            continue
        name, equals, value = argument.removeprefix("--config.").partition("=")
        if not equals:
            if not queue:
                raise UserError(f"--config.{name} needs a value")
            value = queue.pop(0)
        overrides[name] = value
    return rest, overrides


def _start_logging() -> None:
    flags.FLAGS.mark_as_parsed()  # grain reads absl flags
    absl_logging.set_verbosity(absl_logging.WARNING)  # Orbax narrates every save at INFO
    logger = logging.getLogger("lumos")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.handlers = [handler]
