"""Runs one ragged step of the language model: layout, network, heads, sampling, step state machine.

A step mixes prefill chunks and decodes of any requests. Each :class:`SequenceStep` says which rows it adds, which branches
these rows run, and whether a token is drawn after its last row. Branches that a request does not need are not run
for it: that is counted in :class:`WorkCounters`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from antiphon_kernels import advance_streams, sample_tokens

from ..config import LlmConfig
from ..models.dual_qwen import AttentionLayout, DualQwen, KVPages, StepLayout
from .decode_state import DecodeState
from .kv_cache import PAGE_SIZE


@dataclass(frozen=True)
class SequenceStep:
    """One request's rows of a step: positions [start, start + len(audio_ids)).

    ``feature_rows`` int64 like the ids, -1 where there is no continuous feature, else a row of ``features`` (adaptor outputs of
    the whole request [F, H]). ``*_pages`` are its block tables, int32, valid at least up to the last position here.
    """

    slot: int
    start: int
    audio_ids: np.ndarray
    text_ids: np.ndarray
    trunk_pages: np.ndarray
    text_pages: np.ndarray | None
    audio_pages: np.ndarray | None
    samples: bool
    feature_rows: np.ndarray | None = None
    features: Tensor | None = None

    @property
    def num_rows(self) -> int:
        return len(self.audio_ids)


@dataclass(frozen=True)
class StepOutput:
    """For the sequences that drew a token, in the step's order: slots and the tokens to feed back (after forcing).

    ``text_ended`` bool and ``stop`` (``antiphon_kernels.Stop``) are the state after the step. Logits are kept on request.
    """

    slots: list[int]
    text: list[int]
    audio: list[int]
    text_ended: list[bool]
    stop: list[int]
    text_logits: Tensor | None = None
    audio_logits: Tensor | None = None


@dataclass
class WorkCounters:
    """Rows that were computed, to show that skipped work was not done."""

    steps: int = 0
    trunk_rows: int = 0
    text_rows: int = 0
    audio_rows: int = 0
    text_heads: int = 0
    audio_heads: int = 0


@dataclass
class LlmRunner:
    """Owner of the model, its pages and its decode state. ``counters`` only grow."""

    model: DualQwen
    kv: KVPages
    state: DecodeState
    counters: WorkCounters = field(default_factory=WorkCounters)

    @property
    def config(self) -> LlmConfig:
        return self.model.config

    def run(
        self,
        sequences: Sequence[SequenceStep],
        *,
        keep_logits: bool = False,
        observe: Callable[[str, Tensor], None] | None = None,
    ) -> StepOutput:
        """Run one step. Sequences that sample get one token each; the others only fill their cache."""
        speaking = self._speaking_now(sequences)
        layout = build_layout(sequences, speaking, self.model.embed_table.device)
        x = self.model.embed(*self._inputs(sequences))
        if observe:
            observe("embed", x)
        hidden = self.model.hidden(x, layout, self.kv, observe)
        text_logits, audio_logits = self.model.logits(hidden, layout)
        self._count(layout, text_logits, audio_logits)
        output = self._advance(sequences, speaking, text_logits, audio_logits)
        if not keep_logits:
            return output
        return StepOutput(**{**output.__dict__, "text_logits": text_logits, "audio_logits": audio_logits})

    def _speaking_now(self, sequences: Sequence[SequenceStep]) -> list[bool]:
        """Per sequence: does this step's token come from the audio head? Not while the audio stream is delayed."""
        steps = self.state.history_len[[s.slot for s in sequences]].tolist()
        delay = self.config.audio_delay
        return [s.samples and s.audio_pages is not None and i >= delay for s, i in zip(sequences, steps, strict=True)]

    def _inputs(self, sequences: Sequence[SequenceStep]) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Ids, gathered features and feature rows of all rows."""
        device = self.model.embed_table.device
        rows, features, offset = [], [], 0
        for s in sequences:
            own = np.full(s.num_rows, -1) if s.feature_rows is None else s.feature_rows
            used = own >= 0
            if used.any():
                features.append(s.features[torch.from_numpy(own[used]).to(device)])
                own = np.where(used, np.cumsum(used) - 1 + offset, -1)
                offset += int(used.sum())
            rows.append(own)
        return (
            _tensor([s.audio_ids for s in sequences], device),
            _tensor([s.text_ids for s in sequences], device),
            torch.cat(features) if features else None,
            _tensor(rows, device),
        )

    def _count(self, layout: StepLayout, text_logits: Tensor, audio_logits: Tensor) -> None:
        c = self.counters
        c.steps += 1
        c.trunk_rows += layout.trunk.positions.shape[0]
        c.text_rows += layout.split
        c.audio_rows += layout.upper_rows.shape[0] - layout.split
        c.text_heads += text_logits.shape[0]
        c.audio_heads += audio_logits.shape[0]

    def _advance(
        self, sequences: Sequence[SequenceStep], speaking: list[bool], text_logits: Tensor, audio_logits: Tensor
    ) -> StepOutput:
        """Draw both streams' tokens (a stream that has no logits gets blank) and run the state machine."""
        state, device = self.state, self.model.embed_table.device
        drawn = [i for i, s in enumerate(sequences) if s.samples]
        if not drawn:
            return StepOutput([], [], [], [], [])
        slots = torch.tensor([sequences[i].slot for i in drawn], device=device)
        text = torch.full_like(slots, state.ids[0])
        audio = torch.full_like(slots, state.ids[0])
        text_at = [k for k, i in enumerate(drawn) if sequences[i].text_pages is not None]
        audio_at = [k for k, i in enumerate(drawn) if speaking[i]]
        for stream, (out, at, logits, history) in enumerate(
            ((text, text_at, text_logits, state.text_history), (audio, audio_at, audio_logits, state.audio_history))
        ):
            if at:
                out[at] = self._sample(logits, slots[at], history, stream)
        text, audio = advance_streams(
            text, audio, slots, state.text_history, state.audio_history, state.history_len, state.text_ended, state.stop,
            state.speaks, state.limit, state.ids,
        )  # fmt: skip
        return StepOutput(
            slots.tolist(), text.tolist(), audio.tolist(), state.text_ended[slots].tolist(), state.stop[slots].tolist()
        )

    def _sample(self, logits: Tensor, slots: Tensor, history: Tensor, stream: int) -> Tensor:
        s = self.state
        return sample_tokens(
            logits, history, s.history_len, slots, s.temperature[:, stream], s.top_k[:, stream], s.penalty[:, stream],
            s.window[:, stream], s.seeds, stream,
        )  # fmt: skip


def build_layout(sequences: Sequence[SequenceStep], speaking: Sequence[bool], device: torch.device) -> StepLayout:
    """Row and page layout of a step; ``speaking[i]`` says whether sequence i wants audio logits."""
    first_row = np.concatenate(([0], np.cumsum([s.num_rows for s in sequences])))
    text = [i for i, s in enumerate(sequences) if s.text_pages is not None]
    audio = [i for i, s in enumerate(sequences) if s.audio_pages is not None]
    rows = [np.arange(first_row[i], first_row[i + 1]) for i in (*text, *audio)]
    split = sum(sequences[i].num_rows for i in text)
    ends = np.cumsum([sequences[i].num_rows for i in (*text, *audio)]) - 1
    wants = [sequences[i].samples for i in text] + [speaking[i] for i in audio]
    head_rows = [end for end, want in zip(ends, wants, strict=True) if want]
    return StepLayout(
        trunk=_attention_layout([(s, s.trunk_pages) for s in sequences], device),
        upper=_attention_layout(
            [(sequences[i], sequences[i].text_pages) for i in text]
            + [(sequences[i], sequences[i].audio_pages) for i in audio],
            device,
        ),
        upper_rows=_tensor(rows, device),
        split=split,
        num_text_sequences=len(text),
        head_rows=torch.tensor(head_rows, dtype=torch.int64, device=device),
        head_split=sum(wants[: len(text)]),
    )


def _attention_layout(sequences: list[tuple[SequenceStep, np.ndarray]], device: torch.device) -> AttentionLayout:
    positions = [np.arange(s.start, s.start + s.num_rows) for s, _ in sequences]
    slots = [
        pages[p // PAGE_SIZE].astype(np.int64) * PAGE_SIZE + p % PAGE_SIZE
        for (_, pages), p in zip(sequences, positions, strict=True)
    ]
    num_rows = [s.num_rows for s, _ in sequences]
    seq_lens = np.array([s.start + s.num_rows for s, _ in sequences], dtype=np.int32)
    num_pages = -(-seq_lens // PAGE_SIZE)
    tables = np.zeros((len(sequences), int(num_pages.max(initial=0))), dtype=np.int32)
    for row, ((_, pages), n) in enumerate(zip(sequences, num_pages, strict=True)):
        tables[row, :n] = pages[:n]
    return AttentionLayout(
        positions=_tensor(positions, device),
        slots=_tensor(slots, device),
        block_tables=torch.from_numpy(tables).to(device),
        cu_seqlens_q=torch.from_numpy(np.cumsum([0, *num_rows], dtype=np.int32)).to(device),
        seq_lens=torch.from_numpy(seq_lens).to(device),
        max_seqlen_q=max(num_rows, default=0),
    )


def _tensor(parts: list[np.ndarray], device: torch.device) -> Tensor:
    """Join int parts into one int64 tensor on the device."""
    joined = np.concatenate(parts) if parts else np.empty(0)
    return torch.from_numpy(joined.astype(np.int64)).to(device)
