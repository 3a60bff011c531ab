"""What a case expects, what came out, and whether that is right, a sentence or a fault."""

from __future__ import annotations

import functools
import logging
import math
import re
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from kacl_jax.radiomics import FAMILIES, FEATURE_NAMES

RIGHT, SENTENCE = "right", "sentence"
TRACEBACK, CRASH, WRONG, LOST = "traceback", "crash", "wrong", "lost"
FAULTS = (TRACEBACK, CRASH, WRONG, LOST)  # from bad to less bad
_MOST_LEVELS = 1600  # pyradiomics needs 32 bytes times the square of it

# Relative tolerance, and floors for what cancels to zero.
_RELATIVE, _FLOOR = 1e-5, 1e-6
_FLOORS = {"Imc2": 1e-5, "MinorAxisLength": 2e-5, "MCC": 1e-5}
# Where the exact value is 0, the sign of pyradiomics' rounding error decides between 0 and NaN.
_SIGN_OF_ROUNDING_DECIDES = ("MCC", "Imc2")


class Region(NamedTuple):
    """pixels: [h w] of any real dtype. mask: bool [h w]."""

    pixels: np.ndarray
    mask: np.ndarray


class Row(NamedTuple):
    """What a row may be: the features of one of `truths`, or where `may_refuse` a reason instead."""

    truths: tuple[Region, ...]
    may_refuse: bool


class Bins(NamedTuple):
    width: Any = 25.0
    count: Any = None


class Case(NamedTuple):
    """`call` runs the program under test and returns an `Answer`.

    whole_may_refuse: one sentence for the whole call is right too. must_say: a regular expression for what the user
    must be able to read.
    """

    what: str
    call: Callable[[], Answer]
    rows: list[Row]
    bins: Bins = Bins()
    whole_may_refuse: bool = False
    must_say: str = ""


class Answer(NamedTuple):
    """What came out. rows: for each (features [102] or a picture [h w], or None; the reason), or None if the whole
    call was refused. text: all that the user could read."""

    rows: list[tuple[np.ndarray | None, str]] | None
    text: str


def same(pixels: np.ndarray, mask: np.ndarray) -> Row:
    return Row((Region(pixels, mask),), False)


def either(*truths: Region) -> Row:
    return Row(truths, True)


REFUSED = Row((), True)


def judge(case: Case, answer: Answer) -> tuple[str, str]:
    """(RIGHT, SENTENCE or a fault, what is wrong)."""
    verdict, text = _judge_rows(case, answer)
    if verdict in (RIGHT, SENTENCE) and not re.search(case.must_say, answer.text, re.I | re.S):
        return WRONG, f"nothing says /{case.must_say}/: {answer.text}"
    return verdict, text


def _judge_rows(case: Case, answer: Answer) -> tuple[str, str]:
    if answer.rows is None:
        if not answer.text.strip():
            return WRONG, "refused without a sentence"
        if case.whole_may_refuse or all(row.may_refuse for row in case.rows):
            return SENTENCE, answer.text
        return LOST, f"no row has values: {answer.text}"
    if len(answer.rows) != len(case.rows):
        return WRONG, f"{len(answer.rows)} rows instead of {len(case.rows)}, without an error"
    verdicts = [_judge_row(*pair, case.bins) for pair in zip(case.rows, answer.rows, strict=True)]
    for kind in (WRONG, LOST):
        for number, (verdict, text) in enumerate(verdicts):
            if verdict == kind:
                return kind, f"row {number}: {text}"
    sentences = [text for verdict, text in verdicts if verdict == SENTENCE]
    return (SENTENCE, sentences[0]) if sentences else (RIGHT, "")


def _judge_row(row: Row, answer: tuple[np.ndarray | None, str], bins: Bins) -> tuple[str, str]:
    values, reason = answer
    if values is None:
        if not reason.strip():
            return WRONG, "not ready, without a reason"
        return (SENTENCE if row.may_refuse else LOST), reason
    if not row.truths:
        return WRONG, f"values ({_summary(values)}) where only a refusal is right"
    differences = [_difference(values, truth, bins) for truth in row.truths]
    return (RIGHT, "") if "" in differences else (WRONG, differences[0])


def _summary(values: np.ndarray) -> str:
    if values.ndim == 2:
        return f"a picture {values.shape}"
    names = ("firstorder_Mean", "shape2D_PixelSurface")
    return ", ".join(f"{n} {values[FEATURE_NAMES.index('original_' + n)]:.6g}" for n in names)


def _difference(values: np.ndarray, truth: Region, bins: Bins) -> str:
    """'' where the values are those of the truth. A picture must have its pixels."""
    if values.ndim == 2:
        equal = values.shape == truth.pixels.shape and np.array_equal(values, truth.pixels)
        return "" if equal else f"another picture, {values.shape} of mean {values.mean():.6g}"
    for name, value in _by_numpy(truth, bins).items():
        actual = values[FEATURE_NAMES.index(f"original_{name}")]
        if not math.isclose(actual, value, rel_tol=_RELATIVE, abs_tol=_FLOOR):
            return f"{name} is {actual:.8g} instead of {value:.8g}"
    expected = _by_pyradiomics(truth, bins)
    if expected is None:
        return ""
    scale = max(float(expected[FEATURE_NAMES.index("original_glcm_ClusterTendency")]), 1.0)
    for name, a, b in zip(FEATURE_NAMES, values, expected, strict=True):
        short = name.split("_")[-1]
        if short in _SIGN_OF_ROUNDING_DECIDES and math.isnan(b):
            continue
        floor = _FLOORS.get(short, _FLOOR) * (scale**1.5 if short == "ClusterShade" else 1)
        if math.isnan(a) != math.isnan(b) or abs(a - b) > _RELATIVE * abs(b) + floor:
            return f"{name} is {a:.8g} instead of {b:.8g}"
    return ""


def _edges(values: np.ndarray, bins: Bins) -> np.ndarray | None:
    """pyradiomics' lower edges of bins, or None where they are too many or the arguments make none."""
    low, high = np.float32(values.min()), np.float32(values.max())
    if bins.count is not None:
        if not isinstance(bins.count, int) or not 1 <= bins.count <= 1_000_000:
            return None
        edges = np.histogram(np.array([low, high]), bins.count)[1]
        edges[-1] += 1
        return edges
    if not 0 < bins.width < math.inf or (high - low) / bins.width > 1e7:
        return None
    edges = np.arange(low - low % bins.width, high + 2 * bins.width, bins.width)
    return edges if len(edges) > 1 else edges[0] + np.array([-0.5, 0.5])


def _by_numpy(truth: Region, bins: Bins) -> dict[str, float]:
    """What numpy computes in a few lines, for any number of levels."""
    values = truth.pixels[truth.mask].astype(np.float32)
    wide = values.astype(np.float64)
    found = {
        "firstorder_Mean": wide.mean(),
        "firstorder_Minimum": wide.min(),
        "firstorder_Maximum": wide.max(),
        "shape2D_PixelSurface": float(truth.mask.sum()),
    }
    edges = _edges(values, bins)
    if edges is None:
        return found
    levels = np.zeros(truth.mask.shape, np.int64)
    levels[truth.mask] = np.digitize(values, edges)
    share = np.unique(levels[truth.mask], return_counts=True)[1] / len(values)
    found["firstorder_Entropy"] = float(-(share * np.log2(share)).sum())
    found["firstorder_Uniformity"] = float((share**2).sum())
    padded = np.pad(levels, 1)
    contrasts = []
    for step in ((0, 1), (1, 1), (1, 0), (1, -1)):
        other = np.roll(padded, step, (0, 1))
        pair = (padded > 0) & (other > 0)
        if pair.any():
            contrasts.append(float(((padded - other)[pair].astype(float) ** 2).mean()))
    if contrasts:
        found["glcm_Contrast"] = float(np.mean(contrasts))
    return found


@functools.cache
def _pyradiomics() -> Callable[..., Any]:
    import radiomics
    import SimpleITK
    from radiomics.featureextractor import RadiomicsFeatureExtractor

    radiomics.logger.setLevel(logging.CRITICAL)

    def execute(region: Region, settings: dict[str, Any]) -> Any:
        extractor = RadiomicsFeatureExtractor(force2D=False, additionalInfo=False, **settings)
        extractor.disableAllFeatures()
        for family in FAMILIES:
            extractor.enableFeatureClassByName(family)
        return extractor.execute(
            SimpleITK.GetImageFromArray(region.pixels.astype(np.float32)),
            SimpleITK.GetImageFromArray(region.mask.astype(np.uint8)),
        )

    return execute


def _by_pyradiomics(truth: Region, bins: Bins) -> np.ndarray | None:
    """[102] by pyradiomics' documented call, or None where it has no values or needs too much memory."""
    edges = _edges(truth.pixels[truth.mask].astype(np.float32), bins)
    if edges is None or len(edges) > _MOST_LEVELS:
        return None
    settings = {"binWidth": bins.width} if bins.count is None else {"binCount": bins.count}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            values = _pyradiomics()(truth, settings)
        except Exception:  # pyradiomics refuses this region with whatever error it meets
            return None
    return np.array([float(np.real(values[name])) for name in FEATURE_NAMES])
