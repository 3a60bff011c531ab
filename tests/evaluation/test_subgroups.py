"""Each subgroup's AUROC is that of its images alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from toy_root import toy_outputs, toy_records, toy_split

from kacl_jax.data.records import Records
from kacl_jax.evaluation import metrics
from kacl_jax.evaluation.outputs import Outputs
from kacl_jax.evaluation.subgroups import subgroup_auroc


@pytest.fixture(scope="module")
def records() -> Records:
    """Sex per patient, age and view per image; some of each not stated."""
    records, rng = toy_records(patients=160), np.random.default_rng(0)
    n = len(records.names)
    return dataclasses.replace(
        records,
        sex=np.array(["F", "M", ""])[np.minimum(records.patients % 7 // 3, 2)],
        age=rng.choice([-1, 0, 39, 40, 50, 60, 61, 90], n),
        view=rng.choice(["AP", "PA", "LL"], n, p=[0.5, 0.45, 0.05]),
    )


def test_every_subgroup_equals_sklearn_on_its_images(records) -> None:
    split = toy_split(records)
    test = toy_outputs(records, split.test)
    actual = subgroup_auroc(test, records, split.test, resamples=50)
    sex, age, view = (getattr(records, name)[split.test] for name in ("sex", "age", "view"))
    expected = {
        "sex": {"F": sex == "F", "M": sex == "M", "unknown": sex == ""},
        "age": {"<40": (age >= 0) & (age < 40), "40-60": (age >= 40) & (age <= 60),
                ">60": age > 60, "unknown": age < 0},
        "view": {"AP": view == "AP", "PA": view == "PA", "unknown": view == "LL"},
    }  # fmt: skip
    assert {k: list(v) for k, v in actual.items()} == {k: list(v) for k, v in expected.items()}
    for attribute, groups in expected.items():
        for name, in_group in groups.items():
            group = actual[attribute][name]
            assert group.images == in_group.sum() > 0
            assert group.patients == len(set(records.patients[split.test][in_group]))
            for c, estimate in enumerate(group.auroc.findings):
                labels = records.labels[split.test][in_group, c]
                if 0 < labels.sum() < len(labels):
                    expected_value = roc_auc_score(labels, test.logits[in_group, c])
                    assert estimate.value == pytest.approx(expected_value, abs=1e-12)
                else:
                    assert np.isnan(estimate.value)
                    assert estimate.reason
    assert actual["sex"]["F"].auroc.mean.ci95 is not None


def test_a_subgroup_without_images_says_so_and_unknown_is_absent_where_nobody_is(records) -> None:
    records = dataclasses.replace(records, sex=np.full(len(records.names), "F"))
    split = toy_split(records)
    actual = subgroup_auroc(toy_outputs(records, split.test), records, split.test, resamples=5)[
        "sex"
    ]
    assert list(actual) == ["F", "M"]
    assert (actual["M"].images, actual["M"].patients) == (0, 0)
    assert {e.reason for e in actual["M"].auroc.findings} == {"no image"}
    assert actual["M"].auroc.mean.reason
    everyone = metrics.auroc_table(
        toy_outputs(records, split.test).logits, records.labels[split.test],
        records.patients[split.test], resamples=5,
    )  # fmt: skip
    assert actual["F"].auroc.mean.value == pytest.approx(everyone.mean.value, abs=1e-12)


def test_the_order_of_the_rows_changes_nothing(records) -> None:
    split = toy_split(records)
    test = toy_outputs(records, split.test)
    order = np.random.default_rng(1).permutation(len(split.test))
    shuffled = Outputs(test.image_id[order], test.logits[order])
    one, other = (subgroup_auroc(o, records, split.test, resamples=20) for o in (test, shuffled))
    assert repr(one) == repr(other)
