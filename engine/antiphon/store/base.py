"""The interface of a conversation store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..errors import AntiphonError

MAX_KEY_LENGTH = 200


class StoreError(AntiphonError):
    """The store cannot be reached or used."""


@dataclass(frozen=True)
class Entry:
    """A value and when it expires, in Unix seconds."""

    value: bytes
    expires_at: float


class ConversationStore(Protocol):
    """Bytes by key. Thread-safe, blocking: call it in an executor. Expired entries are as good as deleted.

    Every method raises StoreError if the store fails, ValueError for a key that is empty or too long.
    """

    def get(self, key: str) -> Entry | None:
        """The entry of ``key``, None if there is none (any more)."""

    def put(self, key: str, value: bytes, ttl: float) -> Entry:
        """Set ``key`` for ``ttl`` seconds, replacing what was there."""

    def delete(self, key: str) -> bool:
        """Remove ``key``; whether it was there."""

    def purge(self) -> int:
        """Free the room of expired entries; how many there were (0 where the store does it by itself)."""

    def close(self) -> None:
        """Release files and connections."""


def check_key(key: str) -> str:
    """``key``, if it can be one."""
    if not 0 < len(key) <= MAX_KEY_LENGTH:
        raise ValueError(f"a key has 1 to {MAX_KEY_LENGTH} characters, got {len(key)}")
    return key
