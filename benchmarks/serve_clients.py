"""Clients of the load generator: one conversation each, measured from the listener's side."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soxr

from antiphon.audio import load_audio
from antiphon.server.playback import PlaybackClock

from .http_stream import HttpFailure, post

QUESTIONS = Path(__file__).resolve().parents[1] / "examples" / "questions"
RATE = 24_000


@dataclass
class Measured:
    """One request. Seconds; ``error``: status or kind of failure; ``left``: the client hung up on purpose."""

    scenario: str
    start: float
    first_text: float | None = None
    end: float | None = None
    error: str | None = None
    left: bool = False
    clock: PlaybackClock = field(default_factory=PlaybackClock)

    def text(self) -> None:
        """Text has come."""
        self.first_text = time.monotonic() - self.start if self.first_text is None else self.first_text

    def sound(self, num_bytes: int) -> None:
        """16-bit samples have come."""
        self.clock.add(time.monotonic(), num_bytes / 2 / RATE)


@dataclass(frozen=True)
class Target:
    """What to load. hangup: share of the clients that leave in the middle. turns: questions of one realtime session, as long
    as they begin before ``end`` (monotonic seconds).
    """

    url: str
    model: str
    key: str = ""
    hangup: float = 0.0
    turns: int = 1
    end: float = float("inf")

    def goes_on(self, done: list[Measured]) -> bool:
        """Whether a session that has had these turns has another."""
        ended = any(one.left or one.error for one in done) or (done and time.monotonic() > self.end)
        return len(done) < self.turns and not ended

    def leaves(self) -> float | None:
        """When this client leaves, in seconds; None: it stays."""
        return random.expovariate(2.0) if random.random() < self.hangup else None


def recordings() -> list[bytes]:
    """The spoken questions of the demo."""
    rows = [json.loads(line) for line in (QUESTIONS / "manifest.jsonl").read_text().splitlines()]
    return [(QUESTIONS / row["wav"]).read_bytes() for row in rows if row["task"] == "chat"]


async def text(target: Target, sounds: list[bytes]) -> list[Measured]:
    """A typed question, a streamed text."""
    body = {"model": target.model, "stream": True, "messages": [{"role": "user", "content": "what is two plus five"}]}
    return [await _chat(target, "text", body)]


async def chat(target: Target, sounds: list[bytes]) -> list[Measured]:
    """A spoken question, a streamed spoken answer."""
    data = base64.b64encode(random.choice(sounds)).decode()
    part = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    body = {
        "model": target.model,
        "stream": True,
        "modalities": ["text", "audio"],
        "audio": {"voice": "default", "format": "pcm16"},
        "messages": [{"role": "user", "content": [part]}],
    }
    return [await _chat(target, "chat", body)]


async def _chat(target: Target, scenario: str, body: dict) -> Measured:
    measured, leave = Measured(scenario, time.monotonic()), target.leaves()
    rest, url = b"", target.url + "/v1/chat/completions"
    try:
        async with contextlib.aclosing(post(url, json.dumps(body).encode(), "application/json", target.key)) as pieces:
            async for piece in pieces:
                *events, rest = (rest + piece).split(b"\n\n")
                for event in events:
                    _chat_event(measured, event)
                if leave is not None and time.monotonic() - measured.start > leave:
                    measured.left = True
                    break
    except HttpFailure as error:
        measured.error = str(error.status)
    measured.end = time.monotonic() - measured.start
    return measured


def _chat_event(measured: Measured, event: bytes) -> None:
    """Read one event; what cannot tell anything new is not even parsed."""
    if b"[DONE]" in event or (measured.first_text is not None and b'"audio"' not in event and b'"error"' not in event):
        return
    data = json.loads(event[6:])
    if "error" in data:
        measured.error = data["error"]["code"]
        return
    delta = data["choices"][0]["delta"] if data["choices"] else {}
    audio = delta.get("audio") or {}
    if delta.get("content") or audio.get("transcript"):
        measured.text()
    if audio.get("data"):
        measured.sound(len(audio["data"]) * 3 // 4)


async def asr(target: Target, sounds: list[bytes]) -> list[Measured]:
    """A recording, its transcript."""
    measured, boundary = Measured("asr", time.monotonic()), "antiphon-load"
    fields = {"model": target.model, "stream": "true"}
    head = "".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items()
    )
    head += f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    body = head.encode() + random.choice(sounds) + f"\r\n--{boundary}--\r\n".encode()
    try:
        kind = f"multipart/form-data; boundary={boundary}"
        async for piece in post(target.url + "/v1/audio/transcriptions", body, kind, target.key):
            if b"transcript.text.delta" in piece:
                measured.text()
            if b'"error"' in piece:
                measured.error = "event"
    except HttpFailure as error:
        measured.error = str(error.status)
    measured.end = time.monotonic() - measured.start
    return [measured]


async def realtime(target: Target, sounds: list[bytes]) -> list[Measured]:
    """A session of one question after the other, spoken in real time; times count from when the server heard their ends."""
    import websockets

    done: list[Measured] = []
    address = target.url.replace("http", "ws", 1) + f"/v1/realtime?model={target.model}"
    headers = {"Authorization": f"Bearer {target.key}"} if target.key else {}
    leave = target.leaves()
    try:
        async with websockets.connect(address, additional_headers=headers, max_size=None, open_timeout=60) as socket:
            while target.goes_on(done):
                done.append(Measured("realtime", time.monotonic()))
                await _turn(socket, done[-1], random.choice(sounds), leave)
    except (OSError, websockets.WebSocketException, TimeoutError, asyncio.TimeoutError) as error:
        done = done or [Measured("realtime", time.monotonic())]
        done[-1].error = type(error).__name__
    return done


async def _turn(socket, measured: Measured, wav: bytes, leave: float | None) -> None:
    speaking = asyncio.ensure_future(_speak(socket, wav))
    try:
        await asyncio.wait_for(_listen(socket, measured, leave), 300)
    finally:
        speaking.cancel()
        await asyncio.gather(speaking, return_exceptions=True)
        measured.end = time.monotonic() - measured.start


async def _speak(socket, wav: bytes) -> None:
    samples = soxr.resample(load_audio(wav), 16_000, RATE)
    data = (np.clip(np.concatenate((samples, np.zeros(2 * RATE))), -1, 1) * 32767).astype("<i2").tobytes()
    start, block = time.monotonic(), RATE // 10 * 2
    for number, at in enumerate(range(0, len(data), block)):
        await asyncio.sleep(max(0.0, start + number * 0.1 - time.monotonic()))
        audio = base64.b64encode(data[at : at + block]).decode()
        await socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))


async def _listen(socket, measured: Measured, leave: float | None) -> None:
    begun = time.monotonic()
    async for message in socket:
        event = json.loads(message)
        kind = event["type"]
        if kind == "input_audio_buffer.speech_stopped":
            measured.start = time.monotonic()
        elif kind == "response.output_audio_transcript.delta":
            measured.text()
        elif kind == "response.output_audio.delta":
            measured.sound(len(event["delta"]) * 3 // 4)
        elif kind == "error":
            measured.error = event["error"]["code"]
            return
        elif kind == "response.done":
            return
        if leave is not None and time.monotonic() - begun > leave + 2:
            measured.left = True
            return


CLIENTS = {"text": text, "chat": chat, "asr": asr, "realtime": realtime}
SCENARIOS = {
    "text": (text,),
    "chat": (chat,),
    "asr": (asr,),
    "realtime": (realtime,),
    "mixed": (chat, chat, asr, realtime),
}
