"""Which mel frames an output sample of the vocoder depends on, computed from the layers."""

from __future__ import annotations

from dataclasses import dataclass

from antiphon_kernels.alias_free_snake import CONTEXT as ACTIVATION_CONTEXT

from ..config import VocoderConfig

END_KERNEL_RADIUS = 3


@dataclass(frozen=True)
class ReceptiveField:
    """The vocoder's reach, with the edges of the mel ignored.

    ``left_frames`` / ``right_frames``: frames outside its own that any sample of a frame can depend on.
    ``right_samples``: of a mel that goes on, the last samples that depend on frames which are not there yet.
    """

    config: VocoderConfig
    left_frames: int
    right_frames: int
    right_samples: int

    @classmethod
    def of(cls, config: VocoderConfig) -> ReceptiveField:
        """The bound that the layers of ``config`` imply."""
        hop = config.hop
        right_frames = last_frame(config, hop - 1)
        low, high = -(right_frames + 2) * hop, 0
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if last_frame(config, middle) < 0 else (low, middle)
        return cls(config, -first_frame(config, 0), right_frames, -1 - low)

    def first_frame(self, sample: int) -> int:
        """The earliest frame that ``sample`` depends on; negative where that would be before the start."""
        return first_frame(self.config, sample)


def block_radius(config: VocoderConfig) -> int:
    """Samples on either side that a stage's residual blocks reach, at the stage's rate."""
    return max(
        sum((kernel - 1) * (dilation + 1) // 2 + 2 * ACTIVATION_CONTEXT for dilation in dilations)
        for kernel, dilations in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True)
    )


def first_frame(config: VocoderConfig, sample: int) -> int:
    """The earliest frame in the receptive field of output ``sample``."""
    index = sample - END_KERNEL_RADIUS - ACTIVATION_CONTEXT
    for rate, kernel in _upsamplers_backwards(config):
        index = -(-(index - block_radius(config) + (kernel - rate) // 2 - kernel + 1) // rate)
    return index - END_KERNEL_RADIUS


def last_frame(config: VocoderConfig, sample: int) -> int:
    """The latest frame in the receptive field of output ``sample``."""
    index = sample + END_KERNEL_RADIUS + ACTIVATION_CONTEXT
    for rate, kernel in _upsamplers_backwards(config):
        index = (index + block_radius(config) + (kernel - rate) // 2) // rate
    return index + END_KERNEL_RADIUS


def _upsamplers_backwards(config: VocoderConfig) -> list[tuple[int, int]]:
    return list(zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True))[::-1]
