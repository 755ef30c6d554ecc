"""Transcriptions with the official package, in every format."""

from __future__ import annotations

import io
import itertools
import wave

import numpy as np
import pytest

from antiphon.audio import load_audio
from antiphon.server.subtitles import Segment, srt, vtt
from antiphon.server.windows import EARLIEST, LONGEST, cut


def wav(samples):
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16000)
        out.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return file.getvalue()


@pytest.fixture(scope="module")
def long_recording(questions):
    """Over 30 s: sentences with silence between them."""
    parts = [load_audio(questions[name]["bytes"]) for name in ("p002", "p019")] * 8
    pause = np.zeros(8000, np.float32)
    return np.concatenate([piece for part in parts for piece in (part, pause)])


def test_plain_formats(client, questions):
    question = questions["p002"]
    file = ("p002.wav", question["bytes"])
    result = client.audio.transcriptions.create(model="demo", file=file)
    assert result.text == question["reference"] and result.usage.output_tokens > 0
    text = client.audio.transcriptions.create(model="demo", file=file, response_format="text")
    assert text.strip() == question["reference"]
    verbose = client.audio.transcriptions.create(
        model="demo", file=file, response_format="verbose_json", timestamp_granularities=["segment"], language="en"
    )
    assert verbose.duration == pytest.approx(question["seconds"], abs=0.01) and verbose.language == "en"
    assert [segment.text for segment in verbose.segments] == [question["reference"]]
    for kind in ("srt", "vtt"):
        written = client.audio.transcriptions.create(model="demo", file=file, response_format=kind)
        assert "00:00:00" in written and question["reference"] in written


def test_streamed(client, questions):
    events = list(
        client.audio.transcriptions.create(model="demo", file=("a.wav", questions["p019"]["bytes"]), stream=True)
    )
    assert {event.type for event in events[:-1]} == {"transcript.text.delta"}
    assert events[-1].type == "transcript.text.done"
    assert events[-1].text == "".join(event.delta for event in events[:-1]) == questions["p019"]["reference"]


def test_a_long_recording_in_windows(client, long_recording):
    verbose = client.audio.transcriptions.create(
        model="demo", file=("long.wav", wav(long_recording)), response_format="verbose_json"
    )
    seconds = len(long_recording) / 16000
    assert verbose.duration == pytest.approx(seconds, abs=0.01) and len(verbose.segments) == 2
    assert verbose.segments[0].end == verbose.segments[1].start < 30
    assert verbose.segments[1].end == pytest.approx(seconds)
    events = list(client.audio.transcriptions.create(model="demo", file=("l.wav", wav(long_recording)), stream=True))
    assert events[-1].text == "".join(event.delta for event in events[:-1])


def test_windows_are_cut_where_it_is_quiet():
    rng = np.random.default_rng(0)
    samples = rng.standard_normal(100 * 16000).astype(np.float32) * 0.1
    for second in (25, 50, 72):
        samples[second * 16000 : second * 16000 + 8000] = 0
    windows = cut(samples)
    assert windows[0].start == 0 and windows[-1].end == len(samples)
    assert all(a.end == b.start for a, b in itertools.pairwise(windows))
    assert all(EARLIEST <= w.end - w.start <= LONGEST for w in windows[:-1])
    for window, second in zip(windows, (25, 50, 72)):
        assert second * 16000 <= window.end <= second * 16000 + 8000


def test_subtitles_are_well_formed():
    segments = [Segment(0, 61.5, "a --> b\n\nc"), Segment(3661.001, 3662, "d")]
    assert srt(segments) == (
        "1\n00:00:00,000 --> 00:01:01,500\na → b\nc\n\n2\n01:01:01,001 --> 01:01:02,000\nd\n"
    )
    assert vtt(segments).startswith("WEBVTT\n\n00:00:00.000 --> 00:01:01.500\n")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"response_format": "yaml"}, "response_format"),
        ({"timestamp_granularities[]": "word"}, "timestamp_granularities"),
        ({"include[]": "logprobs"}, "include"),
        ({"temperature": "warm"}, "temperature"),
        ({"temperature": "7"}, "temperature"),
        ({"chunking_strategy": "server_vad"}, "chunking_strategy"),
        ({"known_speaker_names[]": "x"}, "known_speaker_names[]"),
        ({"stream": "true", "response_format": "srt"}, "response_format"),
        ({"model": "whisper-1"}, "model"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(demo_server, questions, change, param):
    status, _, body = _post(demo_server, {"model": "demo"} | change, questions["p002"]["bytes"])
    assert status == (404 if param == "model" else 400) and body["error"]["param"] == param


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"RIFF\x00\x00\x00\x00WAVEfmt ", b"\x00" * 3000], ids=["empty", "text", "cut", "zeros"]
)
def test_what_is_not_a_recording_is_refused(demo_server, content):
    status, _, body = _post(demo_server, {"model": "demo"}, content)
    assert status == 400 and body["error"]["param"] == "file"


def test_a_path_as_file_is_refused(demo_server):
    status, _, body = _post(demo_server, {"model": "demo", "file": "../../../../etc/passwd"}, None)
    assert status == 400 and body["error"]["param"] == "file"


def _post(server, fields, content):
    boundary = "x-boundary-x"
    parts = [f'--{boundary}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items()]
    body = "".join(parts).encode()
    if content is not None:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="../../a.wav"\r\n\r\n'
        body += head.encode() + content + b"\r\n"
    body += f"--{boundary}--\r\n".encode()
    return server.http(
        "/v1/audio/transcriptions", body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    )
