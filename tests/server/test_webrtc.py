"""A WebRTC peer speaks a recorded question over Opus and gets the spoken answer and the events."""

from __future__ import annotations

import asyncio
import fractions
import json
import time

import numpy as np
import pytest
import soxr

from antiphon.audio import load_audio

aiortc = pytest.importorskip("aiortc", reason="the extra 'webrtc' is not installed")
av = pytest.importorskip("av")
openai = pytest.importorskip("openai")


class Microphone(aiortc.MediaStreamTrack):
    """Silence, then a recording, then silence, in real time."""

    kind = "audio"

    def __init__(self, samples):
        super().__init__()
        self.samples = (np.clip(samples, -1, 1) * 32767).astype("<i2")
        self.sent, self.start = 0, None
        self.speak = asyncio.Event()
        self.at = 0

    async def recv(self):
        self.start = self.start or time.monotonic()
        await asyncio.sleep(self.start + self.sent / 48000 - time.monotonic())
        piece = np.zeros(960, np.int16)
        if self.speak.is_set():
            part = self.samples[self.at : self.at + 960]
            piece[: len(part)] = part
            self.at += 960
        frame = av.AudioFrame.from_ndarray(piece[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, self.sent, fractions.Fraction(1, 48000)
        self.sent += 960
        return frame


async def call(server, samples, session=None):
    """(connection, microphone, events, heard) of a call that is connected."""
    connection = aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[]))
    microphone, events, heard = Microphone(samples), asyncio.Queue(), []
    channel = connection.createDataChannel("oai-events")
    connection.addTrack(microphone)

    @connection.on("track")
    def on_track(track):
        async def listen():
            while True:
                frame = await track.recv()
                heard.append(frame.to_ndarray().astype(np.float32).reshape(-1, 2).mean(axis=1) / 32768)

        connection.listening = asyncio.ensure_future(listen())

    channel.on("message", lambda text: events.put_nowait(json.loads(text)))
    await connection.setLocalDescription(await connection.createOffer())
    client = openai.AsyncOpenAI(base_url=server.api, api_key="k")
    settings = {"session": session} if session else {}
    answer = await client.realtime.calls.create(sdp=connection.localDescription.sdp, **settings)
    location = answer.response.headers["location"]
    text = answer.text if isinstance(answer.text, str) else answer.read().decode()
    await connection.setRemoteDescription(aiortc.RTCSessionDescription(text, "answer"))
    return connection, channel, microphone, events, heard, location


async def until(events, kind, timeout=60):
    seen = []
    while not seen or seen[-1]["type"] != kind:
        seen.append(await asyncio.wait_for(events.get(), timeout))
    return seen


def test_a_spoken_question_gets_a_spoken_answer(demo_server, questions):
    question = questions["p025"]
    samples = soxr.resample(load_audio(question["bytes"]), 16000, 48000)

    async def main():
        settings = {"type": "realtime", "model": "demo", "audio": {"output": {"voice": "alloy"}}}
        connection, channel, microphone, events, heard, location = await call(demo_server, samples, settings)
        created = (await until(events, "session.created"))[-1]
        assert created["session"]["audio"]["output"]["voice"] == "alloy"
        await asyncio.sleep(0.3)
        microphone.speak.set()
        seen = await until(events, "response.done")
        kinds = [event["type"] for event in seen]
        assert "input_audio_buffer.speech_started" in kinds and "output_audio_buffer.started" in kinds
        assert "response.output_audio.delta" not in kinds, "sound goes over the track"
        words = [event["transcript"] for event in seen if event["type"] == "response.output_audio_transcript.done"]
        assert words == [question["answer"]]
        if "output_audio_buffer.stopped" not in kinds:
            await until(events, "output_audio_buffer.stopped")
        loud = np.abs(np.concatenate(heard)) > 0.02
        assert loud.sum() > 12_000
        channel.send("{")
        assert (await until(events, "error"))[-1]["error"]["code"] == "invalid_json"
        connection.listening.cancel()
        status = await asyncio.to_thread(demo_server.http, location + "/hangup", b"", None, "POST")
        assert status[0] == 200
        await connection.close()

    asyncio.run(asyncio.wait_for(main(), 100))
    demo_server.without_sessions(10)


def test_interrupting_clears_the_voice_and_the_memory(questions):
    from live import live

    from antiphon.null_engine import NullSpec

    samples = soxr.resample(load_audio(questions["p025"]["bytes"]), 16000, 48000)

    async def main(server):
        connection, channel, microphone, events, _, _ = await call(server, samples)
        await until(events, "session.created")
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a story"}]}
        channel.send(json.dumps({"type": "conversation.item.create", "item": item}))
        channel.send(json.dumps({"type": "response.create"}))
        await until(events, "output_audio_buffer.started")
        microphone.speak.set()
        seen = await until(events, "conversation.item.truncated")
        kinds = [event["type"] for event in seen]
        assert "output_audio_buffer.cleared" in kinds
        done = next(event for event in seen if event["type"] == "response.done")
        assert done["response"]["status"] == "cancelled"
        assert 0 <= seen[-1]["audio_end_ms"] < 20_000
        connection.listening.cancel()
        await connection.close()

    with live(NullSpec(steps=5000, step_seconds=0.01), served_name="null") as server:
        asyncio.run(asyncio.wait_for(main(server), 100))


@pytest.mark.parametrize("body", [b"", b"hello", b"v=0\r\n", b"v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n", b"\xff" * 100])
def test_what_is_no_offer_is_refused(null_server, body):
    null_server.without_sessions()  # those of other tests have ended
    status, _, answer = null_server.http("/v1/realtime/calls", body, {"Content-Type": "application/sdp"})
    assert status == 400 and answer["error"]["param"] == "sdp"
    assert null_server.service.num_sessions == 0
