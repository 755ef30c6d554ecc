"""Runs one ragged step of the language model: layout, network, heads, sampling, step state machine.

Branches and heads that a request does not need are not run for it; :class:`WorkCounters` counts what was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from antiphon_kernels import advance_streams, sample_tokens
from antiphon_kernels.native import bind_model_step, bind_token_step

from ..config import LlmConfig
from ..errors import ConfigError, EngineError
from ..models.dual_qwen import DualQwen, KVPages, StepLayout
from ..upload import upload
from .decode_graphs import ROWS, DecodeGraphs
from .decode_state import DecodeState
from .flashinfer_attention import CapturedAttention, choose
from .graphs import Graphs
from .kv_cache import KVSizes, allocate
from .step_batch import AttentionPlanner, HeadUse, StepBatch, build_layout

if TYPE_CHECKING:
    from antiphon_kernels.native.model_step import ModelStep
    from antiphon_kernels.native.token_step import TokenStep


@dataclass(frozen=True)
class StepOutput:
    """For the sequences that drew a token pair, in the step's order: the tokens to feed back, after forcing.

    ``text_ended`` and ``stop`` (``antiphon_kernels.Stop``) are the state after the step. Logits are kept on request.
    """

    text: list[int]
    audio: list[int]
    text_ended: list[bool]
    stop: list[int]
    text_logits: Tensor | None = None
    audio_logits: Tensor | None = None


class PendingStep:
    """A step, or several from one launch, handed to the device. On a GPU the tokens travel to pinned memory behind it.

    ``drawn``: int64 [steps, 4, R] (text, audio, text_ended, stop), or None if no sequence draws.
    """

    def __init__(self, drawn: Tensor | None, text_logits: Tensor | None = None, audio_logits: Tensor | None = None):
        self._logits = (text_logits, audio_logits)
        self._drawn, self._arrived = drawn, None
        if drawn is not None and drawn.is_cuda and torch.cuda.is_available():
            self._drawn = torch.empty(drawn.shape, dtype=drawn.dtype, pin_memory=True)
            self._drawn.copy_(drawn, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def output(self) -> StepOutput:
        """Wait for the tokens of the only step."""
        (output,) = self.outputs()
        return output

    def outputs(self) -> list[StepOutput]:
        """Wait for the tokens of every step, the only place where the host does.

        Behind the step in which a sequence stopped, its entries mean nothing.
        """
        if self._drawn is None:
            return [StepOutput([], [], [], [], *self._logits)]
        if self._arrived is not None:
            self._arrived.synchronize()
        return [
            StepOutput(text, audio, [bool(flag) for flag in ended], stop, *self._logits)
            for text, audio, ended, stop in self._drawn.tolist()
        ]


@dataclass
class WorkCounters:
    """Rows that the model computed so far; pairs that a draft proposed, and how many of them were right."""

    steps: int = 0
    trunk_rows: int = 0
    text_rows: int = 0
    audio_rows: int = 0
    text_heads: int = 0
    audio_heads: int = 0
    drafted: int = 0
    accepted: int = 0

    def add(self, layout: StepLayout) -> None:
        """Count one step."""
        text, heads = layout.split, layout.head_split
        audio, audio_heads = layout.upper_rows.shape[0] - text, layout.head_rows.shape[0] - heads
        self.add_rows(1, layout.trunk.positions.shape[0], text, audio, heads, audio_heads)

    def add_rows(
        self,
        steps: int,
        trunk: int,
        text: int,
        audio: int,
        text_heads: int,
        audio_heads: int,
        drafted: int = 0,
        accepted: int = 0,
    ) -> None:
        """Count steps with so many rows in all."""
        self.steps += steps
        self.trunk_rows += trunk
        self.text_rows += text
        self.audio_rows += audio
        self.text_heads += text_heads
        self.audio_heads += audio_heads
        self.drafted += drafted
        self.accepted += accepted


@dataclass
class LlmRunner:
    """Owner of the model's pages and decode state.

    ``head_delay``: steps of a request in which the audio head does not run; default: the delay, whose tokens are forced.
    ``graphs``: captured decode steps, or None to run every step eagerly. ``attention``: plans the attention of eager steps
    in place of our own operator. ``draft``: the model with smaller matrices, for launches of several native steps.
    """

    model: DualQwen
    kv: KVPages
    state: DecodeState
    counters: WorkCounters = field(default_factory=WorkCounters)
    head_delay: int | None = None
    graphs: DecodeGraphs | None = None
    attention: AttentionPlanner | None = None
    draft: DualQwen | None = None

    @classmethod
    def build(
        cls,
        model: DualQwen,
        sizes: KVSizes,
        num_slots: int,
        dtype: torch.dtype,
        graphs: Graphs | None = None,
        attention: str = "auto",
        draft: DualQwen | None = None,
    ) -> LlmRunner:
        """A runner with pages and slots of its own; with ``graphs`` one spare page a group and one spare slot for idle rows."""
        device, spare = model.embed_table.device, int(graphs is not None)
        kv = allocate(model.config, KVSizes(sizes.trunk + spare, sizes.text, sizes.audio + spare), dtype, device)
        runner = cls(model, kv, DecodeState(model.config, num_slots + spare, device), draft=draft)
        runner.attention = choose(attention, model.config, dtype, device)
        if graphs is not None:
            captured = None
            if attention == "flashinfer":
                captured = CapturedAttention(model.config, dtype, device)
            runner.graphs = DecodeGraphs(model, kv, runner.state, graphs, runner.delay, captured)
        return runner

    @property
    def config(self) -> LlmConfig:
        return self.model.config

    @property
    def device(self) -> torch.device:
        return self.model.embed_table.device

    @property
    def delay(self) -> int:
        return self.config.audio_delay if self.head_delay is None else self.head_delay

    def run(
        self,
        batch: StepBatch,
        *,
        keep_logits: bool = False,
        observe: Callable[[str, Tensor], None] | None = None,
    ) -> StepOutput:
        """Run one step. Sequences that sample draw one pair each; the others only fill their cache."""
        return self.start(batch, keep_logits=keep_logits, observe=observe).output()

    @property
    def max_launch(self) -> int:
        """Sequences whose decode steps can follow each other in one launch; 0 without graphs and without native steps."""
        if self.graphs is not None:
            return ROWS[-1]
        return self._token_step.max_rows if self._token_step else 0

    def start(
        self,
        batch: StepBatch,
        steps: int = 1,
        *,
        keep_logits: bool = False,
        observe: Callable[[str, Tensor], None] | None = None,
    ) -> PendingStep:
        """Everything of :meth:`run` but waiting for the tokens: on a GPU the host goes on at once.

        A decode step is one replay of a graph or one native call where there is one that fits. A step with prompts is one native
        call too where that takes so many rows. Everything else runs operators.

        ``steps`` > 1: so many decode steps of at most :attr:`max_launch` sequences, whose pages for all of them are there.
        """
        if self.graphs is not None and not keep_logits and observe is None and self.graphs.fits(batch):
            self.counters.steps += steps
            return PendingStep(self.graphs.run(batch, steps).clone())
        if self._token_step and not keep_logits and observe is None and self._token_step.fits(batch):
            drawn, *work = self._token_step(batch, steps)
            self.counters.add_rows(steps, *work)
            return PendingStep(drawn)
        if steps > 1:
            raise EngineError(
                "several steps in one launch: only decodes, all drawing, that graphs or the native step take"
            )
        layout, use = build_layout(batch, self.delay, self.device, self.attention)
        text_logits, audio_logits = self._logits(batch, layout, observe)
        self.counters.add(layout)
        drawn = self._draw(use, text_logits, audio_logits) if len(use.slots) else None
        drawn = None if drawn is None else drawn[None]
        return PendingStep(drawn, *((text_logits, audio_logits) if keep_logits else (None, None)))

    def _logits(
        self, batch: StepBatch, layout: StepLayout, observe: Callable[[str, Tensor], None] | None
    ) -> tuple[Tensor, Tensor]:
        """The network and its heads, one native call where that is bound and takes so many rows."""
        audio_ids, text_ids, features, feature_rows = self._inputs(batch)
        if self._model_step and not observe and self._model_step.fits(layout):
            return self._model_step(audio_ids, text_ids, layout, features, feature_rows)
        x = self.model.embed(audio_ids, text_ids, features, feature_rows)
        if observe:
            observe("embed", x)
        return self.model.logits(self.model.hidden(x, layout, self.kv, observe), layout)

    @cached_property
    def _model_step(self) -> ModelStep | None:
        return self._bind(self.model)

    def _bind(self, model: DualQwen) -> ModelStep | None:
        c = self.config
        return bind_model_step(model, self.kv.trunk, self.kv.upper, c.num_text_layers, c.num_audio_layers)

    @cached_property
    def _token_step(self) -> TokenStep | None:
        """The whole of a pure decode step as one native call; None where attention is planned or nothing native fits."""
        if self.attention is not None:
            return None
        draft = None if self.draft is None else self._bind(self.draft)
        if self.draft is not None and draft is None:
            raise ConfigError(
                f"the draft's matrices, {self.config.hidden_size} wide, do not fit the native kernels: int8 needs "
                "multiples of 64, int4 of 128; load the model without a draft"
            )
        return bind_token_step(self._model_step, self.state, self.delay, draft)

    def copy_pages(self, trunk: list[tuple[int, int]], upper: list[tuple[int, int]]) -> None:
        """Copy whole pages (source, target) in every layer of the trunk or of the upper tensor."""
        for pages, pairs in ((self.kv.trunk, trunk), (self.kv.upper, upper)):
            if pairs:
                source, target = upload([np.array(pairs).T.copy()], self.device)[0]
                pages[:, :, target] = pages[:, :, source]

    def _inputs(self, batch: StepBatch) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        rows = np.full(batch.num_rows, -1) if batch.feature_rows is None else batch.feature_rows
        audio, text, rows = upload([batch.audio_ids, batch.text_ids, rows], self.device)
        return audio, text, batch.features, rows

    def _draw(self, use: HeadUse, text_logits: Tensor, audio_logits: Tensor) -> Tensor:
        """Draw both streams' tokens, text first (a stream without logits gets blank), and run the state machine.

        Result int64 [4, R]: text, audio, text_ended, stop of the sequences that drew.
        """
        state = self.state
        slots, text_rows, audio_rows = upload([use.slots, use.text, use.audio], self.device)
        text = torch.full_like(slots, state.ids[0])
        audio = torch.full_like(slots, state.ids[0])
        for stream, (out, rows, logits, history) in enumerate(
            (
                (text, text_rows, text_logits, state.text_history),
                (audio, audio_rows, audio_logits, state.audio_history),
            )
        ):
            if rows.shape[0]:
                out[rows] = self._sample(logits, slots[rows], history, stream)
        text, audio = advance_streams(
            text, audio, slots, state.text_history, state.audio_history, state.history_len, state.text_ended, state.stop,
            state.speaks, state.limit, state.ids,
        )  # fmt: skip
        return torch.stack((text, audio, state.text_ended[slots].to(torch.int64), state.stop[slots]))

    def _sample(self, logits: Tensor, slots: Tensor, history: Tensor, stream: int) -> Tensor:
        s = self.state
        return sample_tokens(
            logits, history, s.history_len, slots, s.temperature[:, stream], s.top_k[:, stream], s.penalty[:, stream],
            s.window[:, stream], s.seeds, stream,
        )  # fmt: skip
