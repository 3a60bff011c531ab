"""Radiomics in the train step: regions/s of the default device, marking included, beside a core with pyradiomics.

    python -m benchmarks.regions [image size] [batch …]

Smooth images with film grain made here; maps of smooth noise on a 7×7 grid, thresholded as in training. Medians of
rounds in turns, the images' way to the device included; the first call of each program, with compilation, is told
apart.
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
    fresh = InStepRadiomics(rule, bin_width=25.0)
    measure = jax.jit(fresh.measure)
    device = jax.devices()[0]
    print(f"{size} px, {device.platform}:{device.device_kind}, jax {jax.__version__}")
    print(
        f"{'regions at once':>16}{'ms':>10}{'regions/s':>12}{'a core: ms':>12}{'× a core':>10}{'first call s':>14}"
    )
    for b in batches or (32, 256):
        drawn = _drawn(b, size)
        first = _seconds(lambda drawn=drawn: jax.block_until_ready(measure(*drawn)))
        masks = np.asarray(jax.jit(fresh.mark)(*drawn[1:])[0])[:ON_HOST]
        images = drawn[0][: len(masks)]
        seconds, host_s = [], []
        for _ in range(ROUNDS):
            seconds.append(_seconds(lambda drawn=drawn: jax.block_until_ready(measure(*drawn))))
            host_s.append(_seconds(lambda images=images, masks=masks: extract(images, masks)))
        rate, core_s = b / statistics.median(seconds), statistics.median(host_s) / len(masks)
        row = f"{b:16d}{1e3 * b / rate:10.1f}{rate:12.0f}{1e3 * core_s:12.1f}{rate * core_s:10.0f}"
        print(f"{row}{first:14.1f}; {100 * masks.mean():.0f} % of an image", flush=True)


def _drawn(b: int, size: int) -> tuple[np.ndarray, ...]:
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


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
