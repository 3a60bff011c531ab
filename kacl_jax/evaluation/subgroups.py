"""AUROC within subgroups of the test part: by sex, age and view."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kacl_jax.data.nih import Records
from kacl_jax.evaluation import metrics
from kacl_jax.evaluation.metrics import Table
from kacl_jax.evaluation.outputs import Outputs, part

AGE_BANDS = {"<40": (0, 39), "40-60": (40, 60), ">60": (61, 999)}  # years, both ends included
UNKNOWN = "unknown"  # blank, or not one of the others; there only if an image is in it


@dataclass(frozen=True)
class Subgroup:
    """images and patients that have outputs, and their AUROC."""

    images: int
    patients: int
    auroc: Table


def subgroups(
    outputs: Outputs,
    records: Records,
    ids: np.ndarray,
    *,
    resamples: int = metrics.RESAMPLES,
) -> dict[str, dict[str, Subgroup]]:
    """{'sex' | 'age' | 'view': {group: its AUROC}} over the images `ids`.

    The mean of a subgroup is over the findings of which it has both classes: compare means only where n_findings
    agree.
    """
    whole = part(outputs, records, ids)

    def scored(member: np.ndarray) -> Subgroup:
        ours = member[whole.image_id]
        patients = whole.patients[ours]
        table = metrics.auroc_table(
            whole.probability[ours], whole.labels[ours], patients, resamples=resamples
        )
        return Subgroup(int(ours.sum()), len(np.unique(patients)), table)

    found: dict[str, dict[str, Subgroup]] = {}
    for attribute, groups in _members(records).items():
        found[attribute] = {name: scored(member) for name, member in groups.items()}
        rest = ~np.logical_or.reduce(list(groups.values()))
        if rest[whole.image_id].any():
            found[attribute][UNKNOWN] = scored(rest)
    return found


def _members(records: Records) -> dict[str, dict[str, np.ndarray]]:
    """Who belongs where: bool over all images of the root."""
    return {
        "sex": {name: records.sex == name for name in ("F", "M")},
        "age": {
            name: (low <= records.age) & (records.age <= high)
            for name, (low, high) in AGE_BANDS.items()
        },
        "view": {name: records.view == name for name in ("AP", "PA")},
    }
