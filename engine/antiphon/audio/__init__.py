"""Sound in: decoding any format, resampling to 16 kHz, log-mel features."""

from .load import AudioInput, load_audio
from .mel import log_mel, mel_filters
from .segments import SEGMENT_SAMPLES, num_tokens, split_segments

__all__ = ["SEGMENT_SAMPLES", "AudioInput", "load_audio", "log_mel", "mel_filters", "num_tokens", "split_segments"]
