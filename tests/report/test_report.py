"""report.html: what it shows is what the files say, it needs nothing else, and no name can break it."""

from __future__ import annotations

import base64
import csv
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import cv2
import numpy as np
import pytest
from toy_root import toy_outputs, toy_records, toy_split

from kacl_jax import config as config_keys
from kacl_jax.data.png_folder import PngFiles
from kacl_jax.evaluation import evaluate, result_files
from kacl_jax.evaluation.localization import Reading
from kacl_jax.evaluation.metrics import IOU_THRESHOLDS, Estimate, Table
from kacl_jax.evaluation.outputs import Outputs
from kacl_jax.evaluation.results import FeedbackSummary, Results, Throughput, read_results
from kacl_jax.radiomics import FEATURE_NAMES, extract
from kacl_jax.report import features, gallery, page, pictures, run_page
from kacl_jax.report.features import Moments
from kacl_jax.runtime import files
from kacl_jax.runtime.errors import UserError
from kacl_jax.step import regions
from kacl_jax.step.regions import RegionRule
from kacl_jax.sweep import page as sweep_page
from kacl_jax.sweep.hyper import Arm, Point
from kacl_jax.sweep.measure import RunMeasurements, measure_run, read_files
from kacl_jax.train import final_evaluation

EVIL = "\"><script>alert('x')</script><b>&amp;"
SIZE = 64


class Page(HTMLParser):
    """Tags, attributes and tables of a page."""

    VOID = ("meta", "br", "wbr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.captions: list[str] = []
        self._open: list[str] = []
        self._section = ""
        self.feed(text)
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(key, value or "") for key, value in attrs]
        if tag == "section":
            self._section = dict(attrs)["id"] or ""
            self.tables[self._section] = []
        if tag == "tr":
            self.tables[self._section].append([])
        if tag in ("td", "th"):
            self.tables[self._section][-1].append("")
        if tag == "figcaption":
            self.captions.append("")
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(key, value or "") for key, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self._open):
            self.tables[self._section][-1][-1] += data
        if "figcaption" in self._open:
            self.captions[-1] += data

    def row(self, section: str, name: str) -> list[str]:
        (row,) = [r for r in self.tables[section] if r and r[0].strip() == name]
        return [" ".join(cell.split()) for cell in row]


@dataclasses.dataclass
class Case:
    """A finished run of a toy root; `page()` writes and reads its report."""

    workdir: Path
    inputs: gallery.ReportInputs

    def page(self) -> Page:
        run_page.write_run(self.workdir, read_results(self.workdir / "results.json"), self.inputs)
        return Page((self.workdir / "report.html").read_text())

    def results(self) -> dict[str, Any]:
        results: dict[str, Any] = json.loads((self.workdir / "results.json").read_text())
        return results


def toy_case(
    workdir: Path, *, without: int | None = None, max_images: int = 6, most_boxes: int = 1
) -> Case:
    """Every test image has a name that would break a page. without: a finding that no test image has."""
    records = toy_records(most_boxes=most_boxes)
    names = [f"{EVIL}{i:03d}.png" for i in range(len(records.names))]
    paths = []
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 255, (96, 96), np.uint8)
        paths.append(workdir / f"{i}.png")
        cv2.imwrite(str(paths[-1]), cv2.GaussianBlur(pixels, (9, 9), 3))
    changes: dict[str, Any] = {}
    if without is not None:
        changes = {name: getattr(records, name).copy() for name in ("labels", "has_box", "boxes")}
        for array in changes.values():
            array[:, without] = 0
    records = dataclasses.replace(
        records,
        names=np.array(names),
        images=PngFiles(tuple(paths[i % 3] for i in range(len(names)))),
        **changes,
    )
    split = toy_split(records)
    val, test = (toy_outputs(records, ids, seed=7) for ids in (split.val, split.test))
    found = evaluate.evaluate_outputs(
        val, test, records, split, Reading(SIZE, relu=True, threshold=0.5), resamples=20
    )
    results = result_files.build_results(
        found,
        records,
        split,
        seed=0,
        feedback=FeedbackSummary(),
        throughput=Throughput(),
        best_step=6,
        trained_steps=9,
    )
    files.write_json(workdir / "results.json", results.to_json())
    result_files.write_predictions(workdir / "predictions.csv", records, split, val=val, test=test)
    result_files.write_boxes(
        workdir / "boxes.csv", records, found.predicted_boxes, found.prior_map_iou
    )
    origin = {
        "command": f"python main.py --workdir={EVIL}",
        "git": None,
        "python": "3",
        "packages": {"jax": EVIL},
        "devices": ["cpu"],
        "checksums": {EVIL: "0" * 64},
        "images_unreadable": {EVIL: EVIL},
    }
    files.write_json(workdir / "run.json", origin)
    config = {**config_keys.flatten(config_keys.default()), "data.root": EVIL}
    files.write_json(workdir / "config.json", {"config": config, "data": {}})
    lines = [{"step": s, "kind": "train", "loss": 1 / s, "focal": None} for s in (1, 2, 3)]
    log = [*lines, {"step": 6, "kind": "val", "auroc": 0.6}]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    zeros = np.zeros(len(FEATURE_NAMES))
    inputs = gallery.ReportInputs(
        records=records,
        outputs=test,
        located=found.predicted_boxes,
        rule=RegionRule("cam", True, True, 0.5, SIZE, 0),
        moments=Moments(zeros, zeros + 1),
        bin_width=25.0,
        backend="pyradiomics",
        max_images=max_images,
        resamples=20,
    )
    return Case(workdir, inputs)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return toy_case(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def shown(case: Case) -> Page:
    return case.page()


def f(value: float | None) -> str:
    """0.500 as a reader sees it, from Python's own formatting."""
    return "–" if value is None else f"{value:.3f}"


# ---- the page as a whole --------------------------------------------------------------------------------------


def test_no_name_breaks_the_page(case: Case, shown: Page) -> None:
    text = (case.workdir / "report.html").read_text()
    assert "script" not in shown.tags
    assert not [key for key, _ in shown.attributes if key.startswith("on")]
    assert EVIL not in text
    assert "<script" not in text
    assert any(EVIL in caption for caption in shown.captions)
    assert any(EVIL in value for key, value in shown.attributes if key == "aria-label")


def test_it_needs_nothing_else(case: Case, shown: Page) -> None:
    text = (case.workdir / "report.html").read_text()
    loads = [v for k, v in shown.attributes if k in ("src", "href", "xlink:href", "srcset", "data")]
    assert len([v for v in loads if v.startswith("data:image/")]) > 20
    assert not [v for v in loads if not v.startswith(("data:image/", "#"))]
    assert not {"script", "link", "iframe", "object", "img"} & set(shown.tags)
    assert "url(" not in text
    assert "@import" not in text
    assert any("default-src 'none'" in value for _, value in shown.attributes)
    assert len(text) < 5e6


def test_every_link_inside_leads_somewhere_and_ids_are_unique(shown: Page) -> None:
    ids = [value for key, value in shown.attributes if key == "id"]
    assert len(set(ids)) == len(ids)
    assert {v[1:] for k, v in shown.attributes if k == "href" and v[0] == "#"} <= set(ids)


def test_every_drawing_has_words(case: Case, shown: Page) -> None:
    text = (case.workdir / "report.html").read_text()
    for tag in re.findall(r"<svg[^>]*>", text):
        assert 'aria-hidden="true"' in tag or re.search(r'aria-label="[^"]+"', tag), tag


def test_the_same_inputs_give_the_same_bytes(case: Case, shown: Page) -> None:
    before = (case.workdir / "report.html").read_bytes()
    case.page()
    assert (case.workdir / "report.html").read_bytes() == before


def test_what_cannot_be_written_is_told_and_nothing_half_written_stays(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        page.write(tmp_path / "report.html", "base.html", {})
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


# ---- the figures ----------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_results_json(case: Case, shown: Page) -> None:
    results = case.results()
    ranking, places = results["classification"], results["localization"]
    for name in (*results["findings"], "mean"):
        shown_as = f"mean of {ranking['auroc']['mean']['n_findings']}" if name == "mean" else name
        _, positive, _, auroc, auprc, prevalence, boxes, _, *accuracy = shown.row(
            "findings", shown_as
        )
        leaf = ranking["auroc"][name]
        assert positive == str(leaf["n_pos"])
        assert auroc == f"{f(leaf['value'])} [{f(leaf['ci95'][0])}, {f(leaf['ci95'][1])}]"
        assert auprc.split()[0] == f(ranking["auprc"][name]["value"])
        assert prevalence == f(ranking["auprc"][name]["prevalence"])
        assert boxes == str(places["iou"]["0.1"][name]["n"])
        pairs = [
            (places["iou"][t][name], places["prior_map"]["iou"][t][name])
            for t in ("0.1", "0.3", "0.5")
        ]
        assert accuracy == [f"{f(ours['value'])} {f(floor['value'])}" for ours, floor in pairs]


def test_localization_stands_beside_its_floors_and_wang(case: Case, shown: Page) -> None:
    places = case.results()["localization"]
    for name, way in {
        "this run": places,
        **{n: places[n] for n in ("prior_map", "prior_box", "random_map", "grid_ceiling")},
    }.items():
        assert shown.row("localization", name)[1:] == [
            f(leaf["mean"]["value"]) for leaf in way["iou"].values()
        ]
    assert shown.row("localization", "Wang et al. 2017")[1:] == [
        "0.568",
        "0.373",
        "0.221",
        "0.116",
        "0.062",
        "0.028",
        "0.010",
    ]
    assert "another split" in (case.workdir / "report.html").read_text()


def test_the_gallery_shows_the_extremes(case: Case, shown: Page) -> None:
    with (case.workdir / "boxes.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["iou"]]
    text = " ".join(" ".join(shown.captions).split())
    for finding in case.results()["findings"]:
        iou = [float(row["iou"]) for row in rows if row["finding"] == finding]
        for why, value in (("best", max(iou)), ("worst", min(iou))):
            assert re.search(rf"{why} · p \S+ · IoU {re.escape(f(value))} ", text)


def test_a_card_shows_all_truth_boxes_of_its_pair(tmp_path: Path) -> None:
    inputs = toy_case(tmp_path, max_images=0, most_boxes=3).inputs
    sections = gallery.gallery_sections(inputs)
    numbers = set()
    for part in sections:
        c = inputs.findings.index(part["finding"])
        assert part["boxes"] == inputs.records.is_box[:, c].sum()
        best, *_, worst = (max(card["ious"]) for card in part["cards"])
        assert best >= worst
        for card in part["cards"]:
            image, finding = card["pair"]
            truth = inputs.records.boxes[image, finding]
            n = int(truth.any(1).sum())
            numbers.add(n)
            assert len(card["ious"]) == n
            x0, y0 = (truth[:n, i] * pictures.SIDE for i in (0, 1))
            drawn = re.findall(r'<rect class="truth" x="(.+?)" y="(.+?)"', str(card["picture"]))
            assert drawn == 2 * [(f"{x:.1f}", f"{y:.1f}") for x, y in zip(x0, y0, strict=True)]
    assert numbers == {1, 2, 3}


def test_each_picture_is_of_its_own_finding(case: Case) -> None:
    inputs, located = case.inputs, case.inputs.located
    maps = dict(zip(inputs.outputs.image_id.tolist(), inputs.outputs.class_maps(), strict=True))
    cards = [card for part in gallery.gallery_sections(inputs) for card in part["cards"]]
    assert len(cards) > 15
    for card in cards:
        image, finding = card["pair"]
        text = str(card["picture"])
        (row,) = np.flatnonzero((located.image_id == image) & (located.finding == finding))
        drawn = {style: rectangle(style, text) for style in ("truth", "predicted")}
        assert drawn["truth"] == pytest.approx(inputs.records.boxes[image, finding, 0], abs=1e-3)
        assert drawn["predicted"] == pytest.approx(located.box[row], abs=1e-3)
        assert regions.bounding_box(inputs.region(image, finding)) == pytest.approx(
            located.box[row]
        )
        (png,) = re.findall(r"data:image/png;base64,([^\"]+)", text)
        heat = cv2.imdecode(np.frombuffer(base64.b64decode(png), np.uint8), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(heat, pictures.heat(maps[image][finding], relu=True))


def rectangle(style: str, text: str) -> list[float]:
    """(x0, y0, x1, y1) in fractions."""
    (x, y, w, h), *_ = re.findall(
        rf'<rect class="{style}" x="(.+?)" y="(.+?)" width="(.+?)" height="(.+?)"', text
    )
    edges = [float(x), float(y), float(x) + float(w), float(y) + float(h)]
    return [edge / pictures.SIDE for edge in edges]


# ---- radiomic features ----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*one or two grey levels")
def test_each_finding_is_judged_by_its_own_regions(case: Case) -> None:
    run = case.inputs
    tables = gallery.interpretation_section(run)["discriminating"]
    ids = features.sample_images(run.outputs.image_id, run.max_images)
    images = [run.pixels(int(image), SIZE) for image in ids]
    for finding, part in enumerate(tables):
        masks = [run.region(int(image), finding) for image in ids]
        measured = extract(images, masks).features
        positive = run.records.labels[ids, finding] == 1
        assert (part["n_pos"], part["n_neg"]) == (positive.sum(), (~positive).sum())
        patients = run.records.patients[ids]
        expected = features.discriminating_features(measured, positive, patients, resamples=20)
        assert [row["auroc"] for row in part["rows"]] == [t.auroc for t in expected]
        assert [row["feature"] for row in part["rows"]] == [t.name.split("_")[2] for t in expected]


def test_where_a_region_is_a_box_its_box_is_measured(case: Case) -> None:
    run = case.inputs
    boxed = dataclasses.replace(run, rule=dataclasses.replace(run.rule, shape="box"))
    image = int(run.outputs.image_id[0])
    mask, box = run.region(image, 0), boxed.region(image, 0)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    assert box.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1) > mask.sum()
    assert box[mask].all()


def test_a_sample_is_said_and_chance_is_shown(case: Case, shown: Page) -> None:
    text = " ".join((case.workdir / "report.html").read_text().split())
    assert (
        f"in 6 test images (a sample with a fixed seed, of {len(case.inputs.outputs.image_id)})"
        in text
    )
    assert "These are associations" in text
    assert "validation AUROC, best 0.600 at step 6<" in text
    assert "The mean is over the training regions" in text
    assert len(shown.tables["images"]) > 8


def test_without_training_features_the_sample_stands_in_and_that_is_said(case: Case) -> None:
    alone = dataclasses.replace(case, inputs=dataclasses.replace(case.inputs, moments=None))
    found = alone.page()
    text = (case.workdir / "report.html").read_text()
    assert "all regions of the test sample" in text
    assert [r for r in found.tables["images"] if r]


# ---- what is not there ----------------------------------------------------------------------------------------


def test_a_finding_without_positives_or_boxes(tmp_path: Path) -> None:
    case = toy_case(tmp_path, without=2, max_images=2)
    (tmp_path / "metrics.jsonl").write_text("")
    found = case.page()
    name = case.results()["findings"][2]
    row = found.row("findings", name)
    assert row[3] == row[4] == "–"
    assert row[6] == "0"
    text = (tmp_path / "report.html").read_text()
    assert "No curve: no positive" in text
    assert f"AUROC of {name}: no positive" in text
    assert "No ranking: no feature has a value in five images with the finding" in text
    assert "metrics.jsonl is empty" in text
    assert "This run had no feedback loop" in text


@pytest.mark.parametrize("regions", [{}, {"cam": 3, "truth": 1}])
def test_feedback_is_told_with_its_failures(
    case: Case, tmp_path: Path, regions: dict[str, int]
) -> None:
    for name in ("run.json", "config.json", "predictions.csv", "boxes.csv"):
        (tmp_path / name).write_bytes((case.workdir / name).read_bytes())
    results = case.results() | {
        "feedback": {
            "hit_rate": 0.25,
            "mean_age_steps": None,
            "failures": {EVIL: 1234},
            "regions": regions,
            "late": 7 * len(regions),
            "dropped": 0,
        },
        "throughput": {"images_per_s": 1.0, "rois_per_s": 2.0, "waits": {"radiomics_s": 0.0}},
    }
    line = {"step": 1, "kind": "train", "loss": 1.0, "nt_xent": None, "hit_rate": 0.0, "age": None}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n" + '{"step": 2, "ki')
    inputs = dataclasses.replace(case.inputs, max_images=0)
    run_page.write_run(tmp_path, Results.from_json(results), inputs)
    found = Page((tmp_path / "report.html").read_text())
    assert found.row("feedback", EVIL)[-1] == "1,234"
    assert [row[-1] for row in found.tables["feedback"] if row[0] in regions] == [
        str(n) for n in regions.values()
    ]
    text = (tmp_path / "report.html").read_text()
    assert ("too late <b>14</b>" in text) == bool(regions)
    assert "NT-Xent</figcaption>" not in text  # a term that no step had is no curve at 0
    assert "No region was measured for this page" in text


def test_what_the_contrastive_loss_learned_stands_beside_chance(case: Case, tmp_path: Path) -> None:
    """ln 63 = 4.14 of 32 rows; 0.2 · 0.001 ÷ (.8 · .004) = .0625."""
    for name in ("run.json", "config.json", "predictions.csv", "boxes.csv"):
        (tmp_path / name).write_bytes((case.workdir / name).read_bytes())
    terms = {"nt_xent": 4.12, "grad_norm_focal": 0.004, "grad_norm_nt_xent": 0.001}
    line = {"step": 1, "kind": "train", **terms, "ready": 32, "hit_rate": 1.0, "age": 30.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    inputs = dataclasses.replace(case.inputs, max_images=0)
    run_page.write_run(tmp_path, Results.from_json(case.results()), inputs)
    text = (tmp_path / "report.html").read_text()
    for words, value in (
        ("NT-Xent in the last epoch", "4.12"),
        ("NT-Xent by chance", "4.14"),
        ("NT-Xent at best", "2.18"),
        ("its gradient at the feature map ÷ the gradient of the focal loss", "0.06"),
    ):
        assert f"{words} <b>{value}</b>" in text


def test_one_test_image(case: Case) -> None:
    """No image is predicted, sampled or boxed but one."""
    located = case.inputs.located
    one = dataclasses.replace(
        located, **{f.name: getattr(located, f.name)[:0] for f in dataclasses.fields(located)}
    )
    some = case.inputs.outputs
    single = Outputs(some.image_id[:1], some.logits[:1], some.class_maps()[:1])
    dataclasses.replace(
        case, inputs=dataclasses.replace(case.inputs, located=one, outputs=single)
    ).page()
    assert "No truth box is scored" in (case.workdir / "report.html").read_text()


def test_results_are_written_before_the_page_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        final_evaluation, "checkpoint", MagicMock(restore_on_all=lambda read: read())
    )
    monkeypatch.setattr(final_evaluation, "evaluate", MagicMock())
    for name in ("write_run_json", "_write_facts"):
        monkeypatch.setattr(final_evaluation, name, MagicMock())
    monkeypatch.setattr(result_files, "write_tables", MagicMock())
    monkeypatch.setattr(
        result_files,
        "build_results",
        lambda *_, best_step, **__: SimpleNamespace(to_json=lambda: {"best_step": best_step}),
    )
    monkeypatch.setattr(
        final_evaluation.run_page, "write_run", MagicMock(side_effect=UserError("no room"))
    )
    monkeypatch.setattr(
        final_evaluation, "_best_or_newest", lambda *_: SimpleNamespace(step=6, arrays={})
    )
    experiment = MagicMock(workdir=tmp_path)
    experiment.config.fusion.kind, experiment.config.model.pretrained = "none", ""
    with pytest.raises(UserError, match="no room"):
        final_evaluation.score_best_checkpoint(
            experiment, MagicMock(), MagicMock(best_step=6, throughput={}), steps=9
        )
    assert json.loads((tmp_path / "results.json").read_text()) == {"best_step": 6}


@pytest.mark.parametrize("steps", [0, 3])
def test_the_training_regions_are_known_only_where_there_were_some(steps: int) -> None:
    trained = SimpleNamespace(
        feature_count=steps, feature_mean=np.ones(102), feature_var=np.zeros(102)
    )
    experiment = SimpleNamespace(config=config_keys.default(), records=None, region_rule=None)
    outputs = Outputs(np.arange(2), np.zeros((2, 8)))
    shown = final_evaluation._report_inputs(
        experiment, trained, outputs, SimpleNamespace(predicted_boxes=None)
    )  # type: ignore[arg-type]
    assert (shown.moments is not None) == (steps > 0)
    assert shown.max_images == 400


# ---- a sweep --------------------------------------------------------------------------------------------------

HEADER = (
    "family,arm,box_share,selection_boxes,metric,value,sd,ci_low,ci_high,n_folds,n_seeds,n_findings,baseline,"
    "difference,difference_ci_low,difference_ci_high,p,p_holm,n_planned,n_common_folds,n_common_seeds,note"
)


FOCAL, KACL = Arm("focal"), Arm("kacl")
POINTS = (Point(FOCAL, 0, 0), Point(FOCAL, 0, 1), Point(KACL, 0, 0))


FILES = (
    "results.json", "run.json", "config.json", "metrics.jsonl", "predictions.csv", "boxes.csv",
)  # fmt: skip


def measure(sweep: Path) -> dict[Point, RunMeasurements]:
    return {point: measure_run(read_files(sweep / point.name), resamples=2) for point in POINTS}


@pytest.fixture
def sweep(case: Case, tmp_path: Path) -> Path:
    lines = [
        HEADER,
        "weak,focal,0.0,0,auroc,0.6,0.01,0.5,0.7,1,2,8,,,,,,,,,,",
        "weak,focal,0.0,0,iou_0.1,0.25,,,,1,2,8,,,,,,,,,,<b>why",
        "weak,kacl,0.0,0,auroc,0.65,,0.55,0.75,1,1,8,focal,0.05,-0.01,0.11,0.0004,0.0012,3,1,1,",
        "box,guided,0.2,7,auroc,,,,,1,1,8,focal,,,,,,,0,0,nothing",
        "floor,prior_map,,,iou_0.1,0.4,,,,1,0,8,,,,,,,,,,",
    ]
    (tmp_path / "sweep.csv").write_text("\n".join(lines) + "\n")
    for point in POINTS:
        (tmp_path / point.name).mkdir(parents=True)
        for file in FILES:
            (tmp_path / point.name / file).write_bytes((case.workdir / file).read_bytes())
    with (tmp_path / "kacl/fold0-seed0/metrics.jsonl").open("a") as log:
        told = {
            "step": 7,
            "kind": "train",
            "nt_xent": 3.0,
            "ready": 32.0,
            "hit_rate": 1.0,
            "age": 40.0,
        }
        log.write(json.dumps({**told, "grad_norm_nt_xent": 0.4, "grad_norm_focal": 0.1}) + "\n")
    (tmp_path / "kacl/fold0-seed0/report.html").write_text("")
    shutil.copytree(
        tmp_path / "kacl/fold0-seed0", tmp_path / "kacl/fold0-seed1"
    )  # of another config, say
    return tmp_path


def test_a_sweep_shows_its_table_and_links_to_its_points(case: Case, sweep: Path) -> None:
    sweep_page.write_sweep(sweep, measure(sweep))
    text = (sweep / "report.html").read_text()
    found = Page(text)
    assert found.row("section-1", "focal")[1:3] == ["0.600 ± 0.010 [0.500, 0.700]", "0.250"]
    assert found.row("section-1", "prior_map")[1:3] == ["", "0.400"]
    assert found.row("section-1", "kacl − focal")[1] == "+0.050 [−0.010, 0.110] p < 0.001 (0.001)"
    assert found.row("section-2", "guided")[1:] == ["–", "", "1 × 1", "20 %", "7", "8"]
    auroc = f(case.results()["classification"]["auroc"]["mean"]["value"])
    assert found.row("points", "focal")[1].startswith(auroc)
    assert found.row("points", "kacl")[2] == "–"
    assert found.row("contrast", "kacl")[1:] == ["1", "3.00", "4.14", "2.18", "1.00", "100 %", "40"]
    assert len(found.tables["contrast"]) == 2
    assert "<b>why" not in text
    hrefs = {v for k, v in found.attributes if k == "href" and v[0] != "#"}
    assert hrefs == {"kacl/fold0-seed0/report.html"}
    sweep_page.write_sweep(sweep, measure(sweep))
    assert (sweep / "report.html").read_text() == text


def test_a_sweep_with_nothing_finished_and_one_without_a_table(sweep: Path) -> None:
    (sweep / "sweep.csv").write_text(HEADER + "\n")
    sweep_page.write_sweep(sweep, {})
    assert "No point is finished yet" in (sweep / "report.html").read_text()
    (sweep / "sweep.csv").write_text(HEADER + "\nweak,focal,0,0,auroc,much\n")
    with pytest.raises(UserError, match=r"sweep\.csv cannot be used"):
        sweep_page.write_sweep(sweep, {})
    (sweep / "sweep.csv").unlink()
    with pytest.raises(UserError, match=r"sweep\.csv cannot be used"):
        sweep_page.write_sweep(sweep, {})


def test_the_floor_beside_an_arm_is_that_of_its_own_folds_and_folds_weigh_alike() -> None:
    row = {"metric": "iou_0.1", "value": 0.3}
    rows = [
        {**row, "baseline": "focal", "difference": 0.1},
        {**row, "baseline": "prior_map", "difference": -0.05},
    ]
    assert sweep_page._prior_map_marks(rows, "iou_0.1") == [(pytest.approx(0.35), "prior-map")]
    assert sweep_page._prior_map_marks(rows, "iou_0.3") == []

    def tables(value: float) -> dict[float, Table]:
        return dict.fromkeys(IOU_THRESHOLDS, Table((), Estimate(value, None, {})))

    three = [(0, tables(0.1)), (0, tables(0.2)), (1, tables(0.6))]
    assert sweep_page._mean_curve(three)[0] == (0.1, pytest.approx((0.15 + 0.6) / 2))
    assert np.isnan(sweep_page._mean_curve([*three, (1, tables(np.nan))])[0][1])


def test_a_sweep_page_needs_no_jax() -> None:
    code = "import sys, kacl_jax.report; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_templates_are_part_of_the_package() -> None:
    import tomllib

    told = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    patterns = told["tool"]["setuptools"]["package-data"]["kacl_jax.report"]
    folder = Path(page.__file__).parent
    packed = {path for pattern in patterns for path in folder.glob(pattern)}
    assert {path for path in folder.rglob("*") if path.suffix in (".html", ".css")} <= packed
