"""`python -m kacl_jax.predict`: a row for every file, the same numbers as in Python, and a folder that can go on."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from dicom_file import write_dicom
from PIL import Image

from kacl_jax.predict import __main__ as command
from kacl_jax.predict import inputs, outputs
from kacl_jax.predict.model import Model
from kacl_jax.radiomics import FEATURE_NAMES


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch, model: Model) -> None:
    """The network is loaded once."""
    monkeypatch.setattr("kacl_jax.predict.model.load", lambda run: model)


@pytest.fixture
def images(root: Path, tmp_path: Path) -> Path:
    """30 X-rays: three chunks."""
    folder = tmp_path / "images"
    (folder / "ward").mkdir(parents=True)
    for number, path in enumerate(sorted((root / "images").iterdir())[:30]):
        shutil.copy(path, folder / ("ward" if number % 3 else ".") / path.name)
    return folder


def run_command(run: Path, images: Path, out: Path, *more: str) -> int:
    return command.main([f"--run={run}", f"--images={images}", f"--out={out}", *more])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def content(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


def test_the_tables_have_what_python_says(run: Path, images: Path, tmp_path, model: Model) -> None:
    out = tmp_path / "out"
    assert run_command(run, images, out, "--radiomics", "--maps") == 0
    found = rows(out / "findings.csv")
    names = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))
    assert [row["image"] for row in found] == names
    predictions = {name: model(images / name) for name in names}
    for row in found:
        expected = predictions[row["image"]]
        assert row["status"] == "ok"
        assert float(row["distance"]) == pytest.approx(expected.distance, rel=1e-12)
        for finding in model.findings:
            assert float(row[f"score_{finding}"]) == expected.scores[finding]
            assert float(row[f"probability_{finding}"]) == expected.probabilities[finding]
            assert row[f"positive_{finding}"] == str(expected.positive[finding])
            assert row[f"calibrated_{finding}"] == str(expected.calibrated[finding])
    regions = rows(out / "regions.csv")
    shown = [(name, f) for name in names for f in predictions[name].shown_findings]
    assert [(row["image"], row["finding"]) for row in regions] == shown
    for row in regions:
        box = predictions[row["image"]].boxes[row["finding"]]
        assert tuple(float(row[key]) for key in "xywh") == box
        with Image.open(out / "maps" / row["map"]) as picture:
            assert picture.size == (64, 64)
    features = rows(out / "radiomics.csv")
    assert [(row["image"], row["finding"]) for row in features] == shown
    for row in features[:5]:
        expected_features = predictions[row["image"]].radiomics[row["finding"]]
        assert row["measured_on"] == "8-bit image of 64×64 px"
        told = [float(row[name] or "nan") for name in FEATURE_NAMES]
        np.testing.assert_array_equal(told, list(expected_features.values()))


@pytest.mark.parametrize("moment", ["before the tables", "in the tables", "after the tables"])
def test_the_same_command_goes_on(run, images, tmp_path, monkeypatch, moment) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    flags = ("--radiomics", "--maps")
    assert run_command(run, images, whole, *flags) == 0
    calls = iter(range(100))
    owner: Any = outputs.OutputFolder
    method = {"before the tables": "_append", "in the tables": "_append"}.get(moment, "write_index")
    inner = getattr(owner, method)

    def struck(self: Any, *args: Any) -> None:
        if moment == "after the tables" and next(calls) == 1:
            raise KeyboardInterrupt
        if moment != "after the tables" and next(calls) == 4:
            if moment == "in the tables":
                inner(self, *args)
            raise KeyboardInterrupt
        inner(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, method, struck)
        patch.setattr(command, "_INDEX_EVERY_S", -1)
        with pytest.raises(KeyboardInterrupt):
            run_command(run, images, out, *flags)
    done = json.loads((out / "progress.json").read_text())["done"]
    assert 0 < done < 30
    read: list[str] = []
    really_read = inputs.read
    monkeypatch.setattr(
        inputs,
        "read",
        lambda listed, **kw: (read.append(listed.name), really_read(listed, **kw))[1],
    )
    assert run_command(run, images, out, *flags) == 0
    assert len(read) == 30 - done
    assert content(out) == content(whole)
    # Once more: nothing is left to do, and nothing changes.
    read.clear()
    assert run_command(run, images, out, *flags) == 0
    assert not read
    assert content(out) == content(whole)


def test_a_file_that_cannot_be_read_is_a_row(run: Path, images: Path, tmp_path, capsys) -> None:
    good = sorted(images.glob("*.png"))
    (images / "cut.png").write_bytes(good[0].read_bytes()[:200])
    (images / "empty.dcm").write_bytes(b"")
    (images / "notes").write_text("no image")
    os.mkfifo(images / "pipe.png")
    out = tmp_path / "out"
    assert run_command(run, images, out) == 0
    found = {row["image"]: row for row in rows(out / "findings.csv")}
    assert len(found) == 34
    for name, reason in (
        ("cut.png", "truncated"),
        ("empty.dcm", "is empty (zero bytes)"),
        ("notes", "is not a PNG, JPEG, TIFF or BMP file"),
        ("pipe.png", "it is no regular file"),
    ):
        assert found[name]["status"] == "failed"
        assert reason in found[name]["reason"]
        assert found[name]["score_Mass"] == ""
    assert "4 images have no prediction" in capsys.readouterr().err
    bad = tmp_path / "bad"
    bad.mkdir()
    shutil.copy(images / "notes", bad)
    assert run_command(run, bad, tmp_path / "none") == command.NO_IMAGE_WORKED


def test_outputs_of_another_command_are_refused(run, images, tmp_path, capsys, monkeypatch) -> None:
    out = tmp_path / "out"
    assert run_command(run, images, out) == 0
    before = content(out)
    assert run_command(run, images, out, "--flip") == 1
    assert "flip: False → True" in capsys.readouterr().err
    (images / "0.png").write_bytes(sorted(images.glob("*.png"))[0].read_bytes())
    assert run_command(run, images, out) == 1
    assert "files were added or removed" in capsys.readouterr().err
    (images / "0.png").unlink()
    progress = json.loads((out / "progress.json").read_text())
    progress["settings"]["network"] = "another"
    (out / "progress.json").write_text(json.dumps(progress))
    assert run_command(run, images, out) == 1
    assert "network: another →" in capsys.readouterr().err
    assert content(out).items() - before.items() == {
        ("progress.json", (out / "progress.json").read_bytes())
    }


def test_mistakes_are_one_sentence(run: Path, images: Path, tmp_path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("images/a.png\n\nimages/a.png\n")
    for flags, message in (
        ([f"--images={tmp_path / 'gone'}"], "gone does not exist"),
        ([f"--images={tmp_path / 'empty'}"], "names no image"),
        ([f"--images={tmp_path / 'list.txt'}"], "names images/a.png in line 1 and in line 3"),
        ([f"--out={images / 'out'}"], "is inside --images"),
        (["--max_megapixels=0"], "must be at least 1"),
    ):
        assert run_command(run, images, tmp_path / "out", *flags) == 1
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error


def test_a_name_that_a_spreadsheet_would_run_is_refused(
    run: Path, images: Path, tmp_path, capsys
) -> None:
    next(images.iterdir()).rename(images / "@SUM(A1).png")
    assert run_command(run, images, tmp_path / "out") == 1
    assert "the image name '@SUM(A1).png' begins with '@'" in capsys.readouterr().err
    assert not (tmp_path / "out" / "findings.csv").exists()


def test_a_name_that_is_no_text_is_kept(run: Path, images: Path, tmp_path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    name = b'a\xff,"b.png'
    shutil.copy(next(images.glob("*.png")), os.fsencode(folder) + b"/" + name)
    assert run_command(run, folder, tmp_path / "out", "--maps") == 0
    table = (tmp_path / "out" / "findings.csv").read_text("utf-8", "surrogateescape")
    assert os.fsencode(next(csv.DictReader(table.splitlines()))["image"]) == name


def test_a_folder_that_is_not_its_own_is_left_alone(run, images, tmp_path, capsys) -> None:
    (tmp_path / "findings.csv").write_text("mine\n")
    (tmp_path / "out").mkdir()
    shutil.move(tmp_path / "findings.csv", tmp_path / "out")
    assert run_command(run, images, tmp_path / "out") == 1
    assert "findings.csv exists, but this command did not write it" in capsys.readouterr().err
    assert (tmp_path / "out" / "findings.csv").read_text() == "mine\n"


def test_a_full_disk_is_one_sentence_and_loses_nothing(
    run, images, tmp_path, capsys, monkeypatch
) -> None:
    def full(self: Any, name: str, rows: Any) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / name))

    with monkeypatch.context() as patch:
        patch.setattr(outputs.OutputFolder, "_append", full)
        assert run_command(run, images, tmp_path / "out") == 1
    assert "No space left on device); free some disk space" in capsys.readouterr().err
    assert run_command(run, images, tmp_path / "out") == 0
    assert len(rows(tmp_path / "out" / "findings.csv")) == 30


def test_a_list_and_one_file_work_too(run: Path, images: Path, tmp_path) -> None:
    first, second = sorted(path.relative_to(tmp_path).as_posix() for path in images.rglob("*.png"))[
        :2
    ]
    (tmp_path / "list.txt").write_text(f"{second}\n{first}\n")
    assert run_command(run, tmp_path / "list.txt", tmp_path / "a") == 0
    assert [row["image"] for row in rows(tmp_path / "a" / "findings.csv")] == [second, first]
    assert run_command(run, tmp_path / first, tmp_path / "b") == 0
    one = rows(tmp_path / "b" / "findings.csv")[0]
    two = rows(tmp_path / "a" / "findings.csv")[1]
    assert {**one, "image": ""} == {**two, "image": ""}


def test_no_identifier_of_a_dicom_reaches_an_output(run: Path, images: Path, tmp_path) -> None:
    scans = tmp_path / "scans"
    (scans / "doe_jane").mkdir(parents=True)
    pixels = cv2.imread(str(next(images.glob("*.png"))), cv2.IMREAD_GRAYSCALE)
    for name in ("plain.dcm", "4711.dcm", "1.2.3.4.5.6.7.8", "doe_jane/x"):
        write_dicom(scans / name, pixels)
    lateral = scans / "acc99_lateral"
    write_dicom(lateral, pixels)
    lateral.write_bytes(lateral.read_bytes().replace(b"PA", b"LL"))
    out = tmp_path / "out"
    assert run_command(run, scans, out, "--maps", "--radiomics") == 0
    found = rows(out / "findings.csv")
    assert sorted(row["status"] for row in found) == ["failed", *["ok"] * 4]
    assert "plain.dcm" in {row["image"] for row in found}
    identifiers = ("doe", "jane", "4711", "acc99", "1.2.3.4.5")
    for path in out.rglob("*"):
        told = str(path.relative_to(out)).lower()
        told += (
            path.read_bytes().decode("latin-1").lower() if path.suffix in (".csv", ".json") else ""
        )
        assert not [text for text in identifiers if text in told], path
    page = (out / "pages" / "0001.html").read_text().lower()
    page = "".join(part for part in page.split('"') if not part.startswith("data:"))
    assert not [text for text in identifiers if text in page]
    kept = tmp_path / "kept"
    assert run_command(run, scans, kept, "--keep_ids") == 0
    row = next(row for row in rows(kept / "findings.csv") if row["image"] == "4711.dcm")
    assert (row["patient_id"], row["instance_uid"]) == ("4711", "1.2.3.4.5.6.7.8")


def test_what_pydicom_warns_of_is_not_printed(run, images, tmp_path, capfd) -> None:
    """A number that is too long for its tag: the file is read all the same."""
    pixels = cv2.imread(str(next(images.glob("*.png"))), cv2.IMREAD_GRAYSCALE)
    write_dicom(tmp_path / "a.dcm", pixels)
    data = (tmp_path / "a.dcm").read_bytes()
    changed = data.replace(b"1.2.3.4.5.6.7\0", b"1.2.3.4.5.6.x\0")
    assert changed != data
    (tmp_path / "a.dcm").write_bytes(changed)
    assert run_command(run, tmp_path / "a.dcm", tmp_path / "out", "--keep_ids") == 0
    assert "1.2.3.4.5.6.x" not in capfd.readouterr().err


def test_a_dicom_has_the_scores_of_its_pixels(run, images, tmp_path, model: Model) -> None:
    pixels = cv2.imread(str(next(images.glob("*.png"))), cv2.IMREAD_GRAYSCALE)
    write_dicom(tmp_path / "a.dcm", pixels)
    assert model(tmp_path / "a.dcm").scores == model(pixels).scores
