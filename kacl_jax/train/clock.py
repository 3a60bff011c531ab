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
    """Seconds of the loop: in all steps, in the steps after compilation, and in each part of the loop.

    The time of an inner part does not count in the outer part, so the parts can be added. Waiting for the devices
    counts as time of a step even outside start() … stop(): before a checkpoint, for example.
    """

    _COMPILING = 2

    def __init__(self) -> None:
        self.total = self.seconds = 0.0
        self.steps = -self._COMPILING
        self.parts = dict.fromkeys(PARTS, 0.0)
        self._open: list[str] = []
        self._in_step = False
        self._started = self._changed = 0.0

    def start(self) -> None:
        self._started, self._in_step = time.monotonic(), True

    def stop(self) -> None:
        self.steps += 1
        self._in_step = False
        self._count(time.monotonic() - self._started)

    def _count(self, seconds: float) -> None:
        self.total += seconds
        if self.steps > 0:
            self.seconds += seconds

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time the block as the part `name`, one of PARTS."""
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
            if name == "device_s" and not self._in_step:
                self._count(took)
        self._changed = now


Method = TypeVar("Method", bound=Callable[..., Any])


def timed(name: str) -> Callable[[Method], Method]:
    """Decorate a method: all its time counts as that part of its owner's `_clock`."""

    def decorate(method: Method) -> Method:
        @functools.wraps(method)
        def timed_method(self: Any, *args: Any, **kwargs: Any) -> Any:
            with self._clock.part(name):
                return method(self, *args, **kwargs)

        return cast(Method, timed_method)

    return decorate
