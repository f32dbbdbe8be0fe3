"""Answers that were paid for, in SQLite: what was committed once is never asked again.

One file, ``$KDZOO_HOME/speakers/answers.sqlite``, for all speakers, in write-ahead mode: threads and processes may use
it at once. A row is one sample (or one score), named by the sha256 of everything that decides it; it holds the
question, the answer with its usage, and a sha256 of the answer. Rows are never changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from kdzoo.artefacts import disk_errors, home, make_folder
from kdzoo.errors import KdzooError

SCHEMA = 1
_WAIT_SECONDS = 60.0  # for another process that is writing
_AT_ONCE = 500  # keys a query: SQLite's oldest limit is 999


class Row(NamedTuple):
    """One committed answer: its key, the question and the answer as JSON values."""

    key: str
    question: Any
    answer: Any


class AnswerStore:
    """The answers below a home folder.

    Args:
        path: the file; None: below `kdzoo.artefacts.home`.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or home() / "speakers" / "answers.sqlite"
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._owner = 0

    def get(self, keys: Iterable[str]) -> dict[str, Any]:
        """The answers that are there, by key. One that is not what was written is removed with a warning."""
        asked, found, damaged = list(keys), {}, []
        with self._open() as connection:
            for first in range(0, len(asked), _AT_ONCE):
                some = asked[first : first + _AT_ONCE]
                marks = ",".join("?" * len(some))
                query = f"SELECT key, answer, sha256 FROM answers WHERE key IN ({marks})"
                for key, answer, sha256 in connection.execute(query, some):
                    if _hash(answer) == sha256:
                        found[key] = json.loads(answer)
                    else:
                        damaged.append(key)
            if damaged:
                with connection:
                    connection.executemany("DELETE FROM answers WHERE key = ?", [(key,) for key in damaged])
        if damaged:
            warnings.warn(
                f"{self.path}: {len(damaged)} answer(s) did not have the hash they were written with; they were "
                "removed and are asked for again",
                stacklevel=2,
            )
        return found

    def put(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Commit rows, all or none; returns what is committed under their keys, which another process may have been
        first to write."""
        now = time.time()
        with self._open() as connection, connection:
            connection.executemany(
                "INSERT OR IGNORE INTO answers (key, question, answer, sha256, made_at) VALUES (?, ?, ?, ?, ?)",
                [
                    (row.key, _text(row.question), answer := _text(row.answer), _hash(answer), now)
                    for row in rows
                ],
            )
        return self.get(row.key for row in rows)

    def rows(self) -> Iterator[Row]:
        """Everything, in the order in which it was committed."""
        with self._open() as connection:
            query = "SELECT key, question, answer FROM answers ORDER BY rowid"
            found = connection.execute(query).fetchall()
        return (Row(key, json.loads(question), json.loads(answer)) for key, question, answer in found)

    def __len__(self) -> int:
        with self._open() as connection:
            return int(connection.execute("SELECT count(*) FROM answers").fetchone()[0])

    def close(self) -> None:
        """Let go of the file; the next call opens it again."""
        with self._lock:
            if self._connection is not None and self._owner == os.getpid():
                self._connection.close()
            self._connection = None

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one thread at a time; a forked child gets its own."""
        with self._lock, self._errors():
            if self._connection is None or self._owner != os.getpid():
                self._connection, self._owner = self._connect(), os.getpid()
            yield self._connection

    def _connect(self) -> sqlite3.Connection:
        with disk_errors(self.path):
            make_folder(self.path.parent)
        connection = sqlite3.connect(self.path, timeout=_WAIT_SECONDS, check_same_thread=False)
        try:
            _write_ahead(connection)
            connection.execute("PRAGMA synchronous=FULL")  # a commit survives a power cut: it was paid for
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                version = int(connection.execute("PRAGMA user_version").fetchone()[0])
                if version not in (0, SCHEMA):
                    raise KdzooError(
                        f"{self.path} was written by another version of kdzoo (schema {version}, this one knows "
                        f"{SCHEMA}): its answers could be misread. Update kdzoo, or move the file away."
                    )
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS answers (key TEXT NOT NULL UNIQUE, question TEXT NOT NULL, "
                    "answer TEXT NOT NULL, sha256 TEXT NOT NULL, made_at REAL NOT NULL)"
                )
                connection.execute(f"PRAGMA user_version={SCHEMA}")
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what SQLite may refuse into one line that says what to do."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            remedy = {
                sqlite3.SQLITE_FULL: "The disk is full: free some space, or set KDZOO_HOME to another disk.",
                sqlite3.SQLITE_READONLY: "It is read-only: set KDZOO_HOME to a folder you may write to.",
                sqlite3.SQLITE_CANTOPEN: "It cannot be opened: set KDZOO_HOME to a folder you may write to.",
                sqlite3.SQLITE_BUSY: "Another process has been writing to it for a minute: wait for that one to end.",
                sqlite3.SQLITE_NOTADB: "It is damaged: move it away; its answers are then asked for again.",
                sqlite3.SQLITE_CORRUPT: "It is damaged: move it away; its answers are then asked for again.",
            }.get(
                getattr(error, "sqlite_errorcode", 0) & 0xFF, "Check the disk, or set KDZOO_HOME elsewhere."
            )
            raise KdzooError(
                f"the store of answers {self.path} cannot be used ({error}). {remedy} What was committed before is "
                "kept."
            ) from error


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Switch to write-ahead mode. Two processes that make the file at once: SQLite refuses one without waiting."""
    end = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(0.02)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
