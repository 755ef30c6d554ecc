"""An engine whose model is compact gives every request what one with plain weights gives, bit for bit, with a draft or without."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from engine_outcome import REQUESTS, Outcome
from safetensors.torch import load_file, save_file

from antiphon.checkpoint import load_llm, load_model_config
from antiphon.checkpoint.compact import resolve_compact
from antiphon.checkpoint.quantize import quantize_checkpoint
from antiphon.draft import draft_bytes
from antiphon.engine import Engine
from antiphon.engine_config import EngineConfig
from antiphon.errors import ConfigError
from antiphon.runtime import load_runtime
from antiphon_kernels import count_calls, native, use_backend

if not native.available:
    pytest.skip("native module not built", allow_module_level=True)

from antiphon_kernels import _native

CPU = torch.device("cpu")


def load(path, compact, **options):
    return load_runtime(path, device="cpu", **{"dtype": "bfloat16", "compact": compact, **options})


@pytest.fixture(scope="module")
def plain(tiny):
    return load(tiny, False)


@pytest.fixture(scope="module")
def compact(tiny):
    return load(tiny, True)


@pytest.fixture(scope="module")
def converted(tmp_path_factory, tiny):
    """Folders of conversions, by layers and heads."""
    folder = tmp_path_factory.mktemp("converted")
    for heads in ("bfloat16", "int8"):
        quantize_checkpoint(load_model_config(tiny), folder / heads, "int8", heads=heads)
    return folder


def same(got: Outcome, expected: Outcome) -> None:
    assert got.text == expected.text and got.finish == expected.finish
    for ours, theirs in zip(got.sound.values(), expected.sound.values(), strict=True):
        np.testing.assert_array_equal(np.concatenate(ours), np.concatenate(theirs))


def schemes(model) -> set[str]:
    """Of all matrices."""
    layers = (*model.trunk, *model.upper)
    maps = [m for layer in layers for m in (layer.qkv, layer.output, layer.gate_up, layer.down)]
    return {m.scheme for m in (*maps, model.lm_head, model.audio_head)}


def answers_are_the_same(plain, compact, requests) -> None:
    assert schemes(plain.llm) == {"plain"} and schemes(compact.llm) == {"compact"}
    expected = Outcome(plain, requests, 8)
    with count_calls() as calls:
        got = Outcome(compact, requests, 8)
    assert calls["token_step", "native"] > 10 and not calls["linear", "native"]
    assert calls["model_step", "native"] > 0 or calls["linear_compact", "native"] > 10  # prompts
    same(got, expected)


def test_the_same_answers(plain, compact):
    """Prompts, decode steps and speech; the steps are native calls, and the weights are not the plain ones."""
    answers_are_the_same(plain, compact, REQUESTS)


@pytest.mark.parametrize("isa", ["avx2", "avx512", "avx512vnni", "avx512bf16"])
def test_the_same_answers_without_tiles(tiny, isa):
    """In vectors, prompts too. Without a voice, which would take its time; models of their own,
    since networks are bound to the instruction set of their first call."""
    if isa not in _native.available_isas():
        pytest.skip(f"{isa}: not on this machine")
    before = _native.isa()
    _native.set_isa(isa)
    try:
        models = (load(tiny, compact, load_detokenizer=False) for compact in (False, True))
        answers_are_the_same(*models, [r for r in REQUESTS if r.output_type == "text"])
    finally:
        _native.set_isa(before)


def test_the_same_answers_in_float32(tiny):
    """Of the checkpoint's bfloat16 weights, three eighths of the bytes. With AMX many plain rows are PyTorch's, which sums in another
    order, so not there."""
    if _native.isa() == "amx":
        pytest.skip("many rows of plain float32 weights are PyTorch's")
    plain, compact = (load(tiny, compact, dtype="float32") for compact in (False, True))
    answers_are_the_same(plain, replace(plain, llm=compact.llm), REQUESTS)
    matrices = {name.removesuffix(".scale") for name in compact.llm.weights if name.endswith(".scale")}
    assert all(compact.llm.weights[name].nbytes * 8 == plain.llm.weights[name].nbytes * 3 for name in matrices)
    assert all(torch.equal(t, plain.llm.weights[name]) for name, t in compact.llm.weights.items() if t.dtype == torch.float32)


def test_the_same_answers_on_the_reference_operators(tiny):
    """A backend that is chosen later widens at every call, and that is all. Models of their own, since networks are bound to the
    backend of their first call as well."""
    plain, compact = (load(tiny, compact) for compact in (False, True))
    with use_backend("reference"):
        same(Outcome(compact, REQUESTS[:2], 1), Outcome(plain, REQUESTS[:2], 1))


def test_float32_on_the_reference_operators(tiny):
    models = [load(tiny, compact, dtype="float32", load_detokenizer=False) for compact in (True, False)]
    texts = [r for r in REQUESTS if r.output_type == "text"][:2]
    with use_backend("reference"):
        same(*(Outcome(model, texts, 1) for model in models))


@pytest.mark.parametrize("draft", ["int8", "int4", "bfloat16", "folder"])
def test_with_a_draft(tiny, plain, converted, draft):
    """The draft is that of the plain weights, and foresees as much; heads that it does not round it shares."""
    chosen = {"folder": converted / "int8", "bfloat16": converted / "bfloat16"}.get(draft, draft)
    theirs, ours = (load(tiny, compact, draft=chosen) for compact in (False, True))
    assert schemes(ours.llm) == {"compact"}
    own = {name for name, t in ours.draft.weights.items() if t is not ours.llm.weights.get(name)}
    assert own == {name for name, t in theirs.draft.weights.items() if t is not theirs.llm.weights.get(name)}
    assert all(torch.equal(ours.draft.weights[name], theirs.draft.weights[name]) for name in own)
    assert draft_bytes(ours.draft, ours.llm) == draft_bytes(theirs.draft, theirs.llm) > 0
    heads = (ours.draft.lm_head, ours.draft.audio_head)
    assert {head.scheme for head in heads} == {"compact" if draft == "bfloat16" else "int8"}
    expected, drafted, got = Outcome(plain, REQUESTS, 8), Outcome(theirs, REQUESTS, None), Outcome(ours, REQUESTS, None)
    same(got, expected)
    assert got.engine.runner.counters == drafted.engine.runner.counters and got.engine.runner.counters.drafted > 20


def test_what_is_held(plain, compact):
    """Three quarters of the matrices' bytes and some codes; everything else as it was; the memory plan counts them."""
    before, after = plain.llm.weights, compact.llm.weights
    made = {name.removesuffix(".scale") for name in after if name.endswith(".scale")}
    assert made == {name for name in before if before[name].ndim > 1 and "_norm" not in name} - {
        name for name in before if name.startswith(("embed", "adaptor")) or name.endswith("_bias")
    }
    for name in before.keys() - made:
        assert torch.equal(before[name], after[name]), name
    assert all(after[name].nbytes * 4 == before[name].nbytes * 3 for name in made)
    assert {after[f"{name}.scale"].dtype for name in made} == {torch.int32}
    plan = Engine(compact, EngineConfig(max_sequences=2)).memory
    assert plan.weights["llm"] == sum(t.nbytes for t in after.values()) < sum(t.nbytes for t in before.values())


def test_heads_of_a_converted_checkpoint(converted):
    """Its int8 layers stay; bfloat16 heads become compact."""
    for dtype in ("bfloat16", "float32"):
        ours, theirs = (load(converted / "bfloat16", compact, dtype=dtype) for compact in (True, False))
        assert schemes(ours.llm) == {"int8", "compact"} and schemes(theirs.llm) == {"int8", "plain"}
        assert ours.llm.lm_head.scheme == ours.llm.audio_head.scheme == "compact"
        same(Outcome(replace(theirs, llm=ours.llm), REQUESTS[:3], 8), Outcome(theirs, REQUESTS[:3], 8))


def test_scales_of_a_converted_checkpoint_stay(tmp_path, tiny):
    """Those of int4 are bfloat16 whatever the model works in."""
    quantize_checkpoint(load_model_config(tiny), tmp_path / "int4", "int4", heads="bfloat16")
    ours, theirs = (load(tmp_path / "int4", compact, dtype="float32", load_detokenizer=False) for compact in (True, False))
    assert ours.llm.trunk[0].qkv.scale.dtype == torch.bfloat16 and schemes(ours.llm) == {"int4", "compact"}
    same(*(Outcome(model, [r for r in REQUESTS if r.output_type == "text"][:2], 8) for model in (ours, theirs)))


@pytest.mark.parametrize("pays", [True, False])
def test_by_default_where_it_pays(tiny, monkeypatch, pays):
    monkeypatch.setattr(native, "prefers_compact", lambda dtype, many_rows=False: pays and not many_rows)
    for dtype in ("bfloat16", "float32"):
        assert schemes(load(tiny, None, dtype=dtype).llm) == {"compact" if pays else "plain"}
    assert schemes(load(tiny, False).llm) == {"plain"} and schemes(load(tiny, True).llm) == {"compact"}


def test_a_width_without_whole_groups_stays_plain(demo):
    """Down of the demo model is 448 wide, everything else 256."""
    model = load(demo, True, load_detokenizer=False).llm
    assert {layer.down.scheme for layer in (*model.trunk, *model.upper)} == {"plain"}
    assert schemes(model) == {"plain", "compact"}


@pytest.fixture(scope="module")
def stored_in_float32(tmp_path_factory, tiny):
    """The checkpoint with one vector in float32."""
    folder = tmp_path_factory.mktemp("float32") / "model"
    shutil.copytree(tiny, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_what_cannot_be(tiny, converted, stored_in_float32, monkeypatch):
    """Asked for it is an error that says what would do; left to itself it is not tried, whatever would pay."""
    config = load_model_config(tiny)
    quantised = load_model_config(converted / "int8")
    wide = load_model_config(stored_in_float32)
    with pytest.raises(ConfigError, match="weights in float32 that torch.float32 keeps; use dtype='bfloat16'"):
        resolve_compact(True, wide, torch.float32, CPU)
    with pytest.raises(ConfigError, match="weights in float32"):
        load_llm(wide, torch.float32, compact=True)
    assert resolve_compact(True, wide, torch.bfloat16, CPU)
    with pytest.raises(ConfigError, match="int8 layers and int8 heads.*official checkpoint"):
        load(converted / "int8", True)
    with pytest.raises(ConfigError, match="'cuda'.*device='cpu'"):
        resolve_compact(True, config, torch.bfloat16, torch.device("cuda"))
    monkeypatch.setattr(native, "prefers_compact", lambda dtype, many_rows=False: True)
    assert resolve_compact(None, config, torch.bfloat16, CPU)
    assert not resolve_compact(None, config, torch.bfloat16, torch.device("cuda"))
    assert resolve_compact(None, config, torch.float32, CPU) and not resolve_compact(None, wide, torch.float32, CPU)
    assert not resolve_compact(None, quantised, torch.bfloat16, CPU)
    with_heads = load_model_config(converted / "bfloat16")
    assert not resolve_compact(None, with_heads, torch.bfloat16, CPU)  # pages of its file
    assert resolve_compact(None, with_heads, torch.float32, CPU)  # which float32 would copy
    assert resolve_compact(True, with_heads, torch.bfloat16, CPU)
    monkeypatch.setattr(native, "available", False)
    with pytest.raises(ConfigError, match="native operators.*builds them"):
        resolve_compact(True, config, torch.bfloat16, CPU)
    assert not resolve_compact(None, config, torch.bfloat16, CPU)
