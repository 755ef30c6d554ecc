"""Prompts: every golden conversation, feature placing, and malformed messages."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from antiphon.audio import load_audio
from antiphon.checkpoint import load_model_config, load_speech_tokenizer, load_whisper
from antiphon.config import NUM_SPECIAL_TOKENS
from antiphon.errors import AudioError, InputError, PromptTooLongError
from antiphon.execution.audio_encoder import AudioEncoder
from antiphon.models.speech_tokenizer import SpeechTokenizer
from antiphon.models.whisper_encoder import WhisperEncoder
from antiphon.prompt import PromptBuilder, load_recordings, make_prompt, parse_messages, wants_features
from antiphon.text import TextTokenizer


@pytest.fixture(scope="session")
def config(fixtures):
    return load_model_config(fixtures / "tiny", load_detokenizer=False)


@pytest.fixture(scope="session")
def builder(config) -> PromptBuilder:
    num_base = config.llm.audio_token_offset - NUM_SPECIAL_TOKENS
    return PromptBuilder(TextTokenizer.from_file(config.path / "tiktoken.model", num_base), config.llm)


@pytest.fixture(scope="session")
def encoder(config) -> AudioEncoder:
    whisper = WhisperEncoder(load_whisper(config, torch.float32), config.whisper)
    tokenizer = SpeechTokenizer(load_speech_tokenizer(config), config.speech_tokenizer)
    return AudioEncoder(whisper, tokenizer, cache_bytes=1 << 24)


def text(content: str, role: str = "user") -> dict:
    return {"role": role, "message_type": "text", "content": content}


def sound(content, role: str = "user") -> dict:
    return {"role": role, "message_type": "audio", "content": content}


def test_golden_prompts(fixtures, builder, encoder):
    cases = json.loads((fixtures / "golden" / "prompts.json").read_text(encoding="utf-8"))
    arrays = np.load(fixtures / "golden" / "prompts.npz")
    assert len(cases) in (13, 20)
    for case in cases:
        for output_type in case["output_types"]:
            key = f"{case['name']}.{output_type}"
            prompt = make_prompt(case["messages"], output_type, builder, encoder, fixtures)
            assert len(prompt) == case["length"][output_type], key
            assert np.array_equal(prompt.audio_ids, arrays[f"{key}.audio_ids"]), key
            assert np.array_equal(prompt.text_ids, arrays[f"{key}.text_ids"]), key
            assert np.array_equal(prompt.continuous_mask, arrays[f"{key}.is_continuous"]), key
            assert [len(audio.features) for audio in prompt.audios] == arrays[f"{key}.feature_rows"].tolist(), key
            check_feature_rows(prompt, builder)


def check_feature_rows(prompt, builder):
    """The K-th media_begin/media_end pair holds the rows of the K-th feature matrix, flagged; nothing else is."""
    special, expected, row = builder.config.special, torch.full((len(prompt),), -1), 0
    begins = (prompt.audio_ids == special.media_begin).nonzero().flatten().tolist()
    ends = (prompt.audio_ids == special.media_end).nonzero().flatten().tolist()
    assert len(begins) == len(ends) == len(prompt.audios)
    for begin, end, audio in zip(begins, ends, prompt.audios):
        assert end - begin - 1 == len(audio.features)
        expected[begin + 1 : end] = torch.arange(row, row + audio.num_tokens)
        row += audio.num_tokens
    assert torch.equal(prompt.feature_rows, expected)
    assert torch.equal(prompt.continuous_mask.bool(), expected >= 0)
    assert prompt.features() is None if row == 0 else prompt.features().shape[0] == row


def test_only_audio_messages_get_features(fixtures, builder, encoder):
    wav = str(fixtures / "wav" / "short50ms.wav")
    spoken = {"role": "assistant", "message_type": "audio-text", "content": [wav, "hi"]}
    prompt = make_prompt([sound(wav), spoken, text("more")], "both", builder, encoder)
    assert len(prompt.audios) == 1 and len(prompt.all_audios) == 2
    assert prompt.all_audios[1].features is None
    assert wants_features(parse_messages([sound(wav), spoken, text("more")])) == [True, False]


def test_recordings_in_memory(fixtures, builder, encoder):
    path = fixtures / "wav" / "short50ms.wav"
    samples = load_audio(path)
    kinds = [path, str(path), path.read_bytes(), (samples, 16000), {"array": samples, "sampling_rate": 16000}]
    prompts = [make_prompt([sound(kind)], "text", builder, encoder) for kind in kinds]
    for prompt in prompts:
        assert torch.equal(prompt.audio_ids, prompts[0].audio_ids)
        assert prompt.audios[0].content_hash == prompts[0].audios[0].content_hash


def test_length_is_known_before_encoding(fixtures, builder, encoder):
    messages = parse_messages([text("Compare:"), sound("wav/voice4s.wav"), sound("wav/short50ms.wav")], fixtures)
    recordings = load_recordings(messages)
    length = builder.check_length(messages, [len(samples) for samples in recordings], "both")
    assert length == len(builder.build(messages, encoder.encode(recordings), "both"))


def test_too_long_says_both_lengths_and_encodes_nothing(fixtures, builder):
    short = PromptBuilder(builder.tokenizer, replace(builder.config, max_positions=50))
    with pytest.raises(PromptTooLongError, match=r"the prompt has 58 positions, but the model's context has 50"):
        make_prompt([sound(fixtures / "wav" / "voice4s.wav")], "text", short, encoder=None)
    exact = PromptBuilder(builder.tokenizer, replace(builder.config, max_positions=58))
    assert exact.check_length(parse_messages([sound("x.wav")]), [66192], "text") == 58


def test_text_and_recording_must_belong_together(fixtures, builder, encoder):
    wav = str(fixtures / "wav" / "short50ms.wav")
    fits = {"role": "assistant", "message_type": "audio-text", "content": (wav, "1234567")}
    assert len(make_prompt([fits], "text", builder, encoder)) == 7 + 3
    long = {**fits, "content": [wav, "12345678"]}
    with pytest.raises(
        InputError, match=r"messages\[1\]\.content: the text has 8 ids.* 1 speech tokens has room for 7"
    ):
        make_prompt([text("a"), long], "text", builder, encoder)


@pytest.mark.parametrize("output_type", ["audio", "", None, "Text"])
def test_unknown_output_type(builder, encoder, output_type):
    with pytest.raises(InputError, match="output_type .*expected one of"):
        make_prompt([text("hi")], output_type, builder, encoder)


@pytest.mark.parametrize(
    "messages, error",
    [
        ([], "the list is empty"),
        ("hello", "expected a list of messages, got str"),
        (text("hello"), "expected a list of messages, got dict"),
        (None, "expected a list of messages, got NoneType"),
        (["hello"], r"messages\[0\]: expected a mapping"),
        (
            [text("a"), text("b", role="system")],
            r"messages\[1\]\.role: expected one of 'user', 'assistant'; got 'system'",
        ),
        ([text("a", role=None)], r"messages\[0\]\.role: .*got None"),
        ([{"message_type": "text", "content": "a"}], r"messages\[0\]\.role: .*it is missing"),
        ([{"role": "user", "content": "a"}], r"messages\[0\]\.message_type: .*'audio-text'; it is missing"),
        ([{**text("a"), "message_type": "video"}], r"messages\[0\]\.message_type: .*got 'video'"),
        ([{"role": "user", "message_type": "text"}], r"messages\[0\]: 'content' is missing"),
        ([text(b"bytes")], r"messages\[0\]\.content: expected a string, got bytes"),
        ([text(["a"])], r"messages\[0\]\.content: expected a string, got list"),
        (
            [{**text("a"), "message_type": "audio-text"}],
            r"messages\[0\]\.content: expected \[recording, text\], got 'a'",
        ),
        ([{**text(["a"]), "message_type": "audio-text"}], r"expected \[recording, text\]"),
        ([{**text(["a.wav", 5]), "message_type": "audio-text"}], r"messages\[0\]\.content\[1\]: expected a string"),
    ],
)
def test_malformed_messages(messages, error):
    with pytest.raises(InputError, match=error):
        parse_messages(messages)


@pytest.mark.parametrize("content", [None, 5, 1.5, True])
def test_content_that_cannot_be_a_recording(content):
    with pytest.raises(AudioError, match=r"messages\[0\]\.content: expected a recording"):
        parse_messages([sound(content)])


def test_text_passed_as_audio_names_the_message():
    messages = parse_messages([text("a"), sound("What is the capital of France?")])
    with pytest.raises(AudioError, match=r"messages\[1\]\.content: .*does not exist.*looks like text"):
        load_recordings(messages)


def test_relative_paths_start_at_the_given_folder(fixtures):
    messages = parse_messages([sound("wav/short50ms.wav")], fixtures)
    assert len(load_recordings(messages)[0]) == 800
