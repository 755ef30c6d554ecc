"""A conversation as bytes: a versioned header, compressed token streams, features in their own dtype, a checksum.

Layout, little endian: magic ``ANTC``, uint16 version, uint16 recordings, uint32 positions, uint32 compressed size, the
zlib-compressed int32 arrays [3, P] (audio ids, text ids, feature rows); per recording: 16-byte hash, uint32 samples,
uint32 tokens, uint8 dtype, uint32 width, int32 codes [n], features [n, width]; CRC32 of all before. No pickle.
"""

from __future__ import annotations

import struct
import zlib

import torch

from .conversation import Conversation
from .errors import AntiphonError
from .execution.audio_encoder import EncodedAudio

MAGIC, VERSION = b"ANTC", 1
HEADER = struct.Struct("<4sHHII")
RECORDING = struct.Struct("<16sIIBI")
CHECKSUM = struct.Struct("<I")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class ConversationFormatError(AntiphonError, ValueError):
    """Stored bytes are not a conversation of a version that we know, or are damaged."""


def encode_conversation(conversation: Conversation) -> bytes:
    """Bytes that :func:`decode_conversation` turns into an equal conversation."""
    streams = torch.stack((conversation.audio_ids, conversation.text_ids, conversation.feature_rows))
    packed = zlib.compress(_raw(streams.to(torch.int32)), 1)
    header = HEADER.pack(MAGIC, VERSION, len(conversation.audios), len(conversation), len(packed))
    body = b"".join((header, packed, *(_encode_recording(audio) for audio in conversation.audios)))
    return body + CHECKSUM.pack(zlib.crc32(body))


def decode_conversation(data: bytes, device: torch.device | str = "cpu") -> Conversation:
    """The conversation in ``data``; features go to ``device``.

    Raises:
        ConversationFormatError: another format or version, or damaged.
    """
    _check(data)
    _, _, num_recordings, length, size = HEADER.unpack_from(data)
    try:
        streams = _tensor(zlib.decompress(data[HEADER.size : HEADER.size + size]), torch.int32).view(3, length)
        offset, audios = HEADER.size + size, []
        for _ in range(num_recordings):
            audio, offset = _decode_recording(data, offset, device)
            audios.append(audio)
    except (RuntimeError, ValueError, IndexError, struct.error, zlib.error) as error:
        raise ConversationFormatError(f"a stored conversation is inconsistent: {error}") from error
    audio_ids, text_ids, feature_rows = streams.to(torch.int64)
    return Conversation(audio_ids, text_ids, feature_rows, tuple(audios))


def _check(data: bytes) -> None:
    if len(data) < HEADER.size + CHECKSUM.size or data[:4] != MAGIC:
        raise ConversationFormatError(f"{len(data)} bytes do not begin as a stored conversation does")
    version = HEADER.unpack_from(data)[1]
    if version != VERSION:
        raise ConversationFormatError(f"a stored conversation has version {version}; this code reads {VERSION}")
    if zlib.crc32(data[: -CHECKSUM.size]) != CHECKSUM.unpack_from(data, len(data) - CHECKSUM.size)[0]:
        raise ConversationFormatError("a stored conversation is damaged: its checksum does not match")


def _encode_recording(audio: EncodedAudio) -> bytes:
    features = audio.features if audio.features is not None else torch.zeros(audio.num_tokens, 0)
    head = RECORDING.pack(
        audio.content_hash, audio.num_samples, audio.num_tokens, DTYPES.index(features.dtype), features.shape[1]
    )
    return head + _raw(audio.speech_codes.to(torch.int32)) + _raw(features)


def _decode_recording(data: bytes, offset: int, device: torch.device | str) -> tuple[EncodedAudio, int]:
    content_hash, num_samples, num_tokens, kind, width = RECORDING.unpack_from(data, offset)
    offset += RECORDING.size
    dtype, middle = DTYPES[kind], offset + 4 * num_tokens
    end = middle + num_tokens * width * dtype.itemsize
    codes = _tensor(data[offset:middle], torch.int32).to(torch.int64)
    features = _tensor(data[middle:end], dtype).view(num_tokens, width).to(device) if width else None
    return EncodedAudio(codes, features, content_hash, num_samples), end


def _raw(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _tensor(data: bytes, dtype: torch.dtype) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.zeros(0, dtype=dtype)
