"""The compiled programs of KACL, each one a per-device function: the train step, its Grad-CAM half, and evaluation.

The train step runs the image encoder once. From that one feature map it takes the logits, the image projection, the
class maps (for box guidance and the running mean) and the Grad-CAM that marks the next region of interest. There are
two variants: a second augmented view of each image as its positive (loss.positive='augmented'), and regions from the
map before the last stage (cam.stage=3).

Axes: b batch on this device · h w pixels · u v map cells · c findings · f radiomic features.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, UInt8

from kacl_jax.models.input_scales import InputScale
from kacl_jax.models.kacl import KACL
from kacl_jax.radiomics import FEATURE_NAMES
from kacl_jax.runtime.devices import AXIS, global_gradients
from kacl_jax.step import gradcam
from kacl_jax.step.augment import Augmentation
from kacl_jax.step.cams import CamRule
from kacl_jax.step.forward import Forward, ForwardPass
from kacl_jax.step.in_step_radiomics import InStepRadiomics
from kacl_jax.step.loss_terms import LossSettings
from kacl_jax.step.objective import Objective
from kacl_jax.step.scaling import weight_of_newest, z_score_radiomics
from kacl_jax.step.state import Batch, Metrics, TrainState, keep_if_finite


@dataclasses.dataclass(frozen=True)
class Programs:
    """The per-device functions of one run. `model.axis_name` must be `devices.AXIS`.

    input_scale: on which the image encoder sees grey levels.
    log_columns: the radiomic features that get a signed log1p.
    warmup_steps: the first steps, which have the focal loss (and box guidance) only.
    log_every: only every so many steps, from step 0 on, measure the norm of each term's gradient.
    center_cam: subtract the finding's running mean map.
    in_step_radiomics: measure this step's regions inside this step, and ignore the batch's radiomics, ready and age.
    feature_columns: the features that the radiomics encoder sees.
    cam_stage: the stage of the image encoder at whose output Grad-CAM is taken, 4 (the last) or 3.
    frozen_statistics: as in `ForwardPass`.
    average_decay: of the running mean of the parameters and of BatchNorm's statistics, which evaluation uses; 0: none.
    mirror: evaluation takes the mean of an image's logits and maps and those of its mirror image.
    """

    model: KACL
    optimizer: optax.GradientTransformation
    loss: LossSettings
    augmentation: Augmentation
    input_scale: InputScale
    log_columns: tuple[bool, ...]
    warmup_steps: int
    center_cam: bool
    seed: int
    log_every: int = 1
    in_step_radiomics: InStepRadiomics | None = None
    feature_columns: tuple[bool, ...] = (True,) * len(FEATURE_NAMES)
    cam_stage: Literal[3, 4] = 4
    frozen_statistics: bool = False
    average_decay: float = 0.0
    mirror: bool = False

    @property
    def maps_before_last_stage(self) -> bool:
        """Whether training takes its regions from the map before the last stage."""
        return self.cam_stage == 3 and self.loss.uses_radiomics

    def input_shape(self, image_size: int) -> tuple[int, int, int, int]:
        """The shape of one image as the encoder sees it."""
        return 1, image_size, image_size, len(self.input_scale.mean)

    def init(self, variables: Any, image_size: int) -> TrainState:
        """The state before step 0 for the given model variables."""
        images = jax.ShapeDtypeStruct(self.input_shape(image_size), jnp.float32)
        method = "early_map" if self.maps_before_last_stage else "feature_map"
        grid = jax.eval_shape(
            lambda v, x: self.model.apply(v, x, train=False, method=method), variables, images
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
            average=self.first_average(variables),
        )

    def first_average(self, variables: Any) -> Any:
        """The field `average` of the state before step 0, for these model variables."""
        if not self.average_decay:
            return {}
        # Copies, because a train step reuses the memory of each array of the state for one array of the new state.
        return {name: jax.tree.map(jnp.copy, variables[name]) for name in ("params", "batch_stats")}

    def with_head(self, state: TrainState, kernel: np.ndarray, bias: np.ndarray) -> TrainState:
        """The state before step 0 with another classifier, float32 [k c] and [c]; NaN keeps what the state has."""
        ours = state.params["classifier"]
        head = {
            name: jnp.where(np.isnan(new), ours[name], new)
            for name, new in (("kernel", kernel), ("bias", bias))
        }
        params = {**state.params, "classifier": head}
        variables = {"params": params, "batch_stats": state.batch_stats}
        return state.replace(params=params, average=self.first_average(variables))

    def train_step(
        self, state: TrainState, batch: Batch
    ) -> tuple[TrainState, Metrics, dict[str, Array]]:
        """One update and the Grad-CAMs of the same forward pass.

        Args:
          state: the same on every device.
          batch: this device's rows: image uint8 [b h w 1] · labels float32 [b c] · boxes float32 [b c k 4], k as in
            `losses.box_guidance` · has_box bool [b c] · image_id, patient_id int32 [b] · radiomics float32 [b f] ·
            ready bool [b] · age int32 [b].

        Returns:
          (new state, metrics, rows): metrics are scalars over the global batch, `grad_norm_<term>` NaN in steps that
          are not logged; rows holds `cam` float32 [b u v] in the original frame, `box_finding` int32 [b], the annotated
          finding whose truth boxes mark the region (−1: none), and with `in_step_radiomics` also `origin` and `failure`
          of its `InStepFeatures`. If loss or gradients are not finite on any device, the old state stays, with
          `bad_step` set.
        """
        objective, cams = self._objective, self._cams
        images, affine = self.forward_pass.augment(state.step, batch)

        def total_loss(params: Any) -> tuple[Array, Any]:
            forward = self.forward_pass.encode(params, state.batch_stats, images, batch, affine)
            forward = self._with_in_step_radiomics(state, forward)
            radiomics, moments, n_ready = z_score_radiomics(state, forward.batch, self.log_columns)
            forward = forward._replace(radiomics=radiomics)
            total, terms, heads = objective.total(state.step, params, forward)
            return total, (forward, heads, terms, moments, n_ready)

        (total, by_products), grads = jax.value_and_grad(total_loss, has_aux=True)(state.params)
        forward, heads, terms, moments, n_ready = by_products
        grads = global_gradients(grads)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        mean_map = cams.updated_mean_map(state, forward, heads.maps)
        params: Any = optax.apply_updates(state.params, updates)
        variables = {"params": params, "batch_stats": heads.batch_stats}
        proposed = state.replace(
            **variables,
            step=state.step + 1,
            opt_state=opt_state,
            average=self._moved_average(state, variables),
            **moments,
            **mean_map,
        )
        grad_norm = optax.tree.norm(grads)
        new_state = keep_if_finite(state, proposed, total, grad_norm)
        ready, age = forward.batch["ready"], forward.batch["age"]
        metrics = {
            "loss": total,
            **terms,
            "grad_norm": grad_norm,
            **self._logged_gradient_norms(state, forward._replace(batch_stats=heads.batch_stats)),
            "ready": n_ready,
            "hit_rate": jax.lax.pmean(ready.mean(), AXIS),
            "age": jax.lax.psum(jnp.where(ready, age, 0).sum(), AXIS) / n_ready,
            "bad_step": new_state.bad_step,
        }
        rows = cams.region_inputs(state, forward, heads.logits, heads.maps)
        if self.in_step_radiomics is not None:
            rows |= {name: forward.batch[name] for name in ("origin", "failure")}
        return new_state, metrics, rows

    def region_step(self, state: TrainState, batch: Batch) -> tuple[dict[str, Array]]:
        """The forward half of the synchronous loop (lag 0): the rows of `train_step`, without an update."""
        images, affine = self.forward_pass.augment(state.step, batch)
        forward = self.forward_pass.encode(state.params, state.batch_stats, images, batch, affine)
        logits, maps = self._objective.logits_and_maps(state.params, forward.feature_map)
        return (self._cams.region_inputs(state, forward, logits, maps),)

    def eval_step(self, state: TrainState, batch: Batch) -> tuple[dict[str, Array]]:
        """Logits float32 [b c], raw class maps float32 [b c u v] (not centred), and the embedding float32 [b k].

        With running statistics, and with the averaged variables if the state has them. The embedding is the mean over
        the last feature map's cells, which the classifier sees. With `mirror` it is that of the image alone.
        """
        state, image = state.for_evaluation(), batch["image"]
        if not self.mirror:
            return (self._eval_outputs(state, image),)
        both = self._eval_outputs(state, jnp.concatenate([image, image[:, :, ::-1]]))
        own, mirrored = (
            {name: values[rows] for name, values in both.items()}
            for rows in (slice(len(image)), slice(len(image), None))
        )
        own["logits"] = (own["logits"] + mirrored["logits"]) / 2
        own["maps"] = (own["maps"] + mirrored["maps"][..., ::-1]) / 2
        return (own,)

    def _eval_outputs(self, state: TrainState, image: UInt8[Array, "b h w 1"]) -> dict[str, Array]:
        images = self.input_scale.apply(image[..., 0].astype(jnp.float32))
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        if self.cam_stage == 3:
            early_map: Any = self.model.apply(variables, images, train=False, method="early_map")
            classify = functools.partial(self._cams.classify_early, state)
            maps = gradcam.class_maps(classify, early_map, self.model.n_findings)
            last_map: Any = self.model.apply(variables, early_map, False, method="last_stage")
            outputs = {"logits": classify(early_map), "maps": maps}
            return {**outputs, "embedding": last_map.mean((1, 2))}
        feature_map: Any = self.model.apply(variables, images, train=False, method="feature_map")
        logits, maps = self._objective.logits_and_maps(state.params, feature_map)
        return {"logits": logits, "maps": maps, "embedding": feature_map.mean((1, 2))}

    def _moved_average(self, state: TrainState, variables: Any) -> Any:
        """The field `average` of the new state, whose variables these are."""
        if not self.average_decay:
            return state.average
        rate = weight_of_newest(state.step + 1, self.average_decay)
        return jax.tree.map(lambda mean, new: mean + rate * (new - mean), state.average, variables)

    @property
    def forward_pass(self) -> ForwardPass:
        return ForwardPass(
            self.model,
            self.augmentation,
            self.input_scale,
            self.seed,
            two_views=self.loss.uses_second_view,
            early=self.maps_before_last_stage,
            frozen_statistics=self.frozen_statistics,
        )

    @property
    def _cams(self) -> CamRule:
        return CamRule(self.model, self.center_cam)

    @property
    def _objective(self) -> Objective:
        return Objective(self.model, self.loss, self.feature_columns, self.warmup_steps)

    def _logged_gradient_norms(self, state: TrainState, forward: Forward) -> Metrics:
        """`Objective.gradient_norms` in the steps that are logged. Elsewhere NaN, without their work and messages."""

        def measure() -> Metrics:
            return self._objective.gradient_norms(state.params, forward)

        def skip() -> Metrics:
            return jax.tree.map(
                lambda x: jnp.full(x.shape, jnp.nan, x.dtype), jax.eval_shape(measure)
            )

        return jax.lax.cond(state.step % self.log_every == 0, measure, skip)

    def _with_in_step_radiomics(self, state: TrainState, forward: Forward) -> Forward:
        """The pass with the features of its own regions in its batch, if the step measures them itself."""
        if self.in_step_radiomics is None:
            return forward
        batch = forward.batch
        still = forward._replace(
            feature_map=jax.lax.stop_gradient(forward.feature_map),
            early_map=jax.lax.stop_gradient(forward.early_map),
        )
        logits, maps = self._objective.logits_and_maps(state.params, still.feature_map)
        rows = self._cams.region_inputs(state, still, logits, maps)
        measured = self.in_step_radiomics.measure(
            batch["image"][..., 0], rows["cam"], rows["box_finding"], batch["boxes"]
        )
        features = {**measured._asdict(), "age": jnp.zeros_like(batch["age"])}
        return forward._replace(batch={**batch, **features})
