"""Cutting a growing list of tokens into chunks, the same way however the tokens arrive."""

from __future__ import annotations

from collections.abc import Iterable

from .options import SpeechOptions


class ChunkQueue:
    """Buffers tokens and says when a chunk can be solved.

    A chunk is final only if the stream ends inside it. So a chunk is held back until a token behind it is known or the
    stream is finished (``eager``: until its own tokens are known); then the cutting does not depend on arrival times.
    """

    def __init__(self, options: SpeechOptions):
        self.options = options
        self.num_chunks = 0
        self.finished = False
        self.done = False
        self._tokens: list[int] = []

    def push(self, tokens: Iterable[int]) -> bool:
        """Append tokens; returns :attr:`ready`. ValueError after :meth:`finish`."""
        if self.finished:
            raise ValueError("the stream is finished; no tokens can follow")
        self._tokens.extend(tokens)
        return self.ready

    def finish(self) -> bool:
        """No token will follow; returns :attr:`ready`. A stream without a single token is done at once."""
        self.finished = True
        self.done = self.done or (self.num_chunks == 0 and not self._tokens)
        return self.ready

    @property
    def tokens_needed(self) -> int:
        """Tokens that must still arrive before the next chunk is ready; 0 if it is, or if none can come."""
        if self.finished:
            return 0
        size = self.options.chunk_size(self.num_chunks) + (not self.options.eager)
        return max(0, size - len(self._tokens))

    @property
    def next_size(self) -> int:
        """New tokens of the next chunk, as far as they are known."""
        return min(len(self._tokens), self.options.chunk_size(self.num_chunks))

    @property
    def ready(self) -> bool:
        """Whether :meth:`pop` has a chunk."""
        return not self.done and self.tokens_needed == 0

    def pop(self) -> tuple[list[int], bool]:
        """The next chunk's new tokens and whether it is the last chunk. ValueError if none is ready."""
        if not self.ready:
            raise ValueError(f"no chunk is ready: {self.tokens_needed} tokens are missing or the stream is done")
        size = self.options.chunk_size(self.num_chunks)
        final = self.finished and len(self._tokens) <= size
        chunk, self._tokens = self._tokens[:size], self._tokens[size:]
        self.num_chunks += 1
        self.done = final
        return chunk, final
