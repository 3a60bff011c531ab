"""A bare train step for the benchmarks: KACL as configs/nih.py trains it under protocol A, and one random batch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kacl_jax import radiomics
from kacl_jax.models.input_scales import INPUT_SCALES
from kacl_jax.models.kacl import KACL
from kacl_jax.runtime.devices import AXIS
from kacl_jax.step.augment import Augmentation
from kacl_jax.step.loss_terms import LossSettings
from kacl_jax.step.programs import Programs

FINDINGS, FEATURES = 8, len(radiomics.FEATURE_NAMES)


def make_programs(
    encoder: str, *, optimizer: optax.GradientTransformation | None = None, **model: Any
) -> Programs:
    """The step without augmentation and warm-up. model: further arguments of KACL."""
    return Programs(
        model=KACL(encoder, FINDINGS, axis_name=AXIS, **model),
        optimizer=optimizer or optax.adam(1e-4),
        loss=LossSettings(0.8, 0.25, 2.0, 0.5, True, 0.0),
        augmentation=Augmentation(),
        input_scale=INPUT_SCALES["imagenet"],
        log_columns=radiomics.LOG_COLUMNS,
        warmup_steps=0,
        center_cam=False,
        seed=0,
    )


def initial_variables(model: KACL, size: int) -> Any:
    """The initial variables of a model for square images of `size` px."""
    images, features = jnp.zeros((1, size, size, 3)), jnp.zeros((1, FEATURES))
    return model.init(jax.random.key(0), images, features, jnp.zeros(1, bool), train=False)


def random_batch(size: int, b: int) -> dict[str, np.ndarray]:
    """White noise: two images per patient, no box, all rows with features."""
    random = np.random.default_rng(0)
    return {
        "image": random.integers(0, 256, (b, size, size, 1)).astype(np.uint8),
        "labels": (random.random((b, FINDINGS)) < 0.2).astype(np.float32),
        "boxes": np.zeros((b, FINDINGS, 1, 4), np.float32),
        "has_box": np.zeros((b, FINDINGS), bool),
        "image_id": np.arange(b, dtype=np.int32),
        "patient_id": np.arange(b, dtype=np.int32) // 2,
        "radiomics": random.gamma(1.0, 50.0, (b, FEATURES)).astype(np.float32),
        "ready": np.ones(b, bool),
        "age": np.ones(b, np.int32),
    }
