"""The step on one and on four devices, its statistics, and what must never change them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_step import LOSS, TINY, C, F, TinyKACL, close, first_state, make_batch, programs

from kacl_jax import radiomics
from kacl_jax.models.kacl import KACL
from kacl_jax.runtime.devices import AXIS, DataParallel
from kacl_jax.step import gradcam, losses
from kacl_jax.step.box_area import union_area
from kacl_jax.step.objective import Objective
from kacl_jax.step.scaling import z_score
from kacl_jax.step.state import TrainState

MODES = ["shard_map", "pmap"]
RESNET = KACL("resnet18", C, axis_name=AXIS)


Stepped = tuple[TrainState, dict[str, np.ndarray], dict[str, np.ndarray]]


@functools.cache
def stepper(
    mode: str = "shard_map", n_devices: int = 1, model: KACL = TINY
) -> Callable[..., Stepped]:
    """A state and batches, one step for each → (state, metrics, rows) of the last one."""
    parallel = DataParallel(mode, jax.devices()[:n_devices])  # type: ignore[arg-type]
    step = parallel.compile(
        programs(model=model).train_step,
        ("replicated", "replicated", "sharded"),
        donate_state=True,
    )

    def run(state: TrainState, *batches: dict[str, np.ndarray]) -> Stepped:
        placed = parallel.replicate(state)
        for batch in batches:
            placed, metrics, rows = step(placed, parallel.shard(batch))
        return (
            parallel.fetch(placed, "replicated"),
            parallel.fetch(metrics, "replicated"),
            parallel.fetch(rows, "sharded"),
        )

    return run


@functools.cache
def one_device(model: KACL = TINY) -> Stepped:
    return stepper(model=model)(first_state(model), make_batch())


@pytest.mark.parametrize(
    ("mode", "n_devices", "model"),
    [("shard_map", 4, RESNET), ("shard_map", 2, TINY), ("shard_map", 4, TINY), ("pmap", 4, TINY)],
    ids=["shard_map-4-resnet18", "shard_map-2", "shard_map-4", "pmap-4"],
)
def test_four_devices_equal_one_on_the_same_global_batch(
    mode: str, n_devices: int, model: KACL
) -> None:
    """Loss, gradients, BatchNorm and feature statistics, mean map and CAMs."""
    state, metrics, rows = stepper(mode, n_devices, model)(first_state(model), make_batch())
    reference, reference_metrics, reference_rows = one_device(model)
    close(metrics, reference_metrics)
    before = first_state(model).params
    gradients = jax.tree.map(lambda new, old: old - new, state.params, before)
    close(gradients, jax.tree.map(lambda new, old: old - new, reference.params, before))
    close(state.batch_stats, reference.batch_stats)
    for name in ("feature_mean", "feature_var", "feature_count", "cam_mean", "cam_count", "step"):
        close(getattr(state, name), getattr(reference, name))
    close(rows["cam"], reference_rows["cam"])
    np.testing.assert_array_equal(rows["box_finding"], reference_rows["box_finding"])


def test_the_gradient_is_that_of_the_global_loss_written_down_plainly() -> None:
    """An oracle without mapped axes: one device, whole batch, the terms of design spelled out."""
    state, batch = jax.tree.map(jnp.asarray, (first_state(), make_batch()))
    model = TinyKACL()
    x = jnp.where(batch["ready"][:, None], batch["radiomics"], 0)
    x = jnp.where(jnp.array(radiomics.LOG_COLUMNS), jnp.sign(x) * jnp.log1p(jnp.abs(x)), x)
    ready = batch["ready"]
    z = jnp.clip((x - x[ready].mean(0)) / x[ready].std(0), -10, 10)

    def total(params: Any) -> jax.Array:
        variables = {"params": params, "batch_stats": state.batch_stats}
        grey = batch["image"].astype(jnp.float32) / 255
        images = (grey - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
        apply = functools.partial(model.apply, variables, mutable=["batch_stats"])
        feature_map, _ = apply(images, train=True, method="feature_map")
        logits = model.apply(variables, feature_map, method="classify")
        z_image = model.apply(variables, feature_map, method="project_image")
        z_radiomics, _ = apply(z, ready, train=True, method="project_radiomics")
        focal = optax.losses.sigmoid_focal_loss(logits, batch["labels"], alpha=0.25, gamma=2.0)
        contrast, anchors = losses.nt_xent(
            z_image,
            z_radiomics,
            ready=ready,
            patient_id=batch["patient_id"],
            temperature=0.5,
            mask_same_patient=True,
        )
        kernel = params["classifier"]["kernel"]
        maps = jnp.einsum("buvk,kc->bcuv", feature_map, kernel)
        box, pairs = losses.box_guidance(
            maps, union_area(batch["boxes"], *maps.shape[2:]), batch["has_box"]
        )
        return (
            0.8 * focal.sum(1).mean()
            + 0.2 * contrast.sum() / anchors.sum()
            + 0.1 * box.sum() / pairs.sum()
        )

    expected = jax.jit(jax.grad(total))(state.params)
    after, metrics, _ = one_device()
    close(jax.tree.map(lambda new, old: old - new, after.params, state.params), expected)
    np.testing.assert_allclose(metrics["loss"], total(state.params), rtol=1e-4)


# One step from fixed weights on a fixed batch. `cam` is the sum of the maps' sizes.
GOLDEN = {
    "loss": 1.965078,
    "focal": 0.926659,
    "nt_xent": 3.935294,
    "box": 4.366924,
    "grad_norm": 0.578088,
    "grad_norm_focal": 0.0110296,
    "grad_norm_nt_xent": 0.0247735,
    "grad_norm_box": 0.126705,
    "cam": 422.3369,
}


def test_one_step_gives_the_golden_numbers() -> None:
    _, metrics, rows = one_device()
    numbers = {**metrics, "cam": np.abs(rows["cam"]).sum()}
    changed = {
        name: f"{golden} → {float(numbers[name]):.7g}"
        for name, golden in GOLDEN.items()
        if not np.isclose(numbers[name], golden, rtol=1e-4)
    }
    assert not changed, (
        f"The step computes something else: {changed}. Put the new numbers into GOLDEN only if a formula was meant to "
        "change, and say in DECISIONS.md why; results of earlier commits are then no longer comparable. A change of "
        "layout, names or speed must not move them."
    )


def test_cams_in_the_step_are_grad_cams_of_the_marked_finding() -> None:
    state, batch = jax.tree.map(jnp.asarray, (first_state(), make_batch()))
    after, _, rows = one_device()
    model = TinyKACL()
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    grey = batch["image"].astype(jnp.float32) / 255
    images = (grey - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    feature_map, _ = model.apply(
        variables, images, train=True, method="feature_map", mutable=["batch_stats"]
    )
    logits = model.apply(variables, feature_map, method="classify")
    finding = gradcam.region_finding(logits, batch["labels"])
    cam = jnp.einsum("buvk,kb->buv", feature_map, state.params["classifier"]["kernel"][:, finding])
    close(rows["cam"], np.asarray(cam))
    every = jnp.einsum("buvk,kc->cuv", feature_map, state.params["classifier"]["kernel"])
    close(after.cam_mean, np.asarray(every) / len(feature_map))
    annotated = batch["has_box"].any(1)
    np.testing.assert_array_equal(rows["box_finding"], np.where(annotated, 1, -1))


def test_rows_without_features_change_nothing_but_their_own_focal_loss() -> None:
    """NaN in the features of a row that is not ready reaches neither loss nor gradient."""
    poisoned = make_batch()
    poisoned["radiomics"][~poisoned["ready"]] = np.nan
    state, metrics, _ = stepper()(first_state(), poisoned)
    reference, reference_metrics, _ = one_device()
    assert metrics["bad_step"] == -1
    close(metrics, reference_metrics, within=1e-6)
    close(state.params, reference.params, within=1e-6)


def test_with_fewer_than_eight_ready_rows_there_is_no_contrastive_loss_and_no_moved_statistic() -> (
    None
):
    before = first_state()
    state, metrics, _ = stepper("shard_map", 4)(before, make_batch(n_ready=7))
    np.testing.assert_allclose(
        metrics["loss"], 0.8 * metrics["focal"] + 0.1 * metrics["box"], rtol=1e-6
    )
    assert state.feature_count == 0
    np.testing.assert_array_equal(state.feature_mean, before.feature_mean)
    close(state.params["radiomics_head"], before.params["radiomics_head"], within=0)
    close(
        state.batch_stats["radiomics_encoder"],
        before.batch_stats["radiomics_encoder"],
        within=0,
    )


def test_what_no_row_has_is_nan_among_the_metrics_and_nothing_in_the_loss() -> None:
    batch = make_batch(n_ready=0)
    batch["has_box"][:] = False
    state, metrics, _ = stepper("shard_map", 4)(first_state(), batch)
    np.testing.assert_allclose(metrics["loss"], 0.8 * metrics["focal"], rtol=1e-6)
    assert np.isfinite(metrics["grad_norm"])
    assert state.bad_step == -1
    for name in ("nt_xent", "box", "grad_norm_nt_xent", "grad_norm_box", "age"):
        assert np.isnan(metrics[name]), name


def test_warm_up_is_without_the_contrastive_loss_only() -> None:
    objective = Objective(TINY, LOSS, (True,) * F, warmup_steps=5)
    counts = {"nt_xent": jnp.float32(2 * 11)}
    warm, after = (objective.weights(jnp.int32(step), counts) for step in (4, 5))
    assert warm == pytest.approx({"focal": 0.8, "nt_xent": 0.0, "box": 0.1})
    assert after == pytest.approx({"focal": 0.8, "nt_xent": 0.2, "box": 0.1})


def test_running_moments_are_those_of_all_steps_weighed_by_their_age() -> None:
    """Bias-corrected exponential weights: of the features over ready rows, of the maps over all."""
    state, run = first_state(), stepper()
    weight, moments, maps = 0.0, np.zeros((2, F)), np.zeros_like(state.cam_mean)
    for seed in range(3):
        batch = make_batch(seed=seed)
        x = batch["radiomics"][batch["ready"]].astype(np.float64)
        x = np.where(radiomics.LOG_COLUMNS, np.sign(x) * np.log1p(np.abs(x)), x)
        moments = 0.99 * moments + 0.01 * np.array([x.mean(0), (x**2).mean(0)])
        # What this step alone would make of it: its batch's mean.
        alone, _, _ = run(state.replace(cam_count=np.int32(0)), batch)
        maps = 0.99 * maps + 0.01 * alone.cam_mean
        weight = 0.99 * weight + 0.01
        state, _, _ = run(state, batch)
    mean, square = moments / weight
    np.testing.assert_allclose(state.feature_mean, mean, rtol=1e-4)
    np.testing.assert_allclose(state.feature_var, square - mean**2, rtol=1e-3)
    close(state.cam_mean, maps / weight, within=1e-5)
    assert state.cam_count == state.feature_count == 3


def test_bfloat16_computes_close_to_float32_and_keeps_float32_parameters() -> None:
    half = TinyKACL(dtype=jnp.bfloat16, axis_name=AXIS)
    state, metrics, rows = stepper(model=half)(first_state(), make_batch())
    _, reference, _ = one_device()
    np.testing.assert_allclose(metrics["loss"], reference["loss"], rtol=1e-2)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype(np.float32)}
    assert rows["cam"].dtype == np.float32


def test_z_score_of_a_constant_column_is_zero_and_outliers_are_clipped() -> None:
    x = jnp.array([[5.0, 1e9], [5.0, 0.0]])
    z = z_score(x, jnp.array([5.0, 0.0]), jnp.array([0.0, 1.0]))
    np.testing.assert_array_equal(z, [[0, 10], [0, 0]])


@pytest.mark.parametrize("mode", MODES)
def test_a_step_that_is_not_finite_on_one_device_changes_nothing_and_stays_flagged(
    mode: str,
) -> None:
    """A label of the last device's rows only is not a number."""
    good, bad = make_batch(), make_batch()
    bad["labels"][-1] = np.nan
    run = stepper(mode, 4)
    after_good, _, _ = run(first_state(), good)
    state, metrics, _ = run(first_state(), good, bad, good)
    assert metrics["bad_step"] == 1
    assert state.bad_step == 1
    assert state.step == 1
    close(state.params, after_good.params, within=0)


@pytest.mark.parametrize("mode", MODES)
def test_norms_of_the_terms_gradients_are_measured_in_logged_steps_only(mode: str) -> None:
    """And nothing else depends on them."""
    parallel = DataParallel(mode, jax.devices()[:2])  # type: ignore[arg-type]
    every, second = (
        parallel.compile(programs(log_every=n).train_step, ("replicated", "replicated", "sharded"))
        for n in (1, 2)
    )
    state = other = parallel.replicate(first_state())
    for step in range(3):
        batch = parallel.shard(make_batch(seed=step))
        (state, metrics, _), (other, sparse, _) = every(state, batch), second(other, batch)
        metrics, sparse = (parallel.fetch(m, "replicated") for m in (metrics, sparse))
        norms = [name for name in metrics if name.startswith("grad_norm_")]
        assert len(norms) == 3
        for name, value in metrics.items():
            assert np.isfinite(value), name
            expected = np.nan if name in norms and step % 2 else value
            np.testing.assert_array_equal(sparse[name], expected, name)
    close(other, state, within=0)


def test_the_step_compiles_once_and_moves_nothing_implicitly() -> None:
    parallel = DataParallel("shard_map")
    step = parallel.compile(
        programs().train_step, ("replicated", "replicated", "sharded"), donate_state=True
    )
    state = parallel.replicate(first_state())
    donated = state.params["classifier"]["kernel"]
    with jax.transfer_guard("disallow"):
        for seed in range(4):
            state, metrics, _ = step(state, parallel.shard(make_batch(n_ready=8 + seed, seed=seed)))
            if seed == 1:
                compiled = step._cache_size()
        parallel.fetch(metrics, "replicated")
    assert step._cache_size() == compiled
    assert donated.is_deleted()


def test_grad_cam_adds_almost_no_work_to_the_step() -> None:
    """No second pass: a pass through the encoder forward is a third of the step."""
    program = programs(model=RESNET, loss=dataclasses.replace(LOSS, box_weight=0.0))
    parallel = DataParallel("shard_map", jax.devices()[:1])
    state, batch = parallel.replicate(first_state(RESNET)), parallel.shard(make_batch())

    def flops(function: Any, outputs: tuple[Any, ...]) -> float:
        compiled = parallel.compile(function, outputs).lower(state, batch).compile()  # type: ignore[attr-defined]
        return compiled.cost_analysis()["flops"]

    def without_cam(s: TrainState, b: Any) -> tuple[Any, Any]:
        new, metrics, _ = program.train_step(s, b)
        return new.replace(cam_mean=s.cam_mean), metrics

    whole = flops(program.train_step, ("replicated", "replicated", "sharded"))
    bare = flops(without_cam, ("replicated", "replicated"))
    assert whole / bare < 1.02
