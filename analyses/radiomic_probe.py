"""What could the feedback loop teach? What radiomic features of a run's regions say about the labels, beside the image.

    python -m analyses.radiomic_probe RUN [RUN …]

RUN: workdirs of finished runs, one per fold, with one config. For every image the map of the finding with the highest
probability marks a region (no label is looked at), and a random rectangle and the whole image are measured beside it.
Logistic regressions on the training and validation part are scored on the test part: on the radiomic features alone,
on the frozen ImageNet encoder's mean features alone, and on both. The contrastive loss has something to teach if the
features of a Grad-CAM region say more than those of a random rectangle, or something that the image's own features do
not say.

AUROC is the mean over findings and folds, with an interval over resampled patients; differences are paired. Images with
a region that could not be measured are left out of every row; their number is printed.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import defaultdict
from pathlib import Path
from typing import get_args

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from analyses import finished_run
from analyses.linear_probe import mean_features
from kacl_jax.data.batches import eval_batches
from kacl_jax.evaluation import metrics
from kacl_jax.evaluation.metrics import RESAMPLES
from kacl_jax.evaluation.metrics.bootstrap import index_patients
from kacl_jax.evaluation.metrics.ranking import Ranking
from kacl_jax.radiomics import extract
from kacl_jax.report.features import log_compress
from kacl_jax.step import regions
from kacl_jax.sweep.measure import patient_weights
from kacl_jax.train.experiment import Experiment

# Of regularisation; each row of the table uses the one that is best on validation patients.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)
IMAGE = "image (ImageNet features)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    aurocs_of_row: dict[str, list[np.ndarray]] = defaultdict(list)
    for workdir in parser.parse_args().runs:
        for row, aurocs in _fold_aurocs(finished_run.restore_experiment(workdir)).items():
            aurocs_of_row[row].append(aurocs)
    print("\n| features | mean AUROC [95 %] | less the row it is paired with |\n|---|---|---|")
    mean = {row: np.mean(folds, axis=0) for row, folds in aurocs_of_row.items()}
    for row, aurocs in mean.items():
        base = IMAGE if row.startswith("image +") else "radiomics: random"
        difference = (
            "" if row in (base, IMAGE) else f"{_format_auroc(aurocs - mean[base], '+')} ({base})"
        )
        print(f"| {row} | {_format_auroc(aurocs)} | {difference} |")


def _fold_aurocs(experiment: Experiment) -> dict[str, np.ndarray]:
    """For each row of the table: AUROC, mean over findings, of the test part and of its resamples [1+B]."""
    records, split = experiment.records, experiment.split
    radiomics = _features_of_source(experiment)
    is_complete = np.all([np.isfinite(features).all(1) for features in radiomics.values()], axis=0)
    image = mean_features(experiment)
    rows = {f"radiomics: {source}": features for source, features in radiomics.items()}
    rows |= {IMAGE: image}
    rows |= {
        f"image + {source}": np.hstack([image, features]) for source, features in radiomics.items()
    }
    parts = [ids[is_complete[ids]] for ids in (split.train, split.val, split.test)]
    print(
        f"{split.name} ({split.hash}): {(~is_complete).sum()} of {len(is_complete)} images left out"
    )
    cluster, n_clusters = index_patients(records.patients[parts[2]])
    weights = patient_weights(experiment.config.fold, n_clusters, RESAMPLES)
    return {
        row: _mean_aurocs(
            _test_scores(features, records.labels, *parts),
            records.labels[parts[2]],
            cluster,
            weights,
        )
        for row, features in rows.items()
    }


def _features_of_source(experiment: Experiment) -> dict[str, np.ndarray]:
    """For each source of regions: float64 [n f], with log1p on the columns where training takes it; NaN stays NaN."""
    config, records = experiment.config, experiment.records
    ids = np.arange(len(records.names))
    state = finished_run.best_state(experiment)
    center = None
    if config.cam.center == "mean":
        center = experiment.inference.survey(state, experiment.split.train).mean_map
    outputs = experiment.inference.outputs(state, ids, center=center)
    order = outputs.rows(ids)
    finding = outputs.logits[order].argmax(1)
    cams = outputs.class_maps()[order][ids, finding]
    batches = eval_batches(records, ids, image_size=config.data.image_size, batch_size=64)
    images = np.concatenate([batch["image"][batch["valid"], ..., 0] for batch in batches])
    features_of_source = {}
    for source in get_args(regions.Source):
        rule = dataclasses.replace(experiment.region_rule, source=source, truth_boxes=False)
        no_box = np.full(len(ids), -1)
        masks, _ = rule.mark(cams, no_box, np.zeros((len(ids), 1, 4)), ids, step=0)
        extracted = extract(images, masks, bin_width=config.radiomics.bin_width)
        features_of_source[source] = log_compress(extracted.features.astype(np.float64))
    return features_of_source


def _test_scores(
    features: np.ndarray, labels: np.ndarray, train: np.ndarray, val: np.ndarray, test: np.ndarray
) -> np.ndarray:
    """Probabilities of the test images, [m c], with the strength that has the best AUROC on the validation part."""

    def val_auroc(strength: float) -> float:
        scores = predict_probabilities(features, labels, train, val, strength)
        return float(
            np.nanmean([metrics.auroc(s, y) for s, y in zip(scores.T, labels[val].T, strict=True)])
        )

    fit = np.concatenate([train, val])
    return predict_probabilities(features, labels, fit, test, max(STRENGTHS, key=val_auroc))


def _mean_aurocs(
    scores: np.ndarray, labels: np.ndarray, cluster: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """AUROC for each column of weights [patients k], mean over the findings that have both classes."""
    aurocs = [
        Ranking(scores[:, c], labels[:, c], cluster, len(weights)).areas(weights, precision=False)
        for c in range(labels.shape[1])
        if 0 < labels[:, c].sum() < len(labels)
    ]
    return np.mean(aurocs, axis=0)[:, 0]


def _format_auroc(aurocs: np.ndarray, sign: str = "") -> str:
    low, high = np.nanpercentile(aurocs[1:], [2.5, 97.5])
    return f"{aurocs[0]:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def predict_probabilities(
    features: np.ndarray,
    labels: np.ndarray,
    fit_ids: np.ndarray,
    test_ids: np.ndarray,
    strength: float,
) -> np.ndarray:
    """Probabilities of the images `test_ids`, [m c], from one regression per finding on the images `fit_ids`.

    features [n k], labels [n c].
    """
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, C=strength))
    return np.stack(
        [
            probe.fit(features[fit_ids], finding[fit_ids]).predict_proba(features[test_ids])[:, 1]
            for finding in labels.T
        ],
        axis=1,
    )


if __name__ == "__main__":
    main()
