"""The fusion of a run: collects its features, fits the regressions, and tests their scores beside the network's."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kacl_jax.evaluation import evaluate, result_files
from kacl_jax.evaluation.operating_points import choose_operating_points
from kacl_jax.evaluation.outputs import Outputs
from kacl_jax.evaluation.results import Fused, FusedScores
from kacl_jax.feedback.result import Result
from kacl_jax.fusion import fused_file, grid, measuring, ridge, scores
from kacl_jax.fusion.fused_file import SavedFusion
from kacl_jax.fusion.ridge import Ridge
from kacl_jax.fusion.scores import IMAGE, RADIOMICS, SOURCES, Fusion
from kacl_jax.runtime import files, processes
from kacl_jax.runtime.progress import image_progress_bar
from kacl_jax.step.state import TrainState
from kacl_jax.train import checkpoint
from kacl_jax.train.experiment import Experiment

TABLE = "predictions_fused.csv"


@dataclass(frozen=True, eq=False)
class Collected:
    """The features of the images of a run, a row for each image of the data root; NaN where it has none.

    columns: float32 [n p], by source. missing: cells without features, by reason. reproducible: see `Measured`.
    start: see `SavedFusion`.
    """

    columns: dict[str, np.ndarray]
    missing: Counter[str]
    reproducible: bool
    start: str

    def of(self, source_of: Fusion, images: np.ndarray) -> dict[str, np.ndarray]:
        """Of these images, for the regressions of a fusion."""
        return {source: self.columns[source][images] for source in source_of.ridges}


@contextlib.contextmanager
def measuring_beside(experiment: Experiment) -> Iterator[None]:
    """While the block runs, workers with a low priority measure the grids; what they have not done by its end waits."""
    if RADIOMICS not in SOURCES.get(experiment.config.fusion.kind, ()):
        yield
        return
    stop = threading.Event()

    def fill_memo() -> None:
        with _measurement(experiment, nice=19, is_stopped=stop.is_set) as (_, results):
            for _ in results:
                pass

    with ThreadPoolExecutor(1, "grid") as thread:
        done = thread.submit(fill_memo)
        try:
            yield
        finally:
            stop.set()
    done.result()


def collect(experiment: Experiment) -> Collected:
    """The features that the fusion of this run needs, and those of its control. All processes call it."""
    n = len(experiment.records.names)
    images = _images(experiment)
    start, _ = experiment.initial_state()
    state = experiment.parallel.replicate(start)
    embeddings, rows = experiment.inference.embeddings(state, images)
    columns = {IMAGE: _scatter(n, rows, embeddings)}
    missing: Counter[str] = Counter()
    reproducible = True
    if RADIOMICS in SOURCES[experiment.config.fusion.kind]:
        with (
            _measurement(experiment) as (own, results),
            image_progress_bar("Measuring radiomics") as count,
        ):
            measured = measuring.collect(results, len(own), experiment.config.fusion.grid, count)
        meta = {"missing": measured.missing, "reproducible": measured.reproducible}
        arrays = {"images": own, "columns": grid.as_columns(measured.features)}
        parts = processes.gather(meta, arrays)
        columns[RADIOMICS] = _scatter(
            n,
            np.concatenate([part.arrays["images"] for part in parts]),
            np.concatenate([part.arrays["columns"] for part in parts]),
        )
        for part in parts:
            missing.update(part.meta["missing"])
            reproducible &= part.meta["reproducible"]
    return Collected(columns, missing, reproducible, encoder_digest(start))


def encoder_digest(state: TrainState) -> str:
    """Of the weights and statistics of the image encoder."""
    encoder = (state.params["image_encoder"], state.batch_stats["image_encoder"])
    return checkpoint.digest(checkpoint.to_arrays(encoder, ""))


def _images(experiment: Experiment) -> np.ndarray:
    split = experiment.split
    return np.unique(np.concatenate([split.train, split.val, split.test]))


def _scatter(n: int, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    columns = np.full((n, values.shape[1]), np.nan, np.float32)
    columns[rows] = values
    return columns


@contextlib.contextmanager
def _measurement(
    experiment: Experiment, *, nice: int = 0, is_stopped: Callable[[], bool] = lambda: False
) -> Iterator[tuple[np.ndarray, Iterator[list[Result]]]]:
    """This process's part of the images, and their cells' results, which are measured as they are asked for."""
    own = np.array_split(_images(experiment), processes.process_count())[processes.process_index()]
    with contextlib.ExitStack() as stack:
        pool, memo = experiment.open_grid(stack, nice=nice)
        yield (
            own,
            measuring.measure(
                lambda image: experiment.records.images.read_shrunk(image, grid.LONGEST_SIDE),
                own.tolist(),
                experiment.config.fusion.grid,
                pool,
                memo,
                is_stopped=is_stopped,
            ),
        )


def score(
    experiment: Experiment,
    collected: Collected,
    *,
    training: Outputs,
    val: Outputs,
    test: Outputs,
    step: int,
) -> tuple[Fused, dict[str, str]]:
    """Fit and test the fusion; write fusion.json and predictions_fused.csv. Process 0 calls it.

    Args:
      training, val, test: the network's own outputs of these parts. step: of its checkpoint.

    Returns:
      The results, and the sha256 of the table by its name.
    """
    config, records = experiment.config, experiment.records
    ridges = fit_ridges(experiment, collected, training)
    kind = config.fusion.kind
    fusion = combine(experiment, collected, {s: ridges[s] for s in SOURCES[kind]}, training, val)
    fused_val, fused_test = (fused_outputs(fusion, collected, part) for part in (val, test))
    own = _tested(experiment, fusion, fused_val, fused_test, test)
    pair, minus_pair = None, None
    if kind != IMAGE:
        control = combine(experiment, collected, {IMAGE: ridges[IMAGE]}, training, val)
        control_val, control_test = (fused_outputs(control, collected, p) for p in (val, test))
        pair = _tested(experiment, control, control_val, control_test, test)
        minus_pair = evaluate.compare(
            fused_test, control_test, records, experiment.split, config.eval.bootstrap
        )
    points = own.classification.operating_point
    fused_file.write(
        experiment.workdir,
        SavedFusion(
            kind=kind,
            grid=config.fusion.grid,
            bin_width=config.radiomics.bin_width,
            fusion=fusion,
            scalings=dict(
                zip(
                    records.findings,
                    evaluate.fit_scalings(fused_val, records, experiment.split),
                    strict=True,
                )
            ),
            thresholds=np.array([points[name].value for name in records.findings]),
            start=collected.start if IMAGE in fusion.ridges else "",
        ),
        step=step,
    )
    results = Fused(
        kind=kind,
        grid=config.fusion.grid,
        scores=own,
        image_pair=pair,
        minus_image_pair=minus_pair,
        own_scores=_own_scores(fusion, records.findings),
        missing_cells=dict(sorted(collected.missing.items())),
    )
    return results, _write_table(experiment, collected, fusion, fused_val, fused_test)


def forget(workdir: Path) -> None:
    """Delete the fusion of an earlier test."""
    for name in (fused_file.NAME, TABLE):
        (workdir / name).unlink(missing_ok=True)


def fit_ridges(experiment: Experiment, collected: Collected, training: Outputs) -> dict[str, Ridge]:
    """The regressions of every source on the training images that could be read."""
    records = experiment.records
    images = np.sort(training.image_id)
    return {
        source: ridge.fit(columns[images], records.labels[images], records.patients[images])
        for source, columns in collected.columns.items()
    }


def combine(
    experiment: Experiment,
    collected: Collected,
    ridges: dict[str, Ridge],
    training: Outputs,
    val: Outputs,
) -> Fusion:
    """z-scores and weight by the validation part, or by the training part if that has fewer than two images."""
    has_val = len(val.image_id) > 1
    part = val if has_val else training
    order = np.argsort(part.image_id)
    images = part.image_id[order]
    return scores.build(
        ridges,
        reference={source: collected.columns[source][images] for source in ridges},
        reference_logits=part.logits[order],
        val_labels=experiment.records.labels[images] if has_val else None,
    )


def fused_outputs(fusion: Fusion, collected: Collected, part: Outputs) -> Outputs:
    """The part's outputs with fused logits."""
    logits = fusion.fuse(part.logits, collected.of(fusion, part.image_id))
    return Outputs(part.image_id, logits)


def _tested(
    experiment: Experiment, fusion: Fusion, val: Outputs, test: Outputs, network_test: Outputs
) -> FusedScores:
    """The fused outputs' numbers: thresholds and calibration from `val`, all else from `test`."""
    records, split = experiment.records, experiment.split
    resamples = experiment.config.eval.bootstrap
    return FusedScores(
        weight=fusion.weight,
        weight_reason=fusion.weight_reason,
        penalties={source: ridge.penalty for source, ridge in fusion.ridges.items()},
        classification=evaluate.classify(
            test,
            records,
            split,
            choose_operating_points(val, records, split),
            evaluate.fit_scalings(val, records, split),
            resamples,
        ),
        minus_network=evaluate.compare(test, network_test, records, split, resamples),
    )


def _own_scores(fusion: Fusion, findings: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Finding → source → why this regression has no part in its score."""
    by_source = {source: fusion.reasons(source) for source in fusion.ridges}
    told = {
        finding: {source: reasons[c] for source, reasons in by_source.items() if reasons[c]}
        for c, finding in enumerate(findings)
    }
    for finding, reasons in told.items():
        for source, reason in reasons.items():
            logging.warning("%s has no regression on %s: %s.", finding, source, reason)
    return {finding: reasons for finding, reasons in told.items() if reasons}


def _write_table(
    experiment: Experiment,
    collected: Collected,
    fusion: Fusion,
    val: Outputs,
    test: Outputs,
) -> dict[str, str]:
    """predictions_fused.csv: as predictions.csv, with the missing cells, and whose score is the network's own."""
    findings = np.array(experiment.records.findings)
    images = np.concatenate([val.image_id, test.image_id])
    notes: dict[str, dict[int, str | int]] = {}
    if RADIOMICS in fusion.ridges:
        missing = grid.count_missing(collected.columns[RADIOMICS][images])
        notes["missing_cells"] = dict(zip(images.tolist(), missing.tolist(), strict=True))
    is_own = np.isnan(fusion.partner(collected.of(fusion, images)) * fusion.logit_spread)
    notes["own_score"] = {
        image: " ".join(findings[own]) for image, own in zip(images.tolist(), is_own, strict=True)
    }
    path = experiment.workdir / TABLE
    result_files.write_predictions(
        path, experiment.records, experiment.split, val=val, test=test, notes=notes
    )
    return {TABLE: files.file_sha256(path)}
