"""X-rays a body of the embedded demo set: adds up opacities, then devices, exposure and noise."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from kacl_jax.data.phantom import anatomy
from kacl_jax.data.phantom.anatomy import SIDES, Anatomy, Frame

LUNG_AIR_OPACITY = 0.62  # opacity that the air of a fully inflated lung removes


@dataclass(frozen=True)
class Chest:
    """Opacities of a healthy chest, one array for each part that findings change. All float32 [h w]."""

    lungs: dict[int, np.ndarray]  # side → mask, values 0 to 1
    air: np.ndarray  # 0 to 1, air along the ray, 1 in a fully inflated lung
    markings: np.ndarray  # vessels in the lungs
    rest: np.ndarray  # bones, soft tissue, gas in the abdomen


@dataclass(frozen=True)
class Exposure:
    """How the film was exposed: the window from `low` to `high` opacity, and the film's defects."""

    low: float
    high: float
    gamma: float
    haze: float  # scatter that flattens contrast
    tilt: tuple[float, float]  # uneven exposure along x and y
    noise: float
    border: tuple[float, float, float, float]  # collimated margins: left, top, right, bottom


def _torso(a: Anatomy, frame: Frame, raised_arms: bool) -> np.ndarray:
    w, fat = a.width, a.fat
    neck = 0.085 + 0.3 * fat
    half = [
        (neck, -0.4), (neck, -0.02), (neck + 0.03, 0.04), (0.24, 0.08), (0.40, 0.10),
        (0.51, 0.15), (0.51, 0.27), (w + 0.11, 0.36), (w + 0.065 + fat * 0.8, 0.50),
        (w + 0.055 + fat, 0.70), (w + 0.06 + fat * 1.4, 1.5),
    ]  # fmt: skip
    if raised_arms:
        arm = [(0.40, 0.11), (0.5, 0.14), (0.8, 0.24), (0.8, 0.62), (0.60, 0.44), (w + 0.11, 0.34)]
    else:
        arm = [(0.40, 0.11), (0.52, 0.16), (0.575, 0.30), (0.59, 0.7), (0.61, 1.4),
               (0.48 + fat, 1.4), (0.47 + fat, 0.75), (w + 0.12, 0.36)]  # fmt: skip
    outline = np.concatenate([np.array(half), anatomy.mirror(np.array(half), -1)[::-1]])
    trunk = frame.depth(frame.fill(anatomy.smooth([tuple(p) for p in outline])), 0.045 + 0.2 * fat)
    arms = frame.fill(*[anatomy.mirror(anatomy.smooth(arm), s) for s in SIDES])
    return np.maximum(trunk, 0.62 * frame.depth(arms, 0.035))


def _bones(a: Anatomy, frame: Frame, raised_arms: bool) -> np.ndarray:
    """Ribs, clavicles, shoulder blades, arms and spine."""
    total = np.zeros((frame.size, frame.size), np.float32)
    posterior, anterior = (
        np.concatenate(arcs) for arcs in zip(*(anatomy.rib_arcs(a, s) for s in SIDES), strict=True)
    )
    rib = 0.020
    half = np.array([0.0, rib / 2])
    total += 0.095 * frame.stroke(posterior, rib, 0.003)
    total += 0.045 * frame.stroke(np.concatenate([posterior - half, posterior + half]), 0.003)
    total += 0.060 * frame.stroke(anterior, rib * 1.2, 0.0035)
    total += 0.020 * frame.stroke(np.concatenate([anterior - half, anterior + half]), 0.003)
    total *= np.where(frame.v > a.base + 0.05, 0.55, 0.9).astype(np.float32)
    top = a.apex + 0.085
    collar = np.array([[0.030, top + 0.014], [0.07, top - 0.006], [0.12, top - 0.016],
                       [0.18, top - 0.026], [0.24, top - 0.047], [0.30, top - 0.068],
                       [0.36, top - 0.078], [0.41, top - 0.072]])  # fmt: skip
    out = 0.035 if raised_arms else -0.015
    blade = anatomy.smooth(
        [(0.31 + out, 0.15), (0.43, 0.14), (0.455, 0.20), (0.41 + out, 0.30),
         (0.375 + out, 0.43), (0.345 + out, 0.42), (0.32 + out, 0.28)]
    )  # fmt: skip
    shaft = [[0.49, 0.185], [0.72, 0.36]] if raised_arms else [[0.495, 0.20], [0.55, 1.3]]
    head = anatomy.smooth(
        [(0.435, 0.14), (0.52, 0.135), (0.535, 0.20), (0.48, 0.235), (0.435, 0.20)]
    )
    for side in SIDES:
        clavicle = anatomy.mirror(collar, side)
        total += 0.11 * frame.stroke([clavicle], 0.022, 0.003)
        edges = [clavicle + d * np.array([0.0, 0.010]) for d in (-1, 1)]
        total += 0.05 * frame.stroke(edges, 0.003)
        total += 0.055 * frame.fill(anatomy.mirror(blade, side), soft=0.004)
        total += 0.035 * frame.stroke([anatomy.mirror(blade, side)], 0.004)
        total += 0.15 * frame.fill(anatomy.mirror(head, side), soft=0.004)
        total += 0.15 * frame.stroke([anatomy.mirror(np.array(shaft), side)], 0.042, 0.004)
    return a.bone * (total + _spine(a, frame))


def _spine(a: Anatomy, frame: Frame) -> np.ndarray:
    gap = 0.047
    tops = np.arange(-0.05, 1.2, gap)
    width = 0.036 + 0.012 * np.clip(tops, 0, 1)
    bodies = [
        np.array([[-w, t], [w, t], [w * 0.9, t + gap / 2], [w, t + gap * 0.82],
                  [-w, t + gap * 0.82], [-w * 0.9, t + gap / 2]])
        for t, w in zip(tops, width, strict=True)
    ]  # fmt: skip
    pedicles = [np.array([[s * w * 0.62, t + 0.014], [s * w * 0.62, t + 0.022]])
                for t, w in zip(tops, width, strict=True) for s in SIDES]  # fmt: skip
    spines = [np.array([[0, t + 0.024], [0.001, t + 0.038]]) for t in tops]
    return (
        0.05 * frame.fill(_vertebral_column(), soft=0.004)
        + 0.035 * frame.fill(*bodies, soft=0.003)
        + 0.03 * frame.stroke(pedicles, 0.012, 0.003)
        + 0.03 * frame.stroke(spines, 0.012, 0.003)
    )


def _vertebral_column() -> np.ndarray:
    return np.array([[-0.034, -0.1], [0.034, -0.1], [0.046, 1.2], [-0.046, 1.2]])


def _airways(a: Anatomy, frame: Frame) -> np.ndarray:
    carina = a.apex + 0.37 * (a.base - a.apex)
    trachea = np.array([[0.0, -0.2], [0.0, 0.1], [-0.004, carina]])
    right = np.array([[-0.004, carina], [-0.04, carina + 0.035], [-0.075, carina + 0.075]])
    left = np.array([[-0.004, carina], [0.045, carina + 0.03], [0.085, carina + 0.055]])
    return 0.13 * frame.stroke([trachea], 0.032, 0.004) + 0.07 * frame.stroke(
        [right, left], 0.02, 0.004
    )


def _breasts(a: Anatomy, frame: Frame) -> np.ndarray:
    if a.sex != "F":
        return np.zeros((frame.size, frame.size), np.float32)
    low = a.base - 0.01 + 0.6 * a.fat
    shapes = []
    for side in SIDES:
        theta = np.linspace(0, 2 * np.pi, 40)
        u = 0.215 + 0.2 * a.fat + (0.135 + 0.5 * a.fat) * np.cos(theta)
        v = low - 0.09 + (0.115 + 0.5 * a.fat) * np.sin(theta)
        shapes.append(anatomy.mirror(np.stack([u, v], 1), side))
    mask = frame.fill(*shapes, soft=0.003)
    # thickest at the lower fold, thinner upwards
    fade = np.clip((frame.v - (low - 0.2)) / 0.2, 0, 1)
    return (0.06 + 0.9 * a.fat) * mask * fade


def draw_chest(a: Anatomy, frame: Frame, *, heart_ratio: float, raised_arms: bool) -> Chest:
    """Opacities of a chest that is healthy, apart from the width of its heart."""
    lungs = {s: frame.fill(anatomy.lung_outline(a, s), soft=0.0025) for s in SIDES}
    both_lungs = lungs[-1] + lungs[1]
    heart = frame.fill(anatomy.heart_outline(a, heart_ratio), soft=0.006)
    mediastinum = frame.fill(anatomy.mediastinum_outline(a), soft=0.005)
    solid = 1 - (1 - 0.80 * heart) * (1 - 0.85 * mediastinum)
    thickness = 0.5 + 0.5 * frame.depth(both_lungs, 0.05)
    # more soft tissue lies in front of the lung bases
    thickness = thickness * (
        1 - 0.26 * np.clip((frame.v - a.apex) / (a.base - a.apex) - 0.25, 0, 1)
    )
    air = both_lungs * thickness * (1 - solid)
    trunk = _torso(a, frame, raised_arms)
    below = np.clip((frame.v - a.base) / 0.12, 0, 1) * (1 - both_lungs)
    rest = 0.90 * trunk + 0.14 * below * trunk
    rest += _bones(a, frame, raised_arms) * (1 - 0.5 * heart)
    rest += 0.07 * frame.depth(heart, 0.10) * heart + 0.08 * mediastinum * np.clip(
        frame.v / 0.4, 0.2, 1
    )
    rest += _breasts(a, frame) * (1 - 0.8 * below) - _airways(a, frame) * trunk
    rest += 0.020 * frame.field(a.clutter) * trunk
    rest -= _gas(a, frame)
    if a.jaw:
        rest += 0.35 * frame.fill(_chin(), soft=0.008)
    return Chest(lungs, air, _markings(a, frame) * both_lungs * (1 - 0.75 * solid), rest)


def _chin() -> np.ndarray:
    theta = np.linspace(0, np.pi, 24)
    return np.stack([0.115 * np.cos(theta), -0.06 + 0.105 * np.sin(theta) ** 0.8], 1)


def _gas(a: Anatomy, frame: Frame) -> np.ndarray:
    """Gas in the stomach under the left dome, with a level lower edge, and in the bowel."""
    arc, ring = np.linspace(np.pi, 2 * np.pi, 24), np.linspace(0, 2 * np.pi, 24)
    shapes = [
        np.stack([u + ru * np.cos(ring), v + rv * np.sin(ring)], 1) for u, v, ru, rv in a.bowel
    ]
    gas = 0.09 * frame.fill(*shapes, soft=0.008)
    if a.bubble:
        top = a.base + a.left_drop + 0.02
        under = np.stack([0.17 + a.bubble * np.cos(arc), top + 0.045 * (1 + np.sin(arc))], 1)
        gas = gas + 0.20 * frame.fill(under, soft=0.004)
    return gas


def _markings(a: Anatomy, frame: Frame) -> np.ndarray:
    total = np.zeros((frame.size, frame.size), np.float32)
    levels = ((0.0125, 0.10), (0.0080, 0.095), (0.0055, 0.07), (0.0040, 0.05))
    for (width, opacity), curves in zip(levels, a.vessels, strict=True):
        total += opacity * frame.stroke(curves, width)
    du, dv = np.abs(frame.u) - 0.088, frame.v - (a.apex + 0.47 * (a.base - a.apex))
    # markings thin out towards the pleura and upwards
    total *= np.exp(-(du**2 + np.where(dv < 0, 1.5 * dv, 0.6 * dv) * dv) / 0.05)
    total += 0.13 * np.exp(-((du / 0.030) ** 2) - (dv / 0.06) ** 2)
    return total


def draw_devices(rng: np.random.Generator, frame: Frame, a: Anatomy, portable: bool) -> np.ndarray:
    """Opacity [h w] of ECG leads, lines and a pacemaker. They are independent of the findings."""
    total = np.zeros((frame.size, frame.size), np.float32)
    if rng.random() < (0.45 if portable else 0.1):
        for _ in range(int(rng.integers(2, 5))):
            spot = np.array([rng.uniform(-0.3, 0.3), rng.uniform(0.18, 0.7)])
            away = spot + np.array(
                [rng.choice([-1, 1]) * rng.uniform(0.3, 0.6), rng.uniform(0, 0.5)]
            )
            mid = (spot + away) / 2 + rng.normal(0, 0.05, 2)
            total += 0.22 * frame.stroke([spot + np.zeros((2, 2))], 0.018)
            total += 0.16 * frame.stroke([_bezier(spot, mid, away)], 0.004)
    if rng.random() < (0.35 if portable else 0.05):
        side = rng.choice(SIDES)
        tip = np.array([-0.045, a.apex + 0.5 * (a.base - a.apex)])
        start = np.array([side * 0.30, a.apex + rng.uniform(-0.02, 0.08)])
        total += 0.14 * frame.stroke([_bezier(start, np.array([side * 0.02, 0.13]), tip)], 0.005)
    if a.pacemaker:
        box = anatomy.smooth(
            [(0.22, 0.2), (0.26, 0.195), (0.305, 0.21), (0.31, 0.26), (0.29, 0.29), (0.23, 0.28)]
        )
        lead = _bezier(
            np.array([0.24, 0.21]), np.array([0.02, 0.1]), np.array([0.03, a.base - 0.06])
        )
        total += 0.6 * frame.fill(box) + 0.3 * frame.stroke([lead], 0.005)
    return total


def _bezier(p: np.ndarray, q: np.ndarray, r: np.ndarray) -> np.ndarray:
    t = np.linspace(0, 1, 24)[:, None]
    return np.asarray((1 - t) ** 2 * p + 2 * t * (1 - t) * q + t**2 * r)


def draw_marker(rng: np.random.Generator, size: int, portable: bool) -> np.ndarray:
    """The technician's lead letter L or R and, on some portable films, a word: values 0 to 1 [h w]."""
    canvas = np.zeros((size, size), np.uint8)
    letter, x = (
        ("L", rng.uniform(0.86, 0.94)) if rng.random() < 0.8 else ("R", rng.uniform(0.03, 0.1))
    )
    at = (int(x * size), int(rng.uniform(0.06, 0.3) * size))
    cv2.putText(canvas, letter, at, cv2.FONT_HERSHEY_DUPLEX, size / 512, 255, 1, cv2.LINE_AA)
    if portable and rng.random() < 0.5:
        at = (int(rng.uniform(0.02, 0.7) * size), int(rng.choice([0.04, 0.98]) * size))
        cv2.putText(canvas, "PORTABLE", at, cv2.FONT_HERSHEY_PLAIN, size / 480, 230, 1, cv2.LINE_AA)
    return canvas.astype(np.float32) / 255


def draw_exposure(rng: np.random.Generator, portable: bool) -> Exposure:
    margins = rng.uniform(0, 0.03, 4) * (rng.random(4) < 0.6) * (rng.random() < 0.25)
    left, top, right, bottom = (float(margin) for margin in margins)
    return Exposure(
        low=rng.uniform(0.05, 0.22),
        high=rng.uniform(1.12, 1.42),
        gamma=rng.uniform(0.8, 1.25),
        haze=rng.uniform(0.10, 0.35) if portable else rng.uniform(0.0, 0.2),
        tilt=(rng.normal(0, 0.05), rng.normal(0, 0.05)),
        noise=rng.uniform(0.008, 0.022),
        border=(left, top, right, bottom),
    )


def develop(opacity: np.ndarray, marker: np.ndarray, e: Exposure, seed: list[int]) -> np.ndarray:
    """Opacity → grey levels uint8 [h w].

    Nothing here depends on the picture's statistics, so a finding changes pixels only where it is drawn.
    """
    size = opacity.shape[0]
    ramp = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    exposed = opacity + e.tilt[0] * ramp[None, :] + e.tilt[1] * ramp[:, None]
    x = (exposed - e.low) / (e.high - e.low)
    # a curve with soft ends instead of clipping, as in films and detectors
    grey = 1 / (1 + np.exp(-5.2 * (x - 0.5)))
    grey = np.clip((grey - 0.07) / 0.86, 0, None) ** e.gamma
    grey = grey * (1 - e.haze) + e.haze * 0.62 * np.clip(opacity / 0.4, 0, 1)
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((size, size), np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), 0.6) * 1.6
    grey = grey + e.noise * noise * (0.5 + 0.5 * np.sqrt(np.clip(1 - grey, 0, 1)))
    grey = np.maximum(grey, 0.92 * marker)
    left, top, right, bottom = (round(m * size) for m in e.border)
    frame = np.zeros_like(grey)
    frame[top : size - bottom, left : size - right] = 1
    return np.asarray(np.clip(grey * frame * 255, 0, 255).round(), np.uint8)
