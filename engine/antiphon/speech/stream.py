"""One utterance on its way from speech tokens to sound: its buffer, its place in the mel, its window and its noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch

from ..config import FRAMES_PER_TOKEN, FlowConfig
from ..errors import InputError
from .chunking import ChunkQueue
from .flow_solver import FlowJob
from .noise import NoiseSource
from .options import SpeechOptions
from .stitching import Stitcher
from .window_pool import WindowSlot


class SpeechStream:
    """Made by :meth:`StreamingDetokenizer.open`. Push tokens, and whenever ``ready`` hand :meth:`pop` to ``run``.

    Args:
        options: chunking, integration and stitching.
        config: of the network, for its limits.
        slot: the stream's window; given back through ``release`` when the last chunk is out or on :meth:`close`.
        noise: initial states.
        stitcher: output state.
        record: keep every chunk's mel in :attr:`mel_chunks` (float32 [frames, num_mels], de-normalised).
    """

    def __init__(
        self,
        options: SpeechOptions,
        config: FlowConfig,
        slot: WindowSlot,
        noise: NoiseSource,
        stitcher: Stitcher,
        release: Callable[[WindowSlot], None],
        record: bool,
    ):
        self.options = options
        self.config = config
        self.slot = slot
        self.noise = noise
        self.stitcher = stitcher
        self.mel_chunks: list[np.ndarray] | None = [] if record else None
        self.start = 0
        self.samples_out = 0
        self.closed = False
        self._carried: list[int] = []
        self._queue = ChunkQueue(options)
        self._release = release

    @property
    def ready(self) -> bool:
        """Whether :meth:`pop` has a chunk."""
        return not self.closed and self._queue.ready

    @property
    def done(self) -> bool:
        """Whether no sound will follow: the last chunk is out, the stream was closed, or it ended without a token."""
        return self.closed

    @property
    def tokens_needed(self) -> int:
        """Tokens that must still arrive before the next chunk is ready."""
        return self._queue.tokens_needed

    @property
    def next_frames(self) -> int:
        """Mel frames that the next chunk solves, its look-ahead included."""
        return (len(self._carried) + self._queue.next_size) * FRAMES_PER_TOKEN

    def push(self, tokens: Iterable[int]) -> bool:
        """Buffer speech tokens (ids from 0, without the offset); returns :attr:`ready`. InputError for an unknown id."""
        tokens = [int(token) for token in tokens]
        limit = self.config.semantic_vocab_size
        for token in tokens:
            if not 0 <= token < limit:
                raise InputError(f"speech token {token} is outside 0..{limit - 1}")
        return self._queue.push(tokens)

    def finish(self) -> bool:
        """No token will follow; returns :attr:`ready`. A stream without a single token is closed: it has no sound."""
        ready = self._queue.finish()
        if self._queue.done:
            self.close()
        return ready

    def pop(self) -> tuple[list[int], bool]:
        """New tokens of the next chunk and whether it is the last; for :meth:`StreamingDetokenizer.run`."""
        return self._queue.pop()

    def close(self) -> None:
        """Give the window back; safe to call again, and at any moment between two calls of ``run``."""
        if not self.closed:
            self.closed = True
            self._release(self.slot)

    def plan(self, tokens: list[int], final: bool) -> FlowJob:
        """The integration of a chunk of new ``tokens``. Changes nothing that a second call would notice."""
        all_tokens = self._carried + tokens
        num_rows = len(all_tokens) * FRAMES_PER_TOKEN
        if self.start + num_rows > self.config.max_positions:
            self._rewind()
        kept = num_rows - (0 if final else self.options.look_ahead_frames)
        return FlowJob(
            tokens=all_tokens,
            start=self.start,
            noise=self.noise.draw(num_rows),
            slot=self.slot,
            num_kept=kept,
            fill=not final and not self._rewinds_after(kept),
        )

    def advance(self, job: FlowJob, mel: torch.Tensor) -> None:
        """The chunk is solved; ``mel`` [num_kept, num_mels] are its frames. Carry the look-ahead, move on."""
        self.noise.commit()
        self._carried = list(job.tokens[job.num_kept // FRAMES_PER_TOKEN :])
        if self._rewinds_after(job.num_kept):
            self._rewind()
        else:
            self.start += job.num_kept
        if self.mel_chunks is not None:
            self.mel_chunks.append(mel.float().cpu().numpy())

    def _rewinds_after(self, num_kept: int) -> bool:
        """Whether the positions run out after a chunk of ``num_kept`` rows (then its keys need not be stored)."""
        return self.start + 3 * num_kept > self.config.max_positions

    def _rewind(self) -> None:
        """Back to position 0 with an empty window; carried tokens and stitching go on."""
        self.start = 0
        self.slot.clear()
