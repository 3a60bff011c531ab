"""Writes the table of features: one row for each region, as they are computed."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from kacl_jax.images.reader import BrokenImage
from kacl_jax.radiomics import FEATURE_NAMES
from kacl_jax.radiomics.image_folder import Region
from kacl_jax.runtime.errors import UserError

_REGIONS_AT_ONCE = 64  # regions in memory at once, for every 16 workers
_NO_FEATURES = np.full(len(FEATURE_NAMES), np.nan)


class Summary(NamedTuple):
    """Numbers of rows of the table, and the range of the images that could be read.

    few_levels: with features, but of a region with one or two grey levels. darkest, brightest: NaN if no image could be
    read.
    """

    regions: int
    not_ready: int
    few_levels: int
    darkest: float
    brightest: float


class _Row(NamedTuple):
    """features: NaN if not ready. grey: lowest and highest value of the image; NaN if it cannot be read."""

    features: Float[np.ndarray, "f"]
    ready: bool
    reason: str
    grey: tuple[float, float]


def write_table(
    regions: Sequence[Region],
    out: Path,
    options: Mapping[str, Any],
    max_megapixels: int,
    mark: str = "",
) -> Summary:
    """Write one row for each region; one that cannot be read or has no features is not ready, with the reason.

    Rows are written one after the other to a file beside `out`, which is renamed to `out` at the end. After an
    interruption that file still has the rows computed so far.

    Args:
      out: ends in .csv or .parquet, or else is a CSV. options: keyword arguments of `extract`. mark: a line to write
        before and after the table.

    Raises:
      UserError: the options are wrong or `out` cannot be written, before anything is computed.
    """
    from kacl_jax.radiomics.extraction import FEW_LEVELS, extract

    if out.is_dir():
        raise UserError(f"--out={out} is a folder; give the name of a file")
    extract([], [], **options)  # checks the options before a file is opened
    convert_to_parquet = parquet_converter() if out.suffix == ".parquet" else None
    partial = out.with_name(out.name + ".part")
    not_ready, few_levels, darkest, brightest = 0, 0, np.nan, np.nan
    with (
        _open_for_writing(partial) as file,
        tqdm(disable=None, total=len(regions), unit="region", desc=str(out)) as progress_bar,
    ):
        file.write(mark)
        writer = csv.writer(file)
        writer.writerow(["image", "region", "ready", "reason", *FEATURE_NAMES])
        at_once = _REGIONS_AT_ONCE * max(1, options["workers"] // 16)
        for start in range(0, len(regions), at_once):
            some = regions[start : start + at_once]
            for region, row in zip(some, _compute_rows(some, options, max_megapixels), strict=True):
                not_ready += not row.ready
                few_levels += row.ready and FEW_LEVELS in row.reason
                darkest = np.fmin(darkest, row.grey[0])
                brightest = np.fmax(brightest, row.grey[1])
                cells = ["" if np.isnan(value) else float(value) for value in row.features]
                writer.writerow([region.image, region.number, row.ready, row.reason, *cells])
                progress_bar.update()
            file.flush()
        file.write(mark)
    if convert_to_parquet is not None:
        convert_to_parquet(partial)
    partial.replace(out)
    return Summary(len(regions), not_ready, few_levels, float(darkest), float(brightest))


def _compute_rows(
    regions: Sequence[Region], options: Mapping[str, Any], max_megapixels: int
) -> Iterator[_Row]:
    """The row of each region, in their order."""
    from kacl_jax.radiomics.extraction import FEW_LEVELS, extract

    readable: list[tuple[np.ndarray, np.ndarray]] = []
    problems: list[str] = []  # of each region, '' if it can be read
    for region in regions:
        try:
            readable.append(region.read(max_megapixels))
            problems.append("")
        except (BrokenImage, UserError) as error:
            problems.append(str(error))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", f".*{FEW_LEVELS}")  # the summary says it
        extraction = extract(
            [image for image, _ in readable], [mask for _, mask in readable], **options
        )
    results = zip(readable, *extraction, strict=True)
    for problem in problems:
        if problem:
            yield _Row(_NO_FEATURES, False, problem, (np.nan, np.nan))
        else:
            (image, _), features, ready, reason = next(results)
            yield _Row(features, bool(ready), reason, (float(image.min()), float(image.max())))


def _open_for_writing(path: Path) -> TextIO:
    """Bytes of a file's name that are no UTF-8 are written as escapes."""
    try:
        return path.open("w", newline="", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); give another --out"
        ) from error


def parquet_converter() -> Callable[[Path], None]:
    """What replaces a CSV table by a Parquet table. Raises UserError without pyarrow."""
    try:
        from pyarrow import csv as arrow_csv
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(
            "--out=….parquet needs pyarrow: pip install pyarrow, or use .csv"
        ) from error

    def convert(path: Path) -> None:
        """Replace the CSV table at `path` by a Parquet table."""
        parquet.write_table(arrow_csv.read_csv(path), path)

    return convert
