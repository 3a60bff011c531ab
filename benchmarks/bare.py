"""A bare train step for the benchmarks: KACL as configs/nih.py trains it under protocol A, a batch, and regions.

Imports nothing that reads data, configs or pyradiomics, so that it runs on a bare machine with an accelerator.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax

from kacl_jax import radiomics
from kacl_jax.models.input_scales import INPUT_SCALES
from kacl_jax.models.kacl import KACL
from kacl_jax.runtime.devices import AXIS
from kacl_jax.step.augment import Augmentation
from kacl_jax.step.in_step_radiomics import InStepRadiomics
from kacl_jax.step.loss_terms import LossSettings
from kacl_jax.step.programs import Programs
from kacl_jax.step.regions import RegionRule

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


def in_step_radiomics(size: int) -> InStepRadiomics:
    """Regions from maps alone, thresholded and binned as configs/nih.py does."""
    rule = RegionRule("cam", truth_boxes=False, relu=True, threshold=0.5, size=size, seed=0)
    return InStepRadiomics(rule, bin_width=25.0)


def xrays(size: int, b: int, archive: Path | None = None) -> np.ndarray:
    """Images uint8 [b size size]: an archive's, in turns (`benchmarks.reference_regions`), or smooth with grain."""
    if archive is None:
        random = np.random.default_rng(0)
        grain = random.normal(scale=4, size=(b, size, size))
        smooth = np.stack([_smooth(random, size, size / 16) for _ in range(b)])
        return np.clip(200 * smooth + 20 + grain, 0, 255).astype(np.uint8)
    with np.load(archive, allow_pickle=False) as arrays:
        images = arrays["images"]
    if images.shape[1:] != (size, size):
        raise SystemExit(
            f"{archive} holds images of {images.shape[1]} px, and {size} px are asked for"
        )
    return images[np.arange(b) % len(images)]


def maps(b: int, *, sigma: float = 1.2) -> np.ndarray:
    """float32 [b 7 7]: smooth noise. sigma: of the smoothing, in cells."""
    random = np.random.default_rng(0)
    return np.stack([_smooth(random, 7, sigma) - 0.2 for _ in range(b)]).astype(np.float32)


def _smooth(random: np.random.Generator, side: int, sigma: float) -> np.ndarray:
    """[side side], 0 to 1."""
    x = cv2.GaussianBlur(random.normal(size=(side, side)), (0, 0), sigma)
    return np.asarray((x - x.min()) / (x.max() - x.min()))
