"""The same weights in every official spelling: names, extras, dtypes, config keys, hub names."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from antiphon import checkpoint
from antiphon.checkpoint import locate
from antiphon.errors import CheckpointError, ConfigError

GLM = "glm-4-voice-tokenizer/model.safetensors"


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def config_of(folder):
    return checkpoint.load_model_config(folder)


def test_bare_glm_names_equal_prefixed_ones(damaged):
    prefixed = checkpoint.load_speech_tokenizer(config_of(damaged))
    tensors = load_file(damaged / GLM)
    save_file({name.removeprefix("model.encoder."): tensor for name, tensor in tensors.items()}, damaged / GLM)
    assert equal(checkpoint.load_speech_tokenizer(config_of(damaged)), prefixed)


def test_glm_layers_after_the_quantiser_are_ignored(damaged):
    before = checkpoint.load_speech_tokenizer(config_of(damaged))
    tensors = load_file(damaged / GLM)
    late = {n.replace("layers.1.", "layers.2."): t.clone() for n, t in tensors.items() if "layers.1." in n}
    save_file(tensors | late, damaged / GLM)
    assert late and equal(checkpoint.load_speech_tokenizer(config_of(damaged)), before)


def test_both_namings_at_once_are_refused(damaged):
    tensors = load_file(damaged / GLM)
    save_file(tensors | {"conv1.bias": torch.zeros(32)}, damaged / GLM)
    with pytest.raises(CheckpointError, match=r"conv1\.bias"):
        checkpoint.load_speech_tokenizer(config_of(damaged))


def test_whisper_decoder_is_ignored(damaged):
    path = damaged / "whisper-large-v3" / "model.safetensors"
    before = checkpoint.load_whisper(config_of(damaged))
    extras = {"model.decoder.embed_tokens.weight": torch.zeros(9, 4), "proj_out.weight": torch.zeros(9, 4)}
    save_file(load_file(path) | extras, path)
    assert equal(checkpoint.load_whisper(config_of(damaged)), before)


def test_rotary_frequencies_are_ignored(damaged):
    path = damaged / "model.safetensors"
    before = checkpoint.load_llm(config_of(damaged))
    extras = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.zeros(8) for i in range(3)}
    save_file(load_file(path) | extras, path)
    assert equal(checkpoint.load_llm(config_of(damaged)), before)


def test_pt_in_float32_with_further_entries(damaged):
    config = config_of(damaged)
    before = checkpoint.load_flow(config), checkpoint.load_vocoder(config)
    for file in ("audio_detokenizer/model.pt", "vocoder/model.pt"):
        content = torch.load(damaged / file, weights_only=True)
        wide = {entry: {n: t.float() for n, t in tensors.items()} for entry, tensors in content.items()}
        torch.save({"epoch": 3, "optimizer": {"lr": 0.1}, "discriminator": {}, **wide}, damaged / file)
    after = checkpoint.load_flow(config), checkpoint.load_vocoder(config)
    assert equal(before[0], after[0]) and equal(before[1], after[1])


def test_pt_whose_tensors_share_a_storage_or_are_parameters(damaged):
    path = damaged / "vocoder" / "model.pt"
    before = checkpoint.load_vocoder(config_of(damaged))
    tensors = torch.load(path, weights_only=True)["generator"]
    alphas = [name for name in tensors if name.endswith("alpha") and tensors[name].numel() == 1]
    both = torch.stack([tensors["conv_pre.bias"], tensors["conv_pre.bias"]])
    tensors["conv_pre.bias"] = both[1]
    tensors |= {name: torch.nn.Parameter(tensors[name]) for name in alphas}
    torch.save({"generator": tensors}, path)
    assert equal(checkpoint.load_vocoder(config_of(damaged)), before)


def test_vocoder_without_the_final_keys_has_bias_and_tanh(damaged):
    path, weights = damaged / "vocoder" / "config.json", damaged / "vocoder" / "model.pt"
    values = json.loads(path.read_text())
    del values["use_tanh_at_final"], values["use_bias_at_final"]
    path.write_text(json.dumps(values))
    config = config_of(damaged)
    assert config.vocoder.use_tanh_at_final and config.vocoder.use_bias_at_final
    with pytest.raises(CheckpointError, match=r"missing keys: conv_post\.bias"):
        checkpoint.load_vocoder(config)
    tensors = torch.load(weights, weights_only=True)
    tensors["generator"]["conv_post.bias"] = torch.full((1,), 0.5)
    torch.save(tensors, weights)
    assert checkpoint.load_vocoder(config)["conv_post.bias"].item() == 0.5


def test_snake_without_logscale(damaged):
    path = damaged / "vocoder" / "config.json"
    log = checkpoint.load_vocoder(config_of(damaged))
    path.write_text(path.read_text().replace('"snake_logscale": true', '"snake_logscale": false'))
    plain = checkpoint.load_vocoder(config_of(damaged))
    torch.testing.assert_close(plain["activation_post.act.alpha"].exp(), log["activation_post.act.alpha"])


def test_speech_tokenizer_elsewhere(damaged, tmp_path):
    elsewhere = (damaged / "glm-4-voice-tokenizer").rename(tmp_path / "glm")
    config = checkpoint.load_model_config(damaged, speech_tokenizer=elsewhere)
    assert config.speech_tokenizer_path == elsewhere
    assert checkpoint.load_speech_tokenizer(config)["codebook"].shape == (64, 32)


def test_hub_names_are_fetched_on_use(nano_folder, monkeypatch):
    asked = []

    def snapshot_download(name):
        asked.append(name)
        return str(nano_folder if "kimi" in name else nano_folder / "glm-4-voice-tokenizer")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    config = checkpoint.load_model_config("someone/kimi-audio", speech_tokenizer="THUDM/glm-4-voice-tokenizer")
    assert asked == ["someone/kimi-audio", "THUDM/glm-4-voice-tokenizer"]
    assert config.path == nano_folder


def test_speech_tokenizer_falls_back_to_its_hub_name(damaged, tmp_path, monkeypatch):
    elsewhere = (damaged / "glm-4-voice-tokenizer").rename(tmp_path / "glm")
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name: {locate.SPEECH_TOKENIZER_HUB_NAME: elsewhere}[name]
    )
    assert checkpoint.load_model_config(damaged).speech_tokenizer_path == elsewhere


def test_hub_out_of_reach(monkeypatch):
    def snapshot_download(name):
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(CheckpointError, match="could not be fetched from the hub .*no route to host"):
        checkpoint.load_model_config("someone/kimi-audio")


@pytest.mark.parametrize("path", ["/nowhere/at/all", "nowhere", "./a/b", "a/b/c"])
def test_no_such_folder(path):
    with pytest.raises(CheckpointError, match="there is no folder"):
        checkpoint.load_model_config(path)


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "model").write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        checkpoint.load_model_config(tmp_path / "model")


def test_empty_folder_names_the_missing_file(tmp_path):
    (tmp_path / "glm-4-voice-tokenizer").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.\w+ is missing"):
        checkpoint.load_model_config(tmp_path)


def test_speech_parts_need_a_detokenizer(nano_folder):
    config = checkpoint.load_model_config(nano_folder, load_detokenizer=False)
    for load in (checkpoint.load_flow, checkpoint.load_vocoder):
        with pytest.raises(ConfigError, match="load_detokenizer=True"):
            load(config)


def test_nothing_of_the_hub_is_imported_with_the_package():
    code = "import sys, antiphon.checkpoint; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
