"""The metrics of an evaluation, each value with its confidence interval.

Pure numpy and scipy. A value that cannot be computed is NaN with a reason, never 0. No value depends on the order of
rows.

bootstrap    estimates, tables, and intervals over resamples of whole patients
ranking      AUROC and AUPRC
decision     sensitivity, specificity, predictive values at a threshold
calibration  Brier score, expected calibration error, reliability curve
boxes        overlap, localization accuracy, pointing game, false boxes
floors       boxes and maps made without an image, and the best overlap that a map's grid allows
"""

from kacl_jax.evaluation.metrics.bootstrap import MAX_UNDEFINED_SHARE, RESAMPLES, Estimate, Table
from kacl_jax.evaluation.metrics.boxes import (
    IOBB_THRESHOLDS,
    IOU_THRESHOLDS,
    NO_TRUTH_BOX,
    TruthBoxes,
    false_box_table,
    iobb,
    iou,
    localization_differences,
    localization_tables,
    point_in_box,
    pointing_table,
)
from kacl_jax.evaluation.metrics.calibration import N_BINS, Bin, Calibration, measure_calibration
from kacl_jax.evaluation.metrics.decision import DECISION_METRICS, decision_tables
from kacl_jax.evaluation.metrics.floors import (
    grid_ceiling,
    grid_ceiling_iobb,
    prior_box,
    prior_map,
    prior_peak,
    random_map,
)
from kacl_jax.evaluation.metrics.ranking import (
    auroc,
    auroc_table,
    missing_class_reason,
    ranking_differences,
    ranking_tables,
)

__all__ = [
    "DECISION_METRICS", "IOBB_THRESHOLDS", "IOU_THRESHOLDS", "MAX_UNDEFINED_SHARE", "NO_TRUTH_BOX", "N_BINS",
    "RESAMPLES", "Bin", "Calibration", "Estimate", "Table", "TruthBoxes", "auroc", "auroc_table", "decision_tables",
    "false_box_table", "grid_ceiling", "grid_ceiling_iobb", "iobb", "iou", "localization_differences",
    "localization_tables", "measure_calibration", "missing_class_reason", "point_in_box", "pointing_table",
    "prior_box", "prior_map", "prior_peak", "random_map", "ranking_differences", "ranking_tables",
]  # fmt: skip
