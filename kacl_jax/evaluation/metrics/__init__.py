"""What is measured, each figure with its interval.

Pure numpy and scipy. What cannot be computed is NaN with a reason, never 0. No value depends on the order of rows.

bootstrap    estimates, tables, and intervals over resamples of whole patients
ranking      AUROC and AUPRC
decision     sensitivity, specificity, predictive values at a threshold
calibration  Brier score, expected calibration error, reliability curve
boxes        overlap, localization accuracy, pointing game, false boxes
floors       what scores without an image, and the ceiling of a map's grid
"""

from kacl_jax.evaluation.metrics.bootstrap import MAX_LEFT_OUT, RESAMPLES, Estimate, Table
from kacl_jax.evaluation.metrics.boxes import (
    T_IOBB,
    T_IOU,
    false_box_table,
    inside,
    iobb,
    iou,
    localization_differences,
    localization_tables,
    pointing_table,
)
from kacl_jax.evaluation.metrics.calibration import BINS, Bin, Calibration, calibration
from kacl_jax.evaluation.metrics.decision import DECISIONS, decision_tables
from kacl_jax.evaluation.metrics.floors import (
    grid_ceiling,
    grid_ceiling_iobb,
    prior_box,
    prior_map,
    prior_peak,
    random_map,
)
from kacl_jax.evaluation.metrics.ranking import auroc, auroc_table, one_class, ranking_tables

__all__ = [
    "BINS", "DECISIONS", "MAX_LEFT_OUT", "RESAMPLES", "T_IOBB", "T_IOU", "Bin", "Calibration", "Estimate", "Table",
    "auroc", "auroc_table", "calibration", "decision_tables", "false_box_table", "grid_ceiling", "grid_ceiling_iobb",
    "inside", "iobb", "iou", "localization_differences", "localization_tables", "one_class", "pointing_table",
    "prior_box", "prior_map", "prior_peak", "random_map", "ranking_tables",
]  # fmt: skip
