"""Nonsense for a bounded time: no 5xx, no hang, nothing left behind."""

from __future__ import annotations

import json
import random
import time

import pytest
from live import live

from antiphon.null_engine import NullSpec

SECONDS = 20.0


@pytest.fixture(scope="module")
def server():
    """A server whose limits are small, so that they are met."""
    options = {"max_audio_seconds": 5.0, "max_upload_bytes": 200_000, "max_in_flight": 64, "request_timeout": 20.0}
    with live(NullSpec(steps=2), served_name="null", **options) as running:
        yield running
        running.idle()
        assert running.http("/ready")[0] == 200


def test_the_openapi_schema_under_schemathesis(server):
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    import hypothesis
    import urllib3  # noqa: F401  (schemathesis' transport)

    schema = schemathesis.openapi.from_url(server.url + "/openapi.json")
    seen, end = [], time.monotonic() + 3 * SECONDS
    quiet = [hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.filter_too_much, hypothesis.HealthCheck.data_too_large]

    for result in schema.get_all_operations():
        operation = result.ok()

        @hypothesis.given(case=operation.as_strategy())
        @hypothesis.settings(max_examples=25, deadline=None, database=None, suppress_health_check=quiet, derandomize=True)
        def check(case):
            if time.monotonic() > end:
                return
            response = case.call(base_url=server.url, timeout=30)
            seen.append(response.status_code)
            assert response.status_code < 500 or response.status_code == 501, (case.path, response.text[:500])
            if response.status_code >= 400 and response.status_code not in (404, 405) and case.path.startswith("/v1/"):
                assert response.json()["error"]["message"]

        check()
    assert len(seen) > 50 and any(400 <= status < 500 for status in seen)


KINDS = [
    "session.update", "input_audio_buffer.append", "input_audio_buffer.commit", "input_audio_buffer.clear",
    "conversation.item.create", "conversation.item.delete", "conversation.item.retrieve", "conversation.item.truncate",
    "response.create", "response.cancel", "output_audio_buffer.clear", "nonsense",
]
FIELDS = ["session", "audio", "item", "item_id", "content_index", "audio_end_ms", "response", "response_id", "event_id",
          "previous_item_id", "type", "x"]
DEEP = ["type", "role", "content", "text", "audio", "input", "output", "format", "rate", "turn_detection", "threshold", "tools",
        "instructions", "output_modalities", "max_output_tokens", "conversation", "id", "temperature", "transcription"]
WORDS = ["", "a", "realtime", "message", "user", "assistant", "system", "input_text", "input_audio", "output_text", "audio/pcm",
         "audio/pcmu", "server_vad", "none", "auto", "text", "audio", "inf", "AAAA", "AAAAAAAAAAAA", "?", "root", "\ud800", "é" * 50]


def value(rng, depth=0):
    kind = rng.random()
    if depth < 4 and kind < 0.35:
        return {rng.choice(DEEP): value(rng, depth + 1) for _ in range(rng.randint(0, 4))}
    if depth < 4 and kind < 0.5:
        return [value(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    return rng.choice([*WORDS, None, True, False, 0, 1, -1, 2**70, 0.5, 1e308, 24000])


def event(rng, items):
    """Something that looks more or less like an event."""
    if rng.random() < 0.15:
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]}
        return {"type": "conversation.item.create", "item": item}
    made = {"type": rng.choice(KINDS)}
    for _ in range(rng.randint(0, 3)):
        made[rng.choice(FIELDS)] = value(rng)
    if items and rng.random() < 0.3:
        made["item_id"] = rng.choice(items)
    return made


def test_a_session_full_of_nonsense(server):
    connect = pytest.importorskip("websockets.sync.client", reason="websockets is not installed").connect
    rng, end, sent, seen = random.Random(7), time.monotonic() + SECONDS, 0, set()
    while time.monotonic() < end:
        with connect(server.url.replace("http", "ws") + "/v1/realtime", max_size=None) as socket:
            items: list[str] = []
            for _ in range(200):
                message = event(rng, items)
                roll = rng.random()
                if roll < 0.03:
                    socket.send(rng.randbytes(rng.randint(0, 50)))
                elif roll < 0.06:
                    socket.send(json.dumps(message)[: rng.randint(0, 20)])
                else:
                    socket.send(json.dumps(message))
                sent += 1
            socket.send('{"type": "conversation.item.retrieve", "item_id": "the-end"}')
            while True:
                answer = json.loads(socket.recv(timeout=30))
                seen.add(answer["type"])
                if answer["type"] == "conversation.item.added":
                    items.append(answer["item"]["id"])
                if answer["type"] == "error":
                    assert answer["error"]["type"] != "server_error", answer
                    if "the-end" in answer["error"]["message"]:
                        break
    assert sent > 200 and {"error", "conversation.item.added", "response.done"} <= seen
    server.without_sessions(10)
