"""What results.json holds, typed. No other file knows its keys.

The keys are the names of the fields, in their order; only the leaves, `Estimate` and `Table`, are written otherwise. A
value that is undefined is NaN here and null in the file, with its reason beside it. Imports no jax, because a sweep
reads the results of its runs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from kacl_jax.evaluation.metrics import N_BINS, Bin, Estimate, Table
from kacl_jax.evaluation.subgroups import Subgroup
from kacl_jax.runtime import files
from kacl_jax.runtime.errors import UserError

_OMITTED_IF_EMPTY = (
    *("reason", "pixel_probe", "calibrated", "best_step_reason", "best_step_lost", "weights_note"),
    *("fused", "weight_reason", "image_pair", "minus_image_pair"),
)
_COUNTS = ("n_pos", "n_neg", "n", "n_findings")


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One finding's operating point, chosen on the validation part, and its metrics on the test part."""

    value: float  # the threshold
    youden_j: float
    reason: str = ""  # why there is no threshold; else empty
    sensitivity: Estimate
    specificity: Estimate
    ppv: Estimate
    npv: Estimate


@dataclass(frozen=True, kw_only=True)
class CalibrationByFinding:
    """As `metrics.Calibration`; the reliability curves by finding."""

    brier: Table
    ece: Table
    bins: int = N_BINS
    binning: str = "equal mass: by rank of the probability, equal probabilities together"
    reliability: dict[str, tuple[Bin, ...]]


@dataclass(frozen=True, kw_only=True)
class Classification:
    """How well the probabilities rank, decide and are calibrated."""

    auroc: Table
    auprc: Table
    pixel_probe: Table | None = None  # AUROC of `pixel_probe.score_pixel_probe`, if it was run
    operating_point: dict[str, Decision]  # by finding
    calibration: CalibrationByFinding  # of the raw scores
    # Of the probabilities that Platt scaling makes of them; None in a run of an earlier version.
    calibrated: CalibrationByFinding | None = None


@dataclass(frozen=True)
class RankingDifference:
    """AUROC and AUPRC minus those of other scores of the same images."""

    auroc: Table
    auprc: Table


@dataclass(frozen=True, kw_only=True)
class FusedScores:
    """The network's scores with one or two ridge regressions added."""

    weight: float  # of the regressions beside the network
    weight_reason: str = ""  # why it was not chosen on validation; else empty
    penalties: dict[str, float]  # of each regression
    classification: Classification
    minus_network: RankingDifference
    subgroups: dict[str, dict[str, Subgroup]]  # as `Results.subgroups`


@dataclass(frozen=True)
class Carried:
    """What carries a finding's radiomics: the standard deviation, over the test images, of each part's share.

    A share is what a part adds to the fused logit. cells: by row and column of the grid. families: of all cells.
    """

    cells: tuple[tuple[float, ...], ...]
    families: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Fused:
    """What fusion adds (see `kacl_jax.fusion`). The network's own numbers stand in `Results.classification`."""

    kind: str
    grid: int
    scores: FusedScores
    # Network and image regression alone: the control of what radiomics add. None where that is the fusion itself.
    image_pair: FusedScores | None = None
    minus_image_pair: RankingDifference | None = None
    # Of each finding and regression, why it has no part in the fused score; where none has, it is the network's own.
    own_scores: dict[str, dict[str, str]]
    missing_cells: dict[str, int]  # by reason, over all images
    carried: dict[str, Carried]  # by finding, of those with a regression on radiomics


@dataclass(frozen=True)
class Accuracy:
    """Localization accuracy: for each threshold T the share of truth boxes with an overlap > T."""

    iou: dict[float, Table]
    iobb: dict[float, Table]


@dataclass(frozen=True)
class MapAccuracy(Accuracy):
    """The accuracy of boxes that are read from a map, and whether the map's peak lies in a truth box."""

    pointing_game: Table


@dataclass(frozen=True)
class Localization(Accuracy):
    """The accuracy by the rule single; beside it by the rule best_of and of the floors, and more of single."""

    best_of: Accuracy
    afp: Table  # false boxes per image
    pointing_game: Table
    random_map: MapAccuracy
    prior_box: Accuracy
    prior_map: MapAccuracy
    grid_ceiling: Accuracy
    above_prior_map: Accuracy  # single minus prior_map, paired by truth box

    def rules_and_floors(self) -> dict[str, Accuracy]:
        """The accuracies that tables show beside each other, by name."""
        return {
            "single": self,
            "best_of": self.best_of,
            "random_map": self.random_map,
            "prior_box": self.prior_box,
            "prior_map": self.prior_map,
            "grid_ceiling": self.grid_ceiling,
        }


@dataclass(frozen=True)
class Images:
    """Numbers of images that were scored."""

    val: int
    test: int


@dataclass(frozen=True)
class Skipped:
    """What was left out because an image could not be read."""

    val: int
    test: int
    boxes: int


@dataclass(frozen=True)
class Extent:
    """On what the values were computed."""

    images: Images
    skipped: Skipped
    grid: tuple[int, int]  # rows and columns of a map
    predicted_boxes: int
    whole_image_boxes: int  # of maps that marked nothing
    afp_iou: float
    resamples: int


@dataclass(frozen=True)
class FeedbackSummary:
    """The feedback loop of the whole run. All values are None if no region was measured.

    Runs of earlier versions did not count the regions, or those that came late or were dropped.
    """

    hit_rate: float | None = None  # share of the training rows that had a feature
    mean_age_steps: float | None = None  # None also if no row had one
    failures: dict[str, int] | None = None  # by reason
    regions: dict[str, int] | None = None  # by origin
    late: int | None = None
    dropped: int | None = None


@dataclass(frozen=True)
class Throughput:
    """Speed of the process that trained last; None if nothing was timed."""

    images_per_s: float | None = None
    rois_per_s: float | None = None
    waits: dict[str, float] | None = None  # seconds by part


@dataclass(frozen=True)
class Results:
    """The results of one run."""

    protocol: str
    fold: int | None  # None: the protocol has no folds
    seed: int
    split: str
    split_hash: str
    findings: tuple[str, ...]
    classification: Classification
    localization: Localization
    subgroups: dict[str, dict[str, Subgroup]]  # by attribute, then group
    evaluation: Extent
    feedback: FeedbackSummary
    throughput: Throughput
    best_step: int  # of the checkpoint that was scored
    trained_steps: int
    best_step_reason: str = ""  # why the newest checkpoint stands in for the best one; else empty
    best_step_lost: int | None = None  # the best step, if its checkpoint could not be read
    weights_note: str = ""  # what makes the scores too high in the first weights; else empty
    # sha256 of predictions.csv and boxes.csv as they were written; None in the results of earlier versions.
    digests: dict[str, str] | None = None
    fused: Fused | None = None  # None without fusion

    def to_json(self) -> dict[str, Any]:
        """The content of results.json, as plain values."""
        content: dict[str, Any] = _to_json(self, self.findings)
        return content

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Results:
        """The inverse of `to_json`. For any other content raises one of the errors that `read_results` catches."""
        results: Results = _from_json(Results, content, tuple(content["findings"]))
        return results


def read_results(path: Path) -> Results:
    """The results in a results.json.

    Raises:
      UserError: the file cannot be read, or holds something else.
    """
    content = files.read_json(path)
    try:
        return Results.from_json(content)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} does not hold the results of a run ({error!r}); write it again with the run's own command and "
            "--mode=eval"
        ) from error


def _to_json(value: Any, findings: Sequence[str]) -> Any:
    match value:
        case Estimate():
            return _estimate_to_json(value)
        case Table():
            return _table_to_json(value, findings)
        case dict():
            return {str(key): _to_json(part, findings) for key, part in value.items()}
        case tuple():
            return [_to_json(part, findings) for part in value]
        case float():
            return _none_if_nan(value)
    if not dataclasses.is_dataclass(value):
        return value
    parts = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    return {
        name: _to_json(part, findings)
        for name, part in parts
        if name not in _OMITTED_IF_EMPTY or part not in ("", None)
    }


def _from_json(kind: Any, content: Any, findings: Sequence[str]) -> Any:
    """The value of this type, say `dict[float, Table]`, from its JSON."""
    if kind is Estimate:
        return _estimate_from_json(content)
    if kind is Table:
        return _table_from_json(content, findings)
    if kind is float:
        return _number(content)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        _typed(dict, content)
        parts = {
            name: _from_json(part_kind, content[name], findings)
            for name, part_kind in _field_types(kind).items()
            if name in content
        }
        return kind(**parts)  # TypeError where a field without a default is absent
    container, part_kinds = get_origin(kind), get_args(kind)
    if container is UnionType:
        return None if content is None else _from_json(part_kinds[0], content, findings)
    if container is tuple:
        return tuple(_from_json(part_kinds[0], part, findings) for part in _typed(list, content))
    if container is dict:
        key_kind, part_kind = part_kinds
        return {
            key_kind(key): _from_json(part_kind, part, findings) for key, part in content.items()
        }
    return _typed(kind, content)


@lru_cache
def _field_types(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _table_to_json(table: Table, findings: Sequence[str]) -> dict[str, Any]:
    leaves = {
        name: _estimate_to_json(estimate)
        for name, estimate in zip(findings, table.findings, strict=True)
    }
    left_out = [name for name, leaf in leaves.items() if leaf["value"] is None]
    return {**leaves, "mean": _estimate_to_json(table.mean, left_out)}


def _table_from_json(leaves: Mapping[str, Any], findings: Sequence[str]) -> Table:
    return Table(
        tuple(_estimate_from_json(leaves[name]) for name in findings),
        _estimate_from_json(leaves["mean"]),
    )


def _estimate_to_json(estimate: Estimate, left_out: Sequence[str] = ()) -> dict[str, Any]:
    """left_out: the findings over which a mean was not taken, because they are undefined."""
    leaf: dict[str, Any] = {
        "value": _none_if_nan(estimate.value),
        "ci95": None if estimate.ci95 is None else list(estimate.ci95),
        **estimate.counts,
    }
    if estimate.reason:
        leaf["reason"] = estimate.reason
    if estimate.ci_reason:
        leaf["ci_reason"] = estimate.ci_reason
    if estimate.left_out:
        leaf["resamples_left_out"] = estimate.left_out
    if left_out:
        leaf["left_out"] = list(left_out)
    if estimate.prevalence is not None:
        leaf["prevalence"] = _none_if_nan(estimate.prevalence)
    return leaf


def _estimate_from_json(leaf: Mapping[str, Any]) -> Estimate:
    ends = _typed(list, leaf["ci95"]) if leaf["ci95"] is not None else None
    return Estimate(
        value=_number(leaf["value"]),
        ci95=None if ends is None else (_number(ends[0]), _number(ends[1])),
        counts={name: _typed(int, n) for name, n in leaf.items() if name in _COUNTS},
        reason=_typed(str, leaf.get("reason", "")),
        ci_reason=_typed(str, leaf.get("ci_reason", "")),
        left_out=_typed(int, leaf.get("resamples_left_out", 0)),
        prevalence=_number(leaf["prevalence"]) if "prevalence" in leaf else None,
    )


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value


def _number(content: Any) -> float:
    """NaN for null. A whole number stays one, so that `to_json` writes it as it was."""
    if content is None:
        return math.nan
    is_whole = type(content) is int and abs(content) < 2**63
    number: float = content if is_whole else _typed(float, content)
    return number


def _typed(kind: type, content: Any) -> Any:
    """The content itself. Raises TypeError if it is of another type."""
    if type(content) is not kind:
        raise TypeError(f"{content!r:.40} is not of type {kind.__name__}")
    return content
