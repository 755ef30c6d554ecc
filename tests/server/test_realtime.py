"""Realtime sessions with the official package against the demo model; every server event is one of its types."""

from __future__ import annotations

import base64
import time
from contextlib import contextmanager

import numpy as np
import pytest
import soxr

from antiphon.audio import load_audio

openai = pytest.importorskip("openai", reason="the openai package is not installed")
CHUNK = 4800


def pcm24(wav):
    """16-bit 24 kHz bytes of a recording."""
    samples = soxr.resample(load_audio(wav), 16000, 24000)
    return (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()


class Connection:
    """A realtime connection; keeps every event, and checks that each is of a type of the package."""

    def __init__(self, raw):
        self.raw, self.events = raw, []

    def receive(self):
        event = self.raw.recv()
        assert type(event).__module__.startswith("openai.types.realtime"), event
        assert type(event).model_validate(event.model_dump()), event
        self.events.append(event)
        return event

    def until(self, kind, limit=400):
        """Events up to the next one of ``kind``."""
        seen = []
        for _ in range(limit):
            seen.append(self.receive())
            if seen[-1].type == kind:
                return seen
        raise AssertionError([event.type for event in seen])

    def say(self, data, pause=True):
        for at in range(0, len(data), 2 * CHUNK):
            self.raw.input_audio_buffer.append(audio=base64.b64encode(data[at : at + 2 * CHUNK]).decode())
        if pause:
            silence = base64.b64encode(bytes(2 * CHUNK)).decode()
            for _ in range(5):
                self.raw.input_audio_buffer.append(audio=silence)

    def update(self, **session):
        self.raw.session.update(session={"type": "realtime"} | session)
        return self.until("session.updated")[-1].session

    def user(self, text):
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
        self.raw.conversation.item.create(item=item)
        return self.until("conversation.item.done")[-1].item


@contextmanager
def connected(server, **how):
    client = openai.OpenAI(base_url=server.api, api_key="k", websocket_base_url=server.api.replace("http", "ws"))
    with client.realtime.connect(model=server.service.name, **how) as raw:
        connection = Connection(raw)
        assert connection.receive().type == "session.created"
        yield connection


def transcript(events):
    return "".join(e.delta for e in events if e.type == "response.output_audio_transcript.delta")


def sound(events):
    return b"".join(base64.b64decode(e.delta) for e in events if e.type == "response.output_audio.delta")


def test_a_conversation_by_voice_with_server_vad(demo_server, questions):
    with connected(demo_server) as connection:
        session = connection.update(
            audio={"input": {"transcription": {"model": "demo"}}}, instructions=""
        )
        assert session.audio.input.turn_detection.type == "server_vad"
        question = questions["p025"]
        connection.say(bytes(24000) + pcm24(question["bytes"]))
        events = connection.until("response.done")
        kinds = [event.type for event in events]
        order = [
            "input_audio_buffer.speech_started",
            "input_audio_buffer.speech_stopped",
            "input_audio_buffer.committed",
            "conversation.item.added",
            "conversation.item.done",
            "response.created",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_audio.delta",
            "response.output_audio.done",
            "response.output_audio_transcript.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.done",
        ]
        places = [kinds.index(kind) for kind in order]
        assert places == sorted(places)
        started = events[kinds.index("input_audio_buffer.speech_started")]
        assert 0 <= started.audio_start_ms <= 1000
        done = events[-1].response
        assert done.status == "completed" and transcript(events) == question["answer"]
        assert done.output[0].content[0].transcript == question["answer"]
        assert done.usage.output_token_details.audio_tokens > 5
        assert len(sound(events)) > 24000
        said = [e for e in connection.events if e.type == "conversation.item.input_audio_transcription.completed"]
        if not said:
            said = connection.until("conversation.item.input_audio_transcription.completed")
        assert said[-1].transcript == question["reference"]


def test_a_second_turn_computes_only_what_is_new(demo_server, questions):
    with connected(demo_server) as connection:
        connection.update(audio={"input": {"turn_detection": None}}, output_modalities=["audio"])
        usages = []
        for name in ("p025", "p029"):
            connection.say(pcm24(questions[name]["bytes"]), pause=False)
            connection.raw.input_audio_buffer.commit()
            connection.raw.response.create()
            usages.append(connection.until("response.done")[-1].response.usage)
        first, second = usages
        assert second.input_token_details.cached_tokens > first.total_tokens // 2


def test_typed_text_in_and_out(demo_server):
    with connected(demo_server) as connection:
        connection.update(output_modalities=["text"])
        connection.user("what is two plus five")
        connection.raw.response.create()
        events = connection.until("response.done")
        assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "two plus five is seven"
        assert [e.text for e in events if e.type == "response.output_text.done"] == ["two plus five is seven"]
        connection.raw.response.create(
            response={
                "conversation": "none",
                "output_modalities": ["text"],
                "metadata": {"a": "b"},
                "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "thank you"}]}],
            }
        )
        done = connection.until("response.done")[-1].response
        assert done.conversation_id is None and done.metadata == {"a": "b"} and done.output[0].content[0].text
        kinds = [event.type for event in connection.events]
        assert kinds.count("conversation.item.done") == 2, "one question, one answer"


def test_barge_in_and_truncation(null_speaks_long):
    server = null_speaks_long
    with connected(server) as connection:
        connection.user("tell me a long story")
        connection.raw.response.create()
        item = connection.until("response.output_audio.delta")[-1].item_id
        connection.say(_speech(server))
        events = connection.until("response.done")
        kinds = [event.type for event in events]
        assert "input_audio_buffer.speech_started" in kinds
        response = events[-1].response
        assert response.status == "cancelled" and response.status_details.reason == "turn_detected"
        connection.raw.conversation.item.truncate(item_id=item, content_index=0, audio_end_ms=200)
        truncated = connection.until("conversation.item.truncated")[-1]
        assert truncated.audio_end_ms == 200
        connection.raw.conversation.item.retrieve(item_id=item)
        content = connection.until("conversation.item.retrieved")[-1].item.content[0]
        assert content.transcript is None
        connection.raw.response.cancel()
        connection.until("response.done")
    server.idle()


@pytest.fixture(scope="module")
def null_speaks_long():
    from live import live

    from antiphon.null_engine import NullSpec

    with live(NullSpec(steps=5000, step_seconds=0.01), served_name="null") as server:
        yield server


def _speech(server):
    from conftest import QUESTIONS

    return pcm24((QUESTIONS / "p025.wav").read_bytes())


def test_an_interrupted_answer_is_remembered_as_far_as_it_was_heard(demo_server, questions):
    with connected(demo_server) as connection:
        connection.update(audio={"input": {"turn_detection": None}})
        connection.say(pcm24(questions["p025"]["bytes"]), pause=False)
        connection.raw.input_audio_buffer.commit()
        connection.raw.response.create()
        events = connection.until("response.done")
        item, total = events[-1].response.output[0].id, events[-1].response.usage.total_tokens
        heard = 400
        connection.raw.conversation.item.truncate(item_id=item, content_index=0, audio_end_ms=heard)
        connection.until("conversation.item.truncated")
        connection.user("thank you")
        connection.raw.response.create(response={"output_modalities": ["text"]})
        usage = connection.until("response.done")[-1].response.usage
        assert usage.input_tokens < total, "most of the answer is forgotten"
        assert usage.input_token_details.cached_tokens > 0
        connection.raw.conversation.item.truncate(item_id=item, content_index=0, audio_end_ms=100_000)
        assert connection.until("error")[-1].error.param == "audio_end_ms"


def test_g711(demo_server, questions):
    from antiphon.server.realtime.audio import encode

    samples = soxr.resample(load_audio(questions["p025"]["bytes"]), 16000, 8000)
    with connected(demo_server) as connection:
        for kind in ("audio/pcmu", "audio/pcma"):
            connection.update(
                audio={"input": {"format": {"type": kind}, "turn_detection": None}, "output": {"format": {"type": kind}}}
            )
            connection.raw.input_audio_buffer.append(audio=base64.b64encode(encode(samples, kind)).decode())
            connection.raw.input_audio_buffer.commit()
            connection.raw.response.create()
            events = connection.until("response.done")
            assert events[-1].response.status == "completed" and 4000 < len(sound(events)) < 60_000


def test_deleting_and_inserting_items(demo_server):
    with connected(demo_server) as connection:
        connection.update(output_modalities=["text"])
        first = connection.user("hello")
        second = connection.user("what is two plus five")
        connection.raw.conversation.item.delete(item_id=first.id)
        assert connection.until("conversation.item.deleted")[-1].item_id == first.id
        connection.raw.response.create()
        assert connection.until("response.done")[-1].response.output[0].content[0].text == "two plus five is seven"
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]}
        connection.raw.conversation.item.create(item=item, previous_item_id="root")
        assert connection.until("conversation.item.done")[-1].previous_item_id is None
        connection.raw.conversation.item.create(item=item, previous_item_id=second.id)
        assert connection.until("conversation.item.done")[-1].previous_item_id == second.id


SEMANTIC = (
    '{"type": "session.update", "session": {"type": "realtime", "audio": '
    '{"input": {"turn_detection": {"type": "semantic_vad"}}}}}'
)
BAD = [
    ("{", "invalid_json"),
    ("[]", "invalid_event"),
    ("{}", None),
    ('{"type": "session.explode", "event_id": "e1"}', None),
    ('{"type": "response.create", "antiphon": 1}', "unknown_parameter"),
    ('{"type": "input_audio_buffer.append", "audio": "?"}', "invalid_base64"),
    ('{"type": "input_audio_buffer.append"}', "missing_required_parameter"),
    ('{"type": "input_audio_buffer.commit"}', "input_audio_buffer_commit_empty"),
    ('{"type": "response.cancel"}', "response_cancel_not_active"),
    ('{"type": "conversation.item.delete", "item_id": "item_0"}', "item_not_found"),
    ('{"type": "conversation.item.truncate", "item_id": "x", "content_index": 0, "audio_end_ms": 1}', "item_not_found"),
    ('{"type": "conversation.item.truncate", "item_id": "x", "content_index": 0, "audio_end_ms": -1}', "invalid_value"),
    ('{"type": "session.update", "session": {"type": "realtime", "tools": [{"type": "function"}]}}', "invalid_value"),
    ('{"type": "session.update", "session": {"type": "transcription"}}', "invalid_value"),
    ('{"type": "session.update", "session": {"type": "realtime", "model": "gpt-realtime"}}', "invalid_value"),
    (SEMANTIC, "invalid_value"),
    ('{"type": "output_audio_buffer.clear"}', "invalid_event"),
    ('{"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": []}}', "invalid_value"),
    ('{"type": "response.create"}', "conversation_empty"),
    ("[" * 100_000, "invalid_json"),
    (b"\x00\x01", "invalid_event"),
]


def test_bad_events_are_answered_and_the_session_lives(demo_server):
    with connected(demo_server) as connection:
        for text, code in BAD:
            connection.raw._connection.send(text)
            error = connection.until("error")[-1].error
            assert error.message and (code is None or error.code == code), (text, error)
        connection.update(output_modalities=["text"])
        connection.user("what is two plus five")
        connection.raw.response.create()
        assert connection.until("response.done")[-1].response.output[0].content[0].text == "two plus five is seven"


def test_ten_thousand_tiny_frames(null_server):
    with connected(null_server) as connection:
        frame = '{"type": "input_audio_buffer.append", "audio": "AAA="}'
        start = time.monotonic()
        for _ in range(10_000):
            connection.raw._connection.send(frame)
        connection.update(output_modalities=["text"])
        assert time.monotonic() - start < 60
        assert null_server.http("/health")[0] == 200


def test_sessions_are_limited_and_end(demo_server):
    from live import live

    from antiphon.null_engine import NullSpec

    with live(NullSpec(), served_name="null", max_sessions=1, idle_timeout=1.0) as server:
        with connected(server) as connection:
            client = openai.OpenAI(base_url=server.api, api_key="k", websocket_base_url=server.api.replace("http", "ws"))
            with client.realtime.connect(model="null") as second:
                assert second.recv().error.code == "session_limit_exceeded"
            assert connection.until("error")[-1].error.code == "session_expired"
        server.without_sessions()
        with client.realtime.connect(model="other") as wrong:
            assert wrong.recv().error.param == "model"


def test_a_session_survives_its_engine():
    import os
    import signal

    from live import live

    from antiphon.null_engine import NullSpec

    spec = NullSpec(steps=3000, step_seconds=0.005)
    with live(spec, served_name="null", engine="process") as server, connected(server) as connection:
        connection.user("hello")
        connection.raw.response.create()
        connection.until("response.output_audio.delta")
        os.kill(server.service.engine.backend.pid, signal.SIGKILL)
        events = connection.until("response.done", limit=5000)
        assert events[-1].response.status == "failed"
        assert [e.error.code for e in events if e.type == "error"] == ["engine_unavailable"]
        end = time.monotonic() + 60
        while server.http("/ready")[0] != 200:
            assert time.monotonic() < end
            time.sleep(0.1)
        connection.raw.response.create(response={"max_output_tokens": 2})
        assert connection.until("response.done")[-1].response.status in ("completed", "incomplete")


def test_disconnecting_at_random_leaves_nothing(null_speaks_long):
    for _ in range(5):
        with connected(null_speaks_long) as connection:
            connection.user("hello")
            connection.raw.response.create()
            connection.until("response.output_audio.delta")
    null_speaks_long.idle()
    null_speaks_long.without_sessions()
