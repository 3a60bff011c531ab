"""What a trained network says of one image. `kacl_jax.load(run)(image)` returns it.

Axes: c findings · h w pixels of the image as it was given · u v map cells · s side of the network's image · f features.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np
from PIL.Image import Image

from kacl_jax.fusion.shares import Explanation
from kacl_jax.predict import overlay, region_features
from kacl_jax.predict.region_features import MarkedRegion
from kacl_jax.radiomics import FEATURE_NAMES
from kacl_jax.step.regions import RegionRule


class Box(NamedTuple):
    """A rectangle in pixels of the image as it was given, the origin at its top left corner."""

    x: float
    y: float
    w: float
    h: float


@dataclass(frozen=True, eq=False)
class Prediction:
    """One image's findings.

    name: of the image. notes: what a reader must know of it, each one clause.
    pixels: uint8 [h w], the image as it was given, in 8 bits. network_pixels: uint8 [s s], what the network saw.
    findings: names. The dicts below have them as keys.
    scores: raw probabilities, 0 … 1, on which thresholds were chosen.
    probabilities: the calibrated ones, 0 … 1; for a finding that could not be calibrated the raw score.
    thresholds: on the scale of `probabilities`; NaN where validation had no positive or no negative.
    positive: whether the score reaches the threshold.
    calibrated: whether the probability is more than the raw score.
    maps: float32 [c u v], raw class maps, centred as the run had them. Each covers the whole image.
    embedding: float32 [k], the mean of the feature map's cells.
    distance: the embedding's Mahalanobis distance to the training images'. limit: 97.5 % of the validation images are
      nearer. unfamiliar: whether the distance is beyond the limit, so that the findings say little.
    rule: marks the regions. bin_width: of the radiomic features, in grey values of the 8-bit image.
    explanations: why each finding has its fused score, where the run fuses. Then scores, probabilities, thresholds and
      positive are the fused ones. Empty for a run without fusion.
    """

    name: str
    notes: tuple[str, ...]
    pixels: np.ndarray
    network_pixels: np.ndarray
    findings: tuple[str, ...]
    scores: Mapping[str, float]
    probabilities: Mapping[str, float]
    thresholds: Mapping[str, float]
    positive: Mapping[str, bool]
    calibrated: Mapping[str, bool]
    maps: np.ndarray
    embedding: np.ndarray
    distance: float
    limit: float
    unfamiliar: bool
    rule: RegionRule
    bin_width: float
    explanations: Mapping[str, Explanation] = field(default_factory=dict)

    @property
    def shown_findings(self) -> tuple[str, ...]:
        """The positive findings, or if there is none the one with the highest score, as training marks a region."""
        positive = tuple(name for name in self.findings if self.positive[name])
        return positive or (max(self.findings, key=self.scores.__getitem__),)

    def region(self, finding: str) -> tuple[np.ndarray, bool]:
        """The marked region, bool [s s], and whether the whole image stands in because the map marks none."""
        if finding not in self._regions:
            self._regions[finding] = self.rule.region(self._map(finding))
        return self._regions[finding]

    @functools.cached_property
    def _regions(self) -> dict[str, tuple[np.ndarray, bool]]:
        """The regions that were asked for: tables, page and pictures use the same."""
        return {}

    @functools.cached_property
    def boxes(self) -> dict[str, Box]:
        """For each finding the box around its region."""
        return {finding: self.box(finding) for finding in self.findings}

    def heat_map(self, finding: str) -> np.ndarray:
        """Where the network looked for a finding: float32 [h w], 0 … 1.

        A map that is flat or not finite is 0 everywhere.
        """
        height, width = self.pixels.shape
        heat = cv2.resize(
            self._map(finding).astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR
        )
        if self.rule.relu:
            heat = np.maximum(heat, 0)
        low, high = float(heat.min()), float(heat.max())
        return (heat - low) / (high - low) if high > low else np.zeros_like(heat)  # not so for NaN

    @functools.cached_property
    def radiomics(self) -> dict[str, dict[str, float]]:
        """For each of `shown_findings` the 102 features of its region, measured as in training: on the 8-bit image of
        the network's size. NaN where a feature is not defined, and everywhere if the region cannot be measured.
        """
        measured = region_features.measure(self.marked_regions, self.bin_width)
        return {
            finding: dict(zip(FEATURE_NAMES, found.features.tolist(), strict=True))
            for finding, found in zip(self.shown_findings, measured, strict=True)
        }

    @property
    def marked_regions(self) -> list[MarkedRegion]:
        """Of `shown_findings`, on the network's image."""
        return [
            MarkedRegion(self.network_pixels, self.region(name)[0]) for name in self.shown_findings
        ]

    def show(self, finding: str = "") -> Image:
        """The X-ray under its heat map, with region and box, as a Pillow image: a notebook shows it as it is.

        finding: by default the one of `shown_findings` with the highest score.
        """
        return overlay.draw(self, finding or max(self.shown_findings, key=self.scores.__getitem__))

    def _map(self, finding: str) -> np.ndarray:
        """float32 [u v]. Raises KeyError, naming the findings, for another name."""
        if finding not in self.findings:
            raise KeyError(
                f"{finding!r} is not a finding of this network: {', '.join(self.findings)}"
            )
        return self.maps[self.findings.index(finding)]

    def box(self, finding: str) -> Box:
        """The box around a finding's region."""
        mask, _ = self.region(finding)
        height, width = (
            have / side for have, side in zip(self.pixels.shape, mask.shape, strict=True)
        )
        ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x, y = float(xs[0] * width), float(ys[0] * height)
        return Box(x, y, float((xs[-1] + 1) * width) - x, float((ys[-1] + 1) * height) - y)
