"""What is there to learn without seeing anything: a logistic probe on 16×16 pixels, the floor for AUROC.

A data set on which the probe does well (position, exposure, body size give the finding away) says little about a
network.
"""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from kacl_jax.data.batches import OnError, eval_batches
from kacl_jax.data.nih import Records
from kacl_jax.data.splits import Split
from kacl_jax.evaluation import metrics

SIZE = 16


def pixel_probe(
    records: Records, split: Split, *, on_error: OnError, threads: int, resamples: int
) -> metrics.Table:
    """AUROC on the test part of a logistic regression per finding, fitted to the training part's pixels.

    A finding that the training part has not, or has everywhere, is scored as if the probe said nothing (AUROC .5).
    """
    fit_ids, fit_pixels = _pixels(records, split.train, on_error, threads)
    ids, pixels = _pixels(records, split.test, on_error, threads)
    scores = np.zeros((len(ids), len(records.findings)))
    for finding in range(len(records.findings)):
        labels = records.labels[fit_ids, finding]
        if labels.min() < labels.max():
            probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
            scores[:, finding] = probe.fit(fit_pixels, labels).predict_proba(pixels)[:, 1]
    return metrics.auroc_table(
        scores, records.labels[ids], records.patients[ids], resamples=resamples
    )


def _pixels(
    records: Records, ids: np.ndarray, on_error: OnError, threads: int
) -> tuple[np.ndarray, np.ndarray]:
    """(image ids [m], grey levels float64 [m 256]) of the images that can be read."""
    seen, pixels = [], []
    for batch in eval_batches(
        records, ids, image_size=SIZE, batch_size=256, on_error=on_error, threads=threads
    ):
        seen.append(batch["image_id"][batch["valid"]])
        pixels.append(batch["image"][batch["valid"]].reshape(-1, SIZE * SIZE).astype(np.float64))
    return np.concatenate(seen), np.concatenate(pixels)
