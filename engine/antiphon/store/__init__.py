"""Where conversations are kept between turns: bytes by key, with an expiry."""

from __future__ import annotations

from .base import ConversationStore, Entry, StoreError
from .memory import MemoryStore
from .opening import open_store
from .sqlite import SqliteStore

__all__ = ["ConversationStore", "Entry", "MemoryStore", "SqliteStore", "StoreError", "open_store"]
