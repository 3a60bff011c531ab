"""What a user is meant to read instead of a traceback, and the exit code that goes with it."""

from __future__ import annotations

DONE = 0
USER_ERROR = 1
INTERRUPTED = 75
NON_FINITE = 76
WORKDIR_IN_USE = 77


class UserError(Exception):
    """A mistake in the command, the config or the data, told in one sentence with its fix.

    `main` prints the message without a traceback and exits with code 1.
    """


class WorkdirInUseError(UserError):
    """Another process runs in this workdir."""


class InterruptedRunError(Exception):
    """The run was asked to stop, saved what it had and can be resumed."""


class NonFiniteError(Exception):
    """The loss or a gradient was not finite; the update was not taken."""


def exit_code(error: BaseException) -> int | None:
    """The exit code of an error that a user is meant to read; None for any other."""
    codes: tuple[tuple[type[BaseException], int], ...] = (
        (WorkdirInUseError, WORKDIR_IN_USE),
        (UserError, USER_ERROR),
        (InterruptedRunError, INTERRUPTED),
        (NonFiniteError, NON_FINITE),
    )
    return next((code for kind, code in codes if isinstance(error, kind)), None)
