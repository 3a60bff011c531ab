"""A sealed file gives back what was written, or says that it does not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kacl_jax.runtime.errors import UserError
from kacl_jax.runtime.sealed_json import decode_float32, encode_float32, read_sealed, write_sealed

CONTENT = {"step": 3, "names": ["Mass", "Über"], "value": 0.1 + 0.2, "nested": {"a": None}}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_sealed(tmp_path / "a.json", CONTENT)
    assert read_sealed(tmp_path / "a.json", "fix") == CONTENT


def test_any_changed_byte_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_sealed(path, CONTENT)
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        changed = bytearray(whole)
        changed[place] ^= 0x01
        path.write_bytes(changed)
        if _json_or_none(changed) == json.loads(whole):  # white space between the values
            assert read_sealed(path, "write it again") == CONTENT
        else:
            with pytest.raises(UserError, match=r"a\.json .*write it again$"):
                read_sealed(path, "write it again")


def _json_or_none(data: bytes) -> object:
    try:
        return json.loads(data)
    except ValueError:
        return None


@pytest.mark.parametrize("text", ["", "[]", "{}", "3", '{"digest": 1}', json.dumps({"step": 1})])
def test_another_file_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json"):
        read_sealed(tmp_path / "a.json", "fix")
    with pytest.raises(UserError, match=r"b\.json is missing; fix"):
        read_sealed(tmp_path / "b.json", "fix")


def test_arrays_keep_their_bits() -> None:
    array = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    np.testing.assert_array_equal(decode_float32(encode_float32(array)).reshape(3, 5), array)
