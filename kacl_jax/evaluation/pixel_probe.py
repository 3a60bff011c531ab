"""A logistic regression on 16×16 pixels: the floor for AUROC.

If this probe scores well on a data set, then position, exposure or body size predict the finding, and a network's
AUROC there says little.
"""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from kacl_jax.data.batches import OnError, eval_batches
from kacl_jax.data.records import Records
from kacl_jax.data.splits import Split
from kacl_jax.evaluation import metrics

SIZE = 16


def score_pixel_probe(
    records: Records, split: Split, *, on_error: OnError, threads: int, resamples: int
) -> metrics.Table:
    """AUROC on the test part of a logistic regression per finding, fitted to the training part's pixels.

    A finding that no or every training image has gets constant scores (AUROC 0.5).
    """
    train_ids, train_pixels = _read_pixels(records, split.train, on_error, threads)
    test_ids, test_pixels = _read_pixels(records, split.test, on_error, threads)
    scores = np.zeros((len(test_ids), len(records.findings)))
    for finding in range(len(records.findings)):
        labels = records.labels[train_ids, finding]
        known = labels >= 0
        if len(np.unique(labels[known])) == 2:
            probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
            probe.fit(train_pixels[known], labels[known])
            scores[:, finding] = probe.predict_proba(test_pixels)[:, 1]
    return metrics.auroc_table(
        scores, records.labels[test_ids], records.patients[test_ids], resamples=resamples
    )


def _read_pixels(
    records: Records, ids: np.ndarray, on_error: OnError, threads: int
) -> tuple[np.ndarray, np.ndarray]:
    """(image ids [m], grey levels float64 [m 256]) of the images that can be read."""
    image_ids, pixels = [], []
    for batch in eval_batches(
        records, ids, image_size=SIZE, batch_size=256, on_error=on_error, threads=threads
    ):
        image_ids.append(batch["image_id"][batch["valid"]])
        pixels.append(batch["image"][batch["valid"]].reshape(-1, SIZE * SIZE).astype(np.float64))
    return np.concatenate(image_ids), np.concatenate(pixels)
