"""KimiAudio: golden conversations end to end, several generations at once, abandoned ones, wrong use."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from antiphon import AudioDelta, FinishDelta, KimiAudio, TextDelta
from antiphon.checkpoint.presets import nano
from antiphon.checkpoint.synthetic import write_checkpoint
from antiphon.errors import ConfigError, InputError, PromptTooLongError


@pytest.fixture(scope="module")
def model(tiny):
    return KimiAudio(tiny, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def conversation(golden):
    found = {p["name"]: p["messages"] for p in json.loads((golden / "prompts.json").read_text())}
    messages = found["audio_then_text"]
    return [
        {**m, "content": str(golden.parent / m["content"])} if m["message_type"] == "audio" else m for m in messages
    ]


def pool_noise(golden, tokens):
    """The golden noise, chunk by chunk."""
    pool = np.load(golden / "noise.npz")["pool"]
    row = 0
    for first in range(0, tokens, 30):
        rows = 4 * min(30, tokens - first) + (48 if first else 0)
        yield pool[row : row + rows]
        row += rows


def test_golden_conversation(model, conversation, golden):
    want = next(e for e in json.loads((golden / "e2e.json").read_text()) if e["prompt"] == "audio_then_text")
    arrays = np.load(golden / "e2e.npz")
    noise = pool_noise(golden, want["audio_tokens"])
    wav, text = model.generate(conversation, output_type="both", noise=noise)
    assert text == want["text"]
    assert wav.shape == (1, want["samples"]) and wav.dtype.is_floating_point
    error = np.abs(wav[0].numpy() - arrays["audio_then_text.wav"]).max()
    print(f"wav: {error / 2e-4:.4f} of the error budget")
    assert error <= 2e-4


def test_text_output_has_no_wav(model, conversation):
    wav, text = model.generate(conversation, output_type="text", max_new_tokens=8)
    assert wav is None and text


def test_same_seed_same_samples(model, conversation):
    options = {"output_type": "both", "audio_temperature": 0.9, "text_temperature": 0.7, "max_new_tokens": 30}
    first, again, other = (model.generate(conversation, **options, seed=seed) for seed in (5, 5, 6))
    assert first[1] == again[1] and np.array_equal(first[0], again[0])
    assert not np.array_equal(first[0], other[0])


def test_interleaved_generations_are_independent(model, conversation):
    options = {"output_type": "text", "max_new_tokens": 12}
    alone = [d for d in model.generate_stream(conversation, **options) if isinstance(d, TextDelta)]
    one, two = (model.generate_stream(conversation, **options) for _ in range(2))
    mixed = [d for pair in zip(one, two, strict=True) for d in pair]
    assert [d for d in mixed[::2] if isinstance(d, TextDelta)] == alone
    assert [d for d in mixed[1::2] if isinstance(d, TextDelta)] == alone
    assert isinstance(mixed[-1], FinishDelta) and not model.engine.live


def test_an_abandoned_generation_holds_nothing(model, conversation):
    stream = model.generate_stream(conversation, output_type="both")
    assert isinstance(next(stream), TextDelta)
    assert len(model.engine.live) == 1
    stream.close()
    assert not model.engine.live
    model.engine.check()
    assert model.generate(conversation, max_new_tokens=3)[1]


def test_stream_and_call_agree(model, conversation):
    options = {"output_type": "both", "seed": 1, "max_new_tokens": 40}
    deltas = list(model.generate_stream(conversation, **options))
    wav, text = model.generate(conversation, **options)
    assert "".join(d.text for d in deltas if isinstance(d, TextDelta)) == text
    sound = np.concatenate([d.pcm for d in deltas if isinstance(d, AudioDelta)])
    assert np.array_equal(sound, wav[0].numpy())
    usage = deltas[-1].usage
    assert len(sound) == 1920 * usage.audio_tokens and usage.steps <= 40


def test_text_only_prompt_speaks_too(model):
    wav, _ = model.generate([{"role": "user", "message_type": "text", "content": "hello"}], "both", max_new_tokens=20)
    assert wav.shape[0] == 1


def test_nothing_audible_is_an_empty_wav(model):
    messages = [{"role": "user", "message_type": "text", "content": "hello"}]
    wav, _ = model.generate(messages, "both", max_new_tokens=3)  # shorter than the audio delay
    assert wav.shape == (1, 0)


def test_more_than_4096_tokens_are_returned(tmp_path):
    """The official history ends at 4096 entries; ours does not. (The synthetic model hardly ever ends a text.)"""
    config = nano()
    llm = replace(config.llm, num_trunk_layers=1, num_layers=2, num_audio_layers=1)
    write_checkpoint(replace(config, llm=llm, flow=None, vocoder=None), tmp_path / "nano")
    model = KimiAudio(tmp_path / "nano", load_detokenizer=False, device="cpu", dtype="float32")
    deltas = list(
        model.generate_stream([{"role": "user", "message_type": "text", "content": "go"}], max_new_tokens=4200)
    )
    assert deltas[-1].usage.steps == deltas[-1].usage.text_tokens == 4200
    assert deltas[-1].reason == "length"


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"output_type": "speech"}, InputError, "'text', 'both'"),
        ({"text_temperature": -1.0}, InputError, "text_temperature"),
        ({"audio_top_k": -1}, InputError, "audio_top_k"),
        ({"max_new_tokens": 0}, InputError, "max_new_tokens"),
        ({"seed": -3}, InputError, "seed"),
    ],
)
def test_wrong_options_are_named_at_the_call(model, conversation, options, error, words):
    with pytest.raises(error, match=words):
        model.generate_stream(conversation, **options)


def test_prompt_longer_than_the_context_says_both_lengths(model):
    with pytest.raises(PromptTooLongError, match=r"\d{4,} positions.* 8192"):
        model.generate([{"role": "user", "message_type": "text", "content": "7 " * 9000}])


def test_speech_needs_the_detokenizer(tiny, conversation):
    silent = KimiAudio(tiny, load_detokenizer=False, device="cpu", dtype="float32")
    with pytest.raises(ConfigError, match="load_detokenizer"):
        silent.generate(conversation, output_type="both")
    assert silent.generate(conversation, max_new_tokens=3)[1]
