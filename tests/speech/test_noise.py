"""Noise: reproducible, independent of everything but the seed, and checked where it is given."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from antiphon.errors import InputError
from antiphon.speech.noise import NoiseSource


def take(source: NoiseSource, rows: int) -> torch.Tensor:
    noise = source.draw(rows)
    source.commit()
    return noise


def test_a_seed_reproduces_whatever_is_drawn_beside_it():
    a, b = NoiseSource(80, seed=5), NoiseSource(80, seed=5)
    first = take(a, 120)
    torch.manual_seed(1)
    torch.randn(7)
    assert torch.equal(take(b, 120), first)
    assert torch.equal(take(a, 168), take(b, 168))
    assert not torch.equal(take(a, 168), take(b, 120)[:1].expand(168, 80))


def test_without_a_seed_one_is_drawn_and_told():
    a, b = NoiseSource(80), NoiseSource(80)
    assert a.seed != b.seed
    assert torch.equal(take(NoiseSource(80, seed=a.seed), 4), take(a, 4))


def test_standard_normal():
    noise = NoiseSource(80, seed=0).draw(2000)
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01 and noise.dtype == torch.float32


def test_an_array_is_drawn_again_until_it_is_committed():
    arrays = [np.full((4, 80), i, np.float64) for i in range(2)]
    source = NoiseSource(80, given=iter(arrays))
    assert source.draw(4).sum() == 0 and source.draw(4).sum() == 0
    source.commit()
    assert source.draw(4).sum() == 320


def test_given_noise_must_fit():
    source = NoiseSource(80, given=[np.zeros((4, 80)), np.zeros((8, 3))])
    with pytest.raises(InputError, match=r"shape \(4, 80\), expected \(120, 80\)"):
        source.draw(120)
    source.draw(4)
    source.commit()
    with pytest.raises(InputError, match=r"shape \(8, 3\)"):
        source.draw(8)
    source.commit()
    with pytest.raises(InputError, match="too few arrays"):
        source.draw(4)
    with pytest.raises(InputError, match="exclude each other"):
        NoiseSource(80, seed=1, given=[])
