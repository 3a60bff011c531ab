"""Which images a network calls unlike its training images: python -m analyses.familiarity RUN DATA_ROOT [FILE …]

The held-out X-rays of the run, two photographs that scikit-learn brings, noise, and X-rays that were changed; then each
FILE, with --any_view. Printed is the distance as a share of the threshold; above 1 an image is told.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import cv2
import numpy as np
from sklearn.datasets import load_sample_images

from kacl_jax.images.reader import read_image
from kacl_jax.predict.model import Model, load


def main(run: str, root: str, *files: str) -> None:
    model = load(run)
    held_out = [read_image(path) for path in _tested(Path(run), Path(root))]
    shares = _shares(model, held_out)
    told = f"{100 * np.mean(shares > 1):.1f} % told"
    print(f"{'held-out X-rays':28} median {np.median(shares):.3f}, {told} of {len(shares)}")
    strange = _strange_images(held_out)
    for name, share in zip(strange, _shares(model, list(strange.values())), strict=True):
        print(f"{name:28} {share:.3f}")
    for file in files:
        prediction = model(file, any_view=True)
        share = prediction.distance / model.network.facts.familiarity.threshold
        print(f"{Path(file).name:28} {share:.3f}")


def _tested(run: Path, root: Path) -> list[Path]:
    with (run / "predictions.csv").open(newline="") as file:
        names = [row["image"] for row in csv.DictReader(file) if row["split"] == "test"]
    return [root / "images" / name for name in names]


def _shares(model: Model, images: list[np.ndarray]) -> np.ndarray:
    distances = [prediction.distance for prediction in model(images)]
    return np.array(distances) / model.network.facts.familiarity.threshold


def _strange_images(xrays: list[np.ndarray]) -> dict[str, np.ndarray]:
    """uint8 [h w], by name."""
    temple, flower = (cv2.cvtColor(x, cv2.COLOR_RGB2GRAY) for x in load_sample_images().images)
    noise = np.random.default_rng(0).integers(0, 256, (512, 512), dtype=np.uint8)
    xray = xrays[0]
    return {
        "photograph, temple": temple,
        "piece of it": temple[100:300, 100:300].copy(),
        "photograph, flower": flower,
        "piece of that": flower[100:300, 200:400].copy(),
        "noise": noise,
        "smooth noise": cv2.GaussianBlur(noise, (0, 0), 9),
        "black": np.zeros((512, 512), np.uint8),
        "gradient": np.tile(np.arange(256, dtype=np.uint8), (256, 1)),
        "X-ray, inverted": 255 - xray,
        "X-ray, turned by 90°": np.rot90(xray).copy(),
        "X-ray, upside down": xray[::-1].copy(),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
