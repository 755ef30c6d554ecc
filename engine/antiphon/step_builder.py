"""From the scheduler's plan to the arrays of a step. Decodes, the common case, are gathered without a loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .execution.step_batch import StepBatch
from .models.dual_qwen import DualQwen
from .scheduler import SequencePlan, StepPlan


class PromptChunk(NamedTuple):
    """Rows of a prompt (or of a tape that is computed again).

    ids int64 [n]; ``feature_rows`` int64 [n], negative where there is no feature; ``features``: encoder features of the
    other rows, in order, in any number of pieces.
    """

    audio_ids: np.ndarray
    text_ids: np.ndarray
    feature_rows: np.ndarray
    features: list[Tensor]


class StepBuilder:
    """Knows the last token pair of every slot.

    Args:
        chunk: supplies the rows of prefills.
        model: its adaptor runs once per step, on the rows of that step: positions found in the prefix cache cost nothing.
    """

    def __init__(self, num_slots: int, chunk: Callable[[SequencePlan], PromptChunk], model: DualQwen):
        self.last_audio = np.zeros(num_slots, np.int64)
        self.last_text = np.zeros(num_slots, np.int64)
        self._chunk, self._model = chunk, model

    def build(self, plan: StepPlan) -> StepBatch:
        """The batch of a plan: decode rows first, then prompt chunks."""
        decodes = plan.slots[: plan.num_decodes]
        audio, text, features = self.last_audio[decodes], self.last_text[decodes], []
        feature_rows = None
        if len(plan.slots) > plan.num_decodes:
            chunks = [self._chunk(sequence) for sequence in plan.chunks]
            audio = np.concatenate([audio, *(chunk.audio_ids for chunk in chunks)])
            text = np.concatenate([text, *(chunk.text_ids for chunk in chunks)])
            features = [piece for chunk in chunks for piece in chunk.features]
            if features:
                rows = np.concatenate([np.full(len(decodes), -1), *(chunk.feature_rows for chunk in chunks)])
                feature_rows = np.where(rows >= 0, np.cumsum(rows >= 0) - 1, -1)
        return StepBatch(
            slots=plan.slots,
            starts=plan.starts,
            lengths=plan.lengths,
            samples=plan.samples,
            steps=plan.num_generated,
            run_text=plan.run_text,
            run_audio=plan.run_audio,
            audio_ids=audio,
            text_ids=text,
            feature_rows=feature_rows,
            features=self._model.adapt(torch.cat(features).to(self._model.embed_table.device)) if features else None,
            tables=plan.block_tables,
        )
