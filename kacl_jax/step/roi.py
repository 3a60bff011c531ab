"""Which region of an X-ray goes to radiomics: truth box, Grad-CAM region, or one of the controls."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from kacl_jax.step import gradcam

Source = Literal["cam", "random", "whole"]
Shape = Literal["mask", "box"]


@dataclasses.dataclass(frozen=True)
class RegionRule:
    """How a training image's region of interest is marked.

    source: 'cam', or a control: 'random' (a rectangle with the area and aspect of some CAM region of the rows at
      hand, anywhere) and 'whole' (the image less a one-pixel rim).
    truth_boxes: an annotated image's region is its truth box instead; never under 'random'.
    relu, threshold: see `gradcam.regions`.
    size: side of the image in px.
    seed: of the random rectangles.
    shape: a CAM region is its 'mask', or the 'box' around it.
    """

    source: Source
    truth_boxes: bool
    relu: bool
    threshold: float
    size: int
    seed: int
    shape: Shape = "mask"

    def mark(
        self,
        cam: np.ndarray,
        box_finding: np.ndarray,
        boxes: np.ndarray,
        image_id: np.ndarray,
        step: int,
    ) -> tuple[np.ndarray, dict[str, int]]:
        """The masks of one batch.

        Args:
          cam: float32 [b u v]. box_finding: int32 [b], −1 without a truth box. boxes: float32 [b c 4].
          image_id: int32 [b]. step: the step that made the maps.

        Returns:
          (bool [b h w], how many regions came from where: 'truth', 'cam', 'fallback', 'random', 'whole').
        """
        masks = np.zeros((len(cam), self.size, self.size), bool)
        origin = dict.fromkeys(("truth", "cam", "fallback", "random", "whole"), 0)
        for row in range(len(cam)):
            if self.truth_boxes and self.source != "random" and box_finding[row] >= 0:
                masks[row] = gradcam.box_mask(boxes[row, box_finding[row]], self.size)
                origin["truth"] += 1
            elif self.source == "whole":
                masks[row, 1:-1, 1:-1] = True
                origin["whole"] += 1
            elif self.source == "random":
                masks[row] = self._rectangle(cam, int(image_id[row]), step)
                origin["random"] += 1
            else:
                masks[row], fallback = self.region(cam[row])
                origin["fallback" if fallback else "cam"] += 1
        return masks, origin

    def region(self, cam: np.ndarray) -> tuple[np.ndarray, bool]:
        """The CAM region of one map, float [u v] → bool [h w], and whether the whole image stands in for it."""
        found = gradcam.regions(cam, size=self.size, relu=self.relu, threshold=self.threshold)
        mask = found.mask
        if self.shape == "box":
            mask = gradcam.box_mask(gradcam.mask_box(mask), self.size)
        return mask, found.fallback

    def _rectangle(self, cam: np.ndarray, image_id: int, step: int) -> np.ndarray:
        """A rectangle as large and as long as a CAM region drawn from the batch, placed uniformly."""
        random = np.random.default_rng((self.seed, image_id, step))
        mask, _ = self.region(cam[random.integers(len(cam))])
        x0, y0, x1, y1 = gradcam.mask_box(mask)
        aspect = (x1 - x0) / (y1 - y0)
        fraction = mask.mean()
        width = min(np.sqrt(fraction * aspect), 1.0)
        height = min(np.sqrt(fraction / aspect), 1.0)
        left, top = random.uniform(size=2) * (1 - width, 1 - height)
        return gradcam.box_mask(np.array([left, top, left + width, top + height]), self.size)
