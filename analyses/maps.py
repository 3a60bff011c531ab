"""Can class maps that saw no box localize better than the image-free heat map if they are read in another way?

    python -m analyses.maps RUN [RUN …] [--against RUN [RUN …]] [--fast] [--out=maps.json]

RUN: the workdir of a finished run of `configs/ablations.py`, arm focal, one per fold. (Its training does not depend on
how the maps are read.) Each way of reading is scored with two rules: the paper's rule (ReLU, > 0.5), which no
box chose, and the rule that is best on the truth boxes of the fold's validation patients.
Every truth box is scored once, by the network that has not seen its patient. The maps are kept in RUN/maps*.npz.
--against: runs of another arm on the same folds, in the same order. Differences are then to these runs instead of to
prior_map; they are read in the same way, with the rule that is best on their own validation boxes. So an arm gets no
credit for a threshold that suits only its own maps.
--fast leaves out the larger images and the earlier stage, which take nine tenths of the time.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from ml_collections import ConfigDict

from analyses import finished_run
from kacl_jax.data.batches import BrokenFiles
from kacl_jax.evaluation import metrics
from kacl_jax.evaluation.inference import Inference
from kacl_jax.evaluation.metrics import Table
from kacl_jax.runtime import files
from kacl_jax.step.regions import bounding_box, threshold_map
from kacl_jax.train.experiment import Experiment

PAPER_RULE = (True, 0.5)
RULES = [PAPER_RULE] + [
    rule
    for rule in itertools.product((True, False), (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9))
    if rule != PAPER_RULE
]
PRINTED_T = (0.1, 0.3, 0.5)
SELECTION_T = 0.1  # the rule with the best T(IoU) > 0.1 on validation is chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--against", nargs="+", type=Path, default=[])
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    folds = [_load_fold(workdir, arguments.fast) for workdir in arguments.runs]
    against = [_load_fold(workdir, arguments.fast) for workdir in arguments.against]
    if against and not _same_boxes(folds, against):
        parser.error("--against must name runs of the same folds, in the same order")
    scores = {}
    for way, reader in READERS.items():
        if arguments.fast and way in SLOW_READERS:
            continue
        print(f"{way} …", flush=True)
        scores[way] = _score_reader(folds, reader, against)
    prior = _test_values(folds, lambda fold: fold.prior)
    tables = metrics.localization_tables(prior, *_boxes(folds))
    scores["prior_map"] = {"no box": {"accuracy": _values_and_intervals(tables)}}
    scores["prior_map"]["no box"] |= {"rules": [], "difference": None}
    _print_tables(scores, folds, "the others" if against else "prior_map")
    if arguments.out:
        runs, baselines = (
            [str(workdir) for workdir in workdirs]
            for workdirs in (arguments.runs, arguments.against)
        )
        files.write_json(arguments.out, {"runs": runs, "against": baselines, "ways": scores})


# ---- the ways of reading ----------------------------------------------------------------------------------------


def _plain_map(maps: Maps) -> np.ndarray:
    return maps["plain"]


def _mirror_mean(maps: Maps) -> np.ndarray:
    """Mean over the image and its mirror image."""
    return (maps["plain"] + maps["mirrored"]) / 2


def _scale_mean(maps: Maps) -> np.ndarray:
    """Mean over three sizes of the image, on the finest grid."""
    finest = maps["double"].shape[2:]
    return np.mean([_resized(maps[n], finest) for n in ("plain", "half more", "double")], axis=0)


def _double_size(maps: Maps) -> np.ndarray:
    """The image at twice the size that the network was trained with: a grid twice as fine."""
    return maps["double"]


def _earlier_stage(maps: Maps) -> np.ndarray:
    return maps["stage 3"]


def _center(reader: Callable[[Maps], np.ndarray]) -> Callable[[Maps], np.ndarray]:
    def centred(maps: Maps) -> np.ndarray:
        values = reader(maps)
        return values - values[maps["train"]].mean(0)

    return centred


def _add_pattern(reader: Callable[[Maps], np.ndarray]) -> Callable[[Maps], np.ndarray]:
    """The map plus the finding's pattern: the mean centred map of the training images with its label."""
    return lambda maps: reader(maps) + _pattern(maps, _center(reader)(maps))


def _pattern_only(reader: Callable[[Maps], np.ndarray]) -> Callable[[Maps], np.ndarray]:
    """The finding's pattern alone: it comes from labels instead of boxes and looks at no test image."""

    def alone(maps: Maps) -> np.ndarray:
        centred = _center(reader)(maps)
        return np.broadcast_to(_pattern(maps, centred), centred.shape)

    return alone


def _pattern(maps: Maps, centred: np.ndarray) -> np.ndarray:
    positive = maps["labels"][maps["train"]].astype(np.float64)
    total = np.einsum("nc,ncuv->cuv", positive, centred[maps["train"]])
    return (total / positive.sum(0)[:, None, None]).astype(np.float32)


READERS: dict[str, Callable[[Maps], np.ndarray]] = {
    "as it is": _plain_map,
    "mirror average": _mirror_mean,
    "three scales": _scale_mean,
    "twice the size": _double_size,
    "earlier stage": _earlier_stage,
    "centred": _center(_plain_map),
    "centred, mirror average": _center(_mirror_mean),
    "centred, three scales": _center(_scale_mean),
    "centred, twice the size": _center(_double_size),
    "centred, earlier stage": _center(_earlier_stage),
    "centred + label pattern": _add_pattern(_center(_plain_map)),
    "mirror average + label pattern": _add_pattern(_mirror_mean),
    "label pattern, no image": _pattern_only(_plain_map),
    "label pattern of mirror averages, no image": _pattern_only(_mirror_mean),
}

SLOW_READERS = {way for way in READERS if re.search("scales|twice|earlier", way)}

Maps = dict[str, np.ndarray]


# ---- one fold ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Fold:
    """The maps and the truth boxes of one fold; n images, c findings, k truth boxes.

    maps: of each view, float32 [n c u v]; and of the same images 'train', bool [n], and 'labels', [n c].
    row: [k], each box's row among the n images. finding: [k]. truth: float64 [k 4]. patient: [k].
    validation: bool [k], the box is of a validation patient. prior: float64 [k], the IoU of prior_map's box.
    size: of the images in px.
    """

    maps: Maps
    row: np.ndarray
    finding: np.ndarray
    truth: np.ndarray
    patient: np.ndarray
    validation: np.ndarray
    prior: np.ndarray
    size: int
    n_findings: int


def _load_fold(workdir: Path, fast: bool) -> Fold:
    experiment = finished_run.restore_experiment(workdir)
    records, split = experiment.records, experiment.split
    ids = np.concatenate([split.train, split.val, split.test])
    maps = {"train": np.arange(len(ids)) < len(split.train), "labels": records.labels[ids]}
    maps |= _load_views(workdir, experiment, ids, fast)
    validation = records.has_box & np.isin(np.arange(len(records.names)), split.val)[:, None]
    pair = np.argwhere(split.scored | validation)
    truth = records.boxes[tuple(pair.T)].astype(np.float64)
    prior = np.full(len(pair), np.nan)
    for give, score in split.floors:
        for c in range(len(records.findings)):
            scored = (pair[:, 1] == c) & score[tuple(pair.T)]
            prior[scored] = metrics.iou(
                metrics.prior_map(records.boxes[give[:, c], c]), truth[scored]
            )
    row_of_image = {image: row for row, image in enumerate(ids.tolist())}
    return Fold(
        maps=maps,
        row=np.array([row_of_image[image] for image in pair[:, 0].tolist()]),
        finding=pair[:, 1],
        truth=truth,
        patient=records.patients[pair[:, 0]],
        validation=validation[tuple(pair.T)],
        prior=prior,
        size=experiment.config.data.image_size,
        n_findings=len(records.findings),
    )


def _load_views(workdir: Path, experiment: Experiment, ids: np.ndarray, fast: bool) -> Maps:
    """float32 [n c u v] of each view; computed once, then read from the file."""
    cache = workdir / ("maps-fast.npz" if fast else "maps.npz")
    if cache.exists():
        with np.load(cache) as arrays:
            return dict(arrays)
    state = finished_run.best_state(experiment)
    programs, size = experiment.programs, experiment.config.data.image_size

    def mirrored(state: Any, batch: Any) -> Any:
        (rows,) = programs.eval_step(state, {"image": batch["image"][:, :, ::-1]})
        return ({**rows, "maps": rows["maps"][..., ::-1]},)

    early = dataclasses.replace(programs, cam_stage=3).eval_step
    views = {
        "plain": (programs.eval_step, size),
        "mirrored": (mirrored, size),
        "half more": (programs.eval_step, size * 3 // 2),
        "double": (programs.eval_step, size * 2),
        "stage 3": (early, size),
    }
    if fast:
        views = {name: views[name] for name in ("plain", "mirrored")}
    maps = {}
    for name, (step, side) in views.items():
        print(f"{workdir}: {name} …", flush=True)
        outputs = _inference(experiment, step, side).outputs(state, ids, center=None)
        maps[name] = outputs.class_maps()[outputs.rows(ids)][np.argsort(np.argsort(ids))]
    np.savez(cache, **maps)
    return maps


def _inference(experiment: Experiment, step: Any, side: int) -> Inference:
    data: ConfigDict = experiment.config.data
    return Inference(
        experiment.parallel,
        step,
        experiment.records,
        image_size=side,
        batch_size=32,
        on_error="raise",
        threads=data.threads,
        broken=BrokenFiles(),
    )


# ---- scores -----------------------------------------------------------------------------------------------------


def _score_reader(
    folds: list[Fold], reader: Callable[[Maps], np.ndarray], against: list[Fold]
) -> dict[str, Any]:
    """For each way to choose the rule: accuracy, paired difference to `against` or prior_map, and the rules."""
    prior = _test_values(folds, lambda fold: fold.prior)
    run_ious = _read_test_boxes(folds, reader)
    baseline_ious = _read_test_boxes(against, reader) if against else {}
    boxes = _boxes(folds)
    scores = {}
    for choice, (iou, rules) in run_ious.items():
        baseline = baseline_ious[choice][0] if against else prior
        scores[choice] = {
            "rules": rules,
            "accuracy": _values_and_intervals(metrics.localization_tables(iou, *boxes)),
            "difference": _values_and_intervals(
                metrics.localization_differences(iou, baseline, *boxes)
            ),
        }
    return scores


def _read_test_boxes(
    folds: list[Fold], reader: Callable[[Maps], np.ndarray]
) -> dict[str, tuple[np.ndarray, list[tuple[bool, float]]]]:
    """For each way to choose the rule: IoU float64 [k] of the test boxes of all folds, and the rules."""
    values = [reader(fold.maps) for fold in folds]
    rules_of_choice = {
        "no box": [PAPER_RULE] * len(folds),
        "chosen on validation boxes": [
            _best_rule(fold, value) for fold, value in zip(folds, values, strict=True)
        ],
    }
    return {
        choice: (
            np.concatenate(
                [
                    _overlaps(fold, value, *rule)[~fold.validation]
                    for fold, value, rule in zip(folds, values, rules, strict=True)
                ]
            ),
            rules,
        )
        for choice, rules in rules_of_choice.items()
    }


def _same_boxes(folds: list[Fold], others: list[Fold]) -> bool:
    return len(folds) == len(others) and all(
        np.array_equal(a.truth, b.truth)
        and np.array_equal(a.finding, b.finding)
        and np.array_equal(a.validation, b.validation)
        for a, b in zip(folds, others, strict=True)
    )


def _overlaps(fold: Fold, maps: np.ndarray, relu: bool, threshold: float) -> np.ndarray:
    """IoU float64 [k] of each truth box with its map's box."""
    iou = np.zeros(len(fold.row))
    for i, (row, finding) in enumerate(zip(fold.row, fold.finding, strict=True)):
        region = threshold_map(maps[row, finding], size=fold.size, relu=relu, threshold=threshold)
        iou[i] = metrics.iou(bounding_box(region.mask), fold.truth[i])
    return iou


def _best_rule(fold: Fold, maps: np.ndarray) -> tuple[bool, float]:
    """The rule that hits the most validation boxes, with equal weight for each finding; of equal rules the first."""
    rows = fold.validation
    validation_fold = dataclasses.replace(
        fold, row=fold.row[rows], finding=fold.finding[rows], truth=fold.truth[rows]
    )

    def accuracy(rule: tuple[bool, float]) -> float:
        hit = _overlaps(validation_fold, maps, *rule) > SELECTION_T
        return float(
            np.mean(
                [
                    hit[validation_fold.finding == c].mean()
                    for c in np.unique(validation_fold.finding)
                ]
            )
        )

    return max(RULES, key=accuracy)


def _boxes(folds: list[Fold]) -> tuple[metrics.TruthBoxes, tuple[float, ...]]:
    """The test boxes of all folds, and the thresholds of the tables over them."""
    truth = metrics.TruthBoxes(
        _test_values(folds, lambda fold: fold.finding),
        _test_values(folds, lambda fold: fold.patient),
        folds[0].n_findings,
    )
    return truth, metrics.IOU_THRESHOLDS


def _test_values(folds: list[Fold], values: Callable[[Fold], np.ndarray]) -> np.ndarray:
    return np.concatenate([values(fold)[~fold.validation] for fold in folds])


def _values_and_intervals(tables: dict[float, Table]) -> dict[str, Any]:
    return {
        f"{t:g}": {"value": table.mean.value, "ci95": table.mean.ci95}
        for t, table in tables.items()
    }


def _resized(maps: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    n, c = maps.shape[:2]
    flat = (cv2.resize(cell, grid[::-1]) for cell in maps.reshape(n * c, *maps.shape[2:]))
    return np.stack(list(flat)).reshape(n, c, *grid)


def _print_tables(scores: dict[str, Any], folds: list[Fold], other: str) -> None:
    chosen_on = sum(int(fold.validation.sum()) for fold in folds)
    print(
        f"\n{len(folds)} folds, {len(_test_values(folds, lambda f: f.prior))} truth boxes scored once each; "
        f"rules chosen on {chosen_on} boxes of validation patients (each fold on its own); "
        f"in brackets the difference to {other}\n"
    )
    for heading in ("no box", "chosen on validation boxes"):
        print(f"| {heading} | " + " | ".join(f"IoU above {t:g}" for t in PRINTED_T) + " | rule |")
        print("|---" * (len(PRINTED_T) + 2) + "|")
        for way, score in scores.items():
            if heading in score:
                print(f"| {way} | " + " | ".join(_cells(score[heading])) + " |")
        print()


def _cells(score: dict[str, Any]) -> Iterator[str]:
    for t in map("{:g}".format, PRINTED_T):
        text, difference = f"{score['accuracy'][t]['value']:.3f}", score["difference"]
        if difference:
            low, high = difference[t]["ci95"] or (np.nan, np.nan)
            text += f" ({difference[t]['value']:+.3f} [{low:+.3f}, {high:+.3f}])"
        yield text
    yield ", ".join(
        sorted({f"{'ReLU' if relu else 'no ReLU'} > {t:g}" for relu, t in score["rules"]})
    )


if __name__ == "__main__":
    main()
