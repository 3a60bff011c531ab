"""The feature cache gives back the same bits or nothing: after a kill, a flipped byte, another config."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kacl_jax.feedback.feature_cache import APPLICATION_ID, FeatureCache
from kacl_jax.feedback.result import Result
from kacl_jax.runtime.errors import UserError

REPO = Path(__file__).resolve().parents[2]


def _open(path: Path, settings: str = "bins of 25") -> FeatureCache:
    return FeatureCache(path, settings=settings)


def _result(seed: int) -> Result:
    values = np.random.default_rng(seed).standard_normal(102) * 10.0 ** np.linspace(-30, 30, 102)
    return Result(values.astype(np.float32), None)


def _key(cache: FeatureCache, seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 7), dtype=np.uint8)
    return cache.key(pixels, pixels > 60)


def test_what_was_remembered_comes_back_bit_for_bit(tmp_path) -> None:
    path = tmp_path / "features.sqlite"
    cache = _open(path)
    keys = [_key(cache, seed) for seed in range(20)]
    cache.put((key, _result(seed)) for seed, key in enumerate(keys))
    cache.put([(b"k" * 16, Result(None, "a line"))])
    cache.close()
    again = _open(path)
    for seed, key in enumerate(keys):
        found = again.get(key)
        assert found is not None
        assert found.reason is None
        assert found.features.tobytes() == _result(seed).features.tobytes()
    failed = again.get(b"k" * 16)
    assert (failed.features, failed.reason, failed.deterministic) == (None, "a line", True)
    assert again.get(_key(again, 99)) is None
    again.close()


def test_a_task_that_was_given_up_is_not_remembered(tmp_path) -> None:
    cache = _open(tmp_path / "f.sqlite")
    cache.put([(b"k" * 16, Result(None, "timed out", deterministic=False))])
    assert cache.get(b"k" * 16) is None
    cache.close()


def test_the_key_holds_all_that_the_value_depends_on(tmp_path) -> None:
    cache, other = _open(tmp_path / "a"), _open(tmp_path / "b", "bins of 32")
    pixels = np.arange(48, dtype=np.uint8).reshape(6, 8)
    mask = pixels % 3 > 0
    brighter = pixels.copy()
    brighter[2, 2] += 1
    smaller = mask.copy()
    smaller[0, 1] = False
    keys = [
        cache.key(pixels, mask),
        cache.key(brighter, mask),
        cache.key(pixels, smaller),
        cache.key(pixels.reshape(8, 6), mask.reshape(8, 6)),
        other.key(pixels, mask),
    ]
    assert len(set(keys)) == len(keys)
    assert {len(key) for key in keys} == {16}
    assert cache.key(pixels.copy(), mask.copy()) == keys[0]
    cache.close()
    other.close()


def test_another_configurations_rows_are_never_seen(tmp_path) -> None:
    path = tmp_path / "f.sqlite"
    cache = _open(path)
    cache.put([(_key(cache, 1), _result(1))])
    cache.close()
    other = _open(path, "bins of 32")
    assert other.get(_key(other, 1)) is None
    other.close()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE memo SET value = zeroblob(408)",
        "UPDATE memo SET value = substr(value, 1, 400)",
        "UPDATE memo SET crc = crc + 1",
        "UPDATE memo SET value = 'text'",
        "UPDATE memo SET reason = x'6f6f7073'",
    ],
)
def test_a_corrupt_row_is_deleted_counted_and_forgotten(damage, tmp_path) -> None:
    path = tmp_path / "f.sqlite"
    cache = _open(path)
    bad, good = _key(cache, 1), _key(cache, 2)
    cache.put([(bad, _result(1)), (good, _result(2))])
    cache.close()
    with sqlite3.connect(path) as file:
        file.execute(f"{damage} WHERE key = ?", (bad,))
    file.close()
    cache = _open(path)
    assert cache.get(bad) is None
    assert cache.corrupt_rows == 1
    assert cache.get(bad) is None
    assert cache.corrupt_rows == 1  # it is gone, not only skipped
    assert cache.get(good) is not None
    cache.put([(bad, _result(1))])
    assert cache.get(bad) is not None
    cache.close()


def _damaged_memo(path: Path) -> None:
    cache = _open(path)
    cache.put((_key(cache, seed), _result(seed)) for seed in range(500))
    cache.close()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _text(path: Path) -> None:
    path.write_text("not a database, " * 100)


def _foreign(path: Path) -> None:
    with sqlite3.connect(path) as file:
        file.execute("CREATE TABLE songs (name TEXT)")
    file.close()


def _of_the_future(path: Path) -> None:
    with sqlite3.connect(path) as file:
        file.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        file.execute("PRAGMA user_version = 99")
    file.close()


def _other_columns(path: Path) -> None:
    _open(path).close()
    with contextlib.closing(sqlite3.connect(path)) as file:
        file.execute("ALTER TABLE memo DROP COLUMN crc")


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "a").write_text("mine")


@pytest.mark.parametrize(
    "make", [_damaged_memo, _text, _foreign, _of_the_future, _other_columns, _folder]
)
def test_a_file_that_is_not_ours_gets_another_name_and_the_work_goes_on(
    make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "f.sqlite"
    make(path)
    before = None if path.is_dir() else path.read_bytes()
    cache = _open(path)
    for seed in range(500):  # a file that is cut off may open, and fail at its first missing page
        cache.get(_key(cache, seed))
    cache.put([(b"k" * 16, _result(1))])
    cache.put([(b"k" * 16, _result(1))])
    assert cache.get(b"k" * 16) is not None
    cache.close()
    aside = tmp_path / "f.sqlite.unusable-1"
    assert "f.sqlite (the memo of radiomic features) cannot be used: " in caplog.text
    assert f"Its name is now {aside.name}" in caplog.text
    assert (aside / "a").read_text() == "mine" if before is None else aside.read_bytes() == before


def test_a_place_that_cannot_be_written_is_named(tmp_path) -> None:
    with pytest.raises(UserError, match=r"nowhere/f\.sqlite.*unable to open"):
        _open(tmp_path / "nowhere" / "f.sqlite")
    cache = _open(tmp_path / "f.sqlite")
    cache._file.execute("PRAGMA query_only = 1")
    with pytest.raises(UserError, match=r"f\.sqlite.*readonly"):
        cache.put([(b"k" * 16, _result(1))])
    cache.close()


def test_a_full_disk_is_told_and_what_was_there_stays(tmp_path) -> None:
    cache = _open(tmp_path / "f.sqlite")
    cache.put([(b"k" * 16, _result(1))])
    cache._file.execute("PRAGMA max_page_count = 8")
    with pytest.raises(UserError, match=r"f\.sqlite.*full"):
        cache.put((_key(cache, seed), _result(seed)) for seed in range(1000))
    assert cache.get(b"k" * 16) is not None
    assert cache.get(_key(cache, 0)) is None  # one transaction: all or nothing
    cache.put([(b"l" * 16, Result(None, "a line"))])
    cache.close()


WRITER = """
import sys
from pathlib import Path
import numpy as np
from kacl_jax.feedback.feature_cache import FeatureCache
from kacl_jax.feedback.result import Result
cache = FeatureCache(Path(sys.argv[1]), settings="s")
for i in range(10**6):
    rows = [(bytes([i % 256, i // 256, j]) * 5 + b"x", Result(np.full(102, i, np.float32), None))
            for j in range(64)]
    cache.put(rows)
    print(i, flush=True)
"""


def test_kill_9_loses_no_acknowledged_row(tmp_path) -> None:
    path = tmp_path / "f.sqlite"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], cwd=REPO, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) == 30:
                os.kill(writer.pid, signal.SIGKILL)
                break
        last = max([30, *(int(line) for line in writer.stdout if line.endswith("\n"))])
    cache = FeatureCache(path, settings="s")
    for i in range(last + 1):
        for j in range(64):
            found = cache.get(bytes([i % 256, i // 256, j]) * 5 + b"x")
            assert found is not None
            assert found.features[0] == i
    assert cache.corrupt_rows == 0
    cache.close()
