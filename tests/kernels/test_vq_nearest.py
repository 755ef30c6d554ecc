"""vq_nearest: the nearest codebook row, the lowest one on ties."""

from __future__ import annotations

import pytest
import torch

from antiphon_kernels import vq_nearest
from antiphon_kernels.vq_nearest import squared_norms


def nearest_of(x, codebook):
    return vq_nearest(x, codebook, squared_norms(codebook))


@pytest.mark.parametrize(
    "rows, dim, codes",
    [
        (1, 64, 512),
        (13, 64, 512),
        (511, 8, 16),  # one row below a block of distances
        (513, 8, 16),  # one row above
        (5, 1280, 16384),  # the size of the released tokenizer
    ],
)
def test_matches_distances_in_double(rows, dim, codes):
    generator = torch.Generator().manual_seed(rows)
    x, codebook = (torch.randn(n, dim, generator=generator) for n in (rows, codes))
    distances = (x.double()[:, None] - codebook.double()[None]).square().sum(-1) if codes < 1000 else None
    nearest = nearest_of(x, codebook)
    if distances is None:
        distances = torch.stack([(row.double() - codebook.double()).square().sum(-1) for row in x])
    assert nearest.dtype == torch.int64 and torch.equal(nearest, distances.argmin(dim=1))


def test_lowest_index_on_ties():
    codebook = torch.tensor([[5.0, 5.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert nearest_of(torch.tensor([[1.0, 0.0], [0.5, 0.5]]), codebook).tolist() == [1, 1]


def test_no_rows_and_strided_rows():
    codebook = torch.eye(4)
    assert nearest_of(torch.empty(0, 4), codebook).shape == (0,)
    strided = torch.eye(4).repeat_interleave(2, dim=0)[::2].T.contiguous().T
    assert nearest_of(strided, codebook).tolist() == [0, 1, 2, 3]


def test_registration():
    torch.library.opcheck(torch.ops.antiphon.vq_nearest.default, (torch.randn(5, 8), torch.randn(7, 8), torch.rand(7)))
    assert vq_nearest.backends("cpu")[-1] == "reference"
