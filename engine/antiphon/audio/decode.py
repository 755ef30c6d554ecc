"""Encoded files (wav, flac, mp3, ogg, m4a, webm, ...) through PyAV."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np

from ..errors import AudioError
from .arrays import to_float, to_mono

OPEN_OPTIONS = {"protocol_whitelist": "antiphon-none"}
"""A playlist or a concat script must not make the decoder read other files or the network."""


def decode(source: Any, name: str, max_seconds: float | None = None) -> tuple[np.ndarray, int]:
    """First audio stream of a path, bytes, or binary file object.

    Args:
        name: what to call the recording in messages.
        max_seconds: stop with an error once more than this has been decoded.

    Returns:
        (mono float32 [N], rate in Hz). N may be 0.

    Raises:
        AudioError: missing, empty, text, without an audio stream, or undecodable; says where decoding stopped.
    """
    with _open_binary(source, name) as file:
        head = file.read(4096)
        if not head:
            raise AudioError(f"{name} is empty (0 bytes); expected a recording")
        file.seek(0)
        try:
            with av.open(file, mode="r", options=OPEN_OPTIONS, metadata_errors="replace") as container:
                return _read_stream(container, name, max_seconds)
        except av.error.FFmpegError as error:
            kind = "text" if _looks_like_text(head) else "damaged or in a format that FFmpeg does not know"
            raise AudioError(f"{name} is not a readable recording: it looks {kind} ({_reason(error)})") from error


def _read_stream(container: av.container.InputContainer, name: str, max_seconds: float | None):
    if not container.streams.audio:
        found = ", ".join(sorted({s.type for s in container.streams})) or "no streams at all"
        raise AudioError(f"{name} has no audio stream (found: {found})")
    stream = container.streams.audio[0]
    blocks: list[np.ndarray] = []
    rate, decoded = stream.rate, 0
    for frame in _frames(container, stream, name):
        block = _mono(frame)
        if frame.sample_rate != rate:
            if decoded:
                raise AudioError(
                    f"{name}: the sampling rate changes to {frame.sample_rate} Hz after {decoded / rate:.2f} s"
                )
            rate = frame.sample_rate
        blocks.append(block)
        decoded += len(block)
        if max_seconds is not None and decoded > max_seconds * rate:
            raise AudioError(f"{name} is longer than {max_seconds:g} s")
    if stream.codec.name == "flac" and stream.duration and decoded < stream.duration:
        raise AudioError(f"{name} is damaged: {decoded} of {stream.duration} samples could be decoded")
    return (np.concatenate(blocks) if blocks else np.zeros(0, dtype=np.float32)), rate


def _frames(container: av.container.InputContainer, stream: Any, name: str) -> Iterator[av.AudioFrame]:
    decoded = 0
    try:
        for frame in container.decode(stream):
            decoded += frame.samples
            yield frame
    except av.error.FFmpegError as error:
        at = f"after {decoded / stream.rate:.2f} s" if stream.rate else "at its beginning"
        raise AudioError(f"{name} is damaged: decoding stopped {at} ({_reason(error)})") from error


def _mono(frame: av.AudioFrame) -> np.ndarray:
    samples = frame.to_ndarray()
    channels = frame.layout.nb_channels
    if not frame.format.is_planar:
        samples = samples.reshape(-1, channels).T
    return to_mono(to_float(samples))


def _open_binary(source: Any, name: str) -> BinaryIO:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source)
    if isinstance(source, (str, os.PathLike)):
        return _open_path(Path(source), name)
    content = source.read()
    if not isinstance(content, bytes):
        raise AudioError(f"{name}: reading gave {type(content).__name__}; open the file in binary mode")
    return io.BytesIO(content)


def _open_path(path: Path, name: str) -> BinaryIO:
    try:
        if path.is_file():
            return path.open("rb")
        kind = "is a folder" if path.is_dir() else "does not exist"
    except (OSError, ValueError) as error:
        raise AudioError(f"audio file {name[:80]!r} cannot be opened: {error}{_text_hint(name)}") from error
    raise AudioError(f"audio file {name!r} {kind}; expected the path of a recording{_text_hint(name)}")


def _text_hint(name: str) -> str:
    if Path(name).suffix and len(name) < 256 and "\n" not in name:
        return ""
    return ". This looks like text; a text message has message_type 'text'"


def _looks_like_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:
            return False
        text = head[: error.start].decode("utf-8")
    return all(c.isprintable() or c.isspace() for c in text)


def _reason(error: av.error.FFmpegError) -> str:
    return error.strerror or type(error).__name__
