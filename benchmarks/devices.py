"""The peak speed of a device: the denominator of model FLOP utilisation."""

from __future__ import annotations

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Dense bfloat16 peak of one jax device in FLOP/s; the key is how its device_kind begins.
PEAK_FLOPS = {
    "TPU v6 lite": 918e12,  # cloud.google.com/tpu/docs/v6e
    "TPU v5 lite": 197e12,  # cloud.google.com/tpu/docs/v5e
    "TPU v5": 459e12,  # jax's name of a v5p; cloud.google.com/tpu/docs/v5p
    "TPU v4": 275e12,  # cloud.google.com/tpu/docs/v4
    "NVIDIA H200": 989e12,  # NVIDIA H200 data sheet, SXM
    "NVIDIA H100 80GB HBM3": 989e12,  # NVIDIA H100 data sheet, SXM, without sparsity
    "NVIDIA H100 PCIe": 756e12,  # the same
    "NVIDIA A100": 312e12,  # NVIDIA A100 data sheet
}


class Memory(NamedTuple):
    """A device's main memory: bytes, and bytes/s."""

    size: float
    speed: float


# From the same pages; the key is how a device_kind begins.
MEMORY = {
    "TPU v6 lite": Memory(32e9, 1638e9),
    "TPU v5 lite": Memory(16e9, 819e9),
    "TPU v5": Memory(95e9, 2765e9),
    "TPU v4": Memory(32e9, 1200e9),
    "NVIDIA H100 80GB HBM3": Memory(80e9, 3350e9),
}


def memory(device: jax.Device) -> Memory:
    """The main memory of an accelerator in `MEMORY`."""
    return next(m for kind, m in MEMORY.items() if device.device_kind.startswith(kind))


def peak_flops(device: jax.Device) -> tuple[float | None, str]:
    """(FLOP/s, where the number comes from). A CPU is measured; for an unknown accelerator it is None."""
    if device.platform == "cpu":
        return _matmul_rate(), "the fastest of ten float32 products of 2048×2048 matrices, this run"
    for kind, flops in PEAK_FLOPS.items():
        if device.device_kind.startswith(kind):
            return flops, "data sheet, dense bfloat16"
    return None, f"no data sheet figure is known here for {device.device_kind!r}"


def _matmul_rate(side: int = 2048) -> float:
    x = jnp.ones((side, side))
    product = jax.jit(jnp.matmul)
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds)
