"""What the scheduler hands to the model runner for one step, and what the runner hands back.

A request's keys and values live in three groups of pages (trunk, text branch, audio branch), because it holds
pages only where it needs them. Everything here is plain Python and NumPy: no tensors, no device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

PAGE_SIZE = 16
TRUNK, TEXT, AUDIO = 0, 1, 2
GROUP_NAMES = ("trunk", "text", "audio")


class PageCopy(NamedTuple):
    """Copy the whole page ``source`` of ``group`` onto ``target`` before this step's forward pass.

    All copies of a step may run in any order or at once: targets are distinct, owned by the reading request alone, and
    never a source; sources are pinned until the step is committed.
    """

    group: int
    source: int
    target: int


class SlotAssignment(NamedTuple):
    """``request_id`` moves into ``slot`` in this step: the runner must set up the slot's sampling state.

    ``num_generated`` > 0 means that the request comes back after a preemption: its history is what it generated so far.
    """

    request_id: str
    slot: int
    num_generated: int


class BlockWrite(NamedTuple):
    """``tables[group][slot, index] = page`` became true since the last plan; enough to keep a device copy current."""

    group: int
    slot: int
    index: int
    page: int


class TableWrite(NamedTuple):
    """Block-table entries of one ``group`` that were written together: ``tables[group][slots, indices] = pages``.

    ``slots`` is one slot or int64 [n]; ``indices`` int64 [n], ``pages`` int32 [n].
    """

    group: int
    slots: int | np.ndarray
    indices: np.ndarray
    pages: np.ndarray


class SequencePlan(NamedTuple):
    """One request's rows in a step: positions ``start`` .. ``start + length - 1``.

    ``samples`` says that the last row's logits are needed, for sampling step number ``num_generated`` (0-based, step i
    of reference behaviour section 9). ``run_text`` / ``run_audio`` say whether the rows run through that branch.
    """

    request_id: str
    slot: int
    start: int
    length: int
    num_generated: int
    run_text: bool
    run_audio: bool
    samples: bool
    tables: tuple[np.ndarray, np.ndarray, np.ndarray]

    def pages(self, group: int) -> np.ndarray:
        """Block table of ``group``, int32 [pages], up to and including this step's rows; a view, valid until commit."""
        return self.tables[group][self.slot, : -(-(self.start + self.length) // PAGE_SIZE)]

    @property
    def trunk_pages(self) -> np.ndarray:
        """Block table in the trunk group."""
        return self.pages(TRUNK)

    @property
    def text_pages(self) -> np.ndarray:
        """Block table in the text group; meaningless unless ``run_text``."""
        return self.pages(TEXT)

    @property
    def audio_pages(self) -> np.ndarray:
        """Block table in the audio group; meaningless unless ``run_audio``."""
        return self.pages(AUDIO)


@dataclass(frozen=True)
class StepPlan:
    """One ragged step of S sequences: ``num_decodes`` rows of decoding requests first, then prompt chunks.

    The same facts in two forms: columns for a runner that works on arrays, ``sequences`` for one that loops.

    Attributes:
        slots, starts, lengths, num_generated: int64 [S], see :class:`SequencePlan`.
        run_text, run_audio, samples: bool [S].
        block_tables: the scheduler's own int32 [max_sequences, max_pages] arrays, one per group, row = slot; they change
            only in ``schedule``. Entries past a request's pages are stale.
        assigned, table_writes, copies: to be carried out before the forward pass, in this order.
        preempted: requests that lost their pages in this step; their slots may be reused at once.
        steps: decode steps in a row that the plan stands for; the columns are those of the first.
    """

    step: int
    request_ids: tuple[str, ...]
    slots: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    num_generated: np.ndarray
    run_text: np.ndarray
    run_audio: np.ndarray
    samples: np.ndarray
    num_decodes: int
    num_rows: int
    copies: tuple[PageCopy, ...]
    assigned: tuple[SlotAssignment, ...]
    table_writes: tuple[TableWrite, ...]
    block_tables: tuple[np.ndarray, np.ndarray, np.ndarray]
    preempted: tuple[str, ...]
    steps: int = 1

    @cached_property
    def block_writes(self) -> tuple[BlockWrite, ...]:
        """``table_writes`` entry by entry, each entry once, in its final state."""
        final = {}
        for group, slots, indices, pages in self.table_writes:
            for slot, index, page in zip(*(column.tolist() for column in np.broadcast_arrays(slots, indices, pages))):
                final[group, slot, index] = page
        return tuple(BlockWrite(*entry, page) for entry, page in final.items())

    @cached_property
    def sequences(self) -> tuple[SequencePlan, ...]:
        """The columns, one object per sequence."""
        return self._rows(0)

    @cached_property
    def chunks(self) -> tuple[SequencePlan, ...]:
        """The sequences behind the decodes: prompts, and tapes that are computed again."""
        return self._rows(self.num_decodes)

    def _rows(self, first: int) -> tuple[SequencePlan, ...]:
        columns = (
            self.slots,
            self.starts,
            self.lengths,
            self.num_generated,
            self.run_text,
            self.run_audio,
            self.samples,
        )
        rows = zip(self.request_ids[first:], *(column[first:].tolist() for column in columns), strict=True)
        return tuple(SequencePlan(*row, self.block_tables) for row in rows)

    @cached_property
    def sampling(self) -> tuple[SequencePlan, ...]:
        """The sequences that sample a token pair in this step, in the order in which results are given back."""
        return tuple(sequence for sequence in self.sequences if sequence.samples)


@dataclass(frozen=True, slots=True)
class StepResults:
    """Sampled token pairs, one entry per sequence of ``StepPlan.sampling``, after forcing (section 9, steps 3 to 6).

    ``text_ended``: the text stream has ended, now or earlier. ``finished``: the stop condition was met by this pair.
    NumPy arrays or lists.
    """

    text_tokens: Sequence[int] | np.ndarray
    audio_tokens: Sequence[int] | np.ndarray
    text_ended: Sequence[bool] | np.ndarray
    finished: Sequence[bool] | np.ndarray

    def columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """int64, int64, bool, bool arrays [R]."""
        tokens = (np.asarray(self.text_tokens, np.int64), np.asarray(self.audio_tokens, np.int64))
        return (*tokens, np.asarray(self.text_ended, bool), np.asarray(self.finished, bool))
