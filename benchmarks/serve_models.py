"""A running server as a model: ``generate`` as ``KimiAudio`` has it, over HTTP or over Realtime, for the evaluation."""

from __future__ import annotations

import base64
import io
import json
import urllib.request
import uuid
import wave
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
import soxr

from antiphon.config import SAMPLE_RATE_OUT

from .serve_clients import Target

TIMEOUT = 300.0
Answer = tuple[np.ndarray | None, str]


def wav_bytes(samples: np.ndarray, rate: int) -> bytes:
    """float32 [n] as a wav file of 32-bit floats: nothing is lost on the way."""
    file = io.BytesIO()
    with av.open(file, "w", format="wav") as container:
        stream = container.add_stream("pcm_f32le", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples, np.float32)[None], format="flt", layout="mono")
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def as_sent(samples: np.ndarray, rate: int) -> tuple[np.ndarray, int]:
    """What a realtime session hears of a recording: 16-bit samples at 24 kHz, as (float32 [n], rate)."""
    return pcm16(samples, rate).astype(np.float32) / 32768, SAMPLE_RATE_OUT


def pcm16(samples: np.ndarray, rate: int) -> np.ndarray:
    """int16 [n] at 24 kHz."""
    loud = samples if rate == SAMPLE_RATE_OUT else soxr.resample(samples, rate, SAMPLE_RATE_OUT)
    return (np.clip(loud, -1, 1) * 32767).round().astype("<i2")


class HttpModel:
    """Transcriptions and chat completions."""

    def __init__(self, target: Target):
        self.target = target

    def generate(self, messages: list[dict], output_type: str = "text", seed: int | None = None, **_: Any) -> Answer:
        """An instruction in front of a recording is a transcription, a recording alone is a question."""
        data = wav_bytes(*messages[-1]["content"])
        if len(messages) > 1:
            return None, self._transcribe(messages[0]["content"], data)
        part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"}}
        body = {"model": self.target.model, "seed": seed, "messages": [{"role": "user", "content": [part]}]}
        if output_type == "both":
            body |= {"modalities": ["text", "audio"], "audio": {"voice": "default", "format": "wav"}}
        answer = self._post("/v1/chat/completions", json.dumps(body).encode(), "application/json")
        message = answer["choices"][0]["message"]
        if output_type != "both":
            return None, message["content"]
        with wave.open(io.BytesIO(base64.b64decode(message["audio"]["data"]))) as file:
            speech = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
        return speech[None], message["audio"]["transcript"]

    def _transcribe(self, instruction: str, data: bytes) -> str:
        boundary, fields = uuid.uuid4().hex, {"model": self.target.model, "prompt": instruction}
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items()
        ]
        parts.append(f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n')
        body = "".join(parts).encode() + data + f"\r\n--{boundary}--\r\n".encode()
        return self._post("/v1/audio/transcriptions", body, f"multipart/form-data; boundary={boundary}")["text"]

    def _post(self, path: str, body: bytes, kind: str) -> dict[str, Any]:
        headers = {"Content-Type": kind} | ({"Authorization": f"Bearer {self.target.key}"} if self.target.key else {})
        with urllib.request.urlopen(
            urllib.request.Request(self.target.url + path, body, headers), timeout=TIMEOUT
        ) as answer:
            return json.load(answer)


class RealtimeModel:
    """A session for each call; the recording is committed by hand."""

    def __init__(self, target: Target):
        self.target = target

    def generate(self, messages: list[dict], output_type: str = "text", seed: int | None = None, **_: Any) -> Answer:
        """As :meth:`HttpModel.generate`."""
        import websockets.sync.client

        address = self.target.url.replace("http", "ws", 1) + f"/v1/realtime?model={self.target.model}"
        headers = {"Authorization": f"Bearer {self.target.key}"} if self.target.key else {}
        asked = messages[0]["content"] if len(messages) > 1 else None
        with websockets.sync.client.connect(address, additional_headers=headers, max_size=None) as socket:
            events = self._commit(socket, *messages[-1]["content"], asked)
            if asked is not None:
                return None, next(e["transcript"] for e in events if e["type"].endswith("transcription.completed"))
            modality = "audio" if output_type == "both" else "text"
            response = {"output_modalities": [modality], "seed": seed or 0}
            socket.send(json.dumps({"type": "response.create", "response": response}))
            return self._answer(events)

    def _commit(self, socket: Any, samples: np.ndarray, rate: int, asked: str | None) -> Iterator[dict]:
        """Say it; the events that follow."""
        heard = {"turn_detection": None, "transcription": asked and {"prompt": asked}}
        socket.send(json.dumps({"type": "session.update", "session": {"type": "realtime", "audio": {"input": heard}}}))
        data = base64.b64encode(pcm16(samples, rate).tobytes()).decode()
        socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": data}))
        socket.send('{"type": "input_audio_buffer.commit"}')
        return self._events(socket)

    def _events(self, socket: Any) -> Iterator[dict]:
        while True:
            event = json.loads(socket.recv(timeout=TIMEOUT))
            if event["type"] == "error" or event["type"].endswith(".failed"):
                raise RuntimeError(f"the server says: {event['error']['message']}")
            yield event

    def _answer(self, events: Iterator[dict]) -> Answer:
        said, pieces = "", []
        for event in events:
            if event["type"] in ("response.output_audio_transcript.delta", "response.output_text.delta"):
                said += event["delta"]
            elif event["type"] == "response.output_audio.delta":
                pieces.append(base64.b64decode(event["delta"]))
            elif event["type"] == "response.done":
                break
        speech = np.frombuffer(b"".join(pieces), "<i2").astype(np.float32)[None] / 32768
        return (speech if pieces else None), said


VIA = {"http": HttpModel, "realtime": RealtimeModel}
