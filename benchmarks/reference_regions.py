"""Real regions with pyradiomics' values in one small archive, and how close a device comes to them.

    python -m benchmarks.reference_regions --make --root=/path/to/nih [--size=224] [--regions=500] ARCHIVE.npz
    python -m benchmarks.reference_regions [--forms=scatter,matmul,compare] [--json=FILE] ARCHIVE.npz

The first needs pyradiomics and the images. It takes images at even distances from the folder, and five regions of
each: four from thresholded maps of smooth noise, and the whole image. The second needs neither. It ends with 1 if a
value is further from pyradiomics' than the tests allow in float32 (1e-5, `benchmarks.equal_values`), or if a count is
not, bit for bit, the one that was made on a CPU. forms: of counting, all by default.

The archive: images uint8 [i s s] · image_of int32 [n], the image of each region · masks uint8 [n s s/8], packed bits ·
features float64 [n f], pyradiomics' · 'counts.…' uint64 [n], a digest of that matrix.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, get_args

import cv2
import jax
import numpy as np

from benchmarks import bare
from benchmarks.equal_values import share_of_tolerance
from kacl_jax.radiomics import FEATURE_NAMES, tiles
from kacl_jax.radiomics.counts.bincount import Formulation
from kacl_jax.radiomics.counts.matrices import Matrices

REGIONS_OF_AN_IMAGE, AT_ONCE = 5, 125
Measure = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, Matrices]]


class Reference(NamedTuple):
    """images: uint8 [n s s], of each region. masks: bool [n s s]. features, counts: as in the archive."""

    images: np.ndarray
    masks: np.ndarray
    features: np.ndarray
    counts: dict[str, np.ndarray]


def read(archive: Path) -> Reference:
    """The archive's regions."""
    with np.load(archive, allow_pickle=False) as arrays:
        images = arrays["images"][arrays["image_of"]]
        masks = np.unpackbits(arrays["masks"], axis=2, count=images.shape[2]).astype(bool)
        counts = {name: arrays[name] for name in arrays if name.startswith("counts.")}
        return Reference(images, masks, arrays["features"], counts)


def make(root: Path, size: int, n: int, archive: Path) -> None:
    """Write an archive of n regions. Regions that pyradiomics refuses are left out."""
    from kacl_jax.radiomics.host import Extractor

    extractor, rule = Extractor(25.0), bare.in_step_radiomics(size).rule
    paths = sorted((root / "images").glob("*.png"))
    n_images = -(-n // REGIONS_OF_AN_IMAGE)
    if len(paths) < n_images:
        sys.exit(f"{root}/images has {len(paths)} PNG images, and {n} regions need {n_images}")
    chosen = paths[:: len(paths) // n_images][:n_images]
    images = np.stack(
        [
            cv2.resize(cv2.imread(str(path), 0), (size, size), interpolation=cv2.INTER_AREA)
            for path in chosen
        ]
    )
    # Large and small regions by turns. A flat map marks the whole image.
    cams = np.concatenate([bare.maps(2 * n_images), bare.maps(2 * n_images, sigma=0.6)])
    cams = np.concatenate([cams, np.zeros((n_images, 7, 7), np.float32)])
    image_of = np.tile(np.arange(n_images, dtype=np.int32), REGIONS_OF_AN_IMAGE)[:n]
    masks = np.stack([rule.region(cam)[0] for cam in cams[:n]])
    values = [
        extractor.features_or_reason(images[i], m) for i, m in zip(image_of, masks, strict=True)
    ]
    measured = np.array([not isinstance(value, str) for value in values])
    image_of, masks = image_of[measured], masks[measured]
    _, counts = measure_all(compiled("scatter", size), images[image_of], masks)
    np.savez_compressed(
        archive,
        images=images,
        image_of=image_of,
        masks=np.packbits(masks, axis=2),
        features=np.stack([value for value in values if not isinstance(value, str)]),
        **counts,
    )
    print(
        f"{archive}: {len(masks)} regions of {n_images} images, {archive.stat().st_size / 1e6:.1f} MB"
    )


def compiled(form: Formulation, size: int) -> Measure:
    """(images uint8 [b s s], masks bool [b s s]) → (features float32 [b f], matrices) on the default device."""
    in_step = bare.in_step_radiomics(size)
    one_by_one = form == "scatter" and jax.default_backend() == "cpu"

    @jax.jit
    def measure(images: Any, masks: Any, table: Any) -> tuple[Any, Any]:
        tile = {"side": in_step.side, "n_levels": in_step.n_levels}
        pixels, level, _ = tiles.crop_and_bin(images, masks, table, **tile)
        counts = tiles.count(
            pixels, level, n_levels=in_step.n_levels, formulation=form, one_by_one=one_by_one
        )
        return tiles.features_from_counts(counts, pixels, level), counts

    return functools.partial(measure, table=in_step.level_table)


def measure_all(
    measure: Measure, images: np.ndarray, masks: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(features [n f], digests of each matrix uint64 [n], named as in the archive)."""
    features, digests = [], []
    b = min(AT_ONCE, len(masks))
    for first in range(0, len(masks), b):
        # The last turn measures some regions once more, so that one program fits all.
        rows = np.minimum(np.arange(first, first + b), len(masks) - 1)
        values, counts = jax.device_get(measure(images[rows], masks[rows]))
        features.append(values)
        leaves = jax.tree_util.tree_leaves_with_path(counts)
        digests.append({"counts" + jax.tree_util.keystr(path): _digests(x) for path, x in leaves})
    joined = {name: np.concatenate([x[name] for x in digests]) for name in digests[0]}
    return np.concatenate(features)[: len(masks)], {k: x[: len(masks)] for k, x in joined.items()}


def _digests(counts: np.ndarray) -> np.ndarray:
    """uint64 [n] of one matrix of n regions."""
    rows = np.ascontiguousarray(counts, np.int32)
    return np.array(
        [
            int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=8).digest(), "little")
            for row in rows
        ],
        np.uint64,
    )


def compare(reference: Reference, form: Formulation) -> dict[str, Any]:
    """How far the default device's values are from the archive's, and in how many regions a matrix differs."""
    measure = compiled(form, reference.images.shape[1])
    features, counts = measure_all(measure, reference.images, reference.masks)
    shares = share_of_tolerance(features, reference.features, "float32")
    differ = {name: int((counts[name] != x).sum()) for name, x in reference.counts.items()}
    worst = int(shares.max(0).argmax())
    wrong = {FEATURE_NAMES[k]: int((shares[:, k] > 1).sum()) for k in range(len(FEATURE_NAMES))}
    return {
        "regions": len(features),
        "largest_share_of_tolerance": min(float(shares.max()), 1e30),
        "of_feature": FEATURE_NAMES[worst],
        "regions_beyond_tolerance": {name: k for name, k in wrong.items() if k},
        "regions_with_other_counts": {name: k for name, k in differ.items() if k},
        "equal": bool((shares <= 1).all() and not any(differ.values())),
    }


def main() -> None:
    forms = get_args(Formulation)
    parser = argparse.ArgumentParser(prog="benchmarks.reference_regions", allow_abbrev=False)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--make", action="store_true")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--regions", type=int, default=500)
    parser.add_argument("--forms", type=lambda text: text.split(","), default=list(forms))
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()
    if flags.make:
        if flags.root is None:
            parser.error("--make needs --root=/path/to/nih")
        make(flags.root, flags.size, flags.regions, flags.archive)
        return
    reference = read(flags.archive)
    found = {form: compare(reference, form) for form in flags.forms}
    print(json.dumps(found, indent=2))
    if flags.json:
        flags.json.write_text(json.dumps(found, indent=2) + "\n")
    if not all(x["equal"] for x in found.values()):
        sys.exit("the device's values or counts differ from the archive's")


if __name__ == "__main__":
    main()
