"""What could the loop teach? What the radiomic features of a run's own regions say about the labels, beside the image.

    python -m analyses.radiomic_probe RUN [RUN …]

RUN: workdirs of finished runs, one per fold, with one config. For every image the map of the finding with the highest
probability marks a region (no label is looked at), and a random rectangle and the whole image are measured beside it.
Logistic regressions on the training and validation part are scored on the test part: on the radiomic features alone,
on the frozen ImageNet encoder's mean features alone, and on both. If the features of a Grad-CAM region told more than
those of a rectangle anywhere, or anything that the image's own features do not, the contrastive loss would have
something to carry over.

AUROC is the mean over findings and folds, with an interval over resampled patients; differences are paired. Images of
which any region could not be measured are left out of every row, and counted.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import defaultdict
from pathlib import Path
from typing import get_args

import numpy as np

from analyses import finished_run
from analyses.linear_probe import mean_features, probabilities
from kacl_jax.data.batches import eval_batches
from kacl_jax.evaluation import metrics
from kacl_jax.evaluation.metrics import RESAMPLES
from kacl_jax.evaluation.metrics.bootstrap import clusters
from kacl_jax.evaluation.metrics.ranking import Ranked
from kacl_jax.radiomics import extract
from kacl_jax.report.features import log_compress
from kacl_jax.step import roi
from kacl_jax.sweep.measure import patient_weights
from kacl_jax.train.experiment import Experiment

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # of which validation patients choose one for each row
IMAGE = "image (ImageNet features)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    areas: dict[str, list[np.ndarray]] = defaultdict(list)
    for workdir in parser.parse_args().runs:
        for row, found in _fold(finished_run.experiment(workdir)).items():
            areas[row].append(found)
    print("\n| features | mean AUROC [95 %] | less the row it is paired with |\n|---|---|---|")
    mean = {row: np.mean(folds, axis=0) for row, folds in areas.items()}
    for row, found in mean.items():
        base = IMAGE if row.startswith("image +") else "radiomics: random"
        difference = "" if row in (base, IMAGE) else f"{_told(found - mean[base], '+')} ({base})"
        print(f"| {row} | {_told(found)} | {difference} |")


def _fold(experiment: Experiment) -> dict[str, np.ndarray]:
    """By row: AUROC, mean over findings, of the test part and of its resamples [1+B]."""
    records, split = experiment.records, experiment.split
    radiomics = _radiomics(experiment)
    whole = np.all([np.isfinite(found).all(1) for found in radiomics.values()], axis=0)
    image = mean_features(experiment)
    rows = {f"radiomics: {source}": found for source, found in radiomics.items()}
    rows |= {IMAGE: image}
    rows |= {f"image + {name}": np.hstack([image, found]) for name, found in radiomics.items()}
    parts = [ids[whole[ids]] for ids in (split.train, split.val, split.test)]
    print(f"{split.name} ({split.hash}): {(~whole).sum()} of {len(whole)} images left out")
    cluster, n_clusters = clusters(records.patients[parts[2]])
    weights = patient_weights(experiment.config.fold, n_clusters, RESAMPLES)
    return {
        row: _areas(
            _scores(features, records.labels, *parts), records.labels[parts[2]], cluster, weights
        )
        for row, features in rows.items()
    }


def _radiomics(experiment: Experiment) -> dict[str, np.ndarray]:
    """By source of the region: float64 [n f], log1p where training takes it; NaN as pyradiomics gives it."""
    config, records = experiment.config, experiment.records
    ids = np.arange(len(records.names))
    state = finished_run.best_state(experiment)
    center = None
    if config.cam.center == "mean":
        center = experiment.inference.mean_map(state, experiment.split.train)
    outputs = experiment.inference.outputs(state, ids, center=center)
    order = outputs.rows(ids)
    finding = outputs.logits[order].argmax(1)
    cams = outputs.class_maps()[order][ids, finding]
    batches = eval_batches(records, ids, image_size=config.data.image_size, batch_size=64)
    images = np.concatenate([batch["image"][batch["valid"], ..., 0] for batch in batches])
    found = {}
    for source in get_args(roi.Source):
        rule = dataclasses.replace(experiment.region_rule, source=source, truth_boxes=False)
        nowhere = np.full(len(ids), -1)
        masks, _ = rule.mark(cams, nowhere, np.zeros((len(ids), 1, 4)), ids, step=0)
        measured = extract(images, masks, bin_width=config.radiomics.bin_width)
        found[source] = log_compress(measured.features.astype(np.float64))
    return found


def _scores(
    features: np.ndarray, labels: np.ndarray, train: np.ndarray, val: np.ndarray, test: np.ndarray
) -> np.ndarray:
    """Probabilities of the test images, [m c], by the strength that ranks validation best."""

    def ranked(strength: float) -> float:
        scores = probabilities(features, labels, train, val, strength)
        return float(
            np.nanmean([metrics.auroc(s, y) for s, y in zip(scores.T, labels[val].T, strict=True)])
        )

    fit = np.concatenate([train, val])
    return probabilities(features, labels, fit, test, max(STRENGTHS, key=ranked))


def _areas(
    scores: np.ndarray, labels: np.ndarray, cluster: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """AUROC, mean over the findings that have both classes, by column of weights [patients k]."""
    found = [
        Ranked(scores[:, c], labels[:, c], cluster, len(weights)).areas(weights, precision=False)
        for c in range(labels.shape[1])
        if 0 < labels[:, c].sum() < len(labels)
    ]
    return np.mean(found, axis=0)[:, 0]


def _told(found: np.ndarray, sign: str = "") -> str:
    low, high = np.nanpercentile(found[1:], [2.5, 97.5])
    return f"{found[0]:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


if __name__ == "__main__":
    main()
