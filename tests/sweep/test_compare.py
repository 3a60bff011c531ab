"""Arms against each other: values, intervals and p-values, each against another way of getting them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from finished_run import write_run
from sklearn.metrics import average_precision_score, roc_auc_score

from kacl_jax.evaluation import predictions
from kacl_jax.evaluation.contrastive_summary import ContrastiveSummary
from kacl_jax.runtime.errors import UserError
from kacl_jax.sweep import compare, fused, measure, table, uncertainty
from kacl_jax.sweep.hyper import Arm, Point
from kacl_jax.sweep.measure import ResampledValue, RunMeasurements

FINDINGS = ("Mass", "Nodule")
B = 200


def random_scores(
    seed: int, n: int = 60, skill: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """scores [n c] with ties, labels [n c], patients [n] with one to four images each."""
    rng = np.random.default_rng(seed)
    patients = np.sort(rng.integers(0, n // 2, n)) + 1000
    labels = (rng.random((n, 2)) < 0.4).astype(int)
    scores = np.round(1 / (1 + np.exp(-(skill * labels + rng.normal(size=(n, 2))))), 2)
    return scores, labels, patients


def truth_boxes(labels: np.ndarray, seed: int) -> list[tuple[int, int, float]]:
    overlap = np.random.default_rng(seed).random(labels.shape)
    return [(int(i), int(c), float(overlap[i, c])) for i, c in np.argwhere(labels)[::2]]


def measured(workdir: Path, resamples: int) -> RunMeasurements:
    return measure.measure_run(measure.read_files(workdir), resamples=resamples)


def run_with(values: dict[str, tuple[float, np.ndarray]], share: float = 0.0) -> RunMeasurements:
    """A run of which only the values matter."""
    metric_values = {
        metric: ResampledValue(*values.get(metric, (0.5, np.full(B, 0.5))), 2, {})
        for metric in measure.METRICS
    }
    return RunMeasurements(
        settings={"data checksums": {}},
        split="",
        split_hash="",
        box_share=share,
        test_set=(),
        counts={"images": 1, "patients": 1, "boxes": 1},
        metric_values=metric_values,
        prior_map=metric_values,
        floors={floor: {"iou_0.1": 0.4} for floor in measure.FLOORS},
    )


def row_of(rows: list[compare.Row], arm: str, metric: str = "auroc") -> compare.Row:
    """The one that has no difference, or one to another arm."""
    (found,) = [
        row
        for row in rows
        if (row.arm, row.metric) == (arm, metric)
        and (row.difference is None or row.difference.baseline != compare.PRIOR_MAP)
    ]
    return found


# ---- one run ----------------------------------------------------------------------------------------------------


def test_areas_are_scikit_learns_for_every_resample(tmp_path: Path) -> None:
    """Ties and weights included; a resample is the images of each patient, as often as the patient is drawn."""
    scores, labels, patients = random_scores(0)
    assert len(np.unique(scores[:, 0])) < 50  # there are ties
    run = measured(
        write_run(tmp_path, scores=scores, labels=labels, patients=patients, fold=3), resamples=40
    )
    cluster = np.unique(patients, return_inverse=True)[1]
    weights = measure.patient_weights(3, cluster.max() + 1, 40).astype(int)
    for metric, area in (("auroc", roc_auc_score), ("auprc", average_precision_score)):
        figure = run.metric_values[metric]
        wanted = []
        for k in range(41):
            images = np.repeat(np.arange(len(scores)), weights[cluster, k])
            wanted.append(np.mean([area(labels[images, c], scores[images, c]) for c in (0, 1)]))
        assert figure.value == pytest.approx(wanted[0], abs=1e-12)
        np.testing.assert_allclose(figure.draws, wanted[1:], atol=1e-12)


def test_a_resample_without_a_class_is_undefined(tmp_path: Path) -> None:
    """Three patients, one of them the only positive: left out of (2/3)³ of the resamples."""
    labels = np.array([[1, 1], [0, 0], [0, 0]])
    place = write_run(tmp_path, scores=labels * 0.5, labels=labels, patients=np.arange(3))
    run = measured(place, resamples=1000)
    weights = measure.patient_weights(0, 3, 1000)[:, 1:]
    both = (weights[0] > 0) & (weights[0] < 3)
    for metric in ("auroc", "auprc"):
        np.testing.assert_array_equal(np.isfinite(run.metric_values[metric].draws), both)
    arm = Arm("kacl")
    row = row_of(compare.compare_arms([arm], {Point(arm, 0, 0): run}), "kacl")
    assert (row.estimate.value, row.estimate.ci95) == (1, None)
    assert row.estimate.note == f"undefined in {1000 - both.sum()} of 1000 resamples"


def test_localization_is_counted_box_by_box(tmp_path: Path) -> None:
    scores, labels, patients = random_scores(1)
    truth = truth_boxes(labels, 1)
    truth += [(image, finding, 1 - iou) for image, finding, iou in truth[::2]]  # second boxes
    run = measured(
        write_run(tmp_path, scores=scores, labels=labels, patients=patients, truth=truth),
        resamples=30,
    )
    assert run.counts["boxes"] == len(truth)
    ids = np.unique(patients)
    weights = measure.patient_weights(0, len(ids), 30)
    for t in (0.1, 0.3, 0.5):
        for k in range(31):
            hits, boxes = np.zeros(2), np.zeros(2)
            for image, finding, iou in truth:
                often = weights[np.flatnonzero(ids == patients[image])[0], k]
                boxes[finding] += often
                hits[finding] += often * (iou > t)
            figure = run.metric_values[f"iou_{t}"]
            got = figure.value if k == 0 else figure.draws[k - 1]
            assert got == pytest.approx(np.mean(hits / boxes), abs=1e-12)


def test_patients_are_drawn_with_replacement_and_alike_for_every_run_of_a_fold() -> None:
    weights = measure.patient_weights(0, 50, 4000)
    assert (weights[:, 0] == 1).all()
    assert (weights.sum(axis=0) == 50).all()
    np.testing.assert_allclose(weights[:, 1:].mean(axis=1), 1, atol=0.08)
    np.testing.assert_allclose(weights[:, 1:].var(), 1 - 1 / 50, atol=0.02)  # binomial(50, 1/50)
    assert (weights != measure.patient_weights(1, 50, 4000)).any()
    # In another process, without the cache, they are the same.
    np.testing.assert_array_equal(weights, measure.patient_weights.__wrapped__(0, 50, 4000))


def test_a_finding_with_one_class_is_named_and_left_out(tmp_path: Path) -> None:
    scores, labels, patients = random_scores(2)
    labels[:, 1] = 0
    run = measured(
        write_run(tmp_path, scores=scores, labels=labels, patients=patients), resamples=B
    )
    figure = run.metric_values["auroc"]
    assert figure.value == pytest.approx(roc_auc_score(labels[:, 0], scores[:, 0]))
    assert (figure.n_findings, figure.undefined) == (1, {"Nodule": "no positive"})
    assert np.isnan(run.metric_values["iou_0.1"].value)
    assert run.metric_values["iou_0.1"].undefined.keys() == set(FINDINGS)
    arm = Arm("kacl")
    runs = {Point(arm, 0, 0): run}
    rows = compare.compare_arms([arm], runs)
    assert row_of(rows, "kacl").n_findings == 1
    text = table.as_markdown("t", list(runs), runs, rows)
    assert "- AUROC of Nodule in fold 0: no positive" in text
    assert "- IoU of Mass in fold 0: no truth box of this finding is scored" in text


def test_what_the_contrastive_loss_did_is_read_from_the_log(tmp_path: Path) -> None:
    scores, labels, patients = random_scores(0)
    place = write_run(tmp_path / "a", scores=scores, labels=labels, patients=patients)
    assert measured(place, resamples=B).contrast is None
    line = {"step": 5, "kind": "train", "nt_xent": 3.0, "ready": 32.0, "hit_rate": 1.0, "age": 40.0}
    with (place / "metrics.jsonl").open("a") as log:
        log.write(json.dumps({**line, "grad_norm_nt_xent": 0.4, "grad_norm_focal": 0.1}) + "\n")
    found = measured(place, resamples=B).contrast
    assert found is not None
    assert (found.loss, found.age) == (3.0, 40.0)
    assert found.gradient_ratio == pytest.approx(1.0)


def test_files_of_different_evaluations_are_refused(tmp_path: Path) -> None:
    scores, labels, patients = random_scores(3)
    write_run(tmp_path, scores=scores, labels=labels, patients=patients)
    other = write_run(tmp_path / "x", scores=scores[:, ::-1], labels=labels, patients=patients)
    (other / "predictions.csv").replace(tmp_path / "predictions.csv")
    with pytest.raises(UserError, match=r"results\.json says auroc .* --mode=eval"):
        measured(tmp_path, resamples=B)
    for torn in (b"image,patient,split\nx.png,1,test\n", b"image,patient\nx.png,1\n", b"\xff\xfe"):
        (tmp_path / "predictions.csv").write_bytes(torn)
        with pytest.raises(UserError, match="does not fit"):
            measured(tmp_path, resamples=B)


# ---- many runs --------------------------------------------------------------------------------------------------


def grid(tmp_path: Path, arm: Arm, skill: Callable[[int], float], noise: float = 0.3) -> dict:
    """Two folds, two seeds; a fold's patients, labels and part of the scores are the same for every arm."""
    runs = {}
    for fold in range(2):
        scores, labels, patients = random_scores(10 + fold, skill=skill(fold))
        for seed in range(2):
            rng = np.random.default_rng((fold, seed, len(arm.name)))
            own = np.clip(scores + 0.3 * fold + noise * rng.normal(size=scores.shape), -1, 2)
            place = write_run(
                tmp_path / f"{arm.name}-{fold}-{seed}",
                scores=own,
                labels=labels,
                patients=patients,
                fold=fold,
                seed=seed,
            )
            runs[Point(arm, fold, seed)] = measured(place, resamples=B)
    return runs


def test_a_mean_over_folds_is_never_pooled_and_its_patients_part_is_a_brute_force_bootstraps(
    tmp_path: Path,
) -> None:
    """Scores of fold 1 are shifted: pooled, the area would be another."""
    arm, other = Arm("kacl", against=("focal",)), Arm("focal")
    runs = grid(tmp_path, other, lambda _: 0.5) | grid(tmp_path, arm, lambda _: 1.5)
    rows = compare.compare_arms([other, arm], runs)

    parts = {
        (point.arm.name, point.fold, point.seed): predictions.read_predictions(
            tmp_path / f"{point.arm.name}-{point.fold}-{point.seed}", FINDINGS
        )
        for point in runs
    }

    def area(name: str, fold: int, seed: int, images: np.ndarray) -> float:
        of, areas = parts[name, fold, seed], []
        for c in (0, 1):
            scores, positive = of.scores[images, c], of.labels[images, c] == 1
            ahead = scores[positive][:, None] - scores[~positive]
            areas.append(np.mean((ahead > 0) + 0.5 * (ahead == 0)))
        return float(np.mean(areas))

    everyone = np.arange(60)
    by_hand = {
        name: np.array([[area(name, f, s, everyone) for s in (0, 1)] for f in (0, 1)])
        for name in ("focal", "kacl")
    }
    row = row_of(rows, "kacl")
    assert row.estimate.value == pytest.approx(by_hand["kacl"].mean(), abs=1e-12)
    assert row.sd == pytest.approx(np.std(by_hand["kacl"].mean(axis=0), ddof=1), abs=1e-12)
    assert row.difference is not None
    assert row.difference.estimate.value == pytest.approx(
        (by_hand["kacl"] - by_hand["focal"]).mean(), abs=1e-12
    )

    rng = np.random.default_rng(0)
    loop = []
    for _ in range(500):
        of_cell = np.zeros((2, 2))
        for fold in (0, 1):
            patients = parts["kacl", fold, 0].patients
            drawn = rng.choice(np.unique(patients), len(np.unique(patients)))
            images = np.concatenate([np.flatnonzero(patients == p) for p in drawn])
            for seed in (0, 1):
                arms = (area(name, fold, seed, images) for name in ("kacl", "focal"))
                of_cell[fold, seed] = np.subtract(*arms)
        loop.append(of_cell)
    draws = np.moveaxis(loop, 0, -1)
    by_brute_force = uncertainty.estimate(by_hand["kacl"] - by_hand["focal"], draws, None)
    ends, expected = row.difference.estimate.ci95, by_brute_force.ci95
    assert ends is not None
    assert expected is not None
    np.testing.assert_allclose(ends, expected, atol=0.15 * (expected[1] - expected[0]))


def test_equal_arms_differ_by_nothing_and_a_better_one_by_something(tmp_path: Path) -> None:
    focal, same = Arm("focal"), Arm("twins", against=("focal",))
    better = Arm("bettr", against=("focal",))  # as long a name: the same noise
    runs = grid(tmp_path, focal, lambda _: 0.5)
    runs |= {replace(point, arm=same): run for point, run in runs.items()}
    runs |= grid(tmp_path, better, lambda _: 2.5)
    rows = compare.compare_arms([focal, same, better], runs)
    none = row_of(rows, "twins").difference
    assert none is not None
    assert (none.estimate.value, none.estimate.ci95, none.estimate.p) == (0, None, 1)
    more = row_of(rows, "bettr").difference
    assert more is not None
    assert more.estimate.ci95 is not None
    assert more.estimate.p is not None
    assert more.estimate.ci95[0] > 0
    assert more.estimate.p < 0.05
    assert more.p_holm == pytest.approx(2 * more.estimate.p)  # two arms in the family


def test_holm_by_hand() -> None:
    """Sorted .005 .01 .03 .04, times 4 3 2 1, never falling: .02 .03 .06 .06; two more to come: times 6 5 4 3."""
    p = [0.01, 0.04, 0.03, 0.005]
    assert compare.holm(p, 4) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert compare.holm(p, 6) == pytest.approx([0.05, 0.12, 0.12, 0.03])
    assert compare.holm([0.6, 0.9], 2) == [1, 1]
    assert compare.holm([], 3) == []


def test_no_corrected_p_value_grows_when_a_planned_one_comes() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        p = (rng.random(6) ** 3).tolist()
        early, late = compare.holm(p[:4], 6), compare.holm(p, 6)
        assert all(now <= before + 1e-12 for before, now in zip(early, late, strict=False))


def test_holm_is_over_a_familys_planned_differences_in_one_metric() -> None:
    focal = Arm("focal")
    late = Arm("late", against=("focal", "a"))  # not run yet
    apart = Arm("apart", against=("focal",), exploratory=True)
    arms = [Arm(name, against=("focal",)) for name in ("a", "b", "c")]
    boxed = Arm("boxed", {"data.box_share": 1.0}, against=("focal",))
    rng = np.random.default_rng(0)

    def run(shift: float, share: float = 0.0) -> RunMeasurements:
        figure = 0.5 + shift, 0.5 + shift + 0.01 * rng.normal(size=B)
        return run_with({"auroc": figure, "iou_0.1": figure}, share)

    runs = {}
    for seed in (0, 1):
        runs |= {Point(focal, 0, seed): run(0)}
        runs |= {Point(arm, 0, seed): run(0.02 * i) for i, arm in enumerate(arms)}
        runs |= {Point(boxed, 0, seed): run(0.02, share=1.0), Point(apart, 0, seed): run(0.02)}
    rows = compare.compare_arms([focal, *arms, boxed, late, apart], runs)
    for metric in ("auroc", "iou_0.1"):  # of the latter every arm's difference to prior_map apart
        pairs = [row_of(rows, arm.name, metric).difference for arm in arms]
        p = [pair.estimate.p for pair in pairs if pair is not None and pair.estimate.p is not None]
        assert [pair.p_holm for pair in pairs if pair is not None] == compare.holm(p, 5)
        assert {pair.planned for pair in pairs if pair is not None} == {5}
        for name in ("boxed", "apart"):
            alone = row_of(rows, name, metric).difference
            assert alone is not None
            assert alone.p_holm == alone.estimate.p
    rows = compare.compare_arms([focal, *arms, boxed, late], runs, box_share=1.0)
    pair = row_of(
        rows, "a"
    ).difference  # without a box; of an arm that is not run the base's share counts
    assert pair is not None
    assert pair.planned == 0


def test_only_what_both_arms_have_complete_is_compared() -> None:
    assert compare.complete_folds_and_seeds([]) == ((), ())
    cells = [(f, 0) for f in range(5)] + [(f, 1) for f in range(3)]
    assert compare.complete_folds_and_seeds(cells) == ((0, 1, 2, 3, 4), (0,))
    assert compare.complete_folds_and_seeds([*cells, (3, 1), (4, 1)]) == ((0, 1, 2, 3, 4), (0, 1))
    assert compare.complete_folds_and_seeds([(0, 2), (1, 2), (0, 1), (1, 1), (2, 1)]) == (
        (0, 1, 2),
        (1,),
    )
    many = [(f, s) for f in range(5) for s in range(60)]  # not every subset of seeds is tried
    assert compare.complete_folds_and_seeds(many) == (tuple(range(5)), tuple(range(60)))
    focal, kacl = Arm("focal"), Arm("kacl", against=("focal",))
    level = {f: {"auroc": (f / 10, np.full(B, f / 10))} for f in range(3)}
    runs = {Point(focal, f, s): run_with(level[f]) for f in range(2) for s in (0, 1)}
    shifted = {f: {"auroc": (f / 10 + 0.05, np.full(B, f / 10 + 0.05))} for f in range(3)}
    runs |= {Point(kacl, f, 0): run_with(shifted[f]) for f in (1, 2)}
    row = row_of(compare.compare_arms([focal, kacl], runs), "kacl")
    assert (row.folds, row.seeds, row.estimate.value) == ((1, 2), (0,), pytest.approx(0.2))
    assert row.difference is not None
    assert (row.difference.folds, row.difference.seeds) == ((1,), (0,))
    assert row.difference.estimate.value == pytest.approx(0.05)
    del runs[Point(kacl, 1, 0)]
    alone = row_of(compare.compare_arms([focal, kacl], runs), "kacl").difference
    assert alone is not None
    assert (alone.estimate.p, alone.estimate.note) == (None, "no point in common yet")


CHANGES = {
    "split hashes: abc and xyz": {"split_hash": "xyz"},
    "data checksums": {"checksums": {"Data_Entry_2017.csv": "1" * 64}},
    "data.val_fraction: 0.1 and 0.2": {"data.val_fraction": 0.2},
    "test images, labels or truth boxes": {"truth": [(0, 0, 0.5)]},
}


@pytest.mark.parametrize("told", CHANGES)
def test_what_was_tested_on_something_else_is_refused(tmp_path: Path, told: str) -> None:
    scores, labels, patients = random_scores(4)
    common = {"scores": scores, "labels": labels, "patients": patients}
    focal, kacl = Arm("focal"), Arm("kacl")
    one = measured(write_run(tmp_path / "a", **common), resamples=B)
    other = write_run(tmp_path / "b", **{**common, **CHANGES[told]})
    runs = {Point(focal, 0, 0): one, Point(kacl, 0, 0): measured(other, resamples=B)}
    with pytest.raises(UserError, match="focal/fold0-seed0 and kacl/fold0-seed0 have different"):
        compare.compare_arms([focal, kacl], runs)
    with pytest.raises(UserError, match=told):
        compare.compare_arms([focal, kacl], runs)


def test_another_share_of_boxes_has_another_hash_and_is_still_compared(tmp_path: Path) -> None:
    scores, labels, patients = random_scores(4)
    common = {"scores": scores, "labels": labels, "patients": patients}
    focal, guided = Arm("focal"), Arm("guided", against=("focal",))
    one = write_run(tmp_path / "a", **common)
    other = write_run(tmp_path / "b", **common, split_hash="xyz", **{"data.box_share": 1.0})
    runs = {
        Point(arm, 0, 0): measured(place, resamples=B)
        for arm, place in ((focal, one), (guided, other))
    }
    rows = compare.compare_arms([focal, guided], runs)
    assert {row.arm: row.family for row in rows} == {
        "focal": "weak",
        "guided": "box",
        "prior_map": "floor",
        "prior_box": "floor",
    }
    assert compare.arm_family(Arm("x", selection_boxes=5), 0.0) == "box"


def test_every_arm_is_paired_with_the_box_that_looks_at_no_image(tmp_path: Path) -> None:
    scores, labels, patients = random_scores(5)
    truth = truth_boxes(labels, 5)
    common = {"scores": scores, "labels": labels, "patients": patients, "truth": truth}
    arm = Arm("focal")
    place = write_run(tmp_path / "a", **common, prior=lambda iou: iou**2)
    run = measured(place, resamples=B)
    pairs = {
        row.metric: row.difference
        for row in compare.compare_arms([arm], {Point(arm, 0, 0): run})
        if row.difference is not None
    }
    assert pairs.keys() == {"iou_0.1", "iou_0.3", "iou_0.5"}
    cluster = np.unique(patients, return_inverse=True)[1]
    weights = measure.patient_weights(0, cluster.max() + 1, B)[cluster[[i for i, *_ in truth]]]
    finding, iou = np.array([c for _, c, _ in truth]), np.array([iou for *_, iou in truth])
    for t in (0.1, 0.3, 0.5):
        gained = (iou > t) * 1.0 - (iou**2 > t)
        shares = [
            (gained[finding == c] @ weights[finding == c]) / weights[finding == c].sum(0)
            for c in (0, 1)
        ]
        differences = np.mean(shares, axis=0)
        pair = pairs[f"iou_{t}"]
        assert pair is not None
        assert pair.baseline == compare.PRIOR_MAP
        assert pair.estimate.value == pytest.approx(differences[0], abs=1e-12)
        margin = 1.959964 * differences[1:].std()
        assert pair.estimate.ci95 == pytest.approx(
            (differences[0] - margin, differences[0] + margin)
        )
        assert (pair.estimate.p, pair.p_holm) == (None, None)  # one seed, and no arm with three


def test_without_other_patients_boxes_there_is_no_difference_to_them(tmp_path: Path) -> None:
    scores, labels, patients = random_scores(6)
    truth = truth_boxes(labels, 6)
    common = {"scores": scores, "labels": labels, "patients": patients, "truth": truth}
    arm = Arm("focal")
    one = truth[0][2]
    place = write_run(tmp_path / "a", **common, prior=lambda iou: "" if iou == one else iou)
    runs = {Point(arm, 0, 0): measured(place, resamples=B)}
    rows = compare.compare_arms([arm], runs)
    pairs = [row.difference for row in rows if row.difference is not None]
    assert len(pairs) == 3
    assert all(np.isnan(pair.estimate.value) and pair.estimate.p is None for pair in pairs)
    assert "| focal − prior_map | 1 × 1 |  |  | – | – | – |" in table.as_markdown(
        "t", list(runs), runs, rows
    )


def test_fusion_stands_beside_its_control() -> None:
    """The rows of a sweep whose runs have fusion; an arm with one seed borrows the variance of the same difference."""
    rng = np.random.default_rng(3)

    def values(mean: float) -> dict[str, ResampledValue]:
        drawn = {metric: mean + rng.normal(0, 0.02, 1 + B) for metric in fused.METRICS}
        return {m: ResampledValue(float(x[0]), x[1:], 2, {}) for m, x in drawn.items()}

    focal, lone, plain = Arm("focal"), Arm("lone"), Arm("plain")
    cells = [*((focal, fold, seed) for fold in (0, 1) for seed in (0, 1, 2)), (lone, 0, 0)]
    runs = {}
    for arm, fold, seed in cells:
        own = {metric: (one.value, one.draws) for metric, one in values(0.7).items()}
        added = {"image": values(0.72), "both": values(0.73)}
        runs[Point(arm, fold, seed)] = replace(run_with(own), fused=added)
    runs[Point(plain, 0, 0)] = run_with({})
    arms = [focal, lone, plain]
    rows = fused.fused_rows(arms, runs)
    pairs = [("image", ""), ("both", ""), ("both", "image")]
    assert [row.arm for row in rows if row.metric == "auroc"] == [
        f"{arm} with {kind}" for arm in ("focal", "lone") for kind, _ in pairs
    ]

    def stacked(kind: str, part: str) -> np.ndarray:
        of_runs = [[runs[Point(focal, fold, seed)] for seed in (0, 1, 2)] for fold in (0, 1)]
        sides = [
            [(run.fused[kind] if kind else run.metric_values)["auroc"] for run in fold]
            for fold in of_runs
        ]
        return np.array([[getattr(value, part) for value in fold] for fold in sides])

    for row, (kind, baseline) in zip([r for r in rows if r.metric == "auroc"], pairs, strict=False):
        levels, draws = (stacked(kind, part) for part in ("value", "draws"))
        wanted = uncertainty.estimate(
            levels - stacked(baseline, "value"), draws - stacked(baseline, "draws"), None
        )
        assert row.difference
        assert row.difference.baseline == ("focal with image" if baseline else "focal")
        assert row.difference.estimate == replace(wanted, p=None)
        assert row.estimate.value == levels.mean()
    of_lone = [row.difference for row in rows if row.arm.startswith("lone")]
    assert {pair.estimate.note for pair in of_lone if pair} == {uncertainty.BORROWED}
    text = table.as_markdown("t", list(runs), runs, [*compare.compare_arms(arms, runs), *rows])
    section = text.split("\n## Fusion")[1].split("\n## ")[0]
    assert "| focal with both − focal with image | 2 × 3 | " in section
    assert "plain" not in section
    without = {point: replace(run, fused={}) for point, run in runs.items()}
    assert not fused.fused_rows(arms, without)
    assert "Fusion" not in table.as_markdown("t", [], without, compare.compare_arms(arms, without))


# ---- the table --------------------------------------------------------------------------------------------------


def test_the_table_for_machines_and_for_people(tmp_path: Path) -> None:
    focal = Arm("focal")
    kacl = Arm("kacl", against=("focal",), selection_boxes=7)
    runs = grid(tmp_path, focal, lambda _: 0.5) | grid(tmp_path, kacl, lambda _: 1.5)
    late = Point(kacl, 2, 0)
    learned = ContrastiveSummary(
        loss=3.0, chance_loss=4.0, best_loss=2.0, gradient_ratio=0.5, partner_share=1.0, age=40.0
    )
    runs[Point(kacl, 0, 0)] = replace(runs[Point(kacl, 0, 0)], contrast=learned)
    rows = compare.compare_arms([focal, kacl], runs)
    lines = list(csv.DictReader(io.StringIO(table.as_csv(rows))))
    # focal: five metrics, three of them against prior_map; kacl: those, and against focal; two floors of three.
    assert len(lines) == 5 + 5 + 3 + 2 * 3
    (line,) = [line for line in lines if (line["arm"], line["metric"]) == ("kacl", "auroc")]
    row = row_of(rows, "kacl")
    assert row.difference is not None
    assert row.estimate.ci95 is not None
    assert float(line["value"]) == row.estimate.value
    assert float(line["ci_high"]) == row.estimate.ci95[1]
    assert float(line["difference"]) == row.difference.estimate.value
    assert float(line["p_holm"]) == row.difference.p_holm
    assert line["n_planned"] == "1"
    assert (line["n_folds"], line["n_seeds"], line["n_findings"]) == ("2", "2", "2")
    (floor,) = [line for line in lines if (line["arm"], line["metric"]) == ("prior_map", "iou_0.1")]
    assert (float(floor["value"]), floor["n_folds"], floor["p"]) == (0.45, "2", "")

    text = table.as_markdown("Sweep x", [*runs, late], runs, rows)
    assert "8 of 9 points are finished" in text
    weak, boxed = text.split("## ")[1:3]
    assert weak.startswith("No boxes in training")
    assert boxed.startswith("Boxes in training, or in choosing")
    assert "| kacl | 0 % | 7 | 2 × 2 |" in boxed
    assert "| kacl |" not in weak
    value = f"{row.estimate.value:.3f}"
    assert f"| {value} ± " in boxed
    assert "| prior_map, all folds |" in weak
    assert "| prior_map, all folds |" in boxed
    assert "Planned differences: 1." in boxed
    assert (
        "- unknown: focal fold0-seed0, fold0-seed1, fold1-seed0, fold1-seed1; kacl fold0-" in text
    )
    assert "| kacl − focal | 2 × 2 |" in boxed
    assert "- kacl: fold2-seed0" in text
    assert "| kacl | 1 | 3.00 | 4.00 | 2.00 | 0.50 | 100 % | 40 |" in text
    assert "| focal | 4 |" not in text
    assert "abc" in text
