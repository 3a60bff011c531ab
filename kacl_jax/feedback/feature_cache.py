"""FeatureCache: the features of regions that were measured before, in an SQLite file.

The cache only saves work: it answers "what are the features of these pixels under this mask with these settings",
never "what does image i have now". Its key is a hash of exactly that question, so another configuration's rows cannot
be mixed in, and a row that survived a killed run stays invisible until the rule in visibility.py asks for it.
"""

from __future__ import annotations

import hashlib
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from kacl_jax.feedback.result import Result
from kacl_jax.radiomics import FEATURE_NAMES
from kacl_jax.runtime.errors import UserError

APPLICATION_ID = 0x4B41434C  # "KACL" in the file's header
SCHEMA = 1
_BYTES = 4 * len(FEATURE_NAMES)


class FeatureCache:
    """The cache in the SQLite file `path`. settings: of the extractor, `radiomics.host.settings_key`.

    The file has one writer: the thread that made this object (SQLite refuses any other). WAL, one
    transaction per `put`: what it has returned from survives kill -9. Not for network disks.
    Raises UserError that names the file when it cannot be read or written or is something else.
    """

    def __init__(self, path: Path, *, settings: str) -> None:
        self.path = path
        self.corrupt_rows = 0
        self._settings = settings.encode()
        with self._errors_name_the_file():
            self._file = sqlite3.connect(path, isolation_level=None, timeout=30.0)
        try:
            with self._errors_name_the_file():
                self._open()
        except UserError:
            self._file.close()
            raise

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
        with self._errors_name_the_file():
            row = self._file.execute(
                "SELECT value, reason, crc FROM memo WHERE key = ?", (key,)
            ).fetchone()
            if row is None:
                return None
            value, reason, crc = row
            if crc != _checksum(key, value, reason) or len(value) not in (0, _BYTES):
                self.corrupt_rows += 1
                self._file.execute("DELETE FROM memo WHERE key = ?", (key,))
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
        if not rows:
            return
        with self._errors_name_the_file():
            self._file.execute("BEGIN IMMEDIATE")
            try:
                self._file.executemany("INSERT OR REPLACE INTO memo VALUES (?, ?, ?, ?)", rows)
                self._file.execute("COMMIT")
            finally:
                if self._file.in_transaction:
                    self._file.execute("ROLLBACK")

    def close(self) -> None:
        self._file.close()

    def _open(self) -> None:
        application = self._pragma("application_id")
        if application == 0 and self._pragma("schema_version") == 0:  # a new, empty file
            self._file.execute("PRAGMA journal_mode = WAL")
            self._file.execute("BEGIN IMMEDIATE")
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS memo (key BLOB PRIMARY KEY, value BLOB NOT NULL, "
                "reason BLOB NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID"
            )
            self._file.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            self._file.execute(f"PRAGMA user_version = {SCHEMA}")
            self._file.execute("COMMIT")
        elif application != APPLICATION_ID:
            raise UserError(
                f"{self.path} is an SQLite file of another program; move it away or choose another "
                "work directory"
            )
        elif (schema := self._pragma("user_version")) != SCHEMA:
            raise UserError(
                f"{self.path} has layout {schema}, but this version writes layout {SCHEMA}; delete the "
                "file (it is only a cache and is filled again)"
            )
        self._file.execute("PRAGMA journal_mode = WAL")
        self._file.execute("PRAGMA synchronous = NORMAL")
        # So that a read-only file fails now and not in an hour.
        self._file.execute("BEGIN IMMEDIATE")
        self._file.execute("ROLLBACK")

    def _pragma(self, name: str) -> int:
        return int(self._file.execute(f"PRAGMA {name}").fetchone()[0])

    @contextmanager
    def _errors_name_the_file(self) -> Iterator[None]:
        """SQLite's own errors do not name the file."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise UserError(
                f"{self.path} (the memo of radiomic features): {error}; free disk space, allow "
                "writing there, or end the other process that uses it"
            ) from error
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"{self.path} (the memo of radiomic features): {error}; delete the file "
                "(it is only a cache and is filled again)"
            ) from error


def _checksum(key: bytes, value: bytes, reason: bytes) -> int:
    return zlib.crc32(reason, zlib.crc32(value, zlib.crc32(key)))
