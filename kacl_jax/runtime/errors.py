"""The one exception that a user is meant to read."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in the command, the config or the data, told in one sentence with its fix.

    `main` prints the message without a traceback and exits with code 1.
    """
