"""Conversations in this process's memory, bounded in bytes."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from .base import Entry, check_key


class MemoryStore:
    """Least recently used out first once ``max_bytes`` are exceeded; gone with the process."""

    def __init__(self, max_bytes: int = 1 << 30, clock: Callable[[], float] = time.time):
        self.max_bytes, self.clock = max_bytes, clock
        self.num_bytes = 0
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> Entry | None:
        with self._lock:
            entry = self._entries.get(check_key(key))
            if entry is not None and entry.expires_at <= self.clock():
                self._remove(key)
                return None
            if entry is not None:
                self._entries.move_to_end(key)
            return entry

    def put(self, key: str, value: bytes, ttl: float) -> Entry:
        entry = Entry(bytes(value), self.clock() + ttl)
        with self._lock:
            self._remove(check_key(key))
            self._entries[key] = entry
            self.num_bytes += len(value)
            while self.num_bytes > self.max_bytes:
                self._remove(next(iter(self._entries)))
        return entry

    def delete(self, key: str) -> bool:
        with self._lock:
            entry = self._remove(check_key(key))
        return entry is not None and entry.expires_at > self.clock()

    def purge(self) -> int:
        with self._lock:
            now = self.clock()
            expired = [key for key, entry in self._entries.items() if entry.expires_at <= now]
            for key in expired:
                self._remove(key)
        return len(expired)

    def close(self) -> None:
        with self._lock:
            self._entries.clear()
            self.num_bytes = 0

    def _remove(self, key: str) -> Entry | None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.num_bytes -= len(entry.value)
        return entry
