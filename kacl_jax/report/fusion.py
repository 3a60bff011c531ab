"""The section of a run's page on fusion: what it adds, and which cells and families carry it. Imports no jax."""

from __future__ import annotations

import math
from typing import Any

from kacl_jax.evaluation.metrics import Estimate, Table
from kacl_jax.evaluation.results import Fused, FusedScores, RankingDifference, Results
from kacl_jax.report import cells, charts

_NAMES = {
    "radiomics": "network + radiomics",
    "image": "network + image features",
    "both": "network + image features + radiomics",
}


def fusion_section(results: Results) -> dict[str, Any] | None:
    """The rows and pictures of the section; None for a run without fusion."""
    fused = results.fused
    if fused is None:
        return None
    return {
        "grid": fused.grid,
        "weight": fused.scores.weight,
        "weight_reason": fused.scores.weight_reason,
        "rows": _rows(results, fused),
        "own_scores": [
            f"{finding} has no regression on {source}: {reason}"
            for finding, reasons in fused.own_scores.items()
            for source, reason in reasons.items()
        ],
        "missing": fused.missing_cells,
        "carried": [
            {
                "finding": finding,
                "cells": cells.alone(carried.cells, f"{finding}: share of each cell"),
                "families": _family_bars(carried.families),
            }
            for finding, carried in fused.carried.items()
        ],
    }


def _rows(results: Results, fused: Fused) -> list[dict[str, Any]]:
    """The means of the network, of the control and of the fusion."""
    own = results.classification
    rows = [_row("network", own.auroc, own.auprc, None, None)]
    if fused.image_pair is not None:
        rows.append(_fused_row(_NAMES["image"] + " (the control)", fused.image_pair, None))
    rows.append(_fused_row(_NAMES[fused.kind], fused.scores, fused.minus_image_pair))
    return rows


def _fused_row(
    name: str, scores: FusedScores, minus_pair: RankingDifference | None
) -> dict[str, Any]:
    ranked = scores.classification
    return _row(name, ranked.auroc, ranked.auprc, scores.minus_network, minus_pair)


def _row(
    name: str,
    auroc: Table,
    auprc: Table,
    minus_network: RankingDifference | None,
    minus_pair: RankingDifference | None,
) -> dict[str, Any]:
    def mean(difference: RankingDifference | None) -> Estimate | None:
        return None if difference is None else difference.auroc.mean

    return {
        "name": name,
        "auroc": auroc.mean,
        "auprc": auprc.mean,
        "minus_network": mean(minus_network),
        "minus_pair": mean(minus_pair),
    }


def _family_bars(families: dict[str, float]) -> list[tuple[str, float, Any]]:
    """Name, share and bar of each family, the largest first; a family without a value is left out."""
    known = {name: share for name, share in families.items() if math.isfinite(share)}
    largest = max(known.values(), default=0.0) or 1.0
    return [
        (name, share, charts.share_bar(share / largest, f"{share:.2f}"))
        for name, share in sorted(known.items(), key=lambda item: -item[1])
    ]
