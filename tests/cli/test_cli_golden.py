"""The recorded conversations of the reference, end to end through ``antiphon trace``."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

PROMPTS = ("audio_then_text", "user_parts", "empty_text")


@pytest.fixture(scope="module")
def recorded(golden):
    """e2e.json by prompt, and the arrays."""
    with np.load(golden / "e2e.npz") as file:
        arrays = dict(file)
    return {item["prompt"]: item for item in json.loads((golden / "e2e.json").read_text())}, arrays


def messages_file(golden: Path, name: str, folder: Path) -> Path:
    """The prompt as M.json in ``folder``, its recordings relative to it."""
    prompts = {prompt["name"]: prompt["messages"] for prompt in json.loads((golden / "prompts.json").read_text())}
    messages = prompts[name]
    for message in messages:
        if message["message_type"] == "audio":
            message["content"] = os.path.relpath(golden.parent / message["content"], folder)
    (folder / "m.json").write_text(json.dumps(messages))
    return folder / "m.json"


def noise_file(golden: Path, num_tokens: int, folder: Path) -> Path:
    """The pool, cut as the chunks of the reference consume it: 4 rows a token, and 48 carried ones after the first."""
    with np.load(golden / "noise.npz") as file:
        pool = file["pool"]
    chunks, row = {}, 0
    for start in range(0, num_tokens, 30):
        rows = 4 * min(30, num_tokens - start) + (48 if start else 0)
        chunks[f"noise_{len(chunks)}"] = pool[row : row + rows]
        row += rows
    np.savez(folder / "noise.npz", **chunks)
    return folder / "noise.npz"


@pytest.mark.parametrize("name", PROMPTS)
def test_speech_conversations(keep_models, run, tiny, golden, recorded, tmp_path, within_budget, name):
    expected, arrays = recorded[0][name], recorded[1]
    messages = messages_file(golden, name, tmp_path)
    noise = noise_file(golden, expected["audio_tokens"], tmp_path)
    out = tmp_path / "trace.npz"
    result = run(
        "trace", "--model", tiny, "--messages", messages, "--output-type", "both", "--dtype", "float32",
        "--noise", noise, "--out", out,
    )  # fmt: skip
    assert result.code == 0, result.err
    with np.load(out) as trace, np.load(golden / "prompts.npz") as prompts:
        assert str(trace["text"]) == expected["text"]
        np.testing.assert_array_equal(trace["audio_tokens"], arrays[f"{name}.audio_tokens"])
        np.testing.assert_array_equal(trace["audio_ids"], prompts[f"{name}.both.audio_ids"])
        np.testing.assert_array_equal(trace["text_ids"], prompts[f"{name}.both.text_ids"])
        np.testing.assert_array_equal(trace["continuous_mask"], prompts[f"{name}.both.is_continuous"])
        assert trace["mel"].shape == (4 * expected["audio_tokens"], 80) and trace["wav"].shape == (expected["samples"],)
        assert len(trace["text_stream"]) == len(trace["audio_stream"])
        within_budget(f"{name} wav", np.abs(trace["wav"] - arrays[f"{name}.wav"]).max(), 2e-4)


def test_text_conversation(keep_models, run, tiny, golden, tmp_path, within_budget):
    out = tmp_path / "trace.npz"
    messages = messages_file(golden, "audio_only", tmp_path)
    result = run(
        "trace", "--model", tiny, "--messages", messages, "--output-type", "text", "--dtype", "float32",
        "--max-new-tokens", 96, "--out", out,
    )  # fmt: skip
    assert result.code == 0, result.err
    with (
        np.load(out) as trace,
        np.load(golden / "llm_greedy.npz") as greedy,
        np.load(golden / "llm_prefill.npz") as prefill,
        np.load(golden / "recordings.npz") as recordings,
    ):
        np.testing.assert_array_equal(trace["text_stream"], greedy["run02.text_stream"])
        np.testing.assert_array_equal(trace["audio_stream"], greedy["run02.audio_stream"])
        np.testing.assert_array_equal(trace["text_tokens"], greedy["run02.final_text"])
        np.testing.assert_array_equal(trace["speech_codes_0"], recordings["qa_example.speech_tokens"])
        assert "wav" not in trace.files and "mel" not in trace.files
        for stream in ("text", "audio"):
            difference = trace[f"prefill_{stream}_logits"] - prefill[f"audio_only.{stream}_logits_last"]
            within_budget(f"prefill {stream} logits", np.abs(difference).max(), 3e-3)
        difference = trace["whisper_features_0"] - recordings["qa_example.whisper_feature"]
        within_budget("whisper features", np.abs(difference).max(), 1e-3)


def test_official_sampling_flags_reach_the_sampler(keep_models, run, tiny, golden, tmp_path):
    out = tmp_path / "trace.npz"
    result = run(
        "trace", "--model", tiny, "--messages", messages_file(golden, "multi_turn_text", tmp_path), "--output-type", "both",
        "--dtype", "float32", "--max-new-tokens", 160, "--text-repetition-penalty", 1.3, "--text-repetition-window-size", 5,
        "--audio-repetition-penalty", 1.5, "--audio-repetition-window-size", 10, "--out", out,
    )  # fmt: skip
    assert result.code == 0, result.err
    with np.load(out) as trace, np.load(golden / "llm_greedy.npz") as greedy:
        np.testing.assert_array_equal(trace["text_stream"], greedy["run25.text_stream"])
        np.testing.assert_array_equal(trace["audio_stream"], greedy["run25.audio_stream"])
        np.testing.assert_array_equal(trace["audio_tokens"], greedy["run25.final_audio"])


def test_noise_that_does_not_fit_is_refused(keep_models, run, tiny, golden, tmp_path):
    np.savez(tmp_path / "noise.npz", noise_0=np.zeros((5, 80), np.float32))
    out = tmp_path / "trace.npz"
    result = run(
        "trace", "--model", tiny, "--messages", messages_file(golden, "empty_text", tmp_path), "--output-type", "both",
        "--noise", tmp_path / "noise.npz", "--out", out,
    )  # fmt: skip
    assert result.code == 2 and "noise" in result.err and not out.exists()
