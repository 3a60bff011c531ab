"""The evaluation at the end of a run: the best checkpoint, scored once, and the files that hold the result."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from kacl_jax.evaluation import evaluate, familiarity, result_files
from kacl_jax.evaluation.inference import Survey
from kacl_jax.evaluation.localization import Reading
from kacl_jax.evaluation.outputs import Outputs
from kacl_jax.evaluation.platt import PlattScaling
from kacl_jax.evaluation.results import Results, Throughput
from kacl_jax.evaluation.trained_facts import write_trained_facts
from kacl_jax.fusion import fused_file
from kacl_jax.models import pretrained
from kacl_jax.report import run_page
from kacl_jax.report.features import Moments
from kacl_jax.report.gallery import ReportInputs
from kacl_jax.runtime import files, processes, provenance
from kacl_jax.runtime.errors import UserError
from kacl_jax.step.state import TrainState
from kacl_jax.train import checkpoint, fusing, fusion_features
from kacl_jax.train.counters import RunCounters
from kacl_jax.train.experiment import Experiment

_NO_BEST = "no validation AUROC was defined, for want of positives or negatives of every finding"


def score_best_checkpoint(
    experiment: Experiment,
    checkpoints: checkpoint.Checkpoints,
    counters: RunCounters,
    *,
    steps: int,
) -> Results:
    """Score the best checkpoint on the test part; write predictions.csv, boxes.csv, results.json and report.html.

    All processes run the network on their part of the images; process 0 scores and writes.

    steps: how many were trained, which results.json says as `trained_steps`.
    """
    restored = checkpoint.restore_on_all(lambda: _best_or_newest(checkpoints, counters.best_step))
    assert restored is not None
    trained = checkpoint.from_arrays(experiment.state_template(), restored.arrays, "state")
    state = experiment.parallel.replicate(trained)
    inference, split = experiment.inference, experiment.split
    training, validation = inference.survey(state, split.train), inference.survey(state, split.val)
    center = training.mean_map if experiment.config.cam.center == "mean" else None
    test_outputs = inference.outputs(state, split.test, center=center)
    fuses = experiment.config.fusion.kind != "none"
    collected = fusion_features.collect_of_run(experiment) if fuses else None
    unreadable = experiment.broken_files()
    message = processes.broadcast(
        lambda: processes.Message(
            _score_and_write(
                experiment,
                counters,
                restored,
                trained,
                training,
                validation,
                test_outputs,
                center,
                collected,
                unreadable,
                steps,
            ).to_json(),
            {},
        )
    )
    return Results.from_json(message.meta)


def _write_facts(
    experiment: Experiment,
    step: int,
    scalings: tuple[PlattScaling, ...],
    training: Survey,
    validation: Survey,
    center: np.ndarray | None,
) -> None:
    """What it takes to apply the network to other images: see `evaluation.trained_facts`."""
    write_trained_facts(
        experiment.workdir,
        step=step,
        scalings=dict(zip(experiment.records.findings, scalings, strict=True)),
        familiarity=familiarity.fit(training.embeddings, validation.embeddings),
        map_center=center,
        training_images=_training_image_rows(experiment, training, validation),
    )


def _training_image_rows(
    experiment: Experiment, training: Survey, validation: Survey
) -> list[tuple[str, str, str, str]]:
    """name, patient, part, hash of the pixels; sorted by part, then by name."""
    names, patients = experiment.records.names, experiment.records.patient_names
    return [
        row
        for part, survey in (("train", training), ("val", validation))
        for row in sorted(
            (str(names[image]), str(patients[image]), part, pixels.tobytes().hex())
            for image, pixels in zip(survey.outputs.image_id, survey.pixel_hashes, strict=True)
        )
    ]


def _score_and_write(
    experiment: Experiment,
    counters: RunCounters,
    restored: checkpoint.Restored,
    trained: TrainState,
    training: Survey,
    validation: Survey,
    test_outputs: Outputs,
    center: np.ndarray | None,
    collected: fusion_features.Collected | None,
    unreadable: dict[str, str],
    steps: int,
) -> Results:
    """Score the outputs of all images and write every file."""
    config, workdir, split = experiment.config, experiment.workdir, experiment.split
    rule = experiment.region_rule
    evaluation = evaluate.evaluate_outputs(
        validation.outputs,
        test_outputs,
        experiment.records,
        split,
        Reading(rule.size, rule.relu, rule.threshold),
        resamples=config.eval.bootstrap,
    )
    digests = result_files.write_tables(workdir, experiment.records, split, evaluation)
    fused = None
    fusing.forget(workdir)
    if collected is not None:
        saved = fusing.fit(experiment, collected, training=training.outputs, val=validation.outputs)
        fused_file.write(workdir, saved, step=restored.step, findings=experiment.records.findings)
        fused, fused_digest = fusing.test(
            saved,
            collected,
            experiment.records,
            split,
            val=validation.outputs,
            tested=test_outputs,
            resamples=config.eval.bootstrap,
            folder=workdir,
        )
        digests |= fused_digest
    is_lost = counters.best_step is not None and counters.best_step != restored.step
    results = result_files.build_results(
        evaluation,
        experiment.records,
        split,
        seed=config.seed,
        feedback=counters.feedback(),
        throughput=Throughput(**counters.throughput),
        pixel_probe=experiment.score_pixel_probe(),
        best_step=restored.step,
        trained_steps=steps,
        best_step_reason=_NO_BEST if counters.best_step is None else "",
        best_step_lost=counters.best_step if is_lost else None,
        weights_note=pretrained.note_on(config.model.pretrained),
        digests=digests,
        fused=fused,
    )
    _write_facts(experiment, restored.step, evaluation.scalings, training, validation, center)
    reproducible = counters.reproducible and (collected is None or collected.reproducible)
    write_run_json(experiment, unreadable, reproducible=reproducible)
    files.write_json(workdir / "results.json", results.to_json())
    inputs = _report_inputs(experiment, trained, test_outputs, evaluation)
    run_page.write_run(workdir, results, inputs)
    return results


def _report_inputs(
    experiment: Experiment,
    trained: TrainState,
    test_outputs: Outputs,
    evaluation: evaluate.Evaluation,
) -> ReportInputs:
    """What report.html shows beside the files of the workdir."""
    config = experiment.config
    moments = Moments(np.asarray(trained.feature_mean), np.asarray(trained.feature_var))
    return ReportInputs(
        records=experiment.records,
        outputs=test_outputs,
        located=evaluation.predicted_boxes,
        rule=experiment.region_rule,
        moments=moments if int(trained.feature_count) else None,
        bin_width=config.radiomics.bin_width,
        backend=config.radiomics.backend,
        max_images=config.eval.report_images,
        resamples=config.eval.bootstrap,
    )


def _best_or_newest(checkpoints: checkpoint.Checkpoints, step: int | None) -> checkpoint.Restored:
    """The best checkpoint; if it is damaged, gone or unknown, that is said and the newest intact one stands in."""
    if step is None:
        logging.warning("The best step is unknown: %s. Using the newest.", _NO_BEST)
    elif step in checkpoints.steps():
        try:
            return checkpoints.restore(step)
        except checkpoint.DamagedError as error:
            logging.warning("%s. It was the best one. Using the newest instead.", error)
    else:
        logging.warning("The best checkpoint, of step %d, is missing. Using the newest.", step)
    newest = checkpoints.restore_latest()
    if newest is None:
        raise UserError(f"There is no checkpoint in {checkpoints.directory}; train first")
    return newest


def write_run_json(experiment: Experiment, unreadable: dict[str, str], **more: Any) -> None:
    """run.json: where this run comes from, and which image files could not be read, path → reason."""
    files.write_json(
        experiment.workdir / "run.json",
        {
            **provenance.collect(experiment.parallel.devices),
            "processes": processes.process_count(),
            "split": experiment.split.name,
            "split_hash": experiment.split.hash,
            "checksums": experiment.records.checksums,
            "images_missing": len(experiment.records.missing),
            "images_unreadable": unreadable,
            **more,
        },
    )
