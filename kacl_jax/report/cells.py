"""A finding's share in each cell of the fusion's grid, as rectangles: over an X-ray, or alone. Imports no jax."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from kacl_jax.evaluation.number_format import signed
from kacl_jax.fusion.grid import FRAME

_FULL = 0.75  # opacity of the largest share
_SIDE = 44.0  # px of a cell that stands alone


def over_image(
    cells: np.ndarray, width: float, height: float, largest: float | None = None
) -> Markup:
    """Rectangles at the cells' places in an image: `above` where a cell raises the score, `below` where it lowers it.

    Args:
      cells: float [g g], NaN for a missing cell, which is only outlined.
      width, height: of the image. largest: the share with the darkest rectangle; by default the largest that there is.
    """
    g = len(cells)
    known = np.abs(cells[np.isfinite(cells)])
    full = largest or (float(known.max()) if known.size else 0.0) or 1.0
    x0, y0, x1, y1 = FRAME
    columns = np.linspace(x0, x1, g + 1) * width
    rows = np.linspace(y0, y1, g + 1) * height
    return Markup("").join(
        _rectangle(
            float(cells[i, j]),
            full,
            (columns[j], rows[i], columns[j + 1] - columns[j], rows[i + 1] - rows[i]),
        )
        for i in range(g)
        for j in range(g)
    )


def alone(cells: Sequence[Sequence[float]], alt: str) -> Markup:
    """The cells as a picture of their own, each with its number."""
    values = np.array(cells, float)
    g = len(values)
    side = _SIDE * g
    x0, y0, x1, y1 = FRAME
    width, height = side / (x1 - x0), side / (y1 - y0)
    rectangles = over_image(values, width, height)
    numbers = Markup("").join(
        Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>').format(
            x0 * width + (j + 0.5) * _SIDE,
            y0 * height + (i + 0.5) * _SIDE + 4,
            "–" if math.isnan(values[i, j]) else f"{values[i, j]:.2f}",
        )
        for i in range(g)
        for j in range(g)
    )
    return Markup(
        '<svg class="cells" viewBox="{:.1f} {:.1f} {:.1f} {:.1f}" role="img" aria-label="{}">{}{}</svg>'
    ).format(x0 * width - 1, y0 * height - 1, side + 2, side + 2, alt, rectangles, numbers)


def _rectangle(share: float, full: float, place: tuple[float, float, float, float]) -> Markup:
    x, y, width, height = place
    missing = math.isnan(share)
    style = "missing" if missing else "below" if share < 0 else "above"
    opacity = 0.0 if missing else _FULL * min(abs(share) / full, 1.0)
    title = "not measured" if missing else signed(share, 2)
    return Markup(
        '<rect class="cell {}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill-opacity="{:.2f}">'
        "<title>{}</title></rect>"
    ).format(style, x, y, width, height, opacity, title)
