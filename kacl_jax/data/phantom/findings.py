"""The eight findings of the embedded demo set, drawn as their radiological signs.

Each sign is drawn into its own arrays, and its box is computed from them, so the box always fits the
picture. Severity goes from 0 (barely visible) to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from kacl_jax.data.phantom import anatomy
from kacl_jax.data.phantom.anatomy import Anatomy, Frame
from kacl_jax.data.phantom.film import Chest

BOX_MARGIN = 0.012  # of the image side, around the extent of the sign, as in radiologists' boxes
EXTENT_THRESHOLD = 0.12  # share of the sign's maximum; pixels above it belong to the sign


@dataclass(frozen=True)
class Finding:
    """One finding of one image; with `side` and `seed` it has the same place in all follow-ups."""

    name: str
    severity: float
    side: int  # -1 image left (the patient's right lung), 1 image right
    seed: int


@dataclass
class Sign:
    """The changes that a finding makes to the chest. All arrays float32 [h w]."""

    opacification: np.ndarray  # share of the lung's air that is lost
    lucency: np.ndarray  # share of the lung markings that air replaces
    lines: np.ndarray  # opacity of lines and edges, added on top
    box: tuple[float, float, float, float] = field(default=(0.0, 0.0, 0.0, 0.0))


def cardiomegaly_ratio(finding: Finding) -> float:
    """Cardiothoracic ratio of a heart with Cardiomegaly: always above 0.5, which defines it."""
    return 0.525 + 0.12 * finding.severity


def draw_finding(finding: Finding, a: Anatomy, frame: Frame, chest: Chest) -> Sign:
    """Arrays and box (fractions of the image side, half-open) of one finding.

    Not for Cardiomegaly, which changes the shape of the heart itself.
    """
    shape = (frame.size, frame.size)
    sign = Sign(
        np.zeros(shape, np.float32), np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    )
    rng = np.random.default_rng(finding.seed)
    _DRAW_SIGN[finding.name](sign, rng, finding, a, frame, chest)
    strength = np.maximum(sign.opacification * np.minimum(2 * chest.air, 1), sign.lucency)
    strength = np.maximum(strength, np.minimum(4 * sign.lines, 1))
    sign.box = extent_box(strength)
    return sign


def extent_box(strength: np.ndarray) -> tuple[float, float, float, float]:
    """Box of the pixels above EXTENT_THRESHOLD times the maximum, plus BOX_MARGIN, cut at the image's edge."""
    size = strength.shape[0]
    rows, columns = np.nonzero(strength > EXTENT_THRESHOLD * strength.max())
    low = np.maximum(np.array([columns.min(), rows.min()]) / size - BOX_MARGIN, 0)
    high = np.minimum(np.array([columns.max() + 1, rows.max() + 1]) / size + BOX_MARGIN, 1)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def heart_box(a: Anatomy, frame: Frame, ratio: float) -> tuple[float, float, float, float]:
    return extent_box(frame.fill(anatomy.heart_outline(a, ratio)))


def _smooth_step(x: np.ndarray, width: float) -> np.ndarray:
    """A logistic step from 0 (x far below 0) to 1 (x far above 0)."""
    return np.asarray(1 / (1 + np.exp(-np.clip(x / width, -30, 30))), np.float32)


def _point_in_lung(
    rng: np.random.Generator, a: Anatomy, side: int, rows: tuple[float, float], inset: float
) -> tuple[float, float]:
    """A random point (u, v) inside a lung; `rows` is a range of heights, as shares of the lung's height."""
    v = a.apex + rng.uniform(*rows) * (a.base - a.apex)
    outer = float(anatomy.lateral_wall(a, np.array(v))) - inset
    inner = 0.095 + 0.5 * inset
    if side > 0 and v > a.apex + 0.5 * (a.base - a.apex):
        inner = max(inner, 2 * a.width * a.heart_ratio * a.heart_lean * 0.85 + 0.3 * inset)
    return side * rng.uniform(min(inner, outer - 0.01), outer), v


def _texture(rng: np.random.Generator, frame: Frame, cells: int) -> np.ndarray:
    return frame.field(rng.normal(0, 1, (cells, cells)))


def _ellipse_distance(
    frame: Frame, u: float, v: float, ru: float, rv: float, angle: float
) -> np.ndarray:
    """Squared elliptic distance from (u, v): 1 on the ellipse with radii ru, rv."""
    du, dv = (
        frame.u - float(u),
        frame.v - float(v),
    )  # Python floats, so that the arrays stay float32
    c, s = math.cos(angle), math.sin(angle)
    return np.asarray(((c * du + s * dv) / ru) ** 2 + ((c * dv - s * du) / rv) ** 2)


def _atelectasis(
    sign: Sign, rng: np.random.Generator, finding: Finding, a: Anatomy, frame: Frame, chest: Chest
) -> None:
    side, severity = finding.side, finding.severity
    lung = chest.lungs[side]
    if rng.random() < 0.55:  # plates: nearly horizontal bands above a raised dome
        x0 = a.width * rng.uniform(0.38, 0.48)
        x1 = x0 + a.width * rng.uniform(0.38, 0.48)
        v = float(anatomy.diaphragm_dome(a, side, np.array((x0 + x1) / 2))) - rng.uniform(
            0.035, 0.10
        )
        bands = []
        for k in range(int(rng.integers(1, 4))):
            slope = rng.uniform(-0.12, 0.22)
            shift = -0.033 * k + rng.normal(0, 0.004)
            x = np.linspace(x0 + rng.uniform(0, 0.04), x1 - rng.uniform(0, 0.04), 8)
            line = np.stack([x, v + shift + slope * (x - x0)], 1)
            # plates taper at both ends, like a lens
            thick = np.sin(np.linspace(0, np.pi, 8))[:, None] * np.array([0, 0.5])
            thick = thick * (0.011 + 0.012 * severity) * rng.uniform(0.7, 1.3)
            bands.append(anatomy.mirror(np.concatenate([line - thick, (line + thick)[::-1]]), side))
        plate = frame.fill(*bands, soft=0.003)
        middle = side * (x0 + x1) / 2
        raised = np.exp(-(((frame.u - middle) / (0.5 * (x1 - x0))) ** 4)).astype(np.float32)
        floor = anatomy.diaphragm_dome(a, side, np.abs(frame.u))
        raised = raised * _smooth_step(frame.v - (floor - 0.012 - 0.02 * severity), 0.004)
        sign.opacification = np.maximum((0.65 + 0.3 * severity) * plate, 0.9 * raised) * lung
        return
    # a wedge from the hilum to the pleura, with concave edges and crowded markings
    hilum = np.array([0.10, a.apex + 0.55 * (a.base - a.apex)])
    angle, half = rng.uniform(-0.5, 0.9), rng.uniform(0.14, 0.24) + 0.08 * severity
    reach = np.linspace(0, 1, 14)[:, None] * rng.uniform(0.22, 0.32)
    pull = half * (0.45 + 0.55 * (reach / reach.max()) ** 2)
    upper = hilum + reach * np.concatenate([np.cos(angle - pull), np.sin(angle - pull)], 1)
    lower = hilum + reach * np.concatenate([np.cos(angle + pull), np.sin(angle + pull)], 1)
    wedge = frame.fill(anatomy.mirror(np.concatenate([upper, lower[::-1]]), side), soft=0.009)
    wedge = wedge * np.clip(0.85 + 0.22 * _texture(rng, frame, 20), 0, 1)
    fan = [anatomy.mirror(upper * (1 - w) + lower * w, side) for w in (0.25, 0.5, 0.75)]
    sign.opacification = (0.55 + 0.4 * severity) * wedge * lung
    sign.lines = 0.05 * frame.stroke(fan, 0.005) * wedge * lung * np.minimum(2 * chest.air, 1)


def _effusion(
    sign: Sign, rng: np.random.Generator, finding: Finding, a: Anatomy, frame: Frame, chest: Chest
) -> None:
    side, severity = finding.side, finding.severity
    x = np.clip(side * frame.u, 0, a.width)
    f = np.clip((x - 0.06) / (a.width - 0.06), 0, 1)
    corner = float(anatomy.diaphragm_dome(a, side, np.array(a.width)))
    height = 0.055 + 0.42 * severity**2 * rng.uniform(0.6, 1.2)
    # the meniscus climbs the lateral wall and dips towards the middle
    level = corner - height + (0.045 + 0.18 * height) * (1 - f**3.5)
    fluid = _smooth_step(frame.v - level, 0.006 + 0.012 * rng.random())
    sign.opacification = 0.93 * fluid * chest.lungs[side]


def _infiltration(
    sign: Sign, rng: np.random.Generator, finding: Finding, a: Anatomy, frame: Frame, chest: Chest
) -> None:
    side, severity = finding.side, finding.severity
    u, v = _point_in_lung(rng, a, side, (0.15, 0.90), 0.035)
    ru, rv = rng.uniform(0.05, 0.12), rng.uniform(0.05, 0.15)
    total = np.zeros_like(sign.opacification)
    for _ in range(int(rng.integers(7, 13))):
        bu, bv = u + rng.normal(0, 0.45) * ru, v + rng.normal(0, 0.45) * rv
        radius = rng.uniform(0.018, 0.045)
        total += rng.uniform(0.4, 1) * np.exp(
            -_ellipse_distance(frame, bu, bv, radius, radius, 0)
        ).astype(np.float32)
    ragged = total * (1 + 0.35 * _texture(rng, frame, 48))
    sign.opacification = (
        (0.42 + 0.33 * severity) * np.clip(ragged, 0, 1.3) / 1.3 * chest.lungs[side]
    )


def _sphere(d2: np.ndarray, edge: float) -> np.ndarray:
    ball = np.sqrt(np.clip(1 - d2, 0, 1))
    return np.asarray((0.45 + 0.55 * ball) * _smooth_step(1 - d2, edge), np.float32)


def _mass(
    sign: Sign, rng: np.random.Generator, finding: Finding, a: Anatomy, frame: Frame, chest: Chest
) -> None:
    side, severity = finding.side, finding.severity
    radius = 0.036 + 0.05 * severity
    u, v = _point_in_lung(rng, a, side, (0.15, 0.82), 0.8 * radius)
    ball = _sphere(_ellipse_distance(frame, u, v, radius, radius * rng.uniform(0.8, 1.1), 0), 0.12)
    for _ in range(int(rng.integers(1, 4))):  # lobes
        angle = rng.uniform(0, 2 * np.pi)
        bu, bv = u + 0.55 * radius * np.cos(angle), v + 0.55 * radius * np.sin(angle)
        ball = np.maximum(
            ball,
            0.95 * _sphere(_ellipse_distance(frame, bu, bv, radius * 0.62, radius * 0.62, 0), 0.15),
        )
    sign.opacification = (0.62 + 0.3 * severity) * ball * chest.lungs[side]


def _nodule(
    sign: Sign, rng: np.random.Generator, finding: Finding, a: Anatomy, frame: Frame, chest: Chest
) -> None:
    side, severity = finding.side, finding.severity
    radius = 0.021 + 0.014 * severity
    u, v = _point_in_lung(rng, a, side, (0.15, 0.85), 0.03)
    ball = _sphere(_ellipse_distance(frame, u, v, radius, radius * rng.uniform(0.85, 1.1), 0), 0.15)
    sign.opacification = (0.62 + 0.33 * severity) * ball * chest.lungs[side]


def _pneumonia(
    sign: Sign, rng: np.random.Generator, finding: Finding, a: Anatomy, frame: Frame, chest: Chest
) -> None:
    side, severity = finding.side, finding.severity
    lobe = rng.choice(["upper", "middle", "lower"], p=[0.25, 0.3, 0.45])
    h = a.base - a.apex
    rows = {"upper": (0.30, 0.36), "middle": (0.62, 0.72), "lower": (0.74, 0.84)}[str(lobe)]
    u, v = _point_in_lung(rng, a, side, rows, 0.10)
    ru, rv = rng.uniform(0.07, 0.14), rng.uniform(0.07, 0.14)
    wobble = 0.3 * _texture(rng, frame, 9) + 0.2 * _texture(rng, frame, 22)
    inside = _smooth_step(
        0.9 - _ellipse_distance(frame, u, v, ru, rv, side * rng.uniform(-0.6, 0.6)) + wobble, 0.2
    )
    inside = inside * np.clip(1 + 0.12 * _texture(rng, frame, 30), 0, 1.2) / 1.2
    # consolidation stops sharply at a fissure
    fissure = a.apex + (0.47 if lobe == "upper" else 0.50) * h + 0.06 * (side * frame.u - 0.1)
    edge = fissure - frame.v if lobe == "upper" else frame.v - fissure
    inside = inside * _smooth_step(edge, 0.005)
    air = []
    hilum = np.array([side * 0.09, a.apex + 0.47 * h])
    direction = np.array([u, v]) - hilum
    along = np.linspace(0.45, 1.25, 6)[:, None]
    for _ in range(3):  # bronchograms: the airways from the hilum stay dark
        swing = rng.normal(0, 0.28)
        across = np.array([-direction[1], direction[0]]) * swing
        air.append(hilum + along * direction + along**1.5 * across)
    dark = frame.stroke(air, 0.007, 0.0025)
    sign.opacification = (0.58 + 0.4 * severity) * inside * (1 - 0.3 * dark) * chest.lungs[side]


def _pneumothorax(
    sign: Sign, rng: np.random.Generator, finding: Finding, a: Anatomy, frame: Frame, chest: Chest
) -> None:
    side, severity = finding.side, finding.severity
    outline = anatomy.lung_outline(a, side)
    x, v = np.abs(outline[:, 0]), outline[:, 1]
    h = a.base - a.apex
    if rng.random() < 0.7:  # air rises to the apex; more of it reaches further down the side
        low = a.apex + (0.22 + 0.75 * severity * rng.uniform(0.6, 1)) * h
        amount = np.clip((low - v) / (low - a.apex), 0, 1) ** 0.6
        amount = amount * (0.13 + 0.20 * severity)
        inner = np.stack(
            [0.055 + (x - 0.055) * (1 - 0.9 * amount), v + 0.75 * amount * (low - v)], 1
        )
        air_space = _smooth_step(low - frame.v, 0.006)
    else:  # along the lateral wall and the base, as in a lying patient
        high = a.apex + rng.uniform(0.35, 0.65) * h
        amount = np.clip((v - high) / (a.base - high), 0, 1) ** 0.7 * (x > 0.75 * a.width)
        inner = np.stack(
            [
                x - (0.04 + 0.06 * severity) * amount,
                v - 0.35 * amount * (v > a.base) * (v - a.base),
            ],
            1,
        )
        air_space = _smooth_step(frame.v - high, 0.006)
    inner[:, 0] *= side
    gap = np.clip(chest.lungs[side] - frame.fill(inner, soft=0.002), 0, 1)
    sign.lucency = np.asarray(gap * air_space * (side * frame.u > 0.06), np.float32)
    outer = inner[(x > 0.09) & (v < np.max(v) - 0.02)][:30]
    sign.lines = 0.12 * frame.stroke([outer], 0.006) * chest.lungs[side] * air_space * (gap > 0.05)


_DRAW_SIGN: dict[
    str, Callable[[Sign, np.random.Generator, Finding, Anatomy, Frame, Chest], None]
] = {
    "Atelectasis": _atelectasis,
    "Effusion": _effusion,
    "Infiltration": _infiltration,
    "Mass": _mass,
    "Nodule": _nodule,
    "Pneumonia": _pneumonia,
    "Pneumothorax": _pneumothorax,
}
