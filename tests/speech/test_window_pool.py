"""Slots of the key/value window: a ring per stream, books that balance."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from antiphon.config import FlowConfig
from antiphon.errors import EngineError
from antiphon.speech.window_pool import WindowPool, WindowSlot

CONFIG = FlowConfig(8, 1, 2, 4.0, 80, 10, 10000.0, 64, 0.0, 1.0)


@given(capacity=st.integers(1, 20), sizes=st.lists(st.integers(1, 45), max_size=10))
def test_the_ring_holds_the_newest_rows(capacity, sizes):
    slot, ring, newest = WindowSlot(3, capacity), {}, []
    for size in sizes:
        rows = [f"{len(newest)}.{i}" for i in range(size)]
        kept, places = slot.places(size)
        assert len(set(places.tolist())) == len(kept) and (places // capacity == 3).all()
        ring |= {place - 3 * capacity: rows[row] for row, place in zip(kept.tolist(), places.tolist(), strict=True)}
        slot.advance(size)
        newest += rows
        assert slot.num_rows == min(capacity, len(newest))
        assert set(ring) == set(range(slot.num_rows))
        assert set(ring.values()) == set(newest[-capacity:])


def test_a_cleared_slot_starts_again():
    slot = WindowSlot(0, 10)
    slot.advance(7)
    slot.clear()
    assert slot.num_rows == 0 and slot.places(2)[1].tolist() == [0, 1]


def test_slots_are_lent_and_given_back():
    pool = WindowPool(CONFIG, 2, torch.float32, "cpu")
    a, b = pool.acquire(), pool.acquire()
    assert {a.index, b.index} == {0, 1} and pool.num_free == 0
    with pytest.raises(EngineError, match="all 2 speech streams are in use"):
        pool.acquire()
    pool.release(a)
    assert pool.acquire().index == a.index
    pool.release(b)
    with pytest.raises(ValueError, match="free already"):
        pool.release(b)
    assert pool.window.keys.shape == (1, 2, 900, 2, 4)
