"""What a run counts and times."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from typing import Any


@dataclasses.dataclass
class Tally:
    """What a run counts; part of a checkpoint, so that a resumed run ends with the same figures.

    best_step, best_auroc: the checkpoint with the highest mean validation AUROC, the earlier one on a tie.
    rows, ready, age_sum: training rows, those with a ready feature, and their summed age in steps.
    regions: where the regions of interest came from.
    failures: regions without features, by reason. reproducible: see `Feedback`.
    throughput: of the last process that trained; never part of a comparison.
    """

    best_step: int | None = None
    best_auroc: float | None = None
    rows: int = 0
    ready: int = 0
    age_sum: int = 0
    regions: dict[str, int] = dataclasses.field(default_factory=dict)
    failures: dict[str, int] = dataclasses.field(default_factory=dict)
    reproducible: bool = True
    throughput: dict[str, Any] = dataclasses.field(default_factory=dict)

    def feedback(self) -> dict[str, Any] | None:
        """The feedback part of results.json; None where there was no pool."""
        if not self.rows:
            return None
        return {
            "hit_rate": self.ready / self.rows,
            "mean_age_steps": self.age_sum / self.ready if self.ready else None,
            # Sorted: which reason came first depends on the workers.
            "failures": dict(sorted(self.failures.items())),
            "regions": dict(sorted(self.regions.items())),
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
                reproducible=first.reproducible and other.reproducible,
            )
        return first


class Clock:
    """Seconds spent in turns: of all, of those after compilation, and waiting for data."""

    _COMPILING = 2

    def __init__(self) -> None:
        self.total = self.seconds = self.data_wait = 0.0
        self.steps = -self._COMPILING
        self._started = 0.0

    def start(self) -> None:
        self._started = time.monotonic()

    def data_is_here(self) -> None:
        self.data_wait += time.monotonic() - self._started

    def stop(self) -> None:
        took = time.monotonic() - self._started
        self.total += took
        self.steps += 1
        if self.steps > 0:
            self.seconds += took
