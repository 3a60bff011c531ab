"""Radiomics: the JAX extractor against pyradiomics, both in one run on one core.

    python benchmarks/extract.py [--rounds=40] [--out=extract.json]

Square regions of 60, 150 and 300 px on smooth images made here, 512 px (8 grey levels of bin width 25 and film grain),
or on real X-rays with --images=FOLDER. Medians over rounds in which all take turns, ms of one region:
`execute` on the full image · `tuned`, the call of kacl_jax.radiomics.host (cropped, classes called directly) ·
`scatter`, pure XLA · `numba`, counts by numba and formulas by XLA · `extract`, the public function with the host's
share (cropping, binning) and the fastest of these. The first call, which includes compilation, is reported apart.
"""

from __future__ import annotations

import argparse
import importlib.util
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

from kacl_jax.radiomics import FAMILIES, extraction, host
from kacl_jax.radiomics.counts import bins

SIZES = (60, 150, 300)
COUNTING: tuple[extraction.CountingMethod, ...] = (
    ("scatter", "numba") if importlib.util.find_spec("numba") else ("scatter",)
)
N = 8


def load_images(folder: str) -> list[np.ndarray]:
    if folder:
        paths = sorted(Path(folder).glob("*.png"))[: 7 * N : 7]
        return [cv2.resize(cv2.imread(str(p), cv2.IMREAD_GRAYSCALE), (512, 512)) for p in paths]
    random = np.random.default_rng(0)
    phantoms = []
    for _ in range(N):
        smooth = cv2.GaussianBlur(random.normal(size=(512, 512)), (0, 0), 40)
        grey = (
            cv2.normalize(smooth, None, 20, 220, cv2.NORM_MINMAX)
            + random.normal(size=(512, 512)) * 3
        )
        phantoms.append(np.clip(grey, 0, 255).astype(np.uint8))
    return phantoms


def median_ms(
    contenders: dict[str, tuple[Callable[[int], Any], int]], rounds: int
) -> dict[str, float]:
    """ms of one region for each contender. They take turns, so that a busy machine slows all of them alike.

    contenders: name → (function of the number of an image, regions that one call measures).
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(rounds):
        for name, (function, regions) in contenders.items():
            start = time.perf_counter()
            function(round_ % N)
            seconds[name].append((time.perf_counter() - start) / regions)
    return {name: float(np.median(times)) * 1e3 for name, times in seconds.items()}


def documented_extractor() -> Callable[[np.ndarray, np.ndarray], Any]:
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


def time_size(size: int, grey: list[np.ndarray], rounds: int) -> dict[str, float]:
    mask = np.zeros((512, 512), bool)
    mask[100 : 100 + size, 90 : 90 + size] = True
    tuned, execute = host.Extractor(), documented_extractor()

    def extract_all(_: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a smooth image may have two grey levels
            extraction.extract(grey, [mask] * N, backend="jax")

    contenders: dict[str, tuple[Callable[[int], Any], int]] = {
        "execute": (lambda row: execute(grey[row], mask), 1),
        "tuned": (lambda row: tuned.extract(grey[row], mask), 1),
        "extract": (extract_all, N),
    }
    compile_s = {}
    for counting in COUNTING:
        run, room, compile_s[f"{counting}_compile_s"] = prepare_program(grey, mask, size, counting)
        contenders[counting] = (run, room)
    extract_all(0)
    ms = median_ms(contenders, rounds)
    ratios = {
        f"{slow}_over_{fast}": round(ms[slow] / ms[fast], 1)
        for fast in (*COUNTING, "extract")
        for slow in ("execute", "tuned")
    }
    return {"px": size, **{f"{k}_ms": round(v, 3) for k, v in ms.items()}, **ratios, **compile_s}


def prepare_program(
    grey: list[np.ndarray], mask: np.ndarray, size: int, counting: extraction.CountingMethod
) -> tuple[Callable[[int], Any], int, float]:
    """(function that measures the tiles of a full program, number of tiles, seconds of its first call)."""
    crops = [host.crop(image, mask) for image in grey]
    levels = [bins.grey_levels(*crop, bin_width=25.0, bin_count=None) for crop in crops]
    side, most, _ = extraction._choose_bucket(levels[0], np.dtype(np.uint8), counting)
    room = extraction._batch_size(side, counting)
    pixels = np.zeros((room, side, side), np.uint8)
    level = np.zeros_like(pixels)
    for row in range(room):
        pixels[row, 1 : size + 1, 1 : size + 1] = crops[row % N][0]
        level[row, 1 : size + 1, 1 : size + 1] = levels[row % N]
    program = extraction._compiled_program(most, counting)

    def run(_: int) -> Any:
        return jax.block_until_ready(program(pixels, level, used=np.int32(room)))

    start = time.perf_counter()
    run(0)
    return run, room, round(time.perf_counter() - start, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", default="", help="folder of PNGs; default: made here")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", default="")
    flags = parser.parse_args()
    grey = load_images(flags.images)
    report: dict[str, Any] = {
        "versions": {
            "pyradiomics": host._pyradiomics_version(),
            **{name: version(name) for name in ("numpy", "jax", "jaxlib")},
        },
        "device": jax.devices()[0].device_kind,
        "images": flags.images or "made here",
        "rows": [],
    }
    print(json.dumps(report["versions"]))
    for size in SIZES:
        report["rows"].append(time_size(size, grey, flags.rounds))
        print(json.dumps(report["rows"][-1]), flush=True)
    if flags.out:
        Path(flags.out).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
