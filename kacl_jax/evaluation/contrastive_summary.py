"""How well a run learned its contrastive task, and how strong that loss's gradient was. Pure Python."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

COLUMNS = (
    *("arm", "points", "NT-Xent", "by chance", "at best", "gradient ratio", "rows with a partner"),
    "age",
)
READING = (
    "Means over the logged steps of the last epoch. By chance: NT-Xent if every other row were the partner with the "
    "same probability, ln(2n − 1). At best: NT-Xent if partners were equal and all others as far apart as they can be. "
    "Gradient ratio: the weighted gradient of NT-Xent at the feature map, divided by that of the focal loss. Age: "
    "steps since the partner's region was marked."
)


@dataclass(frozen=True)
class ContrastiveSummary:
    """Means over the logged steps of a run's last epoch; NaN where a value does not apply."""

    loss: float  # NT-Xent, in nats
    chance_loss: (
        float  # NT-Xent if every other row were equally likely the partner: ln(2n − 1), in nats
    )
    best_loss: float  # NT-Xent if partners are equal and the n pairs a regular simplex, in nats
    gradient_ratio: float  # (1 − λ) · NT-Xent's gradient norm at the feature map ÷ (λ · the focal loss's); ∞ for λ = 0
    partner_share: float  # share of the rows that had a partner
    age: float  # mean number of steps since the partners' regions were marked


def summarise_last_epoch(
    log: Sequence[Mapping[str, Any]], config: Mapping[str, Any]
) -> ContrastiveSummary | None:
    """The summary, or None where the run has no contrastive loss or logged none in its last epoch.

    It is of the lines that have all its values.

    Args:
      log: the lines of metrics.jsonl.
      config: the run's config as a flat mapping with dotted keys.
    """
    uses_radiomics = config["loss.positive"] == "radiomics"
    names = ["nt_xent", "grad_norm_focal", "grad_norm_nt_xent"]
    names += ["ready", "hit_rate", "age"] if uses_radiomics else []
    validation_steps = [line["step"] for line in log if line["kind"] == "val"]
    previous_epoch_end = validation_steps[-2] if len(validation_steps) > 1 else 0
    lines = [
        line
        for line in log
        if line["kind"] == "train"
        and line["step"] > previous_epoch_end
        and all(line.get(name) is not None for name in names)
    ]
    if not lines:
        return None

    def mean_of(name: str) -> float:
        return sum(line[name] for line in lines) / len(lines)

    n_rows = [line["ready"] if uses_radiomics else config["train.batch_size"] for line in lines]
    weight = config["loss.focal_weight"]
    focal_gradient = weight * mean_of("grad_norm_focal")
    return ContrastiveSummary(
        loss=mean_of("nt_xent"),
        chance_loss=sum(math.log(2 * n - 1) for n in n_rows) / len(n_rows),
        best_loss=sum(_best_loss(n, config["loss.temperature"]) for n in n_rows) / len(n_rows),
        gradient_ratio=(1 - weight) * mean_of("grad_norm_nt_xent") / focal_gradient
        if focal_gradient
        else math.inf,
        partner_share=mean_of("hit_rate") if uses_radiomics else math.nan,
        age=mean_of("age") if uses_radiomics else math.nan,
    )


def _best_loss(pairs: float, temperature: float) -> float:
    """The least NT-Xent of n pairs: the cosine of partners is 1, that of all others −1 / (n − 1)."""
    if pairs <= 1:
        return 0.0
    return math.log1p((2 * pairs - 2) * math.exp(-pairs / (pairs - 1) / temperature))


def mean_summary(summaries: Sequence[ContrastiveSummary]) -> ContrastiveSummary:
    """The mean of each value over runs."""
    return ContrastiveSummary(
        *(sum(values) / len(summaries) for values in zip(*map(astuple, summaries), strict=True))
    )


def table_rows(points: Iterable[tuple[str, ContrastiveSummary | None]]) -> list[list[str]]:
    """One row of COLUMNS for each arm, from (arm, summary) of every point: means over the arm's points.

    Points whose summary is None are left out.
    """
    summaries_by_arm: dict[str, list[ContrastiveSummary]] = {}
    for arm, summary in points:
        if summary is not None:
            summaries_by_arm.setdefault(arm, []).append(summary)
    return [
        [arm, f"{len(summaries)}", *format_cells(mean_summary(summaries))]
        for arm, summaries in summaries_by_arm.items()
    ]


def format_cells(summary: ContrastiveSummary) -> list[str]:
    """One text for each value; – for NaN."""
    texts = (
        f"{summary.loss:.2f}",
        f"{summary.chance_loss:.2f}",
        f"{summary.best_loss:.2f}",
        f"{summary.gradient_ratio:.2f}",
        f"{100 * summary.partner_share:.0f} %",
        f"{summary.age:.0f}",
    )
    return [
        "–" if math.isnan(value) else text
        for value, text in zip(astuple(summary), texts, strict=True)
    ]
