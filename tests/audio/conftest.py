"""Recordings in many formats, made on the spot."""

from __future__ import annotations

import io
import struct

import av
import numpy as np
import pytest


def _wav(pcm: bytes, rate: int = 16000, channels: int = 1, bits: int = 16, tag: int = 1, data_size=None) -> bytes:
    """A plain RIFF file around ``pcm``; ``data_size`` overrides the size that the headers state."""
    size = len(pcm) if data_size is None else data_size
    block = channels * bits // 8
    header = struct.pack("<HHIIHH", tag, channels, rate, rate * block, block, bits)
    riff = (size + 36) & 0xFFFFFFFF
    return b"RIFF" + struct.pack("<I", riff) + b"WAVEfmt " + struct.pack("<I", 16) + header + b"data" + struct.pack(
        "<I", size
    ) + pcm  # fmt: skip


def _encode(samples: np.ndarray, rate: int, container: str, codec: str) -> bytes:
    """``samples`` (int16 [channels, N]) through a PyAV encoder."""
    file = io.BytesIO()
    layout = "mono" if samples.shape[0] == 1 else "stereo"
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T.reshape(1, -1)), "s16", layout)
        frame.sample_rate = rate
        resampler = av.AudioResampler(stream.format, layout, rate, frame_size=stream.codec_context.frame_size or None)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    return file.getvalue()


@pytest.fixture(scope="session")
def wav():
    """``wav(pcm bytes, rate, channels, bits, tag, data_size)`` -> bytes of a RIFF file."""
    return _wav


@pytest.fixture(scope="session")
def encode():
    """``encode(int16 [channels, N], rate, container, codec)`` -> bytes."""
    return _encode


@pytest.fixture(scope="session")
def tone() -> np.ndarray:
    """One second of a 440 Hz tone with a swell, int16 [16000]."""
    t = np.arange(16000) / 16000
    return (12000 * np.sin(2 * np.pi * 440 * t) * np.sin(np.pi * t)).astype(np.int16)
