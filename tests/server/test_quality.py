"""What is heard through the server is what is heard offline; conversations outlive the engine's process."""

from __future__ import annotations

import base64
import json
import os
import signal
import time

import numpy as np
import pytest
import soxr
from live import live

from antiphon.audio import load_audio
from antiphon.engine_config import EngineConfig
from antiphon.engine_spec import ModelSpec

INSTRUCTION = {"role": "user", "message_type": "text", "content": "Please transcribe the audio."}


@pytest.fixture(scope="module")
def offline(demo):
    """The plain Python interface on the same weights."""
    from antiphon import KimiAudio

    return KimiAudio(str(demo), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def recordings(questions, shared_evaluation):
    """Recordings by name: the project's own and, where it is here, the demo evaluation set's first ones."""
    return {name: question["bytes"] for name, question in questions.items()} | shared_evaluation


@pytest.fixture(scope="module")
def shared_evaluation(demo):
    folder = demo.parent / "demo-eval"
    return {path.stem: path.read_bytes() for path in sorted(folder.rglob("*.wav"))[:20]} if folder.is_dir() else {}


def heard(model, recording):
    return model.generate([INSTRUCTION, {"role": "user", "message_type": "audio", "content": recording}], "text")[1]


def test_transcripts_over_http_equal_the_offline_ones(client, offline, recordings):
    for name, data in recordings.items():
        said = client.audio.transcriptions.create(model="demo", file=(f"{name}.wav", data)).text
        assert said == heard(offline, data).strip(), name


def test_transcripts_over_realtime_equal_the_offline_ones(demo_server, offline, questions):
    connect = pytest.importorskip("websockets.sync.client").connect
    with connect(demo_server.url.replace("http", "ws") + "/v1/realtime") as socket:
        audio = {"input": {"turn_detection": None, "transcription": {"model": "demo"}}}
        socket.send(json.dumps({"type": "session.update", "session": {"type": "realtime", "audio": audio}}))
        for name, question in questions.items():
            samples = soxr.resample(load_audio(question["bytes"]), 16000, 24000)
            pcm = (np.clip(samples, -1, 1) * 32767).astype("<i2")
            socket.send(
                json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(pcm.tobytes()).decode()})
            )
            socket.send('{"type": "input_audio_buffer.commit"}')
            event = {"type": ""}
            while not event["type"].endswith("transcription.completed"):
                event = json.loads(socket.recv(timeout=60))
                assert event["type"] != "error", event
            assert event["transcript"] == heard(offline, (pcm.astype(np.float32) / 32768, 24000)), name


def test_answers_over_http_equal_the_offline_ones(client, offline, questions):
    for name, question in questions.items():
        if question["output_type"] != "both":
            continue
        data = base64.b64encode(question["bytes"]).decode()
        part = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
        said = client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": [part]}],
            modalities=["text", "audio"],
            audio={"voice": "default", "format": "wav"},
        )
        message = {"role": "user", "message_type": "audio", "content": question["bytes"]}
        wav, text = offline.generate([message], "both")
        audio = said.choices[0].message.audio
        assert audio.transcript == text, name
        samples = load_audio(base64.b64decode(audio.data))
        assert abs(len(samples) / 16000 - wav.shape[1] / 24000) < 0.01, "as long, though cut into other chunks"


def restart(server):
    """Kill the engine; seconds until the server is ready again. It must notice within one."""
    engine, killed = server.service.engine, time.monotonic()
    deaths = engine.num_deaths
    os.kill(engine.backend.pid, signal.SIGKILL)
    while engine.num_deaths == deaths:
        assert time.monotonic() - killed < 1.0
        time.sleep(0.01)
    while server.http("/ready")[0] != 200:
        assert time.monotonic() - killed < 90
        time.sleep(0.02)
    return time.monotonic() - killed


def test_a_stored_conversation_outlives_the_engine(demo, questions, tmp_path):
    spec = ModelSpec(str(demo), device="cpu", dtype="float32", config=EngineConfig(max_sequences=4, keep_text_branch=True))
    data = base64.b64encode(questions["p025"]["bytes"]).decode()
    ask = {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}]}
    speech = {"modalities": ["text", "audio"], "audio": {"voice": "default", "format": "wav"}, "seed": 1}
    with live(spec, served_name="demo", engine="process", store=str(tmp_path / "c.db")) as server:
        first = server.http("/v1/chat/completions", {"model": "demo", "messages": [ask], **speech})[2]
        spoken = {"role": "assistant", "audio": {"id": first["choices"][0]["message"]["audio"]["id"]}}
        turn = {"model": "demo", "messages": [ask, spoken, {"role": "user", "content": "what is two plus five"}]}
        before = server.http("/v1/chat/completions", turn)[2]
        gaps = [restart(server) - server.service.engine.load_seconds]
        while min(gaps) >= 2.0 and len(gaps) < 4:  # another program may have had the processors
            gaps.append(restart(server) - server.service.engine.load_seconds)
        assert min(gaps) < 2.0, f"beyond the model's load time, service was away for {gaps} s"
        after = server.http("/v1/chat/completions", turn)[2]
        assert after["choices"] == before["choices"]
        assert after["usage"]["prompt_tokens"] == before["usage"]["prompt_tokens"] > first["usage"]["total_tokens"]
        assert after["usage"]["prompt_tokens_details"]["cached_tokens"] == 0, "a new engine, from the stored tokens"
        changed = turn | {"messages": [{"role": "user", "content": "hello"}, *turn["messages"][1:]]}
        other = server.http("/v1/chat/completions", changed)[2]
        assert other["usage"]["prompt_tokens"] < before["usage"]["prompt_tokens"], "the transcript, not the tokens"
