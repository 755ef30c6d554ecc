"""The plain loop: one request alone, step by step, on a cache of its own.

It is what every batched run is compared with, and what ``KimiAudio.trace`` uses to keep the numbers in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from antiphon_kernels import Stop

from .execution.decode_state import DecodeState
from .execution.kv_cache import allocate, sizes_for
from .execution.llm_runner import LlmRunner, SequenceStep, StepOutput
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


def generate_alone(
    model: DualQwen,
    prompt: Prompt,
    output_type: str,
    sampling: SamplingParams,
    seed: int,
    *,
    keep_logits: bool = False,
    observe: Callable[[str, Tensor], None] | None = None,
    runners: list[LlmRunner] | None = None,
) -> Iterator[Step]:
    """Generate both streams of one request; ``runners`` (if given) receives the runner, for its counters."""
    speaks = output_type == "both"
    limit = step_limit(len(prompt), output_type, sampling.max_new_tokens, model.config)
    runner = _runner(model, len(prompt) + limit)
    if runners is not None:
        runners.append(runner)
    runner.state.open(0, sampling, seed, speaks, limit)
    pages = np.arange(runner.kv.trunk.shape[2], dtype=np.int32)
    step = SequenceStep(
        slot=0, start=0, audio_ids=prompt.audio_ids.numpy(), text_ids=prompt.text_ids.numpy(), trunk_pages=pages,
        text_pages=pages, audio_pages=pages + len(pages) if speaks else None, samples=True,
        feature_rows=prompt.feature_rows.numpy(), features=adapted_features(model, prompt),
    )  # fmt: skip
    while True:
        output = runner.run([step], keep_logits=keep_logits, observe=observe)
        text, audio, stop = output.text[0], output.audio[0], Stop(output.stop[0])
        yield Step(text, audio, stop, output)
        if stop:
            return
        step = SequenceStep(
            slot=0, start=step.start + step.num_rows, audio_ids=np.array([audio]), text_ids=np.array([text]),
            trunk_pages=pages, text_pages=None if output.text_ended[0] else pages, audio_pages=step.audio_pages, samples=True,
        )  # fmt: skip


def adapted_features(model: DualQwen, prompt: Prompt) -> Tensor | None:
    """Adaptor outputs [F, H] of all continuous features of a prompt, on the model's device."""
    features = prompt.features()
    return None if features is None else model.adapt(features.to(model.embed_table.device))


def _runner(model: DualQwen, positions: int) -> LlmRunner:
    dtype, device = model.embed_table.dtype, model.embed_table.device
    kv = allocate(model.config, sizes_for(model.config, positions), dtype, device)
    return LlmRunner(model, kv, DecodeState(model.config, 1, device))
