"""The demo set: readable as NIH's, the same bytes every time, true boxes, neither trivial nor hopeless."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from kacl_jax.data.findings import FINDINGS_8
from kacl_jax.data.phantom import demo
from kacl_jax.data.records import Records, read_records
from kacl_jax.images.reader import read_image
from kacl_jax.runtime.errors import UserError

REPO = Path(__file__).resolve().parents[2]
SMALL = {"patients": 8, "size": 64, "seed": 3}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    """A set half as large as the demo's and at a lower resolution."""
    root = tmp_path_factory.mktemp("phantom") / "set"
    demo.write_phantom(root, patients=260, size=96, seed=0)
    return read_records(root)


def digest(root: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        total.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


def studies(patients: int, seed: int = 0) -> list[demo.Study]:
    return [s for p in range(1, patients + 1) for s in demo.plan_patient(p, seed)]


def iou(a: np.ndarray, b: np.ndarray) -> float:
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    both = float(np.prod(np.clip(high - low, 0, None)))
    return both / float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - both)


def test_reader_gives_back_what_was_drawn(records: Records) -> None:
    drawn = {s.name: s for s in studies(260)}
    assert list(records.names) == sorted(drawn)
    checked = 0
    for i, name in enumerate(records.names):
        study = drawn[str(name)]
        assert {f.name for f in study.findings} == {
            f for f, on in zip(records.findings, records.labels[i], strict=True) if on
        }
        assert {f for f, on in zip(records.findings, records.has_box[i], strict=True) if on} == set(
            study.findings_with_box
        )
        assert (records.view[i], records.sex[i], records.age[i]) == (
            study.view, study.anatomy.sex, study.anatomy.age,
        )  # fmt: skip
        if study.findings_with_box and checked < 40:
            image, boxes = demo.render(study, 96)
            np.testing.assert_array_equal(read_image(records.images.paths[i]), image)
            for finding in study.findings_with_box:
                kept = records.boxes[i, records.findings.index(finding), 0]
                np.testing.assert_allclose(kept, boxes[finding], atol=1e-6)
            checked += 1
    assert checked == 40


def test_layout_is_nihs(records: Records) -> None:
    entry, boxes = (
        (records.root / name).read_text().splitlines()
        for name in ("Data_Entry_2017.csv", "BBox_List_2017.csv")
    )
    assert entry[0] == (
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,"
        "View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
    )
    assert boxes[0] == "Image Index,Finding Label,Bbox [x,y,w,h],,,"
    spelt = {row.split(",")[1] for row in boxes[1:]}
    assert spelt == (set(FINDINGS_8) - {"Infiltration"}) | {"Infiltrate"}
    corners = np.array([[float(x) for x in row.split(",")[2:6]] for row in boxes[1:]])
    assert corners.min() >= 0
    assert 900 < (corners[:, :2] + corners[:, 2:]).max() <= 1024  # not the file's 96 pixels


def test_lists_and_shares(records: Records) -> None:
    train, test = (set(records.patients[records.official_test == part]) for part in (False, True))
    assert train
    assert test
    assert not train & test
    assert records.official_test[records.has_box.any(1)].all()
    positives = records.labels[records.official_test].sum()
    assert 0.6 < records.has_box.sum() / positives < 0.9
    assert 0.33 < np.mean(records.labels.sum(1) == 0) < 0.47
    assert (records.labels.sum(1) > 1).sum() > 50
    assert records.has_box.sum(0).min() >= 8
    assert set(records.view) == {"AP", "PA"}


def test_same_arguments_same_bytes_in_any_process(tmp_path: Path) -> None:
    demo.write_phantom(tmp_path / "one", **SMALL)
    demo.write_phantom(tmp_path / "two", **SMALL)
    code = (
        "import cv2, sys; cv2.setNumThreads(1)\n"
        "from pathlib import Path\n"
        "from kacl_jax.data.phantom import demo as phantom\n"
        f"phantom.write_phantom(Path(sys.argv[1]), **{SMALL})\n"
    )
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(REPO)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "three")], check=True, env=env)
    digests = {digest(tmp_path / name) for name in ("one", "two", "three")}
    assert len(digests) == 1
    demo.write_phantom(tmp_path / "four", **{**SMALL, "seed": 4})
    assert digest(tmp_path / "four") not in digests


def test_a_patient_does_not_depend_on_the_others(tmp_path: Path) -> None:
    demo.write_phantom(tmp_path / "few", patients=3, size=64, seed=3)
    demo.write_phantom(tmp_path / "more", **SMALL)
    for path in (tmp_path / "few" / "images").iterdir():
        assert path.read_bytes() == (tmp_path / "more" / "images" / path.name).read_bytes()


@pytest.mark.parametrize("finding", FINDINGS_8)
def test_box_encloses_what_was_drawn(finding: str) -> None:
    chosen = [s for s in studies(260) if any(f.name == finding for f in s.findings)][::3][:12]
    assert len(chosen) == 12
    tight = []
    for study in chosen:
        image, boxes = demo.render(study, 192)
        healthy, _ = demo.render(study, 192, without=(finding,))
        energy = (image.astype(np.float64) - healthy) ** 2
        x0, y0, x1, y1 = np.asarray(boxes[finding]) * 192
        inside = energy[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))]
        assert energy.sum() > 0, study.name
        assert inside.sum() >= 0.9 * energy.sum(), study.name
        assert 0 <= x0 < x1 <= 192
        assert 0 <= y0 < y1 <= 192
        rows, columns = np.nonzero(ndimage.gaussian_filter(energy, 1) > 0.02 * energy.max())
        seen = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 192
        tight.append(iou(seen, np.asarray(boxes[finding])))
    # no box so large that it encloses everything; a heart's box holds the whole heart, not the gain
    assert np.median(tight) > 0.45, tight


def test_without_a_finding_nothing_else_changes() -> None:
    study = next(s for s in studies(60) if len(s.findings) == 0)
    both = [demo.render(study, 96, without=w)[0] for w in ((), ("Mass",))]
    np.testing.assert_array_equal(*both)


def test_resolution_does_not_change_the_picture() -> None:
    for study in [s for s in studies(60) if s.findings][:8]:
        (small, few), (large, many) = demo.render(study, 128), demo.render(study, 256)
        shrunk = cv2.resize(large, (128, 128), interpolation=cv2.INTER_AREA)
        assert np.corrcoef(small.ravel(), shrunk.ravel())[0, 1] > 0.98
        for name in few:
            assert iou(np.asarray(few[name]), np.asarray(many[name])) > 0.7, (study.name, name)


def test_anatomy_lies_where_it_lies_in_people() -> None:
    image = np.mean([demo.render(s, 128)[0] for s in studies(60) if not s.findings], axis=0)
    right_lung, left_lung = image[40:60, 30:46].mean(), image[40:60, 86:98].mean()
    middle, belly = image[40:75, 60:68].mean(), image[105:120, 50:78].mean()
    assert max(right_lung, left_lung) < 0.75 * min(middle, belly)
    heart = image[62:80]
    assert heart[:, 72:82].mean() > 1.2 * heart[:, 46:56].mean()  # it leans to the patient's left
    level = (min(right_lung, left_lung) + belly) / 2
    right_dome, left_dome = image[66:, 29:38].mean(1), image[66:, 90:99].mean(1)
    assert np.argmax(right_dome > level) < np.argmax(left_dome > level)  # the liver lies there


def test_follow_ups_look_alike(records: Records) -> None:
    ids = np.arange(0, 300)
    flat = np.stack(
        [cv2.resize(read_image(records.images.paths[i]), (32, 32)).ravel() for i in ids]
    )
    likeness = np.corrcoef(flat - flat.mean(0))
    same = records.patients[ids][:, None] == records.patients[ids]
    off = ~np.eye(len(ids), dtype=bool)
    # an area under a curve: a pair of one patient is more alike than a pair of two
    assert roc_auc_score(same[off], likeness[off]) > 0.8


def test_floors(records: Records) -> None:
    hits = prior_map_hits(records)
    assert 0.28 <= np.mean([np.mean(h > 0.1) for h in hits]) <= 0.6
    assert np.mean([np.mean(h > 0.3) for h in hits]) <= 0.42
    assert 0.55 < np.mean(probe_auroc(records)) <= 0.75


def prior_map_hits(records: Records) -> list[np.ndarray]:
    """IoU of the image-free heat map's box with each truth box, 5 patient folds, per finding."""
    side = 128
    grid = (np.arange(side) + 0.5) / side
    hits = []
    for c in range(len(records.findings)):
        ids = np.flatnonzero(records.has_box[:, c])
        ious = []
        for train, test in GroupKFold(5).split(ids, groups=records.patients[ids]):
            x0, y0, x1, y1 = records.boxes[ids[train], c, 0].T[:, :, None]
            rows, columns = (grid >= y0) & (grid < y1), (grid >= x0) & (grid < x1)
            heat = np.einsum("nh,nw->hw", rows.astype(float), columns.astype(float))
            parts, _ = ndimage.label(heat > heat.max() / 2)
            peak = parts == parts[np.unravel_index(heat.argmax(), heat.shape)]
            ys, xs = np.nonzero(peak)
            box = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) / side
            ious += [iou(box, records.boxes[i, c, 0]) for i in ids[test]]
        hits.append(np.array(ious))
    return hits


def probe_auroc(records: Records) -> list[float]:
    """AUROC per finding of a logistic regression on 16×16 pixels, 5 patient folds."""
    pixels = np.stack(
        [
            cv2.resize(read_image(p), (16, 16), interpolation=cv2.INTER_AREA)
            for p in records.images.paths
        ]
    ).reshape(len(records.images.paths), -1)
    scores = np.zeros(records.labels.shape)
    for train, test in GroupKFold(5).split(pixels, groups=records.patients):
        for c in range(len(records.findings)):
            probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
            probe.fit(pixels[train], records.labels[train, c])
            scores[test, c] = probe.decision_function(pixels[test])
    return [roc_auc_score(records.labels[:, c], scores[:, c]) for c in range(scores.shape[1])]


def test_a_finished_set_is_left_alone(tmp_path: Path) -> None:
    root = tmp_path / "set"
    demo.write_phantom(root, **SMALL)
    times = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    demo.write_phantom(root, **SMALL)
    assert times == {p: p.stat().st_mtime_ns for p in root.rglob("*")}


def test_another_set_or_other_files_are_not_overwritten(tmp_path: Path) -> None:
    demo.write_phantom(tmp_path / "set", **SMALL)
    before = digest(tmp_path / "set")
    with pytest.raises(UserError, match="another phantom"):
        demo.write_phantom(tmp_path / "set", **{**SMALL, "seed": 4})
    assert digest(tmp_path / "set") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(UserError, match="holds other files"):
        demo.write_phantom(tmp_path / "mine", **SMALL)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"
    (tmp_path / "empty").mkdir()
    demo.write_phantom(tmp_path / "empty", **SMALL)
    assert digest(tmp_path / "empty") == before


@pytest.mark.parametrize("bad", [{"patients": 1}, {"size": 8}, {"seed": -1}])
def test_impossible_numbers_are_named(tmp_path: Path, bad: dict[str, int]) -> None:
    with pytest.raises(UserError, match=next(iter(bad))):
        demo.write_phantom(tmp_path / "set", **{**SMALL, **bad})
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def fail(done: int, total: int) -> None:
        if done == total // 2:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        demo.write_phantom(tmp_path / "set", **SMALL, progress=fail)
    assert not list(tmp_path.iterdir())
    demo.write_phantom(tmp_path / "set", **SMALL)
    assert len(read_records(tmp_path / "set").names) == len(studies(8, 3))


def test_a_killed_write_leaves_no_half_root(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from kacl_jax.data.phantom import demo as phantom\n"
        "def progress(done, total):\n"
        "    print(done, flush=True)\n"
        "    time.sleep(60 if done == 3 else 0)\n"
        f"phantom.write_phantom(Path(sys.argv[1]), **{SMALL}, progress=progress)\n"
    )
    root = tmp_path / "set"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(root)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(REPO)},
    ) as child:  # fmt: skip
        assert child.stdout is not None
        assert [child.stdout.readline() for _ in range(3)] == ["1\n", "2\n", "3\n"]
        child.send_signal(signal.SIGKILL)
    assert not root.exists()
    demo.write_phantom(root, **SMALL)
    assert read_records(root).root == root


def test_progress_counts_every_image(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    demo.write_phantom(tmp_path / "set", **SMALL, progress=lambda *counts: seen.append(counts))
    total = len(studies(8, 3))
    assert seen == [(i, total) for i in range(1, total + 1)]
