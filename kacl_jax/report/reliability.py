"""How far probabilities can be taken at their word, before and after Platt scaling: the page's section on it."""

from __future__ import annotations

from typing import Any

from kacl_jax.evaluation.number_format import short
from kacl_jax.evaluation.results import CalibrationByFinding, Results
from kacl_jax.report import charts
from kacl_jax.report.charts import Axis, Line

_AXIS = Axis(0, 1, (0, 0.5, 1))


def reliability_section(results: Results) -> list[dict[str, Any]]:
    """One entry for each finding and for the mean: Brier score and ECE before and after, and the reliability curves.

    Empty for a run of a version that had no Platt scaling. The mean has no curve.
    """
    before, after = results.classification.calibration, results.classification.calibrated
    if after is None:
        return []
    sections = []
    for row, name in enumerate((*results.findings, "mean")):
        values = {
            f"{kind}_{when}": getattr(calibration, kind).rows[row]
            for when, calibration in (("before", before), ("after", after))
            for kind in ("brier", "ece")
        }
        chart = None if name == "mean" else _chart(name, before, after)
        sections.append({"name": name, "chart": chart, **values})
    return sections


def _chart(name: str, before: CalibrationByFinding, after: CalibrationByFinding) -> Any:
    lines = [
        Line(
            [(point.predicted, point.observed) for point in by.reliability[name]], style, dots=True
        )
        for by, style in ((before, "prior-map"), (after, "run"))
    ]
    ece = short(after.ece.findings[list(after.reliability).index(name)].value)
    return charts.line_chart(
        lines,
        Axis(0, 1, (0, 0.5, 1), "probability"),
        _AXIS,
        alt=f"Calibration of {name}: share with the label against the probability, ECE {ece}",
        size=(320, 240),
        rules=[((0, 0), (1, 1))],
    )
