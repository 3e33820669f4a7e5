"""What goes wrong by the user's input or machine: one line each, and the exit code that says which kind."""

from collections.abc import Mapping


class UserError(ValueError):
    """An error whose message is the whole answer: what was got, the rule, what to do. Shown without traceback."""

    exit_code = 2


class ConfigError(UserError):
    """The command line or the composed config; `mended` maps a faulty word of the command line to the right one."""

    def __init__(self, message: str, mended: Mapping[str, str] | None = None):
        super().__init__(message)
        self.mended = dict(mended or {})


class DataError(UserError):
    """Missing, unreadable or contradictory data."""

    exit_code = 3


class EnvError(UserError):
    """The machine: no GPU, no memory, no disk, a missing extra."""

    exit_code = 4


class DivergedError(UserError):
    """Training produced a loss or gradient that is not finite."""

    exit_code = 5


class ElsewhereError(UserError):
    """Another of several processes failed; its error is the one to show."""

    exit_code = 1
    start = "another process failed"  # of the message, by which the one that started them knows it
