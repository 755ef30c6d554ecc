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
        self._tokenizer, self._whole = tokenizer, tokenizer.whole
        self._rest = b""

    def push(self, ids: Iterable[int]) -> str:
        """Text that became complete with ``ids``; may be empty."""
        return self._decode(self._tokenizer.decode_bytes(ids))

    def push_one(self, token: int) -> str:
        """As :meth:`push` with one id, for the loop that decodes: mostly a look-up."""
        if not self._rest:
            whole = self._whole[token]
            if whole is not None:
                return whole
        return self._decode(self._tokenizer.piece(token))

    def flush(self) -> str:
        """The rest: U+FFFD for a character that never ended, else empty. Ready for a new text afterwards."""
        text = self._rest.decode("utf-8", "replace")
        self.reset()
        return text

    def reset(self) -> None:
        """Forget an unfinished character."""
        self._rest = b""

    def _decode(self, data: bytes) -> str:
        data = self._rest + data
        text, used = codecs.utf_8_decode(data, "replace")
        self._rest = data[used:]
        return text
