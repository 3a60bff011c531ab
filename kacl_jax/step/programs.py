"""The compiled programs of KACL, each one per-device function: the train step, its CAM half, and evaluation.

The train step goes once through the image encoder and reads four things off that one feature map: logits, the image
projection, the class maps (box guidance, running mean) and the Grad-CAM that marks the next region of interest. Two
variants: a second augmented view of each image as its positive (loss.positive='augmented'), and regions from the map
before the last stage (cam.stage=3).

Axes: b batch on this device · h w pixels · u v map cells · c findings · f radiomic features.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import flax
import jax
import jax.numpy as jnp
import optax

from kacl_jax.models.kacl import KACL, MIN_READY_ROWS
from kacl_jax.radiomics import FEATURE_NAMES
from kacl_jax.runtime.devices import AXIS, averaged
from kacl_jax.step import augment, gradcam
from kacl_jax.step.in_step_radiomics import FreshRadiomics
from kacl_jax.step.objective import Batch, Loss, Metrics, Objective

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
EMA_DECAY = 0.99
Z_CLIP = 10.0


class TrainState(flax.struct.PyTreeNode):
    """Everything on the device that a step changes.

    feature_mean, feature_var: float32 [f], running moments of the ready training rows after signed log1p.
    cam_mean: float32 [c u v], running mean of the raw maps that mark regions over the training images.
    *_count: int32, how many steps moved that statistic.
    bad_step: int32, the first step with a non-finite loss or gradient; −1 while there is none.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    feature_mean: jax.Array
    feature_var: jax.Array
    feature_count: jax.Array
    cam_mean: jax.Array
    cam_count: jax.Array
    bad_step: jax.Array


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Ranges of the random change of a training image; all 0 is none (see `augment`)."""

    rotate: float = 0.0
    shift: float = 0.0
    scale: float = 0.0
    contrast: float = 0.0


@dataclasses.dataclass(frozen=True)
class Programs:
    """The per-device functions of one run. `model.axis_name` must be `parallel.AXIS`.

    log_columns: which radiomic features get a signed log1p. warmup_steps: steps with focal loss (and box guidance)
    only. center_cam: subtract the finding's running mean map. fresh: measure this step's regions in this step; the
    batch's own radiomics, ready and age are not used then. columns: which features the radiomics encoder sees.
    cam_stage: the stage of the image encoder at whose output Grad-CAM is taken, 4 (the last) or 3.
    """

    model: KACL
    optimizer: optax.GradientTransformation
    loss: Loss
    augmentation: Augmentation
    log_columns: tuple[bool, ...]
    warmup_steps: int
    center_cam: bool
    seed: int
    fresh: FreshRadiomics | None = None
    columns: tuple[bool, ...] = (True,) * len(FEATURE_NAMES)
    cam_stage: Literal[3, 4] = 4

    @property
    def marks_early(self) -> bool:
        """Whether training, too, needs Grad-CAM before the last stage."""
        return self.cam_stage == 3 and self.loss.uses_radiomics

    def init(self, variables: Any, image_size: int) -> TrainState:
        """The state before step 0 for the given model variables."""
        images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
        method = "early_map" if self.marks_early else "feature_map"
        grid = jax.eval_shape(
            lambda x: self.model.apply(variables, x, train=False, method=method), images
        ).shape[1:3]
        f = len(self.log_columns)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            opt_state=self.optimizer.init(variables["params"]),
            feature_mean=jnp.zeros(f),
            feature_var=jnp.zeros(f),
            feature_count=jnp.zeros((), jnp.int32),
            cam_mean=jnp.zeros((self.model.n_findings, *grid)),
            cam_count=jnp.zeros((), jnp.int32),
            bad_step=jnp.full((), -1, jnp.int32),
        )

    # ---- the three programs -----------------------------------------------------------------------------------

    def train_step(
        self, state: TrainState, batch: Batch
    ) -> tuple[TrainState, Metrics, dict[str, jax.Array]]:
        """One update and the Grad-CAMs of the same forward pass.

        Args:
          state: the same on every device.
          batch: this device's rows: image uint8 [b h w 1] · labels float32 [b c] · boxes float32 [b c 4] · has_box
            bool [b c] · image_id, patient_id int32 [b] · radiomics float32 [b f] · ready bool [b] · age int32 [b].

        Returns:
          (new state, metrics, rows): metrics are scalars over the global batch; rows holds `cam` float32 [b u v] in
          the original frame, `box_finding` int32 [b], the annotated finding whose truth box marks the region (−1:
          none), and with `fresh` `origin` and `failure` of its `Measured`. Where loss or gradients are not finite
          on any device the old state stays, with `bad_step` set.
        """
        objective = self._objective
        images, affine = self._model_input(state.step, batch)

        def total_loss(params: Any) -> tuple[jax.Array, Any]:
            feature_map, early_map, batch_stats = self._maps(params, state.batch_stats, images)
            measured = self._measured(state, batch, affine, jax.lax.stop_gradient(feature_map))
            radiomics, moments, n_ready = self._z_scored(state, measured)
            total, terms, aux = objective.total(
                state.step, params, batch_stats, feature_map, measured, affine, radiomics
            )
            aux |= {"early_map": early_map}
            return total, (terms, feature_map, aux, measured, radiomics, moments, n_ready)

        (total, on_the_way), grads = jax.value_and_grad(total_loss, has_aux=True)(state.params)
        terms, feature_map, aux, batch, radiomics, moments, n_ready = on_the_way
        grads = averaged(grads)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        cam_rate = _ema_rate(state.cam_count + 1)
        batch_mean = self._mean_maps(state, aux)
        proposed = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=aux["batch_stats"],
            opt_state=opt_state,
            **moments,
            cam_mean=state.cam_mean + cam_rate * (batch_mean - state.cam_mean),
            cam_count=state.cam_count + 1,
        )
        grad_norm = optax.tree.norm(grads)
        new_state = _keep_if_finite(state, proposed, total, grad_norm)
        metrics = {
            "loss": total,
            **terms,
            "grad_norm": grad_norm,
            **objective.gradient_norms(
                state.params, aux["batch_stats"], feature_map, batch, affine, radiomics
            ),
            "ready": n_ready,
            "hit_rate": jax.lax.pmean(batch["ready"].mean(), AXIS),
            "age": jax.lax.psum(jnp.where(batch["ready"], batch["age"], 0).sum(), AXIS) / n_ready,
            "bad_step": new_state.bad_step,
        }
        rows = self._rows(state, batch, affine, aux)
        if self.fresh is not None:
            rows |= {name: batch[name] for name in ("origin", "failure")}
        return new_state, metrics, rows

    def region_step(self, state: TrainState, batch: Batch) -> tuple[dict[str, jax.Array]]:
        """The forward half of the synchronous loop (lag 0): the rows of `train_step`, nothing updated."""
        images, affine = self._model_input(state.step, batch)
        feature_map, early_map, _ = self._maps(state.params, state.batch_stats, images)
        logits, maps = self._logits_and_maps(state.params, feature_map)
        aux = {"logits": logits, "maps": maps, "early_map": early_map}
        return (self._rows(state, batch, affine, aux),)

    def eval_step(self, state: TrainState, batch: Batch) -> tuple[dict[str, jax.Array]]:
        """Logits float32 [b c] and raw class maps float32 [b c u v] (not centred) with running statistics."""
        images = normalise(batch["image"][..., 0].astype(jnp.float32))
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        if self.cam_stage == 3:
            early_map: Any = self.model.apply(variables, images, train=False, method="early_map")
            classify = functools.partial(self._classify_early, state)
            maps = gradcam.class_maps(classify, early_map, self.model.n_findings)
            return ({"logits": classify(early_map), "maps": maps},)
        feature_map: Any = self.model.apply(variables, images, train=False, method="feature_map")
        logits, maps = self._logits_and_maps(state.params, feature_map)
        return ({"logits": logits, "maps": maps},)

    @property
    def _objective(self) -> Objective:
        return Objective(self.model, self.loss, self.columns, self.warmup_steps)

    # ---- their parts ------------------------------------------------------------------------------------------

    def _model_input(self, step: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array | None]:
        """uint8 [b h w 1] → (normalised, augmented float32 [b h w 3], the affine map used or None).

        With loss.positive='augmented' the second views follow, [2b h w 3], and the map is that of the first.
        """
        images, affine = self._view(step, batch, 0)
        if self.loss.uses_second_view:
            images = jnp.concatenate([images, self._view(step, batch, 1)[0]])
        return images, affine

    def _view(
        self, step: jax.Array, batch: Batch, number: int
    ) -> tuple[jax.Array, jax.Array | None]:
        """One random view of each image; the draw belongs to (seed, step, image, number)."""
        grey = batch["image"][..., 0].astype(jnp.float32)
        key = jax.random.fold_in(jax.random.key(self.seed), step)
        keys = jax.vmap(
            lambda image_id: jax.random.split(jax.random.fold_in(key, image_id), 2 * number + 2)
        )(batch["image_id"])
        ranges = dataclasses.asdict(self.augmentation)
        grey, affine = augment.random_view(keys[:, 2 * number :], grey, **ranges)
        return normalise(grey), affine

    def _feature_map(
        self, params: Any, batch_stats: Any, images: jax.Array, method: str = "feature_map"
    ) -> tuple[jax.Array, Any]:
        feature_map, changed = self.model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            method=method,
            mutable=["batch_stats"],
        )
        return feature_map, changed["batch_stats"]

    def _maps(
        self, params: Any, batch_stats: Any, images: jax.Array
    ) -> tuple[jax.Array, jax.Array | None, Any]:
        """(feature map, the map before the last stage if that marks regions, moved batch statistics)."""
        if not self.marks_early:
            feature_map, batch_stats = self._feature_map(params, batch_stats, images)
            return feature_map, None, batch_stats
        early, batch_stats = self._feature_map(params, batch_stats, images, "early_map")
        feature_map, batch_stats = self._feature_map(params, batch_stats, early, "last_stage")
        return feature_map, early, batch_stats

    def _classify_early(self, state: TrainState, early_map: jax.Array) -> jax.Array:
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        logits: Any = self.model.apply(variables, early_map, method="classify_early")
        return logits

    def _logits_and_maps(self, params: Any, feature_map: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self._objective.logits_and_maps(params, feature_map)

    def _measured(
        self, state: TrainState, batch: Batch, affine: jax.Array | None, feature_map: jax.Array
    ) -> Batch:
        """The batch with the features of this very step's regions, if the step is to measure them itself."""
        if self.fresh is None:
            return batch
        logits, maps = self._logits_and_maps(state.params, feature_map)
        rows = self._rows(state, batch, affine, {"logits": logits, "maps": maps})
        measured = self.fresh.measure(
            batch["image"][..., 0], rows["cam"], rows["box_finding"], batch["boxes"]
        )
        return {**batch, **measured._asdict(), "age": jnp.zeros_like(batch["age"])}

    def _z_scored(
        self, state: TrainState, batch: Batch
    ) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
        """Radiomics [b f] → (z-scores, the moved running moments, number of ready rows on all devices).

        Signed log1p on the fixed columns, then the running mean and variance including this batch's ready rows
        (bias-corrected EMA); zero spread gives 0; clipped.
        """
        ready = batch["ready"][:, None]
        n_ready = jax.lax.psum(batch["ready"].sum(), AXIS)
        x = jnp.where(ready, batch["radiomics"], 0.0)
        x = jnp.where(jnp.array(self.log_columns), jnp.sign(x) * jnp.log1p(jnp.abs(x)), x)
        count = jnp.maximum(n_ready, 1)
        mean = jax.lax.psum(jnp.where(ready, x, 0.0).sum(0), AXIS) / count
        var = jax.lax.psum(jnp.where(ready, (x - mean) ** 2, 0.0).sum(0), AXIS) / count
        moves = n_ready >= MIN_READY_ROWS
        rate = jnp.where(moves, _ema_rate(state.feature_count + 1), 0.0)
        step = mean - state.feature_mean
        moments = {
            "feature_mean": state.feature_mean + rate * step,
            "feature_var": (1 - rate) * (state.feature_var + rate * step**2) + rate * var,
            "feature_count": state.feature_count + moves,
        }
        return z_score(x, moments["feature_mean"], moments["feature_var"]), moments, n_ready

    def _mean_maps(self, state: TrainState, aux: dict[str, Any]) -> jax.Array:
        """The mean raw map of each finding over the global batch, [c u v].

        Before the last stage a map of every finding of every image would cost c passes back: there each image gives
        one, the findings taking turns over the rows and the steps.
        """
        if not self.marks_early:
            return jax.lax.pmean(aux["maps"].mean(0), AXIS)
        b, c = aux["logits"].shape
        row = jnp.arange(b) + jax.lax.axis_index(AXIS) * b
        finding = (row + state.step) % c
        classify = functools.partial(self._classify_early, state)
        maps = gradcam.map_of(classify, aux["early_map"], finding)
        taken = jax.nn.one_hot(finding, c)
        sums = jax.lax.psum(jnp.einsum("bc,buv->cuv", taken, maps), AXIS)
        return sums / jax.lax.psum(taken.sum(0), AXIS)[:, None, None]

    def _rows(
        self, state: TrainState, batch: Batch, affine: jax.Array | None, aux: dict[str, Any]
    ) -> dict[str, jax.Array]:
        """What the host needs of each row to mark its region of interest."""
        logits, maps = aux["logits"], aux["maps"]
        finding = gradcam.marked_finding(logits, batch["labels"])
        if self.marks_early:
            classify = functools.partial(self._classify_early, state)
            cam = gradcam.map_of(classify, aux["early_map"], finding)
        else:
            cam = jnp.take_along_axis(maps, finding[:, None, None, None], axis=1)[:, 0]
        if self.center_cam:
            cam = cam - state.cam_mean[finding]
        if affine is not None:
            cam = augment.warp(cam, augment.invert(affine))
        annotated = batch["has_box"]
        box_finding = jnp.argmax(jnp.where(annotated, logits, -jnp.inf), axis=1)
        return {
            "cam": cam,
            "box_finding": jnp.where(annotated.any(1), box_finding, -1).astype(jnp.int32),
        }


def z_score(x: jax.Array, mean: jax.Array, var: jax.Array) -> jax.Array:
    """(x − mean) / spread, clipped to ±10; a column without spread gives 0. [b f], [f], [f] → [b f]."""
    # Rounding leaves a constant column a relative spread of 1e-7, not 0.
    spread = var > 1e-10 * (1 + mean**2)
    z = (x - mean) / jnp.sqrt(jnp.where(spread, var, 1.0))
    return jnp.clip(jnp.where(spread, z, 0.0), -Z_CLIP, Z_CLIP)


def normalise(grey: jax.Array) -> jax.Array:
    """Grey levels 0–255 [b h w] → three ImageNet-normalised channels [b h w 3]."""
    return (grey[..., None] / 255 - jnp.array(IMAGENET_MEAN)) / jnp.array(IMAGENET_STD)


def _ema_rate(count: jax.Array) -> jax.Array:
    """The weight of the newest of `count` values in a bias-corrected exponential mean."""
    return (1 - EMA_DECAY) / (1 - EMA_DECAY ** count.astype(jnp.float32))


def _keep_if_finite(
    old: TrainState, new: TrainState, total: jax.Array, grad_norm: jax.Array
) -> TrainState:
    finite = jnp.isfinite(total) & jnp.isfinite(grad_norm)
    accept = finite & (old.bad_step < 0)
    kept = jax.tree.map(lambda a, b: jnp.where(accept, a, b), new, old)
    first_bad = jnp.where(finite | (old.bad_step >= 0), old.bad_step, old.step)
    return kept.replace(bad_step=first_bad)
