"""report.html of one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kacl_jax import config as config_keys
from kacl_jax.evaluation import contrastive_summary
from kacl_jax.evaluation.number_format import short
from kacl_jax.evaluation.predictions import read_tested
from kacl_jax.report import figures, gallery, page
from kacl_jax.report.gallery import Shown
from kacl_jax.runtime import files
from kacl_jax.runtime.workdir import read_config


def write_run(workdir: Path, shown: Shown) -> None:
    """Write report.html beside the files that a finished evaluation has left in the workdir.

    Raises:
      UserError: one of those files does not fit, an image cannot be read, or the page cannot be written.
    """
    results, origin = (files.read_json(workdir / name) for name in ("results.json", "run.json"))
    config = read_config(workdir)
    log = files.read_json_lines(workdir / "metrics.jsonl")
    content = {
        "results": results,
        "origin": origin,
        "config": config,
        "changed": _changed(config),
        "reading": figures.reading(results),
        "key_figures": figures.key_figures(results),
        "rows": figures.finding_rows(results),
        "shown_t": [float(t) for t in figures.SHOWN_T],
        "curves": figures.ranking_curves(read_tested(workdir, results["findings"]), results),
        "localization": figures.localization(results),
        "training": figures.training(log, results),
        "contrast": contrastive_summary.last_epoch(log, config),
        "feedback": figures.feedback(log, results),
        "gallery": gallery.gallery(shown),
        "interpretation": gallery.interpretation(shown),
        "notes": notes(results),
    }
    page.write(workdir / "report.html", "run.html", content)


def notes(results: dict[str, Any]) -> list[str]:
    """Why a figure or its interval is not there."""
    judged = {
        "AUROC": results["classification"]["auroc"],
        "AUPRC": results["classification"]["auprc"],
        "AFP": results["localization"]["afp"],
        **{
            f"T(IoU) > {short(float(t), 1)}": results["localization"]["iou"][t]
            for t in figures.SHOWN_T
        },
    }
    absent: dict[tuple[str, str], list[str]] = {}
    for measure, leaves in judged.items():
        for name in (*results["findings"], "mean"):
            for what, key in (("", "reason"), (" without an interval", "ci_reason")):
                if key in leaves[name]:
                    absent.setdefault((measure, f"{what}: {leaves[name][key]}"), []).append(name)
    return [f"{measure} of {', '.join(names)}{why}" for (measure, why), names in absent.items()]


def _changed(config: dict[str, Any]) -> dict[str, Any]:
    """The keys that differ from the defaults."""
    defaults = config_keys.flatten(config_keys.default())
    return {key: value for key, value in config.items() if defaults.get(key) != value}
