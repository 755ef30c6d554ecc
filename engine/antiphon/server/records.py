"""Spoken answers in the store: what ``audio.id`` in a later request brings back."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass

from ..conversation_codec import ConversationFormatError

LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class AudioRecord:
    """transcript: of the answer; before: digest of the messages it answered; conversation: encoded, answer included."""

    transcript: str
    before: str
    conversation: bytes

    def pack(self) -> bytes:
        """Bytes for the store."""
        head = json.dumps({"version": 1, "transcript": self.transcript, "before": self.before}).encode()
        return LENGTH.pack(len(head)) + head + self.conversation

    @classmethod
    def unpack(cls, data: bytes) -> AudioRecord:
        """ConversationFormatError if ``data`` is no record."""
        try:
            (size,) = LENGTH.unpack_from(data)
            head = json.loads(data[LENGTH.size : LENGTH.size + size])
            return cls(head["transcript"], head["before"], data[LENGTH.size + size :])
        except (ValueError, KeyError, TypeError, struct.error) as error:
            raise ConversationFormatError(f"a stored answer cannot be read: {error}") from error


def digest(messages: list) -> str:
    """A name for a list of request messages, equal for equal ones."""
    plain = [message.model_dump(mode="json", exclude_none=True) for message in messages]
    return hashlib.blake2b(json.dumps(plain, sort_keys=True).encode(), digest_size=16).hexdigest()
