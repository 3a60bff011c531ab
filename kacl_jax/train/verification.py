"""--mode=verify: checks the data root and everything else that a run checks at its start, except for its devices."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from ml_collections import ConfigDict

from kacl_jax import config as config_keys
from kacl_jax.config.stored import check_config
from kacl_jax.data import verify
from kacl_jax.data.check_picture import CHECK_FILE
from kacl_jax.models import pretrained
from kacl_jax.runtime import files
from kacl_jax.runtime.errors import DONE, USER_ERROR, UserError
from kacl_jax.runtime.progress import image_progress_bar
from kacl_jax.runtime.workdir import has_checkpoint
from kacl_jax.train import experiment


def verify_run(config: ConfigDict, workdir: Path) -> int:
    """Prints what is in the root, then all problems at once, each with its fix; writes WORKDIR/check.png.

    Returns: the exit code.

    Raises:
        UserError: the root does not exist, or the workdir cannot be written.
    """
    workdir = workdir.absolute()
    refusals: list[str] = []
    with _collect(refusals):
        config_keys.check(config, n_devices=1)
    with _collect(refusals):
        if not has_checkpoint(workdir):
            pretrained.check(
                config.model.pretrained, encoder=config.model.encoder, input_name=config.model.input
            )
    try:
        report = _check_root(config, workdir)
    except UserError as error:
        raise UserError("\n".join([*refusals, str(error)])) from error
    split = ""
    if not report.problems:
        with _collect(refusals):
            split = _check_start(config, workdir)
    print(verify.format_summary(report.summary))
    if report.picture is not None:
        _write_picture(workdir / CHECK_FILE, report.picture)
        print(f"Look at {workdir / CHECK_FILE}: do the boxes lie where they should?")
    if report.non_fatal:
        print("The config allows these:", verify.format_problems(report.non_fatal))
    if report.problems:
        print(verify.format_problems(report.problems))
    for refusal in refusals:
        print(f"Training would refuse this: {refusal}", file=sys.stderr)
    if report.problems or refusals:
        return USER_ERROR
    print(split)
    print("No problems found.")
    return DONE


@contextmanager
def _collect(refusals: list[str]) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        refusals.append(str(error))


def _check_root(config: ConfigDict, workdir: Path) -> verify.Report:
    root = experiment.data_root(config, workdir)
    with image_progress_bar(f"Reading {root}") as count:
        return verify.check(
            root,
            findings=config.data.findings,
            uncertain=config.data.uncertain,
            allow_missing=config.data.allow_missing,
            skip_broken=config.data.on_error == "skip",
            official_lists=config.protocol != "C",
            max_megapixels=config.data.max_megapixels,
            progress=count,
        )


def _check_start(config: ConfigDict, workdir: Path) -> str:
    """The split in one line. Raises UserError where a run would."""
    records, split = experiment.read_data(config, workdir)
    batches = experiment.make_batches(config, records, split)
    experiment.check_mean_maps(config, len(records.findings))
    experiment.check_that_features_are_seen(config, batches.steps_per_epoch)
    data = experiment.identify_data(records, split, config.data.image_size)
    check_config(workdir, config_keys.flatten(config), data)
    return split.describe(records)


def _write_picture(path: Path, picture: np.ndarray) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{path.parent} cannot be made ({error.strerror}); give another --workdir"
        ) from error
    _, encoded = cv2.imencode(".png", picture)
    files.write_bytes(path, encoded.tobytes())
