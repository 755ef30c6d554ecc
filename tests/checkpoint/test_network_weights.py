"""How the networks beside the language model lie in memory: what is chosen, and that nothing but the place of weights changes."""

from __future__ import annotations

import pytest
import torch

from antiphon import checkpoint
from antiphon.checkpoint import load_model_config
from antiphon.checkpoint.network_weights import Arrangement, arrange, choose_arrangement
from antiphon.runtime import load_runtime
from antiphon_kernels import count_calls, native, use_backend
from antiphon_kernels.linear_panels import from_panels

CPU = torch.device("cpu")
needs_native = pytest.mark.skipif(not native.available, reason="native module not built")
needs_panels = pytest.mark.skipif(not native.prefers_panels(), reason="panels are for vectors, not tiles")


def maps_of(weights: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, w in weights.items() if w.ndim == 2 and f"{name.removesuffix('weight')}bias" in weights}


@needs_native
def test_what_is_chosen():
    from antiphon_kernels import _native

    isa = _native.isa()
    for dtype in (torch.float32, torch.bfloat16):
        arrangement = choose_arrangement(None, dtype, CPU)
        with_tiles = Arrangement.COMPACT if dtype == torch.bfloat16 else Arrangement.PLAIN
        assert arrangement is (with_tiles if isa == "amx" else Arrangement.PLAIN if isa == "scalar" else Arrangement.PANELS)
        assert choose_arrangement(True, dtype, CPU) is arrangement
        assert choose_arrangement(False, dtype, CPU) is Arrangement.PLAIN
        assert choose_arrangement(None, dtype, torch.device("cuda")) is Arrangement.PLAIN
        with use_backend("reference"):
            assert choose_arrangement(None, dtype, CPU) is Arrangement.PLAIN


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("load", [checkpoint.load_flow, checkpoint.load_whisper, checkpoint.load_speech_tokenizer])
def test_only_linear_maps_move_and_every_bit_of_them_is_kept(load, dtype, tiny):
    config = load_model_config(tiny)
    plain, panels = (load(config, dtype, "cpu", a) for a in (Arrangement.PLAIN, Arrangement.PANELS))
    assert set(plain) == set(panels) and maps_of(plain)
    for name, weight in plain.items():
        moved = panels[name].ndim == 3 and weight.ndim == 2
        assert moved == (name in maps_of(plain)), name
        got = from_panels(panels[name], len(weight)) if moved else panels[name]
        assert torch.equal(got, weight), name


def test_what_cannot_be_arranged_stays_plain():
    weights = {"a.weight": torch.randn(4, 7), "a.bias": torch.randn(4), "b.weight": torch.randn(4, 8)}
    for arrangement in (Arrangement.PANELS, Arrangement.COMPACT):
        given = dict(weights)
        got = arrange(given, arrangement)
        assert not given and all(got[name] is weight for name, weight in weights.items())
    assert arrange(weights, Arrangement.PLAIN) is weights


@needs_panels
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_runtime_has_panels_unless_told_otherwise_and_answers_the_same(dtype, tiny):
    theirs, ours = (load_runtime(tiny, device="cpu", dtype=dtype, compact=chosen) for chosen in (False, None))
    for runtime, dims in ((theirs, 2), (ours, 3)):
        layer = runtime.encoder.tokenizer.network.layers[0]
        assert layer.fc1.weight.ndim == runtime.flow.weights["blocks.0.mlp.fc1.weight"].ndim == dims
    sound = [torch.sin(torch.arange(20_000) / 9)]
    with count_calls() as calls:
        features = [runtime.encoder.whisper(sound)[0] for runtime in (theirs, ours)]
    assert calls["encoder_pass", "native"] == 2 and torch.equal(*features)
    with use_backend("reference"):
        features = [runtime.encoder.whisper(sound)[0] for runtime in (theirs, ours)]
    assert torch.equal(*features)
