"""A pass of an audio encoder in one native call against the operators it replaces."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import antiphon_kernels as ak
from antiphon.checkpoint.network_weights import Arrangement, arrange
from antiphon.config import EncoderConfig
from antiphon.models.encoder_layer import LAYER_NORM_EPS
from antiphon.models.encoder_network import EncoderNetwork
from antiphon_kernels.native import available

if not available:
    pytest.skip("native module not built", allow_module_level=True)

from antiphon.models.dense import Dense
from antiphon_kernels.native.encoder_pass import EncoderPass, available_for
from antiphon_kernels.native.network_pass import chosen

CONFIG = EncoderConfig(num_mel_bins=32, d_model=64, num_heads=2, ffn_dim=160, num_layers=3, max_positions=60)
CASES = {  # frames of a segment, rows wanted of each, valid rows of each segment, block
    "whole": (40, 20, [20], 0),
    "first rows": (66, 5, [33, 33], 0),  # rows of segments straddle the tiles' 16
    "one row": (2, 1, [1, 1, 1], 0),
    "blocks": (48, 24, [24, 9], 8),
    "first rows of blocks": (100, 19, [31, 50, 2], 16),
}


def build(
    dtype,
    causal: bool,
    config: EncoderConfig = CONFIG,
    final_norm: bool = True,
    work=None,
    arrangement: Arrangement = Arrangement.PLAIN,
) -> EncoderNetwork:
    """Weights of ``dtype``, kept in ``work``."""
    torch.manual_seed(3)
    d, f = config.d_model, config.ffn_dim
    shapes = {"conv1": (d, config.num_mel_bins, 3), "conv2": (d, d, 3)}
    for layer in range(config.num_layers):
        maps = {"qkv": (3 * d, d), "out": (d, d), "fc1": (f, d), "fc2": (d, f), "attn_norm": (d,), "mlp_norm": (d,)}
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in maps.items()}
    shapes |= {"final_norm": (d,)} if final_norm else {}
    weights = {"positions": torch.randn(config.max_positions, d) / 4}
    for name, shape in shapes.items():
        weights[f"{name}.weight"] = torch.randn(shape) / torch.Size(shape[1:]).numel() ** 0.5
        weights[f"{name}.bias"] = torch.randn(shape[0]) / 4
    weights = {name: weight.to(dtype).to(work or dtype) for name, weight in weights.items()}
    return EncoderNetwork(arrange(weights, arrangement), config, config.num_layers, causal)


def arguments(network: EncoderNetwork):
    """What binds the network, on any instruction set."""
    maps = [Dense(w.transpose(1, 2).flatten(1).contiguous(), bias) for w, bias in network.convolutions]
    return maps, network.positions, network.layers, network.final_norm


def bind(network: EncoderNetwork) -> EncoderPass:
    assert available_for(*arguments(network))
    return EncoderPass(*arguments(network), network.causal, LAYER_NORM_EPS)


def mels_of(case: str) -> tuple[torch.Tensor, int, torch.Tensor, int]:
    frames, wanted, lengths, block = CASES[case]
    generator = torch.Generator().manual_seed(frames)
    mels = torch.randn(len(lengths), CONFIG.num_mel_bins, frames, generator=generator)
    return mels, wanted, torch.tensor(lengths), block


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("causal", [False, True], ids=["centred", "causal"])
@pytest.mark.parametrize("dtype, allowed", [(torch.float32, 2e-6), (torch.bfloat16, 3e-2)], ids=["float32", "bfloat16"])
def test_matches_pytorch(case, causal, dtype, allowed, isa, poison, with_threads, within_budget):
    """Against the same layers in double precision; bitwise the same on any number of threads."""
    network, (mels, wanted, lengths, block) = build(dtype, causal), mels_of(case)
    exact = build(dtype, causal, work=torch.float64)
    with ak.use_backend("reference"):
        expected = exact(mels.to(dtype).double(), lengths, block, bound=False)[:, :wanted]
    bound = bind(network)
    results = [with_threads(threads, lambda: bound(mels, wanted, lengths, block)) for threads in (1, 2, 3)]
    assert results[0].shape == expected.shape and results[0].dtype == dtype
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    error = ((results[0].double() - expected).abs().max() / expected.abs().max()).item()
    within_budget(f"encoder pass, {case}, {'causal' if causal else 'centred'}, {dtype}", error, allowed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_segment_and_a_row_are_the_same_in_any_company(dtype, isa):
    bound, (mels, wanted, lengths, block) = bind(build(dtype, True)), mels_of("first rows of blocks")
    together = bound(mels, wanted, lengths, block)
    for i in range(len(mels)):
        alone = bound(mels[i : i + 1], mels.shape[2] // 2, lengths[i : i + 1], block)
        assert torch.equal(alone[0, :wanted], together[i])


@pytest.mark.parametrize("causal", [False, True], ids=["centred", "causal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_silence_at_the_end_changes_no_bit(dtype, causal, isa, poison, with_threads):
    """Of frames that are all the same up to the end only a few are convolved; beside a segment without such all of them are."""
    bound = bind(build(dtype, causal))
    frames = 2 * CONFIG.max_positions
    lengths, generator = torch.full((2,), CONFIG.max_positions), torch.Generator().manual_seed(1)
    for sounding in (0, 1, 2, 37, 60, 108, 109, 110, 111, 119, 120):
        mels = torch.randn(2, CONFIG.num_mel_bins, frames, generator=generator)
        mels[0, :, sounding:] = -1.5
        if sounding == 60:
            mels[1, :, 80:] = 0.0  # silent sooner or later
        all_of_both = torch.cat((mels, torch.randn(1, CONFIG.num_mel_bins, frames, generator=generator)))
        expected = bound(all_of_both, frames // 2, lengths[:1].expand(3), 0)
        for threads in (1, 3):
            both = with_threads(threads, lambda m=mels: bound(m, frames // 2, lengths, 0))
            alone = with_threads(threads, lambda m=mels: bound(m[:1], frames // 2, lengths[:1], 0))
            assert torch.equal(both, expected[:2]) and torch.equal(alone, expected[:1]), sounding


def test_the_encoder_is_one_call_where_there_are_vectors(isa):
    network, (mels, wanted, lengths, block) = build(torch.float32, False, final_norm=False), mels_of("whole")
    with ak.operator.count_calls() as calls:
        got = network(mels, lengths, block, wanted)
    assert (calls == {("encoder_pass", "native"): 1}) == chosen() == (isa != "scalar")
    expected = network(mels, lengths, block, wanted, bound=False)
    assert (got - expected).abs().max() < 1e-5 * expected.abs().max()


def test_refuses_what_it_cannot_run(isa):
    network = build(torch.bfloat16, False)
    bound = bind(network)
    assert bound.fits(torch.zeros(1, 32, 120)) == (isa != "scalar")
    for shape in ((0, 32, 40), (1, 32, 0), (1, 32, 41), (1, 32, 122)):  # nothing, odd, more rows than positions
        assert not bound.fits(torch.zeros(shape))
    assert not available_for(*arguments(build(torch.float16, False)))
    narrow = EncoderConfig(num_mel_bins=32, d_model=48, num_heads=2, ffn_dim=160, num_layers=1, max_positions=60)
    assert not available_for(*arguments(build(torch.bfloat16, False, narrow)))
    with pytest.raises(ValueError, match="even number of frames"):
        bound.bound.run([1, 40, 21, 0], 0, 0, 0)


@pytest.mark.parametrize("causal", [False, True], ids=["centred", "causal"])
def test_compact_matrices_give_the_same_bits(causal, isa, with_threads):
    config = replace(CONFIG, d_model=128, ffn_dim=256)
    plain = build(torch.bfloat16, causal, config)
    compact = build(torch.bfloat16, causal, config, arrangement=Arrangement.COMPACT)
    assert all(m.codes is not None for layer in compact.layers for m in (layer.qkv, layer.out, layer.fc1, layer.fc2))
    mels, wanted, lengths, block = mels_of("first rows of blocks")
    expected = plain(mels.to(torch.bfloat16), lengths, block, wanted)
    for threads in (1, 2, 3):
        got = with_threads(threads, lambda: compact(mels.to(torch.bfloat16), lengths, block, wanted))
        assert torch.equal(got, expected)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_panels_give_the_same_bits(case, dtype, isa, poison, with_threads):
    """Also where each thread has rows of its own, as in "first rows of blocks"."""
    if isa == "amx":
        pytest.skip("tiles read rows")
    plain, panels = (bind(build(dtype, True, arrangement=a)) for a in (Arrangement.PLAIN, Arrangement.PANELS))
    mels, wanted, lengths, block = mels_of(case)
    expected = plain(mels, wanted, lengths, block)
    for threads in (1, 2, 3):
        assert torch.equal(with_threads(threads, lambda: panels(mels, wanted, lengths, block)), expected)
