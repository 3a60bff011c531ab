"""The fusion of a run: fits the regressions, and tests their scores beside the network's."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from kacl_jax.data.records import Records
from kacl_jax.data.splits import Split
from kacl_jax.evaluation import evaluate, result_files
from kacl_jax.evaluation.operating_points import choose_operating_points
from kacl_jax.evaluation.outputs import Outputs
from kacl_jax.evaluation.predictions import CONTROL, FUSED
from kacl_jax.evaluation.results import Carried, Fused, FusedScores
from kacl_jax.evaluation.subgroups import subgroup_auroc
from kacl_jax.fusion import fused_file, grid, ridge, scores, shares
from kacl_jax.fusion.fused_file import Applied, SavedFusion
from kacl_jax.fusion.ridge import Ridge
from kacl_jax.fusion.scores import IMAGE, RADIOMICS, SOURCES, Fusion
from kacl_jax.radiomics import FAMILIES
from kacl_jax.runtime import files
from kacl_jax.train.experiment import Experiment
from kacl_jax.train.fusion_features import Collected


def fit(
    experiment: Experiment, collected: Collected, *, training: Outputs, val: Outputs
) -> SavedFusion:
    """The fusion of the run and its control, from the training and the validation part alone.

    training, val: the network's outputs.
    """
    config, records, split = experiment.config, experiment.records, experiment.split
    images = np.sort(training.image_id)
    ridges = {
        source: ridge.fit(columns[images], records.labels[images], records.patients[images])
        for source, columns in collected.columns.items()
    }

    def apply(sources: tuple[str, ...]) -> Applied:
        fusion = _combine(records, collected, {s: ridges[s] for s in sources}, training, val)
        fused_val = fused_outputs(fusion, collected, val)
        return Applied(
            fusion=fusion,
            points=choose_operating_points(fused_val, records, split),
            scalings=evaluate.fit_scalings(fused_val, records, split),
        )

    return SavedFusion(
        kind=config.fusion.kind,
        grid=config.fusion.grid,
        bin_width=config.radiomics.bin_width,
        longest=collected.longest,
        start=collected.start,
        fused=apply(SOURCES[config.fusion.kind]),
        control=None if config.fusion.kind == IMAGE else apply((IMAGE,)),
    )


def test(
    saved: SavedFusion,
    collected: Collected,
    records: Records,
    split: Split,
    *,
    val: Outputs,
    tested: Outputs,
    resamples: int,
    folder: Path,
) -> tuple[Fused, dict[str, str]]:
    """The numbers of the fused scores; writes their tables into `folder`.

    Args:
      val, tested: the network's own outputs of the validation part, which may be empty, and of the test part.

    Returns:
      The results, and the sha256 of each table by its name.
    """
    fusion = saved.fused.fusion
    digests = {}

    def write_table(name: str, of: Fusion, of_test: Outputs) -> None:
        images = np.append(val.image_id, tested.image_id)
        result_files.write_predictions(
            folder / name,
            records,
            split,
            val=fused_outputs(of, collected, val),
            test=of_test,
            notes=_table_notes(of, collected, records, images),
        )
        digests[name] = files.file_sha256(folder / name)

    fused_test = fused_outputs(fusion, collected, tested)
    write_table(FUSED, fusion, fused_test)
    pair, minus_pair = None, None
    if saved.control is not None:
        pair_test = fused_outputs(saved.control.fusion, collected, tested)
        write_table(CONTROL, saved.control.fusion, pair_test)
        pair = _score(saved.control, pair_test, tested, records, split, resamples)
        minus_pair = evaluate.compare(fused_test, pair_test, records, split, resamples)
    results = Fused(
        kind=saved.kind,
        grid=saved.grid,
        scores=_score(saved.fused, fused_test, tested, records, split, resamples),
        image_pair=pair,
        minus_image_pair=minus_pair,
        own_scores=_own_scores(fusion, records.findings),
        missing_cells=dict(sorted(collected.missing.items())),
        carried=_carried(fusion, collected, saved.grid, tested.image_id, records.findings),
    )
    return results, digests


def forget(workdir: Path) -> None:
    """Delete the fusion of an earlier test."""
    for name in (fused_file.NAME, FUSED, CONTROL):
        (workdir / name).unlink(missing_ok=True)


def fused_outputs(fusion: Fusion, collected: Collected, part: Outputs) -> Outputs:
    """The part's outputs with fused logits."""
    return Outputs(part.image_id, fusion.fuse(part.logits, collected.of(fusion, part.image_id)))


def _combine(
    records: Records,
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
        val_labels=records.labels[images] if has_val else None,
    )


def _score(
    applied: Applied,
    fused_test: Outputs,
    network_test: Outputs,
    records: Records,
    split: Split,
    resamples: int,
) -> FusedScores:
    fusion = applied.fusion
    return FusedScores(
        weight=fusion.weight,
        weight_reason=fusion.weight_reason,
        penalties={source: ridge.penalty for source, ridge in fusion.ridges.items()},
        classification=evaluate.classify(
            fused_test, records, split, applied.points, applied.scalings, resamples
        ),
        minus_network=evaluate.compare(fused_test, network_test, records, split, resamples),
        subgroups=subgroup_auroc(fused_test, records, split.test, resamples=resamples),
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


def _carried(
    fusion: Fusion,
    collected: Collected,
    side: int,
    images: np.ndarray,
    findings: tuple[str, ...],
) -> dict[str, Carried]:
    """See `Carried`. side: cells along one side of the grid. images: of the test part, which have a score."""
    if RADIOMICS not in fusion.ridges:
        return {}
    cells, families = [], []
    for image in np.sort(images):
        features = {source: collected.columns[source][image] for source in fusion.ridges}
        of_image = shares.logit_shares(fusion, RADIOMICS, features)
        cells.append(shares.by_cell(of_image))
        families.append(shares.by_family(of_image))
    by_cell, by_family = (_spread(np.stack(values)) for values in (cells, families))
    return {
        finding: Carried(
            cells=tuple(map(tuple, by_cell[c].reshape(side, side).tolist())),
            families=dict(zip(FAMILIES, by_family[c].tolist(), strict=True)),
        )
        for c, finding in enumerate(findings)
        if not fusion.reasons(RADIOMICS)[c]
    }


def _spread(values: np.ndarray) -> np.ndarray:
    """The standard deviation over the images that have a value: [n …] → […], NaN where none has."""
    known = np.isfinite(values)
    n = known.sum(0)
    mean = np.divide(np.where(known, values, 0.0).sum(0), np.maximum(n, 1))
    squares = np.where(known, (values - mean) ** 2, 0.0).sum(0)
    return np.where(n > 0, np.sqrt(squares / np.maximum(n, 1)), np.nan)


def _table_notes(
    fusion: Fusion, collected: Collected, records: Records, images: np.ndarray
) -> dict[str, dict[int, str | int]]:
    """For a table of fused scores: the number of missing cells, and the findings whose score is the network's own."""
    notes: dict[str, dict[int, str | int]] = {}
    rows = images.tolist()
    if RADIOMICS in fusion.ridges:
        missing = grid.count_missing(collected.columns[RADIOMICS][images])
        notes["missing_cells"] = dict(zip(rows, missing.tolist(), strict=True))
    is_own = np.isnan(fusion.partner(collected.of(fusion, images)) * fusion.logit_spread)
    findings = np.array(records.findings)
    notes["own_score"] = {
        image: " ".join(findings[own]) for image, own in zip(rows, is_own, strict=True)
    }
    return notes
