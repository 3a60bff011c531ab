"""--mode=eval --test_root=OTHER: tests a finished run on another data set, with the run's own thresholds."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from kacl_jax.config.stored import check_config, read_config, write_config
from kacl_jax.data.batches import BrokenFiles
from kacl_jax.data.findings import UNKNOWN_LABEL
from kacl_jax.data.records import Records, read_records
from kacl_jax.data.splits import Split, external_split
from kacl_jax.evaluation import evaluate, result_files
from kacl_jax.evaluation.inference import Inference
from kacl_jax.evaluation.localization import Reading
from kacl_jax.evaluation.operating_points import OperatingPoint
from kacl_jax.evaluation.outputs import Outputs
from kacl_jax.evaluation.results import Results, read_results
from kacl_jax.feedback.feature_cache import FeatureCache
from kacl_jax.feedback.pool import RadiomicsPool
from kacl_jax.fusion.scores import RADIOMICS
from kacl_jax.report import run_page
from kacl_jax.report.gallery import ReportInputs
from kacl_jax.runtime import compilation, files, provenance
from kacl_jax.runtime.devices import DataParallel
from kacl_jax.runtime.errors import UserError
from kacl_jax.runtime.workdir import lock_workdir
from kacl_jax.train import fusing, fusion_features
from kacl_jax.train.experiment import identify_data, open_workers
from kacl_jax.train.trained_network import TrainedNetwork, read_network

_NIH_NAME = re.compile(r"\d{8}_\d{3}\.png")
_log = logging.getLogger(__name__)


def evaluate_elsewhere(config: ConfigDict, run: Path, root: Path) -> tuple[Results, Path]:
    """The results on all images of `root`, and the folder in the run's workdir that has their files.

    Findings are matched by name. Thresholds and calibration are those of the run's validation part.

    Args:
      config: how the images are read and how many resamples are drawn; all else comes from the run.

    Raises:
      UserError: the run is not finished, no finding matches, or the run was trained or tuned on images or patients of
        `root`.
    """
    run, root = run.absolute(), root.expanduser().absolute()
    network, trained = read_network(run), read_results(run / "results.json")
    folder = run / f"test_{root.name}"
    records = _match_findings(_read(config, root), network.findings)
    _compare_patients(records, network)
    split = external_split(records, folds=config.folds, split_seed=config.data.split_seed)
    stored = read_config(run) | {"data.root": str(root)}
    data = identify_data(records, split, network.rule.size)
    check_config(folder, stored, data)
    compilation.use_cache(run / "compilation_cache")
    with lock_workdir(folder, hold=True):
        parallel, broken = DataParallel(network.parallel_mode), BrokenFiles()
        inference = Inference(
            parallel.on_this_process(),
            network.eval_step,
            records,
            image_size=network.rule.size,
            batch_size=network.batch_size,
            on_error=config.data.on_error,
            threads=config.data.threads,
            broken=broken,
        )
        outputs = _run_network(network, inference, parallel, records, split)
        write_config(folder, stored, data)
        evaluation = evaluate.evaluate_test(
            outputs,
            records,
            split,
            _operating_points(trained),
            tuple(network.facts.scalings[name] for name in network.findings),
            Reading(network.rule.size, network.rule.relu, network.rule.threshold),
            resamples=config.eval.bootstrap,
        )
        digests = result_files.write_tables(folder, records, split, evaluation)
        fused = None
        if network.fusion is not None:
            fused, fused_digest = fusing.test(
                network.fusion,
                _collect(config, network, inference, parallel, records, split, folder),
                records,
                split,
                val=evaluation.val,
                tested=outputs,
                resamples=config.eval.bootstrap,
                folder=folder,
            )
            digests |= fused_digest
        results = result_files.build_results(
            evaluation,
            records,
            split,
            seed=trained.seed,
            feedback=trained.feedback,
            throughput=trained.throughput,
            best_step=trained.best_step,
            trained_steps=trained.trained_steps,
            digests=digests,
            fused=fused,
        )
        files.write_json(
            folder / "run.json",
            {
                **provenance.collect(parallel.devices),
                "trained_in": str(run),
                "split": split.name,
                "split_hash": split.hash,
                "checksums": records.checksums,
                "images_missing": len(records.missing),
                "images_unreadable": {str(path): why for path, why in broken.as_dict().items()},
            },
        )
        files.write_json(folder / "results.json", results.to_json())
        inputs = _report_inputs(config, network, records, outputs, evaluation)
        run_page.write_run(folder, results, inputs)
    return results, folder


def _read(config: ConfigDict, root: Path) -> Records:
    data = config.data
    return read_records(
        root,
        findings="all",
        uncertain=data.uncertain,
        allow_missing=data.allow_missing,
        max_megapixels=data.max_megapixels,
    )


def _match_findings(records: Records, findings: tuple[str, ...]) -> Records:
    """The records with the run's findings. One that the root does not have is unknown for every image.

    Raises:
      UserError: the root has none of them.
    """
    common = [name for name in findings if name in records.findings]
    if not common:
        raise UserError(
            f"{records.root} has none of the run's findings ({', '.join(findings)}); it has "
            f"{', '.join(records.findings)}"
        )
    for whose, names, others in (
        ("the run", findings, records.findings),
        ("the test data", records.findings, findings),
    ):
        if only := [name for name in names if name not in others]:
            _log.info(
                "Only %s has these findings, so they are not scored: %s", whose, ", ".join(only)
            )
    n, (_, _, k, _) = len(records.names), records.boxes.shape
    labels = np.full((n, len(findings)), UNKNOWN_LABEL, np.int8)
    boxes = np.zeros((n, len(findings), k, 4), np.float32)
    mine = [findings.index(name) for name in common]
    theirs = [records.findings.index(name) for name in common]
    labels[:, mine], boxes[:, mine] = records.labels[:, theirs], records.boxes[:, theirs]
    has_box = np.zeros(labels.shape, bool)
    has_box[:, mine] = records.has_box[:, theirs]
    return dataclasses.replace(
        records, findings=findings, labels=labels, boxes=boxes, has_box=has_box
    )


def _compare_patients(records: Records, network: TrainedNetwork) -> None:
    """Looks for patients of the run's training or validation among those of the test data.

    Raises:
      UserError: there is one, and both sets have NIH's file names, so that an equal name is the same person.
    """
    trained = network.facts.training_images
    shared = sorted(trained.patients.intersection(map(str, records.patient_names)))
    if not shared:
        _log.info("No patient of the run's training has a name that occurs in %s.", records.root)
        return
    names = [*trained.names, *map(str, records.names)]
    if not network.drawn and all(map(_NIH_NAME.fullmatch, names)):
        raise UserError(
            f"the run was trained or tuned on {len(shared)} patient(s) of {records.root}, such as {shared[0]}; test on "
            "other patients"
        )
    _log.warning(
        "%d patients of the run's training have names that occur in %s, too, such as %s. The program cannot know "
        "whether they are the same people. If they are, test on other patients.",
        len(shared), records.root, shared[0]
    )  # fmt: skip


def _run_network(
    network: TrainedNetwork,
    inference: Inference,
    parallel: DataParallel,
    records: Records,
    split: Split,
) -> Outputs:
    """Logits and maps of all images. Raises UserError for an image that the run was trained or tuned on."""
    state = parallel.replicate(network.state)
    outputs, pixel_hashes = inference.hashed_outputs(
        state, split.test, center=network.facts.map_center
    )
    name_of_pixels = network.facts.training_images.name_of_pixels
    known = [
        str(records.names[image])
        for image, pixels in zip(outputs.image_id, pixel_hashes, strict=True)
        if pixels.tobytes().hex() in name_of_pixels
    ]
    if known:
        raise UserError(
            f"the run was trained or tuned on {len(known)} image(s) of {records.root}, such as {known[0]}; test on "
            "other patients"
        )
    return outputs


def _collect(
    config: ConfigDict,
    network: TrainedNetwork,
    inference: Inference,
    parallel: DataParallel,
    records: Records,
    split: Split,
    folder: Path,
) -> fusion_features.Collected:
    """The features that the run's fusion needs of all images."""
    saved = network.fusion
    assert saved is not None

    def open_grid(stack: ExitStack, nice: int) -> tuple[RadiomicsPool, FeatureCache]:
        return open_workers(
            stack,
            folder / "grid.sqlite",
            workers=config.feedback.workers or os.cpu_count() or 1,
            bin_width=saved.bin_width,
            timeout_s=config.feedback.timeout_s,
            nice=nice,
        )

    has_radiomics = RADIOMICS in saved.fused.fusion.ridges
    grids = fusion_features.Grids(records, split.test, saved.grid, saved.longest, open_grid)
    return fusion_features.collect(
        records,
        split.test,
        inference,
        parallel.replicate(network.start()),
        grids if has_radiomics else None,
        saved.start,
    )


def _operating_points(trained: Results) -> tuple[OperatingPoint, ...]:
    points = trained.classification.operating_point
    return tuple(
        OperatingPoint(points[name].value, points[name].youden_j, points[name].reason)
        for name in trained.findings
    )


def _report_inputs(
    config: ConfigDict,
    network: TrainedNetwork,
    records: Records,
    outputs: Outputs,
    evaluation: evaluate.Evaluation,
) -> ReportInputs:
    return ReportInputs(
        records=records,
        outputs=outputs,
        located=evaluation.predicted_boxes,
        rule=network.rule,
        moments=network.moments,
        bin_width=network.bin_width,
        backend=config.radiomics.backend,
        max_images=config.eval.report_images,
        resamples=config.eval.bootstrap,
    )
