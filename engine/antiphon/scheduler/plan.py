"""What the scheduler hands to the model runner for one step, and what the runner hands back.

A request's keys and values live in three groups of pages (trunk, text branch, audio branch), because it holds
pages only where it needs them. Everything here is plain Python and NumPy: no tensors, no device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One ragged step: decode rows first, then prefill chunks.

    ``block_tables`` are the scheduler's own int32 [max_sequences, max_pages] arrays, one per group, row = slot; they
    change only in ``schedule``. Order for the runner: ``assigned``, ``copies``, forward, sampling.
    """

    step: int
    sequences: tuple[SequencePlan, ...]
    copies: tuple[PageCopy, ...]
    assigned: tuple[SlotAssignment, ...]
    block_writes: tuple[BlockWrite, ...]
    block_tables: tuple[np.ndarray, np.ndarray, np.ndarray]
    num_rows: int
    num_decodes: int
    preempted: tuple[str, ...]

    @property
    def sampling(self) -> list[SequencePlan]:
        """The sequences that sample a token pair in this step, in the order in which results are given back."""
        return [sequence for sequence in self.sequences if sequence.samples]


@dataclass(frozen=True, slots=True)
class StepResults:
    """Sampled token pairs, one entry per sequence of ``StepPlan.sampling``, after forcing (section 9, steps 3 to 6).

    ``text_ended``: the text stream has ended, now or earlier. ``finished``: the stop condition was met by this pair.
    Lists or NumPy arrays.
    """

    text_tokens: Sequence[int] | np.ndarray
    audio_tokens: Sequence[int] | np.ndarray
    text_ended: Sequence[bool] | np.ndarray
    finished: Sequence[bool] | np.ndarray

    def rows(self) -> list[tuple[int, int, bool, bool]]:
        """Python scalars, one (text, audio, text_ended, finished) per sampled sequence."""
        columns = (self.text_tokens, self.audio_tokens, self.text_ended, self.finished)
        lists = [column.tolist() if isinstance(column, np.ndarray) else column for column in columns]
        return list(zip(*lists, strict=True))
