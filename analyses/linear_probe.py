"""What a set of weights is worth on a data root, before anyone trains: ridge regressions on its frozen features.

    python -m analyses.linear_probe --encoder=efficientnet_lite0 --weights=package --data_root=…
    python -m analyses.linear_probe --encoder=resnet50 --weights=FILE --input=xrv --image_size=224 --data_root=…

The options are the config keys model.encoder, model.pretrained, model.input, data.image_size and data.findings, and
docs/weights.md says what they take. The encoder's mean features of all images are computed once. The regressions are
fitted on four fifths of the patients and score the other fifth, for each of five folds (protocol C). Their penalty is
chosen inside the four fifths. Printed is each finding's AUROC, the mean over the folds. A trained network should do
better.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from kacl_jax import config as config_keys
from kacl_jax.evaluation import metrics
from kacl_jax.fusion import ridge
from kacl_jax.runtime.errors import USER_ERROR, UserError
from kacl_jax.train import network
from kacl_jax.train.experiment import Experiment, build_experiment, read_data


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data_root", required=True)
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--input", default="auto")
    parser.add_argument("--image_size", type=int, default=128)
    parser.add_argument("--findings", default="8")
    flags = parser.parse_args(arguments)
    config = config_keys.default()
    config.protocol = "C"
    # Nothing is trained, so a small root need not fill a batch.
    config.loss.focal_weight, config.train.batch_size = 1.0, jax.device_count()
    config.model.encoder, config.model.pretrained = flags.encoder, flags.weights
    config.model.input = flags.input
    config.data.root, config.data.image_size = flags.data_root, flags.image_size
    config.data.findings = int(flags.findings) if flags.findings.isdigit() else flags.findings
    try:
        _probe(config)
    except UserError as error:
        print(error, file=sys.stderr)
        return USER_ERROR
    return 0


def _probe(config: ConfigDict) -> None:
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        experiment = build_experiment(config, Path(folder))
        features = mean_features(experiment)
        aurocs = [_score_fold(config, fold, Path(folder), features) for fold in range(config.folds)]
    print(
        f"{config.model.encoder}, {config.model.pretrained}, {config.data.image_size} px, "
        f"{features.shape[1]} features of {len(features):,} images, {time.monotonic() - start:.0f} s"
    )
    by_finding = np.nanmean(aurocs, axis=0)
    for finding, auroc in zip(experiment.records.findings, by_finding, strict=True):
        print(f"{finding:20} {auroc:.3f}")
    means = np.nanmean(aurocs, axis=1)
    print(f"{'mean':20} {means.mean():.3f}  (folds: {', '.join(f'{mean:.3f}' for mean in means)})")


def _score_fold(config: ConfigDict, fold: int, workdir: Path, features: np.ndarray) -> list[float]:
    """The AUROC of each finding on the test part of one fold; NaN where there is none."""
    with config.unlocked():
        config.fold = fold
    records, split = read_data(config, workdir)
    fit_ids = np.concatenate([split.train, split.val])
    fitted = ridge.fit(features[fit_ids], records.labels[fit_ids], records.patients[fit_ids])
    scores, labels = fitted.scores(features[split.test]), records.labels[split.test]
    return [
        np.nan if reason else metrics.auroc(scores[:, c], labels[:, c])
        for c, reason in enumerate(fitted.reasons)
    ]


def mean_features(experiment: Experiment) -> np.ndarray:
    """float32 [n k]: the starting encoder's feature map, averaged over its cells; a row for each image of the root."""
    start = network.state_for_start_features(experiment.programs, experiment.config)
    every_image = np.arange(len(experiment.records.names))
    features, images = experiment.inference.embeddings(
        experiment.parallel.replicate(start), every_image
    )
    return features[np.argsort(images)]


if __name__ == "__main__":
    sys.exit(main())
