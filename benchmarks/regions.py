"""Radiomics in the train step: regions/s of the default device, with marking, compared to a core with pyradiomics.

    python -m benchmarks.regions [image size] [batch …]

The images are smooth with film grain, the maps smooth noise on a 7×7 grid, thresholded as in training. Medians over
rounds in which both take turns; times include the transfer of the images to the device. The first call of each program,
which includes compilation, is reported apart.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import cv2
import jax
import numpy as np

from kacl_jax.radiomics import extract
from kacl_jax.step.in_step_radiomics import InStepRadiomics
from kacl_jax.step.regions import RegionRule

ROUNDS, ON_HOST = 7, 16


def main(size: int = 224, *batches: int) -> None:
    rule = RegionRule("cam", truth_boxes=False, relu=True, threshold=0.5, size=size, seed=0)
    in_step = InStepRadiomics(rule, bin_width=25.0)
    measure = jax.jit(in_step.measure)
    device = jax.devices()[0]
    print(f"{size} px, {device.platform}:{device.device_kind}, jax {jax.__version__}")
    print(
        f"{'regions at once':>16}{'ms':>10}{'regions/s':>12}{'a core: ms':>12}{'× a core':>10}{'first call s':>14}"
    )
    for b in batches or (32, 256):
        inputs = _random_inputs(b, size)
        first_s = _time(lambda inputs=inputs: jax.block_until_ready(measure(*inputs)))
        masks = np.asarray(jax.jit(rule.mark_on_device)(*inputs[1:])[0])[:ON_HOST]
        images = inputs[0][: len(masks)]
        seconds, host_s = [], []
        for _ in range(ROUNDS):
            seconds.append(_time(lambda inputs=inputs: jax.block_until_ready(measure(*inputs))))
            host_s.append(_time(lambda images=images, masks=masks: extract(images, masks)))
        rate, core_s = b / statistics.median(seconds), statistics.median(host_s) / len(masks)
        row = f"{b:16d}{1e3 * b / rate:10.1f}{rate:12.0f}{1e3 * core_s:12.1f}{rate * core_s:10.0f}"
        print(f"{row}{first_s:14.1f}; {100 * masks.mean():.0f} % of an image", flush=True)


def _random_inputs(b: int, size: int) -> tuple[np.ndarray, ...]:
    """Images uint8 [b h w], maps float32 [b 7 7], no truth boxes, on the host."""
    random = np.random.default_rng(0)

    def smooth(side: int, sigma: float) -> np.ndarray:
        x = cv2.GaussianBlur(random.normal(size=(side, side)), (0, 0), sigma)
        return np.asarray((x - x.min()) / (x.max() - x.min()))

    grain = random.normal(scale=4, size=(b, size, size))
    images = np.stack([200 * smooth(size, size / 16) for _ in range(b)]) + 20 + grain
    cams = np.stack([smooth(7, 1.2) for _ in range(b)]) - 0.2
    return (
        np.clip(images, 0, 255).astype(np.uint8),
        cams.astype(np.float32),
        np.full(b, -1, np.int32),
        np.zeros((b, 8, 4), np.float32),
    )


def _time(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
