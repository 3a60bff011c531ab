"""Inputs, weights and sampled positions that a golden and its test both derive, with numpy only."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np

SAMPLES = 200


def images() -> np.ndarray:
    """f32 [2 70 90 3]: sides that are neither equal nor a multiple of 32, so padding shows."""
    return np.random.default_rng(7).normal(size=(2, 70, 90, 3)).astype(np.float32)


def grey() -> np.ndarray:
    """f32 [2 70 90]: grey levels 0 … 255."""
    return np.random.default_rng(8).integers(256, size=(2, 70, 90)).astype(np.float32)


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A value for every tensor of a PyTorch ResNet, from a seed made of its name alone."""
    return {name: _tensor(name, shape) for name, shape in shapes.items()}


def _tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if len(shape) == 4:
        value = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
    elif name.endswith(("running_var", "weight")):
        value = rng.uniform(0.5, 1.5, size=shape)
    else:
        value = rng.normal(size=shape) * 0.1
    return value.astype(np.float32)


def sample(name: str, array: np.ndarray) -> np.ndarray:
    """SAMPLES values of `array` at positions seeded by `name` (NHWC order), as float32."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    flat = np.asarray(array, np.float32).ravel()
    return flat[rng.integers(flat.size, size=SAMPLES)]
