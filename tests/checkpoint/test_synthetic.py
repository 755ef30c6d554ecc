"""Synthetic checkpoints: complete, deterministic, read back as configured, sharded or not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from antiphon import checkpoint
from antiphon.checkpoint.official_files import write_byte_ranks
from antiphon.checkpoint.presets import PRESETS, nano
from antiphon.checkpoint.random_weights import anti_alias_taps
from antiphon.checkpoint.synthetic import main, write_checkpoint
from antiphon.errors import CheckpointError

LOADERS = (
    checkpoint.load_llm,
    checkpoint.load_whisper,
    checkpoint.load_speech_tokenizer,
    checkpoint.load_flow,
    checkpoint.load_vocoder,
)


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_configuration_survives_the_round_trip(nano_folder):
    assert checkpoint.load_model_config(nano_folder) == nano(nano_folder)


@pytest.mark.parametrize("preset", PRESETS)
def test_config_files_of_every_preset_are_read_back(preset, tmp_path):
    from antiphon.checkpoint.official_files import write_config_files

    write_config_files(PRESETS[preset](tmp_path), tmp_path)
    assert checkpoint.load_model_config(tmp_path) == PRESETS[preset](tmp_path)


def test_same_seed_same_bytes_other_seed_other_weights(nano_folder, tmp_path):
    config = checkpoint.load_model_config(nano_folder)
    again = write_checkpoint(nano(), tmp_path / "again", seed=7)
    other = write_checkpoint(nano(), tmp_path / "other", seed=8)
    for load in LOADERS:
        assert equal(load(config), load(again))
        assert not equal(load(config), load(other))


def test_sharded_equals_single(nano_folder, tmp_path):
    sharded = write_checkpoint(nano(), tmp_path / "sharded", seed=7, shard_bytes=50_000)
    assert len(list(sharded.path.glob("model-*.safetensors"))) > 5
    assert not (sharded.path / "model.safetensors").exists()
    single = checkpoint.load_model_config(nano_folder)
    assert equal(checkpoint.load_llm(single), checkpoint.load_llm(sharded))


def test_safetensors_library_reads_what_we_write(nano_folder):
    tensors = load_file(nano_folder / "model.safetensors")
    weights = checkpoint.load_llm(checkpoint.load_model_config(nano_folder))
    assert torch.equal(tensors["lm_head.weight"], weights["lm_head"])


def test_branches_of_unequal_depth(nano_folder):
    config = checkpoint.load_model_config(nano_folder)
    assert (config.llm.num_text_layers, config.llm.num_audio_layers) == (1, 2)
    weights = checkpoint.load_llm(config)
    official = load_file(nano_folder / "model.safetensors")
    assert weights["upper.0.down"].shape[0] == 2 and weights["upper.1.down"].shape[0] == 1
    assert torch.equal(weights["upper.1.down"][0], official["model.mimo_layers.1.mlp.down_proj.weight"])


@pytest.mark.parametrize(("text", "audio"), [(0, 1), (2, 1), (1, 0)])
def test_any_numbers_of_branch_layers(text, audio, tmp_path):
    small = nano()
    llm = replace(small.llm, num_layers=2 + text, num_audio_layers=audio)
    config = write_checkpoint(replace(small, llm=llm, flow=None, vocoder=None), tmp_path / "model")
    weights = checkpoint.load_llm(config)
    branches = [weights[f"upper.{j}.o_weight"].shape[0] for j in range(max(text, audio))]
    assert branches == [2 if j < min(text, audio) else 1 for j in range(max(text, audio))]


def test_without_detokenizer(tmp_path):
    config = write_checkpoint(replace(nano(), flow=None, vocoder=None), tmp_path / "model")
    assert checkpoint.load_model_config(config.path, load_detokenizer=False) == config
    with pytest.raises(CheckpointError, match="audio_detokenizer"):
        checkpoint.load_model_config(config.path)


def test_byte_ranks_are_distinct_and_reachable_by_merging(tmp_path):
    import base64

    write_byte_ranks(tmp_path / "tiktoken.model", 256 + 95 * 95 + 10)
    pairs = [line.split() for line in (tmp_path / "tiktoken.model").read_text().splitlines()]
    ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
    assert len(ranks) == len(pairs) == 256 + 95 * 95 + 10
    assert [ranks[bytes([value])] for value in range(256)] == list(range(256))
    assert all(len(token) == 1 or token[:-1] in ranks for token in ranks)


def test_tokenizer_is_copied_if_it_fits(tiny, tmp_path):
    with pytest.raises(CheckpointError, match="1024 ranks; the configuration needs 256"):
        write_checkpoint(nano(), tmp_path / "model", tokenizer_from=tiny)


def test_heads_are_loud_for_their_own_ids_only(nano_folder):
    config = checkpoint.load_model_config(nano_folder)
    weights = checkpoint.load_llm(config, torch.float32)
    num_base, offset = config.llm.special.msg_end - 2, config.llm.audio_token_offset
    text, audio = weights["lm_head"].norm(dim=1), weights["audio_head"].norm(dim=1)
    assert text[:num_base].min() > 0.5 and text[num_base:].max() < 0.2
    assert audio[offset:].min() > 0.5 and audio[:offset].max() < 0.2


def test_pieces_of_a_large_tensor_are_scaled_as_one(monkeypatch):
    from antiphon.checkpoint import random_weights

    rule = random_weights.Normal(0.0, 1.0, signs=True, quiet=(250, 420))
    monkeypatch.setattr(random_weights, "CHUNK", 100)
    pieces = list(random_weights.values(0, "part", "key", (5, 100), torch.float32, rule))
    assert [len(piece) for piece in pieces] == [100] * 5
    magnitudes = torch.cat(pieces).abs()
    assert torch.allclose(magnitudes[250:420], torch.tensor(0.1))
    assert magnitudes[:250].eq(1).all() and magnitudes[420:].eq(1).all()


def test_anti_alias_taps_are_the_golden_ones(golden):
    np.testing.assert_allclose(anti_alias_taps(), np.load(golden / "constants.npz")["aa_filter12"], atol=1e-7)


def test_command_line(tmp_path, capsys):
    assert main([str(tmp_path / "out"), "--preset", "nano", "--no-detokenizer", "--shard-gb", "0.0003"]) == 0
    assert "preset nano" in capsys.readouterr().out
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file()
    assert main([str(tmp_path / "out"), "--preset", "nano"]) == 2
    assert "not an empty folder" in capsys.readouterr().err


def test_yaml_is_plain(nano_folder):
    values = yaml.safe_load((nano_folder / "audio_detokenizer" / "config.yaml").read_text())
    assert values["model"]["dit"]["depth"] == 2
