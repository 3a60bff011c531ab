"""How long the regressions of a fusion take for a whole data set, and how much memory. The features are made up.

    python -m benchmarks.fusion [images] [cells along one side]

Prints the processor seconds of each part, and the peak of the process's memory beside what the features alone take. By
default it has all images of ChestX-ray14 and the grid of 4×4 cells. For figures of one core set OPENBLAS_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np

from kacl_jax.fusion import grid, ridge
from kacl_jax.radiomics import FEATURE_NAMES

FINDINGS, IMAGES_OF_A_PATIENT, SHARE_OF_POSITIVES = 14, 3.6, 0.05


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.fusion", allow_abbrev=False)
    parser.add_argument("images", nargs="?", type=int, default=112_120)
    parser.add_argument("side", nargs="?", type=int, default=4)
    flags = parser.parse_args()
    n, rng = flags.images, np.random.default_rng(0)
    features = rng.standard_normal((n, flags.side**2, len(FEATURE_NAMES)), np.float32)
    patients = rng.integers(0, int(n / IMAGES_OF_A_PATIENT), n)
    labels = (rng.random((n, FINDINGS)) < SHARE_OF_POSITIVES).astype(np.int8)
    gigabytes = features.nbytes / 2**30
    print(f"{n:,} rows of {features[0].size:,} features: {gigabytes:.2f} GiB")

    start = time.process_time()
    columns = grid.as_columns(features)
    del features
    print(f"as columns: {time.process_time() - start:.0f} s", flush=True)
    start = time.process_time()
    fitted = ridge.fit(columns, labels, patients)
    print(f"fit of {FINDINGS} findings: {time.process_time() - start:.0f} s", flush=True)
    start = time.process_time()
    fitted.scores(columns)
    print(f"scores of all rows: {time.process_time() - start:.0f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
    print(f"peak memory: {peak:.2f} GiB")


if __name__ == "__main__":
    main()
