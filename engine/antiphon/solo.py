"""The plain loop: one request alone, step by step, on a cache of its own.

It is what every batched run is compared with, and what ``KimiAudio.trace`` uses to keep the numbers in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from antiphon_kernels import Stop

from .execution.decode_state import DecodeState
from .execution.kv_cache import allocate, sizes_for
from .execution.llm_runner import LlmRunner, StepOutput
from .execution.step_batch import StepBatch
from .models.dual_qwen import DualQwen
from .prompt import Prompt
from .request import SamplingParams, step_limit


@dataclass(frozen=True)
class Step:
    """One step's tokens after forcing; ``stop`` is ``Stop.RUNNING`` until the last."""

    text: int
    audio: int
    stop: Stop
    output: StepOutput


class SoloRun:
    """One request's generation; iterate over :meth:`steps`. ``runner.counters`` tells what was computed.

    ``both_heads`` runs the audio branch and its head everywhere, also where their result is thrown away.
    """

    def __init__(
        self, model: DualQwen, prompt: Prompt, sampling: SamplingParams, seed: int, *, both_heads: bool = False
    ):
        self.prompt = prompt
        self.speaks = prompt.output_type == "both"
        self.run_audio = self.speaks or both_heads
        self.delay = 0 if both_heads else model.config.audio_delay
        limit = step_limit(len(prompt), prompt.output_type, sampling.max_new_tokens, model.config)
        sizes = sizes_for(model.config, len(prompt) + limit)
        kv = allocate(model.config, sizes, model.embed_table.dtype, model.embed_table.device)
        self.runner = LlmRunner(
            model, kv, DecodeState(model.config, 1, model.embed_table.device), head_delay=self.delay
        )
        self.runner.state.open(0, sampling, seed, self.speaks, limit)
        pages = np.arange(sizes.trunk, dtype=np.int32)[None]
        self.tables = (pages, pages, pages + sizes.text)

    def steps(
        self, *, keep_logits: bool = False, observe: Callable[[str, Tensor], None] | None = None
    ) -> Iterator[Step]:
        """Run to the end, one step at a time."""
        p = self.prompt
        features = adapted_features(self.runner.model, p)
        batch = self._batch(0, 0, True, p.audio_ids.numpy(), p.text_ids.numpy(), p.feature_rows.numpy(), features)
        for number in range(1, self.runner.config.max_positions + 1):
            output = self.runner.run(batch, keep_logits=keep_logits, observe=observe)
            text, audio, stop = output.text[0], output.audio[0], Stop(output.stop[0])
            yield Step(text, audio, stop, output)
            if stop:
                return
            run_text = not (self.speaks and output.text_ended[0])
            start = len(p) + number - 1
            batch = self._batch(start, number, run_text, np.array([audio]), np.array([text]), None, None)

    def _batch(self, start, step, run_text, audio_ids, text_ids, feature_rows, features) -> StepBatch:
        return StepBatch(
            slots=np.array([0]),
            starts=np.array([start]),
            lengths=np.array([len(audio_ids)]),
            samples=np.array([True]),
            steps=np.array([step]),
            run_text=np.array([run_text]),
            run_audio=np.array([self.run_audio]),
            audio_ids=audio_ids,
            text_ids=text_ids,
            feature_rows=feature_rows,
            features=features,
            tables=self.tables,
        )


def adapted_features(model: DualQwen, prompt: Prompt) -> Tensor | None:
    """Adaptor outputs [F, H] of all continuous features of a prompt, on the model's device."""
    features = prompt.features()
    return None if features is None else model.adapt(features.to(model.embed_table.device))
