"""Names that cannot be guessed, for requests, answers, sessions and events."""

from __future__ import annotations

import os
import threading

BLOCK = 4096


class _Entropy:
    """The system's random bytes, fetched a block at a time: a call for each event's name is what a profile would show."""

    def __init__(self) -> None:
        self._block, self._at = b"", 0
        self._lock = threading.Lock()

    def take(self, size: int) -> bytes:
        with self._lock:
            if self._at + size > len(self._block):
                self._block, self._at = os.urandom(BLOCK), 0
            self._at += size
            return self._block[self._at - size : self._at]


_entropy = _Entropy()


def new_id(prefix: str, size: int = 12) -> str:
    """``prefix`` and ``size`` random bytes in hexadecimal."""
    return prefix + _entropy.take(size).hex()
