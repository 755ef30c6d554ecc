"""Decode steps as graphs: inputs, network, heads, sampling and the step state machine in one replay, several steps if asked.

A graph belongs to a number of rows, a kind (which branches and heads run) and a width of the block tables. Rows that a step
does not fill are idle: their request is the spare slot, their pages are the spare pages, which nobody owns. A request that
stops in a step is idle in the later steps of the same replay. So no step writes what another request reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import product

import numpy as np
import torch
from torch import Tensor

from antiphon_kernels import advance_streams, sample_tokens
from antiphon_kernels.decode_inputs import decode_inputs

from ..models.dual_qwen import AttentionLayout, DualQwen, KVPages, StepLayout
from ..upload import upload
from .decode_state import DecodeState
from .flashinfer_attention import CapturedAttention, CapturedDecode
from .graphs import Graph, Graphs
from .kv_cache import PAGE_SIZE
from .static_inputs import StaticInputs
from .step_batch import StepBatch

ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
SHORT_CONTEXT = 1536
"""Positions of the narrower block tables: every request that speaks fits (its limit is 1500)."""


class Kind(Enum):
    """Which branches and heads a graph runs: (text branch, audio branch, audio head). The text head runs with its branch."""

    TEXT = (True, False, False)
    AUDIO = (False, True, True)
    DELAY = (True, True, False)
    BOTH = (True, True, True)


@dataclass(frozen=True)
class Bucket:
    """Shape of a graph. ``width``: pages of a block table; ``steps``: decode steps of one replay."""

    rows: int
    kind: Kind
    width: int
    steps: int = 1


class DecodeGraphs:
    """All decode graphs of one model, each captured when it is first needed or by :meth:`prepare`.

    Args:
        kv: with one spare page behind the trunk's and one behind the branches' pages.
        state: with one spare slot behind the requests'.
        graphs: how to capture.
        delay: steps of a request in which the audio head is not needed.
        attention: plans the attention of graphs of one step, in place of our own kernel, which needs no plan.
    """

    def __init__(
        self,
        model: DualQwen,
        kv: KVPages,
        state: DecodeState,
        graphs: Graphs,
        delay: int,
        attention: CapturedAttention | None = None,
    ):
        self.attention = attention
        self.model, self.kv, self.state, self.delay = model, kv, state, delay
        self.device = model.embed_table.device
        self._graphs = graphs
        self._built: dict[Bucket, DecodeGraph] = {}
        full = -(-model.config.max_positions // PAGE_SIZE)
        self.widths = tuple(sorted({min(SHORT_CONTEXT // PAGE_SIZE, full), full}))
        self.spare_slot = state.stop.shape[0] - 1
        self.spare_pages = np.array([kv.trunk.shape[2] - 1, kv.upper.shape[2] - 1, kv.upper.shape[2] - 1])

    def fits(self, batch: StepBatch) -> bool:
        """Whether the step is a pure decode that a graph can run: one row each, all drawing, from their history."""
        return (
            batch.num_rows == batch.num_sequences <= ROWS[-1]
            and batch.features is None
            and bool(batch.samples.all() and (batch.steps > 0).all() and (batch.run_text | batch.run_audio).all())
        )

    def bucket(self, batch: StepBatch, steps: int = 1) -> Bucket:
        """The smallest graph that runs all that the batch needs."""
        rows = next(size for size in ROWS if size >= batch.num_sequences)
        text, audio = bool(batch.run_text.any()), bool(batch.run_audio.any())
        head = audio and (not text or bool((batch.run_audio & (batch.steps + steps - 1 >= self.delay)).any()))
        kind = Kind((text, audio, head))
        pages = -(-int(batch.starts.max() + steps) // PAGE_SIZE)
        return Bucket(rows, kind, next(w for w in self.widths if w >= pages), steps)

    def run(self, batch: StepBatch, steps: int = 1) -> Tensor:
        """Replay; result int64 [steps, 4, S] (text, audio, text_ended, stop) on the device, valid until the next replay.

        With several steps the pages of all of them must be there; entries behind a request's stop mean nothing.
        """
        graph = self.graph(self.bucket(batch, steps))
        arrays = self.arrays(batch, graph.bucket)
        graph.inputs.load(arrays)
        graph.plan(arrays)
        graph.captured.replay()
        return graph.results[:, :, : batch.num_sequences]

    def prepare(self, rows: Sequence[int], widths: Sequence[int], steps: Sequence[int] = (1,)) -> None:
        """Capture graphs of these shapes, largest first, so that their memory pool is as large as it gets at once."""
        for shape in product(*(sorted(set(sizes), reverse=True) for sizes in (rows, widths, steps))):
            for kind in Kind:
                self.graph(Bucket(shape[0], kind, *shape[1:]))

    def graph(self, bucket: Bucket) -> DecodeGraph:
        """The graph of a bucket, captured now if it is not there."""
        if bucket not in self._built:
            self._built[bucket] = DecodeGraph(self, bucket, self._graphs)
        return self._built[bucket]

    def arrays(self, batch: StepBatch, bucket: Bucket) -> dict[str, np.ndarray]:
        """The host's part of a step, idle rows filled up."""
        n, rows, width = batch.num_sequences, bucket.rows, bucket.width
        slots, base = np.full(rows, self.spare_slot), np.zeros(rows, np.int64)
        slots[:n], base[:n] = batch.slots, batch.starts - batch.steps
        runs = np.zeros((2, rows), bool)
        runs[:, :n] = batch.run_text, batch.run_audio
        tables = np.zeros((3, rows, width), np.int32)
        for group, table in enumerate(batch.tables):
            held = min(width, table.shape[1])
            tables[group, :n, :held] = table[batch.slots, :held]
        starts = np.zeros(rows, np.int64)
        starts[:n] = batch.starts
        return {"slots": slots, "base": base, "runs": runs, "tables": tables, "starts": starts}


class DecodeGraph:
    """One captured bucket with its fixed tensors. While it is captured all rows are idle."""

    def __init__(self, owner: DecodeGraphs, bucket: Bucket, graphs: Graphs):
        self.bucket, self._owner = bucket, owner
        rows, device = bucket.rows, owner.device
        self.inputs = StaticInputs(
            {
                "slots": ((rows,), torch.int64),
                "base": ((rows,), torch.int64),
                "runs": ((2, rows), torch.bool),
                "tables": ((3, rows, bucket.width), torch.int32),
            },
            device,
        )
        self.inputs["slots"].fill_(owner.spare_slot)
        self.results = torch.zeros(bucket.steps, 4, rows, dtype=torch.int64, device=device)
        (self._spare,) = upload([owner.spare_pages], device)
        self._no_features = torch.full((rows,), -1, dtype=torch.int64, device=device)
        self._rows = torch.arange(rows, device=device)
        self._both_rows = self._rows.repeat(2)
        self._head_rows = torch.arange(2 * rows, device=device)
        self._bounds = torch.arange(2 * rows + 1, dtype=torch.int32, device=device)
        self._planned = self._open(owner.attention) if bucket.steps == 1 else None
        idle = {"base": np.zeros(rows, np.int64), "runs": np.zeros((2, rows), bool)}
        self.plan(idle | {"starts": idle["base"], "tables": np.zeros((3, rows, bucket.width), np.int32)})
        self.captured: Graph = graphs.capture(self.run)

    def _open(self, attention: CapturedAttention | None) -> tuple[CapturedDecode, CapturedDecode] | None:
        """Planned attention of the trunk's rows and of the branches' rows."""
        if attention is None:
            return None
        branches = sum(self.bucket.kind.value[:2])
        return tuple(attention.open(n * self.bucket.rows, self.bucket.width) for n in (1, branches))

    def plan(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Tell a planned attention the step to come; idle rows see one position of the spare pages."""
        if self._planned is None:
            return
        text, audio, _ = self.bucket.kind.value
        used = np.concatenate((arrays["runs"].any(0)[None], arrays["runs"]))
        tables = np.where(used[..., None], arrays["tables"], self._owner.spare_pages[:, None, None]).astype(np.int32)
        seq_lens = np.where(used, arrays["starts"] + 1, 1)
        for planned, groups in zip(self._planned, ([0], [1] * text + [2] * audio), strict=True):
            planned.plan(np.concatenate(tables[groups]), np.concatenate(seq_lens[groups]))

    def run(self) -> None:
        """What is captured."""
        for step in range(self.bucket.steps):
            self._step(self.results[step])

    def _step(self, results: Tensor) -> None:
        model, state, inputs = self._owner.model, self._owner.state, self.inputs
        slots, text, audio, positions, cache, seq_lens = decode_inputs(
            inputs["slots"], inputs["base"], inputs["runs"], inputs["tables"], self._spare, state.text_history,
            state.audio_history, state.history_len, state.stop, PAGE_SIZE, state.ids[0],
        )  # fmt: skip
        layout = self._layout(positions, cache, seq_lens)
        x = model.embed(audio, text, None, self._no_features)
        text_logits, audio_logits = model.logits(model.hidden(x, layout, self._owner.kv), layout)
        drawn = [self._draw(text_logits, slots, 0), self._draw(audio_logits, slots, 1)]
        text, audio = advance_streams(
            *drawn, slots, state.text_history, state.audio_history, state.history_len, state.text_ended, state.stop,
            state.speaks, state.limit, state.ids,
        )  # fmt: skip
        torch.stack((text, audio, state.text_ended[slots].to(torch.int64), state.stop[slots]), out=results)

    def _layout(self, positions: Tensor, cache: Tensor, seq_lens: Tensor) -> StepLayout:
        """Trunk rows in order; branch rows text first."""
        rows, (text, audio, audio_head) = self.bucket.rows, self.bucket.kind.value
        groups = slice(1 if text else 2, 3 if audio else 2)
        branches = text + audio
        tables = self.inputs["tables"]
        return StepLayout(
            trunk=AttentionLayout(
                positions[0], cache[0], tables[0], self._bounds[: rows + 1], seq_lens[0], 1, self._attends(0)
            ),
            upper=AttentionLayout(
                positions[:branches].flatten(), cache[groups].flatten(), tables[groups].flatten(0, 1),
                self._bounds[: branches * rows + 1], seq_lens[groups].flatten(), 1, self._attends(1),
            ),
            upper_rows=self._both_rows[: branches * rows],
            split=rows if text else 0,
            num_text_sequences=rows if text else 0,
            head_rows=self._head_rows[: (text + audio_head) * rows],
            head_split=rows if text else 0,
        )  # fmt: skip

    def _attends(self, part: int) -> CapturedDecode | None:
        return None if self._planned is None else self._planned[part]

    def _draw(self, logits: Tensor, slots: Tensor, stream: int) -> Tensor:
        """A token per row; blank where the head did not run."""
        s = self._owner.state
        if not logits.shape[0]:
            return torch.full_like(slots, s.ids[0])
        history = (s.text_history, s.audio_history)[stream]
        return sample_tokens(
            logits, history, s.history_len, slots, s.temperature[:, stream], s.top_k[:, stream], s.penalty[:, stream],
            s.window[:, stream], s.seeds, stream,
        )  # fmt: skip
