"""The arms that are more than a number in the config: a second augmented view, fewer features, an earlier map.

The image encoder is that of tiny_run.py, so that a step compiles in a second.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tiny_step import LOSS, SIZE, B, C, TinyKACL, close, make_batch, programs

from kacl_jax import radiomics
from kacl_jax.models.input_scales import INPUT_SCALES
from kacl_jax.runtime.devices import DataParallel
from kacl_jax.step import augment, gradcam
from kacl_jax.step.augment import Augmentation
from kacl_jax.step.programs import Programs
from kacl_jax.step.state import TrainState

AUGMENTATION = Augmentation(rotate=8.0, shift=0.05, scale=0.1, contrast=0.3)
SIMCLR = dataclasses.replace(
    LOSS, positive="augmented", box_weight=0.0, mask_same_patient=False, temperature=0.2
)


def first_state(program: Programs) -> TrainState:
    """Plausible numbers for every leaf: quicker than compiling `init`, and no statistic is that of a start."""
    random = np.random.default_rng(0)

    def leaf(path: Any, shape: Any) -> np.ndarray:
        if path[-1].key in ("scale", "var"):
            return random.uniform(0.5, 1.5, shape.shape).astype(np.float32)
        fan_in = max(1, int(np.prod(shape.shape[:-1])))
        return random.normal(0, np.sqrt(1 / fan_in), shape.shape).astype(np.float32)

    shapes = jax.eval_shape(
        lambda: program.model.init(
            jax.random.key(0),
            jnp.zeros((1, SIZE, SIZE, 3)),
            jnp.zeros((1, sum(program.feature_columns))),
            jnp.zeros(1, bool),
            train=False,
        )
    )
    return jax.device_get(program.init(jax.tree_util.tree_map_with_path(leaf, shapes), SIZE))


class Stepper:
    """A train step, compiled once for several calls."""

    def __init__(self, program: Programs, devices: int) -> None:
        self._parallel = DataParallel("shard_map", jax.devices()[:devices])
        outputs = ("replicated", "replicated", "sharded")
        self._step = self._parallel.compile(program.train_step, outputs)

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, Any, Any]:
        parallel = self._parallel
        *whole, rows = self._step(parallel.replicate(state), parallel.shard(batch))
        after, metrics = (parallel.fetch(part, "replicated") for part in whole)
        return after, metrics, parallel.fetch(rows, "sharded")


@functools.cache
def simclr() -> tuple[Programs, TrainState, Stepper]:
    """Step 0 is warm-up. On four devices."""
    program = programs(loss=SIMCLR, augmentation=AUGMENTATION, center_cam=False, warmup_steps=1)
    return program, first_state(program), Stepper(program, 4)


@functools.cache
def early_with_shape_features() -> tuple[Programs, TrainState, Stepper]:
    """Two arms in one compilation, on four devices."""
    program = programs(
        cam_stage=3,
        feature_columns=tuple("_shape2D_" in name for name in radiomics.FEATURE_NAMES),
        loss=dataclasses.replace(LOSS, box_weight=0.0),
    )
    return program, first_state(program), Stepper(program, 4)


def moved(after: TrainState, before: TrainState) -> Any:
    """SGD with rate 1: the gradient."""
    return jax.tree.map(lambda new, old: np.asarray(old) - new, after.params, before.params)


# ---- a second augmented view as the positive ------------------------------------------------------------------


def test_two_augmented_views_train_as_simclr_written_down_plainly() -> None:
    """The step on four devices, the formula on one, at step 1; step 0 is warm-up."""
    _, state, step = simclr()
    batch, model = make_batch(), TinyKACL()
    batch["ready"][:], batch["radiomics"][:] = False, np.nan
    given = jax.tree.map(jnp.asarray, batch)

    def total(params: Any) -> tuple[jax.Array, Any]:
        (first, affine), (second, _) = (
            AUGMENTATION.view(
                given["image"], given["image_id"], seed=0, step=jnp.int32(1), number=i
            )
            for i in (0, 1)
        )
        variables = {"params": params, "batch_stats": state.batch_stats}
        images = INPUT_SCALES["imagenet"].apply(jnp.concatenate([first, second]))
        feature_map, stats = model.apply(
            variables, images, train=True, method="feature_map", mutable=["batch_stats"]
        )
        logits = model.apply(variables, feature_map[:B], method="classify")
        focal = optax.losses.sigmoid_focal_loss(logits, given["labels"], alpha=0.25, gamma=2.0)
        z = model.apply(variables, feature_map, method="project_image")
        contrast = optax.losses.ntxent(z, jnp.tile(jnp.arange(B), 2), temperature=0.2)
        finding = gradcam.region_finding(logits, given["labels"])
        kernel = params["classifier"]["kernel"][:, finding]
        cam = jnp.einsum("buvk,kb->buv", feature_map[:B], kernel)
        loss = 0.8 * focal.sum(1).mean() + 0.2 * contrast
        return loss, (stats["batch_stats"], augment.warp(cam, augment.invert(affine)))

    (loss, (stats, cam)), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(state.params)
    after, metrics, rows = step(state.replace(step=np.int32(1)), batch)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    close(moved(after, state), gradient)
    close(after.batch_stats["image_encoder"], stats["image_encoder"])
    close(rows["cam"], cam)
    # No radiomics: nothing of it moves or is counted.
    assert metrics["ready"] == metrics["hit_rate"] == after.feature_count == 0
    for part in ("radiomics_encoder", "radiomics_head"):
        close(after.params[part], state.params[part], within=0)
    _, metrics, _ = step(state, batch)
    np.testing.assert_allclose(metrics["loss"], 0.8 * metrics["focal"], rtol=1e-6)
    assert metrics["nt_xent"] > 0


def test_two_views_without_nt_xent_are_simclrs_step_with_the_focal_gradient_alone() -> None:
    """The control arm: BatchNorm sees both views, and only the focal term teaches."""
    program, state, step = simclr()
    control = dataclasses.replace(program, loss=dataclasses.replace(SIMCLR, nt_xent_weight=0.0))
    state, batch = state.replace(step=np.int32(1)), make_batch()
    with_contrast, metrics, _ = step(state, batch)
    after, measured, _ = Stepper(control, 4)(state, batch)
    close(after.batch_stats, with_contrast.batch_stats, within=0)
    assert measured["nt_xent"] == metrics["nt_xent"] > 0
    np.testing.assert_allclose(measured["loss"], 0.8 * measured["focal"], rtol=1e-6)
    for part in ("image_head", "radiomics_encoder"):
        close(after.params[part], state.params[part], within=0)
    close(after.params["classifier"], with_contrast.params["classifier"], within=0)
    first = [a.params["image_encoder"]["Conv_0"]["kernel"] for a in (after, with_contrast)]
    assert np.abs(first[0] - first[1]).max() > 1e-6


def test_a_view_belongs_to_seed_step_image_and_number() -> None:
    two = programs(augmentation=Augmentation(contrast=0.5), loss=SIMCLR)
    reseeded, one = (dataclasses.replace(two, **c) for c in ({"seed": 1}, {"loss": LOSS}))
    batch = make_batch()
    batch["image"] = np.repeat(batch["image"][:1], B, axis=0)
    views = jax.jit(lambda b, step: two.forward_pass.augment(step, b)[0])
    first, second = np.split(np.asarray(views(batch, 3)), 2)
    back = {name: rows[::-1] for name, rows in batch.items()}
    np.testing.assert_array_equal(np.asarray(views(back, 3))[B:][::-1], second)
    later = np.asarray(views(batch, 4))[B:]
    other = jax.jit(lambda b, step: reseeded.forward_pass.augment(step, b)[0])(batch, 3)[B:]
    for different in (first, later, other, np.roll(second, 1, 0)):
        assert (np.abs(different - second).max((1, 2, 3)) > 1e-3).all()
    # The first view is that of every other arm.
    alone = jax.jit(lambda b, step: one.forward_pass.augment(step, b)[0])(batch, 3)
    np.testing.assert_array_equal(alone, first)


# ---- families of features -------------------------------------------------------------------------------------


def test_only_the_chosen_features_reach_the_loss() -> None:
    program, state, step = early_with_shape_features()
    assert state.params["radiomics_encoder"]["Dense_0"]["kernel"].shape == (9, 128)
    plain, _, _ = step(state, make_batch())
    for column, chosen in enumerate(program.feature_columns):
        batch = make_batch()
        batch["radiomics"][:, column] **= 2
        after, _, _ = step(state, batch)
        change = jax.tree.map(lambda a, b: np.abs(a - b).max(), after.params, plain.params)
        assert (max(jax.tree.leaves(change)) > 1e-4) == chosen


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


def on_device(state: TrainState) -> Any:
    """The model's variables as jax arrays."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return jax.tree.map(jnp.asarray, variables)


def grey(batch: Any) -> jax.Array:
    return INPUT_SCALES["imagenet"].apply(jnp.float32(batch["image"][..., 0]))


def test_evaluated_maps_of_an_earlier_stage_are_its_grad_cams_and_each_images_own() -> None:
    program = programs(cam_stage=3)
    state, batch = first_state(program), make_batch()
    parallel = DataParallel("shard_map", jax.devices()[:1])
    step = parallel.compile(program.eval_step, ("sharded",))

    def evaluated(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        (found,) = step(parallel.replicate(state), parallel.shard({"image": image}))
        return np.asarray(found["logits"]), np.asarray(found["maps"])

    logits, maps = evaluated(batch["image"])
    variables = on_device(state)
    model = TinyKACL()
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


def test_the_step_marks_regions_by_an_earlier_stage_and_keeps_its_mean() -> None:
    (program, state, step), batch = early_with_shape_features(), make_batch()
    assert state.cam_mean.shape == (C, 16, 16)
    mean = np.random.default_rng(0).normal(size=state.cam_mean.shape).astype(np.float32)
    state = state.replace(cam_mean=mean, step=np.int32(3))
    maps = grad_cams(state, front(state, grey(batch)))
    after, metrics, rows = step(state, batch)

    variables = on_device(state)
    feature_map, _ = TinyKACL().apply(
        variables, grey(batch), True, method="feature_map", mutable=["batch_stats"]
    )
    logits = TinyKACL().apply(variables, feature_map, method="classify")
    finding = np.asarray(gradcam.region_finding(logits, jnp.asarray(batch["labels"])))
    close(rows["cam"], maps[np.arange(B), finding] - mean[finding])
    # Row r of step 3 speaks for finding (r + 3) mod 8; the first step's mean is that of its rows alone.
    turns = [maps[(np.arange(B) + 3) % C == c, c].mean(0) for c in range(C)]
    close(after.cam_mean, np.stack(turns))
    focal = optax.losses.sigmoid_focal_loss(logits, batch["labels"], alpha=0.25, gamma=2.0)
    np.testing.assert_allclose(metrics["focal"], focal.sum(1).mean(), rtol=1e-5)

    parallel = DataParallel("shard_map", jax.devices()[:1])
    region_step = parallel.compile(program.region_step, ("sharded",))
    (again,) = region_step(parallel.replicate(state), parallel.shard(batch))
    # Two programs round differently: on some CPUs one activation falls on the other side of ReLU's kink.
    close(parallel.fetch(again, "sharded")["cam"], rows["cam"], within=1e-4)
