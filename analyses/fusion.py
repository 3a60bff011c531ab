"""What ridge regressions on radiomics, on the image, and on both add to the scores of finished runs of a sweep.

    python -m analyses.fusion ARM [ARM …] --data_root=… --workdir=…

ARM: folders of a sweep, with one folder per fold and seed, as docs/evidence has them. --workdir keeps the memo of the
radiomics, which take 5 minutes per 1,000 images on one core.

The regressions are fitted on the training part of each fold. Where predictions.csv has the validation part, that part
gives z-scores and weight. Where it has the test part alone, as in docs/evidence, the test part's scores without their
labels give the z-scores, and the weight is 1. Printed is the mean AUROC of each arm and what is added to it, with
intervals by `kacl_jax.sweep.uncertainty`.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from scipy.special import logit

from kacl_jax import config as config_keys
from kacl_jax.config.stored import read_config
from kacl_jax.data.records import Records
from kacl_jax.data.splits import Split
from kacl_jax.evaluation.metrics import RESAMPLES
from kacl_jax.evaluation.metrics.bootstrap import index_patients
from kacl_jax.evaluation.metrics.ranking import Ranking
from kacl_jax.fusion import ridge, scores
from kacl_jax.fusion.ridge import Ridge
from kacl_jax.runtime.errors import UserError
from kacl_jax.sweep.measure import patient_weights
from kacl_jax.sweep.uncertainty import estimate
from kacl_jax.train import fusion_features
from kacl_jax.train.experiment import build_experiment, read_data

OWN = "network"
COLUMNS = (OWN, *scores.SOURCES)
DIFFERENCES = (("radiomics", OWN), ("image", OWN), ("both", OWN), ("both", "image"))
_FEATURE_KEYS = ("model.encoder", "model.pretrained", "data.image_size", "data.findings")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arms", nargs="+", type=Path)
    parser.add_argument("--data_root", required=True)
    parser.add_argument("--workdir", required=True, type=Path)
    flags = parser.parse_args()
    runs = {arm: sorted(arm.glob("fold*-seed*")) for arm in flags.arms}
    configs = {run: _config(run, flags.data_root) for arm in runs.values() for run in arm}
    _refuse_other_features(configs)
    flags.workdir.mkdir(parents=True, exist_ok=True)
    experiment = build_experiment(next(iter(configs.values())), flags.workdir)
    columns = fusion_features.collect_of_run(experiment).columns
    folds: dict[int, tuple[Split, dict[str, Ridge]]] = {}
    for config in configs.values():
        if config.fold not in folds:
            folds[config.fold] = _fit(config, flags.workdir, columns)
    print(f"| arm | runs | weight | {' | '.join(COLUMNS)} |", end=" ")
    print(" | ".join(f"{a} − {b}" for a, b in DIFFERENCES), "|")
    print("|" + "---|" * (3 + len(COLUMNS) + len(DIFFERENCES)))
    for arm, workdirs in runs.items():
        _print_arm(arm.name, workdirs, configs, experiment.records, columns, folds)


def _config(run: Path, data_root: str) -> ConfigDict:
    config = config_keys.default()
    stored = read_config(run) | {"data.root": data_root, "fusion.kind": "both"}
    config.update_from_flattened_dict(
        {key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()}
    )
    return config


def _refuse_other_features(configs: Mapping[Path, ConfigDict]) -> None:
    for key in _FEATURE_KEYS:
        values = {config_keys.flatten(config)[key] for config in configs.values()}
        if len(values) > 1:
            raise UserError(f"{key} differs between the runs ({values}); give arms with one value")


def _fit(
    config: ConfigDict, workdir: Path, columns: Mapping[str, np.ndarray]
) -> tuple[Split, dict[str, Ridge]]:
    """The split of a fold, and the regressions on its training part."""
    records, split = read_data(config, workdir)
    images = split.train
    return split, {
        source: ridge.fit(values[images], records.labels[images], records.patients[images])
        for source, values in columns.items()
    }


def _print_arm(
    name: str,
    workdirs: list[Path],
    configs: Mapping[Path, ConfigDict],
    records: Records,
    columns: Mapping[str, np.ndarray],
    folds: Mapping[int, tuple[Split, dict[str, Ridge]]],
) -> None:
    by_fold: dict[int, list[dict[str, np.ndarray]]] = defaultdict(list)
    weights = set()
    for run in workdirs:
        fold = configs[run].fold
        split, ridges = folds[fold]
        aurocs, weight = _run_aurocs(run, fold, records, split, ridges, columns)
        by_fold[fold].append(aurocs)
        weights.add(weight)
    seeds = min(map(len, by_fold.values()))
    table = {
        column: np.array([[run[column] for run in runs[:seeds]] for runs in by_fold.values()])
        for column in COLUMNS
    }
    cells = [f"{table[column][..., 0].mean():.3f}" for column in COLUMNS]
    for one, other in DIFFERENCES:
        difference = table[one] - table[other]
        found = estimate(difference[..., 0], difference[..., 1:], None)
        low, high = found.ci95 or (np.nan, np.nan)
        cells.append(f"{found.value:+.3f} [{low:+.3f}, {high:+.3f}]")
    chosen = ", ".join(f"{weight:g}" for weight in sorted(weights))
    print(f"| {name} | {len(by_fold) * seeds} | {chosen} | {' | '.join(cells)} |", flush=True)


def _run_aurocs(
    run: Path,
    fold: int,
    records: Records,
    split: Split,
    ridges: Mapping[str, Ridge],
    columns: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], float]:
    """Mean AUROC of the test part and of its resamples [1+B] of every column; the weight of both regressions."""
    logits = _read_logits(run, records)
    test = np.sort(split.test)
    reference = np.sort(split.val) if np.isfinite(logits[split.val]).all() else test
    cluster, n_patients = index_patients(records.patients[test])
    draws = patient_weights(fold, n_patients, RESAMPLES)
    fused = {OWN: logits[test]}
    weight = 1.0
    for kind, sources in scores.SOURCES.items():
        fusion = scores.build(
            {source: ridges[source] for source in sources},
            reference={source: columns[source][reference] for source in sources},
            reference_logits=logits[reference],
            val_labels=None if reference is test else records.labels[reference],
        )
        fused[kind] = fusion.fuse(logits[test], {s: columns[s][test] for s in sources})
        weight = fusion.weight
    labels = records.labels[test]
    return {
        kind: np.mean(
            [
                Ranking(values[:, c], labels[:, c], cluster, n_patients).areas(
                    draws, precision=False
                )[:, 0]
                for c in range(labels.shape[1])
                if 0 < (labels[:, c] == 1).sum() < len(labels)
            ],
            axis=0,
        )
        for kind, values in fused.items()
    }, weight


def _read_logits(run: Path, records: Records) -> np.ndarray:
    """float64 [n c] of the images in the run's predictions.csv; NaN for the others."""
    row_of = {name: row for row, name in enumerate(records.names.tolist())}
    logits = np.full(records.labels.shape, np.nan)
    with (run / "predictions.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            values = [float(row[f"prob_{finding}"]) for finding in records.findings]
            logits[row_of[row["image"]]] = logit(np.array(values))
    return logits


if __name__ == "__main__":
    main()
