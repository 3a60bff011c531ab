"""The healthy chest of the embedded demo set: its shapes, and the frame that draws them.

Body frame: u runs to the image's right (the patient's left) from the midline, v runs down from the
image's top; both in units of the image side, before the pose moves them. Opacities add up, like
attenuation along a ray; the tone curve in `film.py` turns their sum into grey levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

SIDES = (-1, 1)  # image left (the patient's right lung), image right
LUNG_TIP_U = 0.125  # |u| of the lungs' tips
_SUBPIXEL_BITS = 4  # cv2 draws with coordinates in 1/16 pixel


@dataclass(frozen=True)
class Anatomy:
    """One patient's body. Lengths in fractions of the image side, in the body frame."""

    sex: str
    age: int
    width: float  # half width of the rib cage's inside
    apex: float  # v of the lungs' top
    base: float  # v of the right hemidiaphragm's dome; the left one is `left_drop` lower
    left_drop: float
    heart_ratio: float  # heart width / chest width
    heart_lean: float  # share of the heart left of the midline
    knob: float  # how far the aortic arch bulges
    rib_gap: float
    rib_slope: float
    fat: float  # extra soft tissue at the flanks
    bone: float  # bone contrast
    bubble: float  # half width of the gastric air bubble, 0 without one
    bowel: np.ndarray  # [n 4] gas in the bowel: u, v, half width, half height
    jaw: bool  # whether the chin reaches into the picture
    pacemaker: bool
    vessels: tuple[np.ndarray, ...]  # one array of polylines [n p 2] (u v) per level of branching
    clutter: np.ndarray  # [12 12] low-frequency unevenness of the tissue


@dataclass(frozen=True)
class Pose:
    """How the patient stands in the picture: rotation in degrees, shift in image sides."""

    rotation: float
    shift: tuple[float, float]
    scale: float


class Frame:
    """Draws body-frame shapes into float32 [h w] masks of an image of `size` pixels."""

    def __init__(self, size: int, pose: Pose) -> None:
        angle = np.deg2rad(pose.rotation)
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        self.size = size
        self._matrix = rotation * pose.scale
        self._centre = np.array([0.5, 0.45]) + np.asarray(pose.shift)
        grid = (np.arange(size) + 0.5) / size
        x, y = (grid - self._centre[0])[None, :], (grid - self._centre[1])[:, None]
        inverse = np.linalg.inv(self._matrix)
        # Body coordinates of every pixel, [h w] each.
        self.u = (inverse[0, 0] * x + inverse[0, 1] * y).astype(np.float32)
        self.v = (inverse[1, 0] * x + inverse[1, 1] * y + 0.45).astype(np.float32)

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Body points [p 2] → pixel coordinates [p 2], 0 at the corner of the first pixel."""
        body = np.asarray(points, np.float64) - np.array([0.0, 0.45])
        return np.asarray((body @ self._matrix.T + self._centre) * self.size)

    def _to_fixed_point(self, points: np.ndarray) -> np.ndarray:
        return np.round((self.pixels(points) - 0.5) * (1 << _SUBPIXEL_BITS)).astype(np.int32)

    def soften(self, image: np.ndarray, sigma: float) -> np.ndarray:
        """Gaussian blur; sigma in image sides."""
        return cv2.GaussianBlur(image, (0, 0), max(sigma * self.size, 0.3))

    def fill(self, *outlines: np.ndarray, soft: float = 0.002) -> np.ndarray:
        """Mask of the inside of closed outlines [p 2], values 0 to 1."""
        canvas = np.zeros((self.size, self.size), np.uint8)
        for outline in outlines:
            cv2.fillPoly(canvas, [self._to_fixed_point(outline)], 255, cv2.LINE_AA, _SUBPIXEL_BITS)
        return self.soften(canvas.astype(np.float32) / 255, soft)

    def stroke(
        self, curves: Sequence[np.ndarray] | np.ndarray, width: float, soft: float = 0.0015
    ) -> np.ndarray:
        """Mask of lines along open curves, values 0 to 1; a line thinner than a pixel is fainter."""
        canvas = np.zeros((self.size, self.size), np.uint8)
        pixels = width * self.size
        grey = int(255 * min(1.0, pixels))
        if isinstance(curves, np.ndarray):  # transform all curves in one call
            polylines = list(self._to_fixed_point(curves.reshape(-1, 2)).reshape(curves.shape))
        else:
            polylines = [self._to_fixed_point(curve) for curve in curves]
        cv2.polylines(
            canvas, polylines, False, grey, max(1, round(pixels)), cv2.LINE_AA, _SUBPIXEL_BITS
        )
        return self.soften(canvas.astype(np.float32) / 255, soft)

    def depth(self, mask: np.ndarray, reach: float) -> np.ndarray:
        """Thickness of a rounded body seen from the front: rises from 0 at its rim to 1 over `reach`."""
        distance = cv2.distanceTransform((mask > 0.5).astype(np.uint8), cv2.DIST_L2, 5)
        rounded = (1 - np.exp(-distance / (reach * self.size))).astype(np.float32)
        return self.soften(rounded, 0.004)

    def field(self, grid: np.ndarray) -> np.ndarray:
        """Interpolates a small grid of values to a smooth image."""
        side = (self.size, self.size)
        return cv2.resize(grid.astype(np.float32), side, interpolation=cv2.INTER_CUBIC)


def smooth(points: Sequence[tuple[float, float]], rounds: int = 3) -> np.ndarray:
    """Cuts the corners of a closed outline (Chaikin) until it is round."""
    p = np.asarray(points, np.float64)
    for _ in range(rounds):
        following = np.roll(p, -1, 0)
        p = np.stack([0.75 * p + 0.25 * following, 0.25 * p + 0.75 * following], 1).reshape(-1, 2)
    return p


def mirror(points: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(points, np.float64) * np.array([side, 1.0])


def lateral_wall(a: Anatomy, v: np.ndarray) -> np.ndarray:
    """|u| of the rib cage's inside at height v; it narrows to LUNG_TIP_U at the apex."""
    t = np.clip((v - a.apex) / (a.base - a.apex), 0, 1)
    return np.asarray(LUNG_TIP_U + (a.width - LUNG_TIP_U) * (1 - (1 - t) ** 2.3) ** 0.58)


def diaphragm_dome(a: Anatomy, side: int, x: np.ndarray) -> np.ndarray:
    """v of the hemidiaphragm at |u| = x: a dome that falls steeply at the costophrenic angle."""
    f = (x - 0.06) / (a.width - 0.06) - 0.42
    top = a.base + (a.left_drop if side > 0 else 0.0)
    return np.asarray(top + np.where(f > 0, 0.20, 0.16) * f**2 + 0.55 * np.clip(f, 0, 1) ** 6)


def lung_outline(a: Anatomy, side: int) -> np.ndarray:
    """Closed outline [p 2] of one lung."""
    t = np.linspace(0, 1, 28) ** 2.2
    v = a.apex + t * (a.base - a.apex)
    outer = np.stack([lateral_wall(a, v), v], 1)
    x = np.linspace(a.width, 0.06, 24)
    floor = np.stack([x, diaphragm_dome(a, side, x)], 1)
    inner_t = np.linspace(1, 0, 28) ** 2.2
    narrowing = np.sqrt(1 - (1 - np.clip(inner_t / 0.17, 0, 1)) ** 2)
    inner_x = LUNG_TIP_U - (LUNG_TIP_U - 0.052) * narrowing + 0.03 * inner_t
    inner = np.stack([inner_x, a.apex + inner_t * (a.base - a.apex)], 1)
    return mirror(np.concatenate([outer, floor, inner]), side)


def heart_outline(a: Anatomy, ratio: float) -> np.ndarray:
    """Closed outline [p 2] of the heart for a cardiothoracic ratio."""
    theta = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    width = 2 * a.width * ratio
    top = a.apex + 0.42 * (a.base - a.apex) - 0.10 * (ratio - 0.45)
    bottom = a.base + 0.045
    s, c = np.sin(theta), np.cos(theta)
    v = (top + bottom) / 2 + (bottom - top) / 2 * s
    u = width / 2 * c * (0.88 + 0.12 * s)
    u = u + width * 0.13 * s
    u = (u - u.min()) / np.ptp(u) * width
    return np.stack([u - width * (1 - a.heart_lean), v], 1)


def mediastinum_outline(a: Anatomy) -> np.ndarray:
    h = a.base - a.apex
    t = np.array([-0.5, -0.05, 0.12, 0.22, 0.29, 0.36, 0.45, 0.60, 1.1])
    left = np.array([0.05, 0.045, 0.052, 0.07 + a.knob, 0.06 + a.knob, 0.055, 0.075, 0.07, 0.06])
    right = np.array([0.05, 0.045, 0.058, 0.06, 0.062, 0.058, 0.062, 0.07, 0.06])
    fine = np.linspace(t[0], t[-1], 60)
    v = a.apex + fine * h
    u_left = cv2.GaussianBlur(np.interp(fine, t, left), (1, 9), 1.6).ravel()
    u_right = cv2.GaussianBlur(np.interp(fine, t, right), (1, 9), 1.6).ravel()
    return np.concatenate([np.stack([u_left, v], 1), np.stack([-u_right, v], 1)[::-1]])


def rib_arcs(a: Anatomy, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Posterior arcs [10 p 2] and anterior arcs [8 p 2] of one side, upper ribs first."""
    i = np.arange(10)[:, None]
    f = np.linspace(0, 1, 20)
    start = a.apex + a.rib_gap * i
    drop = a.rib_slope * (0.55 + 0.075 * i)
    end = start + drop
    reach = np.maximum(lateral_wall(a, end) + 0.012, 0.16 + 0.02 * i)
    u = 0.03 + (reach - 0.03) * np.sin(f * np.pi / 2) ** 0.9
    v = start - 0.022 * np.sin(np.pi * np.minimum(f * 1.4, 1)) + drop * f**2.2
    posterior = mirror(np.stack([u, v], -1), side)
    u = reach + (0.13 + 0.012 * i - reach) * f**1.25
    v = end + (0.045 + 0.012 * i) * f + 0.045 * np.sin(np.pi * f / 2)
    return posterior, mirror(np.stack([u, v], -1)[:8], side)


def grow_vessels(
    rng: np.random.Generator, apex: float, base: float, width: float
) -> tuple[np.ndarray, ...]:
    """Lung vessels that branch from both hila: polylines [n p 2], one array per level."""
    fan = np.linspace(-1.35, 1.45, 10)
    side = np.repeat(SIDES, len(fan)).astype(np.float64)
    angle = np.tile(fan, 2) + rng.normal(0, 0.10, 2 * len(fan))
    length = (0.11 + 0.045 * np.abs(np.sin(angle))) * (width / 0.33)
    hilum = np.array([0.085, apex + 0.47 * (base - apex)])
    start = hilum + rng.normal(0, 0.012, (2 * len(fan), 2))
    start[:, 0] *= side
    levels = []
    steps = np.linspace(0, 1, 6)
    for _ in range(4):
        heading_angle = angle[:, None] + rng.normal(0, 0.35, (len(angle), 1)) * steps
        heading = np.stack([side[:, None] * np.cos(heading_angle), np.sin(heading_angle)], -1)
        path = np.cumsum(heading * length[:, None, None] / 5, 1)
        path = start[:, None] + path - path[:, :1]
        levels.append(path)
        # two branches start at the end, one at the middle
        branch_point = np.tile([5, 5, 3], len(angle))
        parent = np.repeat(np.arange(len(angle)), 3)
        turn = np.tile([0.28, -0.32, 0.6], len(angle)) * rng.uniform(0.5, 1.5, len(parent))
        turn[2::3] *= rng.choice([-1, 1], len(angle))
        start, angle = path[parent, branch_point], heading_angle[parent, branch_point] + turn
        length, side = length[parent] * rng.uniform(0.5, 0.85, len(parent)), side[parent]
    return tuple(levels)


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """A random body; a patient keeps it in all follow-ups."""
    sex = "F" if rng.random() < 0.45 else "M"
    apex, base = rng.uniform(0.105, 0.15), rng.uniform(0.63, 0.72)
    width = rng.uniform(0.295, 0.35) + (0.012 if sex == "M" else 0.0)
    return Anatomy(
        sex=sex,
        age=int(np.clip(rng.normal(50, 17), 18, 92)),
        width=width,
        apex=apex,
        base=base,
        left_drop=rng.uniform(0.008, 0.032),
        heart_ratio=rng.uniform(0.38, 0.49),
        heart_lean=rng.uniform(0.63, 0.72),
        knob=rng.uniform(0.0, 0.022),
        rib_gap=rng.uniform(0.050, 0.058),
        rib_slope=rng.uniform(0.08, 0.13),
        fat=rng.uniform(0.0, 0.06),
        bone=rng.uniform(0.7, 1.2),
        bubble=rng.uniform(0.035, 0.075) if rng.random() < 0.65 else 0.0,
        bowel=_draw_bowel(rng, base),
        jaw=bool(rng.random() < 0.3),
        pacemaker=bool(rng.random() < 0.03),
        vessels=grow_vessels(rng, apex, base, width),
        clutter=rng.normal(0, 1, (12, 12)),
    )


def _draw_bowel(rng: np.random.Generator, base: float) -> np.ndarray:
    count = int(rng.integers(0, 6))
    u = rng.uniform(-0.1, 0.3, count)
    v = base + rng.uniform(0.16, 0.34, count)
    return np.stack([u, v, *rng.uniform(0.015, 0.045, (2, count))], 1)


def raise_diaphragm(a: Anatomy, rise: float) -> Anatomy:
    """The same body with its diaphragm higher by `rise`, as in a shallower breath."""
    return replace(a, base=a.base - rise)
