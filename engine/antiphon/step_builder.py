"""From the scheduler's plan to the arrays of a step. Decodes, the common case, are gathered without a loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .execution.step_batch import StepBatch
from .scheduler import SequencePlan, StepPlan
from .upload import upload


class PromptChunk(NamedTuple):
    """Rows of a prompt (or of a tape that is computed again): ids int64 [n], feature rows int64 [n] into ``features``."""

    audio_ids: np.ndarray
    text_ids: np.ndarray
    feature_rows: np.ndarray
    features: Tensor | None


class StepBuilder:
    """Knows the last token pair of every slot; ``chunk(sequence)`` supplies the rows of prefills."""

    def __init__(self, num_slots: int, chunk: Callable[[SequencePlan], PromptChunk]):
        self.last_audio = np.zeros(num_slots, np.int64)
        self.last_text = np.zeros(num_slots, np.int64)
        self._chunk = chunk

    def build(self, plan: StepPlan) -> StepBatch:
        """The batch of a plan: decode rows first, then prompt chunks."""
        decodes = plan.slots[: plan.num_decodes]
        audio, text = [self.last_audio[decodes]], [self.last_text[decodes]]
        rows, features, num_features = [np.full(len(decodes), -1)], [], 0
        for sequence in plan.chunks:
            chunk = self._chunk(sequence)
            audio.append(chunk.audio_ids)
            text.append(chunk.text_ids)
            used = chunk.feature_rows >= 0
            if used.any():
                (wanted,) = upload([chunk.feature_rows[used]], chunk.features.device)
                features.append(chunk.features[wanted])
                rows.append(np.where(used, np.cumsum(used) - 1 + num_features, -1))
                num_features += len(wanted)
            else:
                rows.append(chunk.feature_rows)
        return StepBatch(
            slots=plan.slots,
            starts=plan.starts,
            lengths=plan.lengths,
            samples=plan.samples,
            steps=plan.num_generated,
            run_text=plan.run_text,
            run_audio=plan.run_audio,
            audio_ids=np.concatenate(audio),
            text_ids=np.concatenate(text),
            feature_rows=np.concatenate(rows) if features else None,
            features=torch.cat(features) if features else None,
            tables=plan.block_tables,
        )
