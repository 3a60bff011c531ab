"""Apply the network of a run to images: findings, regions, heat maps and a page to look at.

    python -m kacl_jax.predict --run=runs/nih --images=FOLDER --out=predictions

Images: PNG, JPEG, TIFF, BMP or DICOM; a folder, one file, or a .txt with one file per line. The command writes to
--out: findings.csv with one row for each image, regions.csv with the marked regions in pixels of the image, and
index.html for the browser. With --maps and --radiomics it also writes pictures and features. An image that cannot be
read is a row with its reason. After an interruption, run the same command again to resume.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the slow imports, during which a signal may come
    from kacl_jax.runtime import output, signals

    signals.exit_on_signals("Stopped. Run the same command again to resume.")
    output.prepare_streams()

import argparse
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from kacl_jax.images.reader import MAX_MEGAPIXELS, BrokenImage
from kacl_jax.predict import inputs
from kacl_jax.predict.inputs import Failed, Listed, Xray
from kacl_jax.runtime import output
from kacl_jax.runtime.errors import DONE, USER_ERROR, UserError, exit_code
from kacl_jax.runtime.files import user_cache_folder
from kacl_jax.runtime.progress import image_progress_bar
from kacl_jax.runtime.workdir import lock_workdir

if TYPE_CHECKING:
    from kacl_jax.predict.model import Model
    from kacl_jax.predict.outputs import OutputFolder
    from kacl_jax.predict.prediction import Prediction

NO_IMAGE_WORKED = 3
_DRAWN = ", a network trained on X-rays that a program has drawn"
_INDEX_EVERY_S = 10  # it grows with the number of images


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 an image has findings, 1 a user's mistake, 3 no image has findings, 75 interrupted."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    output.silence_pydicom()
    output.silence_late_answers()
    flags = _parser().parse_args(arguments)
    try:
        return _predict(flags)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return exit_code(error) or USER_ERROR


def _parser() -> argparse.ArgumentParser:
    lines = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(
        prog="python -m kacl_jax.predict",
        description=lines[0],
        epilog="\n".join(lines[1:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--run", type=Path, required=True, help="the folder of a finished run, such as runs/nih"
    )
    parser.add_argument(
        "--images",
        type=Path,
        required=True,
        help="a folder, a file, or a .txt with one file per line",
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder for all output")
    parser.add_argument(
        "--maps", action="store_true", help="also write each region's heat map over its X-ray"
    )
    parser.add_argument(
        "--radiomics", action="store_true", help="also measure each region's 102 features"
    )
    parser.add_argument("--flip", action="store_true", help="average with the mirror image")
    parser.add_argument(
        "--any_view",
        action="store_true",
        help="also take a DICOM whose tags say that it is no frontal chest X-ray",
    )
    parser.add_argument(
        "--keep_ids",
        action="store_true",
        help="also write the patient, study and instance identifiers of DICOMs, and file names that contain them",
    )
    parser.add_argument(
        "--max_megapixels",
        type=int,
        default=MAX_MEGAPIXELS,
        help="the largest image that can be read, in million pixels (default: %(default)s)",
    )
    return parser


def _predict(flags: argparse.Namespace) -> int:
    if flags.max_megapixels < 1:
        raise UserError(f"--max_megapixels={flags.max_megapixels} must be at least 1")
    listed = inputs.list_images(flags.images, flags.out)
    # These imports are slow: a mistyped command must be answered before them.
    from kacl_jax.predict.model import load
    from kacl_jax.predict.outputs import OutputFolder
    from kacl_jax.runtime import compilation

    compilation.use_cache(user_cache_folder() / "predict")
    model = load(flags.run)
    switches = ("maps", "radiomics", "flip", "any_view", "keep_ids", "max_megapixels")
    settings = {
        "network": model.network.identity,
        "images": str(flags.images.absolute()),
        **{name: getattr(flags, name) for name in switches},
    }
    with lock_workdir(flags.out, option="--out"), image_progress_bar("Predicting") as count:
        output = OutputFolder(
            flags.out,
            findings=model.findings,
            run=model.network.run.name + (_DRAWN if model.network.drawn else ""),
            moments=model.network.moments,
            uncalibrated=model.uncalibrated,
            settings=settings,
            listed=listed,
            maps=flags.maps,
            radiomics=flags.radiomics,
            keep_ids=flags.keep_ids,
            chunk=model.batch_size,
        )
        index_due = 0.0
        for chunk in _read_chunks(listed[output.done :], model.batch_size, flags):
            output.write(*_predict_chunk(model, chunk, flip=flags.flip))
            count(output.done, len(listed))
            if time.monotonic() > index_due:
                output.write_index()
                index_due = time.monotonic() + _INDEX_EVERY_S
        output.write_index()
    _print_summary(output, flags.out)
    return DONE if output.worked else NO_IMAGE_WORKED


def _read_chunks(
    listed: Sequence[Listed], size: int, flags: argparse.Namespace
) -> Iterator[list[Xray | Failed]]:
    """Chunks of `size` images. Threads read the next one while the caller works on this one."""

    def read(image: Listed) -> Xray | Failed:
        try:
            return inputs.read(
                image,
                any_view=flags.any_view,
                keep_ids=flags.keep_ids,
                max_megapixels=flags.max_megapixels,
            )
        except BrokenImage as error:
            return Failed(str(error.path), error.reason)

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        waiting: list[Future[Xray | Failed]] = []
        for start in range(0, len(listed) + size, size):
            ahead = [threads.submit(read, image) for image in listed[start : start + size]]
            if waiting:
                yield [future.result() for future in waiting]
            waiting = ahead


def _predict_chunk(
    model: Model, chunk: Sequence[Xray | Failed], *, flip: bool
) -> tuple[list[Prediction | Failed], list[tuple[str, ...]]]:
    """The results in the chunk's order, and each image's identifiers."""
    xrays = [image for image in chunk if isinstance(image, Xray)]
    predictions = iter(model.predict(xrays, flip=flip))
    results = [image if isinstance(image, Failed) else next(predictions) for image in chunk]
    return results, [() if isinstance(image, Failed) else image.ids for image in chunk]


def _print_summary(output: OutputFolder, out: Path) -> None:
    print(
        f"{out}: {output.worked} of {output.done} images have a prediction; index.html shows them"
    )
    if output.worked < output.done:
        print(
            f"{output.done - output.worked} images have no prediction; the column 'reason' of findings.csv says why",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(main())
