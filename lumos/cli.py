"""The command line `lumos <verb> --flags`: parses, runs a verb, and turns what it raises into one line and an exit code."""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import select
import sys
import threading
import traceback

from absl import flags
from absl import logging as absl_logging

from lumos.errors import EXIT_PREEMPTED, EXIT_USER_ERROR, Preempted, UserError, printable, suggest
from lumos.files import SCHEMES, check_scheme, is_of_a_bucket, is_remote, reason_of, scheme_of
from lumos.flag_definitions import describe
from lumos.runtime import compile_cache
from lumos.runtime.device_memory import use_device_memory
from lumos.runtime.huge_pages import use_huge_pages
from lumos.runtime.processes import started_by
from lumos.staged import staged
from lumos.verbs import VERBS

_USAGE = """usage: lumos <verb> [flags]

  demo             everything below, tiny, on a CPU: ends with videos and a report
  data index       folder, glob or list of clips -> manifest
  data shapes      draw the moving_shapes data set of a config
  data record      play VizDoom or Atari games at random -> clips
  data cut         long files -> a manifest of their clips, at scene cuts or by a list
  data filter      the clips of a manifest for which a condition holds, without those that look alike
  data label       write the latent actions of a token folder into its shards
  data benchmark   the folder of a public benchmark -> the list of its clips
  data check       read all records of a token folder, and draw some decoded
  data vocab       train a sentencepiece model from captions
  train            train a tokenizer or a transformer; resumes by itself
  replay           run a step that went wrong again, from its dump
  tokenize         clips -> shards of tokens
  generate         prompts (and first frames) -> videos
  stream           prompts that change -> a video of any length, written while it is made
  serve            a web page that shows streams live and takes prompts
  play             a trained world: keys in, frames out, on a web page or in the terminal
  plan             will it fit, and how fast: compile a step for a TPU pod without one
  launch           run a verb as many processes, here or on a cluster
  evaluate         a training workdir -> results.jsonl and an HTML report
  sweep            checkpoints x sampling settings x seeds x prompts -> a table, plots and videos on one page
  report           the page of several sweeps and evaluations together
  findings list    what papers claim and is checked here: claims, arms, seeds
  findings run     train and measure findings, in parallel processes; goes on where it was stopped
  findings report  a page of their verdicts, curves and frames
  convert          released Lumos-1 and Cosmos weights and tokens -> workdirs and token folders, and back
  export           a training workdir -> a release: weights, tokenizer, text model, config and model card in one folder
  upload           a release -> the Hugging Face Hub
  info             what a path is: release, workdir, checkpoint, manifest, token folder, shard, released weights, config
  config show      the resolved fields of a config
  config diff      the fields in which two configs differ
  doctor           is this machine fit to train: devices, speed of every host, codecs, a workdir that can be written
  help             the config's sections and fields, with their meaning
  completion       a script that completes verbs, flags and fields: source <(lumos completion)

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
    if verb in ("data", "config", "findings") and arguments and not arguments[0].startswith("-"):
        verb += " " + arguments.pop(0)
    if verb in _VERBATIM and "--" in arguments:
        cut = arguments.index("--")
        arguments = arguments[:cut] + [f"--{_VERBATIM[verb]}={word}" for word in arguments[cut + 1 :]]
    try:
        if verb not in VERBS:
            group = [name for name in VERBS if name.startswith(f"{verb.partition(' ')[0]} ")]
            known = f"; commands: {', '.join(group)}" if group else suggest(verb, VERBS)
            raise UserError(f"unknown command {verb!r}{known}; lumos --help says what each does")
        define, run, words, others, shows_fields, no_overrides = VERBS[verb]
        _refuse_odd_paths(verb, arguments)
        arguments, overrides = _split_overrides(arguments)
        values = flags.FlagValues()
        define(values)
        if {"--help", "-h"} & set(arguments):
            print(f"flags of lumos {verb}:\n\n{describe(values)}", end="")
            if shows_fields:
                from lumos.config_help import all_fields

                print(all_fields(), end="")
            print("" if no_overrides else _FIELDS, end="\n" * (not no_overrides))
            return 0
        try:
            rest = values([f"lumos {verb}", *arguments])[1:]
        except flags.Error as error:
            raise UserError(f"lumos {verb}: {_said(error, values)}; see lumos {verb} --help") from error
        if others:
            values[others].value, rest = [*values[others].value, *rest], []
        _read_words(verb, words, values, rest)
        if overrides and no_overrides:
            raise UserError(no_overrides)
        if "workdir" in values and values.workdir:
            compile_cache.use(values.workdir)
        _start_logging()
        with staged(values, _to_be_staged(verb, values)):
            return run(values, overrides) or 0
    except UserError as error:
        return _fail(str(error), EXIT_USER_ERROR)
    except Preempted as error:
        return _fail(str(error), EXIT_PREEMPTED)
    except Exception as error:
        if is_of_a_bucket(error):
            return _fail(f"a bucket cannot be used ({reason_of(error)})", EXIT_USER_ERROR)
        if not isinstance(error, OSError) or error.errno not in _DISK_ERRORS:
            raise
        return _fail(f"{error.filename or 'writing failed'}: {error.strerror}", EXIT_USER_ERROR)


def _said(error: flags.Error, values: flags.FlagValues) -> str:
    """Return what an error of absl says, in one line; of a flag that is missing, its name and what it is."""
    if isinstance(error, flags.IllegalFlagValueError) and (
        absent := re.search(r"Flag --(\w+) must have a value other than None", str(error))
    ):
        return f"--{absent[1]} is missing ({values[absent[1]].help})"
    return " ".join(str(error).split())


# The flag that takes every word behind --: a verb to launch with its own flags, a line to complete.
_VERBATIM = {"launch": "verb", "completion": "word"}
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


def _refuse_odd_paths(verb: str, arguments: list[str]) -> None:
    """Raise UserError where a path is a URL that is not read, or begins with a home folder that no shell has filled in.

    Such a URL or `~` would become a folder of that odd name.
    """
    words = [word.removeprefix("--verb=") for word in arguments]
    for word, following in zip(words, [*words[1:], ""]):
        name, equals, value = word.lstrip("-").partition("=")
        if not word.startswith("-") or name not in _PATHS:
            continue
        value = value if equals else following
        if value.startswith("hf://") and verb in ("evaluate", "generate", "play", "serve", "stream", "upload"):
            continue
        check_scheme(value, f"--{name}")
        if is_remote(value) and (verb, name) in _SHARED_WHILE_WRITTEN:
            raise UserError(
                f"--{name}={value}: lumos {verb} takes a local path here, which its processes share while they work"
            )
        home = os.path.expanduser(value)
        if home != value and not os.path.lexists(value.split("/")[0]):
            raise UserError(f"--{name}={value}: the shell fills in ~ only behind a blank; write {home}")


_PATHS = (
    "workdir", "out", "input", "to", "init_from", "image", "video", "manifest", "config", "dump", "text", "tokenizer", "ids", "path", "tokens", "sheet", "cuts",
    "other", "record", "config.data.path", "config.tokenizer_workdir", "config.text.model",
)  # fmt: skip


# What is read and written in a bucket as it is; of other paths there is a local copy (staged.py). `lumos launch` leaves all to the verb.
_REMOTE = {
    "train": ("workdir", "config", "init_from"), "tokenize": ("workdir", "out", "config"), "replay": ("dump",),
    "data index": ("input", "out", "config"), "data vocab": ("manifest",), "data check": ("tokens", "workdir"),
    "data label": ("tokens", "workdir", "out"),
    "data cut": ("manifest", "out", "cuts"), "data filter": ("manifest", "out"), "generate": ("workdir",), "stream": ("workdir",),
    "play": ("workdir",), "serve": ("workdir",), "evaluate": ("workdir",), "export": ("workdir",), "sweep": ("workdir",),
    "info": ("path",), "config show": ("config",), "config diff": ("config", "other"),
}  # fmt: skip
_SHARED_WHILE_WRITTEN = (("sweep", "out"), ("demo", "workdir"), ("findings run", "out"), ("findings report", "out"))


def _to_be_staged(verb: str, values: flags.FlagValues) -> list[str]:
    """Return the flags whose values are URLs of buckets where the verb wants a local path."""
    if verb == "launch":
        return []
    names = [name for name in _PATHS if name in values and name not in _REMOTE.get(verb, ())]
    return [name for name in names if isinstance(values[name].value, str) and scheme_of(values[name].value) in SCHEMES]


def run_and_exit() -> None:
    """Run the command of this process and end it."""
    if not _only_prints(sys.argv[1:]):
        use_huge_pages()
        use_device_memory()
    try:
        code = main()
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        code = 1
    except Exception:  # a bug, or another process of the run is gone
        if not started_by(os.environ):
            raise
        traceback.print_exc()
        code = 1
    if code not in (0, EXIT_PREEMPTED) and started_by(os.environ):
        # At its end a process waits for the others of the run, and they wait for this one in a collective.
        sys.stderr.flush()
        os._exit(code)
    if code not in (0, EXIT_PREEMPTED):  # threads that still write to what cannot be written would keep it for ever
        last = threading.Timer(_SECONDS_TO_LEAVE, os._exit, [code])
        last.daemon = True
        last.start()
    sys.exit(code)


def _only_prints(arguments: list[str]) -> bool:
    """Return whether a command computes nothing: it needs no huge pages, for which a program has to start twice."""
    first = arguments[0] if arguments else "--help"
    return first in ("--version", "help", "completion", "config", "info") or bool(
        {"-h", "--help"} & {first, *arguments}
    )


_SECONDS_TO_LEAVE = 20.0  # of a process that has said what is wrong


def _nobody_reads() -> bool:
    """Return whether who read the output is gone, as `head` is once it has seen enough; nothing more is written then."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


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
