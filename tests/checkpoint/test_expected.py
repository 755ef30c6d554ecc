"""The table of official keys: against the toy checkpoints' files, and at full size on the meta device."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors import safe_open

from antiphon.checkpoint import expected, load_model_config, packing
from antiphon.checkpoint.locate import check_fit
from antiphon.checkpoint.presets import PRESETS, kimi_audio_7b

META = torch.device("meta")


def count(shapes) -> int:
    return sum(map(math.prod, shapes.values()))


def packed(pack, shapes, *arguments, dtype=torch.bfloat16) -> dict[str, torch.Tensor]:
    def read(key):
        raise AssertionError(f"{key} was read on the meta device")

    return dict(pack(packing.Packer(shapes, read, dtype, META), *arguments))


@pytest.mark.parametrize("name", ["tiny", "demo"])
def test_llm_table_is_what_the_file_holds(shared, name):
    folder = shared / "fixtures" / name
    with safe_open(folder / "model.safetensors", "pt") as file:
        stored = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    assert expected.llm_keys(load_model_config(folder).llm) == stored


@pytest.mark.parametrize("name", ["tiny", "demo"])
def test_vocoder_table_is_what_the_file_holds(shared, name):
    folder = shared / "fixtures" / name
    stored = torch.load(folder / "vocoder" / "model.pt", weights_only=True)["generator"]
    table = expected.vocoder_keys(load_model_config(folder).vocoder)
    assert table == {key: tuple(tensor.shape) for key, tensor in stored.items()}


def test_full_size_llm_has_the_released_parameter_count():
    c = kimi_audio_7b().llm
    shapes = expected.llm_keys(c)
    layer = sum(math.prod(shape) for key, shape in shapes.items() if key.startswith("model.layers.3."))
    assert round(layer / 1e6) == 233
    assert count(shapes) == 9_766_334_464
    assert len(shapes) == 34 * 12 + 11


def test_full_size_vocoder_is_the_public_file():
    shapes = expected.vocoder_keys(kimi_audio_7b().vocoder)
    assert len(shapes) == 1206
    assert round(4 * count(shapes) / 1e6) == 964


def test_full_size_llm_packs_on_the_meta_device():
    c = kimi_audio_7b().llm
    shapes = expected.llm_keys(c)
    weights = packed(packing.pack_llm, shapes, c)
    assert sum(w.numel() for w in weights.values()) == count(shapes)
    assert weights["embed"].shape == weights["lm_head"].shape == weights["audio_head"].shape == (168448, 3584)
    assert weights["trunk.21.qkv_weight"].shape == (1, 4608, 3584)
    assert weights["trunk.0.gate_up"].shape == (1, 37888, 3584)
    assert weights["upper.5.down"].shape == (2, 3584, 18944)
    assert weights["upper.0.qkv_bias"].shape == (2, 4608)
    assert weights["final_norm"].shape == (2, 3584)
    assert "trunk.22.qkv_weight" not in weights and "upper.6.qkv_weight" not in weights
    assert weights["adaptor.0.weight"].shape == (3584, 5120)


def test_full_size_speech_parts_pack_on_the_meta_device():
    c = kimi_audio_7b()
    whisper = packed(packing.pack_encoder, expected.whisper_keys(c.whisper), c.whisper)
    assert whisper["layers.31.qkv.weight"].shape == (3840, 1280)
    assert whisper["positions"].shape == (1500, 1280)
    glm_shapes = expected.speech_tokenizer_keys(c.speech_tokenizer)
    glm = packed(packing.pack_encoder, glm_shapes, c.speech_tokenizer.encoder)
    assert "layers.15.fc2.bias" in glm and "layers.16.fc2.bias" not in glm
    assert glm_shapes["codebook.weight"] == (16384, 1280)
    flow = packed(packing.pack_plain, expected.flow_keys(c.flow))
    assert flow["blocks.15.adaLN_modulation.1.weight"].shape == (13824, 2304)
    assert flow["semantic_token_embedding.weight"].shape == (16385, 2304)
    vocoder = packed(packing.pack_vocoder, expected.vocoder_keys(c.vocoder), c.vocoder)
    assert vocoder["conv_pre.weight"].shape == (2048, 80, 7)
    assert vocoder["ups.6.0.weight"].shape == (32, 16, 4)
    assert vocoder["resblocks.27.convs1.2.weight"].shape == (16, 16, 11)
    assert "conv_post.bias" not in vocoder


@pytest.mark.parametrize("name", PRESETS)
def test_presets_fit_together(name, tmp_path):
    config = PRESETS[name](tmp_path)
    check_fit(config)
    special = config.llm.special
    assert special.msg_end - 2 + 421 == config.llm.audio_token_offset
    assert config.speech_tokenizer_path.parent == config.path == tmp_path


def test_released_special_tokens():
    special = kimi_audio_7b().llm.special
    assert (special.media_begin, special.media_end, special.text_blank, special.text_eos) == (
        151661,
        151663,
        151666,
        151667,
    )
    assert (special.msg_end, special.user_start, special.assistant_start) == (151645, 151670, 151671)


@pytest.mark.parametrize(("name", "billions"), [("0.5b", 0.5), ("1b", 1.05)])
def test_benchmark_presets_have_the_size_in_their_name(name, billions, tmp_path):
    assert count(expected.llm_keys(PRESETS[name](tmp_path).llm)) == pytest.approx(billions * 1e9, rel=0.01)
