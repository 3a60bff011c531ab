"""AUROC within subgroups of the test part: by sex, age and view."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kacl_jax.data.records import Records
from kacl_jax.evaluation import metrics
from kacl_jax.evaluation.metrics import Table
from kacl_jax.evaluation.outputs import Outputs, labelled_scores

AGE_BANDS = {"<40": (0, 39), "40-60": (40, 60), ">60": (61, 999)}  # years, both ends included
UNKNOWN = "unknown"  # attribute is blank or has another value; present only if it holds an image


@dataclass(frozen=True)
class Subgroup:
    """Numbers of images and patients that have outputs, and their AUROC."""

    images: int
    patients: int
    auroc: Table


def subgroup_auroc(
    outputs: Outputs,
    records: Records,
    ids: np.ndarray,
    *,
    resamples: int = metrics.RESAMPLES,
) -> dict[str, dict[str, Subgroup]]:
    """{'sex' | 'age' | 'view': {group: its AUROC}} over the images `ids`.

    The mean of a subgroup is over the findings of which it has both classes. Compare the means of two subgroups only
    if their n_findings are equal.
    """
    scores = labelled_scores(outputs, records, ids)

    def score_group(member: np.ndarray) -> Subgroup:
        in_group = member[scores.image_id]
        patients = scores.patients[in_group]
        auroc = metrics.auroc_table(
            scores.probability[in_group], scores.labels[in_group], patients, resamples=resamples
        )
        return Subgroup(int(in_group.sum()), len(np.unique(patients)), auroc)

    by_attribute: dict[str, dict[str, Subgroup]] = {}
    for attribute, masks in _group_masks(records).items():
        by_attribute[attribute] = {name: score_group(member) for name, member in masks.items()}
        in_no_group = ~np.logical_or.reduce(list(masks.values()))
        if in_no_group[scores.image_id].any():
            by_attribute[attribute][UNKNOWN] = score_group(in_no_group)
    return by_attribute


def _group_masks(records: Records) -> dict[str, dict[str, np.ndarray]]:
    """Members of each group by attribute, then group: bool over all images of the root."""
    return {
        "sex": {name: records.sex == name for name in ("F", "M")},
        "age": {
            name: (low <= records.age) & (records.age <= high)
            for name, (low, high) in AGE_BANDS.items()
        },
        "view": {name: records.view == name for name in ("AP", "PA")},
    }
