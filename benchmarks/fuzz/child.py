"""A child process that runs some cases: `python -m benchmarks.fuzz.child REPORT KIND:SEED …`.

It appends a line of JSON to REPORT before and after each case, so that the parent knows which one ended it.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import traceback
import zlib
from pathlib import Path
from typing import TextIO

import numpy as np

from benchmarks.fuzz import (
    arrays,
    checkpoints,
    convert,
    dicom,
    flags,
    folders,
    hostile_weights,
    jpeg,
    memo,
    own,
    png,
    points,
    prepared,
    run_files,
    run_log,
    tables,
    tiff,
    weights,
)
from benchmarks.fuzz.judge import TRACEBACK, judge
from benchmarks.fuzz.scene import Kind

KINDS: dict[str, Kind] = {
    **png.KINDS,
    **tiff.KINDS,
    **jpeg.KINDS,
    **dicom.KINDS,
    **folders.KINDS,
    **arrays.KINDS,
    **tables.KINDS,
    **prepared.KINDS,
    **own.KINDS,
    **convert.KINDS,
    **checkpoints.KINDS,
    **memo.KINDS,
    **run_files.KINDS,
    **run_log.KINDS,
    **points.KINDS,
    **flags.KINDS,
    **weights.KINDS,
    **hostile_weights.KINDS,
}
ADDRESS_SPACE = 6 << 30  # bytes; jax alone reserves 2.5 GiB


def run_case(name: str, report: TextIO) -> None:
    """One case, named KIND:SEED. Writes its kind, seed and what it is, and again with the verdict and a text."""
    kind, seed = name.rsplit(":", 1)
    line = {"kind": kind, "seed": seed, "what": ""}
    print(json.dumps(line), file=report)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        random = np.random.default_rng([int(seed), zlib.crc32(kind.encode())])
        case = KINDS[kind](random, Path(folder), int(seed))
        line["what"] = case.what
        print(json.dumps(line), file=report)
        try:
            answer = case.call()
        except Exception as error:  # the program under test may raise anything
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(where.filename).name}:{where.lineno}"
            verdict, text = TRACEBACK, f"{type(error).__name__}: {error} ({place})"
        else:
            verdict, text = judge(case, answer)
        os.chdir("/")
    print(json.dumps({**line, "verdict": verdict, "text": text}), file=report)


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with Path(sys.argv[1]).open("a", buffering=1) as report:
        for name in sys.argv[2:]:
            run_case(name, report)


if __name__ == "__main__":
    main()
