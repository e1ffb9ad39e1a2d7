"""The exceptions that end a command, and its exit codes."""

EXIT_USER_ERROR = 2
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: saved, start me again
EXIT_STUCK = 76  # the watchdog gave up waiting: start me again


class UserError(Exception):
    """Bad input. The message is one line: what came, what is allowed, how to fix it.

    The command line prints the message without a traceback and exits with code 2.
    """


class Preempted(Exception):
    """The run was asked to stop, and everything is saved. The command line exits with code 75: start it again."""
