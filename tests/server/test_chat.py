"""Chat completions with the official package against the demo model."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from antiphon.audio import load_audio


def spoken(wav, kind="wav"):
    data = base64.b64encode(wav).decode()
    return {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": data, "format": kind}}]}


def test_text_to_text(client):
    answer = client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "what is two plus five"}])
    assert answer.choices[0].message.content == "two plus five is seven"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 10


def test_streamed_text_with_usage(client):
    chunks = list(
        client.chat.completions.create(
            model="demo",
            messages=[{"role": "developer", "content": "count from"}, {"role": "user", "content": " one to three"}],
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "one two three"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0
    assert len({c.id for c in chunks}) == 1


def test_a_spoken_question_is_answered_in_speech_and_its_id_continues_it(client, questions):
    question = questions["p025"]
    first = client.chat.completions.create(
        model="demo",
        messages=[spoken(question["bytes"])],
        modalities=["text", "audio"],
        audio={"voice": "alloy", "format": "wav"},
        seed=0,
    )
    message = first.choices[0].message
    assert message.content is None and message.audio.transcript == question["answer"]
    samples = load_audio(base64.b64decode(message.audio.data))
    assert 1.0 < len(samples) / 16000 < 6.0 and np.abs(samples).max() > 0.05
    heard = client.audio.transcriptions.create(model="demo", file=("a.wav", base64.b64decode(message.audio.data)))
    assert set(heard.text.split()) & set(question["answer"].split())
    second = client.chat.completions.create(
        model="demo",
        messages=[
            spoken(question["bytes"]),
            {"role": "assistant", "audio": {"id": message.audio.id}},
            {"role": "user", "content": "what is two plus five"},
        ],
    )
    assert second.choices[0].message.content == "two plus five is seven"
    details = second.usage.prompt_tokens_details
    assert details.cached_tokens > 0.6 * second.usage.prompt_tokens, "the first turn was not computed again"


def test_streamed_speech(client, questions):
    chunks = client.chat.completions.create(
        model="demo",
        messages=[spoken(questions["p025"]["bytes"])],
        modalities=["text", "audio"],
        audio={"voice": "default", "format": "pcm16"},
        stream=True,
        seed=0,
    )
    transcript, pcm, expires = "", b"", None
    for chunk in chunks:
        audio = (chunk.choices[0].delta.model_extra or {}).get("audio") or getattr(chunk.choices[0].delta, "audio", None)
        audio = audio.model_dump(exclude_none=True) if hasattr(audio, "model_dump") else audio or {}
        transcript += audio.get("transcript", "")
        pcm += base64.b64decode(audio.get("data", ""))
        expires = audio.get("expires_at", expires)
    assert transcript == questions["p025"]["answer"] and expires
    assert 24000 < len(pcm) // 2 < 150_000


@pytest.mark.parametrize("kind", ["mp3", "flac", "opus", "aac", "pcm16"])
def test_every_format_out(client, kind):
    answer = client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "thank you"}],
        modalities=["text", "audio"],
        audio={"voice": "alloy", "format": kind},
        seed=0,
    )
    data = base64.b64decode(answer.choices[0].message.audio.data)
    samples = np.frombuffer(data, "<i2") if kind == "pcm16" else load_audio(data)
    assert len(samples) > 4000


def test_stop_limit_and_seed(client):
    ask = {"model": "demo", "messages": [{"role": "user", "content": "count from one to six"}]}
    assert client.chat.completions.create(**ask, stop=" four").choices[0].message.content == "one two three"
    short = client.chat.completions.create(**ask, max_completion_tokens=2)
    assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 2
    warm = {"temperature": 1.2, "seed": 5, "extra_body": {"text_top_k": 50}}
    texts = {client.chat.completions.create(**ask, **warm).choices[0].message.content for _ in range(2)}
    assert len(texts) == 1
