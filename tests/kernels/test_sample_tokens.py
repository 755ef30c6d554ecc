"""sample_tokens against the golden sampler cases, and as a distribution."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from antiphon_kernels import sample_tokens
from antiphon_kernels.philox import gumbel, philox
from antiphon_kernels.sample_tokens import penalise, top_k_ids

CASES = [f"case{i:02d}" for i in range(22)]


def draw(logits, *, recent=(), temperature=0.0, k=5, penalty=1.0, window=16, seeds=(0,)):
    """One draw per seed from the same logits and history; int64 [len(seeds)]."""
    n = len(seeds)
    history = torch.zeros(n, max(len(recent), 1), dtype=torch.int32)
    history[:, : len(recent)] = torch.as_tensor(np.asarray(recent, dtype=np.int32))

    def full(value, dtype):
        return torch.full((n,), value, dtype=dtype)

    return sample_tokens(
        logits.expand(n, -1), history, full(len(recent), torch.int64), torch.arange(n),
        full(temperature, torch.float32), full(k, torch.int64), full(penalty, torch.float32), full(window, torch.int64),
        torch.as_tensor(seeds), 0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def cases(golden):
    rows = {row["case"]: row for row in json.loads((golden / "sampler.json").read_text())}
    return rows, np.load(golden / "sampler.npz")


@pytest.mark.parametrize("name", CASES)
def test_golden_case(cases, name):
    rows, arrays = cases
    row, logits = rows[name], torch.from_numpy(arrays[f"{name}.logits"])
    recent = arrays[f"{name}.recent"] if f"{name}.recent" in arrays else np.empty(0, np.int32)
    scores = logits
    if row["penalty"] > 1 and len(recent) > row["window"]:
        scores = penalise(logits, torch.from_numpy(recent[-row["window"] :]), row["penalty"])
    assert torch.equal(scores, torch.from_numpy(arrays[f"{name}.penalised"]))
    limits = {"temperature": row["temperature"], "k": row["top_k"], "penalty": row["penalty"], "window": row["window"]}
    options = {"recent": recent} | limits
    if row["greedy"]:
        assert draw(logits, **options).item() == arrays[f"{name}.token"]
        return
    ids = top_k_ids(scores, row["top_k"])
    probs = torch.softmax(scores[ids] / row["temperature"], 0)
    order = np.argsort(arrays[f"{name}.ids"])
    assert ids.tolist() == arrays[f"{name}.ids"][order].tolist()
    error = np.abs(probs.numpy() - arrays[f"{name}.probs"][order]).max()
    print(f"{name}: {error / 1e-5:.2f} of the error budget")
    assert error <= 1e-5


@pytest.mark.parametrize("temperature, k", [(0.8, 10), (1.0, 0), (5.0, 4)])
def test_draws_follow_the_softmax(temperature, k):
    logits = torch.randn(64, generator=torch.Generator().manual_seed(1)) * 2
    count = 1200
    tokens = draw(logits, temperature=temperature, k=k, seeds=range(count))
    ids = top_k_ids(logits, k)
    expected = torch.softmax(logits[ids] / temperature, 0) * count
    seen = torch.bincount(tokens, minlength=64)
    assert seen.sum() == seen[ids].sum() == count
    chi_square = ((seen[ids] - expected) ** 2 / expected).sum().item()
    freedom = len(ids) - 1
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5  # five standard deviations


def test_a_draw_depends_on_seed_step_and_stream_only():
    ids = torch.arange(8)[None]
    base = gumbel(ids, torch.tensor([[3]]), torch.tensor([[7]]), 0)
    assert torch.equal(base, gumbel(ids, torch.tensor([[3]]), torch.tensor([[7]]), 0))
    for step, seed, stream in ((4, 7, 0), (3, 8, 0), (3, 7, 1), (3, 7 + 2**32, 0)):
        assert not torch.equal(base, gumbel(ids, torch.tensor([[step]]), torch.tensor([[seed]]), stream))


@pytest.mark.parametrize(
    "word, expected",
    [
        (0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (0xFFFFFFFF, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ],
)
def test_philox_known_answers(word, expected):
    """Known answers of the Random123 distribution (philox4x32-10)."""
    w = torch.tensor(word)
    assert tuple(int(x) for x in philox((w, w, w, w), (w, w))) == expected


def test_noise_is_finite_at_both_ends():
    noise = gumbel(torch.arange(1 << 16)[None], torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64), 0)
    assert torch.isfinite(noise).all() and noise.min() > -4 and noise.max() < 17


def test_low_temperature_is_the_arg_max_and_ties_go_to_the_lowest_id():
    logits = torch.zeros(32)
    logits[[9, 4, 20]] = 1.0
    assert draw(logits, temperature=0.0).item() == 4
    assert top_k_ids(logits, 2).tolist() == [4, 9]
    assert set(draw(logits, temperature=0.03, k=0, seeds=range(50)).tolist()) == {4, 9, 20}


def test_top_k_above_the_vocabulary_keeps_all():
    assert len(top_k_ids(torch.randn(16), 99)) == 16


def test_rows_do_not_depend_on_the_batch():
    logits = torch.randn(3, 100, generator=torch.Generator().manual_seed(2))
    alone = [draw(logits[i], temperature=0.9, k=7, seeds=(i,)).item() for i in range(3)]
    n = 3
    together = sample_tokens(
        logits, torch.zeros(n, 1, dtype=torch.int32), torch.zeros(n, dtype=torch.int64), torch.arange(n),
        torch.full((n,), 0.9), torch.full((n,), 7), torch.ones(n), torch.full((n,), 16), torch.arange(n), 0,
    )  # fmt: skip
    assert together.tolist() == alone
