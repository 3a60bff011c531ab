"""Measure radiomic features of the regions of a folder of images.

    python -m kacl_jax.radiomics --images=FOLDER --masks=FOLDER --out=features.csv
    python -m kacl_jax.radiomics --images=FOLDER --boxes=boxes.csv --out=features.csv

Images: PNG, JPEG, TIFF or BMP in grey. The features are those of the file's own values, which are never scaled.
Masks: for each image one file of the same name and size; the region is where it is not 0. A mask with several labels
needs --label. A mask without sharp labels (a JPEG, float values, more than 32 values) needs --threshold. Boxes: a CSV
with the columns image, x, y, w, h in pixels of the image, or with --frame=1024 in NIH's frame, as in a run's boxes.csv.
Each row of the table is one region: image, region (its number among the image's boxes, from 0; with --label the label),
ready, reason, then the 102 features (an empty cell where a feature is NaN).

For very many images run the command N times, with --part=0/N to --part=N-1/N, on as many machines as you like. Each
call measures a part. Then the same command with --merge=N joins their tables.

A mistake in the arguments or folders ends the command before anything is computed. A problem of one file becomes a row
that is not ready.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the slow imports, during which a signal may come
    from kacl_jax.runtime import output, signals

    signals.exit_on_signals("Stopped. Run the same command again to continue.")
    output.prepare_streams()

import argparse
import math
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from kacl_jax.images.reader import MAX_MEGAPIXELS
from kacl_jax.radiomics import parts
from kacl_jax.radiomics.box_file import regions_from_boxes
from kacl_jax.radiomics.image_folder import Region
from kacl_jax.radiomics.mask_files import regions_from_masks
from kacl_jax.radiomics.table_file import Summary, parquet_converter, write_table
from kacl_jax.runtime import signals
from kacl_jax.runtime.errors import UserError
from kacl_jax.runtime.files import user_cache_folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, 1 a user's mistake, 75 interrupted."""
    signals.raise_keyboard_interrupt()
    arguments = sys.argv[1:] if arguments is None else arguments
    flags = _parser().parse_args(arguments)
    try:
        _refuse_repeated(arguments)
        _check_flags(flags)
        if flags.merge is not None:
            _merge(flags)
        else:
            _measure(flags)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nStopped. The finished rows are in {_table(flags)}.part", file=sys.stderr)
        return 75
    return 0


def _measure(flags: argparse.Namespace) -> None:
    """Write the table and print its summary.

    Raises:
      UserError: for an error in the arguments or input files as a whole, before anything is computed.
    """
    if flags.out.suffix == ".parquet":
        parquet_converter()  # is missed before anything is computed
    regions, warnings = _find_regions(flags)
    for line in warnings:
        print(f"Warning: {line}", file=sys.stderr)
    options = {
        "backend": flags.backend,
        "bin_width": flags.bin_width,
        "bin_count": flags.bin_count,
        "dtype": "float64",
        "workers": flags.workers,
    }
    if flags.backend == "jax":
        _keep_compiled_programs()
    out = _table(flags)
    mark = parts.mark(flags) if flags.part else ""
    _print_summary(write_table(regions, out, options, flags.max_megapixels, mark), out)


def _table(flags: argparse.Namespace) -> Path:
    """The table that this call writes."""
    return parts.parse(flags.part).path(flags.out) if flags.part else flags.out


def _merge(flags: argparse.Namespace) -> None:
    """Join the tables of the parts. Raises UserError if one is missing or belongs to other settings or images."""
    partial = flags.out.with_name(flags.out.name + ".part")
    convert_to_parquet = parquet_converter() if flags.out.suffix == ".parquet" else None
    n_regions = parts.merge(flags.out, flags.merge, parts.mark(flags), partial)
    if convert_to_parquet is not None:
        convert_to_parquet(partial)
    partial.replace(flags.out)
    print(f"{flags.out}: {n_regions} regions of {flags.merge} parts")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m kacl_jax.radiomics",
        description=(__doc__ or "").splitlines()[0],
        allow_abbrev=False,
    )
    parser.add_argument("--images", type=Path, required=True, help="a folder of grey images")
    parser.add_argument(
        "--masks",
        type=Path,
        help="for each image a mask of the same name and size; the region is not 0",
    )
    parser.add_argument(
        "--boxes", type=Path, help="a CSV with the columns image, x, y, w, h in pixels"
    )
    parser.add_argument(
        "--frame", type=int, help="side of the frame of the boxes in pixels; 1024 for boxes of NIH"
    )
    parser.add_argument(
        "--label", help="the region is where a mask has this value; all: one region for each value"
    )
    parser.add_argument(
        "--threshold", type=float, help="the region is where a mask is above this value"
    )
    parser.add_argument(
        "--max_megapixels",
        type=int,
        default=MAX_MEGAPIXELS,
        help="the largest image that can be read, in million pixels (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, required=True, help=".csv or .parquet")
    parser.add_argument("--backend", choices=("pyradiomics", "jax"), default="pyradiomics")
    parser.add_argument(
        "--bin_width",
        type=float,
        default=25.0,
        help="width of a bin in grey values of the files (default: 25)",
    )
    parser.add_argument("--bin_count", type=int)
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        help="how many regions are measured at once (default: the number of cores)",
    )
    parser.add_argument(
        "--part", help="I/N: measure only part I of N, from 0, and write it to OUT.IofN"
    )
    parser.add_argument(
        "--merge", type=int, help="N: measure nothing, join the tables of the N parts to OUT"
    )
    return parser


def _refuse_repeated(arguments: Sequence[str]) -> None:
    """argparse would take the last one and say nothing."""
    names = Counter(word.partition("=")[0] for word in arguments if word.startswith("--"))
    for name, count in names.items():
        if count > 1:
            raise UserError(f"{name} is given {count} times; give it once")


def _check_flags(flags: argparse.Namespace) -> None:
    if (flags.masks is None) == (flags.boxes is None):
        raise UserError("Give either --masks or --boxes")
    if flags.boxes is not None and (flags.label is not None or flags.threshold is not None):
        raise UserError("--label and --threshold are for --masks; leave them out with --boxes")
    if flags.masks is not None and flags.frame is not None:
        raise UserError("--frame is for --boxes; leave it out with --masks")
    if flags.frame is not None and flags.frame < 1:
        raise UserError(f"--frame={flags.frame} must be at least 1")
    if flags.label is not None and flags.threshold is not None:
        raise UserError("Give either --label or --threshold")
    if flags.label not in (None, "all") and not flags.label.isdecimal():
        raise UserError(f"--label={flags.label} must be a whole number or all")
    if flags.label is not None and flags.label != "all" and int(flags.label) == 0:
        raise UserError("--label=0 is outside the regions of a mask; give another label")
    if flags.threshold is not None and not math.isfinite(flags.threshold):
        raise UserError(f"--threshold={flags.threshold} must be a number")
    if flags.max_megapixels < 1:
        raise UserError(f"--max_megapixels={flags.max_megapixels} must be at least 1")
    if flags.out.suffix not in (".csv", ".parquet"):
        raise UserError(f"--out={flags.out} must end in .csv or .parquet")
    if flags.part is not None and flags.merge is not None:
        raise UserError("Give either --part or --merge")
    if flags.part is not None:
        parts.parse(flags.part)
    if flags.merge is not None and flags.merge < 1:
        raise UserError(f"--merge={flags.merge} must be at least 1, the number of parts")
    if flags.boxes is not None and flags.out.resolve() == flags.boxes.resolve():
        raise UserError(f"--out={flags.out} is the file of the boxes; give another name")


def _find_regions(flags: argparse.Namespace) -> tuple[list[Region], list[str]]:
    """The regions, and warnings."""
    part = parts.parse(flags.part) if flags.part else parts.WHOLE
    if flags.masks is None:
        return list(part.select(regions_from_boxes(flags.images, flags.boxes, flags.frame))), []
    return regions_from_masks(
        flags.images,
        flags.masks,
        label=None if flags.label in (None, "all") else int(flags.label),
        all_labels=flags.label == "all",
        threshold=flags.threshold,
        max_megapixels=flags.max_megapixels,
        part=part,
    )


def _keep_compiled_programs() -> None:
    """In the user's cache folder, so that only the first call of the command compiles."""
    from kacl_jax.runtime import compilation

    compilation.use_cache(user_cache_folder() / "radiomics")


def _print_summary(summary: Summary, out: Path) -> None:
    grey = ""
    if not math.isnan(summary.darkest):
        grey = f"; the files' own grey values, from {summary.darkest:g} to {summary.brightest:g}"
    print(f"{out}: {summary.regions} regions{grey}")
    if summary.not_ready:
        print(
            f"{summary.not_ready} of {summary.regions} regions have no features; the column 'reason' of {out} "
            "says why",
            file=sys.stderr,
        )
    if summary.few_levels:
        print(
            f"Warning: {summary.few_levels} of {summary.regions} regions have one or two grey levels, so their "
            "textures "
            "say little (column 'reason'); --bin_width is in the grey values of the files",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(main())
