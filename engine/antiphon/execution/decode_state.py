"""Per-request state of the decode loop as arrays over slots, on the model's device: what sampling and the step state
machine read and write without the host."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import LlmConfig
from ..request import SamplingParams


class DecodeState:
    """State of ``num_slots`` requests; a slot belongs to one running request at a time.

    Histories are int32 [num_slots, capacity] and hold the streams after forcing (reference behaviour, section 9).
    """

    def __init__(self, config: LlmConfig, num_slots: int, device: torch.device):
        def zeros(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.zeros(num_slots, *shape, dtype=dtype, device=device)

        self.ids = [
            config.special.text_blank,
            config.special.text_eos,
            config.special.msg_end,
            config.special.media_end,
            config.audio_delay,
        ]
        self.text_history = zeros(torch.int32, config.max_positions)
        self.audio_history = zeros(torch.int32, config.max_positions)
        self.history_len, self.limit, self.seeds, self.stop = (zeros(torch.int64) for _ in range(4))
        self.text_ended, self.speaks = zeros(torch.bool), zeros(torch.bool)
        self.temperature, self.penalty = zeros(torch.float32, 2), zeros(torch.float32, 2)
        self.top_k, self.window = zeros(torch.int64, 2), zeros(torch.int64, 2)

    def open(self, slot: int, sampling: SamplingParams, seed: int, speaks: bool, limit: int) -> None:
        """Start a request in ``slot``."""
        for stream, s in enumerate((sampling.text, sampling.audio)):
            self.temperature[slot, stream] = s.temperature
            self.penalty[slot, stream] = s.repetition_penalty
            self.top_k[slot, stream] = s.top_k
            self.window[slot, stream] = s.repetition_window_size
        self.seeds[slot], self.limit[slot], self.speaks[slot] = seed, limit, speaks
        self.history_len[slot], self.stop[slot], self.text_ended[slot] = 0, 0, False

    def restore(self, slot: int, text: list[int], audio: list[int]) -> None:
        """Put back the streams of a request that ran before in another slot (after preemption)."""
        n = len(text)
        self.text_history[slot, :n] = torch.tensor(text, dtype=torch.int32)
        self.audio_history[slot, :n] = torch.tensor(audio, dtype=torch.int32)
        self.history_len[slot] = n
        self.text_ended[slot] = self.ids[1] in text
