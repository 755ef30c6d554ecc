"""GLM-4-Voice tokenizer: a recording to one discrete code per 80 ms (reference behaviour section 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from antiphon_kernels.vq_nearest import squared_norms, vq_nearest

from ..audio.mel import HOP, log_mel
from ..audio.segments import num_tokens
from ..config import SAMPLES_PER_TOKEN_IN, SpeechTokenizerConfig
from ..errors import ConfigError
from ..upload import upload
from .encoder_layer import EncoderLayer
from .encoder_network import EncoderNetwork

SEGMENTS_PER_GROUP = 128
"""Segments of one recording that share their padding."""
FRAMES_PER_ROW = 2


def padded_widths(lengths: Sequence[int]) -> list[int]:
    """Samples to which each segment of ONE recording is padded: the longest of its group of 128, up to a token.

    The padding is visible only through the log-mel, whose last frames see the reflection at this point.
    """
    widths: list[int] = []
    for start in range(0, len(lengths), SEGMENTS_PER_GROUP):
        group = lengths[start : start + SEGMENTS_PER_GROUP]
        widths += [num_tokens(max(group)) * SAMPLES_PER_TOKEN_IN] * len(group)
    return widths


class SpeechTokenizer:
    """Segments of at most 30 s to codes. Always float32, on the device of its weights.

    Causal convolutions and a mask that hides padding mean that no row depends on anything after its segment's last
    token, so segments are cut there, whatever they were padded to, and may be batched with any others.

    Args:
        weights: conv1, conv2, positions, layers.{i}.* (those that influence a code), codebook [K, d].
    """

    def __init__(self, weights: dict[str, torch.Tensor], config: SpeechTokenizerConfig):
        encoder = config.encoder
        if config.pooling_size * FRAMES_PER_ROW * HOP != SAMPLES_PER_TOKEN_IN:
            raise ConfigError(f"pooling_kernel_size is {config.pooling_size}; only one code per 80 ms (4) is supported")
        self.config = config
        before = min(config.pooling_position, encoder.num_layers)
        self.network = EncoderNetwork(weights, encoder, before, causal=True)
        self.pooled_layers = [EncoderLayer(weights, i, encoder.num_heads) for i in range(before, encoder.num_layers)]
        self.positions, self.codebook = self.network.positions, weights["codebook"]
        self.norms = squared_norms(self.codebook)

    @property
    def device(self) -> torch.device:
        return self.positions.device

    def log_mels(self, segments: Sequence[torch.Tensor], widths: Sequence[int]) -> torch.Tensor:
        """Log-mels of segments padded to ``widths``, cut to the longest segment's last token: float32 [N, 128, 2T]."""
        tokens = num_tokens(max(len(segment) for segment in segments))
        frames = tokens * SAMPLES_PER_TOKEN_IN // HOP
        mels = [log_mel(s.to(self.device), w, min(w // HOP, frames)) for s, w in zip(segments, widths)]
        mels = [F.pad(mel, (0, frames - mel.shape[1])) if mel.shape[1] < frames else mel for mel in mels]
        return mels[0][None] if len(mels) == 1 else torch.stack(mels)  # one alone is not copied

    def pooled(self, mels: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Vectors before quantisation: [N, 128, 2T] of segments of ``lengths`` samples -> [N, T / 4, d]."""
        (valid,) = upload([np.array([_valid_rows(n) for n in lengths])], mels.device)
        block, pool = self.config.causal_block_size, self.config.pooling_size
        x = self.network(mels, valid, block)
        if len(self.network.layers) < self.config.pooling_position:
            return x
        x = F.avg_pool1d(x.transpose(1, 2), pool).transpose(1, 2)
        for layer in self.pooled_layers:
            x = layer(x, -(-valid // pool), block // pool)
        return x

    def __call__(self, segments: Sequence[torch.Tensor], widths: Sequence[int]) -> list[torch.Tensor]:
        """Codes of segments (float32 [L] each, 1 <= L <= 480,000): one int64 [ceil(L / 1280)] each.

        Args:
            widths: samples to which each is padded, as :func:`padded_widths` gives them for a recording.
        """
        lengths = [len(segment) for segment in segments]
        pooled = self.pooled(self.log_mels(segments, widths), lengths)
        counts = [num_tokens(n) for n in lengths]
        codes = vq_nearest(torch.cat([x[:n] for x, n in zip(pooled, counts)]), self.codebook, self.norms)
        return list(codes.split(counts))


def _valid_rows(num_samples: int) -> int:
    """Encoder rows that a segment's own samples reach; keys from there on are hidden."""
    frames = math.ceil(num_samples / HOP)
    return math.ceil(frames / FRAMES_PER_ROW)
