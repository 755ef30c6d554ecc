"""One ragged step as arrays, and its layout for the network: pure index arithmetic, no loop over sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..models.dual_qwen import AttentionLayout, StepLayout
from ..upload import upload
from .kv_cache import PAGE_SIZE

Tables = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class StepBatch:
    """S sequences with T rows in all, rows of a sequence adjacent and in order.

    Per sequence, [S]: ``slots``, ``starts`` (first position of this step), ``lengths`` (rows), ``samples`` (draw a token
    pair after the last row), ``steps`` (pairs drawn before), ``run_text`` and ``run_audio`` (branches its rows run).
    Per row, int64 [T]: ``audio_ids``, ``text_ids``, ``feature_rows`` (row of ``features``, -1 for none).
    ``features``: adaptor outputs [F, H] or None. ``tables``: block tables of trunk, text and audio, int32
    [num_slots, max_pages], row = slot.
    """

    slots: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    samples: np.ndarray
    steps: np.ndarray
    run_text: np.ndarray
    run_audio: np.ndarray
    audio_ids: np.ndarray
    text_ids: np.ndarray
    feature_rows: np.ndarray | None
    features: Tensor | None
    tables: Tables

    @property
    def num_sequences(self) -> int:
        return len(self.slots)

    @property
    def num_rows(self) -> int:
        return len(self.audio_ids)


@dataclass(frozen=True)
class HeadUse:
    """Which of the sampling sequences (in step order) get a token from a head: indices into them, int64."""

    slots: np.ndarray
    text: np.ndarray
    audio: np.ndarray


class AttentionPlanner(Protocol):
    """An attention that wants to know a step's sequences before its layers run."""

    def plan(self, part: int, cu_seqlens: np.ndarray, tables: np.ndarray, seq_lens: np.ndarray):
        """What the layers of the trunk (part 0) or of the branches (part 1) call."""


def build_layout(
    batch: StepBatch, delay: int, device: torch.device, planner: AttentionPlanner | None = None
) -> tuple[StepLayout, HeadUse]:
    """Layout of a step; the audio head is left out in the first ``delay`` steps of a request, whose token is forced."""
    text, audio = np.flatnonzero(batch.run_text), np.flatnonzero(batch.run_audio)
    upper = np.concatenate((text, audio))
    lengths = batch.lengths[upper]
    split = int(batch.lengths[text].sum())
    wants = np.concatenate((batch.samples[text], batch.samples[audio] & (batch.steps[audio] >= delay)))
    first_row = np.cumsum(batch.lengths) - batch.lengths
    trunk, longest = _attention([(np.arange(batch.num_sequences), batch.tables[0])], batch)
    branches, longest_upper = _attention([(text, batch.tables[1]), (audio, batch.tables[2])], batch)
    rows = (ragged_arange(first_row[upper], lengths), (np.cumsum(lengths) - 1)[wants])
    upper_rows, head_rows, *attention = upload([*rows, *trunk, *branches], device)
    layout = StepLayout(
        trunk=AttentionLayout(*attention[: len(trunk)], longest, _planned(planner, 0, trunk)),
        upper=AttentionLayout(*attention[len(trunk) :], longest_upper, _planned(planner, 1, branches)),
        upper_rows=upper_rows,
        split=split,
        num_text_sequences=len(text),
        head_rows=head_rows,
        head_split=int(wants[: len(text)].sum()),
    )
    drawn = np.flatnonzero(batch.samples)
    place = np.cumsum(batch.samples) - 1
    use = HeadUse(batch.slots[drawn], place[text[wants[: len(text)]]], place[audio[wants[len(text) :]]])
    return layout, use


def _planned(planner: AttentionPlanner | None, part: int, arrays: list[np.ndarray]):
    _, _, tables, cu_seqlens, seq_lens = arrays
    return None if planner is None else planner.plan(part, cu_seqlens, tables, seq_lens)


def ragged_arange(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """starts[0], starts[0] + 1, … (lengths[0] of them), then starts[1], …; int64."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - (ends - lengths), lengths)


def _attention(parts: list[tuple[np.ndarray, np.ndarray]], batch: StepBatch) -> tuple[list[np.ndarray], int]:
    """Arrays of an :class:`AttentionLayout`, in its order, and its longest sequence: the sequences of all parts, one part
    after the other, each with its own block tables."""
    chosen = np.concatenate([sequences for sequences, _ in parts])
    starts, lengths = batch.starts[chosen], batch.lengths[chosen]
    seq_lens = starts + lengths
    width = -(-int(seq_lens.max(initial=0)) // PAGE_SIZE)
    tables = np.concatenate([table[batch.slots[sequences], :width] for sequences, table in parts])
    positions = ragged_arange(starts, lengths)
    pages = tables[np.repeat(np.arange(len(chosen)), lengths), positions // PAGE_SIZE].astype(np.int64)
    bounds = np.concatenate(([0], np.cumsum(lengths)))
    slots = pages * PAGE_SIZE + positions % PAGE_SIZE
    arrays = [positions, slots, tables, bounds.astype(np.int32), seq_lens.astype(np.int32)]
    return arrays, int(lengths.max(initial=0))
