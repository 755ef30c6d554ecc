"""Loading the toy and the demo checkpoint: packed tensors equal the stored ones, part by part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from antiphon import checkpoint

F32 = torch.float32


@pytest.fixture(scope="module", params=["tiny", "demo"])
def folder(request, shared) -> Path:
    return shared / "fixtures" / request.param


@pytest.fixture(scope="module")
def config(folder):
    return checkpoint.load_model_config(folder)


def test_llm_rows_are_the_official_matrices(folder, config):
    official = load_file(folder / "model.safetensors")
    weights = checkpoint.load_llm(config, F32)
    c = config.llm
    layers = [(f"trunk.{i}", 0, f"model.layers.{i}") for i in range(c.num_trunk_layers)]
    layers += [(f"upper.{j}", 0, f"model.layers.{c.num_trunk_layers + j}") for j in range(c.num_text_layers)]
    layers += [(f"upper.{j}", 1, f"model.mimo_layers.{j}") for j in range(c.num_audio_layers)]
    for packed, branch, name in layers:
        qkv = torch.cat([official[f"{name}.self_attn.{p}_proj.weight"] for p in "qkv"])
        bias = torch.cat([official[f"{name}.self_attn.{p}_proj.bias"] for p in "qkv"])
        gate_up = torch.cat([official[f"{name}.mlp.{p}_proj.weight"] for p in ("gate", "up")])
        assert torch.equal(weights[f"{packed}.qkv_weight"][branch], qkv.float())
        assert torch.equal(weights[f"{packed}.qkv_bias"][branch], bias.float())
        assert torch.equal(weights[f"{packed}.gate_up"][branch], gate_up.float())
        assert torch.equal(weights[f"{packed}.down"][branch], official[f"{name}.mlp.down_proj.weight"].float())
        assert torch.equal(weights[f"{packed}.o_weight"][branch], official[f"{name}.self_attn.o_proj.weight"].float())
    norms = torch.stack([official["model.norm.weight"], official["model.mimo_norm.weight"]])
    assert torch.equal(weights["final_norm"], norms.float())
    assert torch.equal(weights["audio_head"], official["mimo_output.weight"].float())
    assert sum(w.numel() for w in weights.values()) == sum(w.numel() for w in official.values())


def test_whisper_bias_of_k_is_zero(folder, config):
    official = load_file(folder / "whisper-large-v3" / "model.safetensors")
    weights = checkpoint.load_whisper(config, F32)
    d = config.whisper.d_model
    for i in range(config.whisper.num_layers):
        bias = weights[f"layers.{i}.qkv.bias"]
        name = f"model.encoder.layers.{i}"
        assert torch.equal(bias[:d], official[f"{name}.self_attn.q_proj.bias"].float())
        assert not bias[d : 2 * d].any()
        assert torch.equal(bias[2 * d :], official[f"{name}.self_attn.v_proj.bias"].float())
        assert torch.equal(
            weights[f"layers.{i}.attn_norm.weight"], official[f"{name}.self_attn_layer_norm.weight"].float()
        )
        assert torch.equal(weights[f"layers.{i}.mlp_norm.weight"], official[f"{name}.final_layer_norm.weight"].float())
    assert torch.equal(weights["final_norm.bias"], official["model.encoder.layer_norm.bias"].float())


def test_speech_tokenizer_has_only_layers_that_count(folder, config):
    official = load_file(folder / "glm-4-voice-tokenizer" / "model.safetensors")
    weights = checkpoint.load_speech_tokenizer(config)
    assert weights["codebook"].dtype == F32
    assert torch.equal(weights["codebook"], official["model.encoder.codebook.weight"].float())
    layers = {int(name.split(".")[1]) for name in weights if name.startswith("layers.")}
    assert layers == set(range(config.speech_tokenizer.encoder.num_layers))


def test_flow_keeps_official_names(folder, config):
    official = torch.load(folder / "audio_detokenizer" / "model.pt", weights_only=True)["state_dict"]
    weights = checkpoint.load_flow(config, F32)
    assert {f"speech_model.{name}" for name in weights} == {name for name in official if "speech_model." in name}
    for name, weight in weights.items():
        assert torch.equal(weight, official[f"speech_model.{name}"].float())


def test_vocoder_activation_and_fold(folder, config):
    official = torch.load(folder / "vocoder" / "model.pt", weights_only=True)["generator"]
    weights = checkpoint.load_vocoder(config, F32)
    name = "ups.2.0"
    v, g = official[f"{name}.weight_v"].double(), official[f"{name}.weight_g"].double()
    folded = v * g / v.flatten(1).norm(dim=1)[:, None, None]
    torch.testing.assert_close(weights[f"{name}.weight"].double(), folded, rtol=1e-6, atol=1e-7)
    act = "resblocks.1.activations.2"
    assert torch.equal(weights[f"{act}.act.alpha"], official[f"{act}.act.alpha"].exp())
    assert torch.equal(weights[f"{act}.act.inv_beta"], 1 / (official[f"{act}.act.beta"].exp() + 1e-9))
    assert weights[f"{act}.upsample.filter"].shape == weights[f"{act}.downsample.lowpass.filter"].shape == (12,)
    assert not any(name.endswith(("weight_g", "weight_v", "beta")) and "inv_" not in name for name in weights)


def test_vocoder_fold_is_the_golden_one(tiny, golden):
    weights = checkpoint.load_vocoder(checkpoint.load_model_config(tiny), F32)
    arrays = np.load(golden / "vocoder.npz")
    np.testing.assert_allclose(weights["conv_pre.weight"][:4], arrays["folded_conv_pre"], atol=1e-6)
    np.testing.assert_allclose(weights["ups.6.0.weight"], arrays["folded_ups_6_0"], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, F32])
def test_dtype_is_the_one_asked_for(tiny, dtype):
    config = checkpoint.load_model_config(tiny)
    for load in (checkpoint.load_llm, checkpoint.load_whisper, checkpoint.load_speech_tokenizer, checkpoint.load_flow):
        assert {w.dtype for w in load(config, dtype).values()} == {dtype}
    vocoder = checkpoint.load_vocoder(config, dtype)
    assert {w.dtype for n, w in vocoder.items() if n.endswith(("weight", "bias"))} == {dtype}
    assert {w.dtype for n, w in vocoder.items() if n.endswith(("alpha", "beta", "filter"))} == {F32}


def test_meta_device_has_the_same_shapes_and_reads_nothing(config, monkeypatch):
    loaders = (checkpoint.load_llm, checkpoint.load_whisper, checkpoint.load_speech_tokenizer)
    loaders += (checkpoint.load_flow, checkpoint.load_vocoder)
    real = [{n: (w.shape, w.dtype) for n, w in load(config, F32).items()} for load in loaders]
    monkeypatch.setattr("antiphon.checkpoint.stored.StoredTensor.read", None)
    for load, expected in zip(loaders, real):
        meta = load(config, F32, "meta")
        assert {n: (w.shape, w.dtype) for n, w in meta.items()} == expected
        assert all(w.is_meta for w in meta.values())
