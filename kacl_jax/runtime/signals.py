"""Ctrl-C and SIGTERM: end the process at once, or ask a training loop to stop after its step."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from kacl_jax.runtime.errors import INTERRUPTED

_STOPPED = "Stopped; the same command goes on from the last checkpoint."


def exit_on_signals() -> None:
    """From now on Ctrl-C and SIGTERM end this process, which loses no more by it than by `kill -9`.

    No exception: where a signal meets a garbage collector's callback, and jax has one, Python swallows what is raised.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    os.write(2, f"\n{_STOPPED}\n".encode())
    os._exit(INTERRUPTED)


class Interrupt:
    """Ctrl-C and SIGTERM, seen between two steps. A second signal ends the process at once."""

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def watched(self) -> Iterator[Interrupt]:
        """Listen while the context is open, then give the signals back to who had them."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._receive) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            os._exit(INTERRUPTED)
        self.requested = True
        # Not print: the signal may have come in the middle of one.
        os.write(2, b"\nStopping after this step and saving; once more to stop at once.\n")
