"""Running requests as arrays over slots, so that a decode step costs a few array operations instead of a loop.

A decoding request is touched by Python once per ``RING`` tokens, when it ends, and when its text ends; everything in
between happens for all slots at once. Sampled pairs go into a ring per slot and move to the request's tape when somebody
looks (:meth:`sync`), at the latest when the ring is full.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .plan import PAGE_SIZE

if TYPE_CHECKING:
    from .request_state import RequestState

RING = 16 * PAGE_SIZE
MAX_LAUNCH = PAGE_SIZE
"""Most decode steps of one plan: a request then opens at most one page ahead."""


class SlotTable:
    """All arrays have one entry per slot.

    ``decoding``: the slot's request decodes; the other arrays mean something only then. ``num_tokens``: length of its
    tape, of which all but the last position are computed. ``synced_len``: its positions that the request itself has. ``play_end``: when the request's listener runs out of sound, -inf
    before the first sound and for text. ``chunk_at``: length of the tape at which its next speech chunk is complete; 0 if
    nobody said. ``admission_blocked``: in the last step somebody could not be admitted. ``ring``: [slots, RING, 2] audio
    and text ids, position p at p % RING; ``states[slot].synced_len`` .. ``num_tokens`` are not on the tape yet, never more
    than RING. ``request_ids`` of free slots are stale.
    """

    def __init__(self, num_slots: int):
        self.states: list[RequestState | None] = [None] * num_slots
        self.request_ids = np.full(num_slots, "", object)
        self.free = list(range(num_slots - 1, -1, -1))
        self.decoding = np.zeros(num_slots, bool)
        self.num_tokens = np.zeros(num_slots, np.int64)
        self.synced_len = np.zeros(num_slots, np.int64)
        self.prompt_len = np.zeros(num_slots, np.int64)
        self.max_tokens = np.zeros(num_slots, np.int64)
        self.run_text = np.zeros(num_slots, bool)
        self.run_audio = np.zeros(num_slots, bool)
        self.text_ended = np.zeros(num_slots, bool)
        self.play_end = np.full(num_slots, -np.inf)
        self.chunk_at = np.zeros(num_slots, np.int64)
        self.arrival = np.zeros(num_slots)
        self.admission_blocked = False
        self.ring = np.zeros((num_slots, RING, 2), np.int64)

    def take(self, state: RequestState) -> None:
        """Give a free slot to a request."""
        state.slot = self.free.pop()
        self.states[state.slot] = state
        self.request_ids[state.slot] = state.request_id
        self.arrival[state.slot] = state.arrival
        self.copy_playback(state)

    def give_back(self, state: RequestState) -> None:
        """Bring the request's tape up to date and free its slot."""
        self.stop_decoding(state)
        self.states[state.slot] = None
        self.free.append(state.slot)
        state.slot = -1

    def start_decoding(self, state: RequestState) -> None:
        """Every position of the tape is computed; from now on ``append`` extends it."""
        slot = state.slot
        self.num_tokens[slot] = self.synced_len[slot] = state.num_tokens
        self.prompt_len[slot] = state.prompt_len
        self.max_tokens[slot] = state.prompt_len + state.max_new_tokens
        self.decoding[slot] = True
        self.copy_flags(state)
        state.table = self

    def stop_decoding(self, state: RequestState) -> None:
        """The request itself is current again."""
        if state.table is not None:
            self.sync(state)
            state.table = None
            self.decoding[state.slot] = False

    def copy_flags(self, state: RequestState) -> None:
        """The request's branches have changed."""
        slot = state.slot
        self.run_text[slot] = state.run_text
        self.run_audio[slot] = state.run_audio
        self.text_ended[slot] = state.text_ended

    def copy_playback(self, state: RequestState) -> None:
        """The engine has news of the request's listener."""
        self.play_end[state.slot] = state.play_end
        self.chunk_at[state.slot] = state.chunk_at

    def append(self, slots: np.ndarray, text: np.ndarray, audio: np.ndarray) -> None:
        """One sampled pair for each of ``slots`` (distinct, decoding)."""
        position = self.num_tokens[slots]
        index = position % RING
        self.ring[slots, index, 0] = audio
        self.ring[slots, index, 1] = text
        self.num_tokens[slots] = position + 1

    def sync(self, state: RequestState) -> None:
        """Move new pairs to the tape of a decoding request."""
        num_tokens = int(self.num_tokens[state.slot])
        if num_tokens > state.synced_len:
            positions = np.arange(state.synced_len, num_tokens) % RING
            assert len(positions) <= RING, "pairs were overwritten before they reached the tape"
            state.extend(self.ring[state.slot, positions])
            self.synced_len[state.slot] = num_tokens

    def opening_page(self, slots: np.ndarray, steps: int = 1) -> np.ndarray:
        """Those of ``slots`` that open a page with one of their next ``steps`` rows."""
        filled = (self.num_tokens[slots] - 1) % PAGE_SIZE
        return slots[(filled == 0) | (filled + steps > PAGE_SIZE)]

    def with_full_ring(self, slots: np.ndarray) -> np.ndarray:
        """Those of ``slots`` (which open a page) that must be synced: their ring starts anew, or might before the next page."""
        num_tokens = self.num_tokens[slots]
        unsynced = num_tokens - self.synced_len[slots]
        return slots[((num_tokens - 1) % RING == 0) | (unsynced > RING - PAGE_SIZE - MAX_LAUNCH)]
