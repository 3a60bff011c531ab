"""The analyses that stand beside the package and are commands for users."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_run

from analyses import linear_probe
from kacl_jax.models.encoders import ENCODERS
from kacl_jax.runtime.errors import USER_ERROR


def test_the_probe_finds_what_the_features_hold_and_no_more(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A finding that makes an image bright is found by a random encoder; one that is drawn by lot is not."""
    monkeypatch.setitem(ENCODERS, "resnet18", tiny_run.tiny_encoder())
    images = tmp_path / "images"
    images.mkdir()
    random = np.random.default_rng(0)
    rows = ["image,patient,Bright,Lot"]
    for number in range(120):
        bright, lot = random.integers(2, size=2)
        grey = random.integers(0, 60, (64, 64)) + 60 * bright
        cv2.imwrite(str(images / f"{number}.png"), grey.astype(np.uint8))
        rows.append(f"{number}.png,p{number // 2},{bright},{lot}")
    (tmp_path / "images.csv").write_text("\n".join(rows) + "\n")
    options = [f"--data_root={tmp_path}", "--image_size=64", "--findings=all"]
    assert linear_probe.main(["--weights=", *options]) == 0
    aurocs = dict(re.findall(r"^(\w+) +(0\.\d+|1\.000)", capsys.readouterr().out, re.MULTILINE))
    assert float(aurocs["Bright"]) > 0.95
    assert 0.3 < float(aurocs["Lot"]) < 0.7
    assert float(aurocs["mean"]) == pytest.approx(
        (float(aurocs["Bright"]) + float(aurocs["Lot"])) / 2, abs=0.001
    )


def test_weights_that_cannot_be_loaded_are_one_sentence(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = linear_probe.main(["--weights=no/such.pth", f"--data_root={root}", "--image_size=64"])
    assert code == USER_ERROR
    assert capsys.readouterr().err.strip() == (
        "--config.model.pretrained=no/such.pth: there is no such file"
    )
