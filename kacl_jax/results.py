"""The files that evaluation leaves behind, and the table a person reads in the terminal.

Every file is written whole or not at all. Floats are written with all their digits, rows in a
fixed order: two runs that computed the same leave the same bytes.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kacl_jax.data.nih import Records, to_nih_pixels
from kacl_jax.data.splits import Split
from kacl_jax.errors import UserError
from kacl_jax.evaluate import (
    AFP_IOU,
    FLOORS,
    MEASURES,
    RULES,
    Evaluation,
    Located,
    OperatingPoint,
    Outputs,
    Tables,
    probabilities,
)
from kacl_jax.metrics import Estimate, Table

FEEDBACK = ("hit_rate", "mean_age_steps", "failures")
THROUGHPUT = ("images_per_s", "rois_per_s", "waits")
_SHOWN_T = (0.1, 0.3, 0.5)


def write_predictions(
    path: Path, records: Records, split: Split, *, val: Outputs, test: Outputs
) -> None:
    """predictions.csv: image,patient,split,prob_<Finding> …,label_<Finding> …, val then test."""
    header = ["image", "patient", "split"]
    header += [f"{kind}_{name}" for kind in ("prob", "label") for name in records.findings]

    def rows() -> Iterable[list[Any]]:
        for part, ids, outputs in (("val", split.val, val), ("test", split.test, test)):
            at = outputs.rows(ids)
            scores = probabilities(outputs, at, records).tolist()
            for image, scored in zip(outputs.image_id[at].tolist(), scores, strict=True):
                labels = records.labels[image].tolist()
                yield [records.names[image], records.patients[image], part, *scored, *labels]

    _write(path, _csv(header, rows()))


def write_boxes(path: Path, records: Records, located: Located) -> None:
    """boxes.csv: image,finding,x,y,w,h,score,iou,iobb; rule single, one row per scored truth box
    and per predicted-positive (image, finding), a pair that is both once. The box is the predicted
    one, in NIH's 1024-pixel frame; score is the probability; iou and iobb are empty without truth.
    """
    pixels = to_nih_pixels(located.box).tolist()
    overlaps = np.stack([located.iou, located.iobb], axis=1).tolist()

    def rows() -> Iterable[list[Any]]:
        for k, (image, finding) in enumerate(zip(located.image_id, located.finding, strict=True)):
            overlap = overlaps[k] if located.scored[k] else ["", ""]
            name = records.findings[finding]
            yield [records.names[image], name, *pixels[k], float(located.score[k]), *overlap]

    _write(path, _csv(["image", "finding", *"xywh", "score", "iou", "iobb"], rows()))


def results(
    evaluation: Evaluation,
    records: Records,
    split: Split,
    *,
    seed: int,
    feedback: Mapping[str, Any] | None,
    throughput: Mapping[str, Any] | None,
    pixel_probe: Table | None = None,
) -> dict[str, Any]:
    """results.json as a dict of plain values; what is undefined is None beside a `reason`.

    feedback and throughput are plain dicts with the keys of FEEDBACK and THROUGHPUT, None where
    there is no pool or nothing was timed. pixel_probe: AUROC of `probe.pixel_probe`, if it was run.
    """
    names, located = records.findings, evaluation.located
    localization: dict[str, Any] = _measures(evaluation.accuracy["single"], names)
    localization["best_of"] = _measures(evaluation.accuracy["best_of"], names)
    localization["afp"] = _leaves(evaluation.afp, names)
    localization |= {name: _measures(evaluation.floors[name], names) for name in FLOORS}
    seen = {
        part: len(outputs.rows(ids))
        for part, ids, outputs in (
            ("val", split.val, evaluation.val),
            ("test", split.test, evaluation.test),
        )
    }
    return {
        "protocol": split.protocol,
        "fold": split.fold,
        "seed": seed,
        "split": split.name,
        "split_hash": split.hash,
        "findings": list(names),
        "classification": {
            "auroc": _leaves(evaluation.auroc, names),
            **({"pixel_probe": _leaves(pixel_probe, names)} if pixel_probe else {}),
            "operating_point": dict(zip(names, map(_point, evaluation.points), strict=True)),
        },
        "localization": localization,
        "evaluation": {
            "images": seen,
            "skipped": {
                "val": len(split.val) - seen["val"],
                "test": len(split.test) - seen["test"],
                "boxes": int(split.scored.sum() - located.scored.sum()),
            },
            "grid": list(evaluation.test.class_maps().shape[2:]),
            "predicted_boxes": len(located.box),
            "whole_image_boxes": int(located.fallback.sum()),
            "afp_iou": AFP_IOU,
            "resamples": evaluation.resamples,
        },
        "feedback": dict.fromkeys(FEEDBACK) if feedback is None else dict(feedback),
        "throughput": dict.fromkeys(THROUGHPUT) if throughput is None else dict(throughput),
    }


def _measures(tables: Tables, names: Sequence[str]) -> dict[str, Any]:
    return {
        measure: {
            str(threshold): _leaves(table, names)
            for threshold, table in zip(MEASURES[measure], of_measure, strict=True)
        }
        for measure, of_measure in tables.items()
    }


def _leaves(table: Table, names: Sequence[str]) -> dict[str, Any]:
    leaves = {name: _leaf(e) for name, e in zip(names, table.findings, strict=True)}
    mean = _leaf(table.mean)
    absent = [name for name, leaf in leaves.items() if leaf["value"] is None]
    return {**leaves, "mean": {**mean, "left_out": absent} if absent else mean}


def _leaf(estimate: Estimate) -> dict[str, Any]:
    leaf: dict[str, Any] = {
        "value": None if math.isnan(estimate.value) else estimate.value,
        "ci95": None if estimate.ci95 is None else list(estimate.ci95),
        **estimate.counts,
    }
    if estimate.reason:
        leaf["reason"] = estimate.reason
    if estimate.ci_reason:
        leaf["ci_reason"] = estimate.ci_reason
    if estimate.left_out:
        leaf["resamples_left_out"] = estimate.left_out
    return leaf


def _point(point: OperatingPoint) -> dict[str, Any]:
    if point.reason:
        return {"value": None, "youden_j": None, "reason": point.reason}
    return {"value": point.threshold, "youden_j": point.youden_j}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Valid JSON in the dict's own order. Raises ValueError, naming the file, on NaN or infinity."""
    try:
        text = json.dumps(content, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be written as JSON: {error}") from error
    _write(path, text + "\n")


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(
            f"cannot write {path}: {error.strerror}; make room there or give another --workdir"
        ) from error


def format_table(results: Mapping[str, Any]) -> str:
    """The terminal table: AUROC, then localization beside its floors, and what was left out.

    Takes what `results` returns or what results.json holds.
    """
    names, images = results["findings"], results["evaluation"]["images"]
    head = (
        f"protocol {results['protocol']} · split {results['split']} ({results['split_hash']})"
        f" · seed {results['seed']} · {images['test']:,} test images"
    )
    lines = [head, "", *_auroc_lines(results["classification"], names), ""]
    lines += [*_finding_lines(results, names), "", *_mean_lines(results), "", *_notes(results)]
    return "\n".join(lines).rstrip()


def _auroc_lines(classification: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    auroc = classification["auroc"]
    lines = [f"{'AUROC':20}{'value':>7}  {'95 % interval':17}{'positive':>9}{'negative':>10}"]
    for name in (*names, "mean"):
        leaf = auroc[name]
        label = f"mean of {leaf['n_findings']}" if name == "mean" else name
        lines.append(
            f"{label:20}{_figure(leaf):>7}  {_interval(leaf):17}"
            f"{leaf['n_pos']:>9,}{leaf['n_neg']:>10,}"
        )
    if "pixel_probe" in classification:
        floor = classification["pixel_probe"]["mean"]
        lines.append(f"{'logistic, 16×16 px':20}{_figure(floor):>7}  {_interval(floor):17}")
    return lines


def _ways(localization: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The rules and floors side by side, the rule `single` from where results.json has it."""
    single = {measure: localization[measure] for measure in MEASURES}
    return {"single": single, **{name: localization[name] for name in (*RULES[1:], *FLOORS)}}


def _finding_lines(results: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    ways = _ways(results["localization"])
    shown = "".join(f"{'>' + _short(t):>5}" for t in _SHOWN_T)
    lines = [
        "localization accuracy: share of truth boxes with IoU > T",
        f"{'':19}{'boxes':>6}" + "".join(f"  {way:>15}" for way in ways),
        f"{'':25}" + f"  {shown}" * len(ways),
    ]
    for name in (*names, "mean"):
        leaves = [[way["iou"][str(t)][name] for t in _SHOWN_T] for way in ways.values()]
        first = leaves[0][0]
        label = f"mean of {first['n_findings']}" if name == "mean" else name
        cells = "".join("  " + "".join(f"{_figure(leaf, 2):>5}" for leaf in way) for way in leaves)
        lines.append(f"{label:19}{first['n']:>6,}{cells}")
    return lines


def _mean_lines(results: Mapping[str, Any]) -> list[str]:
    ways = _ways(results["localization"])
    columns = [(measure, str(t)) for measure, ts in MEASURES.items() for t in ts]
    lines = [
        f"{'mean over findings':20}{'IoU >':<42}  IoBB >",
        f"{'':20}" + _row(columns, {column: _short(float(column[1])) for column in columns}),
    ]
    for name, way in ways.items():
        mean = {(measure, t): way[measure][t]["mean"] for measure, t in columns}
        lines.append(f"{name:20}" + _row(columns, {c: _figure(leaf) for c, leaf in mean.items()}))
        if name == "single":
            for end, label in enumerate(("  95 % from", "  95 % to")):
                ends = {c: _end(leaf, end) for c, leaf in mean.items()}
                lines.append(f"{label:20}" + _row(columns, ends))
    afp = results["localization"]["afp"]["mean"]
    lines.append(
        f"false boxes per image and finding (AFP): {_figure(afp)} {_interval(afp)}".rstrip()
    )
    return lines


def _row(columns: Sequence[tuple[str, str]], cells: Mapping[tuple[str, str], str]) -> str:
    cut = len(MEASURES["iou"])
    row = [f"{cells[column]:>6}" for column in columns]
    return "".join(row[:cut]) + "  " + "".join(row[cut:])


def _short(value: float, digits: int | None = None) -> str:
    """.5 for 0.5: the columns are narrow."""
    text = f"{value:g}" if digits is None else f"{value:.{digits}f}"
    return text.removeprefix("0") if value < 1 else text


def _figure(leaf: Mapping[str, Any], digits: int = 3) -> str:
    return "–" if leaf["value"] is None else _short(leaf["value"], digits)


def _end(leaf: Mapping[str, Any], end: int) -> str:
    return "–" if leaf["ci95"] is None else _short(leaf["ci95"][end], 3)


def _interval(leaf: Mapping[str, Any]) -> str:
    return "" if leaf["ci95"] is None else f"[{_end(leaf, 0)}, {_end(leaf, 1)}]"


def _notes(results: Mapping[str, Any]) -> list[str]:
    """What a reader must know before quoting a figure."""
    evaluation, localization = results["evaluation"], results["localization"]
    u, v = evaluation["grid"]
    notes = [
        "single: the component that holds the map's peak",
        "best_of: the best of all components, chosen with the truth in hand: optimistic",
        "prior_box, prior_map: other patients' boxes, no image; prior_map is the floor to beat",
        f"grid_ceiling: the best box made of whole cells of the {u}×{v} map",
        f"false boxes: predicted positive, no truth box or IoU ≤ {_short(evaluation['afp_iou'])}; "
        "labelled images without a box are not judged",
    ]
    judged = (("AUROC", results["classification"]["auroc"]), ("AFP", localization["afp"]))
    for label, leaves in (*judged, ("localization", localization["iou"][str(MEASURES["iou"][0])])):
        for name in results["findings"]:
            if leaves[name]["value"] is None:
                notes.append(f"– {label} of {name}: {leaves[name]['reason']}")
    skipped = evaluation["skipped"]
    if any(skipped.values()):
        notes.append(
            f"left out because an image could not be read: {skipped['val']} validation images, "
            f"{skipped['test']} test images, {skipped['boxes']} truth boxes"
        )
    return notes
