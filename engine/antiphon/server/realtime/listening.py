"""What the user says: buffered, cut into turns, committed as items, and transcribed on the side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...audio import load_audio
from ...config import SAMPLE_RATE_IN
from ...deltas import FinishDelta, TextDelta
from ...errors import AntiphonError
from ...request import GenerationRequest
from ..errors import ApiError, as_api_error, bad_request, envelope
from ..media import from_base64
from ..transcription import INSTRUCTION
from . import item_events
from .audio import InputBuffer
from .items import Item
from .schema import Append
from .vad import Turn, TurnDetector

if TYPE_CHECKING:
    from .session import Session

SHORTEST_COMMIT_MS = 100
LARGE = 1 << 17
"""Bytes of sound in one event from which on it is resampled off the event loop."""


class Listener:
    """A session's ear. Sound comes in through :meth:`hear`, whatever carries it."""

    def __init__(self, session: Session):
        self.session = session
        self.buffer = InputBuffer(session.settings.input_format, session.service.config.max_audio_seconds)
        self.detector: TurnDetector | None = None
        self._turn_item = ""

    async def renew_detector(self) -> None:
        """A detector as the session's settings want it now, which knows of nothing before."""
        options = self.session.settings.vad
        self.detector = None
        if options is not None:
            self.detector = await self.session.service.in_thread(TurnDetector, options, self.buffer.received_ms)

    async def append(self, event: Append) -> None:
        """``input_audio_buffer.append``."""
        await self.hear(from_base64(event.audio, "audio"))

    async def hear(self, data: bytes) -> None:
        """Sound in the session's input format."""
        in_thread = self.session.service.in_thread
        heard = await in_thread(self.buffer.append, data) if len(data) > LARGE else self.buffer.append(data)
        if heard is None:
            self.buffer.clear()
            await self.renew_detector()
            message = f"more than {self.buffer.max_seconds:g} s were not committed; all of it was dropped"
            raise ApiError(400, message, param="audio", code="input_audio_buffer_overflow")
        if self.detector is None or not len(heard):
            return
        for turn in await in_thread(self.detector.push, heard):
            await (self._turn_began(turn) if turn.end_ms is None else self._turn_ended(turn))
        if self.detector is not None and not self.detector.speaking:
            self.buffer.drop_before(self.detector.needed_from_ms)

    async def _turn_began(self, turn: Turn) -> None:
        item = Item("user", [{"type": "input_audio", "transcript": None}])
        self._turn_item = item.id
        where = {"audio_start_ms": int(turn.start_ms), "item_id": item.id}
        await self.session.send("input_audio_buffer.speech_started", **where)
        if self.session.settings.turn_detection.interrupt_response:
            await self.session.interrupt("turn_detected")

    async def _turn_ended(self, turn: Turn) -> None:
        where = {"audio_end_ms": int(turn.end_ms), "item_id": self._turn_item}
        await self.session.send("input_audio_buffer.speech_stopped", **where)
        await self._commit(self.buffer.take(turn.start_ms, turn.end_ms), self._turn_item)
        detection = self.session.settings.turn_detection
        if detection is not None and detection.create_response:
            self.session.answer_turn()

    async def commit(self) -> None:
        """``input_audio_buffer.commit``."""
        if self.buffer.duration_ms < SHORTEST_COMMIT_MS:
            text = f"the buffer holds {self.buffer.duration_ms:.0f} ms, at least {SHORTEST_COMMIT_MS} are needed"
            raise bad_request(text, code="input_audio_buffer_commit_empty")
        if self.detector is not None:
            self.detector.end_turn()
        await self._commit(self.buffer.take())

    async def clear(self) -> None:
        """``input_audio_buffer.clear``."""
        self.buffer.clear()
        if self.detector is not None:
            self.detector.end_turn()
        await self.session.send("input_audio_buffer.cleared")

    async def _commit(self, samples: np.ndarray, item_id: str = "") -> None:
        """Sound becomes an item of the user."""
        session = self.session
        recording = await session.service.in_thread(load_audio, (samples, self.buffer.rate))
        item = Item("user", [{"type": "input_audio", "transcript": None}], sound={0: recording})
        item.id = item_id or item.id
        await session.send("input_audio_buffer.committed", item_id=item.id, previous_item_id=session.items.last_id)
        await item_events.add(session, item)
        if session.settings.transcription is not None:
            session.spawn(self._transcribe(item, recording))

    async def _transcribe(self, item: Item, recording: np.ndarray) -> None:
        """In a task of its own; errors become an event."""
        session, kind = self.session, "conversation.item.input_audio_transcription"
        where = {"item_id": item.id, "content_index": 0}
        messages = [
            {"role": "user", "message_type": "text", "content": session.settings.transcription.prompt or INSTRUCTION},
            {"role": "user", "message_type": "audio", "content": (recording, SAMPLE_RATE_IN)},
        ]
        try:
            text = ""
            async for delta in session.service.answer(session.service.generate(GenerationRequest(messages))):
                if isinstance(delta, TextDelta):
                    text += delta.text
                    await session.send(f"{kind}.delta", **where, delta=delta.text)
                elif isinstance(delta, FinishDelta):
                    usage = {"type": "duration", "seconds": len(recording) / SAMPLE_RATE_IN}
                    item.content[0]["transcript"] = text
                    await session.send(f"{kind}.completed", **where, transcript=text, usage=usage)
        except AntiphonError as error:
            await session.send(f"{kind}.failed", **where, error=envelope(as_api_error(error))["error"])
