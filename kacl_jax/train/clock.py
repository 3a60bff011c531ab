"""Where the training loop spends its time."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

# Where the loop's own thread spends its time beside dispatching steps: waiting for a batch, moving it to the devices,
# waiting for the devices' step, marking regions, validating, saving.
PARTS = (
    "data_s",
    "to_device_s",
    "device_s",
    "regions_s",
    "validation_s",
    "checkpoint_s",
)


class Clock:
    """Seconds of the loop: in turns, in turns after compilation, and in each of its parts.

    A part within another one counts as its own only, so the parts add up. Waiting for the devices counts as a turn's
    wherever it happens: before a checkpoint the step in flight is waited for.
    """

    _COMPILING = 2

    def __init__(self) -> None:
        self.total = self.seconds = 0.0
        self.steps = -self._COMPILING
        self.parts = dict.fromkeys(PARTS, 0.0)
        self._open: list[str] = []
        self._turning = False
        self._started = self._changed = 0.0

    def start(self) -> None:
        self._started, self._turning = time.monotonic(), True

    def stop(self) -> None:
        self.steps += 1
        self._turning = False
        self._count(time.monotonic() - self._started)

    def _count(self, seconds: float) -> None:
        self.total += seconds
        if self.steps > 0:
            self.seconds += seconds

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what happens within as `name`, one of PARTS."""
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def _charge(self) -> None:
        now = time.monotonic()
        if self._open:
            name, took = self._open[-1], now - self._changed
            self.parts[name] += took
            if name == "device_s" and not self._turning:
                self._count(took)
        self._changed = now


Method = TypeVar("Method", bound=Callable[..., Any])


def timed(name: str) -> Callable[[Method], Method]:
    """Decorates a method whose whole time is that part of its owner's `_clock`."""

    def decorate(method: Method) -> Method:
        @functools.wraps(method)
        def within(self: Any, *args: Any, **kwargs: Any) -> Any:
            with self._clock.part(name):
                return method(self, *args, **kwargs)

        return cast(Method, within)

    return decorate
