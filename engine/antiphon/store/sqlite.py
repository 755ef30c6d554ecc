"""Conversations in one SQLite file, which several processes may share."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .base import Entry, StoreError, check_key

SCHEMA = """
create table if not exists conversations (key text primary key, value blob not null, expires_at real not null) strict;
create index if not exists conversations_by_expiry on conversations (expires_at);
"""


class SqliteStore:
    """The default store. ``path`` is created with its folder; ``:memory:`` works too.

    Raises:
        StoreError: the file cannot be opened or is not a database.
    """

    def __init__(self, path: str | Path, clock: Callable[[], float] = time.time, timeout: float = 5.0):
        self.path, self.clock = str(path), clock
        self._lock = threading.Lock()
        try:
            if self.path != ":memory:":
                Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(
                self.path, timeout=timeout, isolation_level=None, check_same_thread=False
            )
            self._database.execute("pragma journal_mode = wal")
            self._database.execute("pragma synchronous = normal")
            self._database.executescript(SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"the store {self.path} cannot be opened: {error}") from error

    def get(self, key: str) -> Entry | None:
        query = "select value, expires_at from conversations where key = ? and expires_at > ?"
        with self._cursor() as cursor:
            row = cursor.execute(query, (check_key(key), self.clock())).fetchone()
        return None if row is None else Entry(*row)

    def put(self, key: str, value: bytes, ttl: float) -> Entry:
        entry = Entry(bytes(value), self.clock() + ttl)
        with self._cursor() as cursor:
            cursor.execute(
                "insert or replace into conversations values (?, ?, ?)", (check_key(key), entry.value, entry.expires_at)
            )
        return entry

    def delete(self, key: str) -> bool:
        with self._cursor() as cursor:
            cursor.execute(
                "delete from conversations where key = ? returning expires_at > ?", (check_key(key), self.clock())
            )
            row = cursor.fetchone()
        return bool(row and row[0])

    def purge(self) -> int:
        with self._cursor() as cursor:
            return cursor.execute("delete from conversations where expires_at <= ?", (self.clock(),)).rowcount

    def close(self) -> None:
        with self._lock:
            self._database.close()

    @contextlib.contextmanager
    def _cursor(self) -> Iterator[sqlite3.Cursor]:
        with self._lock:
            try:
                with contextlib.closing(self._database.cursor()) as cursor:
                    yield cursor
            except sqlite3.Error as error:
                raise StoreError(f"the store {self.path} failed: {error}") from error
