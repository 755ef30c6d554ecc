"""Damaged, incomplete and hostile checkpoints: each a CheckpointError that names file and key."""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from antiphon import checkpoint
from antiphon.checkpoint.presets import nano
from antiphon.checkpoint.safetensors_files import read_file
from antiphon.checkpoint.synthetic import write_checkpoint
from antiphon.errors import CheckpointError, ConfigError

LLM = "model.safetensors"
WHISPER = "whisper-large-v3/model.safetensors"
GLM = "glm-4-voice-tokenizer/model.safetensors"
FLOW = "audio_detokenizer/model.pt"
VOCODER = "vocoder/model.pt"
PARTS = {
    LLM: (checkpoint.load_llm, "model.norm.weight"),
    WHISPER: (checkpoint.load_whisper, "model.encoder.layer_norm.bias"),
    GLM: (checkpoint.load_speech_tokenizer, "model.encoder.codebook.weight"),
    FLOW: (checkpoint.load_flow, "speech_model.input_linear.bias"),
    VOCODER: (checkpoint.load_vocoder, "conv_pre.weight_g"),
}


def load(folder: Path, file: str) -> dict[str, torch.Tensor]:
    return PARTS[file][0](checkpoint.load_model_config(folder), torch.float32)


def edit(path: Path, change) -> None:
    """Apply ``change`` to the mapping of tensors in a safetensors or .pt file and write it back."""
    if path.suffix == ".safetensors":
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)
    else:
        content = torch.load(path, weights_only=True)
        change(next(iter(content.values())))
        torch.save(content, path)


def refused(folder: Path, file: str, *words: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(folder, file)
    message = str(caught.value)
    assert str(folder / file) in message
    for word in words:
        assert word in message
    return message


@pytest.mark.parametrize("file", PARTS)
def test_missing_file(damaged, file):
    (damaged / file).unlink()
    refused(damaged, file, "is missing")


@pytest.mark.parametrize("file", PARTS)
def test_missing_key(damaged, file):
    key = PARTS[file][1]
    edit(damaged / file, lambda tensors: tensors.pop(key))
    refused(damaged, file, "missing keys", key.removeprefix("model.encoder.").removeprefix("speech_model."))


@pytest.mark.parametrize("file", PARTS)
def test_unexpected_key(damaged, file):
    key = "speech_model.stowaway.weight" if file == FLOW else "stowaway.weight"
    edit(damaged / file, lambda tensors: tensors.update({key: torch.zeros(3)}))
    refused(damaged, file, "unexpected keys", key)


@pytest.mark.parametrize("file", PARTS)
def test_wrong_shape(damaged, file):
    key = PARTS[file][1]
    edit(damaged / file, lambda tensors: tensors.update({key: torch.zeros(3, 2)}))
    refused(damaged, file, "wrong shapes", f"{key} is [3, 2], expected")


@pytest.mark.parametrize("file", PARTS)
def test_integers_are_no_weights(damaged, file):
    key = PARTS[file][1]
    edit(damaged / file, lambda tensors: tensors.update({key: tensors[key].to(torch.int32)}))
    refused(damaged, file, "wrong kinds", f"{key} is int32")


def test_long_lists_are_cut(damaged):
    edit(damaged / LLM, lambda tensors: [tensors.pop(key) for key in list(tensors) if "q_proj" in key])
    assert "and 5 more" in refused(damaged, LLM, "missing keys")


@pytest.mark.parametrize("file", PARTS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_anywhere(damaged, nano_folder, file, share):
    content = (nano_folder / file).read_bytes()
    (damaged / file).write_bytes(content[: int(share * len(content))])
    message = refused(damaged, file)
    assert any(word in message for word in ("fetch it again", "complete", "truncated"))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 3000), value=st.integers(0, 255))
def test_any_byte_of_a_header_may_be_wrong(damaged, nano_folder, position, value):
    content = bytearray((nano_folder / LLM).read_bytes())
    changed = content[position] != value
    content[position] = value
    (damaged / LLM).write_bytes(content)
    try:
        weights = load(damaged, LLM)
    except CheckpointError as error:
        assert changed and str(damaged / LLM) in str(error)
    else:
        assert weights["embed"].shape == (741, 64)


@pytest.mark.parametrize("file", [FLOW, VOCODER])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 6000), value=st.integers(0, 255))
def test_any_byte_of_a_pickle_may_be_wrong(damaged, nano_folder, file, position, value):
    content = bytearray((nano_folder / file).read_bytes())
    content[position] = value
    (damaged / file).write_bytes(content)
    try:
        weights = load(damaged, file)
    except CheckpointError as error:
        assert str(damaged / file) in str(error)
    else:
        assert all(weight.dtype == torch.float32 for weight in weights.values())


def test_a_number_beyond_all_bounds(damaged, nano_folder):
    """As long as the number that it replaces, so that nothing moves."""
    content = (nano_folder / LLM).read_bytes()
    first = re.search(rb'"data_offsets":\s*\[\d+,\s*(\d{5,})', content)
    (damaged / LLM).write_bytes(content[: first.start(1)] + b"9e999".ljust(len(first[1])) + content[first.end(1) :])
    refused(damaged, LLM, "the header entry of", "is malformed")


def test_a_wrong_storage_key(damaged, nano_folder):
    """torch itself only asserts that the first storage is called 0."""
    content = bytearray((nano_folder / VOCODER).read_bytes())
    content[content.index(b"X\x01\x00\x00\x000") + 5] = 0
    (damaged / VOCODER).write_bytes(content)
    refused(damaged, VOCODER, "cannot be read", "fetch it again")


@pytest.mark.parametrize("back", range(1, 50, 4))
@pytest.mark.parametrize("value", [0, 255])
def test_damaged_zip_directory(damaged, nano_folder, back, value):
    content = bytearray((nano_folder / FLOW).read_bytes())
    start = content.rfind(b"PK\x01\x02")
    content[start + back] = value
    (damaged / FLOW).write_bytes(content)
    try:
        weights = load(damaged, FLOW)
    except CheckpointError as error:
        assert str(damaged / FLOW) in str(error)
    else:
        assert weights["input_linear.bias"].shape == (32,)


@pytest.mark.parametrize("length", [0, 1, 2**40, 2**63])
def test_absurd_header_length(tmp_path, length):
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", length) + b"{}" * 50)
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        read_file(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, "does not fit its shape"),
        ({"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}, "does not fit its shape"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}, "does not fit its shape"),
        ({"dtype": "F4", "shape": [2], "data_offsets": [0, 8]}, "has dtype F4"),
        ({"dtype": "F32", "shape": [2]}, "malformed"),
        ("nonsense", "malformed"),
    ],
)
def test_malformed_header_entry(tmp_path, entry, reason):
    header = json.dumps({"x": entry}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(CheckpointError, match=reason):
        read_file(tmp_path / "a.safetensors")


@pytest.fixture
def sharded(tmp_path) -> Path:
    return write_checkpoint(nano(), tmp_path / "sharded", shard_bytes=100_000).path


def test_missing_shard(sharded):
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"{re.escape(str(shard))} is missing, but .*index.json names it"):
        load(sharded, LLM)


def test_shard_lacks_what_the_index_says(sharded):
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    shards = sorted(set(index["weight_map"].values()))
    index["weight_map"]["lm_head.weight"] = shards[0]
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=f"{shards[0]} lacks .*lm_head.weight"):
        load(sharded, LLM)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../b.safetensors"}}'])
def test_malformed_index(sharded, text):
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        load(sharded, LLM)


class Evil:
    """Would create a file when unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("file", [FLOW, VOCODER])
def test_pickle_that_is_not_weights_is_refused_unrun(damaged, file, tmp_path):
    mark = tmp_path / "executed"
    torch.save({"state_dict": Evil(mark), "generator": Evil(mark)}, damaged / file)
    refused(damaged, file, "objects other than weights")
    assert not mark.exists()


@pytest.mark.parametrize("file", [FLOW, VOCODER])
def test_bare_pickle_is_refused_unrun(damaged, file, tmp_path):
    mark = tmp_path / "executed"
    (damaged / file).write_bytes(pickle.dumps({"generator": Evil(mark)}))
    refused(damaged, file, "not a complete torch zip file")
    assert not mark.exists()


@pytest.mark.parametrize("content", [{"other": {}}, [1, 2], {"state_dict": 3, "generator": None}])
def test_pt_without_the_entry(damaged, content):
    torch.save(content, damaged / VOCODER)
    refused(damaged, VOCODER, "'generator'")


def test_value_that_is_no_tensor(damaged):
    edit(damaged / VOCODER, lambda tensors: tensors.update({"conv_pre.bias": 3}))
    refused(damaged, VOCODER, "conv_pre.bias is a int, expected a tensor")


def test_weight_norm_of_zero(damaged):
    edit(damaged / VOCODER, lambda tensors: tensors["ups.1.0.weight_v"][3].zero_())
    with pytest.raises(CheckpointError, match=r"ups\.1\.0\.weight_v has a row of zeros"):
        load(damaged, VOCODER)


def test_parts_of_different_models(damaged):
    path = damaged / "whisper-large-v3" / "config.json"
    path.write_text(path.read_text().replace('"d_model": 32', '"d_model": 64'))
    with pytest.raises(ConfigError, match="Whisper d_model and kimia_adaptor_input_dim"):
        checkpoint.load_model_config(damaged)
