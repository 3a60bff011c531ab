"""Images a second of predict, and what bounds it: python -m benchmarks.predict RUN [images=128]

Made radiographs of 1024 px, as PNG and as DICOM of 12 bits in several transfer syntaxes. `read`: as many threads as
there are cores, files in the page cache. `network`: the run's, at its batch size. `write`: tables and pages. The
command reads the next images while the network works on these. `whole`: the command from start to end.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np

from benchmarks.fuzz.dicom import encode
from kacl_jax.predict import __main__ as command
from kacl_jax.predict import inputs, model
from kacl_jax.runtime import compilation
from kacl_jax.runtime.files import user_cache_folder

SIDE, DISTINCT, ROUNDS = 1024, 8, 3
SYNTAXES = {
    "DICOM": "explicit",
    "DICOM, JPEG 2000": "jpeg2000",
    "DICOM, JPEG lossless": "jpeg_lossless",
}


def main(run: str, images: int = 128) -> None:
    compilation.use_cache(user_cache_folder() / "predict")
    network = model.load(run)
    with tempfile.TemporaryDirectory() as folder:
        kinds = write_images(Path(folder), images)
        xrays = read(kinds["PNG"])
        parts = {f"read {kind}": lambda files=files: read(files) for kind, files in kinds.items()}
        parts["network"] = lambda: network.predict(xrays)
        rates = rates_of(parts, images)
        for kind, files in kinds.items():
            out = Path(folder) / f"out {kind}"
            flags = [f"--run={run}", f"--images={files[0].parent}", f"--out={out}"]
            rates |= rates_of({f"whole {kind}": lambda flags=flags: command.main(flags)}, images, 1)
    device = jax.devices()[0]
    print(f"{run}, {images} images of {SIDE} px, {os.cpu_count()} cores, {device.device_kind}")
    for name, rate in rates.items():
        print(f"{name:28} {rate:8.1f} images/s")


def write_images(folder: Path, images: int) -> dict[str, list[Path]]:
    """Files of each kind; the pictures repeat."""
    files: dict[str, list[Path]] = {}
    for kind in ("PNG", *SYNTAXES):
        place = folder / kind
        place.mkdir()
        contents = [to_file(radiograph(seed), kind) for seed in range(DISTINCT)]
        files[kind] = [place / f"{number:04d}" for number in range(images)]
        for number, path in enumerate(files[kind]):
            path.write_bytes(contents[number % DISTINCT])
    return files


def radiograph(seed: int) -> np.ndarray:
    """uint16 [1024 1024] of 12 bits, smooth with film grain."""
    random = np.random.default_rng(seed)
    smooth = cv2.GaussianBlur(random.normal(size=(SIDE, SIDE)), (0, 0), 60)
    grey = cv2.normalize(smooth, None, 200, 3900, cv2.NORM_MINMAX)
    return np.clip(grey + random.normal(size=grey.shape) * 12, 0, 4095).astype(np.uint16)


def to_file(pixels: np.ndarray, kind: str) -> bytes:
    if kind == "PNG":
        return cv2.imencode(".png", (pixels >> 4).astype(np.uint8))[1].tobytes()
    return encode(pixels, SYNTAXES[kind])


def read(files: list[Path]) -> list[inputs.Xray]:
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(threads.map(lambda file: inputs.read(inputs.Listed(file.name, file)), files))


def rates_of(
    parts: dict[str, Callable[[], Any]], images: int, rounds: int = ROUNDS
) -> dict[str, float]:
    """Images/s, the median over rounds in which all parts take turns; with several, one more warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for round_ in range(rounds + (rounds > 1)):
        for name, part in parts.items():
            start = time.perf_counter()
            part()
            if round_ or rounds == 1:
                seconds[name].append(time.perf_counter() - start)
    return {name: images / statistics.median(times) for name, times in seconds.items()}


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
