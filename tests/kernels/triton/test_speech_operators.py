"""Triton against the reference: the operators of the DiT, the vocoder and the encoders."""

from __future__ import annotations

import pytest
import torch

from antiphon_kernels.alias_free_snake import alias_free_snake_triton
from antiphon_kernels.alias_free_snake import reference as alias_free_snake
from antiphon_kernels.encoder_attention import encoder_attention_triton
from antiphon_kernels.encoder_attention import reference as encoder_attention
from antiphon_kernels.euler_step import euler_step_triton
from antiphon_kernels.euler_step import reference as euler_step
from antiphon_kernels.flow_attention import flow_attention_triton
from antiphon_kernels.flow_attention import reference as flow_attention
from antiphon_kernels.flow_rope import flow_rope_triton
from antiphon_kernels.flow_rope import reference as flow_rope
from antiphon_kernels.gate_residual import gate_residual_triton
from antiphon_kernels.gate_residual import reference as gate_residual
from antiphon_kernels.layer_norm_modulate import layer_norm_modulate_triton
from antiphon_kernels.layer_norm_modulate import reference as layer_norm_modulate
from antiphon_kernels.vq_nearest import SPLIT, squared_norms, vq_nearest_triton
from antiphon_kernels.vq_nearest import reference as vq_nearest

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDTHS = [1, 61, 255, 256, 257, 2304]
"""One value, a prime below a warp's reach, around a power of two, the real DiT."""
TAPS = torch.tensor([0.00202896, 0.00938947, -0.02554346, -0.05765738, 0.12857258, 0.44320980])
FILTER = torch.cat((TAPS, TAPS.flip(0)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("hidden", WIDTHS)
def test_layer_norm_modulate(compare, hidden, dtype):
    """Shift and scale are columns of one packed matrix, as in the model."""
    packed = torch.randn(3, 2 * hidden).to(dtype)
    shift, scale = packed.chunk(2, dim=1)
    x = (2 + torch.randn(12, hidden)).to(dtype)
    (out,) = compare("layer_norm_modulate", layer_norm_modulate_triton, layer_norm_modulate, x, shift, scale, 4, 1e-6)
    assert out.is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("hidden", [1, 1023, 1025, 2304])
def test_gate_residual(compare, hidden, dtype):
    x, y = torch.randn(2, 8, hidden).to(dtype)
    gate = torch.randn(2, 3 * hidden).to(dtype)[:, hidden : 2 * hidden]
    (out,) = compare("gate_residual", gate_residual_triton, gate_residual, x, y, gate, 4)
    assert out.is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "head_dim"), [(18, 128), (4, 16), (3, 2), (1, 512), (5, 104)])
def test_flow_rope(compare, heads, head_dim, dtype):
    angle = torch.arange(50)[:, None] * 10.0 ** -torch.linspace(0, 4, head_dim // 2)
    qkv = torch.randn(3, 3 * heads * head_dim).to(dtype)
    positions = torch.tensor([49, 0, 7])
    _, _, v = compare("flow_rope", flow_rope_triton, flow_rope, qkv, positions, angle.cos(), angle.sin(), heads)
    assert torch.equal(v.flatten(1), qkv.chunk(3, dim=1)[2])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (12, 80), (13, 79), (128, 8)])
def test_euler_step(compare, shape, dtype):
    x, v = torch.randn(2, *shape).to(dtype)
    (out,) = compare("euler_step", euler_step_triton, euler_step, x, v, 1 / 29)
    assert out.shape == shape


def flow_batch(rows, cached, heads, head_dim, dtype, window=70):
    """Streams of ``rows`` current and ``cached`` window rows; what is not valid of a window is NaN."""
    streams = len(rows)
    slots = torch.randperm(streams + 2)[:streams]
    cache = torch.full((2, streams + 2, window, heads, head_dim), float("nan"), dtype=dtype)
    for slot, n in zip(slots, cached):
        cache[:, slot, :n] = torch.randn(2, n, heads, head_dim).to(dtype)
    qkv = torch.randn(3, sum(rows), heads, head_dim).to(dtype)
    cu = torch.tensor([0, *torch.tensor(rows).cumsum(0).tolist()], dtype=torch.int32)
    return *qkv, cu, *cache, slots, torch.tensor(cached, dtype=torch.int32), max(rows), head_dim**-0.5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "cached", "heads", "head_dim"),
    [
        pytest.param([4], [0], 2, 16, id="one-token"),
        pytest.param([33, 4], [70, 0], 2, 32, id="full-window-beside-a-new-stream"),
        pytest.param([1, 31, 64], [31, 32, 65], 1, 16, id="around-key-blocks"),
        pytest.param([8], [40], 2, 128, id="real-head"),
    ],
)
def test_flow_attention(compare, rows, cached, heads, head_dim, dtype):
    args = flow_batch(rows, cached, heads, head_dim, dtype)
    (out,) = compare("flow_attention", flow_attention_triton, flow_attention, *args)
    assert out.shape == args[0].shape


def test_stream_alone_is_stream_in_a_batch():
    """Bitwise."""
    q, k, v, cu, k_cache, v_cache, slots, lens, most, scale = flow_batch([9, 40, 4], [70, 3, 0], 2, 16, torch.float32)
    together = flow_attention_triton(q, k, v, cu, k_cache, v_cache, slots, lens, most, scale)
    for s in range(3):
        rows = slice(int(cu[s]), int(cu[s + 1]))
        n = rows.stop - rows.start
        own = torch.tensor([0, n], dtype=torch.int32)
        alone = flow_attention_triton(
            q[rows], k[rows], v[rows], own, k_cache, v_cache, slots[s : s + 1], lens[s : s + 1], n, scale
        )
        assert torch.equal(alone, together[rows])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "length",
    [
        *(pytest.param(n, id=f"shorter-than-the-filter-{n}") for n in (1, 2, 5, 6)),
        pytest.param(505, id="block-minus-1"),
        pytest.param(506, id="block"),
        pytest.param(507, id="block-plus-1"),
    ],
)
def test_alias_free_snake(compare, length, dtype):
    """Edges count as much as the interior: the budget is on the largest error of all samples."""
    x = torch.randn(2, 3, length).to(dtype)
    alpha, inv_beta = torch.tensor([0.1, 1.0, 30.0]), torch.tensor([2.0, 1.0, 0.3])
    args = (x, alpha.to(dtype), inv_beta.to(dtype), FILTER.to(dtype), FILTER.to(dtype))
    (out,) = compare("alias_free_snake", alias_free_snake_triton, alias_free_snake, *args)
    ends = torch.arange(length).minimum(torch.arange(length).flip(0)) < 3
    truth = alias_free_snake(*(a.double() for a in args))
    own = alias_free_snake(*args)
    for part in (ends, ~ends):
        if part.any():
            error, allowed = ((o.double() - truth)[..., part].abs().max() for o in (out, own))
            assert error <= 2 * allowed + 2 * torch.finfo(dtype).eps * truth.abs().max()


def test_alias_free_snake_of_unlike_filters_and_large_angles(compare):
    """Unsymmetric filters show a mirrored tap; alpha * x in the hundreds shows a poor range reduction."""
    up, down = torch.rand(2, 12) / 4
    x, alpha = 3 * torch.randn(1, 2, 40), torch.tensor([100.0, 0.0])
    (out,) = compare("alias_free_snake", alias_free_snake_triton, alias_free_snake, x, alpha, torch.ones(2), up, down)
    assert out.shape == x.shape


@pytest.mark.parametrize(
    ("rows", "codes", "width"),
    [(1, 1, 1), (33, SPLIT - 1, 16), (5, SPLIT, 33), (3, SPLIT + 1, 40), (2, 130, 1280)],
    ids=["one", "split-minus-1", "split", "split-plus-1", "real-width"],
)
def test_vq_nearest(poisoned, guarded, rows, codes, width):
    codebook = torch.randn(codes, width)
    x = codebook[torch.randint(0, codes, (rows,))] + 0.01 * torch.randn(rows, width)
    with poisoned():
        got = vq_nearest_triton(guarded(x), guarded(codebook), guarded(squared_norms(codebook)))
    assert torch.equal(got, vq_nearest(x, codebook, squared_norms(codebook)))


def test_vq_nearest_takes_the_lowest_of_equal_codes():
    # Whole numbers: NumPy's products, which the interpreter uses, round equal rows differently by their place.
    codebook = torch.randint(-9, 10, (8, 16)).float().repeat(SPLIT // 4, 1)
    got = vq_nearest_triton(codebook[8:16].clone(), codebook, squared_norms(codebook))
    assert torch.equal(got, torch.arange(8))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "heads", "head_dim", "block"),
    [
        pytest.param(1, 1, 16, 0, id="one-row"),
        pytest.param(65, 2, 32, 0, id="full"),
        pytest.param(70, 2, 16, 20, id="blocks"),
        pytest.param(33, 1, 64, 200, id="one-long-block"),
        pytest.param(66, 1, 16, 1, id="causal"),
    ],
)
def test_encoder_attention(compare, rows, heads, head_dim, block, dtype):
    """q, k, v are views of one packed projection; lengths leave padding in all segments but one."""
    qkv = torch.randn(2, rows, 3, heads, head_dim).to(dtype)
    lengths = torch.tensor([rows, max(rows - 11, 1)])
    args = (*qkv.unbind(2), lengths, block)
    (out,) = compare("encoder_attention", encoder_attention_triton, encoder_attention, *args)
    assert out.is_contiguous()
