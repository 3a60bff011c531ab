"""FeatureCache: the features of regions that were measured before, in an SQLite file.

The cache only saves work: it answers "what are the features of these pixels under this mask with these settings",
never "what does image i have now". Its key is a hash of exactly that question, so another configuration's rows cannot
be mixed in, and a row that survived a killed run stays invisible until the rule in visibility.py asks for it.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar, cast

import numpy as np

from kacl_jax.feedback.result import Result
from kacl_jax.radiomics import FEATURE_NAMES
from kacl_jax.runtime.errors import UserError

APPLICATION_ID = 0x4B41434C  # "KACL" in the file's header
SCHEMA = 1
_COLUMNS = ["key", "value", "reason", "crc"]
_BYTES = 4 * len(FEATURE_NAMES)
T = TypeVar("T")
_log = logging.getLogger(__name__)


class FeatureCache:
    """The cache in the SQLite file `path`. settings: of the extractor, `radiomics.host.settings_key`.

    The file has one writer: the thread that made this object (SQLite refuses any other). WAL, one
    transaction per `put`: what it has returned from survives kill -9. Not for network disks.

    A file that is damaged, of another layout or of another program gets another name, and a new one takes its place:
    the file only saves work. Raises UserError that names the file when it cannot be written.
    """

    def __init__(self, path: Path, *, settings: str) -> None:
        self.path = path
        self.corrupt_rows = 0
        self._settings = settings.encode()
        try:
            self._file = _open(path)
        except (_UnusableError, sqlite3.DatabaseError) as error:
            self._file = _open_anew(path, error)

    def key(self, pixels: np.ndarray, mask: np.ndarray) -> bytes:
        """16 bytes for pixels uint8 [h w] under mask bool [h w], both cropped to the region."""
        words = [self._settings, repr(pixels.shape).encode(), pixels.tobytes()]
        digest = hashlib.blake2b(digest_size=16)
        for word in [*words, np.packbits(mask).tobytes()]:
            digest.update(len(word).to_bytes(8, "little"))
            digest.update(word)
        return digest.digest()

    def get(self, key: bytes) -> Result | None:
        """The stored result, or None. A row with a wrong checksum is deleted and counted in `corrupt_rows`."""
        row = self._attempt(lambda: self._read(key))
        if row is None:
            return None
        value, reason, crc = row
        if crc != _checksum(key, value, reason) or len(value) not in (0, _BYTES):
            self.corrupt_rows += 1
            self._attempt(lambda: self._file.execute("DELETE FROM memo WHERE key = ?", (key,)))
            return None
        if reason:
            return Result(None, reason.decode())
        return Result(np.frombuffer(value, "<f4").astype(np.float32), None)

    def put(self, answers: Iterable[tuple[bytes, Result]]) -> None:
        """Keep these in one transaction; answers that are not deterministic are left out."""
        rows = []
        for key, result in answers:
            if result.deterministic:
                value = b"" if result.features is None else result.features.astype("<f4").tobytes()
                reason = (result.reason or "").encode()
                rows.append((key, value, reason, _checksum(key, value, reason)))
        if rows:
            self._attempt(lambda: self._write(rows))

    def close(self) -> None:
        self._file.close()

    def _read(self, key: bytes) -> tuple[bytes, bytes, int] | None:
        # SQLite's columns hold values of any type.
        query = "SELECT CAST(value AS BLOB), CAST(reason AS BLOB), crc FROM memo WHERE key = ?"
        return cast("tuple[bytes, bytes, int] | None", self._file.execute(query, (key,)).fetchone())

    def _write(self, rows: list[tuple[bytes, bytes, bytes, int]]) -> None:
        self._file.execute("BEGIN IMMEDIATE")
        try:
            self._file.executemany("INSERT OR REPLACE INTO memo VALUES (?, ?, ?, ?)", rows)
            self._file.execute("COMMIT")
        finally:
            if self._file.in_transaction:
                self._file.execute("ROLLBACK")

    def _attempt(self, action: Callable[[], T]) -> T | None:
        """What `action` returns; None if the file turned out to be damaged, and a new one took its place."""
        try:
            with _errors_name(self.path):
                return action()
        except sqlite3.DatabaseError as error:
            self._file.close()
            self._file = _open_anew(self.path, error)
            return None


class _UnusableError(Exception):
    """The file is something else than this version's memo."""


@contextmanager
def _errors_name(path: Path) -> Iterator[None]:
    """Of SQLite's errors, those that a user can help; they do not name the file themselves."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise UserError(
            f"{path} (the memo of radiomic features): {error}; free disk space, allow writing there, or end the other "
            "process that uses it"
        ) from error


def _open_anew(path: Path, why: Exception) -> sqlite3.Connection:
    """Gives the file at `path` another name, with its journal, and makes a new one."""
    number = 1
    while (aside := path.with_name(f"{path.name}.unusable-{number}")).exists():
        number += 1
    _log.warning(
        "%s (the memo of radiomic features) cannot be used: %s. Its name is now %s. A new one is filled.",
        path, why, aside.name
    )  # fmt: skip
    try:
        for part in ("", "-wal", "-shm"):
            old = path.with_name(path.name + part)
            if old.exists():
                old.rename(aside.with_name(aside.name + part))
        return _open(path)
    except (OSError, _UnusableError, sqlite3.DatabaseError) as error:
        raise UserError(
            f"{path} (the memo of radiomic features) cannot be replaced ({error})"
        ) from error


def _open(path: Path) -> sqlite3.Connection:
    """Raises _UnusableError or sqlite3.DatabaseError for a file to be put aside, UserError for a place without use."""
    if path.is_dir():
        raise _UnusableError("it is a folder")
    with _errors_name(path):
        file = sqlite3.connect(path, isolation_level=None, timeout=30.0)
        try:
            _prepare(file)
        except BaseException:
            file.close()
            raise
    return file


def _prepare(file: sqlite3.Connection) -> None:
    def pragma(name: str) -> int:
        return int(file.execute(f"PRAGMA {name}").fetchone()[0])

    application = pragma("application_id")
    if application == 0 and pragma("schema_version") == 0:  # a new, empty file
        file.execute("PRAGMA journal_mode = WAL")
        file.execute("BEGIN IMMEDIATE")
        file.execute(
            "CREATE TABLE IF NOT EXISTS memo (key BLOB PRIMARY KEY, value BLOB NOT NULL, "
            "reason BLOB NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID"
        )
        file.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        file.execute(f"PRAGMA user_version = {SCHEMA}")
        file.execute("COMMIT")
    elif application != APPLICATION_ID:
        raise _UnusableError("it is an SQLite file of another program")
    elif (schema := pragma("user_version")) != SCHEMA:
        raise _UnusableError(f"it has layout {schema}, and this version writes layout {SCHEMA}")
    if [column[1] for column in file.execute("PRAGMA table_info(memo)")] != _COLUMNS:
        raise _UnusableError("its table has other columns")
    file.execute("PRAGMA journal_mode = WAL")
    file.execute("PRAGMA synchronous = NORMAL")
    # So that a read-only file fails now and not in an hour.
    file.execute("BEGIN IMMEDIATE")
    file.execute("ROLLBACK")


def _checksum(key: bytes, value: bytes, reason: bytes) -> int:
    return zlib.crc32(reason, zlib.crc32(value, zlib.crc32(key)))
