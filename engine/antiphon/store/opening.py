"""A store from its address."""

from __future__ import annotations

from .base import ConversationStore
from .memory import MemoryStore
from .sqlite import SqliteStore

REDIS_SCHEMES = ("redis://", "rediss://", "unix://")


def open_store(address: str) -> ConversationStore:
    """``memory``, ``redis://…``, ``rediss://…``, ``unix://…``, or the path of an SQLite file.

    Raises:
        StoreError: it cannot be opened. ConfigError: it needs a package that is not installed.
    """
    if address == "memory":
        return MemoryStore()
    if address.startswith(REDIS_SCHEMES):
        from .redis import RedisStore

        return RedisStore(address)
    return SqliteStore(address.removeprefix("sqlite://"))
