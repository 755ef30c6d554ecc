"""Bad chat requests: each answered 4xx in OpenAI's envelope with the field named, the server healthy afterwards."""

from __future__ import annotations

import base64
import io

import av
import numpy as np
import pytest

OK = [{"role": "user", "content": "hello"}]


def audio(data, kind="wav"):
    part = {"type": "input_audio", "input_audio": {"data": data, "format": kind}}
    return {"messages": [{"role": "user", "content": [part]}]}


def url(address):
    part = {"type": "audio_url", "audio_url": {"url": address}}
    return {"messages": [{"role": "user", "content": [part]}]}


AUDIO = "messages[0].content[0].input_audio.data"
BOTH = {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}}

CASES = [
    ("no messages", {"messages": []}, "messages"),
    ("messages of a wrong type", {"messages": "hello"}, "messages"),
    ("a wrong role", {"messages": [{"role": "robot", "content": "x"}]}, "messages[0]"),
    ("a tool's message", {"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages[0]"),
    ("no content", {"messages": [{"role": "user"}]}, "messages[0].content"),
    ("an image", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
     "messages[0].content[0]"),
    ("the assistant's last word", {"messages": [*OK, {"role": "assistant", "content": "x"}]}, "messages[1].role"),
    ("an assistant without words", {"messages": [*OK, {"role": "assistant"}, *OK]}, "messages[1]"),
    ("an unknown field", {"antiphon": 1}, "antiphon"),
    ("an unknown field inside", {"messages": [{"role": "user", "content": "x", "color": 1}]}, "messages[0].color"),
    ("two answers", {"n": 2}, "n"),
    ("tools", {"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ("json mode", {"response_format": {"type": "json_object"}}, "response_format"),
    ("top_p", {"top_p": 0.5}, "top_p"),
    ("logprobs", {"logprobs": True}, "logprobs"),
    ("a penalty", {"frequency_penalty": 0.5}, "frequency_penalty"),
    ("heat", {"temperature": 3}, "temperature"),
    ("cold", {"audio_temperature": -1}, "audio_temperature"),
    ("nothing to say", {"max_tokens": 0}, "max_tokens"),
    ("a seed in words", {"seed": "one"}, "seed"),
    ("five stops", {"stop": list("abcde")}, "stop"),
    ("an empty stop", {"stop": ""}, "stop"),
    ("a wrong model", {"model": "gpt-4o"}, "model"),
    ("modalities: none", {"modalities": []}, "modalities"),
    ("modalities: video", {"modalities": ["text", "video"]}, "modalities[1]"),
    ("modalities: twice", {"modalities": ["text", "text"]}, "modalities"),
    ("speech without audio", {"modalities": ["text", "audio"]}, "audio"),
    ("audio without speech", {"audio": BOTH["audio"]}, "audio"),
    ("an unknown voice", BOTH | {"audio": {"voice": "nobody", "format": "wav"}}, "audio.voice"),
    ("an unknown format", BOTH | {"audio": {"voice": "alloy", "format": "tape"}}, "audio.format"),
    ("a streamed wav", BOTH | {"stream": True}, "audio.format"),
    ("stream options without a stream", {"stream_options": {"include_usage": True}}, "stream_options"),
    ("no base64", audio("?!"), AUDIO),
    ("an empty recording", audio(""), AUDIO),
    ("text as a recording", audio(base64.b64encode(b"hello").decode()), AUDIO),
    ("a cut recording", audio(base64.b64encode(b"RIFF\xff\xff\xff\x7fWAVEfmt \x10\x00").decode()), AUDIO),
    ("one byte of samples", audio(base64.b64encode(b"x").decode(), "pcm16"), AUDIO),
    ("a recording of an unknown kind", audio("AAAA", "midi"), "messages[0].content[0].input_audio.format"),
    ("an address", url("http://127.0.0.1/x.wav"), "messages[0].content[0].audio_url.url"),
    ("an unknown answer", {"messages": [*OK, {"role": "assistant", "audio": {"id": "audio_0"}}, *OK]},
     "messages[1].audio.id"),
    ("a book", {"messages": [{"role": "user", "content": "word " * 20_000}]}, "messages"),
]


@pytest.fixture(scope="module")
def server(demo_server):
    """The demo server; after all cases it is as before."""
    yield demo_server
    status, _, body = demo_server.http(
        "/v1/chat/completions", {"model": "demo", "messages": [{"role": "user", "content": "what is two plus five"}]}
    )
    assert status == 200 and body["choices"][0]["message"]["content"] == "two plus five is seven"
    demo_server.idle()
    assert demo_server.service.engine.num_deaths == 0


@pytest.mark.parametrize(("body", "param"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_refused_by_name(server, body, param):
    status, headers, answer = server.http("/v1/chat/completions", {"model": "demo", "messages": OK} | body)
    assert status == (404 if param == "model" else 400), answer
    assert answer["error"]["param"] == param and answer["error"]["message"]
    assert answer["error"]["type"] in ("invalid_request_error", "not_found_error") and headers["x-request-id"]


@pytest.mark.parametrize("body", [b"", b"{", b'{"\\ud800": "\\ud800"}', b"[1]", b"null", b'"x"', b'{"a": NaN}', b"\xff\xfe", b"[" * 100_000])
def test_malformed_json(server, body):
    status, _, answer = server.http("/v1/chat/completions", body)
    assert status == 400 and "error" in answer


def test_hours_of_silence_in_a_few_bytes(server):
    file = io.BytesIO()
    with av.open(file, "w", format="flac") as out:
        stream = out.add_stream("flac", rate=8000, layout="mono")
        for _ in range(3 * 60):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 60 * 8000), np.int16), format="s16", layout="mono")
            frame.sample_rate = 8000
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    assert len(file.getvalue()) < 3_000_000
    status, _, answer = server.http(
        "/v1/chat/completions", {"model": "demo"} | audio(base64.b64encode(file.getvalue()).decode(), "flac")
    )
    assert status == 400 and answer["error"]["code"] == "audio_too_long" and answer["error"]["param"] == AUDIO


def test_other_paths_and_methods(server):
    for path, method, expected in [("/v1/nothing", "GET", 404), ("/v1/chat/completions", "GET", 405)]:
        status, _, answer = server.http(path, method=method)
        assert status == expected and answer["error"]["message"]
