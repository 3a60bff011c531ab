"""Template and content → one HTML file that loads no other file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from kacl_jax.evaluation.number_format import interval, p_value, short, signed
from kacl_jax.runtime import files


def write(path: Path, template: str, content: Mapping[str, Any]) -> None:
    """Render a template of this package into a file. The file is written completely or not at all.

    Raises:
      UserError: the file cannot be written.
    """
    files.write_text(
        path,
        render(template, content),
        fix="free some disk space, then write it again with --mode=eval (a sweep: --table_only)",
    )


def render(template: str, content: Mapping[str, Any], *, package: str = "kacl_jax.report") -> str:
    """The page's text. package: its templates are looked up first, so that they can extend those of this package."""
    return _environment(package).get_template(template).render(content)


@lru_cache
def _environment(package: str) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader(package), jinja2.PackageLoader("kacl_jax.report")]
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "short": short,
        "interval": interval,
        "signed": signed,
        "count": lambda n: f"{n:,}",
        "p": p_value,
        "quantity": quantity,
        "breakable": breakable,
    }
    return environment


def quantity(value: float) -> str:
    """A number of any size in four digits; without an exponent where that is short enough to read."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"


def breakable(name: str) -> Markup:
    """A name in CamelCase with optional line breaks between its words."""
    return Markup("<wbr>").join(re.findall(r"[A-Z]?[^A-Z]+|[A-Z]+", name))
