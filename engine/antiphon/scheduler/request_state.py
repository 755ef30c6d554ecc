"""One request as the scheduler sees it: its token tape, its pages, how far its keys and values are computed."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..errors import InputError
from .plan import AUDIO, PAGE_SIZE, TEXT, TRUNK

if TYPE_CHECKING:
    from .block_tables import BlockTables
    from .prefix_cache import CachedPage
    from .slot_table import SlotTable

ROW_ITEMS = 3
ROW_BYTES = 8 * ROW_ITEMS
_FEATURE_STRIDE = 0x9E3779B97F4A7C15


class Phase(Enum):
    """Where a request stands. A preempted request is waiting again."""

    WAITING = "waiting"
    PREFILLING = "prefilling"
    DECODING = "decoding"
    FINISHED = "finished"


class FeatureSpan(NamedTuple):
    """Continuous features at prompt positions ``start`` .. ``start + length - 1``.

    ``digest`` identifies the recording (or the feature matrix) by content: equal digests must mean equal rows.
    ``first_row`` is the feature row at ``start``; the following positions take the following rows.
    """

    start: int
    length: int
    digest: bytes
    first_row: int = 0


class RequestState:
    """Mutable state of one request; only the scheduler and the page manager write to it.

    The tape holds (audio id, text id, feature key) per position: the prompt, then every generated pair. ``num_computed``
    positions have keys and values in the pages of the groups that were active. All of ``num_tokens`` must be computed
    before the next pair is sampled, whether they came from the prompt or were generated before a preemption.

    While it runs, ``blocks`` holds its pages, and ``cached_page`` is where the prefix cache knows its first
    ``num_registered`` pages. While it decodes, ``table`` holds its newest pairs.
    """

    __slots__ = (
        "_num_computed", "admitted_step", "arrival", "blocks", "cache_salt", "cached_page", "chunk_at",
        "finish_reason", "groups", "keep_text_pages", "max_new_tokens", "num_cached_tokens", "num_preemptions",
        "num_registered", "output_type", "phase", "play_end", "priority", "prompt_len", "request_id",
        "run_audio", "run_text", "sequence_number", "slot", "synced_len", "table", "tape", "text_ended",
    )  # fmt: skip

    def __init__(
        self,
        request_id: str,
        audio_ids: np.ndarray,
        text_ids: np.ndarray,
        *,
        output_type: str,
        max_new_tokens: int,
        features: Sequence[FeatureSpan] = (),
        priority: int = 0,
        arrival: float = 0.0,
        keep_text_pages: bool = False,
        cache_salt: bytes = b"",
    ):
        """``audio_ids``, ``text_ids``: int [P]. Smaller ``priority`` is served first.

        ``keep_text_pages``: for output type ``both``, go on running the text branch after the text stream has ended, so
        that a next turn can reuse the text keys and values of the whole answer. Costs the branch; changes no token.
        ``cache_salt``: requests share cached prefixes only with requests of the same salt.
        """
        if output_type not in ("text", "both"):
            raise InputError(f"output_type must be 'text' or 'both', got {output_type!r}")
        if len(audio_ids) != len(text_ids) or len(audio_ids) == 0:
            raise InputError(f"both prompt streams need the same length > 0, got {len(audio_ids)} and {len(text_ids)}")
        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        self.request_id = request_id
        self.output_type = output_type
        self.prompt_len = self.synced_len = len(audio_ids)
        self.max_new_tokens = max_new_tokens
        self.priority = priority
        self.arrival = arrival
        self.keep_text_pages = keep_text_pages
        self.tape = _prompt_tape(audio_ids, text_ids, features)
        self.cache_salt = cache_salt
        self.cached_page: CachedPage | None = None
        self.blocks: BlockTables | None = None
        self._num_computed = 0
        self.table: SlotTable | None = None
        self.num_registered = 0
        self.phase = Phase.WAITING
        self.slot = -1
        self.text_ended = False
        self.groups: tuple[int, ...] = ()
        self.run_text = True
        self.run_audio = output_type == "both"
        self.play_end = -math.inf
        self.chunk_at = 0
        self.finish_reason: str | None = None
        self.sequence_number = 0
        self.admitted_step = -1
        self.num_cached_tokens = 0
        self.num_preemptions = 0
        self._choose_groups()

    @property
    def num_tokens(self) -> int:
        """Length of the tape."""
        return self.synced_len if self.table is None else int(self.table.num_tokens[self.slot])

    @property
    def num_computed(self) -> int:
        """Positions with keys and values: all but the newest one while decoding."""
        return self._num_computed if self.table is None else self.num_tokens - 1

    @num_computed.setter
    def num_computed(self, value: int) -> None:
        assert self.table is None, "while a request decodes, its table counts"
        self._num_computed = value

    @property
    def num_generated(self) -> int:
        """Pairs sampled so far."""
        return self.num_tokens - self.prompt_len

    @property
    def pages(self) -> tuple[list[int], ...]:
        """Pages held in every group, in order of position; a copy."""
        if self.blocks is None:
            return ([], [], [])
        return tuple(self.blocks.pages(group, self.slot) for group in (TRUNK, TEXT, AUDIO))

    @property
    def num_pages_needed(self) -> int:
        """Pages per group that hold every position of the tape."""
        return -(-self.num_tokens // PAGE_SIZE)

    @property
    def generated_text(self) -> np.ndarray:
        """Text history, int64 [num_generated], blanks and text_eos included (reference behaviour section 9, step 5)."""
        return self.rows(self.prompt_len, self.num_generated)[:, 1]

    @property
    def generated_audio(self) -> np.ndarray:
        """Audio history, int64 [num_generated]."""
        return self.rows(self.prompt_len, self.num_generated)[:, 0]

    def rows(self, start: int, length: int) -> np.ndarray:
        """A copy of tape rows, int64 [length, 3]: audio id, text id, feature key (0: none)."""
        assert start + length <= self.num_tokens
        return np.frombuffer(self.row_bytes(start, length), dtype=np.int64).reshape(-1, ROW_ITEMS).copy()

    def extend(self, pairs: np.ndarray) -> None:
        """Sampled (audio id, text id) pairs, int64 [n, 2], become the inputs of the next positions."""
        rows = np.zeros((len(pairs), ROW_ITEMS), np.int64)
        rows[:, :2] = pairs
        self.tape.frombytes(rows.tobytes())
        self.synced_len += len(pairs)

    def end_text(self) -> None:
        """The text stream has ended; without ``keep_text_pages`` the text branch of ``both`` never runs again."""
        self.text_ended = True
        self.run_text = self.output_type == "text" or self.keep_text_pages
        self._choose_groups()

    def row_bytes(self, start: int, length: int) -> bytes:
        """Tape rows as bytes, ``ROW_BYTES`` each."""
        if self.table is not None:
            self.table.sync(self)
        return self.tape[ROW_ITEMS * start : ROW_ITEMS * (start + length)].tobytes()

    def _choose_groups(self) -> None:
        self.groups = (TRUNK,) + (TEXT,) * self.run_text + (AUDIO,) * self.run_audio


def _prompt_tape(audio_ids: np.ndarray, text_ids: np.ndarray, features: Sequence[FeatureSpan]) -> array:
    rows = np.zeros((len(audio_ids), ROW_ITEMS), np.int64)
    rows[:, 0] = audio_ids
    rows[:, 1] = text_ids
    for span in features:
        end = span.start + span.length
        if not 0 <= span.start <= end <= len(rows):
            raise InputError(f"feature span {span.start}..{end} lies outside the prompt of {len(rows)} positions")
        rows[span.start : end, 2] = _feature_keys(span)
    return array("q", rows.tobytes())


def _feature_keys(span: FeatureSpan) -> np.ndarray:
    """One key per feature row, int64 [length], never 0; equal recordings and rows give equal keys."""
    base = int.from_bytes(hashlib.blake2b(span.digest, digest_size=8).digest(), "little")
    rows = np.arange(span.first_row, span.first_row + span.length, dtype=np.uint64)
    keys = np.uint64(base) + rows * np.uint64(_FEATURE_STRIDE)
    return (keys | np.uint64(1)).view(np.int64)
