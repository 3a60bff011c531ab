"""Radiomics in the train step: regions/s of the default device, and where the time goes.

    python -m benchmarks.regions [image size] [batch] [--forms=scatter,matmul,compare] [--images=FILE] [--json=FILE]

forms: of counting (`kacl_jax/radiomics/counts/bincount.py`). Default: 'scatter' on a CPU, elsewhere all. A GPU takes
`_ON_A_GPU` in kacl_jax/step/in_step_radiomics.py in training, and this benchmark decides which it should be.
images: an archive of `benchmarks.reference_regions`; without it the images are smooth with film grain. The maps are
smooth noise on a 7×7 grid, thresholded as in training.

Each part runs alone, on the regions of the whole. Medians of rounds in which all parts of all forms take turns. The
inputs lie on the device. The remainder is what the whole takes more or less than its parts together.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np

from benchmarks import bare
from kacl_jax.radiomics import tiles
from kacl_jax.radiomics.counts.bincount import Formulation
from kacl_jax.radiomics.counts.matrices import Matrices
from kacl_jax.step.in_step_radiomics import InStepRadiomics

ROUNDS = 7
# What a part computes of the counts. XLA leaves out all the rest.
COUNTS: dict[str, Callable[[Matrices], Any]] = {
    "histogram": lambda counts: counts.histogram,
    "GLCM": lambda counts: (counts.glcm, counts.valid_directions),
    "GLRLM": lambda counts: counts.glrlm,
    "zones": lambda counts: counts.zones,
    "GLDM and NGTDM": lambda counts: (counts.gldm, counts.tone_difference),
    "outline": lambda counts: counts.outline,
}


def parts(
    in_step: InStepRadiomics, form: Formulation, images: jax.Array, cams: jax.Array
) -> dict[str, Callable[[], Any]]:
    """Each part, and 'whole', as a compiled call on its own inputs."""
    table = jax.device_put(in_step.level_table)
    tile = {"side": in_step.side, "n_levels": in_step.n_levels}
    crop = jax.jit(functools.partial(tiles.crop_and_bin, **tile))
    # As the step counts on a CPU.
    one_by_one = form == "scatter" and jax.default_backend() == "cpu"
    counting = {"formulation": form, "one_by_one": one_by_one}
    count = functools.partial(tiles.count, n_levels=in_step.n_levels, **counting)

    def mark(cams: jax.Array) -> jax.Array:
        finding = np.full(len(cams), -1, np.int32)
        return in_step.rule.mark_on_device(cams, finding, np.zeros((len(cams), 8, 1, 4)))[0]

    def whole(images: jax.Array, cams: jax.Array, table: jax.Array) -> Any:
        return tiles.region_features(images, mark(cams), table, **tile, **counting)

    mark_alone, formulas = jax.jit(mark), jax.jit(tiles.features_from_counts)
    masks = mark_alone(cams)
    pixels, level, _ = crop(images, masks, table)
    counts = jax.jit(count)(pixels, level)
    calls = {
        "marking": (mark_alone, cams),
        "cropping and binning": (crop, images, masks, table),
        **{
            name: (jax.jit(lambda *tiles_, take=take: take(count(*tiles_))), pixels, level)
            for name, take in COUNTS.items()
        },
        "formulas": (formulas, counts, pixels, level),
        "whole": (jax.jit(whole), images, cams, table),
    }
    return {name: functools.partial(*call) for name, call in calls.items()}


def split(size: int, b: int, forms: list[Formulation], archive: Path | None) -> dict[str, Any]:
    """Per form: ms of each part and of the whole, the remainder, regions/s, seconds of the whole's first call."""
    in_step = bare.in_step_radiomics(size)
    images, cams = jax.device_put((bare.xrays(size, b, archive), bare.maps(b)))
    calls = {form: parts(in_step, form, images, cams) for form in forms}
    first_s = {form: _seconds(calls[form]["whole"]) for form in forms}
    seconds: dict[str, dict[str, list[float]]] = {
        form: {name: [] for name in of_form} for form, of_form in calls.items()
    }
    for round_ in range(ROUNDS + 1):
        for form, of_form in calls.items():
            for name, call in of_form.items():
                took = _seconds(call)
                if round_:  # the first round compiles
                    seconds[form][name].append(took)
    found = {}
    for form, of_form in seconds.items():
        ms = {name: 1e3 * statistics.median(values) for name, values in of_form.items()}
        remainder = 2 * ms["whole"] - sum(ms.values())
        rate = 1e3 * b / ms["whole"]
        found[form] = {
            "ms": {**ms, "remainder": remainder},
            "regions_per_s": rate,
            "first_call_s": first_s[form],
        }
    return found


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def main() -> None:
    known = get_args(Formulation)
    default = ["scatter"] if jax.default_backend() == "cpu" else list(known)
    parser = argparse.ArgumentParser(prog="benchmarks.regions", allow_abbrev=False)
    parser.add_argument("size", type=int, nargs="?", default=224)
    parser.add_argument("batch", type=int, nargs="?", default=32)
    parser.add_argument("--forms", type=lambda text: text.split(","), default=default)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()
    if unknown := set(flags.forms) - set(known):
        parser.error(f"--forms={','.join(sorted(unknown))}: there are {', '.join(known)}")
    device = jax.devices()[0]
    where = f"{device.platform}:{device.device_kind}"
    print(f"{flags.size} px, {flags.batch} regions, {where}, jax {jax.__version__}; ms", flush=True)
    found = split(flags.size, flags.batch, flags.forms, flags.images)
    print(f"{'':22}" + "".join(f"{form:>10}" for form in found))
    for name in found[flags.forms[0]]["ms"]:
        print(f"{name:22}" + "".join(f"{x['ms'][name]:10.2f}" for x in found.values()))
    for name, title in (("regions_per_s", "regions/s"), ("first_call_s", "first call, s")):
        print(f"{title:22}" + "".join(f"{x[name]:10,.1f}" for x in found.values()))
    if flags.json:
        settings = {"device": where, "image_size": flags.size, "regions": flags.batch}
        flags.json.write_text(json.dumps({**settings, "forms": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
