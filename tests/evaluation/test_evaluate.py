"""Each table against brute force, and what must not change it."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve
from toy_root import toy_outputs, toy_records, toy_split

from kacl_jax.data.records import Records, from_nih_pixels, read_records, to_nih_pixels
from kacl_jax.data.splits import Split
from kacl_jax.evaluation import evaluate, localization, metrics, operating_points
from kacl_jax.evaluation.evaluate import Evaluation
from kacl_jax.evaluation.metrics import Estimate
from kacl_jax.evaluation.outputs import Outputs
from kacl_jax.step.regions import threshold_map

CAM = {"size": 64, "relu": True, "threshold": 0.5}
READING = localization.Reading(**CAM)


@pytest.fixture(scope="module", params=[1, 2])
def records(request: pytest.FixtureRequest) -> Records:
    """With up to so many truth boxes of an image and finding."""
    return toy_records(most_boxes=request.param)


def truth_boxes(records: Records, pairs: np.ndarray) -> np.ndarray:
    """The boxes of the pairs in a mask bool [n c]: float32 [m 4]."""
    return np.array(
        [box for image, c in np.argwhere(pairs) for box in records.boxes[image, c] if box.any()]
    )


@pytest.fixture(scope="module", params=["A", "C"])
def split(records: Records, request: pytest.FixtureRequest) -> Split:
    return toy_split(records, request.param)


def evaluate_toy(records: Records, split: Split, order: np.ndarray | None = None) -> Evaluation:
    val, test = (toy_outputs(records, ids) for ids in (split.val, split.test))
    if order is not None:
        test = Outputs(test.image_id[order], test.logits[order], test.class_maps()[order])
    return evaluate.evaluate_outputs(val, test, records, split, READING, resamples=50)


@pytest.fixture(scope="module")
def evaluation(records: Records, split: Split) -> Evaluation:
    return evaluate_toy(records, split)


def tables_text(evaluation: Evaluation) -> str:
    """Every table with all digits; as text, so that NaN equals NaN."""
    return repr((evaluation.classification, evaluation.localization, evaluation.subgroups))


def test_the_order_of_the_rows_changes_nothing(records, split, evaluation) -> None:
    order = np.random.default_rng(1).permutation(len(split.test))
    shuffled = evaluate_toy(records, split, order)
    assert tables_text(shuffled) == tables_text(evaluation)
    for field in dataclasses.fields(evaluation.predicted_boxes):
        one, other = (getattr(e.predicted_boxes, field.name) for e in (shuffled, evaluation))
        np.testing.assert_array_equal(one, other)


def test_only_scored_boxes_are_scored(records, split) -> None:
    """Truth boxes outside split.scored may lie anywhere, or nowhere."""
    hidden = split.scored & (np.random.default_rng(2).random(split.scored.shape) < 0.3)
    kept = split.scored & ~hidden
    floors = tuple((give & ~hidden, score & kept) for give, score in split.floors)
    fewer = dataclasses.replace(split, scored=kept, floors=floors)
    moved = records.boxes.copy()
    moved[hidden, 0] = [0, 0, 0.01, 0.01]
    elsewhere = dataclasses.replace(records, boxes=moved)
    outputs = toy_outputs(records, fewer.test)  # maps that know the hidden boxes
    val = toy_outputs(records, fewer.val)
    one, other = (
        evaluate.evaluate_outputs(val, outputs, r, fewer, READING, resamples=20)
        for r in (records, elsewhere)
    )
    assert tables_text(one) == tables_text(other)
    assert one.localization.iou[0.1].mean.counts["n"] == len(truth_boxes(records, kept))
    assert one.localization.pointing_game.mean.counts["n"] == kept.sum()
    predicted_boxes = one.predicted_boxes
    assert np.isnan(predicted_boxes.largest_iou[~predicted_boxes.scored]).all()
    np.testing.assert_array_equal(predicted_boxes.truth, truth_boxes(records, kept))


def test_localization_equals_counting_by_hand(records, split, evaluation) -> None:
    test = toy_outputs(records, split.test)
    row_of = {image: row for row, image in enumerate(test.image_id.tolist())}
    hits: dict[int, list[bool]] = {c: [] for c in range(8)}
    for image, c in np.argwhere(split.scored):
        mask = threshold_map(test.class_maps()[row_of[image], c], **CAM).mask
        ys, xs = np.nonzero(mask)
        box = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) / CAM["size"]
        truth = records.boxes[image, c][records.is_box[image, c]]
        hits[c] += (metrics.iou(box, truth) > 0.3).tolist()
    table = evaluation.localization.iou[0.3]
    assert [e.value for e in table.findings] == pytest.approx([np.mean(h) for h in hits.values()])
    assert [e.counts["n"] for e in table.findings] == [len(h) for h in hits.values()]
    assert 0.2 < table.mean.value < 0.95  # neither trivial nor dead


def test_of_two_truth_boxes_of_a_finding_one_may_be_hit_and_one_missed() -> None:
    """IoU counts each box, the pointing game the pair once, and the box is false only if it fits neither."""
    records = toy_records()
    split = toy_split(records)
    image, c = np.argwhere(split.scored)[0]
    scored = np.zeros_like(split.scored)
    scored[image, c] = True
    split = dataclasses.replace(split, scored=scored, floors=())
    test = toy_outputs(records, split.test, grid=8)
    row = np.flatnonzero(test.image_id == image)[0]
    test.logits[row, c] = 50
    test.class_maps()[row, c] = np.pad(np.ones((3, 3)), (1, 4))

    def score(*truth: list[float]) -> tuple[Estimate, Estimate, float]:
        boxes = np.zeros((*records.labels.shape, 2, 4), np.float32)
        boxes[image, c] = truth
        of = evaluate.evaluate_outputs(
            toy_outputs(records, split.val),
            test,
            dataclasses.replace(records, boxes=boxes),
            split,
            READING,
            resamples=5,
        ).localization
        afp = of.afp.findings[c]
        return of.iou[0.3].findings[c], of.pointing_game.findings[c], afp.value * afp.counts["n"]

    hit, missed, missed_too = [0.1, 0.1, 0.5, 0.5], [0.6, 0.6, 0.9, 0.9], [0.6, 0, 1, 0.3]
    iou, pointing, false = score(hit, hit)
    assert (iou.value, iou.counts["n"], pointing.value) == (1, 2, 1)
    for truth in ((hit, missed), (missed, hit)):
        iou, pointing, same_false = score(*truth)
        assert (iou.value, iou.counts["n"]) == (0.5, 2)
        assert (pointing.value, pointing.counts["n"]) == (1, 1)
        assert same_false == pytest.approx(false)
    iou, pointing, more_false = score(missed, missed_too)
    assert (iou.value, pointing.value) == (0, 0)
    assert more_false == pytest.approx(false + 1)


def test_best_of_is_never_worse_than_single(evaluation) -> None:
    predicted_boxes = evaluation.predicted_boxes
    assert (predicted_boxes.best_iou >= predicted_boxes.iou).all()
    assert (predicted_boxes.best_iobb >= predicted_boxes.iobb).all()
    assert (predicted_boxes.best_iou > predicted_boxes.iou).any()
    single, best_of = evaluation.localization, evaluation.localization.best_of
    for best_tables, tables in ((best_of.iou, single.iou), (best_of.iobb, single.iobb)):
        assert all(best_tables[t].mean.value >= tables[t].mean.value for t in tables)


def test_single_is_the_brightest_component_and_best_of_the_nearest(records) -> None:
    split = toy_split(records)
    image, c = np.argwhere(split.scored)[0]
    boxes = records.boxes.copy()
    boxes[image, c] = 0
    boxes[image, c, 0] = [0.5, 0.5, 1.0, 1.0]
    records = dataclasses.replace(records, boxes=boxes)
    test = toy_outputs(records, split.test, grid=8)
    two = np.zeros((8, 8), np.float32)
    two[:3, :3], two[4:, 4:] = 1.0, 0.9  # the truth is the fainter one
    test.class_maps()[np.flatnonzero(test.image_id == image)[0], c] = two
    points = operating_points.choose_operating_points(
        toy_outputs(records, split.val), records, split
    )
    predicted_boxes = localization.predict_boxes(test, records, split, points, READING)
    k = np.flatnonzero((predicted_boxes.image_id == image) & (predicted_boxes.finding == c))[0]
    assert predicted_boxes.largest_iou[k] == 0
    assert predicted_boxes.best_iou[predicted_boxes.truth_pair == k] > 0.7


def test_a_flat_map_gives_the_whole_image_and_says_so(records, split) -> None:
    test = toy_outputs(records, split.test)
    flat = Outputs(test.image_id, test.logits, np.zeros_like(test.class_maps()))
    result = evaluate.evaluate_outputs(
        toy_outputs(records, split.val), flat, records, split, READING, resamples=5
    )
    assert result.predicted_boxes.fallback.all()
    assert result.localization.pointing_game.mean.value == 0
    np.testing.assert_allclose(result.predicted_boxes.box, [[1 / 64, 1 / 64, 63 / 64, 63 / 64]] * len(
        result.predicted_boxes.box))  # fmt: skip


def test_operating_points_are_youdens(records, split) -> None:
    val = toy_outputs(records, split.val)
    labels = records.labels[split.val]
    for c, point in enumerate(operating_points.choose_operating_points(val, records, split)):
        false, true, _ = roc_curve(labels[:, c], val.logits[:, c], drop_intermediate=False)
        assert point.youden_j == pytest.approx((true - false).max())
        predicted = 1 / (1 + np.exp(-val.logits[:, c].astype(float))) >= point.threshold - 1e-15
        achieved = predicted[labels[:, c] == 1].mean() - predicted[labels[:, c] == 0].mean()
        assert achieved == pytest.approx(point.youden_j)


def test_youden_takes_the_highest_of_equal_thresholds() -> None:
    scores, labels = np.array([0.1, 0.2, 0.3, 0.4]), np.array([False, True, False, True])
    assert operating_points._highest_youden(scores, labels) == operating_points.OperatingPoint(
        0.4, 0.5
    )


def exact_youden(scores: np.ndarray, positive: np.ndarray, level: float) -> Fraction:
    said = scores >= level
    shares = [Fraction(int((said & part).sum()), int(part.sum())) for part in (positive, ~positive)]
    return shares[0] - shares[1]


def test_youdens_ties_are_those_of_whole_numbers() -> None:
    """Shares summed as floats miss about one tie in two hundred."""
    random = np.random.default_rng(0)
    for _ in range(2000):
        n = int(random.integers(4, 14))
        scores, positive = random.integers(0, 6, n) / 6, random.random(n) < 0.5
        if positive.any() and not positive.all():
            actual = [(exact_youden(scores, positive, level), level) for level in np.unique(scores)]
            assert operating_points._highest_youden(scores, positive).threshold == max(actual)[1]


def test_classification_equals_sklearn(records, split, evaluation) -> None:
    test = toy_outputs(records, split.test)
    expected = [roc_auc_score(records.labels[split.test, c], test.logits[:, c]) for c in range(8)]
    assert [e.value for e in evaluation.classification.auroc.findings] == pytest.approx(
        expected, abs=1e-12
    )
    assert evaluation.classification.auroc.mean.value == pytest.approx(np.mean(expected), abs=1e-12)


def test_a_finding_with_one_class_is_null_everywhere_it_matters(records) -> None:
    labels, has_box = records.labels.copy(), records.has_box.copy()
    labels[:, 3], has_box[:, 3] = 0, False
    without = dataclasses.replace(records, labels=labels, has_box=has_box)
    split = toy_split(without)
    result = evaluate_toy(without, split)
    assert not result.predicted_boxes.predicted[result.predicted_boxes.finding == 3].any()
    for table in (
        result.classification.auroc,
        result.classification.auprc,
        result.localization.pointing_game,
        result.localization.afp,
        result.localization.iou[0.1],
        result.localization.prior_map.iou[0.1],
        result.localization.random_map.iou[0.1],
        result.localization.grid_ceiling.iobb[0.1],
    ):
        assert np.isnan(table.findings[3].value)
        assert table.findings[3].reason
        assert table.mean.counts["n_findings"] == 7
        assert table.mean.value == pytest.approx(np.nanmean([e.value for e in table.findings]))
    decision = result.classification.operating_point["Infiltration"]
    assert np.isnan(decision.value)
    for metric in metrics.DECISION_METRICS:
        assert np.isnan(getattr(decision, metric).value)
        assert getattr(decision, metric).reason


def test_false_boxes_equal_counting_by_hand(records, split, evaluation) -> None:
    test = toy_outputs(records, split.test)
    assert (records.labels[split.test] > split.scored[split.test]).any()  # unannotated positives
    predicted_boxes = evaluation.predicted_boxes
    box_of = dict(
        zip(
            zip(predicted_boxes.image_id, predicted_boxes.finding, strict=True),
            predicted_boxes.box,
            strict=True,
        )
    )
    for c, estimate in enumerate(evaluation.localization.afp.findings):
        false = images = 0
        for row, image in enumerate(test.image_id):
            if records.labels[image, c] and not split.scored[image, c]:
                continue
            images += 1
            probability = 1 / (1 + np.exp(-np.float64(test.logits[row, c])))
            if (
                probability
                >= evaluation.classification.operating_point[records.findings[c]].value - 1e-15
            ):
                truth = records.boxes[image, c][records.is_box[image, c]]
                false += not (metrics.iou(box_of[image, c], truth) > 0.1).any()
        assert estimate.counts["n"] == images
        assert estimate.value == pytest.approx(false / images)
    assert 0 < evaluation.localization.afp.mean.value < 1


def test_the_pointing_game_equals_looking_for_the_highest_cell(records, split, evaluation) -> None:
    test = toy_outputs(records, split.test)
    row_of = {image: row for row, image in enumerate(test.image_id.tolist())}
    hits: dict[int, list[bool]] = {c: [] for c in range(8)}
    for image, c in np.argwhere(split.scored):
        cam, boxes = test.class_maps()[row_of[image], c], records.boxes[image, c].astype(float)
        y, x = max(((y, x) for y in range(7) for x in range(7)), key=lambda at: cam[at])
        hits[c].append(
            any(x0 <= (x + 0.5) / 7 < x1 and y0 <= (y + 0.5) / 7 < y1 for x0, y0, x1, y1 in boxes)
        )
    game = evaluation.localization.pointing_game
    assert [e.value for e in game.findings] == pytest.approx([np.mean(h) for h in hits.values()])
    assert [e.counts["n"] for e in game.findings] == [len(h) for h in hits.values()]
    assert evaluation.localization.random_map.pointing_game.mean.value < game.mean.value < 1


@pytest.mark.parametrize("value, relu", [(0.0, True), (-1.0, True), (2.0, False), (np.nan, True)])
def test_a_map_without_a_peak_points_nowhere(value: float, relu: bool) -> None:
    cam = np.full((3, 4), value)
    assert np.isnan(localization._peak(cam, relu)).all()
    cam[1, 2] = 3.0
    peak = localization._peak(cam, relu)
    assert np.isnan(peak).all() if np.isnan(value) else peak == (2.5 / 4, 0.5)


def test_a_map_of_negative_evidence_points_only_where_no_relu_is_taken() -> None:
    cam = np.array([[-3.0, -1.0], [-2.0, -4.0]])
    assert np.isnan(localization._peak(cam, relu=True)).all()
    assert localization._peak(cam, relu=False) == (0.75, 0.25)


def test_the_prior_peak_has_seen_other_patients_boxes_only(records, split, evaluation) -> None:
    c, hits = 2, []
    for give, score in split.floors:
        of_finding = np.arange(8) == c
        peak = metrics.prior_peak(truth_boxes(records, give & of_finding))
        for boxes in records.boxes[score[:, c], c]:
            hits.append(any((box[:2] <= peak).all() and (peak < box[2:]).all() for box in boxes))
    actual = evaluation.localization.prior_map.pointing_game.findings[c]
    assert (actual.value, actual.counts["n"]) == (pytest.approx(np.mean(hits)), len(hits))


def test_random_maps_look_at_no_image_and_follow_the_rule(records, split, evaluation) -> None:
    test, val = (toy_outputs(records, ids, seed=9) for ids in (split.test, split.val))
    other = evaluate.evaluate_outputs(val, test, records, split, READING, resamples=50)
    assert other.localization.iou != evaluation.localization.iou
    assert other.localization.random_map == evaluation.localization.random_map
    assert (
        other.localization.random_map.pointing_game
        == evaluation.localization.random_map.pointing_game
    )
    hits: dict[int, list[bool]] = {c: [] for c in range(8)}
    for image, c in np.argwhere(split.scored):
        actual = threshold_map(metrics.random_map(7, 7, (0, int(image), int(c))), **CAM).mask
        ys, xs = np.nonzero(actual)
        box = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) / CAM["size"]
        truth = records.boxes[image, c][records.is_box[image, c]]
        hits[c] += (metrics.iou(box, truth) > 0.1).tolist()
    table = evaluation.localization.random_map.iou[0.1]
    assert [e.value for e in table.findings] == pytest.approx([np.mean(h) for h in hits.values()])
    assert table.mean.counts == evaluation.localization.iou[0.1].mean.counts


def test_decisions_are_those_of_the_validation_thresholds(records, split, evaluation) -> None:
    test, labels = toy_outputs(records, split.test), records.labels[split.test]
    probability = 1 / (1 + np.exp(-test.logits.astype(np.float64)))
    for c, decision in enumerate(evaluation.classification.operating_point.values()):
        yes = probability[:, c] >= decision.value - 1e-15
        true, false = (yes[labels[:, c] == one].mean() for one in (1, 0))
        assert decision.sensitivity.value == pytest.approx(true)
        assert decision.specificity.value == pytest.approx(1 - false)


def test_the_prior_looks_only_at_other_patients_boxes(records, split, evaluation) -> None:
    c, overlap = 2, []
    for give, score in split.floors:
        of_finding = np.arange(8) == c
        prior = metrics.prior_box(truth_boxes(records, give & of_finding))
        overlap += metrics.iou(prior, truth_boxes(records, score & of_finding)).tolist()
        assert not set(records.patients[give.any(1)]) & set(records.patients[score.any(1)])
    for t, table in evaluation.localization.prior_box.iou.items():
        assert table.findings[c].value == pytest.approx((np.array(overlap) > t).mean())
        assert table.findings[c].counts == evaluation.localization.iou[0.1].findings[c].counts


def test_above_prior_map_is_the_difference_on_the_same_boxes(evaluation) -> None:
    of = evaluation.localization
    for above, ours, prior in (
        (of.above_prior_map.iou, of.iou, of.prior_map.iou),
        (of.above_prior_map.iobb, of.iobb, of.prior_map.iobb),
    ):
        for t in ours:
            difference = ours[t].mean.value - prior[t].mean.value
            assert above[t].mean.value == pytest.approx(difference)
            assert above[t].mean.counts == ours[t].mean.counts


def test_without_floors_the_priors_are_null_with_a_reason(records) -> None:
    split = toy_split(records)
    result = evaluate_toy(records, dataclasses.replace(split, floors=()))
    for floor in (result.localization.prior_box, result.localization.prior_map):
        assert np.isnan(floor.iou[0.1].mean.value)
        assert "prior" in floor.iou[0.1].findings[0].reason
    assert result.localization.grid_ceiling.iou[0.1].mean.value > 0.9


def test_skipped_images_leave_every_table(records, split) -> None:
    test = toy_outputs(records, split.test)
    gone = np.flatnonzero(split.scored.any(1))[0]
    kept = test.image_id != gone
    fewer = Outputs(test.image_id[kept], test.logits[kept], test.class_maps()[kept])
    result = evaluate.evaluate_outputs(
        toy_outputs(records, split.val), fewer, records, split, READING, resamples=5
    )
    assert gone not in result.predicted_boxes.image_id
    kept_pairs = split.scored & (np.arange(len(records.names)) != gone)[:, None]
    boxes = len(truth_boxes(records, kept_pairs))
    for way in (result.localization, result.localization.prior_box):
        assert way.iou[0.1].mean.counts["n"] == boxes


def test_outputs_that_do_not_fit_are_refused(records, split) -> None:
    test = toy_outputs(records, split.test)
    with pytest.raises(ValueError, match="more than one row"):
        Outputs(np.zeros_like(test.image_id), test.logits)
    with pytest.raises(ValueError, match="do not fit"):
        Outputs(test.image_id, test.logits[1:])
    with pytest.raises(ValueError, match="class maps"):
        Outputs(test.image_id, test.logits).class_maps()


def test_a_logit_that_is_not_finite_names_image_and_finding(records, split) -> None:
    test = toy_outputs(records, split.test)
    test.logits[4, 2] = np.nan
    name = records.names[test.image_id[4]]
    with pytest.raises(ValueError, match=f"Effusion is not finite for {name}"):
        evaluate.classification_auroc(test, records, split.test)


def test_a_perfect_box_scores_one_after_nihs_pixels(nih_metadata_root) -> None:
    records = read_records(nih_metadata_root, check_images=False)
    truth = records.boxes[records.has_box].reshape(-1, 4)
    assert truth.shape == (984, 4)
    there_and_back = from_nih_pixels(to_nih_pixels(truth))
    for measure in (metrics.iou, metrics.iobb):
        assert measure(there_and_back, truth).min() > 1 - 1e-6
    image, finding = np.nonzero(records.has_box)
    sample = metrics.TruthBoxes(finding, records.patients[image], n_findings=8, resamples=10)
    overlap = metrics.iou(there_and_back, truth)
    tables = metrics.localization_tables(overlap, sample, metrics.IOU_THRESHOLDS)
    assert [table.mean.value for table in tables.values()] == [1.0] * len(metrics.IOU_THRESHOLDS)


@pytest.mark.parametrize("protocol", ["A", "B", "C"])
def test_every_protocol_runs_on_the_real_records(nih_root, protocol) -> None:
    records = read_records(nih_root, check_images=False)
    split = toy_split(records, protocol)
    result = evaluate_toy(records, split)
    boxes = result.localization.iou[0.1].mean.counts
    assert boxes == {"n": split.scored.sum(), "n_findings": 8}
    of = result.localization
    for floor in (of.prior_box, of.prior_map, of.grid_ceiling):
        assert floor.iou[0.1].mean.counts == boxes
    for t, ceiling in of.grid_ceiling.iou.items():
        assert ceiling.mean.value >= of.prior_box.iou[t].mean.value
