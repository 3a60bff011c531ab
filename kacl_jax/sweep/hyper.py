"""The points of a sweep: named arms × folds × seeds, as a sweep config's `get_hyper` gives them.

    def get_hyper(variant: str = "all") -> Sweep:
        arms = [Arm("focal", {"loss.focal_weight": 1.0}), Arm("kacl", against=("focal",))]
        return Sweep(arms, points(arms, folds=range(5), seeds=(0, 1, 2)))

An arm is a name for values of some config keys; arms run no code of their own. This module imports neither jax nor a
config.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kacl_jax.runtime.errors import UserError
from kacl_jax.sweep.measure import FLOORS

Overrides = Mapping[str, Any]  # dotted config key → value


@dataclass(frozen=True)
class Arm:
    """One row of the table.

    against: the arms that it is compared with, paired by fold, seed and patient.
    selection_boxes: how many truth boxes were used to choose its overrides (a threshold, say). An arm that used a
      box in training or in such a choice is listed in the table's second part.
    exploratory: its p-values are corrected for multiple comparisons apart from those of the other arms.
    """

    name: str
    overrides: Overrides = field(default_factory=dict, hash=False)
    against: tuple[str, ...] = ()
    selection_boxes: int = 0
    exploratory: bool = False


@dataclass(frozen=True)
class Point:
    """One run: an arm in one fold with one seed."""

    arm: Arm
    fold: int
    seed: int

    @property
    def name(self) -> str:
        """Its workdir, relative to the sweep's workdir."""
        return f"{self.arm.name}/fold{self.fold}-seed{self.seed}"

    @property
    def overrides(self) -> dict[str, Any]:
        """What differs from the base config."""
        return {"fold": self.fold, "seed": self.seed, **self.arm.overrides}


@dataclass(frozen=True)
class Sweep:
    """Arms in the table's order, points in the order in which they run.

    Raises:
      UserError: lists all of these: an arm or a point that is there twice; a name that is no plain folder name, or
        the name of a floor; a baseline that is not among the arms, or not in a tuple; a point of an unknown arm; an
        arm that sets `fold` or `seed`.
    """

    arms: Sequence[Arm]
    points: Sequence[Point]

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        point_names = [point.name for point in self.points]
        problems = [
            f"{name} appears twice" for name in _duplicates(names) + _duplicates(point_names)
        ]
        for arm in self.arms:
            if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", arm.name):
                problems.append(f"{arm.name!r} is not a valid name; use letters, digits, _ . + -")
            if arm.name in FLOORS:
                problems.append(f"{arm.name} is the name of a floor; choose another name")
            if not isinstance(arm.against, tuple):
                problems.append(f"{arm.name} has against={arm.against!r}; write ('focal',)")
                continue
            problems += [
                f"{arm.name} is compared with {other}, but no other arm has that name"
                for other in arm.against
                if other not in names or other == arm.name
            ]
            problems += [
                f"{arm.name} sets {key}, but every point has its own"
                for key in ("fold", "seed")
                if key in arm.overrides
            ]
        problems += [f"{p.name} belongs to no arm" for p in self.points if p.arm not in self.arms]
        if problems:
            raise UserError("The sweep is not valid:\n  " + "\n  ".join(problems))


def product(**axes: Iterable[Any]) -> list[dict[str, Any]]:
    """Every combination; the last axis changes fastest: product(a=(1, 2), b=(3,)) = [{a: 1, b: 3}, {a: 2, b: 3}]."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def zipped(**axes: Iterable[Any]) -> list[dict[str, Any]]:
    """The n-th values of all axes together: zipped(a=(1, 2), b=(3, 4)) = [{a: 1, b: 3}, {a: 2, b: 4}].

    Raises ValueError where one is longer than another. Dotted keys go in as `**{"loss.temperature": (0.1, 0.5)}`.
    """
    return [dict(zip(axes, values, strict=True)) for values in zip(*axes.values(), strict=True)]


def points(arms: Iterable[Arm], *, folds: Iterable[int], seeds: Iterable[int]) -> list[Point]:
    """All folds of an arm before the next arm, all arms with one seed before the next seed."""
    return [
        Point(cell["arm"], cell["fold"], cell["seed"])
        for cell in product(seed=seeds, arm=arms, fold=folds)
    ]


def _duplicates(names: Sequence[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})
