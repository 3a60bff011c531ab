"""The table of keys, as --help and docs/keys.md show it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kacl_jax.config import reference
from kacl_jax.config.keys import KEYS
from kacl_jax.models.encoders import ENCODERS

REPO = Path(__file__).resolve().parents[2]


def test_the_page_is_that_of_the_table() -> None:
    page = (REPO / reference.PAGE).read_text()
    assert page == reference.as_markdown(), (
        "the table of keys has changed: python -m kacl_jax.config.reference > docs/keys.md"
    )
    for encoder in ENCODERS:
        assert f"'{encoder}'" in page


@pytest.mark.parametrize("module", ["kacl_jax.main", "kacl_jax.sweep"])
def test_help_shows_every_key_and_imports_no_jax(module: str) -> None:
    code = (
        f"import runpy, sys; sys.argv = ['{module}', '--help']\n"
        f"try: runpy.run_module('{module}', run_name='__main__', alter_sys=True)\n"
        "finally: print('jax imported:', 'jax' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=REPO,
        env={"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"},
        timeout=60,
    )
    assert done.stdout.endswith("jax imported: False\n"), done.stderr
    text = " ".join(done.stdout.split())
    assert "--workdir: The folder for all output" in text
    for name, key in KEYS.items():
        assert f"--config.{name}: " in text
        assert f"default: {key.default!r})" in text
    assert (
        "--config.cam.threshold: A CAM region is where the map, scaled to [0, 1], is above" in text
    )
    assert "(a number: in [0, 1); default: 0.5)" in text


def test_every_meaning_is_a_sentence_that_fits_a_table() -> None:
    for name, key in KEYS.items():
        assert key.meaning.endswith("."), name
        assert "|" not in key.meaning, name
