"""``antiphon chat``: what reaches the model, what is printed and written, and how a conversation grows."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import numpy as np
import pytest

from antiphon.commands.messages import read_messages


def test_speech_turn_prints_text_and_writes_clipped_pcm(run, fake, recording, tmp_path):
    out = tmp_path / "answer.wav"
    result = run("chat", "--model", "m", "--audio", recording, "--text", "hi", "--out", out, "--seed", 7)
    assert (result.code, result.out) == (0, "one two\n")
    assert "0.20 s of speech" in result.err
    with wave.open(str(out)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24_000, 1, 2)
        samples = np.frombuffer(file.readframes(10**6), "<i2")
    assert len(samples) == 4800 and samples.min() == -32767 and samples.max() == 32767
    (chats, kwargs), ((model,), loaded) = fake.requests[0], fake.loads[0]
    assert [message["message_type"] for message in chats] == ["text", "audio"]
    assert (model, loaded["load_detokenizer"], kwargs["output_type"], kwargs["seed"]) == ("m", True, "both", 7)
    assert (kwargs["text_top_k"], kwargs["audio_repetition_window_size"]) == (5, 64)


def test_without_out_only_text_is_asked_for(run, fake, recording):
    result = run("chat", "--audio", recording)
    assert result.code == 0 and result.out == "one two\n" and result.err == ""
    assert fake.requests[0][1]["output_type"] == "text"
    assert fake.loads[0][1]["load_detokenizer"] is False
    assert fake.loads[0][0] == ("moonshotai/Kimi-Audio-7B-Instruct",)


def test_model_comes_from_the_environment(run, fake, monkeypatch):
    monkeypatch.setenv("ANTIPHON_MODEL", "/models/kimi")
    assert run("chat", "--text", "hello").code == 0
    assert fake.loads[0][0] == ("/models/kimi",)


def test_json_is_one_object(run, fake, recording, tmp_path):
    result = run("chat", "--audio", recording, "--out", tmp_path / "a.wav", "--json")
    report = json.loads(result.out)
    assert report["text"] == "one two" and report["finish_reason"] == "stop"
    assert report["speech_seconds"] == 0.2 and report["usage"]["audio_tokens"] == 3


def test_history_is_created_and_extended(run, fake, recording, tmp_path):
    history, out = tmp_path / "talk" / "history.json", tmp_path / "a.wav"
    history.parent.mkdir()
    assert run("chat", "--audio", recording, "--out", out, "--history", history).code == 0
    stored = json.loads(history.read_text())
    assert [message["role"] for message in stored] == ["user", "assistant"]
    assert stored[0]["content"] == "../tone.wav"
    assert stored[1] == {"role": "assistant", "message_type": "audio-text", "content": ["../a.wav", "one two"]}
    assert run("chat", "--text", "again", "--history", history).code == 0
    second = fake.requests[1][0]
    assert [message["role"] for message in second] == ["user", "assistant", "user"]
    assert Path(second[0]["content"]).resolve() == recording
    assert [message["message_type"] for message in read_messages(history)][-1] == "text"
    assert len(read_messages(history)) == 4


def test_text_longer_than_its_speech_is_kept_as_text(run, fake, recording, tmp_path):
    fake.audio_tokens = 1
    history = tmp_path / "h.json"
    assert run("chat", "--audio", recording, "--out", tmp_path / "a.wav", "--history", history).code == 0
    assert json.loads(history.read_text())[1] == {"role": "assistant", "message_type": "text", "content": "one two"}


def test_silent_answer_writes_no_file_and_says_so(run, fake, recording, tmp_path):
    fake.pieces = fake.pieces[:2]
    out = tmp_path / "a.wav"
    result = run("chat", "--audio", recording, "--out", out)
    assert result.code == 0 and "said nothing aloud" in result.err and not out.exists()


@pytest.mark.parametrize("content", ["{", "[1]", '{"role": "user"}', "\x00"])
def test_history_that_is_no_message_list(run, fake, tmp_path, content):
    history = tmp_path / "h.json"
    history.write_text(content)
    result = run("chat", "--text", "hi", "--history", history)
    assert result.code == 2 and str(history) in result.err and not fake.loads
    assert history.read_text() == content


def test_nothing_to_say_or_nowhere_to_write(run, fake, tmp_path):
    assert run("chat").code == 2
    result = run("chat", "--text", "hi", "--out", tmp_path / "absent" / "a.wav")
    assert result.code == 2 and "cannot be written" in result.err and not fake.loads


def test_interrupt_is_130_and_keeps_a_playable_file(run, fake, recording, tmp_path):
    def interrupted(self, chats, **kwargs):
        yield self.pieces[2]
        raise KeyboardInterrupt

    fake.generate_stream = interrupted
    out = tmp_path / "a.wav"
    result = run("chat", "--audio", recording, "--out", out)
    assert result.code == 130
    with wave.open(str(out)) as file:
        assert file.getnframes() == 4800


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_full_disk_is_one_line_and_exit_code_2(run, fake, recording):
    result = run("chat", "--audio", recording, "--out", "/dev/full")
    assert result.code == 2 and result.out == "one two\n"
    assert result.err.splitlines() == ["antiphon: error: /dev/full: cannot be written: No space left on device"]
