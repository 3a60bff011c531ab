"""What a person looks at after a prediction: pages with a card per image, and an overview of all images.

Each page is one HTML file that loads no other file. The overview is made from findings.csv alone.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import cv2
import numpy as np
from markupsafe import Markup
from scipy.special import expit

from kacl_jax.fusion.scores import IMAGE, RADIOMICS
from kacl_jax.predict.inputs import Failed
from kacl_jax.predict.prediction import Prediction
from kacl_jax.report import cells, charts, pictures
from kacl_jax.report.features import OutlyingFeature
from kacl_jax.report.page import render
from kacl_jax.runtime import files
from kacl_jax.step.scaling import Z_CLIP

IMAGES_PER_PAGE = 50
TABLE_ROWS = 250  # of the overview's table that are visible at once
_PICTURE_SIDE = 768  # px of the longer side of an embedded X-ray
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 85]
_FIX = "free some disk space and run the same command again"
_FAMILIES = {
    "firstorder": "grey values",
    "shape2D": "shape",
    "glcm": "grey values of neighbours",
    "gldm": "likeness of neighbours",
    "glrlm": "runs of one grey value",
    "glszm": "zones of one grey value",
    "ngtdm": "contrast to neighbours",
}


_SOURCES = {RADIOMICS: "radiomics of the grid", IMAGE: "starting image features"}


class Row(NamedTuple):
    """One image in findings.csv.

    page: of its card. reason: why it failed, or empty. unfamiliar: whether it is not like the training images.
    probabilities: of each finding; None if the image failed. positive: places of the positive findings.
    """

    image: str
    page: str
    reason: str
    unfamiliar: bool
    probabilities: list[float | None]
    positive: list[int]


def write_page(
    path: Path,
    predictions: Sequence[Prediction | Failed],
    *,
    number: int,
    run: str,
    outlying: Mapping[str, Mapping[str, Sequence[OutlyingFeature]]],
    pages: int | None = None,
) -> None:
    """Write one page, with a card per image.

    Args:
      number: of the page, from 1; the file is called by `page_name`.
      run: the network's name.
      outlying: image → finding → the most unusual radiomic features of its region.
      pages: how many pages there will be; by default the page has no link to a next one.

    Raises:
      UserError: the page cannot be written.
    """
    content = {
        "cards": [
            _failed_card(image)
            if isinstance(image, Failed)
            else _card(image, f"x:{place}", outlying.get(image.name, {}))
            for place, image in enumerate(predictions)
        ],
        "number": number,
        "pages": pages,
        "run": run,
        "page_name": page_name,
    }
    files.write_text(
        path, render("predictions.html", content, package="kacl_jax.predict"), fix=_FIX
    )


def page_name(number: int) -> str:
    return f"{number:04d}.html"


def write_index(out: Path, *, run: str, facts: Sequence[tuple[str, str]], pages: int) -> None:
    """Write index.html, the overview of all images in findings.csv.

    The table holds the first `TABLE_ROWS` images. With JavaScript it shows all, a screenful at a time, and can be
    sorted and filtered.

    Args:
      out: the folder of findings.csv. run: the network's name. facts: (name, value), on where the numbers come from.
      pages: how many pages have been written.

    Raises:
      UserError: index.html cannot be written.
    """
    findings, rows = read_rows(out / "findings.csv")
    predicted = sum(not row.reason for row in rows)
    positive = np.bincount(
        [place for row in rows for place in row.positive], minlength=len(findings)
    )
    script = _template_text("overview.js")
    content = {
        "run": run,
        "facts": facts,
        "findings": findings,
        "rows": rows[:TABLE_ROWS],
        "n_rows": len(rows),
        "n_failed": len(rows) - predicted,
        "n_predicted": predicted,
        "n_unfamiliar": sum(row.unfamiliar for row in rows),
        "n_without": sum(not row.reason and not row.positive for row in rows),
        "positive": [
            (finding, n, charts.share_bar(n / max(predicted, 1), f"{n} of {predicted}"))
            for finding, n in zip(findings, positive.tolist(), strict=True)
        ],
        "pages": pages,
        "page_name": page_name,
        "anchor": anchor,
        "probability": probability,
        "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "table": _json_in_html({"findings": findings, "rows": rows, "visible": TABLE_ROWS}),
    }
    files.write_text(
        out / "index.html", render("overview.html", content, package="kacl_jax.predict"), fix=_FIX
    )


def read_rows(path: Path) -> tuple[list[str], list[Row]]:
    """The findings and the images of findings.csv."""
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        reader = csv.reader(file)
        header = next(reader)
        at = {name: place for place, name in enumerate(header)}
        findings = [n.removeprefix("probability_") for n in header if n.startswith("probability_")]
        probability_at = [at[f"probability_{finding}"] for finding in findings]
        positive_at = [at[f"positive_{finding}"] for finding in findings]
        rows = [
            Row(
                cells[at["image"]],
                cells[at["page"]],
                (cells[at["reason"]] or "failed") if cells[at["status"]] == "failed" else "",
                cells[at["unfamiliar"]] == "True",
                [round(float(cells[i]), 4) if cells[i] else None for i in probability_at],
                [place for place, i in enumerate(positive_at) if cells[i] == "True"],
            )
            for cells in reader
        ]
    return findings, rows


def anchor(image: str) -> str:
    """The id of an image's card, as encodeURIComponent writes the name: it has no ':', as all other ids have."""
    return quote(image, safe="!*'()")


def probability(value: float | None) -> str:
    """0.312; – for None and NaN."""
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"


def bar(value: float, threshold: float) -> float | None:
    """Length of a probability's bar in per cent: 50 at the threshold, linear on either side; None without threshold.

    Most findings are rare, so that bars from 0 to 1 would all be too short to compare with their thresholds.
    """
    if math.isnan(threshold):
        return None
    if value < threshold:
        return 50 * value / threshold
    return 100.0 if threshold >= 1 else 50 + 50 * (value - threshold) / (1 - threshold)


def _failed_card(image: Failed) -> dict[str, Any]:
    name = _printable(image.name)
    return {"name": name, "anchor": anchor(name), "reason": image.reason}


def _card(
    prediction: Prediction, key: str, outlying: Mapping[str, Sequence[OutlyingFeature]]
) -> dict[str, Any]:
    height, width = prediction.pixels.shape
    name = _printable(prediction.name)
    return {
        "name": name,
        "anchor": anchor(name),
        "reason": "",
        "key": key,
        "width": width,
        "height": height,
        "xray": pictures.data_uri(_picture(prediction.pixels), ".jpg", _JPEG),
        "unfamiliar": prediction.unfamiliar,
        "distance": prediction.distance,
        "limit": prediction.limit,
        "notes": prediction.notes,
        "any_positive": any(prediction.positive.values()),
        "regions": [
            _region(prediction, finding, outlying.get(finding, ()))
            for finding in prediction.shown_findings
        ],
        "rows": [
            {
                "finding": finding,
                "probability": probability(prediction.probabilities[finding])
                + ("" if prediction.calibrated[finding] else " raw"),
                "threshold": probability(prediction.thresholds[finding]),
                "score": probability(prediction.scores[finding]),
                "positive": prediction.positive[finding],
                "bar": bar(prediction.probabilities[finding], prediction.thresholds[finding]),
            }
            for finding in prediction.findings
        ],
    }


def _region(
    prediction: Prediction, finding: str, outlying: Sequence[OutlyingFeature]
) -> dict[str, Any]:
    """What is drawn over the X-ray for one finding, in pixels of the image, and the region's unusual features."""
    height, width = prediction.pixels.shape
    mask, is_whole_image = prediction.region(finding)
    heat = pictures.heat(
        prediction.maps[prediction.findings.index(finding)], relu=prediction.rule.relu
    )
    return {
        "finding": finding,
        "positive": prediction.positive[finding],
        "probability": probability(prediction.probabilities[finding]),
        "heat": pictures.data_uri(heat, ".png", []),
        "outline": pictures.outline(mask, (width, height)),
        "box": prediction.box(finding),
        "is_whole_image": is_whole_image,
        "features": [_feature(feature) for feature in outlying],
        "why": _why(prediction, finding),
    }


def _why(prediction: Prediction, finding: str) -> dict[str, Any] | None:
    """What moved the fused score of a finding; None without fusion. Cells over the X-ray if one of them moved it."""
    if finding not in prediction.explanations:
        return None
    told = prediction.explanations[finding]
    height, width = prediction.pixels.shape
    largest = max((abs(share.share) for share in told.features), default=0.0) or 1.0
    return {
        "network": probability(float(expit(told.network_logit))),
        "fused": probability(float(expit(told.fused_logit))),
        "moved": [(_SOURCES[source], _signed(logit)) for source, logit in told.moved.items()],
        "cells": cells.over_image(told.cells, width, height)
        if np.nansum(abs(told.cells))
        else None,
        "features": [
            {
                **_named(share.name),
                "place": f"row {share.row + 1}, column {share.column + 1}",
                "z": _signed(share.z),
                "share": _signed(share.share, 3),
                "bar": charts.signed_bar(share.share, largest, _signed(share.share, 3)),
            }
            for share in told.features
        ],
    }


def _signed(value: float, digits: int = 2) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _feature(feature: OutlyingFeature) -> dict[str, Any]:
    size = f"{abs(feature.z):.1f}" if abs(feature.z) < Z_CLIP else f"≥ {Z_CLIP:g}"
    distance = f"{size} {'above' if feature.z > 0 else 'below'}"
    return {
        **_named(feature.name),
        "distance": distance,
        "value": feature.value,
        "bar": charts.signed_bar(feature.z, Z_CLIP / 2, distance),
    }


def _named(feature: str) -> dict[str, str]:
    _, family, name = feature.split("_")  # original_glcm_Contrast
    return {"feature": name, "family": _FAMILIES.get(family, family)}


def _picture(pixels: np.ndarray) -> np.ndarray:
    """The image with a longer side of at most `_PICTURE_SIDE` px: uint8 [h w]."""
    height, width = pixels.shape
    scale = min(1.0, _PICTURE_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def _printable(name: str) -> str:
    """A name whose bytes are no UTF-8 can stand in a page, with � for such a byte."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _json_in_html(content: Any) -> Markup:
    """JSON that no HTML parser takes for a tag."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))


def _template_text(name: str) -> str:
    folder = resources.files("kacl_jax.predict") / "templates"
    return (folder / name).read_text(encoding="utf-8")
