"""What a run counts and times."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections import Counter
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


@dataclasses.dataclass
class Tally:
    """What a run counts; part of a checkpoint, so that a resumed run ends with the same figures.

    best_step, best_auroc: the checkpoint with the highest mean validation AUROC, the earlier one on a tie.
    rows, ready, age_sum: training rows, those with a ready feature, and their summed age in steps.
    regions: where the regions of interest came from.
    failures: regions without features, by reason.
    late, dropped: regions whose features were not there in time, and that were never measured (feedback.late='drop').
    reproducible: see `Feedback`.
    throughput: of the last process that trained; never part of a comparison.
    """

    best_step: int | None = None
    best_auroc: float | None = None
    rows: int = 0
    ready: int = 0
    age_sum: int = 0
    regions: dict[str, int] = dataclasses.field(default_factory=dict)
    failures: dict[str, int] = dataclasses.field(default_factory=dict)
    late: int = 0
    dropped: int = 0
    reproducible: bool = True
    throughput: dict[str, Any] = dataclasses.field(default_factory=dict)

    def feedback(self) -> dict[str, Any] | None:
        """The feedback part of results.json; None where nothing was measured."""
        if not self.rows:
            return None
        return {
            "hit_rate": self.ready / self.rows,
            "mean_age_steps": self.age_sum / self.ready if self.ready else None,
            # Sorted: which reason came first depends on the workers.
            "failures": dict(sorted(self.failures.items())),
            "regions": dict(sorted(self.regions.items())),
            "late": self.late,
            "dropped": self.dropped,
        }

    @staticmethod
    def joined(parts: list[Tally]) -> Tally:
        """The whole of what several processes counted; what is not counted is the first one's."""
        first, *others = parts
        for other in others:
            first = dataclasses.replace(
                first,
                rows=first.rows + other.rows,
                ready=first.ready + other.ready,
                age_sum=first.age_sum + other.age_sum,
                regions=dict(Counter(first.regions) + Counter(other.regions)),
                failures=dict(Counter(first.failures) + Counter(other.failures)),
                late=first.late + other.late,
                dropped=first.dropped + other.dropped,
                reproducible=first.reproducible and other.reproducible,
            )
        return first


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
