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


def test_bytes_of_collectives_are_read_from_compiled_text() -> None:
    hlo = """
%logged (x: f32[4]) -> f32[] {
  %n = f32[4]{0} all-reduce(f32[4]{0} %x), replica_groups={{0,1}}
}

ENTRY %main (x: f32[2,3]) -> f32[9] {
  %a = f32[2,3]{1,0} all-reduce(f32[2,3]{1,0} %x), replica_groups={{0,1}}
  %b = (f32[5]{0}, pred[7]{0}, f32[]) all-gather(f32[5]{0} %x, pred[7]{0} %y, f32[] %z)
  %c = f32[9]{0} add(f32[9]{0} %all-reduce, f32[9]{0} %y)
  %d = f32[] conditional(s32[] %i, f32[4] %x, f32[4] %x), branch_computations={%skipped, %logged}
}
"""
    assert scaling._collectives(hlo) == {
        "every step": {"all-reduce": 24, "all-gather": 31},
        "more when logged": {"all-reduce": 16},
    }
