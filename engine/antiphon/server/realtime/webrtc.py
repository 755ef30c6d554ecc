"""WebRTC: Opus both ways beside a data channel that carries the events of a session. Needs ``aiortc``."""

from __future__ import annotations

import asyncio
import fractions
import json
import logging
import time
from collections import deque
from typing import Any

import av
import numpy as np
from aiortc import MediaStreamTrack, RTCConfiguration, RTCDataChannel, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError

from ...config import SAMPLE_RATE_OUT
from ..audio_out import pcm16
from ..errors import ApiError, bad_request
from ..service import Service
from .response import Response
from .schema import SessionChange
from .session import Session
from .truncating import truncate_item

logger = logging.getLogger(__name__)

FRAME = SAMPLE_RATE_OUT // 50
"""20 ms, one Opus packet."""
BLOCK_BYTES = SAMPLE_RATE_OUT // 10 * 2
"""The microphone goes to the session in blocks of 100 ms."""


class VoiceTrack(MediaStreamTrack):
    """What the model says, played in real time; silence where it says nothing."""

    kind = "audio"

    def __init__(self, session: Session):
        super().__init__()
        self.session = session
        self.response: Response | None = None
        self.heard = 0
        self._queue: deque[np.ndarray] = deque()
        self._sent = 0
        self._start: float | None = None
        self._speaking = False

    async def play(self, response: Response, pcm: np.ndarray) -> None:
        """Queue sound of a response."""
        if response is not self.response:
            self.response, self.heard = response, 0
        if not self._speaking:
            self._speaking = True
            await self.session.send("output_audio_buffer.started", response_id=response.id)
        self._queue.append(pcm)

    async def clear(self) -> None:
        """Fall silent, and let the history end where the listener was."""
        response, self._queue = self.response, deque()
        if not self._speaking or response is None:
            return
        self._speaking = False
        heard_ms = self.heard * 1000 // SAMPLE_RATE_OUT
        await self.session.send("output_audio_buffer.cleared", response_id=response.id)
        self.session.spawn(self._forget(response, heard_ms))

    async def _forget(self, response: Response, heard_ms: int) -> None:
        await response.done.wait()
        if response.item is not None and response.kept and heard_ms < response.item.audio_ms:
            await truncate_item(self.session, response.item, 0, heard_ms)

    async def recv(self) -> av.AudioFrame:
        """The next 20 ms, when they are due."""
        if self.readyState != "live":
            raise MediaStreamError
        now = time.monotonic()
        self._start = now if self._start is None else self._start
        await asyncio.sleep(self._start + self._sent / SAMPLE_RATE_OUT - now)
        samples = self._next()
        frame = av.AudioFrame.from_ndarray(np.frombuffer(pcm16(samples), "<i2")[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts = SAMPLE_RATE_OUT, self._sent
        frame.time_base = fractions.Fraction(1, SAMPLE_RATE_OUT)
        self._sent += FRAME
        if self._speaking and not self._queue and self.response.done.is_set():
            self._speaking = False
            self.session.spawn(self.session.send("output_audio_buffer.stopped", response_id=self.response.id))
        return frame

    def _next(self) -> np.ndarray:
        """20 ms of what is queued, and silence behind it."""
        taken = np.zeros(FRAME, np.float32)
        filled = 0
        while self._queue and filled < FRAME:
            head = self._queue[0]
            part = head[: FRAME - filled]
            taken[filled : filled + len(part)] = part
            filled += len(part)
            if len(part) == len(head):
                self._queue.popleft()
            else:
                self._queue[0] = head[len(part) :]
        self.heard += filled
        return taken


class Call:
    """One peer connection and its session."""

    def __init__(self, service: Service):
        self.service = service
        self.connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.session = Session(service, self._deliver)
        self.voice = self.session.speaker = VoiceTrack(self.session)
        self.id = f"rtc_{self.session.id[5:]}"
        self.ended = asyncio.Event()
        self._channel: RTCDataChannel | None = None
        self._unsent: list[str] = []
        self._tasks: list[asyncio.Task] = []
        self._events: asyncio.Queue[str | bytes] = asyncio.Queue(1000)

    async def answer(self, offer: str, settings: dict[str, Any] | None) -> str:
        """The SDP answer to an SDP offer; the call then lives until :meth:`close`.

        Raises:
            ApiError: the offer cannot be understood, or has no audio.
        """
        connection = self.connection
        connection.on("track", self._on_track)
        connection.on("datachannel", self._on_channel)
        connection.on("connectionstatechange", self._on_state)
        try:
            await connection.setRemoteDescription(RTCSessionDescription(offer, "offer"))
            if not any(one.kind == "audio" for one in connection.getTransceivers()):
                raise bad_request("the offer has no audio", "sdp", "invalid_offer")
            connection.addTrack(self.voice)
            await connection.setLocalDescription(await connection.createAnswer())
        except ApiError:
            raise
        except Exception as error:
            logger.info("an offer could not be answered: %r", error)
            raise bad_request("the offer is no usable SDP", "sdp", "invalid_offer") from error
        if settings:
            self.session.settings.change(SessionChange.model_validate(settings))
        await self.session.start()
        self._tasks.append(asyncio.create_task(self._receive()))
        self._tasks.append(asyncio.create_task(self._watch()))
        return connection.localDescription.sdp

    async def close(self) -> None:
        """End the call; more than once is fine."""
        if self.ended.is_set():
            return
        self.ended.set()
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        await self.session.close()
        await self.connection.close()

    # -- events --------------------------------------------------------------------------------------------------

    async def _deliver(self, event: dict[str, Any]) -> None:
        text = json.dumps(event, ensure_ascii=False)
        if self._channel is not None and self._channel.readyState == "open":
            self._channel.send(text)
        elif self._channel is None:
            self._unsent.append(text)

    def _on_channel(self, channel: RTCDataChannel) -> None:
        self._channel = channel
        channel.on("message", self._on_message)
        for text in self._unsent:
            channel.send(text)
        self._unsent.clear()

    def _on_message(self, message: str | bytes) -> None:
        try:
            self._events.put_nowait(message)
        except asyncio.QueueFull:
            logger.warning("call %s sends faster than it can be served; it is ended", self.id)
            self._tasks.append(asyncio.ensure_future(self.close()))

    async def _receive(self) -> None:
        while True:
            await self.session.receive(await self._events.get())

    # -- media ---------------------------------------------------------------------------------------------------

    def _on_track(self, track: MediaStreamTrack) -> None:
        if track.kind == "audio":
            self._tasks.append(asyncio.create_task(self._listen(track)))

    async def _listen(self, track: MediaStreamTrack) -> None:
        """The microphone, as 24 kHz mono."""
        resampler = av.AudioResampler("s16", "mono", SAMPLE_RATE_OUT)
        block = b""
        while True:
            try:
                frame = await track.recv()
            except MediaStreamError:
                return
            for piece in resampler.resample(frame):
                block += piece.to_ndarray().tobytes()
            if len(block) >= BLOCK_BYTES:
                self.session.last_event = time.monotonic()
                try:
                    await self.session.hear(block)
                except ApiError as error:
                    await self.session.send_error(error)
                block = b""

    async def _on_state(self) -> None:
        if self.connection.connectionState in ("failed", "closed"):
            await self.close()

    async def _watch(self) -> None:
        config, end = self.service.config, time.monotonic() + self.service.config.max_session_seconds
        while time.monotonic() < end and time.monotonic() - self.session.last_event < config.idle_timeout:
            await asyncio.sleep(min(1.0, config.idle_timeout / 4))
        await self.close()
