"""What a run counts: part of its checkpoints, so that a resumed run ends with the same numbers."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import Any

import numpy as np

from kacl_jax.evaluation.results import FeedbackSummary
from kacl_jax.feedback.visibility import Feedback


@dataclasses.dataclass
class RunCounters:
    """What a run counts; part of a checkpoint, so that a resumed run ends with the same figures.

    best_step, best_auroc: the checkpoint with the highest mean validation AUROC, the earlier one on a tie.
    rows, ready, age_sum: training rows, those with a ready feature, and their summed age in steps.
    regions: where the regions of interest came from.
    failures: regions without features, by reason.
    late, dropped: regions whose features came too late, and regions never measured; both under feedback.late='drop'.
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

    def count_features(self, ready: np.ndarray, age: np.ndarray) -> None:
        """Rows of a batch, ready bool [b] and age int [b]; age counts where the row is ready."""
        self.rows += len(ready)
        self.ready += int(ready.sum())
        self.age_sum += int(age[ready].sum())

    def count_regions(self, origins: Counter[str], failures: Counter[str] | None = None) -> None:
        """Regions by origin, and those without features by reason."""
        self.regions = dict(Counter(self.regions) + origins)
        self.failures = dict(Counter(self.failures) + (failures or Counter()))

    def take_from(self, feedback: Feedback) -> None:
        """What the feedback mechanism counts itself, since step 0."""
        totals = feedback.counters
        self.failures = dict(feedback.failures)
        self.late, self.dropped = int(totals["late"]), int(totals["dropped"])
        self.reproducible = feedback.reproducible

    def take_best(self, steps_done: int, auroc: float) -> None:
        """Remember a validation that is better than all before it. NaN never is."""
        if math.isfinite(auroc) and (self.best_auroc is None or auroc > self.best_auroc):
            self.best_auroc, self.best_step = auroc, steps_done

    def warning(self) -> str:
        """A sentence if half of the regions gave no features, else ''. The last ones may not be counted yet."""
        marked, failed = sum(self.regions.values()), sum(self.failures.values())
        if not failed or 2 * failed < marked:
            return ""
        reason, count = max(self.failures.items(), key=lambda item: item[1])
        return (
            f"{failed:,} of {marked:,} regions gave no radiomic features ({count:,} times: {reason}). Their images had "
            "no radiomic partner in the loss."
        )

    def feedback(self) -> FeedbackSummary:
        """The feedback part of the results."""
        if not self.rows:
            return FeedbackSummary()
        return FeedbackSummary(
            hit_rate=self.ready / self.rows,
            mean_age_steps=self.age_sum / self.ready if self.ready else None,
            # Sorted, because the order in which reasons appear depends on the workers' speed.
            failures=dict(sorted(self.failures.items())),
            regions=dict(sorted(self.regions.items())),
            late=self.late,
            dropped=self.dropped,
        )

    @staticmethod
    def sum_of(parts: list[RunCounters]) -> RunCounters:
        """The sum over several processes. What is not a count comes from the first process."""
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
