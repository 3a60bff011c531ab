"""Ctrl-C and SIGTERM: end the process at once, or ask a training loop to stop after its step."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from kacl_jax.runtime.errors import INTERRUPTED

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


def exit_on_signals(message: str) -> None:
    """From now on Ctrl-C and SIGTERM end this process at once, with a message. It loses no more than by `kill -9`.

    It exits instead of raising: jax has a garbage collector callback, and Python ignores an exception that a signal
    raises while such a callback runs. Signals that `block` held back arrive now.
    """

    def exit_now(number: int, frame: FrameType | None) -> None:
        os.write(2, f"\n{message}\n".encode())
        os._exit(INTERRUPTED)

    for number in _NUMBERS:
        signal.signal(number, exit_now)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _NUMBERS)


def raise_keyboard_interrupt() -> None:
    """From now on Ctrl-C and SIGTERM raise KeyboardInterrupt, for a command that has something to put away first."""
    for number in _NUMBERS:
        signal.signal(number, signal.default_int_handler)


def block() -> None:
    """Holds Ctrl-C and SIGTERM back until `exit_on_signals`, also across os.exec*, which forgets the handlers."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _NUMBERS)


class Interrupt:
    """A request to stop, by Ctrl-C or SIGTERM, that the loop reads between two steps. A second signal exits at once."""

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def listening(self) -> Iterator[Interrupt]:
        """Receive the signals inside the context, then restore the handlers that were there before."""
        before = {number: signal.signal(number, self._receive) for number in _NUMBERS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            os._exit(INTERRUPTED)
        self.requested = True
        # os.write and not print, because the signal may arrive while a print is running.
        os.write(2, b"\nStopping after this step and saving; once more to stop at once.\n")
