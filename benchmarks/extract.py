"""Radiomics: the JAX extractor against pyradiomics, both in one run on one core.

    python benchmarks/extract.py [--repeats=5] [--out=extract.json]

Square regions of 60, 150 and 300 px on smooth 512 px images made here (8 grey levels of bin width 25 and film grain),
or of real X-rays with --images=FOLDER. Medians over regions and repeats:
`execute` on the full image (plain) · the tuned call of kacl_jax.radiomics.host (cropped, classes called directly) ·
JAX without and with the host's share (cropping, binning). Compilation is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

# One core, before numpy and jax start their threads.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import cv2
import jax
import numpy as np
import SimpleITK
from radiomics.featureextractor import RadiomicsFeatureExtractor

from kacl_jax.radiomics import FAMILIES, bins, host
from kacl_jax.radiomics import extract as jax_extract

SIZES = (60, 150, 300)
N = 8


def images(folder: str) -> list[np.ndarray]:
    if folder:
        paths = sorted(Path(folder).glob("*.png"))[: 7 * N : 7]
        return [cv2.resize(cv2.imread(str(p), cv2.IMREAD_GRAYSCALE), (512, 512)) for p in paths]
    random = np.random.default_rng(0)
    made = []
    for _ in range(N):
        smooth = cv2.GaussianBlur(random.normal(size=(512, 512)), (0, 0), 40)
        grey = (
            cv2.normalize(smooth, None, 20, 220, cv2.NORM_MINMAX)
            + random.normal(size=(512, 512)) * 3
        )
        made.append(np.clip(grey, 0, 255).astype(np.uint8))
    return made


def medians(function: Callable[[int], Any], repeats: int) -> float:
    """ms of one call, the median over all images and repeats."""
    taken = []
    for _ in range(repeats):
        for row in range(N):
            start = time.perf_counter()
            function(row)
            taken.append(time.perf_counter() - start)
    return float(np.median(taken)) * 1e3


def plain() -> Callable[[np.ndarray, np.ndarray], Any]:
    extractor = RadiomicsFeatureExtractor(binWidth=25, force2D=False, additionalInfo=False)
    extractor.disableAllFeatures()
    for family in FAMILIES:
        extractor.enableFeatureClassByName(family)

    def run(pixels: np.ndarray, mask: np.ndarray) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return extractor.execute(
                SimpleITK.GetImageFromArray(pixels.astype(np.float32)),
                SimpleITK.GetImageFromArray(mask.astype(np.uint8)),
            )

    return run


def row_of(size: int, grey: list[np.ndarray], repeats: int) -> dict[str, float]:
    mask = np.zeros((512, 512), bool)
    mask[100 : 100 + size, 90 : 90 + size] = True
    tuned, execute = host.Extractor(), plain()
    crops = [host.crop(image, mask) for image in grey]
    levels = [bins.levels(*crop, bin_width=25.0, bin_count=None) for crop in crops]
    side, most, _ = jax_extract._bucket(levels[0], np.dtype(np.uint8))
    room = jax_extract._room(side)
    pixels = np.zeros((room, side, side), np.uint8)
    level = np.zeros_like(pixels)
    for row in range(room):
        pixels[row, 1 : size + 1, 1 : size + 1] = crops[row % N][0]
        level[row, 1 : size + 1, 1 : size + 1] = levels[row % N]
    program = jax_extract._program(most, jax_extract.formulation())
    arrays = jax.device_put((pixels, level, np.int32(room)))

    def on_device(_: int) -> None:
        jax.block_until_ready(program(arrays[0], arrays[1], used=arrays[2]))

    def whole(_: int) -> None:
        jax_extract.extract(grey, [mask] * N, backend="jax")

    on_device(0)
    whole(0)
    memory = program.lower(arrays[0], arrays[1], used=arrays[2]).compile().memory_analysis()
    times = {
        "execute": medians(lambda row: execute(grey[row], mask), repeats),
        "tuned": medians(lambda row: tuned.extract(grey[row], mask), repeats),
        "jax": medians(on_device, repeats) / room,
        "jax_with_host": medians(whole, repeats) / N,
    }
    return {
        "px": size,
        **{f"{name}_ms": round(value, 3) for name, value in times.items()},
        "full_over_jax": round(times["execute"] / times["jax"], 1),
        "full_over_jax_with_host": round(times["execute"] / times["jax_with_host"], 1),
        "tuned_over_jax": round(times["tuned"] / times["jax"], 1),
        "tuned_over_jax_with_host": round(times["tuned"] / times["jax_with_host"], 1),
        "regions_per_call": room,
        "temporary_MiB_per_call": round(memory.temp_size_in_bytes / 2**20, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", default="", help="folder of PNGs; default: made here")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", default="")
    flags = parser.parse_args()
    grey = images(flags.images)
    told: dict[str, Any] = {
        "versions": {
            "pyradiomics": host._pyradiomics_version(),
            **{name: version(name) for name in ("numpy", "jax", "jaxlib")},
        },
        "device": jax.devices()[0].device_kind,
        "images": flags.images or "made here",
        "rows": [],
    }
    print(json.dumps(told["versions"]))
    for size in SIZES:
        told["rows"].append(row_of(size, grey, flags.repeats))
        print(json.dumps(told["rows"][-1]), flush=True)
    if flags.out:
        Path(flags.out).write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
