"""Radiomics inside the train step: the host's regions, the host's features, the host's training."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import cv2
import jax
import numpy as np
import optax
import pytest

from kacl_jax import gradcam, radiomics
from kacl_jax.fresh import FAILURES, ORIGINS, FreshRadiomics
from kacl_jax.models import KACL
from kacl_jax.parallel import AXIS, DataParallel
from kacl_jax.radiomics.host import Extractor, RadiomicsError
from kacl_jax.roi import RegionRule
from kacl_jax.step import Augmentation, Loss, Programs, TrainState

C, SIZE, B, F = 8, 64, 16, len(radiomics.FEATURE_NAMES)
LOSS = Loss(
    focal_weight=0.8,
    focal_alpha=0.25,
    focal_gamma=2.0,
    temperature=0.5,
    mask_same_patient=True,
    box_weight=0.1,
)
REGION: dict[str, Any] = {
    "source": "cam",
    "truth_boxes": True,
    "relu": True,
    "threshold": 0.5,
    "size": SIZE,
}


def maps(n: int, u: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    smooth = [cv2.GaussianBlur(random.normal(size=(u, u)), (0, 0), 0.8) for _ in range(n)]
    return np.stack(smooth).astype(np.float32)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(("u", "size", "threshold"), [(7, 224, 0.5), (2, 64, 0.5), (14, 96, 0.2)])
def test_regions_on_the_device_are_those_of_the_host(relu, u, size, threshold) -> None:
    cams = maps(60, u)
    cams[0], cams[1], cams[2, 0, 0] = 0, -1 - np.abs(cams[1]), np.nan
    how = {"size": size, "relu": relu, "threshold": threshold}
    masks, fallback = jax.jit(lambda cam: gradcam.peak_masks(cam, **how))(cams)
    host = [gradcam.regions(cam, **how) for cam in cams]
    assert fallback.tolist() == [region.fallback for region in host]
    assert 0 < np.count_nonzero(fallback) < 40
    differing = [
        np.count_nonzero(m != r.mask) for m, r in zip(np.asarray(masks), host, strict=True)
    ]
    # A pixel whose heat is the threshold to the last bit may fall on either side.
    assert max(differing) <= 1
    assert sum(differing) <= 2


def test_a_winding_region_is_followed_to_its_end() -> None:
    spiral = np.zeros((1, 9, 9), bool)
    y, x, dy, dx = 0, 0, 0, 1
    for length in (8, 8, 8, 6, 6, 4, 4, 2, 2):
        for _ in range(length):
            spiral[0, y, x] = True
            y, x = y + dy, x + dx
        dy, dx = dx, -dy
    spiral[0, y, x] = True
    seed = np.zeros((9, 9), bool)
    seed[0, 0] = True
    np.testing.assert_array_equal(gradcam._component(spiral, seed), spiral)


def test_boxes_on_the_device_are_those_of_the_host() -> None:
    random = np.random.default_rng(0)
    low, extent = random.uniform(0, 1, (300, 2)), random.uniform(0, 0.4, (300, 2)) ** 2
    boxes = np.concatenate([low, np.minimum(low + extent, 1)], 1).astype(np.float32)
    masks = gradcam.box_masks(boxes, 96)
    np.testing.assert_array_equal(masks, np.stack([gradcam.box_mask(box, 96) for box in boxes]))


@pytest.mark.parametrize("source", ["cam", "whole"])
@pytest.mark.parametrize("shape", ["mask", "box"])
def test_from_equal_masks_the_device_marks_the_regions_of_the_host(
    source: Any, shape: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both shapes, truth boxes among them; that the masks themselves are equal is tested above."""
    random = np.random.default_rng(0)
    cam, box_finding = maps(40, 7), np.full(40, -1)
    cam[:2], box_finding[::5] = 0, 1
    low = random.uniform(0, 0.5, (40, C, 2))
    boxes = np.concatenate([low, low + 0.4], -1).astype(np.float32)

    def on_the_host(cam: np.ndarray, **how: Any) -> tuple[np.ndarray, np.ndarray]:
        found = [gradcam.regions(one, **how) for one in cam]
        return np.stack([f.mask for f in found]), np.array([f.fallback for f in found])

    monkeypatch.setattr(gradcam, "peak_masks", on_the_host)
    region = {**REGION, "source": source, "shape": shape}
    device, origin = FreshRadiomics(**region, bin_width=25.0).mark(cam, box_finding, boxes)
    host, counted = RegionRule(**region, seed=0).mark(cam, box_finding, boxes, np.arange(40), 0)
    np.testing.assert_array_equal(device, host)
    assert Counter(ORIGINS[k] for k in np.asarray(origin)) == +Counter(counted)


def program(**changed: Any) -> Programs:
    """SGD with rate 1 makes the parameter change the gradient itself."""
    plain = Programs(
        model=KACL("resnet18", C, axis_name=AXIS),
        optimizer=optax.sgd(1.0),
        loss=LOSS,
        augmentation=Augmentation(rotate=8.0, shift=0.05),
        log_columns=radiomics.LOG_COLUMNS,
        warmup_steps=0,
        center_cam=False,
        seed=0,
    )
    return dataclasses.replace(plain, **changed)


FRESH = FreshRadiomics(**REGION, bin_width=25.0)


def batch(seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    blurred = [
        cv2.GaussianBlur(random.normal(size=(SIZE, SIZE)), (0, 0), random.uniform(1, 6))
        for _ in range(B)
    ]
    grey = [np.interp(x, (x.min(), x.max()), (0, random.uniform(60, 255))) for x in blurred]
    low = random.uniform(0, 0.5, (B, C, 2))
    has_box = np.zeros((B, C), bool)
    has_box[:3, 1] = True
    return {
        "image": np.stack(grey).astype(np.uint8)[..., None],
        "labels": (random.random((B, C)) < 0.3).astype(np.float32),
        "boxes": np.concatenate([low, low + 0.4], -1).astype(np.float32),
        "has_box": has_box,
        "image_id": np.arange(100 * seed, 100 * seed + B, dtype=np.int32),
        "patient_id": np.arange(B, dtype=np.int32) // 2,
        "radiomics": np.zeros((B, F), np.float32),
        "ready": np.zeros(B, bool),
        "age": np.zeros(B, np.int32),
    }


def first_state(parallel: DataParallel) -> Any:
    made = program()
    variables = jax.jit(
        lambda: made.model.init(
            jax.random.key(0),
            np.zeros((1, SIZE, SIZE, 3), np.float32),
            np.zeros((1, F), np.float32),
            np.zeros(1, bool),
            train=False,
        )
    )()
    return parallel.replicate(jax.device_get(made.init(variables, SIZE)))


def on_the_host(
    parallel: DataParallel, state: Any, given: dict[str, np.ndarray], region_step: Any
) -> dict[str, np.ndarray]:
    """What lag 0 does: the step's regions, measured by pyradiomics."""
    (placed_rows,) = region_step(state, parallel.shard(given))
    rows = parallel.fetch(placed_rows, "sharded")
    rule = RegionRule(**REGION, seed=0)
    masks, _ = rule.mark(rows["cam"], rows["box_finding"], given["boxes"], given["image_id"], 0)
    extractor = Extractor()
    found = [extractor.extract(x[..., 0], m) for x, m in zip(given["image"], masks, strict=True)]
    features = np.stack(found).astype(np.float32)
    ready = np.isfinite(features).all(1)
    return {**given, "radiomics": np.where(ready[:, None], features, 0), "ready": ready}


def steps(
    n: int, mode: str, devices: int, *, rate: float = 1.0
) -> tuple[TrainState, TrainState, dict[str, np.ndarray]]:
    """(state after n steps inside, on the host, last metrics inside)."""
    parallel = DataParallel(mode, jax.devices()[:devices])  # type: ignore[arg-type]
    outputs = ("replicated", "replicated", "sharded")
    inside = parallel.run(program(fresh=FRESH, optimizer=optax.sgd(rate)).train_step, outputs)
    outside = parallel.run(program(optimizer=optax.sgd(rate)).train_step, outputs)
    region_step = parallel.run(program().region_step, ("sharded",))
    a = b = first_state(parallel)
    for seed in range(n):
        given = batch(seed)
        measured = on_the_host(parallel, b, given, region_step)
        assert measured["ready"].sum() >= 8
        a, metrics, _ = inside(a, parallel.shard(given))
        b, _, _ = outside(b, parallel.shard(measured))
    return (
        parallel.fetch(a, "replicated"),
        parallel.fetch(b, "replicated"),
        parallel.fetch(metrics, "replicated"),
    )


def close(ours: Any, reference: Any, *, within: float) -> None:
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(reference), strict=True
    ):
        error = np.linalg.norm(np.asarray(a, np.float64) - b)
        assert error <= within * np.linalg.norm(b) + 1e-6, (jax.tree_util.keystr(path), error)


@pytest.mark.parametrize(("mode", "devices"), [("shard_map", 2), ("pmap", 2)])
def test_one_step_has_the_gradients_of_the_synchronous_host_loop(mode, devices) -> None:
    inside, outside, metrics = steps(1, mode, devices)
    assert metrics["ready"] >= 8
    assert metrics["nt_xent"] > 0
    close(inside.feature_mean, outside.feature_mean, within=1e-4)
    close(inside.params, outside.params, within=1e-3)
    close(inside.batch_stats, outside.batch_stats, within=1e-3)


def test_three_steps_train_the_same() -> None:
    """At a rate at which training does not amplify rounding; see DECISIONS.md, "Radiomics in the step"."""
    inside, outside, _ = steps(3, "shard_map", 1, rate=1e-3)
    start = first_state(DataParallel("shard_map", jax.devices()[:1])).params
    close(inside.feature_var, outside.feature_var, within=1e-3)
    moved = [
        jax.tree.map(lambda a, b: np.asarray(a) - b, x.params, start) for x in (inside, outside)
    ]
    close(*moved, within=1e-2)


def test_a_region_without_features_is_not_ready_and_told_why(monkeypatch) -> None:
    """Too many grey levels; two far pixels, of which pyradiomics makes NaN; a line, which it refuses."""
    given = batch(0)
    grey = given["image"][..., 0]
    images = np.concatenate([grey[:4] // 3, grey[4:8]])
    masks = np.zeros((8, SIZE, SIZE), bool)
    masks[:, 1:-1, 1:-1] = True
    masks[:2] = False
    masks[0, 5, 5] = masks[0, 40, 20] = masks[1, 7, 3:9] = True
    wide = [bool(np.ptp(image[1:-1, 1:-1]) // 2 + 2 > 64) for image in images[2:]]
    assert 0 < sum(wide) < 6
    with pytest.raises(RadiomicsError, match="a line"):
        Extractor(2.0).extract(images[1], masks[1])
    nan = np.flatnonzero(~np.isfinite(Extractor(2.0).extract(images[0], masks[0])))[0]
    expected = [f"non-finite: {radiomics.FEATURE_NAMES[nan]}", "a line"]
    expected += ["too many grey levels" if w else "" for w in wide]

    rule = FreshRadiomics(**REGION, bin_width=2.0)
    origin = np.full(8, ORIGINS.index("truth"))
    monkeypatch.setattr(FreshRadiomics, "mark", lambda *_: (masks, origin))
    cam, finding = np.zeros((8, 2, 2), np.float32), np.full(8, -1, np.int32)
    found = jax.device_get(jax.jit(rule.measure)(images, cam, finding, given["boxes"][:8]))
    assert [FAILURES[k] for k in found.failure] == expected
    assert found.ready.tolist() == [not why for why in expected]
    assert {ORIGINS[k] for k in found.origin} == {"truth"}
    assert (found.radiomics[~found.ready] == 0).all()
    assert (found.radiomics[found.ready] != 0).any(1).all()
