"""docs/scaling.md says what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import scaling

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "scaling.md").read_text()


@pytest.mark.parametrize("table", [scaling.counts, scaling.throughput], ids=lambda f: f.__name__)
def test_the_documents_tables_are_those_of_the_command(
    table: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(table)
    table()
    printed = capsys.readouterr().out
    assert printed.count("\n") >= 4
    assert f"```\n{printed}```\n" in DOCUMENT
