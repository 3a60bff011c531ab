"""The arms that are more than a number in the config: a second augmented view, fewer features, an earlier map.

The image encoder is that of tiny_run.py, so that a step compiles in a second.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_step
import tiny_run
from test_step import LOSS, SIZE, B, C, close, make_batch

from kacl_jax import augment, gradcam, models, radiomics
from kacl_jax.models import KACL
from kacl_jax.parallel import AXIS, DataParallel
from kacl_jax.step import Augmentation, Programs, TrainState, normalise

DEVICES = [("shard_map", 1), ("shard_map", 4), ("pmap", 4)]
AUGMENTATION = Augmentation(rotate=8.0, shift=0.05, scale=0.1, contrast=0.3)
SIMCLR = dataclasses.replace(
    LOSS, positive="augmented", box_weight=0.0, mask_same_patient=False, temperature=0.2
)


@pytest.fixture(autouse=True)
def tiny() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "image_encoder", tiny_run.tiny_encoder)
        yield


def programs(**changed: Any) -> Programs:
    return test_step.programs(model=KACL("tiny", C, axis_name=AXIS), **changed)


def first_state(program: Programs) -> TrainState:
    """Running statistics are not those of the start: where they are used must be seen."""
    variables = jax.jit(
        lambda: program.model.init(
            jax.random.key(0),
            jnp.zeros((1, SIZE, SIZE, 3)),
            jnp.zeros((1, sum(program.columns))),
            jnp.zeros(1, bool),
            train=False,
        )
    )()
    stats = jax.tree.map(
        lambda x: x + np.random.default_rng(x.size).uniform(0, 0.5, x.shape).astype(np.float32),
        variables["batch_stats"],
    )
    return jax.device_get(program.init({**variables, "batch_stats": stats}, SIZE))


def run(program: Programs, state: TrainState, batch: Any, mode: str = "shard_map", n: int = 1):
    return test_step.run(program, mode, n, [batch], state)


def moved(after: TrainState, before: TrainState) -> Any:
    """SGD with rate 1: the gradient."""
    return jax.tree.map(lambda new, old: np.asarray(old) - new, after.params, before.params)


# ---- a second augmented view as the positive ------------------------------------------------------------------


@pytest.mark.parametrize("mode, n", DEVICES)
def test_two_augmented_views_train_as_simclr_written_down_plainly(mode: str, n: int) -> None:
    program = programs(loss=SIMCLR, augmentation=AUGMENTATION, center_cam=False)
    state, batch = first_state(program), make_batch()
    batch["ready"][:], batch["radiomics"][:] = False, np.nan
    model = KACL("tiny", C)
    (first, affine), (second, _) = (program._view(jnp.int32(0), batch, i) for i in (0, 1))

    def total(params: Any) -> tuple[jax.Array, Any]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        images = jnp.concatenate([first, second])
        feature_map, stats = model.apply(
            variables, images, train=True, method="feature_map", mutable=["batch_stats"]
        )
        logits = model.apply(variables, feature_map[:B], method="classify")
        focal = optax.losses.sigmoid_focal_loss(logits, batch["labels"], alpha=0.25, gamma=2.0)
        z = model.apply(variables, feature_map, method="project_image")
        contrast = optax.losses.ntxent(z, jnp.tile(jnp.arange(B), 2), temperature=0.2)
        finding = gradcam.marked_finding(logits, batch["labels"])
        cam = jnp.einsum(
            "buvk,kb->buv", feature_map[:B], params["classifier"]["kernel"][:, finding]
        )
        loss = 0.8 * focal.sum(1).mean() + 0.2 * contrast
        return loss, (stats["batch_stats"], augment.warp(cam, augment.invert(affine)))

    (loss, (stats, cam)), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(state.params)
    after, metrics, rows = run(program, state, batch, mode, n)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    close(moved(after, state), gradient)
    close(after.batch_stats["image_encoder"], stats["image_encoder"])
    close(rows["cam"], cam)
    # No radiomics: nothing of it moves or is counted.
    assert metrics["ready"] == metrics["hit_rate"] == after.feature_count == 0
    for part in ("radiomics_encoder", "radiomics_head"):
        close(after.params[part], state.params[part], within=0)


def test_augmented_views_wait_for_the_warm_up_too() -> None:
    program = programs(loss=SIMCLR, augmentation=AUGMENTATION, warmup_steps=1)
    _, metrics, _ = run(program, first_state(program), make_batch())
    np.testing.assert_allclose(metrics["loss"], 0.8 * metrics["focal"], rtol=1e-6)
    assert metrics["nt_xent"] > 0


def test_a_view_belongs_to_seed_step_image_and_number() -> None:
    program, batch = programs(augmentation=AUGMENTATION), make_batch()
    batch["image"] = np.repeat(batch["image"][:1], B, axis=0)

    def view(number: int, step: int = 3, seed: int = 0, order: Any = slice(None)) -> np.ndarray:
        seeded = dataclasses.replace(program, seed=seed)
        chosen = {name: rows[order] for name, rows in batch.items()}
        return np.asarray(jax.jit(lambda b: seeded._view(jnp.int32(step), b, number)[0])(chosen))

    first, second = view(0), view(1)
    np.testing.assert_array_equal(view(1, order=np.arange(B)[::-1])[::-1], second)
    others = [first, view(1, step=4), view(1, seed=1), np.roll(second, 1, 0)]
    for other in others:
        assert (np.abs(other - second).max((1, 2, 3)) > 1e-2).all()
    # The first view is that of every other arm.
    np.testing.assert_array_equal(
        jax.jit(lambda b: program._model_input(jnp.int32(3), b)[0])(batch), first
    )
    both = dataclasses.replace(program, loss=SIMCLR)
    np.testing.assert_array_equal(
        jax.jit(lambda b: both._model_input(jnp.int32(3), b)[0])(batch),
        np.concatenate([first, second]),
    )


# ---- families of features -------------------------------------------------------------------------------------


def test_only_the_chosen_features_reach_the_loss() -> None:
    columns = tuple("_shape2D_" in name for name in radiomics.FEATURE_NAMES)
    program = programs(columns=columns)
    state = first_state(program)
    assert state.params["radiomics_encoder"]["Dense_0"]["kernel"].shape == (9, 128)
    plain, batch = run(program, state, make_batch())[0], make_batch()
    batch["radiomics"][:, ~np.array(columns)] **= 2
    close(run(program, state, batch)[0].params, plain.params, within=0)
    for column in np.flatnonzero(columns):
        batch = make_batch()
        batch["radiomics"][:, column] **= 2
        change = jax.tree.map(
            lambda a, b: np.abs(a - b).max(), run(program, state, batch)[0].params, plain.params
        )
        assert change["radiomics_encoder"]["Dense_0"]["kernel"] > 1e-4


# ---- Grad-CAM at the map before the last stage ----------------------------------------------------------------


def front(state: TrainState, images: jax.Array) -> jax.Array:
    """The tiny encoder's first half in training, written down: [b h w 3] → [b u v k]."""
    a, norm = convolved(state, images, 0), state.params["image_encoder"]["bn0"]
    a = (a - a.mean((0, 1, 2))) / jnp.sqrt(a.var((0, 1, 2)) + 1e-5)
    return jax.nn.relu(a * norm["scale"] + norm["bias"])


def logits_of_one(state: TrainState, a: jax.Array) -> jax.Array:
    """The rest of the network with running statistics, written down: one image's [u v k] → [c]."""
    a, norm = convolved(state, a[None], 1)[0], state.params["image_encoder"]["bn1"]
    running = state.batch_stats["image_encoder"]["bn1"]
    a = (a - running["mean"]) / jnp.sqrt(running["var"] + 1e-5)
    a = jax.nn.relu(a * norm["scale"] + norm["bias"])
    head = state.params["classifier"]
    return a.mean((0, 1)) @ head["kernel"] + head["bias"]


def convolved(state: TrainState, a: jax.Array, number: int) -> jax.Array:
    kernel = state.params["image_encoder"][f"Conv_{number}"]["kernel"]
    stride = (4, 2)[number]
    return jax.lax.conv_general_dilated(
        a, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def grad_cams(state: TrainState, early: jax.Array) -> np.ndarray:
    """[b c u v] by the whole Jacobian of one image at a time."""

    def one(a: jax.Array) -> jax.Array:
        jacobian = jax.jacrev(lambda x: logits_of_one(state, x))(a)
        return jnp.einsum("ck,uvk->cuv", jacobian.sum((1, 2)), a)

    return np.asarray(jax.jit(jax.vmap(one))(early))


def grey(batch: Any) -> jax.Array:
    return normalise(batch["image"][..., 0].astype(np.float32))


def test_evaluated_maps_of_an_earlier_stage_are_its_grad_cams_and_each_images_own() -> None:
    program = programs(cam_stage=3)
    state, batch = first_state(program), make_batch()
    parallel = DataParallel("shard_map", jax.devices()[:1])
    step = parallel.run(program.eval_step, ("sharded",))

    def evaluated(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        (found,) = step(parallel.replicate(state), parallel.shard({"image": image}))
        return np.asarray(found["logits"]), np.asarray(found["maps"])

    logits, maps = evaluated(batch["image"])
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    model = KACL("tiny", C)
    early = model.apply(variables, grey(batch), False, method="early_map")
    close(maps, grad_cams(state, early))
    assert maps.shape == (B, C, 16, 16)
    whole = model.apply(variables, grey(batch), False, method="feature_map")
    close(logits, model.apply(variables, whole, method="classify"))
    harmed = batch["image"].copy()
    harmed[5] = 255 - harmed[5]
    _, after = evaluated(harmed)
    np.testing.assert_array_equal(np.delete(after, 5, 0), np.delete(maps, 5, 0))
    assert np.abs(after[5] - maps[5]).max() > 0.01 * np.abs(maps[5]).max()


@pytest.mark.parametrize("mode, n", DEVICES)
def test_the_step_marks_regions_by_an_earlier_stage_and_keeps_its_mean(mode: str, n: int) -> None:
    program = programs(cam_stage=3, loss=dataclasses.replace(LOSS, box_weight=0.0))
    state, batch = first_state(program), make_batch()
    assert state.cam_mean.shape == (C, 16, 16)
    mean = np.random.default_rng(0).normal(size=state.cam_mean.shape).astype(np.float32)
    state = state.replace(cam_mean=mean, step=np.int32(3))
    maps = grad_cams(state, front(state, grey(batch)))
    after, metrics, rows = run(program, state, batch, mode, n)

    variables = {"params": state.params, "batch_stats": state.batch_stats}
    feature_map, _ = KACL("tiny", C).apply(
        variables, grey(batch), True, method="feature_map", mutable=["batch_stats"]
    )
    logits = KACL("tiny", C).apply(variables, feature_map, method="classify")
    finding = np.asarray(gradcam.marked_finding(logits, batch["labels"]))
    close(rows["cam"], maps[np.arange(B), finding] - mean[finding])
    # Row r of step 3 speaks for finding (r + 3) mod 8; the first step's mean is that of its rows alone.
    turns = [maps[(np.arange(B) + 3) % C == c, c].mean(0) for c in range(C)]
    close(after.cam_mean, np.stack(turns))
    assert metrics["bad_step"] == -1

    parallel = DataParallel(mode, jax.devices()[:n])  # type: ignore[arg-type]
    region_step = parallel.run(program.region_step, ("sharded",))
    (again,) = region_step(parallel.replicate(state), parallel.shard(batch))
    close(parallel.fetch(again, "sharded")["cam"], rows["cam"], within=1e-5)


def test_an_earlier_stage_changes_regions_only_not_the_update() -> None:
    early, last = programs(cam_stage=3, loss=dataclasses.replace(LOSS, box_weight=0.0)), None
    last = dataclasses.replace(early, cam_stage=4)
    state = first_state(last)
    reference, reference_metrics, _ = run(last, state, make_batch())
    after, metrics, _ = run(early, first_state(early), make_batch())
    close(after.params, reference.params, within=1e-5)
    close(after.batch_stats, reference.batch_stats, within=1e-5)
    close(metrics, reference_metrics, within=1e-5)
