"""Lines, intervals and bars as SVG: text stays text, and the colours come from the page's style.css.

Every function returns markup with all strings escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeGuard

from markupsafe import Markup

ChartPoint = tuple[float, float | None]
_LEFT, _RIGHT, _TOP, _BOTTOM = 32, 14, 8, 30  # px around the frame: room for the ticks' text


@dataclass(frozen=True)
class Axis:
    """One axis: its range, its ticks, its label, and how a tick is written."""

    low: float
    high: float
    ticks: Sequence[float]
    label: str = ""
    text: Callable[[float], str] = "{:g}".format


@dataclass(frozen=True)
class Line:
    """One line.

    points: (x, y); the line is interrupted where y is None or NaN. style: a class of style.css.
    band: (x, low, high) of an interval around the line.
    dots: whether each point has a dot.
    """

    points: Sequence[ChartPoint]
    style: str
    band: Sequence[tuple[float, float, float]] = field(default=())
    dots: bool = False


def line_chart(
    lines: Sequence[Line],
    x: Axis,
    y: Axis,
    *,
    alt: str,
    size: tuple[int, int],
    rules: Iterable[tuple[tuple[float, float], tuple[float, float]]] = (),
    marks: Iterable[tuple[float, float]] = (),
) -> Markup:
    """Lines over two axes. rules: thin straight lines for comparison. marks: points to highlight."""
    width, height = size
    right, bottom = width - _RIGHT, height - _BOTTOM

    def to_svg(point: tuple[float, float]) -> tuple[float, float]:
        across = (point[0] - x.low) / (x.high - x.low or 1)
        up = (point[1] - y.low) / (y.high - y.low or 1)
        return _LEFT + across * (right - _LEFT), bottom - up * (bottom - _TOP)

    parts = [_axes(x, y, to_svg, right, bottom, height)]
    for start, end in rules:
        (x0, y0), (x1, y1) = to_svg(start), to_svg(end)
        parts.append(_tag("line", "rule", x1=x0, y1=y0, x2=x1, y2=y1))
    for line in lines:
        if line.band:
            border = [(a, low) for a, low, _ in line.band]
            border += [(a, high) for a, _, high in reversed(line.band)]
            path = _path([to_svg(point) for point in border])
            parts.append(_tag("path", f"band {line.style}", d=path + "Z"))
    for line in lines:
        pieces = [[to_svg(point) for point in piece] for piece in _unbroken_parts(line.points)]
        parts.append(_tag("path", f"line {line.style}", d="".join(map(_path, pieces))))
        if line.dots:
            parts += [
                _tag("circle", line.style, cx=a, cy=b, r=2.6) for piece in pieces for a, b in piece
            ]
    for mark in marks:
        cx, cy = to_svg(mark)
        parts.append(_tag("circle", "mark", cx=cx, cy=cy, r=4))
    return _svg(width, height, "chart", alt, parts)


def _axes(
    x: Axis,
    y: Axis,
    to_svg: Callable[[tuple[float, float]], tuple[float, float]],
    right: float,
    bottom: float,
    height: float,
) -> Markup:
    parts = []
    for tick in y.ticks:
        _, height_of_tick = to_svg((x.low, tick))
        parts.append(_tag("line", "grid", x1=_LEFT, y1=height_of_tick, x2=right, y2=height_of_tick))
        parts.append(_text(_LEFT - 5, height_of_tick + 3.5, y.text(tick), "end"))
    for tick in x.ticks:
        across, _ = to_svg((tick, y.low))
        parts.append(_tag("line", "tick", x1=across, y1=bottom, x2=across, y2=bottom + 3))
        parts.append(_text(across, bottom + 14, x.text(tick), "middle"))
    parts.append(_tag("line", "axis", x1=_LEFT, y1=bottom, x2=right, y2=bottom))
    parts.append(_text((_LEFT + right) / 2, height - 4, x.label, "middle", "label"))
    return Markup("").join(parts)


def nice_axis(values: Iterable[float], label: str = "", *, zero: bool = False) -> Axis:
    """An axis around the values with three to six round ticks. zero: it starts at 0."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = (0.0 if zero else min(finite)), max(finite)
    if high <= low:
        low, high = low - (0 if zero else 0.5), low + (1 if zero else 0.5)
    raw = (high - low) / 4
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * k for k in (1, 2, 2.5, 5, 10) if unit * k >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [round(k * step, 12) for k in range(first, last + 1)]
    return Axis(ticks[0], ticks[-1], ticks, label)


def interval_chart(
    value: float | None,
    ci95: Sequence[float] | None,
    *,
    low: float,
    high: float,
    alt: str,
    floors: Iterable[tuple[float | None, str]] = (),
    rule: float | None = None,
) -> Markup:
    """A value as a dot with its interval, on a line from low to high; each floor is a tick across the line.

    What is None or NaN is not drawn.
    floors: (value, class of style.css). rule: a thin line across, for chance, say.
    """
    width, height = 132, 18

    def to_svg(v: float) -> float:
        return 4 + (min(max(v, low), high) - low) / (high - low) * (width - 8)

    parts = [_tag("line", "grid", x1=4, y1=9, x2=width - 4, y2=9)]
    if rule is not None:
        parts.append(_tag("line", "rule", x1=to_svg(rule), y1=1, x2=to_svg(rule), y2=17))
    for floor, style in floors:
        if _is_finite(floor):
            parts.append(
                _tag("line", f"line {style}", x1=to_svg(floor), y1=2, x2=to_svg(floor), y2=16)
            )
    if ci95 is not None:
        parts.append(_tag("line", "line run", x1=to_svg(ci95[0]), y1=9, x2=to_svg(ci95[1]), y2=9))
    if _is_finite(value):
        parts.append(_tag("circle", "run", cx=to_svg(value), cy=9, r=3.6))
    return _svg(width, height, "track", alt, parts)


def signed_bar(value: float, max_value: float, alt: str) -> Markup:
    """A bar from the middle to the left (value < 0) or to the right; it ends at ±max_value."""
    width, height, middle = 120, 12, 60
    length = min(abs(value) / max_value, 1) * (middle - 2)
    left = middle - length if value < 0 else middle
    style = "below" if value < 0 else "above"
    bar = _tag("rect", style, x=left, y=2, width=length, height=8)
    axis = _tag("line", "axis", x1=middle, y1=0, x2=middle, y2=height)
    return _svg(width, height, "track", alt, [bar, axis])


def share_bar(share: float, alt: str) -> Markup:
    """A bar; its filled part is `share` of its width."""
    width, height = 132, 12
    background = _tag("rect", "rest", x=0, y=2, width=width, height=8)
    filled = _tag("rect", "above", x=0, y=2, width=width * share, height=8)
    return _svg(width, height, "track", alt, [background, filled])


def _svg(width: float, height: float, style: str, alt: str, parts: Iterable[Markup]) -> Markup:
    return Markup('<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        style, width, height, alt, Markup("").join(parts)
    )


def _tag(name: str, style: str, **attributes: float | str) -> Markup:
    attribute_text = Markup("").join(
        Markup(' {}="{}"').format(key, value if isinstance(value, str) else _px(value))
        for key, value in attributes.items()
    )
    return Markup('<{} class="{}"{}/>').format(name, style, attribute_text)


def _text(x: float, y: float, text: str, anchor: str, style: str = "") -> Markup:
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(
        style, _px(x), _px(y), anchor, text
    )


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{_px(a)} {_px(b)}" for a, b in points) if points else ""


def _unbroken_parts(points: Iterable[ChartPoint]) -> list[list[tuple[float, float]]]:
    """The parts of a line between its gaps."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for a, b in points:
        if _is_finite(b):
            pieces[-1].append((a, b))
        else:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _is_finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
