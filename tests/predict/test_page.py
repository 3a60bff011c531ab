"""The pictures, the pages and the overview of a prediction show its own numbers, places and names, and load nothing."""

from __future__ import annotations

import base64
import csv
import dataclasses
import hashlib
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from xml.etree.ElementTree import Element, TreeBuilder

import numpy as np
import pytest
from PIL import Image

from kacl_jax.fusion.shares import Explanation, FeatureShare
from kacl_jax.predict import overlay, page
from kacl_jax.predict.inputs import Failed
from kacl_jax.predict.prediction import Prediction
from kacl_jax.report.features import OutlyingFeature
from kacl_jax.runtime.errors import UserError
from kacl_jax.step.regions import RegionRule

EVIL = "ward 7/\"><script>alert('x')</script><b>&amp; 50% #3?.png"
FINDINGS = ("Mass", "Pleural_Thickening", "Hernia")
RULE = RegionRule(source="cam", truth_boxes=False, relu=True, threshold=0.5, size=56, seed=0)
WHITE = np.array([255, 255, 255])


def prediction(name: str = "a.png", **changes: Any) -> Prediction:
    """Mass is positive, Pleural_Thickening is below its threshold, Hernia has none. Each map has one hot cell."""
    pixels = np.zeros((300, 200), np.uint8)
    maps = np.zeros((3, 7, 7), np.float32)
    maps[0, 1, 4] = maps[1, 5, 1] = maps[2, 3, 3] = 1
    made = Prediction(
        name=name,
        notes=(),
        pixels=pixels,
        network_pixels=np.zeros((56, 56), np.uint8),
        findings=FINDINGS,
        scores={"Mass": 0.456, "Pleural_Thickening": 0.222, "Hernia": 0.111},
        probabilities={"Mass": 0.325, "Pleural_Thickening": 0.05, "Hernia": 0.017},
        thresholds={"Mass": 0.1, "Pleural_Thickening": 0.2, "Hernia": math.nan},
        positive={"Mass": True, "Pleural_Thickening": False, "Hernia": False},
        calibrated={"Mass": True, "Pleural_Thickening": True, "Hernia": False},
        maps=maps,
        embedding=np.zeros(4, np.float32),
        distance=31.5,
        limit=40.0,
        unfamiliar=False,
        rule=RULE,
        bin_width=10.0,
    )
    return dataclasses.replace(made, **changes)


class _Tree(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.builder = TreeBuilder()
        self.feed(text)
        self.root = self.builder.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.builder.start(tag, {key: value or "" for key, value in attrs})
        if tag in ("meta", "br", "wbr", "input"):
            self.builder.end(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.builder.start(tag, {key: value or "" for key, value in attrs})
        self.builder.end(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.builder.end(tag).tag == tag

    def handle_data(self, data: str) -> None:
        self.builder.data(data)


def tree(path: Path) -> Element:
    """The elements of an HTML file; every tag must be closed by its own end tag."""
    return _Tree(path.read_text(encoding="utf-8")).root


def text(element: Element) -> str:
    return " ".join("".join(element.itertext()).split())


def of_class(element: Element, name: str) -> list[Element]:
    return [e for e in element.iter() if name in e.get("class", "").split()]


def write(
    folder: Path,
    *predictions: Prediction | Failed,
    number: int = 1,
    pages: int | None = None,
    outlying: Mapping[str, Mapping[str, Sequence[OutlyingFeature]]] | None = None,
) -> Element:
    path = folder / page.page_name(number)
    page.write_page(
        path, predictions, number=number, run="runs/x<y", outlying=outlying or {}, pages=pages
    )
    return tree(path)


def write_csv(folder: Path, rows: Sequence[Prediction | Failed]) -> None:
    header = ["image", "page", "status", "reason", "unfamiliar", "distance"]
    kinds = ("probability", "score", "threshold", "positive")
    with (folder / "findings.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(header + [f"{kind}_{finding}" for finding in FINDINGS for kind in kinds])
        for place, row in enumerate(rows):
            number = 1 + place // page.IMAGES_PER_PAGE
            if isinstance(row, Failed):
                table.writerow([row.name, number, "failed", row.reason, "", ""] + 12 * [""])
                continue
            cells = [row.name, number, "ok", "", row.unfamiliar, row.distance]
            for f in FINDINGS:
                threshold = "" if math.isnan(row.thresholds[f]) else row.thresholds[f]
                cells += [row.probabilities[f], row.scores[f], threshold, row.positive[f]]
            table.writerow(cells)


def index(folder: Path, rows: Sequence[Prediction | Failed], pages: int = 1) -> Element:
    write_csv(folder, rows)
    page.write_index(folder, run="runs/x<y", facts=[("step", "<12>")], pages=pages)
    return tree(folder / "index.html")


@pytest.mark.parametrize(
    ("shape", "drawn"),
    [((300, 200), (300, 200)), ((2500, 2000), (1024, 819)), ((512, 4096), (128, 1024))],
)
def test_a_picture_keeps_the_aspect_ratio_and_is_never_enlarged(
    shape: tuple[int, int], drawn: tuple[int, int]
) -> None:
    image = overlay.draw(prediction(pixels=np.full(shape, 9, np.uint8)), "Mass")
    assert (image.height, image.width) == drawn
    assert image.mode == "RGB"


@pytest.mark.parametrize("shape", [(300, 200), (2500, 2000)])
@pytest.mark.parametrize("finding", FINDINGS)
def test_the_box_is_drawn_where_the_prediction_has_it(shape: tuple[int, int], finding: str) -> None:
    made = prediction(pixels=np.zeros(shape, np.uint8))
    drawn = np.asarray(made.show(finding))
    scale = drawn.shape[0] / shape[0]
    box = made.boxes[finding]
    ys, xs = np.nonzero((drawn == WHITE).all(2))
    found = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    assert found == pytest.approx(
        [v * scale for v in (box.x, box.y, box.x + box.w, box.y + box.h)], abs=2
    )


def test_the_heat_is_where_the_map_is_hot_and_the_rest_stays_the_x_ray() -> None:
    made = prediction(pixels=np.full((350, 700), 90, np.uint8))
    drawn = np.asarray(overlay.draw(made, "Pleural_Thickening")).astype(int)
    # The hot cell is row 5 and column 1 of 7 × 7: its middle is (150, 275).
    red, green, blue = drawn[275, 150]
    assert red > blue + 40
    assert green > blue + 40
    assert (drawn[50:150, 300:600] == 90).all()
    flat = np.asarray(overlay.draw(dataclasses.replace(made, maps=made.maps * 0), "Mass"))
    assert (flat[30:-30, 30:-30] == 90).all()


def test_a_finding_that_the_network_does_not_know_cannot_be_drawn() -> None:
    with pytest.raises(KeyError, match="Mass, Pleural_Thickening, Hernia"):
        overlay.draw(prediction(), "Gout")


def test_a_card_shows_every_number(tmp_path: Path) -> None:
    (card,) = of_class(write(tmp_path, prediction()), "image")
    (table,) = of_class(card, "findings")
    rows = {text(row[0]): [text(cell) for cell in row[2:]] for row in table.find("tbody") or ()}
    assert rows == {
        "Mass positive": ["0.325", "0.100", "0.456"],
        "Pleural Thickening": ["0.050", "0.200", "0.222"],
        "Hernia": ["0.017 raw", "none", "0.111"],
    }
    (positive,) = of_class(table, "positive")
    assert text(positive[0]) == "Mass positive"
    (over,), (under,) = of_class(table, "over"), of_class(table, "under")
    assert [float(bar.get("width", "")) for bar in (over, under)] == [62.5, 12.5]
    assert "The finding is never positive" in text(card)


def test_a_bar_reaches_the_middle_at_the_threshold() -> None:
    assert page.bar(0.2, 0.2) == 50
    assert page.bar(0.19999, 0.2) == pytest.approx(50, abs=0.01)
    assert [page.bar(value, 0.2) for value in (0.0, 0.1, 0.6, 1.0)] == pytest.approx(
        [0, 25, 75, 100]
    )
    assert page.bar(1.0, 1.0) == 100
    assert page.bar(0.0, 0.0) == 50
    assert page.bar(0.3, math.nan) is None


def test_the_x_ray_is_embedded_once_and_keeps_its_aspect_ratio(tmp_path: Path) -> None:
    pixels = np.tile(np.linspace(0, 255, 1600).astype(np.uint8), (800, 1))
    both = {"Mass": True, "Pleural_Thickening": True, "Hernia": False}
    made = prediction(pixels=pixels, positive=both)
    (card,) = of_class(write(tmp_path, made), "image")
    pictures = of_class(card, "xray")
    assert [picture.get("viewbox") for picture in pictures] == 3 * ["0 0 1600 800"]
    links = [image.get("href", "") for image in card.iter("image")]
    (jpeg,) = [link for link in links if link.startswith("data:image/jpeg;base64,")]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(jpeg.split(",")[1]))))
    assert shown.shape == (384, 768)
    assert abs(shown[200].astype(int) - np.linspace(0, 255, 768)).max() < 6
    assert sum(link.startswith("data:image/png") for link in links) == 2
    ids = [image.get("id") for image in card.iter("image") if image.get("id")]
    assert [use.get("href") for use in card.iter("use")] == 2 * [f"#{ids[0]}"]


def test_regions_and_boxes_of_a_card_are_in_pixels_of_the_image(tmp_path: Path) -> None:
    made = prediction()
    (card,) = of_class(write(tmp_path, made), "image")
    (drawn,) = of_class(card, "predicted")
    box = made.boxes["Mass"]
    assert [float(drawn.get(key, "")) for key in ("x", "y", "width", "height")] == pytest.approx(
        box, abs=0.06
    )
    (region,) = of_class(card, "region")
    points = np.array(re.findall(r"[\d.]+", region.get("d", "")), float).reshape(-1, 2)
    around = [*points.min(0), *points.max(0)]
    pixel = 300 / RULE.size
    assert around == pytest.approx([box.x, box.y, box.x + box.w, box.y + box.h], abs=pixel)
    size = f"({box.x:.0f}, {box.y:.0f}), {box.w:.0f} × {box.h:.0f} pixels"
    assert size in text(card)


def test_without_a_positive_finding_the_highest_one_is_shown_as_that(tmp_path: Path) -> None:
    nothing = dict.fromkeys(FINDINGS, False)
    cards = of_class(write(tmp_path, prediction(), prediction("b.png", positive=nothing)), "image")
    assert ["No finding is positive" in text(card) for card in cards] == [False, True]
    assert "Mass 0.325, not positive" in text(cards[1])
    assert not of_class(cards[1], "pill")


def test_a_map_without_a_place_says_so(tmp_path: Path) -> None:
    flat = prediction("flat.png", maps=np.zeros((3, 7, 7), np.float32))
    cards = of_class(write(tmp_path, prediction(), flat), "image")
    assert ["marks no place" in text(card) for card in cards] == [False, True]


def test_what_a_reader_must_know_stands_over_the_findings(tmp_path: Path) -> None:
    made = [
        prediction("plain.png"),
        prediction("knee.png", unfamiliar=True, distance=812.25),
        prediction("seen.png", notes=("this image was in the training set", "no window <named>")),
        Failed("broken.dcm", "it is <truncated> & short"),
    ]
    plain, knee, seen, broken = of_class(write(tmp_path, *made), "image")
    assert not of_class(plain, "alarm") + of_class(plain, "warn")
    (alarm,) = of_class(knee, "alarm")
    assert "Not like the training images: the findings below say little" in text(alarm)
    assert "812.2" in text(alarm)
    assert [text(note) for note in of_class(seen, "warn")] == [
        "This image was in the training set.",
        "No window <named>.",
    ]
    assert text(broken) == "broken.dcm No prediction: it is <truncated> & short."
    assert not list(broken.iter("svg"))


def test_unusual_radiomic_features_are_in_plain_words(tmp_path: Path) -> None:
    features = [
        OutlyingFeature("original_glcm_ClusterProminence", 10.0, 123456.7),
        OutlyingFeature("original_shape2D_Elongation", -3.24, 0.312),
    ]
    root = write(
        tmp_path, prediction(), prediction("b.png"), outlying={"a.png": {"Mass": features}}
    )
    with_features, without = of_class(root, "image")
    assert not of_class(without, "features")
    (table,) = of_class(with_features, "features")
    assert [[text(cell) for cell in row] for row in table.find("tbody") or ()] == [
        ["ClusterProminencegrey values of neighbours", "", "≥ 10 above", "123,457"],
        ["Elongationshape", "", "3.2 below", "0.312"],
    ]


@pytest.mark.parametrize("name", [EVIL, "Müller 1.png", "a\nb.png", "bad\udcff.png", "x:0"])
def test_a_name_is_text_and_its_link_leads_to_its_card(tmp_path: Path, name: str) -> None:
    rows = [prediction("first.png"), prediction(name), Failed(name + "2", "why")]
    root = write(tmp_path, *rows)
    cards = of_class(root, "image")
    shown = name.replace("\udcff", "�")
    assert text(cards[1]).startswith(" ".join(shown.split()))
    assert not list(root.iter("script")) + [b for b in root.iter("b") if "50%" in text(b)]
    csv_rows = [prediction("first.png"), prediction(shown), Failed(shown + "2", "why")]
    overview = index(tmp_path, csv_rows)
    links = [
        urlsplit(a.get("href", "")) for a in overview.iter("a") if a.get("href") != "findings.csv"
    ]
    links = [link for link in links if link.fragment]
    assert [link.fragment for link in links] == [card.get("id") for card in cards]
    assert {link.path for link in links} == {"pages/0001.html"}
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    assert len(set(ids)) == len(ids)
    assert len(list(overview.iter("script"))) == 2


def test_pages_and_overview_load_nothing_from_elsewhere(tmp_path: Path) -> None:
    write(tmp_path, prediction(EVIL))
    index(tmp_path, [prediction(EVIL)])
    for path in (tmp_path / "0001.html", tmp_path / "index.html"):
        root = tree(path)
        sources = [e.get(key, "") for e in root.iter() for key in ("src", "href", "srcset")]
        assert not [source for source in sources if re.match(r"[a-z]*:?//", source)]
        assert not list(root.iter("link"))
        assert "url(" not in path.read_text()
        assert "default-src 'none'" in path.read_text()
        assert "Nothing here is a medical device" in text(root)
        assert "validation part" in text(root)


def test_pages_are_linked_in_a_row(tmp_path: Path) -> None:
    def links(number: int, pages: int | None) -> list[str | None]:
        (nav,) = write(tmp_path, prediction(), number=number, pages=pages).iter("nav")
        return [a.get("href") for a in nav.iter("a")]

    assert links(1, 3) == ["../index.html", "0002.html"]
    assert links(2, 3) == ["../index.html", "0001.html", "0003.html"]
    assert links(3, 3) == links(3, None) == ["../index.html", "0002.html"]


def test_the_overview_counts_and_marks(tmp_path: Path) -> None:
    nothing = dict.fromkeys(FINDINGS, False)
    rows = [
        prediction("a.png"),
        prediction("b.png", positive=nothing),
        prediction("c.png", unfamiliar=True),
        Failed("d.dcm", "why <not>"),
    ]
    root = index(tmp_path, rows)
    cards = {text(card[0]): text(card[1]) for card in of_class(root, "card")}
    assert cards == {
        "images": "4",
        "without a positive finding": "1",
        "not like the training images": "1",
        "without a prediction": "1",
    }
    positive, images = root.iter("table")
    assert [[text(cell) for cell in row] for row in positive.find("tbody") or ()] == [
        ["Mass", "", "2 of 3"],
        ["Pleural Thickening", "", "0 of 3"],
        ["Hernia", "", "0 of 3"],
    ]
    assert [[text(cell) for cell in row] for row in images.find("tbody") or ()] == [
        ["a.png", "0.325", "0.050", "0.017"],
        ["b.png", "0.325", "0.050", "0.017"],
        ["c.png not like the training images", "0.325", "0.050", "0.017"],
        ["d.dcm why <not>", "–", "–", "–"],
    ]
    marked = [text(row[0]) for row in images.find("tbody") or () if of_class(row, "positive")]
    assert marked == ["a.png", "c.png not like the training images"]
    assert "step <12>" in text(root)


def test_a_large_folder_has_a_short_table_and_all_rows_for_the_script(tmp_path: Path) -> None:
    rows = [prediction(f"{i}</script>.png") for i in range(page.TABLE_ROWS + 7)]
    root = index(tmp_path, rows, pages=6)
    body = list(root.iter("tbody"))[1]
    assert len(body) == page.TABLE_ROWS
    assert f"after the first {page.TABLE_ROWS} of {len(rows)} images" in text(root)
    data, script = root.iter("script")
    content = json.loads(data.text or "")
    assert [row[0] for row in content["rows"]] == [row.name for row in rows]
    assert content["rows"][-1] == [rows[-1].name, "6", "", False, [0.325, 0.05, 0.017], [0]]
    digest = base64.b64encode(hashlib.sha256((script.text or "").encode()).digest()).decode()
    (policy,) = [m.get("content", "") for m in root.iter("meta") if m.get("http-equiv")]
    assert policy.endswith(f"script-src 'sha256-{digest}'")


def test_an_overview_of_no_rows_and_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    assert "0 of 0" in text(index(tmp_path, [], pages=0))
    with pytest.raises(UserError, match=r"0001\.html cannot be written"):
        write(tmp_path / "gone", prediction())


@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_what_moved_a_fused_score_stands_beside_its_cells(tmp_path: Path, weight: float) -> None:
    """Where validation chose the weight 0 nothing moves, and no cells are drawn."""
    cells = weight * np.array([[0.02, -0.31], [np.nan, 0.0]])
    shares = [("original_glcm_Contrast", -0.004), ("original_firstorder_Mean", 0.012)]
    features = tuple(FeatureShare(0, 1, name, 1.5, weight * share) for name, share in shares)
    moved = {"radiomics": weight * 0.3, "image": weight * -0.2}
    told = Explanation(0.0, weight * 0.1, moved, cells, features)
    shown = write(tmp_path, prediction(explanations={"Mass": told}))
    drawn = of_class(shown, "cell")
    assert [len(of_class(shown, style)) for style in ("cell", "missing")] == [4 * weight, weight]
    if weight:
        assert text(drawn[2]) == "not measured"
        assert float(drawn[1].get("fill-opacity", "")) == 0.75
    (why,) = [text(e) for e in shown.iter("details") if "what moved its score" in text(e)]
    fused = f"{1 / (1 + math.exp(-weight * 0.1)):.3f}"
    assert f"raw score is 0.500, the fused one {fused}" in why
    for words in ("−0.31", "+0.30", "−0.20", "−0.004", "+0.012", "row 1, column 2"):
        assert (words in why + "".join(map(text, drawn))) == bool(weight or "row" in words)
