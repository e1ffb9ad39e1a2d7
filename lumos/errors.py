"""The one exception type that users see."""


class UserError(Exception):
    """Bad input. The message is one line: what came, what is allowed, how to fix it.

    The command line prints the message without a traceback and exits with code 2.
    """
