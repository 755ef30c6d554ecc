"""Philox4x32-10, the counter-based generator behind every draw (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", SC 2011), on int64 tensors that hold unsigned 32-bit words.

The Gumbel noise takes its logarithms from :func:`natural_log`, which is built of single-precision additions and
multiplications in a fixed order: every implementation that follows it gives the same noise to the bit, so draws do not
hang on the last place of some library's logarithm.
"""

from __future__ import annotations

import torch

from .triton_support import jit, tl

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
LOG_POLYNOMIAL = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
"""(log(1 + f) - f + f² / 2) / f³ for 1 + f in [√½, √2), highest power first (Cephes, logf)."""
LN2 = (0.693359375, -2.12194440e-4)
"""ln 2 as a short number, whose product with an exponent is exact, and the rest."""
_ROOT_HALF = 0x3F3504F3
_MASK = 0xFFFFFFFF


def _mul_hi_lo(a: torch.Tensor, b: int) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low word of a * b, both 32 bit, without overflowing int64."""
    low, high = (a & 0xFFFF) * b, (a >> 16) * b
    middle = high + (low >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)


def philox(counter: tuple[torch.Tensor, ...], key: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Four words from a counter of four words and a key of two; all int64 tensors that broadcast together."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        h0, l0 = _mul_hi_lo(c0, MULTIPLIERS[0])
        h1, l1 = _mul_hi_lo(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = h1 ^ c1 ^ k0, l1, h0 ^ c3 ^ k1, l0
        k0, k1 = (k0 + WEYL[0]) & _MASK, (k1 + WEYL[1]) & _MASK
    return c0, c1, c2, c3


def natural_log(x: torch.Tensor) -> torch.Tensor:
    """log x to 1 ulp for positive normal float32 x; one rounding per operation, no contraction into fused ones."""
    bits = x.view(torch.int32)
    exponent = (bits - _ROOT_HALF) >> 23
    f = (bits - (exponent << 23)).view(torch.float32) - 1.0
    exponent, square = exponent.float(), f * f
    series = f * LOG_POLYNOMIAL[0]
    for coefficient in LOG_POLYNOMIAL[1:-1]:
        series = (series + coefficient) * f
    series = (series + LOG_POLYNOMIAL[-1]) * f * square
    rest = series + exponent * LN2[1] - square * 0.5
    return (f + rest) + exponent * LN2[0]


def gumbel(ids: torch.Tensor, steps: torch.Tensor, seeds: torch.Tensor, stream: int) -> torch.Tensor:
    """Standard Gumbel noise, float32, for (seed, step, stream, id).

    ids [R, n], steps [R, 1], seeds [R, 1] int64. The uniform is (word >> 9 + 1/2) 2^-23, exact in float32 and inside (0, 1).
    """
    zero = torch.zeros_like(ids)
    counter = (ids, steps + zero, zero + stream, zero)
    word = philox(counter, ((seeds & _MASK) + zero, ((seeds >> 32) & _MASK) + zero))[0]
    uniform = ((word >> 9).float() + 0.5) * 2.0**-23
    return -natural_log(-natural_log(uniform))


@jit
def philox_word_triton(ids, step, seed, stream):
    """First word of :func:`philox` for counter (id, step, stream, 0) and key seed: ids int32 [n] ≥ 0, the others int64 scalars."""
    zero = (ids * 0).to(tl.uint32)
    c0, c1 = ids.to(tl.uint32), zero + (step.to(tl.int64) & 0xFFFFFFFF).to(tl.uint32)
    c2, c3 = zero + stream.to(tl.uint32), zero
    k0, k1 = (seed & 0xFFFFFFFF).to(tl.uint32), ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    for _ in tl.static_range(10):
        h0, l0 = tl.umulhi(c0, zero + 0xD2511F53), c0 * 0xD2511F53
        h1, l1 = tl.umulhi(c2, zero + 0xCD9E8D57), c2 * 0xCD9E8D57
        c0, c1, c2, c3 = h1 ^ c1 ^ k0, l1, h0 ^ c3 ^ k1, l0
        k0, k1 = k0 + 0x9E3779B9, k1 + 0xBB67AE85
    return c0


@jit
def gumbel_triton(ids, step, seed, stream):
    """:func:`gumbel` of ids int32 [n], float32: the same word and uniform to the bit, the device's own logarithm."""
    word = philox_word_triton(ids, step, seed, stream)
    uniform = ((word >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07
    return -tl.log(-tl.log(uniform))
