"""From a config to the network, its compiled steps and the rule that marks regions."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from kacl_jax import radiomics
from kacl_jax.models import pretrained
from kacl_jax.models.encoders import ENCODERS
from kacl_jax.models.input_scales import input_scale
from kacl_jax.models.kacl import KACL
from kacl_jax.runtime.devices import AXIS
from kacl_jax.step import optimizer
from kacl_jax.step.augment import Augmentation
from kacl_jax.step.in_step_radiomics import InStepRadiomics
from kacl_jax.step.loss_terms import LossSettings
from kacl_jax.step.programs import Programs
from kacl_jax.step.regions import RegionRule
from kacl_jax.step.state import TrainState


def region_rule(config: ConfigDict) -> RegionRule:
    return RegionRule(
        source=config.roi.source,
        truth_boxes=config.roi.truth_boxes,
        relu=config.cam.relu,
        threshold=config.cam.threshold,
        size=config.data.image_size,
        seed=config.seed,
        shape=config.roi.shape,
    )


def programs(
    config: ConfigDict, steps_per_epoch: int, rule: RegionRule, n_findings: int
) -> Programs:
    """The network and its train, region and evaluation steps."""
    total_steps = config.train.epochs * steps_per_epoch
    model = KACL(
        encoder=config.model.encoder,
        n_findings=n_findings,
        output_stride=config.model.output_stride,
        projection_dim=config.model.projection_dim,
        dtype=jnp.dtype(config.model.dtype),
        axis_name=AXIS,
    )
    loss = LossSettings(**config.loss)
    warmup_steps = config.train.warmup_epochs * steps_per_epoch
    contrastive = warmup_steps if loss.focal_weight < 1 else None
    radiomic = contrastive if loss.uses_radiomics else None
    in_step = config.radiomics.backend == "jax" and loss.uses_radiomics
    families = config.radiomics.families.split(",")
    return Programs(
        model=model,
        optimizer=optimizer.adam(
            learning_rate(config, total_steps),
            weight_decay=config.train.weight_decay,
            starts={
                "image_head": contrastive,
                "radiomics_encoder": radiomic,
                "radiomics_head": radiomic,
            },
            factors={"classifier": config.train.head_rate},
        ),
        loss=loss,
        augmentation=Augmentation(**config.augment),
        input_scale=input_scale(config.model.input, own=ENCODERS[config.model.encoder].own_input),
        log_columns=radiomics.LOG_COLUMNS,
        warmup_steps=warmup_steps,
        center_cam=config.cam.center == "mean",
        seed=config.seed,
        log_every=config.log_every,
        in_step_radiomics=InStepRadiomics(rule, config.radiomics.bin_width) if in_step else None,
        feature_columns=tuple(name.split("_")[1] in families for name in radiomics.FEATURE_NAMES),
        cam_stage=config.cam.stage,
        frozen_statistics=config.train.frozen_statistics,
        average_decay=config.train.ema,
        mirror=config.eval.flip,
    )


def learning_rate(config: ConfigDict, total_steps: int) -> optax.ScalarOrSchedule:
    """The same in every step, or a function of the step."""
    peak: float = config.train.learning_rate
    if config.train.schedule == "constant":
        return peak
    return optax.cosine_onecycle_schedule(total_steps, peak, pct_start=config.train.rate_warmup)


def init_variables(programs: Programs, config: ConfigDict) -> Any:
    """The random variables of config.seed: collections 'params' and 'batch_stats'."""
    return programs.model.init(
        jax.random.key(config.seed),
        jnp.zeros(programs.input_shape(config.data.image_size)),
        jnp.zeros((1, sum(programs.feature_columns))),
        jnp.zeros((1,), bool),
        train=False,
    )


def initial_state(
    programs: Programs, config: ConfigDict
) -> tuple[TrainState, pretrained.Origin | None]:
    """The state before step 0: random, with the pretrained image encoder if the config names one. Its origin."""
    c = config.model
    variables = jax.jit(lambda: init_variables(programs, config))()
    variables, origin = pretrained.load(
        c.pretrained, encoder=c.encoder, input_name=c.input, variables=variables
    )
    return programs.init(variables, config.data.image_size), origin


def state_for_start_features(programs: Programs, config: ConfigDict) -> TrainState:
    """The state before step 0 as far as the image encoder needs it, without the optimizer's and without averages.

    With a pretrained encoder all else is 0, so that nothing is drawn, which would compile for a minute.
    """
    c = config.model
    if not c.pretrained:
        return initial_state(programs, config)[0].replace(opt_state=(), average={})
    size = config.data.image_size
    shapes = jax.eval_shape(lambda: programs.init(init_variables(programs, config), size))
    shapes = shapes.replace(opt_state=(), average={})
    empty = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    variables, _ = pretrained.load(
        c.pretrained,
        encoder=c.encoder,
        input_name=c.input,
        variables={"params": empty.params, "batch_stats": empty.batch_stats},
    )
    return empty.replace(params=variables["params"], batch_stats=variables["batch_stats"])
