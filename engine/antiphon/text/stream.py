"""Incremental decoding: ids in, text out, never cut inside a character."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from .tokenizer import TextTokenizer


class TextStream:
    """Decodes a growing list of ids. All deltas of ``push`` plus ``flush`` equal ``tokenizer.decode`` of all ids.

    State: at most three bytes of an unfinished character.
    """

    def __init__(self, tokenizer: TextTokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._unfinished = False

    def push(self, ids: Iterable[int]) -> str:
        """Text that became complete with ``ids``; may be empty."""
        return self._decode(self._tokenizer.decode_bytes(ids))

    def push_one(self, token: int) -> str:
        """As :meth:`push` with one id, for the loop that decodes: mostly a look-up."""
        if not self._unfinished:
            whole = self._tokenizer.whole(token)
            if whole is not None:
                return whole
        return self._decode(self._tokenizer.piece(token))

    def flush(self) -> str:
        """The rest: U+FFFD for a character that never ended, else empty. Ready for a new text afterwards."""
        rest = self._decoder.decode(b"", final=True)
        self.reset()
        return rest

    def reset(self) -> None:
        """Forget an unfinished character."""
        self._decoder.reset()
        self._unfinished = False

    def _decode(self, data: bytes) -> str:
        new = self._decoder.decode(data)
        self._unfinished = bool(self._decoder.getstate()[0])
        return new
