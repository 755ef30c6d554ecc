"""Sound to bytes: 16-bit PCM, and files of the formats that OpenAI names."""

from __future__ import annotations

import base64
import io

import av
import numpy as np

from ..config import SAMPLE_RATE_OUT

CONTAINERS = {
    "wav": ("wav", "pcm_s16le"),
    "mp3": ("mp3", "libmp3lame"),
    "flac": ("flac", "flac"),
    "opus": ("ogg", "libopus"),
    "aac": ("adts", "aac"),
}
FORMATS = (*CONTAINERS, "pcm16")


def pcm16(samples: np.ndarray) -> bytes:
    """Little-endian 16-bit samples, clipped, of float32 [n] in -1..1."""
    return (np.clip(samples, -1.0, 1.0) * 32767.0).round().astype("<i2").tobytes()


def base64_pcm16(samples: np.ndarray) -> str:
    """:func:`pcm16` in base64."""
    return base64.b64encode(pcm16(samples)).decode("ascii")


def encode(samples: np.ndarray, kind: str) -> bytes:
    """float32 [n] at 24 kHz as a file of ``kind``, one of :data:`FORMATS`. Blocks: call it in an executor."""
    data = pcm16(samples)
    if kind == "pcm16":
        return data
    container_name, codec = CONTAINERS[kind]
    file = io.BytesIO()
    with av.open(file, "w", format=container_name) as container:
        stream = container.add_stream(codec, rate=SAMPLE_RATE_OUT, layout="mono")
        if len(samples):
            frame = av.AudioFrame.from_ndarray(np.frombuffer(data, "<i2")[None], format="s16", layout="mono")
            frame.sample_rate = SAMPLE_RATE_OUT
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()
