"""The sections of a run's page that need its images: the gallery, the discriminating features, single images."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from kacl_jax.data.records import Records
from kacl_jax.evaluation.localization import PredictedBoxes
from kacl_jax.evaluation.number_format import interval, short
from kacl_jax.evaluation.outputs import Outputs
from kacl_jax.radiomics.extraction import FEW_LEVELS, extract
from kacl_jax.report import cases, charts, features, pictures
from kacl_jax.report.features import Moments
from kacl_jax.step.regions import RegionRule
from kacl_jax.step.scaling import Z_CLIP

_IMAGES_AT_ONCE = 32  # the masks of so many images' regions are in memory together
_REFERENCE = {
    "cam": "the training regions: CAM regions, and truth boxes where a training image had one",
    "random": "the training regions, which were random rectangles in this run",
    "whole": "the training regions: whole images, and truth boxes where a training image had one",
}

_SAMPLE_REFERENCE = "all regions of the test sample, because this run trained without radiomics"


@dataclass(frozen=True, eq=False)
class ReportInputs:
    """The last evaluation of a run, and how its maps become regions.

    outputs: of the test images, with maps. located: the boxes from these maps. rule: of the run's regions.
    moments: of the training regions' features; None where the run has none.
    bin_width, backend: as in `radiomics.extract`.
    max_images: of so many test images the regions are measured; 0: of none.
    resamples: of patients, for intervals.
    """

    records: Records
    outputs: Outputs
    located: PredictedBoxes
    rule: RegionRule
    moments: Moments | None
    bin_width: float
    backend: Literal["pyradiomics", "jax"]
    max_images: int
    resamples: int
    _row_of_image: dict[int, int] = field(init=False)

    def __post_init__(self) -> None:
        rows = {int(image): row for row, image in enumerate(self.outputs.image_id)}
        object.__setattr__(self, "_row_of_image", rows)

    @property
    def findings(self) -> tuple[str, ...]:
        return self.records.findings

    def cam(self, image: int, finding: int) -> np.ndarray:
        """The map of a finding: float [u v]."""
        return np.asarray(self.outputs.class_maps()[self._row_of_image[image], finding])

    def region(self, image: int, finding: int) -> np.ndarray:
        """The region of a finding that radiomics measures, by the run's own rule: bool [h w]."""
        return self.rule.region(self.cam(image, finding))[0]

    def pixels(self, image: int, size: int) -> np.ndarray:
        """The image: uint8 [size size]."""
        return self.records.images.read(image, size)


def gallery_sections(inputs: ReportInputs) -> list[dict[str, Any]]:
    """For each finding with scored truth boxes: the best, the median and the worst predicted box."""
    located = inputs.located
    names = inputs.records.names[located.image_id]
    cases_of_finding = cases.best_median_worst(
        located.largest_iou, located.finding, names, len(inputs.findings)
    )
    sections = []
    for c, finding_cases in enumerate(cases_of_finding):
        if finding_cases:
            n = int((located.finding[located.truth_pair] == c).sum())
            cards = [_card(inputs, case, f"g{c}-{i}") for i, case in enumerate(finding_cases)]
            sections.append({"finding": inputs.findings[c], "boxes": n, "cards": cards})
    return sections


def _card(inputs: ReportInputs, case: cases.Case, key: str) -> dict[str, Any]:
    """One pair of an image and a finding: its picture and the text below it."""
    located, records = inputs.located, inputs.records
    image, finding = int(located.image_id[case.row]), int(located.finding[case.row])
    truth = located.truth_pair == case.row
    name = str(records.names[image])
    picture = pictures.panels(
        inputs.pixels(image, pictures.SIDE),
        inputs.cam(image, finding),
        inputs.region(image, finding),
        relu=inputs.rule.relu,
        predicted=located.box[case.row],
        truth=located.truth[truth],
        key=key,
        alt=f"{inputs.findings[finding]}, {case.kind}, {name}",
    )
    return {
        "key": key,
        "kind": case.kind,
        "image": name,
        "ious": located.iou[truth].tolist(),
        "probability": float(located.score[case.row]),
        "labels": [
            f for f, label in zip(inputs.findings, records.labels[image], strict=True) if label > 0
        ],
        "is_whole_image": bool(located.fallback[case.row]),
        "picture": picture,
        "pair": (image, finding),
    }


def interpretation_section(inputs: ReportInputs) -> dict[str, Any]:
    """The discriminating features of each finding, and a few images with the outlying features of their regions.

    Measures the region of every finding in a sample of the test images; measures nothing if `max_images` is 0.
    """
    c = len(inputs.findings)
    examples: list[dict[str, Any]] = [
        {"finding": inputs.findings[f], "cards": cards}
        for f, cards in enumerate(_example_cards(inputs))
    ]
    cards = [card for part in examples for card in part["cards"]]
    ids = features.sample_images(inputs.outputs.image_id, inputs.max_images)
    if not len(ids):
        for card in cards:
            card["features"] = []
        return {"images": 0, "discriminating": [], "examples": examples}
    pairs = {(int(image), f) for image in ids for f in range(c)} | {card["pair"] for card in cards}
    features_of_pair, reasons = _measure_regions(inputs, sorted(pairs))
    sampled = np.array([[features_of_pair[int(image), f] for f in range(c)] for image in ids])
    reference = inputs.moments or features.feature_moments(sampled.reshape(len(ids) * c, -1))
    for card in cards:
        card["features"] = _outlying_rows(features_of_pair[card["pair"]], reference)
    return {
        "images": len(ids),
        "n_test_images": len(inputs.outputs.image_id),
        "regions": len(features_of_pair),
        "undefined": int(sum(np.isnan(row).sum() for row in features_of_pair.values())),
        "reasons": reasons,
        "reference": _REFERENCE[inputs.rule.source] if inputs.moments else _SAMPLE_REFERENCE,
        "discriminating": [_discriminating_table(inputs, ids, sampled[:, f], f) for f in range(c)],
        "examples": examples,
    }


def _example_cards(inputs: ReportInputs) -> list[list[dict[str, Any]]]:
    located = inputs.located
    labels = inputs.records.labels[located.image_id, located.finding]
    predicted = located.predicted & (labels >= 0)
    cases_of_finding = cases.surest_predictions(
        located.score, predicted, labels == 1, located.finding, len(inputs.findings)
    )
    return [
        [_card(inputs, case, f"e{c}-{i}") for i, case in enumerate(finding_cases)]
        for c, finding_cases in enumerate(cases_of_finding)
    ]


def _measure_regions(
    inputs: ReportInputs, pairs: Sequence[tuple[int, int]]
) -> tuple[dict[tuple[int, int], np.ndarray], dict[str, int]]:
    """Features float [f] of each region, NaN where undefined; and why regions have no features: reason → how many."""
    features_of_pair: dict[tuple[int, int], np.ndarray] = {}
    reasons: dict[str, int] = {}
    bar = tqdm(desc="Measuring regions for report.html", total=len(pairs), disable=None, delay=2)
    for chunk in _chunks(pairs, _IMAGES_AT_ONCE * len(inputs.findings)):
        pixels = {image: inputs.pixels(image, inputs.rule.size) for image in {i for i, _ in chunk}}
        with warnings.catch_warnings():
            # The grey values have the run's own scale, so a flat region is no mistake.
            warnings.filterwarnings("ignore", f".*{FEW_LEVELS}")
            extracted = extract(
                [pixels[image] for image, _ in chunk],
                [inputs.region(*pair) for pair in chunk],
                backend=inputs.backend,
                bin_width=inputs.bin_width,
            )
        features_of_pair |= dict(zip(chunk, extracted.features, strict=True))
        for reason, ready in zip(extracted.reasons, extracted.ready, strict=True):
            if not ready:
                reasons[reason] = reasons.get(reason, 0) + 1
        bar.update(len(chunk))
    bar.close()
    return features_of_pair, dict(sorted(reasons.items()))


def _chunks(pairs: Sequence[tuple[int, int]], size: int) -> Iterator[Sequence[tuple[int, int]]]:
    for start in range(0, len(pairs), size):
        yield pairs[start : start + size]


def _outlying_rows(row: np.ndarray, reference: Moments) -> list[dict[str, Any]]:
    return [
        {
            **_family_and_feature(feature.name),
            "z": feature.z,
            "value": feature.value,
            "bar": charts.signed_bar(feature.z, Z_CLIP / 2, f"z {feature.z:+.1f}"),
        }
        for feature in features.outlying_features(row, reference)
    ]


def _discriminating_table(
    inputs: ReportInputs, ids: np.ndarray, values: np.ndarray, finding: int
) -> dict[str, Any]:
    """The table of one finding. values: its regions' features, float [n f]."""
    known = inputs.records.labels[ids, finding] >= 0
    ids, values = ids[known], values[known]
    positive = inputs.records.labels[ids, finding] == 1
    chance = features.chance_level(values, positive)
    discriminating = features.discriminating_features(
        values, positive, inputs.records.patients[ids], resamples=inputs.resamples
    )
    rows = [
        {
            **_family_and_feature(feature.name),
            "auroc": feature.auroc,
            "ci95": feature.ci95,
            "left_out": feature.left_out,
            "beyond_chance": chance is not None and abs(feature.auroc - 0.5) > chance,
            "chart": charts.interval_chart(
                feature.auroc,
                feature.ci95,
                low=0,
                high=1,
                rule=0.5,
                floors=[]
                if chance is None
                else [(0.5 - chance, "chance"), (0.5 + chance, "chance")],
                alt=f"AUROC {short(feature.auroc)} {interval(feature.ci95)}".rstrip(),
            ),
        }
        for feature in discriminating
    ]
    return {
        "finding": inputs.findings[finding],
        "n_pos": int(positive.sum()),
        "n_neg": int((~positive).sum()),
        "chance": chance,
        "rows": rows,
    }


def _family_and_feature(name: str) -> dict[str, str]:
    _, family, feature = name.split("_")  # original_glcm_Contrast
    return {"family": family, "feature": feature}
