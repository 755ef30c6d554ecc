"""Converted checkpoints: what is written, what is loaded, and every way in which they can be wrong."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from antiphon import checkpoint
from antiphon.checkpoint.mapped_file import MappedFile
from antiphon.checkpoint.quantize import quantize_checkpoint
from antiphon.checkpoint.quantized import packed_specs, pad_inner, scheme_of
from antiphon.checkpoint.safetensors_files import read_file
from antiphon.config import QuantizationConfig
from antiphon.errors import CheckpointError, ConfigError
from antiphon.inspect import model_card
from antiphon_kernels.linear_weight import dequantize_weight, quantize_weight
from antiphon_kernels.weights_memory import WeightsMemory


@pytest.fixture(scope="module")
def converted(tmp_path_factory, tiny):
    """``converted(scheme)`` → folder of the toy checkpoint in that scheme; not to be written to."""
    root, config = tmp_path_factory.mktemp("converted"), checkpoint.load_model_config(tiny)
    for scheme in ("int8", "int4"):
        quantize_checkpoint(config, root / scheme, scheme)
    return lambda scheme: root / scheme


@pytest.fixture
def copy(converted, tmp_path) -> Path:
    """A converted checkpoint whose language model may be damaged; other parts are links to the original."""
    folder = tmp_path / "copy"
    shutil.copytree(converted("int8"), folder)
    return folder


def load(folder, dtype=torch.bfloat16):
    return checkpoint.load_llm(checkpoint.load_model_config(folder), dtype)


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_holds_the_quantised_packed_tensors(converted, tiny, scheme):
    """Matrices are what ``quantize_weight`` makes of the official ones, everything else is equal."""
    got, official = load(converted(scheme)), load(tiny)
    quantization = checkpoint.load_model_config(converted(scheme)).quantization
    assert (quantization.layers, quantization.heads, quantization.calibration) == (scheme, "int8", None)
    matrices = [name for name in official if scheme_of(name, quantization)]
    assert len(matrices) == 4 * 4 + 2  # two trunk and two paired layers, two heads
    assert set(got) == set(official) | {f"{name}.scale" for name in matrices}
    for name, weight in official.items():
        if name in matrices:
            integers, scale = quantize_weight(weight, scheme_of(name, quantization))
            assert torch.equal(got[name], integers) and torch.equal(got[f"{name}.scale"], scale), name
        else:
            assert torch.equal(got[name], weight), name


def test_dtypes_of_a_float32_engine(converted):
    weights = load(converted("int4"), torch.float32)
    assert weights["embed"].dtype == weights["trunk.0.input_norm"].dtype == torch.float32
    assert weights["trunk.0.down"].dtype == torch.uint8 and weights["trunk.0.down.scale"].dtype == torch.bfloat16
    assert weights["lm_head"].dtype == torch.int8 and weights["lm_head.scale"].dtype == torch.float32


def test_rows_in_pieces_are_rows_at_once(monkeypatch, tiny, converted, tmp_path):
    monkeypatch.setattr("antiphon.checkpoint.quantize.ROWS_AT_A_TIME", 100)
    config = checkpoint.load_model_config(tiny)
    pieces = quantize_checkpoint(config, tmp_path / "pieces", "int4")
    assert pieces.sha256 == checkpoint.load_model_config(converted("int4")).quantization.sha256


def test_other_parts_and_tokenizer_come_along(converted, tiny):
    folder = converted("int8")
    for path in tiny.rglob("*"):
        if path.is_file() and path.name not in ("config.json", "model.safetensors"):
            assert (folder / path.relative_to(tiny)).read_bytes() == path.read_bytes()
    config = json.loads((folder / "config.json").read_text())
    official = json.loads((tiny / "config.json").read_text())
    assert config.pop("quantization_config")["quant_method"] == "antiphon" and config == official


def test_inner_width_is_filled_up_with_zeros():
    """448 → 512, as the demo checkpoint needs it: gate and up rows and down's columns."""
    gate_up, down = torch.randn(2, 896, 256), torch.randn(2, 256, 448)
    wide, tall = pad_inner("trunk.0.gate_up", gate_up), pad_inner("trunk.0.down", down)
    assert wide.shape == (2, 1024, 256) and tall.shape == (2, 256, 512)
    assert torch.equal(wide[:, :448], gate_up[:, :448]) and torch.equal(wide[:, 512:960], gate_up[:, 448:])
    assert not wide[:, 448:512].any() and not wide[:, 960:].any() and not tall[:, :, 448:].any()
    assert pad_inner("trunk.0.qkv_weight", gate_up) is gate_up


def test_tensors_begin_at_multiples_of_64_bytes(converted):
    """But those whose own size is none, which come last (1957 scales of the heads)."""
    tensors = list(read_file(converted("int4") / "model.safetensors").values())
    assert [t.name for t in tensors if t.offset % 64] == ["audio_head.scale"]
    assert [t.name for t in tensors[-2:]] == ["lm_head.scale", "audio_head.scale"]


def test_safetensors_library_reads_it(converted):
    from safetensors.torch import load_file

    expected = load(converted("int4"))
    found = load_file(converted("int4") / "model.safetensors")
    assert all(torch.equal(found[name], weight) for name, weight in expected.items()) and len(found) == len(expected)


def test_model_card(converted, tiny):
    card, official = model_card(converted("int4")), model_card(tiny)
    llm = card.parts[0]
    assert llm.num_parameters == official.parts[0].num_parameters
    assert llm.num_bytes == sum(llm.stored.values()) < 0.5 * official.parts[0].num_bytes
    text = str(card)
    assert "layers int4, heads int8, rounded to nearest" in text and "bfloat16, uint8, int8" in text


def test_heads_can_be_chosen(tiny, tmp_path):
    config = checkpoint.load_model_config(tiny)
    quantize_checkpoint(config, tmp_path / "out", "int4", heads="bfloat16")
    weights = load(tmp_path / "out")
    assert weights["lm_head"].dtype == torch.bfloat16 and "lm_head.scale" not in weights
    assert torch.equal(weights["lm_head"], load(tiny)["lm_head"])


def test_unknown_scheme(tiny, tmp_path):
    config = checkpoint.load_model_config(tiny)
    with pytest.raises(ConfigError, match="'int3': expected one of int8, int4"):
        quantize_checkpoint(config, tmp_path / "out", "int3")
    with pytest.raises(ConfigError, match="heads 'fp4'"):
        quantize_checkpoint(config, tmp_path / "out", "int4", heads="fp4")
    assert not (tmp_path / "out").exists()


def test_width_that_groups_do_not_fit(nano_folder, tmp_path):
    config = checkpoint.load_model_config(nano_folder)
    with pytest.raises(ConfigError, match="multiples of 128, not 64; use int8"):
        quantize_checkpoint(config, tmp_path / "out", "int4")
    quantize_checkpoint(config, tmp_path / "out", "int8")
    assert load(tmp_path / "out")["trunk.0.down"].shape[-1] == 128


def test_converted_twice(converted, tmp_path):
    config = checkpoint.load_model_config(converted("int8"))
    with pytest.raises(CheckpointError, match="converted already .* give the official"):
        quantize_checkpoint(config, tmp_path / "out", "int4")


def test_target_that_holds_something(tiny, tmp_path):
    (tmp_path / "kept").write_text("x")
    with pytest.raises(CheckpointError, match="not an empty folder"):
        quantize_checkpoint(checkpoint.load_model_config(tiny), tmp_path, "int8")


def test_changed_byte(copy, monkeypatch):
    path = copy / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        load(copy)
    monkeypatch.setenv("ANTIPHON_CHECKSUMS", "0")
    assert load(copy)["trunk.0.down"].dtype == torch.int8


def test_changed_byte_behind_the_first_piece(copy, monkeypatch):
    monkeypatch.setattr("antiphon.checkpoint.quantized.CHECKED_BYTES", 1 << 16)
    assert load(copy)["trunk.0.down"].dtype == torch.int8
    test_changed_byte(copy, monkeypatch)


@pytest.mark.parametrize(
    ("large_file_pages", "chosen", "own"), [(True, "1", False), (False, "1", True), (False, "0", False)]
)
def test_matrices_are_copied_where_only_memory_has_large_pages(converted, monkeypatch, large_file_pages, chosen, own):
    """The same values either way; embedding and norms stay in the file."""
    expected, taken = load(converted("int4")), []
    monkeypatch.setenv("ANTIPHON_COPY_WEIGHTS", chosen)
    monkeypatch.setattr("antiphon.checkpoint.quantized.has_large_pages", lambda: True)
    monkeypatch.setattr(MappedFile, "in_large_pages", lambda file: large_file_pages)
    monkeypatch.setattr(
        WeightsMemory, "empty", lambda memory, shape, dtype: taken.append(shape) or torch.empty(shape, dtype=dtype)
    )
    found = load(converted("int4"))
    assert all(torch.equal(found[name], weight) for name, weight in expected.items()) and len(found) == len(expected)
    assert len(taken) == (36 if own else 0)  # 18 matrices and their scales


def test_cut_short(copy):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        load(copy)


def test_weights_of_another_scheme(copy, converted):
    shutil.copyfile(converted("int4") / "model.safetensors", copy / "model.safetensors")
    with pytest.raises(CheckpointError, match="not the int8 model .* trunk.0.qkv_weight"):
        load(copy)
    with pytest.raises(CheckpointError, match="not the int8 model"):
        model_card(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quant_method": "gptq"}, "method 'gptq'"),
        ({"format": 2}, "format 2"),
        ({"layers": "int2"}, "damaged"),
        ({"sha256": "abc"}, "damaged"),
    ],
)
def test_foreign_or_damaged_quantization_config(copy, change, message):
    path = copy / "config.json"
    values = json.loads(path.read_text())
    values["quantization_config"] |= change
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=message):
        checkpoint.load_model_config(copy)


def test_interrupted_conversion_is_no_model(copy):
    (copy / "config.json").unlink()
    with pytest.raises(CheckpointError, match="config.json is missing"):
        checkpoint.load_model_config(copy)


def test_seven_billion_parameters_in_four_gigabytes_of_layers():
    """Sizes of the released model from shapes alone: what ``docs/quantisation.md`` states."""
    from antiphon.checkpoint.presets import kimi_audio_7b

    sizes = {}
    for layers, heads in (("int8", "int8"), ("int4", "int8")):
        specs = packed_specs(kimi_audio_7b().llm, QuantizationConfig(layers, heads, None, {}))
        sizes[layers] = sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in specs.values()) / 1e9
    assert sizes["int8"] == pytest.approx(10.4, abs=0.1) and sizes["int4"] == pytest.approx(6.6, abs=0.1)


def test_dequantised_matrices_are_close(converted, tiny):
    official = load(tiny, torch.float32)
    for scheme, allowed in (("int8", 0.012), ("int4", 0.13)):
        weights = load(converted(scheme), torch.float32)
        for name in ("trunk.0.gate_up", "upper.1.down"):
            found = dequantize_weight(weights[name], weights[f"{name}.scale"], torch.float32)
            error = (found - official[name]).norm() / official[name].norm()
            print(f"{scheme} {name}: {error:.4f}, {error / allowed:.2f} of the budget")
            assert error < allowed


def test_config_without_quantisation_is_official(tiny):
    config = checkpoint.load_model_config(tiny)
    assert config.quantization is None and replace(config, quantization=None) == config
