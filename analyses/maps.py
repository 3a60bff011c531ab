"""What carries a class map that saw no box past the image-free heat map: the same trained networks, read in other ways.

    python -m analyses.maps RUN [RUN …] [--against RUN [RUN …]] [--fast] [--out=maps.json]

RUN: the workdir of a finished run of `configs/ablations.py`, arm focal, one per fold (its maps feed nothing back in
training, so that any way of reading them belongs to the same network). Each way is scored twice: by the paper's rule
(ReLU, > .5), which no box chose, and by the rule that is best on the truth boxes of the fold's validation patients.
Every truth box is scored once, by the network that has not seen its patient. The maps are kept in RUN/maps*.npz.
--against: runs of another arm on the same folds, in the same order; differences are then to theirs, read the same way
and by the rule that is best on their own validation boxes, instead of to prior_map. So a threshold that suits one arm
only does not count as its merit.
--fast leaves out the larger images and the earlier stage, nine tenths of the time.
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
from kacl_jax.step.gradcam import mask_box, regions
from kacl_jax.train.experiment import Experiment

PAPER = (True, 0.5)
RULES = [PAPER] + [
    rule
    for rule in itertools.product((True, False), (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9))
    if rule != PAPER
]
SHOWN = (0.1, 0.3, 0.5)
SELECT_T = 0.1  # what a rule is chosen by on validation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--against", nargs="+", type=Path, default=[])
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    folds = [_fold(workdir, arguments.fast) for workdir in arguments.runs]
    against = [_fold(workdir, arguments.fast) for workdir in arguments.against]
    if against and not _same_boxes(folds, against):
        parser.error("--against must name runs of the same folds, in the same order")
    told = {}
    for way, read in WAYS.items():
        if arguments.fast and way in SLOW:
            continue
        print(f"{way} …", flush=True)
        told[way] = _told(folds, read, against)
    prior = _merged(folds, lambda fold: fold.prior)
    tables = metrics.localization_tables(prior, **_boxes(folds))
    told["prior_map"] = {"no box": {"accuracy": _leaves(tables)}}
    told["prior_map"]["no box"] |= {"rules": [], "difference": None}
    _print(told, folds, "the others" if against else "prior_map")
    if arguments.out:
        runs, others = (
            [str(workdir) for workdir in some] for some in (arguments.runs, arguments.against)
        )
        files.write_json(arguments.out, {"runs": runs, "against": others, "ways": told})


# ---- the ways of reading ----------------------------------------------------------------------------------------


def _plain(maps: Maps) -> np.ndarray:
    return maps["plain"]


def _flipped(maps: Maps) -> np.ndarray:
    """Mean over the image and its mirror image."""
    return (maps["plain"] + maps["mirrored"]) / 2


def _scales(maps: Maps) -> np.ndarray:
    """Mean over three sizes of the image, on the finest grid."""
    finest = maps["double"].shape[2:]
    return np.mean([_resized(maps[n], finest) for n in ("plain", "half more", "double")], axis=0)


def _finer(maps: Maps) -> np.ndarray:
    """The image at twice the size that the network was trained on: a grid twice as fine."""
    return maps["double"]


def _earlier(maps: Maps) -> np.ndarray:
    return maps["stage 3"]


def _centred(read: Callable[[Maps], np.ndarray]) -> Callable[[Maps], np.ndarray]:
    def centred(maps: Maps) -> np.ndarray:
        values = read(maps)
        return values - values[maps["train"]].mean(0)

    return centred


def _patterned(read: Callable[[Maps], np.ndarray]) -> Callable[[Maps], np.ndarray]:
    """Plus the finding's pattern: the mean centred map of the training images that carry its label."""
    return lambda maps: read(maps) + _pattern(maps, _centred(read)(maps))


def _pattern_alone(read: Callable[[Maps], np.ndarray]) -> Callable[[Maps], np.ndarray]:
    """The finding's pattern alone: labels instead of boxes, and no look at the tested image."""

    def alone(maps: Maps) -> np.ndarray:
        centred = _centred(read)(maps)
        return np.broadcast_to(_pattern(maps, centred), centred.shape)

    return alone


def _pattern(maps: Maps, centred: np.ndarray) -> np.ndarray:
    positive = maps["labels"][maps["train"]].astype(np.float64)
    total = np.einsum("nc,ncuv->cuv", positive, centred[maps["train"]])
    return (total / positive.sum(0)[:, None, None]).astype(np.float32)


WAYS: dict[str, Callable[[Maps], np.ndarray]] = {
    "as it is": _plain,
    "mirror average": _flipped,
    "three scales": _scales,
    "twice the size": _finer,
    "earlier stage": _earlier,
    "centred": _centred(_plain),
    "centred, mirror average": _centred(_flipped),
    "centred, three scales": _centred(_scales),
    "centred, twice the size": _centred(_finer),
    "centred, earlier stage": _centred(_earlier),
    "centred + label pattern": _patterned(_centred(_plain)),
    "mirror average + label pattern": _patterned(_flipped),
    "label pattern, no image": _pattern_alone(_plain),
    "label pattern of mirror averages, no image": _pattern_alone(_flipped),
}

SLOW = {way for way in WAYS if re.search("scales|twice|earlier", way)}

Maps = dict[str, np.ndarray]


# ---- one fold ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Fold:
    """maps: by view, float32 [n c u v] of the images `ids`; train bool [n]; labels [n c]. The truth boxes' arrays:
    row of `ids`, finding, float64 [4] box, patient, whether it is validation's; prior: prior_map's IoU."""

    maps: Maps
    row: np.ndarray
    finding: np.ndarray
    truth: np.ndarray
    patient: np.ndarray
    validation: np.ndarray
    prior: np.ndarray
    size: int
    n_findings: int


def _fold(workdir: Path, fast: bool) -> Fold:
    experiment = finished_run.experiment(workdir)
    records, split = experiment.records, experiment.split
    ids = np.concatenate([split.train, split.val, split.test])
    maps = {"train": np.arange(len(ids)) < len(split.train), "labels": records.labels[ids]}
    maps |= _views(workdir, experiment, ids, fast)
    validation = records.has_box & np.isin(np.arange(len(records.names)), split.val)[:, None]
    pair = np.argwhere(split.scored | validation)
    truth = records.boxes[tuple(pair.T)].astype(np.float64)
    prior = np.full(len(pair), np.nan)
    for give, score in split.floors:
        for c in range(len(records.findings)):
            ours = (pair[:, 1] == c) & score[tuple(pair.T)]
            prior[ours] = metrics.iou(metrics.prior_map(records.boxes[give[:, c], c]), truth[ours])
    place = {image: row for row, image in enumerate(ids.tolist())}
    return Fold(
        maps=maps,
        row=np.array([place[image] for image in pair[:, 0].tolist()]),
        finding=pair[:, 1],
        truth=truth,
        patient=records.patients[pair[:, 0]],
        validation=validation[tuple(pair.T)],
        prior=prior,
        size=experiment.config.data.image_size,
        n_findings=len(records.findings),
    )


def _views(workdir: Path, experiment: Experiment, ids: np.ndarray, fast: bool) -> Maps:
    """float32 [n c u v] of each view, computed once."""
    kept = workdir / ("maps-fast.npz" if fast else "maps.npz")
    if kept.exists():
        with np.load(kept) as arrays:
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
    found = {}
    for name, (step, side) in views.items():
        print(f"{workdir}: {name} …", flush=True)
        outputs = _inference(experiment, step, side).outputs(state, ids, center=None)
        found[name] = outputs.class_maps()[outputs.rows(ids)][np.argsort(np.argsort(ids))]
    np.savez(kept, **found)
    return found


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


def _told(
    folds: list[Fold], read: Callable[[Maps], np.ndarray], against: list[Fold]
) -> dict[str, Any]:
    """By how the rule came to be: accuracy, paired difference to `against` or prior_map, and the rules used."""
    prior = _merged(folds, lambda fold: fold.prior)
    ours, theirs = _read(folds, read), _read(against, read) if against else {}
    boxes = _boxes(folds)
    told = {}
    for how, (found, rules) in ours.items():
        other = theirs[how][0] if against else prior
        told[how] = {
            "rules": rules,
            "accuracy": _leaves(metrics.localization_tables(found, **boxes)),
            "difference": _leaves(metrics.localization_differences(found, other, **boxes)),
        }
    return told


def _read(
    folds: list[Fold], read: Callable[[Maps], np.ndarray]
) -> dict[str, tuple[np.ndarray, list[tuple[bool, float]]]]:
    """By how the rule came to be: IoU float64 [k] of the test boxes of all folds, and the rules."""
    values = [read(fold.maps) for fold in folds]
    ways = {
        "no box": [PAPER] * len(folds),
        "chosen on validation boxes": [
            _chosen(fold, value) for fold, value in zip(folds, values, strict=True)
        ],
    }
    return {
        how: (
            np.concatenate(
                [
                    _overlaps(fold, value, *rule)[~fold.validation]
                    for fold, value, rule in zip(folds, values, rules, strict=True)
                ]
            ),
            rules,
        )
        for how, rules in ways.items()
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
    found = np.zeros(len(fold.row))
    for i, (row, finding) in enumerate(zip(fold.row, fold.finding, strict=True)):
        region = regions(maps[row, finding], size=fold.size, relu=relu, threshold=threshold)
        found[i] = metrics.iou(mask_box(region.mask), fold.truth[i])
    return found


def _chosen(fold: Fold, maps: np.ndarray) -> tuple[bool, float]:
    """The rule with the most validation boxes hit, each finding weighted alike; ties go to the earlier rule."""
    at = fold.validation
    few = dataclasses.replace(
        fold, row=fold.row[at], finding=fold.finding[at], truth=fold.truth[at]
    )

    def accuracy(rule: tuple[bool, float]) -> float:
        hit = _overlaps(few, maps, *rule) > SELECT_T
        return float(np.mean([hit[few.finding == c].mean() for c in np.unique(few.finding)]))

    return max(RULES, key=accuracy)


def _boxes(folds: list[Fold]) -> dict[str, Any]:
    return {
        "finding": _merged(folds, lambda fold: fold.finding),
        "patients": _merged(folds, lambda fold: fold.patient),
        "n_findings": folds[0].n_findings,
        "thresholds": metrics.T_IOU,
    }


def _merged(folds: list[Fold], values: Callable[[Fold], np.ndarray]) -> np.ndarray:
    return np.concatenate([values(fold)[~fold.validation] for fold in folds])


def _leaves(tables: tuple[Table, ...]) -> dict[str, Any]:
    return {
        f"{t:g}": {"value": table.mean.value, "ci95": table.mean.ci95}
        for t, table in zip(metrics.T_IOU, tables, strict=True)
    }


def _resized(maps: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    n, c = maps.shape[:2]
    flat = (cv2.resize(cell, grid[::-1]) for cell in maps.reshape(n * c, *maps.shape[2:]))
    return np.stack(list(flat)).reshape(n, c, *grid)


def _print(told: dict[str, Any], folds: list[Fold], other: str) -> None:
    chosen_on = sum(int(fold.validation.sum()) for fold in folds)
    print(
        f"\n{len(folds)} folds, {len(_merged(folds, lambda f: f.prior))} truth boxes scored once each; "
        f"rules chosen on {chosen_on} boxes of validation patients (each fold on its own); "
        f"in brackets the difference to {other}\n"
    )
    for heading in ("no box", "chosen on validation boxes"):
        print(f"| {heading} | " + " | ".join(f"T(IoU) > {t:g}" for t in SHOWN) + " | rule |")
        print("|---" * (len(SHOWN) + 2) + "|")
        for way, found in told.items():
            if heading in found:
                print(f"| {way} | " + " | ".join(_cells(found[heading])) + " |")
        print()


def _cells(found: dict[str, Any]) -> Iterator[str]:
    for t in map("{:g}".format, SHOWN):
        text, difference = f"{found['accuracy'][t]['value']:.3f}", found["difference"]
        if difference:
            low, high = difference[t]["ci95"] or (np.nan, np.nan)
            text += f" ({difference[t]['value']:+.3f} [{low:+.3f}, {high:+.3f}])"
        yield text
    yield ", ".join(
        sorted({f"{'ReLU' if relu else 'no ReLU'} > {t:g}" for relu, t in found["rules"]})
    )


if __name__ == "__main__":
    main()
