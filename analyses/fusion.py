"""What ridge regressions on radiomics, on the image, and on both add to the scores of finished runs of a sweep.

    python -m analyses.fusion ARM [ARM …] --data_root=… --workdir=… [--csv=FILE] [--second_image_size=256]

ARM: folders of a sweep, with one folder per fold and seed, as docs/evidence has them. --workdir keeps the memo of the
radiomics, which take 3 minutes per 1,000 images on one core. --csv takes all digits of the table.

The regressions are fitted on the training part of each fold, once for all runs of the fold. Each run's split is made
again with the run's own keys, and must have the run's hash. Where predictions.csv has the validation part, that part
gives z-scores and weight. Where it has the test part alone, as in docs/evidence, the test part's scores without their
labels give the z-scores, and the weight is 1. Printed is the mean AUROC of each arm and what is added to it, with
intervals by `kacl_jax.sweep.uncertainty`: an arm with one seed borrows the runs' part from those with three or more.

With --second_image_size the starting encoder also sees the images in that size. This second image model knows no
radiomics. So it shows how much of what radiomics add any further model would add.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from kacl_jax.evaluation.number_format import interval, short, signed
from kacl_jax.evaluation.results import read_results
from kacl_jax.fusion import ridge, scores
from kacl_jax.fusion.ridge import Ridge
from kacl_jax.runtime.errors import UserError
from kacl_jax.sweep.compare import MIN_SEEDS_TO_LEND, complete_folds_and_seeds
from kacl_jax.sweep.measure import patient_weights
from kacl_jax.sweep.uncertainty import RunVariance, estimate, pool, run_variance
from kacl_jax.train import fusion_features
from kacl_jax.train.experiment import build_experiment, read_data

OWN, SECOND_IMAGE = "network", "second image"
_FEATURE_KEYS = ("model.encoder", "model.pretrained", "data.image_size", "data.findings")


@dataclass(frozen=True)
class Question:
    """kinds: by column, the regressions that are added to the network. differences: of two columns."""

    kinds: Mapping[str, tuple[str, ...]]
    differences: Sequence[tuple[str, str]]


WHAT_FUSION_ADDS = Question(
    scores.SOURCES, (("radiomics", OWN), ("image", OWN), ("both", OWN), ("both", "image"))
)
WHAT_A_SECOND_IMAGE_MODEL_ADDS = Question(
    {
        "image": (scores.IMAGE,),
        "both": (scores.RADIOMICS, scores.IMAGE),
        "two images": (scores.IMAGE, SECOND_IMAGE),
        "all": (scores.RADIOMICS, scores.IMAGE, SECOND_IMAGE),
    },
    (("two images", "image"), ("both", "image"), ("both", "two images"), ("all", "two images")),
)


@dataclass(frozen=True, eq=False)
class Arm:
    """aurocs: by column, [folds seeds 1+B]; the first is of the test part itself, the others are of its resamples."""

    name: str
    weights: set[float]
    aurocs: Mapping[str, np.ndarray]

    def difference(self, one: str, other: str) -> tuple[np.ndarray, np.ndarray]:
        """Values [folds seeds] and their resamples [folds seeds B]."""
        difference = self.aurocs[one] - self.aurocs[other]
        return difference[..., 0], difference[..., 1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arms", nargs="+", type=Path)
    parser.add_argument("--data_root", required=True)
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--second_image_size", type=int)
    flags = parser.parse_args()
    runs = {arm: sorted(arm.glob("fold*-seed*")) for arm in flags.arms}
    configs = {run: _config(run, flags.data_root) for arm in runs.values() for run in arm}
    _refuse_other_features(configs)
    flags.workdir.mkdir(parents=True, exist_ok=True)
    splits = {run: _split(run, config, flags.workdir) for run, config in configs.items()}
    experiment = build_experiment(next(iter(configs.values())), flags.workdir)
    columns = fusion_features.collect_of_run(experiment).columns
    question = WHAT_FUSION_ADDS
    if flags.second_image_size:
        question = WHAT_A_SECOND_IMAGE_MODEL_ADDS
        columns[SECOND_IMAGE] = _image_features(flags, next(iter(configs)))
    records = experiment.records
    ridges: dict[bytes, dict[str, Ridge]] = {}
    for split in splits.values():
        if split.train.tobytes() not in ridges:
            ridges[split.train.tobytes()] = _fit(split.train, records, columns)
    arms = []
    for arm, workdirs in runs.items():
        measured, weights = {}, set()
        for run in workdirs:
            config, split = configs[run], splits[run]
            of_fold = ridges[split.train.tobytes()]
            aurocs, weight = _run_aurocs(
                run, config.fold, records, split, of_fold, columns, question.kinds
            )
            measured[config.fold, config.seed] = aurocs
            weights.add(weight)
        folds, seeds = complete_folds_and_seeds(measured)
        table = {
            column: np.array([[measured[f, s][column] for s in seeds] for f in folds])
            for column in (OWN, *question.kinds)
        }
        arms.append(Arm(arm.name, weights, table))
    rows = list(_rows(arms, question))
    for cells in _shown(rows, question):
        print("| " + " | ".join(cells) + " |")
    if flags.csv:
        with flags.csv.open("w", newline="", encoding="utf-8") as file:
            lines = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            lines.writeheader()
            lines.writerows(rows)


def _config(run: Path, data_root: str) -> ConfigDict:
    """The run's own config. A key that is younger than the run has the value that its code had."""
    config = config_keys.default()
    stored = read_config(run) | {"data.root": data_root, "fusion.kind": "both"}
    config.update_from_flattened_dict(
        {key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()}
    )
    return config


def _image_features(flags: argparse.Namespace, run: Path) -> np.ndarray:
    """float32 [n p]: the starting encoder's features of the images in the second size."""
    config = _config(run, flags.data_root)
    config.data.image_size, config.fusion.kind = flags.second_image_size, "image"
    experiment = build_experiment(config, flags.workdir)
    return fusion_features.collect_of_run(experiment).columns[scores.IMAGE]


def _refuse_other_features(configs: Mapping[Path, ConfigDict]) -> None:
    for key in _FEATURE_KEYS:
        values = {config_keys.flatten(config)[key] for config in configs.values()}
        if len(values) > 1:
            raise UserError(f"{key} differs between the runs ({values}); give arms with one value")


def _split(run: Path, config: ConfigDict, workdir: Path) -> Split:
    split = read_data(config, workdir)[1]
    expected = read_results(run / "results.json").split_hash
    if split.hash != expected:
        raise UserError(
            f"{run} was tested on split {expected}, but --data_root gives {split.hash}; give the data of the run"
        )
    return split


def _fit(
    images: np.ndarray, records: Records, columns: Mapping[str, np.ndarray]
) -> dict[str, Ridge]:
    """The regressions of a training part, by source."""
    return {
        source: ridge.fit(values[images], records.labels[images], records.patients[images])
        for source, values in columns.items()
    }


def _rows(arms: Sequence[Arm], question: Question) -> Iterator[dict[str, Any]]:
    """The table with all digits, a row for each arm."""
    lent = {pair: _lent_variance(arms, *pair) for pair in question.differences}
    for arm in arms:
        n_folds, n_seeds = arm.aurocs[OWN].shape[:2]
        row: dict[str, Any] = {"arm": arm.name, "n_folds": n_folds, "n_seeds": n_seeds}
        row["weight"] = " ".join(f"{weight:g}" for weight in sorted(arm.weights))
        for column in (OWN, *question.kinds):
            row[column] = float(arm.aurocs[column][..., 0].mean())
        for one, other in question.differences:
            found = estimate(*arm.difference(one, other), lent[one, other])
            low, high = found.ci95 or (None, None)
            name = f"{one}-{other}"
            row |= {name: found.value, f"{name}_ci_low": low, f"{name}_ci_high": high}
        yield row


def _lent_variance(arms: Sequence[Arm], one: str, other: str) -> RunVariance | None:
    lenders = [arm for arm in arms if arm.aurocs[OWN].shape[1] >= MIN_SEEDS_TO_LEND]
    return pool(run_variance(*arm.difference(one, other)) for arm in lenders)


def _shown(rows: Sequence[Mapping[str, Any]], question: Question) -> Iterator[list[str]]:
    """The cells of the table in Markdown."""
    pairs = [f"{one}-{other}" for one, other in question.differences]
    columns = (OWN, *question.kinds)
    head = ["arm", "folds × seeds", "weight", *columns, *(p.replace("-", " − ") for p in pairs)]
    yield head
    yield ["---"] * len(head)
    for row in rows:
        levels = [short(row[column]) for column in columns]
        differences = []
        for name in pairs:
            low, high = row[f"{name}_ci_low"], row[f"{name}_ci_high"]
            ci95 = None if low is None else (low, high)
            differences.append(f"{signed(row[name])} {interval(ci95, write=signed)}".rstrip())
        runs = f"{row['n_folds']} × {row['n_seeds']}"
        yield [str(row["arm"]), runs, str(row["weight"]), *levels, *differences]


def _run_aurocs(
    run: Path,
    fold: int,
    records: Records,
    split: Split,
    ridges: Mapping[str, Ridge],
    columns: Mapping[str, np.ndarray],
    kinds: Mapping[str, tuple[str, ...]],
) -> tuple[dict[str, np.ndarray], float]:
    """Mean AUROC of the test part and of its resamples [1+B] of every column; the weight of the last one."""
    logits = _read_logits(run, records)
    test = np.sort(split.test)
    reference = np.sort(split.val) if np.isfinite(logits[split.val]).all() else test
    cluster, n_patients = index_patients(records.patients[test])
    draws = patient_weights(fold, n_patients, RESAMPLES)
    fused = {OWN: logits[test]}
    weight = 1.0
    for kind, sources in kinds.items():
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
