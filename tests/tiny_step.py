"""One train step's parts for tests: programs whose parameter change is the gradient, their first state, batches."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any
from unittest import mock

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny_run

from kacl_jax import radiomics
from kacl_jax.models.encoders import ENCODERS
from kacl_jax.models.input_scales import INPUT_SCALES
from kacl_jax.models.kacl import KACL
from kacl_jax.runtime.devices import AXIS
from kacl_jax.step.augment import Augmentation
from kacl_jax.step.loss_terms import LossSettings
from kacl_jax.step.programs import Programs
from kacl_jax.step.state import TrainState

C, SIZE, B, F = 8, 64, 16, len(radiomics.FEATURE_NAMES)
LOSS = LossSettings(
    focal_weight=0.8,
    focal_alpha=0.25,
    focal_gamma=2.0,
    temperature=0.5,
    mask_same_patient=True,
    box_weight=0.1,
)


TINY_ENCODER = tiny_run.tiny_encoder()


class TinyKACL(KACL):
    """KACL with the image encoder of tiny_run.py, so that a step compiles in a second."""

    encoder: str = "tiny"
    n_findings: int = C

    def setup(self) -> None:
        with mock.patch.dict(ENCODERS, tiny=TINY_ENCODER):
            super().setup()


TINY = TinyKACL(axis_name=AXIS)


def programs(**changed: Any) -> Programs:
    """SGD with rate 1 makes the parameter change the gradient itself."""
    plain = Programs(
        model=TINY,
        optimizer=optax.sgd(1.0),
        loss=LOSS,
        augmentation=Augmentation(),
        input_scale=INPUT_SCALES["imagenet"],
        log_columns=radiomics.LOG_COLUMNS,
        warmup_steps=0,
        center_cam=True,
        seed=0,
    )
    return dataclasses.replace(plain, **changed)


@functools.cache
def first_state(model: KACL = TINY, **changed: Any) -> TrainState:
    program = programs(model=model, **changed)
    variables = jax.jit(
        lambda: program.model.init(
            jax.random.key(0),
            jnp.zeros((1, SIZE, SIZE, 3)),
            jnp.zeros((1, F)),
            jnp.zeros(1, bool),
            train=False,
        )
    )()
    return jax.device_get(program.init(variables, SIZE))


def make_batch(
    n_ready: int = 11, seed: int = 0, blur: tuple[float, float] = (2, 12)
) -> dict[str, np.ndarray]:
    """Ready rows and boxes are spread unevenly: a mean of per-device means would be wrong."""
    random = np.random.default_rng(seed)
    # Images that differ in more than noise: batch statistics of white noise alone are ill-conditioned.
    blurred = [
        cv2.GaussianBlur(random.normal(size=(SIZE, SIZE)), (0, 0), random.uniform(*blur))
        for _ in range(B)
    ]
    grey = [np.interp(x, (x.min(), x.max()), (0, random.uniform(60, 255))) for x in blurred]
    low = random.uniform(0, 0.5, (B, C, 2))
    has_box = np.zeros((B, C), bool)
    has_box[:3, 1] = True
    return {
        "image": np.stack(grey).astype(np.uint8)[..., None],
        "labels": (random.random((B, C)) < 0.3).astype(np.float32),
        "boxes": np.concatenate([low, low + 0.4], -1).astype(np.float32)[:, :, None],
        "has_box": has_box,
        "image_id": np.arange(100, 100 + B, dtype=np.int32),
        "patient_id": np.repeat(np.arange(B // 2), 2).astype(np.int32),
        "radiomics": random.gamma(1.0, 50.0, (B, F)).astype(np.float32),
        "ready": np.arange(B) < n_ready,
        "age": np.full(B, 7, np.int32),
    }


def close(ours: Any, reference: Any, *, within: float = 2e-3) -> None:
    """Every leaf equal up to a share of its norm."""
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(reference), strict=True
    ):
        error = np.linalg.norm(np.asarray(a, np.float64) - b)
        assert error <= within * np.linalg.norm(b) + 1e-6, (jax.tree_util.keystr(path), error)
