"""What report.html is made of: curves, cases, radiomic features, pictures; each against another way to get it."""

from __future__ import annotations

import base64
import re
from typing import Any

import cv2
import numpy as np
import pytest
from sklearn.metrics import auc, precision_recall_curve, roc_auc_score, roc_curve

from kacl_jax.radiomics import FEATURE_NAMES, LOG_COLUMNS
from kacl_jax.report import cases, charts, curves, features, pictures
from kacl_jax.report.features import Moments
from kacl_jax.step import regions

SIZE = 64


def test_extremes_by_hand() -> None:
    iou = np.array([0.3, np.nan, 0.9, 0.1, 0.5, 0.2, 0.2, 0.7])
    finding = np.array([0, 0, 0, 0, 1, 2, 2, 3])
    names = np.array(["a", "b", "c", "d", "e", "g", "f", "h"])
    found = [
        [(c.kind, c.row) for c in some] for some in cases.best_median_worst(iou, finding, names, 5)
    ]
    assert found == [
        [("best", 2), ("median", 0), ("worst", 3)],
        [("best", 4)],
        [("best", 5), ("worst", 6)],  # equal: by name
        [("best", 7)],
        [],
    ]


def test_examples_are_the_surest_right_and_wrong_ones() -> None:
    score = np.array([0.9, 0.8, 0.7, 0.6, 0.95])
    predicted = np.array([True, True, True, True, False])
    positive = np.array([False, True, True, False, True])
    found = cases.surest_predictions(score, predicted, positive, np.zeros(5, int), 2)
    assert found == [[("true positive", 1), ("false positive", 0)], []]


def test_curves_against_sklearn() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(3000) < 0.2
    scores = np.round(labels + rng.normal(size=3000), 1)  # ties
    found = curves.roc_and_pr(scores, labels)
    assert found is not None
    roc, pr = found
    assert auc(*zip(*roc, strict=True)) == pytest.approx(roc_auc_score(labels, scores), abs=2e-3)
    x, y, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert {tuple(p) for p in np.round(roc, 9)} <= set(
        zip(np.round(x, 9), np.round(y, 9), strict=True)
    )
    precision, recall, _ = precision_recall_curve(labels, scores)
    assert {tuple(p) for p in np.round(pr, 9)} <= set(
        zip(np.round(recall, 9), np.round(precision, 9), strict=True)
    )
    assert pr[-1] == (1.0, pytest.approx(labels.mean()))
    assert roc[-1] == (1.0, 1.0)
    assert curves.roc_and_pr(scores, np.zeros(3000)) is None


def test_curves_of_a_network_that_says_the_same_of_every_image() -> None:
    assert curves.roc_and_pr(np.full(10, 0.5), np.arange(10) % 2) == (
        [(0.0, 0.0), (1.0, 1.0)],
        [(1.0, 0.5)],
    )


def test_a_long_log_is_averaged_and_a_null_is_a_gap() -> None:
    lines = [{"step": s, "loss": float(s)} for s in range(1, 1001)]
    lines[500]["loss"] = None  # type: ignore[assignment]
    points = curves.series(lines, "loss", max_points=100)
    assert len(points) == 100
    assert points[0] == (10, 5.5)
    assert [at for at, value in points if value is None] == [510]
    assert curves.series(lines, "focal") == []


@pytest.mark.parametrize("values", [[0.0], [3.0, 3.0], [0.12, 0.74], [-2.0, 5.0], [1e-9, 2e-9]])
def test_an_axis_holds_its_values(values: list[float]) -> None:
    axis = charts.nice_axis(values)
    assert axis.low <= min(values) <= max(values) <= axis.high
    assert axis.low < axis.high
    assert 2 <= len(axis.ticks) <= 7


def noise(n: int = 80, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(features [n 102] with some undefined, positive [n])."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, len(FEATURE_NAMES)))
    values[rng.random(values.shape) < 0.1] = np.nan
    return values, rng.random(n) < 0.3


def test_every_feature_alone_against_sklearn() -> None:
    values, positive = noise()
    values[:, 3] = np.round(values[:, 3])  # ties
    values[:, 4] = np.nan
    found = features.aurocs(values, positive[:, None])[:, 0]
    assert np.isnan(found[4])
    for i in set(range(values.shape[1])) - {4}:
        there = np.isfinite(values[:, i])
        assert found[i] == pytest.approx(roc_auc_score(positive[there], values[there, i]))


def test_the_planted_feature_is_found_once_and_undefined_values_are_counted() -> None:
    values, positive = noise()
    values[:, 10] = np.where(positive, -1, 1) + 0.5 * values[:, 10]
    values[:, 20] = np.exp(values[:, 10])  # ranks the images alike
    values[:, 30] = np.where(positive, 2, 0) + values[:, 30]
    found = features.discriminating_features(values, positive, np.arange(80), resamples=50)
    assert [t.name for t in found[:2]] == [FEATURE_NAMES[10], FEATURE_NAMES[30]]
    assert FEATURE_NAMES[20] not in [t.name for t in found]
    assert found[0].auroc < 0.1
    assert found[0].left_out == np.isnan(values[:, 10]).sum() > 0
    assert found[0].images + found[0].left_out == 80
    away = [abs(t.auroc - 0.5) for t in found]
    assert away == sorted(away, reverse=True)
    assert (
        features.discriminating_features(values, np.ones(80, bool), np.arange(80), resamples=5)
        == []
    )


def test_a_feature_that_hardly_an_image_has_is_not_judged() -> None:
    """One image of each class would rank it first, with certainty."""
    values, positive = noise()
    rare = np.r_[np.flatnonzero(positive)[:4], np.flatnonzero(~positive)[:30]]
    values[:, 10] = np.nan
    values[rare, 10] = positive[rare]
    found = features.discriminating_features(
        values, positive, np.arange(80), resamples=5, max_features=102
    )
    assert FEATURE_NAMES[10] not in [t.name for t in found]
    one_more = np.flatnonzero(positive)[4]
    values[one_more, 10] = 1
    found = features.discriminating_features(values, positive, np.arange(80), resamples=5)
    assert found[0].name == FEATURE_NAMES[10]


def test_chance_is_what_shuffled_labels_reach() -> None:
    values, positive = noise(40)
    values = values[:, :4]
    rng = np.random.default_rng(0)
    best = []
    for _ in range(features.SHUFFLES):
        labels = rng.permutation(positive)
        there = np.isfinite(values)
        best.append(
            max(
                abs(roc_auc_score(labels[t], x[t]) - 0.5)
                for x, t in zip(values.T, there.T, strict=True)
            )
        )
    assert features.chance_level(values, positive) == pytest.approx(np.quantile(best, 0.95))
    assert features.chance_level(values, np.zeros(40, bool)) is None


def test_what_stands_out_is_far_from_the_mean_in_its_own_units() -> None:
    row = np.zeros(len(FEATURE_NAMES))
    plain, logged = (LOG_COLUMNS.index(flag) for flag in (False, True))
    row[plain], row[logged], row[50] = 7.0, -(np.e**4 - 1), np.nan
    moments = Moments(np.ones_like(row), np.full_like(row, 4.0))
    first, second, *rest = features.outlying_features(row, moments)
    assert (first.name, first.z) == (FEATURE_NAMES[plain], pytest.approx(3.0))
    assert (second.name, second.z) == (FEATURE_NAMES[logged], pytest.approx(-2.5))
    assert second.value == row[logged]
    assert FEATURE_NAMES[50] not in [r.name for r in rest]
    flat = Moments(np.ones_like(row), np.zeros_like(row))
    assert FEATURE_NAMES[50] not in [
        r.name for r in features.outlying_features(row, flat, max_features=102)
    ]


def test_moments_of_defined_values_only() -> None:
    values, _ = noise()
    found = features.feature_moments(values)
    x = features.log_compress(values)
    assert np.allclose(found.mean, np.nanmean(x, 0))
    assert np.allclose(found.var, np.nanvar(x, 0))


def test_a_sample_is_bounded_and_always_the_same() -> None:
    ids = np.arange(1000)[::-1]
    once, again = features.sample_images(ids, 50), features.sample_images(ids, 50)
    assert np.array_equal(once, again)
    assert len(set(once.tolist())) == 50
    assert features.sample_images(ids, 5000).tolist() == list(range(1000))


def test_the_outline_is_around_the_region_and_the_heat_peaks_where_the_map_does() -> None:
    cam = np.zeros((8, 8), np.float32)
    cam[2, 5] = 1
    mask = regions.threshold_map(cam, size=SIZE, relu=True, threshold=0.5).mask
    numbers = np.array(re.findall(r"[\d.]+", pictures.outline(mask)), float).reshape(-1, 2)
    around = regions.bounding_box(mask) * pictures.SIDE
    pixel = pictures.SIDE / SIZE
    assert np.abs(numbers.min(0) - around[:2]).max() <= pixel / 2 + 0.1
    assert np.abs(numbers.max(0) - around[2:]).max() <= pixel / 2 + 0.1
    opacity = pictures.heat(cam, relu=True)[..., 3]
    y, x = np.unravel_index(opacity.argmax(), opacity.shape)
    assert (y * 8 // len(opacity), x * 8 // len(opacity)) == (2, 5)
    assert not pictures.heat(np.full((8, 8), np.nan), relu=True).any()


def test_boxes_are_drawn_where_they_are() -> None:
    xray = np.tile(np.arange(pictures.SIDE, dtype=np.float32) / 2, (pictures.SIDE, 1)).astype(
        np.uint8
    )
    truth, predicted = np.array([0.1, 0.2, 0.4, 0.8]), np.array([0.5, 0.25, 0.75, 1.0])
    whole = np.ones((SIZE, SIZE), bool)

    def drawn(*boxes: np.ndarray) -> str:
        cam = np.eye(8, dtype=np.float32)
        kinds: dict[str, Any] = {"relu": True, "predicted": predicted, "key": "k", "alt": "x"}
        return str(pictures.panels(xray, cam, whole, truth=np.array(boxes), **kinds))

    def places(style: str, text: str) -> list[list[float]]:
        found = re.findall(
            rf'<rect class="{style}" x="(.+?)" y="(.+?)" width="(.+?)" height="(.+?)"', text
        )
        return [[float(v) / pictures.SIDE for v in place] for place in found]

    text = drawn(truth)
    assert (
        places("truth", text) == [pytest.approx([0.1, 0.2, 0.3, 0.6], abs=1e-3)] * 2
    )  # both panels
    assert places("predicted", text) == [pytest.approx([0.5, 0.25, 0.25, 0.75], abs=1e-3)]
    assert not places("truth", drawn())
    two = places("truth", drawn(truth, predicted))
    assert [place[:2] for place in two] == 2 * [
        pytest.approx([0.1, 0.2]),
        pytest.approx([0.5, 0.25]),
    ]
    (jpeg,) = re.findall(r"data:image/jpeg;base64,([^\"]+)", text)
    pixels = cv2.imdecode(np.frombuffer(base64.b64decode(jpeg), np.uint8), cv2.IMREAD_GRAYSCALE)
    assert np.abs(pixels.astype(int) - xray).max() < 8
