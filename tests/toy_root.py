"""Records and outputs of a root that exists only in memory, for the tests of evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kacl_jax.data.findings import FINDINGS_8
from kacl_jax.data.png_folder import PngFiles
from kacl_jax.data.records import Records
from kacl_jax.data.splits import Split, make_split
from kacl_jax.evaluation.outputs import Outputs


def toy_records(seed: int = 0, patients: int = 60, *, most_boxes: int = 1) -> Records:
    """1 to 3 images per patient; half of the patients are in the official test list and may have boxes.

    Every pair with boxes has 1 to `most_boxes` of them.
    """
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(1, patients + 1), rng.integers(1, 4, patients))
    n, c = len(patient), len(FINDINGS_8)
    labels = (rng.random((n, c)) < 0.3).astype(np.int8)
    test = patient % 2 == 0
    has_box = (labels == 1) & test[:, None] & (rng.random((n, c)) < 0.6)
    boxes = np.zeros((n, c, most_boxes, 4), np.float32)
    for place in range(most_boxes):
        low = rng.uniform(0, 0.6, (n, c, 2))
        sides = np.concatenate([low, low + rng.uniform(0.1, 0.4, (n, c, 2))], -1)
        has_more = (
            has_box if place == 0 else boxes[:, :, place - 1].any(-1) & (rng.random((n, c)) < 0.5)
        )
        boxes[:, :, place] = sides * has_more[..., None]
    names = np.array([f"{p:08d}_{i:03d}.png" for i, p in enumerate(patient)])
    return Records(
        root=Path("toy"),
        names=names,
        images=PngFiles(tuple(Path("toy/images") / name for name in names)),
        patients=patient.astype(np.int64),
        patient_names=patient.astype(str),
        labels=labels,
        boxes=boxes,
        has_box=has_box,
        official_test=test,
        findings=FINDINGS_8,
        sex=np.full(n, "F"),
        age=np.full(n, 50),
        view=np.full(n, "PA"),
        checksums={},
        missing=(),
    )


def toy_split(records: Records, protocol: str = "A") -> Split:
    return make_split(
        records,
        protocol=protocol,
        folds=5,
        fold=1,
        val_fraction=0.2,
        box_share=0.0 if protocol == "A" else 1.0,
        split_seed=0,
        version=2,
    )


def toy_outputs(records: Records, ids: np.ndarray, seed: int = 0, grid: int = 7) -> Outputs:
    """Logits that are better than chance; maps of noise that is brighter inside the truth boxes."""
    rng = np.random.default_rng(seed)
    labels, boxes = records.labels[ids].astype(float), records.boxes[ids]
    logits = labels + rng.normal(size=labels.shape)
    centre = (np.arange(grid) + 0.5) / grid
    across = (boxes[..., 0, None] <= centre) & (centre < boxes[..., 2, None])
    down = (boxes[..., 1, None] <= centre) & (centre < boxes[..., 3, None])
    maps = rng.normal(size=(*labels.shape, grid, grid))
    maps += 1.5 * (down[..., :, None] & across[..., None, :]).any(2)
    return Outputs(np.asarray(ids), logits.astype(np.float32), maps.astype(np.float32))
