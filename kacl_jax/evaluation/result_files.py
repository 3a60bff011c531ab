"""The files that evaluation writes.

Every file is written completely or not at all. Floats are written with all their digits and rows in a fixed order:
equal results give equal bytes.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from kacl_jax.data.records import Records, to_nih_pixels
from kacl_jax.data.splits import Split
from kacl_jax.evaluation.evaluate import Evaluation
from kacl_jax.evaluation.localization import AFP_IOU, PredictedBoxes
from kacl_jax.evaluation.metrics import Table
from kacl_jax.evaluation.outputs import Outputs, probabilities
from kacl_jax.evaluation.results import (
    Extent,
    FeedbackSummary,
    Fused,
    Images,
    Results,
    Skipped,
    Throughput,
)
from kacl_jax.runtime import files


def write_tables(
    folder: Path, records: Records, split: Split, evaluation: Evaluation
) -> dict[str, str]:
    """Write predictions.csv and boxes.csv. Returns the sha256 of each."""
    predictions, boxes = folder / "predictions.csv", folder / "boxes.csv"
    write_predictions(predictions, records, split, val=evaluation.val, test=evaluation.test)
    write_boxes(boxes, records, evaluation.predicted_boxes, evaluation.prior_map_iou)
    return {path.name: files.file_sha256(path) for path in (predictions, boxes)}


def write_predictions(
    path: Path,
    records: Records,
    split: Split,
    *,
    val: Outputs,
    test: Outputs,
    notes: Mapping[str, Mapping[int, Any]] = MappingProxyType({}),
) -> None:
    """predictions.csv: image,patient,split,prob_<Finding> …,label_<Finding> …, val then test.

    An unknown label is blank.
    notes: more columns, behind `split`: their names, and the cell of each image.
    """
    header = ["image", "patient", "split", *notes]
    header += [f"{kind}_{name}" for kind in ("prob", "label") for name in records.findings]

    def make_rows() -> Iterable[list[Any]]:
        for part, ids, outputs in (("val", split.val, val), ("test", split.test, test)):
            output_rows = outputs.rows(ids)
            scores = probabilities(outputs, output_rows, records).tolist()
            for image, probability in zip(
                outputs.image_id[output_rows].tolist(), scores, strict=True
            ):
                labels = ["" if label < 0 else label for label in records.labels[image].tolist()]
                yield [
                    records.names[image],
                    records.patient_names[image],
                    part,
                    *(column[image] for column in notes.values()),
                    *probability,
                    *labels,
                ]

    files.write_text(path, _csv_text(header, make_rows()))


def write_boxes(
    path: Path, records: Records, predicted_boxes: PredictedBoxes, prior_map_iou: np.ndarray
) -> None:
    """boxes.csv: image,finding,x,y,w,h,score,iou,iobb,prior_map_iou; rule single.

    There is one row per scored truth box, and one per (image, finding) without any that is predicted positive. The box
    is the predicted one, in NIH's 1024-pixel frame; score is the probability. iou, iobb and prior_map_iou (float64 [m],
    as in `Evaluation`) are empty without a truth box, the last also where no other patient has a box of the finding.
    """
    pixels = to_nih_pixels(predicted_boxes.box).tolist()
    overlaps = [
        [iou, iobb, "" if math.isnan(prior_iou) else prior_iou]
        for iou, iobb, prior_iou in zip(
            *(x.tolist() for x in (predicted_boxes.iou, predicted_boxes.iobb, prior_map_iou)),
            strict=True,
        )
    ]
    without_truth = np.flatnonzero(~predicted_boxes.scored)
    overlaps += [[""] * 3] * len(without_truth)
    pair = np.concatenate([predicted_boxes.truth_pair, without_truth])

    def make_rows() -> Iterable[list[Any]]:
        for row in np.argsort(pair, kind="stable"):
            k = pair[row]
            yield [
                records.names[predicted_boxes.image_id[k]],
                records.findings[predicted_boxes.finding[k]],
                *pixels[k],
                float(predicted_boxes.score[k]),
                *overlaps[row],
            ]

    header = ["image", "finding", *"xywh", "score", "iou", "iobb", "prior_map_iou"]
    files.write_text(path, _csv_text(header, make_rows()))


def build_results(
    evaluation: Evaluation,
    records: Records,
    split: Split,
    *,
    seed: int,
    feedback: FeedbackSummary,
    throughput: Throughput,
    best_step: int,
    trained_steps: int,
    best_step_reason: str = "",
    best_step_lost: int | None = None,
    weights_note: str = "",
    digests: dict[str, str] | None = None,
    pixel_probe: Table | None = None,
    fused: Fused | None = None,
) -> Results:
    """The results of a run: its evaluation, and what only the run knows (see `Results` and `Classification`)."""
    predicted_boxes = evaluation.predicted_boxes
    images = Images(
        val=len(evaluation.val.rows(split.val)), test=len(evaluation.test.rows(split.test))
    )
    rows, columns = evaluation.test.class_maps().shape[2:]
    return Results(
        protocol=split.protocol,
        fold=split.fold,
        split=split.name,
        split_hash=split.hash,
        seed=seed,
        findings=records.findings,
        classification=dataclasses.replace(evaluation.classification, pixel_probe=pixel_probe),
        localization=evaluation.localization,
        subgroups=evaluation.subgroups,
        evaluation=Extent(
            images=images,
            skipped=Skipped(
                val=len(split.val) - images.val,
                test=len(split.test) - images.test,
                boxes=int(records.is_box[split.scored].sum()) - len(predicted_boxes.truth),
            ),
            grid=(rows, columns),
            predicted_boxes=len(predicted_boxes.box),
            whole_image_boxes=int(predicted_boxes.fallback.sum()),
            afp_iou=AFP_IOU,
            resamples=evaluation.resamples,
        ),
        feedback=feedback,
        throughput=throughput,
        best_step=best_step,
        trained_steps=trained_steps,
        best_step_reason=best_step_reason,
        best_step_lost=best_step_lost,
        weights_note=weights_note,
        digests=digests,
        fused=fused,
    )


def _csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
