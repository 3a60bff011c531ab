"""fusion.json: the fusion of a run as a file, so that it can be applied to other images.

It names the step of its checkpoint and has a digest of its content.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kacl_jax.evaluation.operating_points import OperatingPoint
from kacl_jax.evaluation.platt import PlattScaling
from kacl_jax.fusion.ridge import Ridge
from kacl_jax.fusion.scores import IMAGE, RADIOMICS, SOURCES, Fusion, Moments
from kacl_jax.radiomics import FEATURE_NAMES
from kacl_jax.runtime.errors import UserError
from kacl_jax.runtime.sealed_json import decode_float32, encode_float32, read_sealed, write_sealed

NAME = "fusion.json"
_FIX = "write it again with the run's own command and --mode=eval"


@dataclass(frozen=True, eq=False)
class Applied:
    """A fusion, and what was chosen for its scores on the validation part. points, scalings: by finding."""

    fusion: Fusion
    points: tuple[OperatingPoint, ...]
    scalings: tuple[PlattScaling, ...]


@dataclass(frozen=True, eq=False)
class SavedFusion:
    """What it takes to apply a fusion.

    kind: as config.fusion.kind. grid: cells along one side. bin_width: of the radiomics.
    longest: px; the longer side of the run's largest picture, to which a larger one shrinks before it is measured.
    start: a digest of the starting image encoder's weights, which make the image features.
    control: network and image features alone; None where `fused` is that.
    """

    kind: str
    grid: int
    bin_width: float
    longest: int
    start: str
    fused: Applied
    control: Applied | None


def write(workdir: Path, saved: SavedFusion, *, step: int, findings: Sequence[str]) -> None:
    """step: of the checkpoint whose logits are fused."""
    control = saved.control
    content = {
        "step": step,
        "kind": saved.kind,
        "grid": saved.grid,
        "bin_width": saved.bin_width,
        "longest": saved.longest,
        "start": saved.start,
        "fused": _applied_content(saved.fused, findings),
        "control": None if control is None else _applied_content(control, findings),
    }
    write_sealed(workdir / NAME, content)


def read(workdir: Path, *, step: int, findings: Sequence[str]) -> SavedFusion:
    """The fusion of the checkpoint of `step`.

    Raises:
      UserError: the file is missing, damaged, or belongs to another checkpoint.
    """
    path = workdir / NAME
    content = read_sealed(path, _FIX)
    if content.get("step") != step:
        raise UserError(
            f"{path} belongs to the checkpoint of step {content.get('step')}, but the run's best step is {step}; {_FIX}"
        )
    try:
        kind, control = _typed(str, content["kind"]), content["control"]
        side = _typed(int, content["grid"])
        return SavedFusion(
            kind=kind,
            grid=side,
            bin_width=_float(content["bin_width"]),
            longest=_typed(int, content["longest"]),
            start=_typed(str, content["start"]),
            fused=_applied(content["fused"], findings, SOURCES[kind], side),
            control=None if control is None else _applied(control, findings, (IMAGE,), side),
        )
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(f"{path} was written by another version ({error!r}); {_FIX}") from error


def _applied_content(applied: Applied, findings: Sequence[str]) -> dict[str, Any]:
    fusion = applied.fusion
    chosen = zip(findings, applied.points, applied.scalings, strict=True)
    return {
        "weight": fusion.weight,
        "weight_reason": fusion.weight_reason,
        "logit_spread": _numbers(fusion.logit_spread),
        "ridges": {source: _ridge_content(fusion, source) for source in fusion.ridges},
        "findings": {
            name: {
                "threshold": _number(point.threshold),
                "youden_j": _number(point.youden_j),
                "reason": point.reason,
                "scaling": asdict(scaling),
            }
            for name, point, scaling in chosen
        },
    }


def _applied(
    content: Mapping[str, Any], findings: Sequence[str], sources: Sequence[str], side: int
) -> Applied:
    ridges = {source: content["ridges"][source] for source in sources}
    chosen, c = [content["findings"][name] for name in findings], len(findings)
    return Applied(
        fusion=Fusion(
            ridges={source: _ridge(source, part, c, side) for source, part in ridges.items()},
            moments={
                source: Moments(_array(part["z_mean"], c), _array(part["z_spread"], c))
                for source, part in ridges.items()
            },
            logit_spread=_array(content["logit_spread"], c),
            weight=_float(content["weight"]),
            weight_reason=_typed(str, content["weight_reason"]),
        ),
        points=tuple(
            OperatingPoint(
                _nan(one["threshold"]), _nan(one["youden_j"]), _typed(str, one["reason"])
            )
            for one in chosen
        ),
        scalings=tuple(_scaling(one["scaling"]) for one in chosen),
    )


def _scaling(content: Mapping[str, Any]) -> PlattScaling:
    return PlattScaling(
        slope=_float(content["slope"]),
        intercept=_float(content["intercept"]),
        positives=_typed(int, content["positives"]),
        negatives=_typed(int, content["negatives"]),
        reason=_typed(str, content["reason"]),
    )


def _ridge_content(fusion: Fusion, source: str) -> dict[str, Any]:
    ridge, moments = fusion.ridges[source], fusion.moments[source]
    return {
        "penalty": ridge.penalty,
        "reasons": list(ridge.reasons),
        "mean": encode_float32(ridge.mean),
        "scale": encode_float32(ridge.scale),
        "coef": encode_float32(ridge.coef),
        "intercept": ridge.intercept.tolist(),
        "z_mean": _numbers(moments.mean),
        "z_spread": _numbers(moments.spread),
    }


def _ridge(source: str, content: Mapping[str, Any], c: int, side: int) -> Ridge:
    mean, scale = (decode_float32(content[name]).astype(np.float64) for name in ("mean", "scale"))
    p = side**2 * len(FEATURE_NAMES) if source == RADIOMICS else len(mean)
    reasons = tuple(_typed(str, reason) for reason in content["reasons"])
    if not len(mean) == len(scale) == p or len(reasons) != c:
        raise ValueError(f"the regression on {source} does not fit its features and findings")
    return Ridge(
        mean=mean,
        scale=scale,
        coef=decode_float32(content["coef"]).reshape(c, p).astype(np.float64),
        intercept=_array(content["intercept"], c),
        penalty=_float(content["penalty"]),
        reasons=reasons,
    )


def _numbers(values: np.ndarray) -> list[float | None]:
    """None for NaN, which JSON does not have."""
    return [_number(value) for value in values.tolist()]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _nan(number: Any) -> float:
    return math.nan if number is None else _float(number)


def _array(numbers: Sequence[Any], n: int) -> np.ndarray:
    """float64 [n]. Raises ValueError if it has another length."""
    return np.array([_nan(number) for number in numbers], np.float64).reshape(n)


def _float(number: Any) -> float:
    return float(number) if type(number) is int else float(_typed(float, number))


def _typed(kind: type, value: Any) -> Any:
    """The value itself. Raises TypeError if it is of another type."""
    if type(value) is not kind:
        raise TypeError(f"{value!r:.40} is not of type {kind.__name__}")
    return value
