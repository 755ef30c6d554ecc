"""Whisper-large-v3's encoder: continuous features of a recording (reference behaviour section 6)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..audio.mel import log_mel
from ..audio.segments import SEGMENT_SAMPLES, num_tokens
from ..config import EncoderConfig
from .encoder_network import EncoderNetwork

ROWS_PER_TOKEN = 4


class WhisperEncoder:
    """Segments of at most 30 s to rows of 80 ms, each the concatenation of four encoder rows.

    Runs in the dtype and on the device of its weights. The log-mel is always float32, then rounded to that dtype.

    Args:
        weights: conv1, conv2, positions, layers.{i}.*, final_norm (weight and bias each; positions is a tensor).
    """

    def __init__(self, weights: dict[str, torch.Tensor], config: EncoderConfig):
        self.config = config
        self.network = EncoderNetwork(weights, config, config.num_layers, causal=False)
        self.positions = self.network.positions
        self._no_lengths = torch.zeros(0, dtype=torch.int64, device=self.device)

    @property
    def dtype(self) -> torch.dtype:
        return self.positions.dtype

    @property
    def device(self) -> torch.device:
        return self.positions.device

    def log_mels(self, segments: Sequence[torch.Tensor]) -> torch.Tensor:
        """Log-mels of segments (float32 [L] each), padded to 30 s: float32 [N, 128, 3000]."""
        mels = [log_mel(segment.to(self.device), SEGMENT_SAMPLES) for segment in segments]
        return mels[0][None] if len(mels) == 1 else torch.stack(mels)  # one alone is not copied

    def encode(self, mels: torch.Tensor, wanted: int | None = None) -> torch.Tensor:
        """All rows of N padded segments, or the first ``wanted``: [N, 128, 2T] -> [N, T, d]. The padding takes part in the
        attention."""
        return self.network(mels, self._no_lengths, 0, wanted)

    def __call__(self, segments: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Features of segments (float32 [L] each, 1 <= L <= 480,000): one [ceil(L / 1280), 4 d] each."""
        counts = [num_tokens(len(segment)) for segment in segments]
        rows = self.encode(self.log_mels(segments), ROWS_PER_TOKEN * max(counts))
        return [x[: ROWS_PER_TOKEN * n].reshape(n, -1) for x, n in zip(rows, counts)]
