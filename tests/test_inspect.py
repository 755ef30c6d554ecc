"""The model card: numbers from headers equal those of the loaded weights."""

from __future__ import annotations

import pytest
import torch

from antiphon import checkpoint
from antiphon.checkpoint.presets import kimi_audio_7b
from antiphon.errors import CheckpointError
from antiphon.inspect import kv_bytes_per_token, model_card


def test_memory_is_that_of_the_loaded_weights(tiny):
    config = checkpoint.load_model_config(tiny)
    card = model_card(tiny, dtype=torch.float32)
    loaders = (checkpoint.load_llm, checkpoint.load_whisper, checkpoint.load_speech_tokenizer)
    loaders += (checkpoint.load_flow, checkpoint.load_vocoder)
    for part, load in zip(card.parts, loaders):
        assert part.num_bytes == sum(w.numel() * w.element_size() for w in load(config, torch.float32).values())
    assert card.num_bytes == sum(part.num_bytes for part in card.parts)


def test_stored_numbers(tiny):
    llm, whisper, glm, flow, vocoder = model_card(tiny).parts
    assert llm.stored == {"bfloat16": 2 * llm.num_parameters} and llm.num_tensors == 83
    assert whisper.stored == {"float16": 2 * whisper.num_parameters}
    assert glm.stored == {"float32": 4 * glm.num_parameters} and glm.dtype == "float32" and glm.num_extras == 33
    assert flow.stored == {"float32": 4 * flow.num_parameters} and flow.num_extras == 1
    assert set(vocoder.stored) == {"float16", "float32"} and vocoder.num_tensors == 1206
    assert llm.files == (tiny / "model.safetensors",)


def test_no_weight_is_read(tiny, monkeypatch):
    monkeypatch.setattr("antiphon.checkpoint.stored.StoredTensor.read", None)
    assert model_card(tiny).num_parameters > 5e6


def test_text(tiny):
    text = str(model_card(tiny))
    assert "layers 2 trunk + 2 text + 2 audio, heads 4 / 2 of 64, vocabulary 1957 (512 audio)" in text
    for part in ("language model", "Whisper encoder", "speech tokenizer", "flow matching", "vocoder", "total"):
        assert f"\n{part}" in text
    assert "trunk 1,024, text branch 1,024, audio branch 1,024" in text


def test_model_without_detokenizer(tmp_path, tiny):
    import shutil

    for name in ("config.json", "model.safetensors", "whisper-large-v3", "glm-4-voice-tokenizer"):
        copy = shutil.copytree if (tiny / name).is_dir() else shutil.copyfile
        copy(tiny / name, tmp_path / name)
    card = model_card(tmp_path)
    assert len(card.parts) == 3 and "no detokenizer: text output only" in str(card)


def test_damaged_model_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="missing"):
        model_card(tmp_path, speech_tokenizer=tmp_path)


def test_cache_of_the_released_model():
    sizes = kv_bytes_per_token(kimi_audio_7b().llm, torch.bfloat16)
    assert sizes == {"trunk": 22 * 2048, "text branch": 6 * 2048, "audio branch": 6 * 2048}
