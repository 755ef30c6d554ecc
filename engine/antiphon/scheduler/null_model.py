"""A model that costs nothing: token = hash(seed, step, stream). For measuring the machinery around a model."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np

from .plan import StepPlan, StepResults

_MULTIPLIERS = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


class NullModel:
    """Runs a plan without looking at it more than necessary.

    Args:
        seed_of: seed of a request by id, default: its checksum; the tokens of a request depend on nothing else.
        text_steps: the text stream ends with this step.
        audio_steps: ``finished`` with this step; None: requests run to their limit.
        vocab_size: tokens are in [0, vocab_size).
    """

    def __init__(
        self,
        seed_of: Callable[[str], int] | None = None,
        *,
        text_steps: int = 40,
        audio_steps: int | None = None,
        vocab_size: int = 1000,
    ):
        self.seed_of = seed_of if seed_of is not None else lambda request_id: zlib.crc32(request_id.encode())
        self.text_steps = text_steps
        self.audio_steps = audio_steps
        self.vocab_size = vocab_size

    def run(self, plan: StepPlan) -> StepResults:
        """The token pairs of the plan's sampling sequences."""
        steps = plan.num_generated[plan.samples].astype(np.uint64)
        ids = [request_id for request_id, samples in zip(plan.request_ids, plan.samples.tolist()) if samples]
        seeds = np.array([self.seed_of(request_id) & 0xFFFFFFFF for request_id in ids], np.uint64)
        finished = np.zeros(len(steps), bool)
        if self.audio_steps is not None:
            finished = steps + 1 >= self.audio_steps
        return StepResults(
            text_tokens=(hash_tokens(seeds, steps, 0) % np.uint64(self.vocab_size)).astype(np.int64),
            audio_tokens=(hash_tokens(seeds, steps, 1) % np.uint64(self.vocab_size)).astype(np.int64),
            text_ended=steps + 1 >= self.text_steps,
            finished=finished,
        )


def hash_tokens(seeds: np.ndarray, steps: np.ndarray, stream: int) -> np.ndarray:
    """uint64 hashes of (seed, step, stream), elementwise (the mixing of splitmix64)."""
    x = seeds * np.uint64(_MULTIPLIERS[0]) + steps * np.uint64(2) + np.uint64(stream + 1)
    for shift, multiplier in ((30, _MULTIPLIERS[1]), (27, _MULTIPLIERS[2])):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(multiplier)
    return x ^ (x >> np.uint64(31))
