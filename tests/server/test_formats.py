"""Recordings in every format a client may send, whole and broken, through chat and transcription."""

from __future__ import annotations

import base64
import io

import av
import numpy as np
import pytest
import soxr

from antiphon.audio import load_audio

CONTAINERS = {
    "mp3": ("mp3", "libmp3lame"),
    "flac": ("flac", "flac"),
    "ogg": ("ogg", "libopus"),
    "opus": ("ogg", "libopus"),
    "m4a": ("ipod", "aac"),
    "aac": ("adts", "aac"),
    "webm": ("webm", "libopus"),
}
FORMATS = (*CONTAINERS, "wav", "pcm16")
NEEDS_ITS_END = ("m4a", "flac", "wav")
"""Formats that say how long they are, or keep their index at the end: half of a file is known to be damaged."""


def encoded(wav, kind):
    """The recording ``wav`` as a file of ``kind``."""
    if kind == "wav":
        return wav
    samples = load_audio(wav)
    if kind == "pcm16":
        return (np.clip(soxr.resample(samples, 16000, 24000), -1, 1) * 32767).astype("<i2").tobytes()
    container, codec = CONTAINERS[kind]
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=48000 if codec == "libopus" else 16000, layout="mono")
        frame = av.AudioFrame.from_ndarray((samples * 32767).astype("<i2")[None], format="s16", layout="mono")
        frame.sample_rate = 16000
        resampler = av.AudioResampler(stream.format.name, "mono", stream.rate, frame_size=stream.frame_size or 1024)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            out.mux(stream.encode(piece))
        out.mux(stream.encode(None))
    return file.getvalue()


def ask(server, data, kind):
    part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": kind}}
    body = {"model": server.service.name, "messages": [{"role": "user", "content": [part]}]}
    status, _, answer = server.http("/v1/chat/completions", body)
    return status, answer


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_in(demo_server, client, questions, kind):
    question = questions["p025"]
    data = encoded(question["bytes"], kind)
    status, answer = ask(demo_server, data, kind)
    assert status == 200 and answer["choices"][0]["message"]["content"] == question["answer"]
    if kind != "pcm16":  # raw samples are no file
        said = client.audio.transcriptions.create(model="demo", file=(f"question.{kind}", data)).text
        assert said.startswith("count from one to ")  # a codec may cost a word


@pytest.mark.parametrize("kind", FORMATS)
def test_a_broken_recording_is_refused_or_heard_as_far_as_it_goes(null_server, questions, kind):
    data = encoded(questions["p025"]["bytes"], kind)
    param = "messages[0].content[0].input_audio.data"
    bad = [b"", data[:1]] if kind == "pcm16" else [b"", data[:1], data[:20], b"\0" * 5000, b"no recording " * 50]
    for broken in bad:
        status, answer = ask(null_server, broken, kind)
        assert status == 400 and answer["error"]["param"] == param, (broken[:20], answer)
    status, answer = ask(null_server, data[: len(data) // 2], kind)
    assert status == 400 or kind not in NEEDS_ITS_END
    assert status == 200 or answer["error"]["code"] == "invalid_audio"
    noise = np.random.default_rng(0).integers(0, 256, 4000, np.uint8).tobytes()
    assert ask(null_server, data[:100] + noise, kind)[0] in (200, 400)
    assert ask(null_server, data, kind)[0] == 200


def test_a_file_goes_by_its_content_not_by_its_name(null_server, questions):
    """Browsers record webm or m4a and callers often name them otherwise; raw samples alone must be named."""
    for kind in ("webm", "m4a", "mp3"):
        assert ask(null_server, encoded(questions["p025"]["bytes"], kind), "wav")[0] == 200
    assert ask(null_server, encoded(questions["p025"]["bytes"], "pcm16"), "wav")[0] == 400


def test_a_wav_of_unknown_length(null_server, questions):
    """What a recorder writes that cannot go back to its header."""
    wav = questions["p025"]["bytes"]
    at = wav.index(b"data") + 4
    for size in (0xFFFFFFFF, 0x7FFFFFFF):
        assert ask(null_server, wav[:at] + size.to_bytes(4, "little") + wav[at + 4 :], "wav")[0] == 200
    status, answer = ask(null_server, wav[:-10], "wav")
    assert status == 400 and "10 bytes of its samples are missing" in answer["error"]["message"]


def test_a_playlist_reads_no_other_file(null_server, tmp_path, questions):
    inner = tmp_path / "inner.wav"
    inner.write_bytes(questions["p025"]["bytes"])
    playlists = (f"#EXTM3U\n#EXTINF:1,\n{inner}\n", f"ffconcat version 1.0\nfile {inner}\n")
    for text in playlists:
        status, answer = ask(null_server, text.encode(), "wav")
        assert status == 400 and answer["error"]["code"] == "invalid_audio"
