"""A small language model with random weights, and worlds of requests that it serves with or without captured steps."""

from __future__ import annotations

import numpy as np
import torch

from antiphon.checkpoint.presets import nano
from antiphon.config import LlmConfig
from antiphon.execution.decode_state import DecodeState
from antiphon.execution.kv_cache import KVSizes, allocate
from antiphon.execution.llm_runner import LlmRunner
from antiphon.execution.step_batch import StepBatch
from antiphon.models.dual_qwen import DualQwen
from antiphon.planner.fake_model import packed_shapes
from antiphon.request import SamplingParams, StreamSampling

CONFIG = nano().llm
SLOTS, PAGES = 6, 4
CPU = torch.device("cpu")


def random_model(config: LlmConfig = CONFIG) -> DualQwen:
    """A small model with branches of unequal depth; ``config`` may differ from CONFIG in what no weight depends on."""
    generator = torch.Generator().manual_seed(1)
    shapes = packed_shapes(nano(), dtype=torch.float32)["llm"]
    return DualQwen(config, {name: torch.randn(t.shape, generator=generator) * 0.15 for name, t in shapes.items()})


SAMPLED = SamplingParams(text=StreamSampling(0.8, 5, 1.2, 2), audio=StreamSampling(1.1, 7, 1.1, 3))


class World:
    """One copy of pages and state, and the host's view of its requests: every slot owns the pages of its number.

    There are SLOTS slots, or two more than requests where those are many: some are nobody's.
    """

    def __init__(self, model, requests, limit=40, sampling=SAMPLED, draft=None):
        self.num_slots = SLOTS if len(requests) <= SLOTS else len(requests) + 2
        self.pages = pages = self.num_slots * PAGES
        self.requests = requests  # (speaks, text_ended, prompt)
        self.kv = allocate(CONFIG, KVSizes(pages + 1, pages, pages + 1), model.embed_table.dtype, CPU)
        self.state = DecodeState(model.config, self.num_slots + 1, CPU)
        self.runner = LlmRunner(model, self.kv, self.state, draft=draft)
        self.own = np.arange(pages, dtype=np.int32).reshape(self.num_slots, PAGES)
        order = [5, 1, 3, 0, 4, 2] if self.num_slots == SLOTS else np.random.default_rng(0).permutation(self.num_slots)
        self.slots = np.array(order[: len(requests)])
        self.steps = 0
        for slot, (speaks, *_) in zip(self.slots, requests):
            self.state.open(int(slot), sampling, 100 + int(slot), speaks, limit)
        self.prefill()

    def batch(self, starts, lengths, ids) -> StepBatch:
        speaks = np.array([r[0] for r in self.requests])
        ended = self.state.text_ended[torch.from_numpy(self.slots)].numpy()
        return StepBatch(
            slots=self.slots, starts=np.array(starts), lengths=np.array(lengths), samples=np.ones(len(ids[0]) and len(starts), bool),
            steps=np.full(len(starts), self.steps), run_text=~(speaks & ended), run_audio=speaks,
            audio_ids=np.asarray(ids[0], np.int64), text_ids=np.asarray(ids[1], np.int64), feature_rows=None, features=None,
            tables=(self.own, self.own, self.own + self.pages),
        )  # fmt: skip

    def prefill(self) -> None:
        lengths = [r[2] for r in self.requests]
        ids = np.arange(sum(lengths)) % 50 + 3
        self.last = self.runner.run(self.batch([0] * len(lengths), lengths, (ids, ids + 1)))
        for slot, (_, ended, _) in zip(self.slots, self.requests):
            self.state.text_ended[int(slot)] |= ended
        self.steps = 1

    def decode_batch(self) -> StepBatch:
        starts = [prompt + self.steps - 1 for *_, prompt in self.requests]
        return self.batch(starts, [1] * len(starts), (self.last.audio, self.last.text))

    def eager(self):
        self.last = self.runner.run(self.decode_batch())
        self.steps += 1
        return np.array([self.last.text, self.last.audio, self.last.text_ended, self.last.stop])


MIXES = {
    "text": [(False, False, 3)],
    "text and an idle row": [(False, False, 3), (False, False, 5), (False, False, 1)],
    "speech": [(True, False, 4), (True, False, 2)],
    "after the text": [(True, True, 4), (True, True, 7), (True, True, 2)],
    "all kinds": [(True, False, 4), (False, False, 9), (True, True, 2), (False, False, 6), (True, False, 1)],
}
