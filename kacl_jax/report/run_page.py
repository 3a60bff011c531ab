"""report.html of one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kacl_jax import config as config_keys
from kacl_jax.config.stored import read_config
from kacl_jax.evaluation import contrastive_summary
from kacl_jax.evaluation.number_format import short
from kacl_jax.evaluation.predictions import read_predictions
from kacl_jax.evaluation.results import Results
from kacl_jax.report import figures, fusion, gallery, page, reliability
from kacl_jax.report.gallery import ReportInputs
from kacl_jax.runtime import files


def write_run(workdir: Path, results: Results, inputs: ReportInputs) -> None:
    """Write report.html beside the files that a finished evaluation, with these results, has left in the workdir.

    Raises:
      UserError: one of those files does not fit, an image cannot be read, or the page cannot be written.
    """
    config = read_config(workdir)
    log = files.read_json_lines(workdir / "metrics.jsonl")
    content = {
        "results": results,
        "origin": files.read_json(workdir / "run.json"),
        "config": config,
        "non_default": _non_default_keys(config),
        "comparison_sentences": figures.comparison_sentences(results),
        "key_values": figures.key_values(results),
        "rows": figures.finding_rows(results),
        "t_values": figures.TABLE_THRESHOLDS,
        "curves": figures.ranking_curves(
            read_predictions(workdir, results.findings), results.classification
        ),
        "reliability": reliability.reliability_section(results),
        "fusion": fusion.fusion_section(results),
        "localization": figures.localization_section(results),
        "training_charts": figures.training_charts(log, results.best_step),
        "contrast": contrastive_summary.summarise_last_epoch(log, config),
        "feedback": figures.feedback_section(log, results.feedback),
        "gallery": gallery.gallery_sections(inputs),
        "interpretation": gallery.interpretation_section(inputs),
        "notes": missing_value_notes(results),
    }
    page.write(workdir / "report.html", "run.html", content)


def missing_value_notes(results: Results) -> list[str]:
    """Why a value or its interval is missing, in sentences."""
    iou = results.localization.iou
    table_of_metric = {
        "AUROC": results.classification.auroc,
        "AUPRC": results.classification.auprc,
        "AFP": results.localization.afp,
        **{f"IoU above {short(t, 1)}": iou[t] for t in figures.TABLE_THRESHOLDS},
    }
    findings_of_note: dict[tuple[str, str], list[str]] = {}
    for metric, table in table_of_metric.items():
        for name, estimate in zip((*results.findings, "mean"), table.rows, strict=True):
            for what, why in (
                ("", estimate.reason),
                (" without an interval", estimate.ci_reason),
            ):
                if why:
                    findings_of_note.setdefault((metric, f"{what}: {why}"), []).append(name)
    return [
        f"{metric} of {', '.join(names)}{reason}"
        for (metric, reason), names in findings_of_note.items()
    ]


def _non_default_keys(config: dict[str, Any]) -> dict[str, Any]:
    """The keys that differ from the defaults."""
    defaults = config_keys.flatten(config_keys.default())
    return {key: value for key, value in config.items() if defaults.get(key) != value}
