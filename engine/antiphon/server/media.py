"""Recordings in requests: base64 or an address to samples, within limits. All of it blocks: call it in an executor."""

from __future__ import annotations

import base64
import binascii

import numpy as np

from ..audio import load_audio
from ..config import SAMPLE_RATE_IN, SAMPLE_RATE_OUT
from ..errors import AudioError
from .errors import ApiError, bad_request

LENGTH_UNKNOWN = 0x7FFF_0000


class AudioBudget:
    """How much sound a request may still bring."""

    def __init__(self, seconds: float):
        self.limit = self.left = seconds

    def decode(self, data: bytes, kind: str, param: str) -> np.ndarray:
        """Samples, float32 [n] at 16 kHz, of an encoded file (``pcm16``: of raw 24 kHz samples)."""
        if not data:
            raise bad_request("the recording is empty (0 bytes)", param)
        missing = wav_shortfall(data)
        if missing:
            raise bad_request(f"the wav file is cut off: {missing} bytes of its samples are missing", param, "invalid_audio")
        try:
            if kind == "pcm16":
                samples = load_audio((from_pcm16(data), SAMPLE_RATE_OUT), self.left)
            else:
                samples = load_audio(data, self.left)
        except AudioError as error:
            if "longer than" in str(error):
                message = f"the recordings of a request may last {self.limit:g} s together"
                raise ApiError(400, message, param=param, code="audio_too_long") from error
            raise bad_request(str(error), param, "invalid_audio") from error
        self.left = max(0.01, self.left - len(samples) / SAMPLE_RATE_IN)
        return samples


def from_base64(text: str, param: str) -> bytes:
    """The bytes; a ``data:`` address in front is allowed."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad_request(f"not valid base64: {error}", param, "invalid_base64") from error


def wav_shortfall(data: bytes) -> int:
    """How many bytes of samples a wav file promises but lacks; 0 for other files, and where the length is left open.

    Programs that write to a pipe put 0 or a number near 2^31 or 2^32 for a length that they do not know yet.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return 0
    at = 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"data":
            return max(0, size - (len(data) - at - 8)) if size < LENGTH_UNKNOWN else 0
        at += 8 + size + size % 2
    return 0


def from_pcm16(data: bytes) -> np.ndarray:
    """float32 [n] of little-endian 16-bit samples; a lone last byte is dropped."""
    return np.frombuffer(data[: len(data) & ~1], "<i2").astype(np.float32) / 32768.0
