"""What frozen ImageNet features say about the labels: a logistic regression on the encoder's mean features.

    python -m analyses.linear_probe --config=configs/nih.py:pooled --config.data.root=… [any other key]

Prints the mean AUROC on the test part of the config's fold, for a few strengths of regularisation. Only the regression
is trained, on the training and validation part. A trained network should do better than this.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app
from ml_collections import config_flags
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from kacl_jax.data.batches import eval_batches
from kacl_jax.evaluation import metrics
from kacl_jax.train.experiment import Experiment, build_experiment

CONFIG = config_flags.DEFINE_config_file("config", None)


def main(_: Any) -> None:
    experiment = build_experiment(CONFIG.value, Path(tempfile.mkdtemp()))
    features = mean_features(experiment)
    records, split = experiment.records, experiment.split
    fit_ids = np.concatenate([split.train, split.val])
    print(
        f"{split.name} ({split.hash}), {CONFIG.value.model.encoder}, {CONFIG.value.data.image_size} px"
    )
    for strength in (1e-4, 1e-3, 1e-2):
        scores = predict_probabilities(features, records.labels, fit_ids, split.test, strength)
        table = metrics.auroc_table(
            scores, records.labels[split.test], records.patients[split.test]
        )
        print(f"C = {strength:g}: mean AUROC {table.mean.value:.3f} {table.mean.ci95}")


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


def mean_features(experiment: Experiment) -> np.ndarray:
    """float32 [n k]: the pretrained encoder's feature map, averaged over its cells."""
    state, _ = experiment.initial_state()
    model = experiment.programs.model
    variables = {"params": state.params, "batch_stats": state.batch_stats}

    @jax.jit
    def embed(images: jax.Array) -> jax.Array:
        pixels = experiment.programs.input_scale.apply(images[..., 0].astype(jnp.float32))
        return model.apply(variables, pixels, train=False, method="feature_map").mean((1, 2))

    ids = np.arange(len(experiment.records.names))
    batches = eval_batches(
        experiment.records, ids, image_size=experiment.config.data.image_size, batch_size=64
    )
    return np.concatenate([np.asarray(embed(batch["image"]))[batch["valid"]] for batch in batches])


if __name__ == "__main__":
    app.run(main)
