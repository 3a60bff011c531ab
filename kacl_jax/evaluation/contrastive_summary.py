"""How far a run learned its contrastive task, and how hard that pulled beside the labels. Pure Python."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

COLUMNS = ("arm", "points", "NT-Xent", "by chance", "its pull", "rows with a partner", "age")
READING = (
    "Over the logged steps of the last epoch. By chance: NT-Xent if every other row were as likely the partner, "
    "ln(2n − 1). Its pull: the weighted gradient of NT-Xent at the feature map, in units of the focal loss's. Age: "
    "steps since the partner's region was marked."
)


@dataclass(frozen=True)
class Contrast:
    """Means over the logged steps of a run's last epoch; NaN where there is no such thing, ∞ for λ = 0."""

    loss: float  # NT-Xent, in nats
    chance: float  # the same if every other row were as likely the partner: ln(2n − 1)
    pull: float  # (1 − λ) · NT-Xent's gradient at the feature map ÷ λ · the focal loss's
    ready: float  # share of the rows that had a partner
    age: float  # steps since the partners' regions were marked


def last_epoch(log: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> Contrast | None:
    """None where the run had no contrastive loss, or never came to it.

    Args:
      log: the lines of metrics.jsonl. config: dotted keys.
    """
    epochs = [line["step"] for line in log if line["kind"] == "val"]
    begin = epochs[-2] if len(epochs) > 1 else 0
    told = [
        line
        for line in log
        if line["kind"] == "train"
        and line["step"] > begin
        and line.get("nt_xent") is not None
        and line["grad_norm_focal"] is not None
    ]
    if not told:
        return None

    def mean(name: str) -> float:
        return sum(line[name] for line in told) / len(told)

    radiomics = config.get("loss.positive", "radiomics") == "radiomics"
    rows = [line["ready"] if radiomics else config["train.batch_size"] for line in told]
    weight = config["loss.focal_weight"]
    focal = weight * mean("grad_norm_focal")
    return Contrast(
        loss=mean("nt_xent"),
        chance=sum(math.log(2 * n - 1) for n in rows) / len(rows),
        pull=(1 - weight) * mean("grad_norm_nt_xent") / focal if focal else math.inf,
        ready=mean("hit_rate") if radiomics else math.nan,
        age=mean("age") if radiomics else math.nan,
    )


def mean(runs: Sequence[Contrast]) -> Contrast:
    """The mean of each figure over runs."""
    return Contrast(*(sum(values) / len(runs) for values in zip(*map(astuple, runs), strict=True)))


def rows(points: Iterable[tuple[str, Contrast | None]]) -> list[list[str]]:
    """(arm, its contrastive loss) of every point → COLUMNS of every arm that has one, means over its points."""
    of_arm: dict[str, list[Contrast]] = {}
    for arm, found in points:
        if found is not None:
            of_arm.setdefault(arm, []).append(found)
    return [[arm, f"{len(some)}", *cells(mean(some))] for arm, some in of_arm.items()]


def cells(found: Contrast) -> list[str]:
    """One text for each figure; – where there is none."""
    texts = (
        f"{found.loss:.2f}",
        f"{found.chance:.2f}",
        f"{found.pull:.2f}",
        f"{100 * found.ready:.0f} %",
        f"{found.age:.0f}",
    )
    return [
        "–" if math.isnan(value) else text
        for value, text in zip(astuple(found), texts, strict=True)
    ]
