"""alias_free_snake against its goldens, its formula, and its claims about ends and reach."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from speech_models import half_band_taps

from antiphon_kernels import alias_free_snake
from antiphon_kernels.alias_free_snake import CONTEXT, downsample, snake, upsample


def by_formula(x, alpha, inv_beta, up_filter, down_filter):
    """The formula of the operator's docstring, one channel, in Python floats."""
    n = len(x)
    activated = []
    for u in range(2 * n):
        up = 2 * sum(
            x[min(max(i, 0), n - 1)] * up_filter[u + 5 - 2 * i] for i in range(-5, n + 5) if 0 <= u + 5 - 2 * i < 12
        )
        activated.append(up + inv_beta * math.sin(alpha * up) ** 2)
    return [sum(down_filter[k] * activated[min(max(2 * t + k - 5, 0), 2 * n - 1)] for k in range(12)) for t in range(n)]


def test_goldens(fixtures, within_budget):
    arrays = {k: torch.from_numpy(v) for k, v in np.load(fixtures / "golden" / "vocoder.npz").items()}
    taps = torch.from_numpy(np.load(fixtures / "golden" / "constants.npz")["aa_filter12"])
    alpha, inv_beta = arrays["act_alpha"].exp(), 1 / (arrays["act_beta"].exp() + 1e-9)
    within_budget("taps", (half_band_taps() - taps).abs().max(), 1e-6)
    for n in (1, 2, 3, 6, 20):
        x, up, activated = (arrays[f"act_{part}_{n}"][None] for part in ("in", "up", "snake"))
        for name, ours, golden in (
            ("up", upsample(x, taps), up),
            ("snake", snake(up, alpha, inv_beta), activated),
            ("down", downsample(activated, taps), arrays[f"act_out_{n}"][None]),
            ("whole", alias_free_snake(x, alpha, inv_beta, taps, taps), arrays[f"act_out_{n}"][None]),
        ):
            within_budget(f"{name} of {n}", (ours - golden).abs().max().item(), 1e-5)


@pytest.mark.parametrize("n", [1, 2, 5, 6, 17])
def test_formula(n):
    torch.manual_seed(n)
    x, up, down = torch.randn(1, 2, n).double(), torch.rand(12).double(), torch.rand(12).double()
    alpha, inv_beta = torch.tensor([0.7, 3.0]).double(), torch.tensor([0.2, 1.5]).double()
    out = alias_free_snake(x, alpha, inv_beta, up, down)
    for c in range(2):
        expected = by_formula(x[0, c].tolist(), alpha[c].item(), inv_beta[c].item(), up.tolist(), down.tolist())
        torch.testing.assert_close(out[0, c], torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_once(dtype):
    torch.manual_seed(0)
    x, alpha, inv_beta, taps = torch.randn(2, 3, 50).to(dtype), torch.rand(3) * 20, torch.rand(3), half_band_taps()
    out = alias_free_snake(x, alpha, inv_beta, taps, taps)
    exact = alias_free_snake(x.double(), alpha.double(), inv_beta.double(), taps.double(), taps.double())
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-5)


def test_reach():
    """An output sample depends on the inputs within CONTEXT, on both of the outermost ones, and on nothing else."""
    x = torch.randn(1, 1, 60, generator=torch.Generator().manual_seed(0)).double()
    parameters = (torch.ones(1).double(), torch.ones(1).double(), half_band_taps().double(), half_band_taps().double())
    before = alias_free_snake(x, *parameters)
    x[0, 0, 30] += 1
    changed = (alias_free_snake(x, *parameters) != before)[0, 0].nonzero()[:, 0].tolist()
    assert (changed[0], changed[-1]) == (30 - CONTEXT, 30 + CONTEXT)


def test_items_and_views_do_not_matter():
    torch.manual_seed(1)
    parameters = (torch.rand(4), torch.rand(4), half_band_taps(), half_band_taps())
    x = torch.randn(3, 21, 4).transpose(1, 2)
    together = alias_free_snake(x, *parameters)
    for item, out in zip(x, together, strict=True):
        torch.testing.assert_close(alias_free_snake(item[None].contiguous(), *parameters)[0], out, rtol=0, atol=1e-6)


def test_opcheck():
    args = (torch.randn(2, 3, 9), torch.rand(3), torch.rand(3), half_band_taps(), half_band_taps())
    results = torch.library.opcheck(torch.ops.antiphon.alias_free_snake.default, args)
    assert set(results.values()) == {"SUCCESS"}
