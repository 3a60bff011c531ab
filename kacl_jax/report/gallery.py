"""The sections of a run's page that show images: the gallery, the telling features, one image at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from kacl_jax.data import nih
from kacl_jax.evaluation.localization import Located
from kacl_jax.evaluation.number_format import interval, short
from kacl_jax.evaluation.outputs import Outputs
from kacl_jax.radiomics.extraction import extract
from kacl_jax.report import cases, charts, features, pictures
from kacl_jax.report.features import Moments
from kacl_jax.step.regions import RegionRule
from kacl_jax.step.scaling import Z_CLIP

_IMAGES_AT_ONCE = 32  # their regions' masks are in memory together
_AGAINST = {
    "cam": "the training regions: CAM regions, and truth boxes where a training image had one",
    "random": "the training regions, which were random rectangles in this run",
    "whole": "the training regions: whole images, and truth boxes where a training image had one",
}

_AGAINST_SAMPLE = (
    "all regions of the test sample, because this run trained without radiomics of its own"
)


@dataclass(frozen=True, eq=False)
class Shown:
    """The last evaluation of a run, and how its maps become regions.

    outputs: with maps, of the test part. located: of the same. rule: of the run's regions.
    moments: of the training regions' features; None where the run has none.
    bin_width, backend: as in `radiomics.extract`. most: images whose regions are measured; 0: none.
    resamples: of patients, for intervals.
    """

    records: nih.Records
    outputs: Outputs
    located: Located
    rule: RegionRule
    moments: Moments | None
    bin_width: float
    backend: Literal["pyradiomics", "jax"]
    most: int
    resamples: int
    _row: dict[int, int] = field(init=False)

    def __post_init__(self) -> None:
        rows = {int(image): row for row, image in enumerate(self.outputs.image_id)}
        object.__setattr__(self, "_row", rows)

    @property
    def findings(self) -> tuple[str, ...]:
        return self.records.findings

    def cam(self, image: int, finding: int) -> np.ndarray:
        """The map, float [u v]."""
        return np.asarray(self.outputs.class_maps()[self._row[image], finding])

    def region(self, image: int, finding: int) -> np.ndarray:
        """What radiomics measures there by the run's own rule: bool [h w]."""
        return self.rule.region(self.cam(image, finding))[0]

    def pixels(self, image: int, size: int) -> np.ndarray:
        """uint8 [size size]."""
        return self.records.images.read(image, size)


def gallery(run: Shown) -> list[dict[str, Any]]:
    """Per finding with a scored truth box: the best, the median and the worst one."""
    located = run.located
    names = run.records.names[located.image_id]
    chosen = cases.extremes(located.iou, located.finding, names, len(run.findings))
    shown = []
    for c, some in enumerate(chosen):
        if some:
            n = int(((located.finding == c) & np.isfinite(located.iou)).sum())
            cards = [_card(run, case, f"g{c}-{i}") for i, case in enumerate(some)]
            shown.append({"finding": run.findings[c], "boxes": n, "cards": cards})
    return shown


def _card(run: Shown, case: cases.Case, key: str) -> dict[str, Any]:
    """One pair of an image and a finding: its picture and what is said below it."""
    located, records = run.located, run.records
    image, finding = int(located.image_id[case.row]), int(located.finding[case.row])
    iou, score = float(located.iou[case.row]), float(located.score[case.row])
    scored = np.isfinite(iou)
    name = str(records.names[image])
    picture = pictures.panels(
        run.pixels(image, pictures.SIDE),
        run.cam(image, finding),
        run.region(image, finding),
        relu=run.rule.relu,
        predicted=located.box[case.row],
        truth=records.boxes[image, finding] if scored else None,
        key=key,
        alt=f"{run.findings[finding]}, {case.why}, {name}",
    )
    return {
        "key": key,
        "why": case.why,
        "image": name,
        "iou": iou if scored else None,
        "probability": score,
        "labels": [
            f for f, there in zip(run.findings, records.labels[image], strict=True) if there
        ],
        "whole": bool(located.fallback[case.row]),
        "picture": picture,
        "pair": (image, finding),
    }


def interpretation(run: Shown) -> dict[str, Any]:
    """The telling features of each finding, and for a few images what stands out in them.

    Measures every finding's region in a sample of the test images; nothing where `most` is 0.
    """
    c = len(run.findings)
    examples: list[dict[str, Any]] = [
        {"finding": run.findings[f], "cards": cards} for f, cards in enumerate(_examples(run))
    ]
    cards = [card for part in examples for card in part["cards"]]
    ids = features.sample(run.outputs.image_id, run.most)
    if not len(ids):
        for card in cards:
            card["features"] = []
        return {"images": 0, "telling": [], "examples": examples}
    pairs = {(int(image), f) for image in ids for f in range(c)} | {card["pair"] for card in cards}
    measured, reasons = _measure(run, sorted(pairs))
    of_sample = np.array([[measured[int(image), f] for f in range(c)] for image in ids])
    against = run.moments or features.moments(of_sample.reshape(len(ids) * c, -1))
    for card in cards:
        card["features"] = _standing_out(measured[card["pair"]], against)
    return {
        "images": len(ids),
        "of": len(run.outputs.image_id),
        "regions": len(measured),
        "undefined": int(sum(np.isnan(row).sum() for row in measured.values())),
        "reasons": reasons,
        "against": _AGAINST[run.rule.source] if run.moments else _AGAINST_SAMPLE,
        "telling": [_telling(run, ids, of_sample[:, f], f) for f in range(c)],
        "examples": examples,
    }


def _examples(run: Shown) -> list[list[dict[str, Any]]]:
    located = run.located
    positive = run.records.labels[located.image_id, located.finding] == 1
    chosen = cases.examples(
        located.score, located.predicted, positive, located.finding, len(run.findings)
    )
    return [
        [_card(run, case, f"e{c}-{i}") for i, case in enumerate(some)]
        for c, some in enumerate(chosen)
    ]


def _measure(
    run: Shown, pairs: Sequence[tuple[int, int]]
) -> tuple[dict[tuple[int, int], np.ndarray], dict[str, int]]:
    """Features float [f] of each region, NaN where undefined, and why regions have none: reason → how many."""
    measured: dict[tuple[int, int], np.ndarray] = {}
    reasons: dict[str, int] = {}
    bar = tqdm(desc="Measuring regions for report.html", total=len(pairs), disable=None, delay=2)
    for chunk in _chunks(pairs, _IMAGES_AT_ONCE * len(run.findings)):
        pixels = {image: run.pixels(image, run.rule.size) for image in {i for i, _ in chunk}}
        found = extract(
            [pixels[image] for image, _ in chunk],
            [run.region(*pair) for pair in chunk],
            backend=run.backend,
            bin_width=run.bin_width,
        )
        measured |= dict(zip(chunk, found.features, strict=True))
        for reason, ready in zip(found.reasons, found.ready, strict=True):
            if not ready:
                reasons[reason] = reasons.get(reason, 0) + 1
        bar.update(len(chunk))
    bar.close()
    return measured, dict(sorted(reasons.items()))


def _chunks(pairs: Sequence[tuple[int, int]], size: int) -> Iterator[Sequence[tuple[int, int]]]:
    for start in range(0, len(pairs), size):
        yield pairs[start : start + size]


def _standing_out(row: np.ndarray, against: Moments) -> list[dict[str, Any]]:
    return [
        {
            **_named(found.name),
            "z": found.z,
            "value": found.value,
            "bar": charts.diverging(found.z, Z_CLIP / 2, f"z {found.z:+.1f}"),
        }
        for found in features.standing_out(row, against)
    ]


def _telling(run: Shown, ids: np.ndarray, of_finding: np.ndarray, finding: int) -> dict[str, Any]:
    """The table of one finding; of_finding float [n f]."""
    positive = run.records.labels[ids, finding] == 1
    chance = features.by_chance(of_finding, positive)
    found = features.telling(
        of_finding, positive, run.records.patients[ids], resamples=run.resamples
    )
    rows = [
        {
            **_named(feature.name),
            "auroc": feature.auroc,
            "ci95": feature.ci95,
            "left_out": feature.left_out,
            "beyond": chance is not None and abs(feature.auroc - 0.5) > chance,
            "track": charts.track(
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
        for feature in found
    ]
    return {
        "finding": run.findings[finding],
        "n_pos": int(positive.sum()),
        "n_neg": int((~positive).sum()),
        "chance": chance,
        "rows": rows,
    }


def _named(name: str) -> dict[str, str]:
    _, family, feature = name.split("_")
    return {"family": family, "feature": feature}
