"""Radiomics inside the train step: the host's regions, the host's features, the host's training."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_step
from tiny_step import SIZE, B, close, make_batch

from kacl_jax import radiomics
from kacl_jax.radiomics.host import Extractor, RadiomicsError
from kacl_jax.runtime.devices import DataParallel
from kacl_jax.step.augment import Augmentation
from kacl_jax.step.in_step_radiomics import FAILURES, InStepRadiomics
from kacl_jax.step.regions import ORIGINS, RegionRule
from kacl_jax.step.state import TrainState

RULE = RegionRule(source="cam", truth_boxes=True, relu=True, threshold=0.5, size=SIZE, seed=0)


FRESH = InStepRadiomics(RULE, bin_width=25.0)


def sgd(rate: float) -> optax.GradientTransformationExtraArgs:
    """The rate is part of the state: one compiled step serves every rate."""
    return optax.inject_hyperparams(optax.sgd)(learning_rate=rate)


def batch(seed: int) -> dict[str, np.ndarray]:
    """Of other images for each seed, none with features yet."""
    made = make_batch(n_ready=0, seed=seed, blur=(1, 6))
    return {
        **made,
        "image_id": np.arange(100 * seed, 100 * seed + B, dtype=np.int32),
        "radiomics": np.zeros_like(made["radiomics"]),
        "age": np.zeros_like(made["age"]),
    }


def on_the_host(
    parallel: DataParallel, state: Any, given: dict[str, np.ndarray], region_step: Any
) -> dict[str, np.ndarray]:
    """What lag 0 does: the step's regions, measured by pyradiomics."""
    (placed_rows,) = region_step(state, parallel.shard(given))
    rows = parallel.fetch(placed_rows, "sharded")
    masks, _ = RULE.mark(rows["cam"], rows["box_finding"], given["boxes"], given["image_id"], 0)
    extractor = Extractor()
    found = [extractor.extract(x[..., 0], m) for x, m in zip(given["image"], masks, strict=True)]
    features = np.stack(found).astype(np.float32)
    ready = np.isfinite(features).all(1)
    return {**given, "radiomics": np.where(ready[:, None], features, 0), "ready": ready}


@functools.cache
def compiled(cam_stage: int) -> tuple[DataParallel, Any, Any, Any]:
    """(two devices; the step with radiomics inside, the one that is fed by the host, and its regions)."""
    parallel = DataParallel("shard_map", jax.devices()[:2])
    views = Augmentation(rotate=8.0, shift=0.05)
    plain = tiny_step.programs(
        augmentation=views, center_cam=False, optimizer=sgd(1.0), cam_stage=cam_stage
    )
    outputs = ("replicated", "replicated", "sharded")
    inside = parallel.compile(
        dataclasses.replace(plain, in_step_radiomics=FRESH).train_step, outputs
    )
    outside = parallel.compile(plain.train_step, outputs)
    return parallel, inside, outside, parallel.compile(plain.region_step, ("sharded",))


def steps(
    n: int, rate: float, cam_stage: int = 4
) -> tuple[TrainState, TrainState, dict[str, np.ndarray]]:
    """(state after n steps inside, on the host, last metrics inside)."""
    parallel, inside, outside, region_step = compiled(cam_stage)
    start = tiny_step.first_state(cam_stage=cam_stage)
    a = b = parallel.replicate(start.replace(opt_state=sgd(rate).init(start.params)))
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


@pytest.mark.parametrize("cam_stage", [3, 4])
def test_one_step_has_the_gradients_of_the_synchronous_host_loop(cam_stage: int) -> None:
    inside, outside, metrics = steps(1, rate=1.0, cam_stage=cam_stage)
    assert metrics["ready"] >= 8
    assert metrics["nt_xent"] > 0
    close(inside.feature_mean, outside.feature_mean, within=1e-4)
    close(inside.params, outside.params, within=1e-3)
    close(inside.batch_stats, outside.batch_stats, within=1e-3)


def test_three_steps_train_the_same() -> None:
    """At a rate at which training does not amplify rounding; see DECISIONS.md, "Radiomics in the step"."""
    inside, outside, _ = steps(3, rate=1e-4)
    start = tiny_step.first_state().params
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

    narrow = InStepRadiomics(RULE, bin_width=2.0)
    marked = jnp.asarray(masks), jnp.full(8, ORIGINS.index("truth"))
    monkeypatch.setattr(RegionRule, "mark_on_device", lambda *_: marked)
    cam, finding = np.zeros((8, 2, 2), np.float32), np.full(8, -1, np.int32)
    found = jax.device_get(jax.jit(narrow.measure)(images, cam, finding, given["boxes"][:8]))
    assert [FAILURES[k] for k in found.failure] == expected
    assert found.ready.tolist() == [not why for why in expected]
    assert {ORIGINS[k] for k in found.origin} == {"truth"}
    assert (found.radiomics[~found.ready] == 0).all()
    assert (found.radiomics[found.ready] != 0).any(1).all()


@pytest.mark.parametrize("platform,formulation", [("cpu", "scatter"), ("tpu", "matmul")])
def test_the_device_that_a_program_is_compiled_for_chooses_how_to_count(
    platform: str, formulation: str
) -> None:
    """A CPU traces the program. Only the one-hot matrices, whose products count on a TPU, are bfloat16."""
    given = batch(0)
    cam, finding = np.zeros((B, 2, 2), np.float32), np.full(B, -1, np.int32)
    traced = jax.jit(FRESH.measure).trace(given["image"][..., 0], cam, finding, given["boxes"])
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("bf16" in text) == (formulation == "matmul")
