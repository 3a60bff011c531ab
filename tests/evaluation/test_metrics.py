"""Figures against scikit-learn, scipy, brute force and what NIH's own box file gives."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold

from kacl_jax.evaluation import metrics
from kacl_jax.evaluation.metrics import bootstrap
from kacl_jax.evaluation.metrics.ranking import Ranking

# Few distinct scores: most pairs tie.
tied_rows = st.lists(
    st.tuples(st.integers(-3, 3), st.integers(0, 1), st.integers(0, 4)), min_size=2, max_size=40
)
fast = settings(max_examples=150, deadline=None)


def scores_labels_patients(seed: int, patients: int, findings: int = 2) -> tuple[np.ndarray, ...]:
    """Scores with ties, labels and patients with 1 … 4 images each that resemble each other."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), rng.integers(1, 5, patients))
    base = rng.normal(size=(patients, findings))[patient]
    labels = (base + 0.5 * rng.normal(size=base.shape) > 0.3).astype(np.uint8)
    scores = np.round(base + rng.normal(size=base.shape), 1)
    return scores, labels, patient * 7 + 100


@fast
@given(tied_rows)
def test_weighted_auroc_equals_sklearn_with_ties(rows: list[tuple[int, int, int]]) -> None:
    scores, labels, weights = np.array(rows, float).T
    value = metrics.auroc(scores, labels, weights)
    if len(np.unique(labels[weights > 0])) < 2:
        assert np.isnan(value)
        return
    assert value == pytest.approx(roc_auc_score(labels, scores, sample_weight=weights), abs=1e-12)
    kept = np.repeat(np.arange(len(rows)), weights.astype(int))  # a weight is a repetition
    assert value == pytest.approx(metrics.auroc(scores[kept], labels[kept]), abs=1e-12)


@fast
@given(tied_rows, st.integers(0, 2**31))
def test_a_bootstrap_replicate_is_the_weighted_auroc(
    rows: list[tuple[int, int, int]], seed: int
) -> None:
    scores, labels, patient = np.array(rows, float).T
    cluster = patient.astype(int)
    counts = np.random.default_rng(seed).integers(0, 3, (5, 6)).astype(float)
    values = Ranking(scores, labels, cluster, 5).areas(counts, precision=False)[:, 0]
    for column, value in enumerate(values):
        weights = counts[cluster, column]
        expected = metrics.auroc(scores, labels, weights)
        np.testing.assert_allclose(value, expected, atol=1e-12)


def pairwise_auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """The definition: the share of (positive, negative) pairs in the right order, ties one half."""
    gap = scores[labels == 1][:, None] - scores[labels == 0][None]
    return float((gap > 0).mean() + 0.5 * (gap == 0).mean())


def test_the_auroc_interval_equals_resampling_patients_by_hand() -> None:
    scores, labels, patients = scores_labels_patients(0, patients=60)
    table = metrics.auroc_table(scores, labels, patients, resamples=4000)
    rng, members = np.random.default_rng(5), [np.flatnonzero(patients == p) for p in set(patients)]
    replicates = []
    for _ in range(1500):
        rows = np.concatenate([members[i] for i in rng.integers(60, size=60)])
        replicates.append([pairwise_auroc(labels[rows, c], scores[rows, c]) for c in range(2)])
    by_hand = np.array(replicates)
    for estimate, draws in [
        *zip(table.findings, by_hand.T, strict=True),
        (table.mean, by_hand.mean(1)),
    ]:
        assert estimate.ci95 == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=0.012)
    for c, estimate in enumerate(table.findings):
        assert estimate.value == pytest.approx(roc_auc_score(labels[:, c], scores[:, c]), abs=1e-12)
        assert estimate.counts == {"n_pos": labels[:, c].sum(), "n_neg": (1 - labels[:, c]).sum()}


def test_the_localization_interval_equals_scipys_bootstrap() -> None:
    rng = np.random.default_rng(1)
    overlap, patients = rng.random(80), np.arange(80)
    truth = metrics.TruthBoxes(np.zeros(80, int), patients, n_findings=1, resamples=8000)
    table = metrics.localization_tables(overlap, truth, (0.3,))[0.3]
    oracle = stats.bootstrap(
        ((overlap > 0.3).astype(float),), np.mean, n_resamples=8000, method="percentile", rng=rng
    ).confidence_interval
    assert table.findings[0].ci95 == pytest.approx((oracle.low, oracle.high), abs=0.0126)
    assert table.findings[0].value == (overlap > 0.3).mean()


def test_a_paired_difference_counts_the_boxes_that_both_have_and_narrows_the_interval() -> None:
    rng = np.random.default_rng(2)
    other = rng.random(200)
    overlap = np.clip(other + rng.normal(0.1, 0.05, 200), 0, 1)
    overlap[:3], other[3:5] = np.nan, np.nan
    both = slice(5, None)
    truth = metrics.TruthBoxes(np.zeros(200, int), np.arange(200), n_findings=1)
    table = metrics.localization_differences(overlap, other, truth, (0.5,))[0.5].findings[0]
    hits = (overlap[both] > 0.5).astype(float), (other[both] > 0.5).astype(float)
    assert table.value == pytest.approx(hits[0].mean() - hits[1].mean())
    assert table.counts == {"n": 195}
    oracle = stats.bootstrap(
        hits, lambda a, b: a.mean() - b.mean(), paired=True, vectorized=False, method="percentile",
        n_resamples=4000, rng=rng,
    ).confidence_interval  # fmt: skip
    assert table.ci95 == pytest.approx((oracle.low, oracle.high), abs=0.012)
    turned = metrics.localization_differences(other, overlap, truth, (0.5,))[0.5].findings[0]
    assert turned.ci95 == pytest.approx((-table.ci95[1], -table.ci95[0]))


def test_images_of_one_patient_are_not_independent() -> None:
    scores, labels, patients = scores_labels_patients(2, patients=50)
    once = metrics.auroc_table(scores, labels, patients, resamples=300)
    thrice = metrics.auroc_table(*(np.repeat(a, 3, axis=0) for a in (scores, labels, patients)),
                                 resamples=300)  # fmt: skip
    for one, other in zip(
        (*once.findings, once.mean), (*thrice.findings, thrice.mean), strict=True
    ):
        assert other.ci95 == pytest.approx(one.ci95, abs=1e-12)
    # As if they were other people's: surer by √3, wrongly.
    images = np.arange(3 * len(scores))
    alone = metrics.auroc_table(scores[images // 3], labels[images // 3], images, resamples=300)
    assert np.ptp(once.findings[0].ci95) > 1.4 * np.ptp(alone.findings[0].ci95)


def test_one_resample_serves_all_findings() -> None:
    """Of two equal findings the mean is as uncertain as either: resampled apart, 1/√2 of it."""
    scores, labels, patients = scores_labels_patients(3, patients=50, findings=1)
    twice = metrics.auroc_table(
        np.hstack([scores, scores]), np.hstack([labels, labels]), patients, resamples=300
    )
    assert twice.mean.ci95 == pytest.approx(twice.findings[0].ci95, abs=1e-12)


def test_order_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, labels, patients = scores_labels_patients(4, patients=40)
    first = metrics.auroc_table(scores, labels, patients, resamples=100)
    order = np.random.default_rng(0).permutation(len(scores))
    assert (
        metrics.auroc_table(scores[order], labels[order], patients[order], resamples=100) == first
    )
    monkeypatch.setattr(bootstrap, "_CHUNK", 7)
    assert metrics.auroc_table(scores, labels, patients, resamples=100) == first
    monkeypatch.setattr(bootstrap, "_SEED", 1)
    assert metrics.auroc_table(scores, labels, patients, resamples=100) != first


def test_one_class_is_nan_with_a_reason_and_the_mean_says_over_how_many() -> None:
    scores, labels, patients = scores_labels_patients(5, patients=30, findings=3)
    labels[:, 1], labels[:, 2] = 0, 1
    table = metrics.auroc_table(scores, labels, patients, resamples=50)
    assert [e.reason for e in table.findings] == ["", "no positive", "no negative"]
    assert np.isnan([e.value for e in table.findings]).tolist() == [False, True, True]
    assert table.findings[1].ci95 is None
    assert table.mean.counts["n_findings"] == 1
    assert (table.mean.value, table.mean.ci95) == (table.findings[0].value, table.findings[0].ci95)
    nothing = metrics.auroc_table(scores, labels * 0, patients, resamples=50).mean
    assert np.isnan(nothing.value)
    assert nothing.reason


def test_too_few_positive_patients_give_no_interval_but_a_reason() -> None:
    scores, labels, patients = scores_labels_patients(6, patients=60)
    labels[:, 0] = patients == patients[0]  # absent from (1 − 1/60)^60 = .365 of the resamples
    table = metrics.auroc_table(scores, labels, patients)
    assert table.findings[0].ci95 is None
    assert str(table.findings[0].left_out) in table.findings[0].ci_reason
    assert table.findings[0].left_out / metrics.RESAMPLES == pytest.approx(0.365, abs=0.04)
    assert np.isfinite(table.findings[0].value)
    assert table.findings[1].ci95 is not None
    assert table.mean.ci95 is None
    one_patient = metrics.auroc_table(scores[:, 1:], labels[:, 1:], patients * 0)
    assert one_patient.mean.ci_reason == "one patient only"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_score_that_is_not_finite_is_an_error(bad: float) -> None:
    with pytest.raises(ValueError, match="1 of 3 scores are not finite"):
        metrics.auroc(np.array([0.1, bad, 0.3]), np.array([0, 1, 1]))
    with pytest.raises(ValueError, match="labels must be 1, 0 or -1"):
        metrics.auroc(np.zeros(2), np.array([0, 2]))


pixel_boxes = st.tuples(
    st.integers(0, 11), st.integers(0, 11), st.integers(1, 12), st.integers(1, 12)
).map(lambda b: (b[0], b[1], min(b[0] + b[2], 12), min(b[1] + b[3], 12)))


@fast
@given(pixel_boxes, pixel_boxes)
def test_overlap_equals_counting_pixels(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    drawn = np.zeros((2, 12, 12), bool)
    for image, (x0, y0, x1, y1) in zip(drawn, (a, b), strict=True):
        image[y0:y1, x0:x1] = True
    shared, either, detected = (drawn.all(0).sum(), drawn.any(0).sum(), drawn[0].sum())
    boxes = np.array([a, b]) / 12
    assert metrics.iou(boxes[0], boxes[1]) == pytest.approx(shared / either, abs=1e-12)
    assert metrics.iobb(boxes[0], boxes[1]) == pytest.approx(shared / detected, abs=1e-12)


@pytest.mark.parametrize("empty", [(0.5, 0, 0.5, 1), (0.6, 0, 0.5, 1), (0, 0, np.nan, 1)])
def test_an_empty_box_is_an_error(empty: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="empty or not finite"):
        metrics.iou(np.array([0, 0, 1, 1.0]), np.array(empty))


def accuracy(overlap: list[float], threshold: float) -> metrics.Estimate:
    m = len(overlap)
    truth = metrics.TruthBoxes(np.zeros(m, int), np.arange(m), n_findings=1, resamples=10)
    tables = metrics.localization_tables(np.array(overlap), truth, (threshold,))
    return tables[threshold].findings[0]


def test_the_threshold_is_strict() -> None:
    whole = np.array([0.0, 0, 1, 1])
    half = float(metrics.iou(whole, np.array([0.0, 0, 0.5, 1])))
    assert half == 0.5
    assert accuracy([half, np.nextafter(half, 1)], 0.5).value == 0.5
    for threshold in (*metrics.IOU_THRESHOLDS, *metrics.IOBB_THRESHOLDS):
        assert accuracy([threshold, threshold], threshold).value == 0


def test_a_box_without_a_detection_to_judge_leaves_the_denominator() -> None:
    assert accuracy([0.9, 0.0, np.nan], 0.5).value == 0.5
    assert accuracy([0.9, 0.0, np.nan], 0.5).counts == {"n": 2}
    unjudged = accuracy([np.nan], 0.5)
    assert np.isnan(unjudged.value)
    assert "prior" in unjudged.reason


def test_each_finding_has_its_own_denominator_and_the_mean_is_unweighted() -> None:
    overlap, finding = np.array([1, 0, 0, 0, 1.0]), np.array([0, 0, 0, 0, 1])
    truth = metrics.TruthBoxes(finding, np.arange(5), n_findings=3, resamples=10)
    table = metrics.localization_tables(overlap, truth, (0.5,))[0.5]
    assert [e.value for e in table.findings[:2]] == [0.25, 1.0]
    assert table.findings[2].reason == "no truth box of this finding is scored"
    assert (table.mean.value, table.mean.counts) == (0.625, {"n": 5, "n_findings": 2})


def test_false_boxes_are_counted_over_the_images_considered() -> None:
    false = np.array([[1, 1], [0, 1], [1, 0], [0, 0]], bool)
    considered = np.array([[1, 0], [1, 0], [0, 0], [1, 0]], bool)
    table = metrics.false_box_table(false, considered, np.arange(4), ["", "why"], resamples=10)
    assert (table.findings[0].value, table.findings[0].counts) == (1 / 3, {"n": 3})
    assert (table.findings[1].reason, table.mean.counts["n_findings"]) == ("why", 1)


def random_boxes(seed: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.8, (count, 2))
    return np.hstack([low, np.minimum(low + rng.uniform(0.02, 0.6, (count, 2)), 1)])


def test_the_grid_ceiling_equals_trying_every_cell_aligned_box() -> None:
    u, v, boxes = 4, 6, random_boxes(0, 200)
    lattice = np.array([
        (x0 / v, y0 / u, x1 / v, y1 / u)
        for x0 in range(v) for x1 in range(x0 + 1, v + 1)
        for y0 in range(u) for y1 in range(y0 + 1, u + 1)
    ])  # fmt: skip
    every = metrics.iou(lattice[:, None], boxes[None])
    np.testing.assert_allclose(metrics.grid_ceiling(boxes, u, v), every.max(0), atol=1e-12)
    every = metrics.iobb(lattice[:, None], boxes[None])
    np.testing.assert_allclose(metrics.grid_ceiling_iobb(boxes, u, v), every.max(0), atol=1e-12)
    assert metrics.grid_ceiling(np.array([[0, 0.25, 1 / 3, 1]]), u, v) == pytest.approx(1)


def test_prior_map_is_the_region_where_most_boxes_lie() -> None:
    common, rare = [0.125, 0.25, 0.375, 0.75], [0.625, 0.25, 0.875, 0.75]
    assert metrics.prior_map(np.array([common] * 3 + [rare])).tolist() == common
    # At half the maximum both belong, but not to one component.
    assert metrics.prior_map(np.array([common] * 2 + [rare])).tolist() == common
    np.testing.assert_allclose(metrics.prior_box(np.array([common, rare])),
                               [0.375, 0.25, 0.625, 0.75])  # fmt: skip
    # Corners that touch do not join: 4-connected.
    diagonal = np.array([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]])
    assert metrics.prior_map(diagonal).tolist() == [0, 0, 0.5, 0.5]


FINDINGS = ("Atelectasis", "Cardiomegaly", "Effusion", "Infiltrate", "Mass", "Nodule",
            "Pneumonia", "Pneumothorax")  # fmt: skip


@pytest.fixture(scope="module")
def nih_boxes(nih_metadata_root: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """boxes float64 [984 4], finding [984], patient [984], read without the package's reader."""
    with (nih_metadata_root / "BBox_List_2017.csv").open() as file:
        rows = list(csv.reader(file))[1:]
    xywh = np.array([[float(cell) for cell in row[2:6]] for row in rows]) / 1024
    boxes = np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]])
    finding = np.array([FINDINGS.index(row[1]) for row in rows])
    return boxes, finding, np.array([int(row[0][:8]) for row in rows])


@pytest.mark.parametrize("prior, expected, cardiomegaly", [
    (metrics.prior_box, (0.300, 0.193, 0.148, 0.129, 0.109, 0.079, 0.045), 0.856),
    (metrics.prior_map, (0.464, 0.380, 0.280, 0.203, 0.146, 0.095, 0.050), None),
])  # fmt: skip
def test_priors_on_nihs_boxes(nih_boxes, prior, expected, cardiomegaly) -> None:
    boxes, finding, patient = nih_boxes
    overlap = np.full(len(boxes), np.nan)
    for others, fold in GroupKFold(5).split(boxes, groups=patient):
        for c in range(8):
            ours = fold[finding[fold] == c]
            overlap[ours] = metrics.iou(prior(boxes[others[finding[others] == c]]), boxes[ours])
    truth = metrics.TruthBoxes(finding, patient, n_findings=8, resamples=200)
    tables = [*metrics.localization_tables(overlap, truth, metrics.IOU_THRESHOLDS).values()]
    assert [t.mean.value for t in tables] == pytest.approx(expected, abs=0.02)
    assert tables[0].mean.counts == {"n": 984, "n_findings": 8}
    if cardiomegaly:
        assert tables[4].findings[1].value == pytest.approx(cardiomegaly, abs=0.002)
    for low, high in (t.mean.ci95 for t in tables):
        assert 0.005 < high - low < 0.08


def test_the_prior_peak_on_nihs_boxes(nih_boxes) -> None:
    """A pilot found .32 on the boxes of one fold of a part of NIH."""
    boxes, finding, patient = nih_boxes
    hit = np.full(len(boxes), np.nan)
    for others, fold in GroupKFold(5).split(boxes, groups=patient):
        for c in range(8):
            ours = fold[finding[fold] == c]
            peak = metrics.prior_peak(boxes[others[finding[others] == c]])
            hit[ours] = metrics.point_in_box(peak, boxes[ours])
    truth = metrics.TruthBoxes(finding, patient, n_findings=8, resamples=200)
    table = metrics.pointing_table(hit, truth)
    assert table.mean.value == pytest.approx(0.32, abs=0.05)
    assert table.findings[FINDINGS.index("Cardiomegaly")].value > 0.95
    low, high = table.mean.ci95
    assert 0.02 < high - low < 0.08


@pytest.mark.parametrize(
    "cells, every, nodules", [(7, 57, 1.3), (14, 85, 27), (16, 90, 47), (32, 99, 91)]
)
def test_the_grid_ceiling_on_nihs_boxes(nih_boxes, cells, every, nodules) -> None:
    boxes, finding, _ = nih_boxes
    hit = metrics.grid_ceiling(boxes, cells, cells) > 0.5
    assert 100 * hit.mean() == pytest.approx(every, abs=0.5)
    assert 100 * hit[finding == FINDINGS.index("Nodule")].mean() == pytest.approx(nodules, abs=0.5)
