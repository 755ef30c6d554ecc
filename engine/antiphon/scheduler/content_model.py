"""A model of integers that catches every mistake in page accounting.

It has the shape of the real one: a trunk, a text branch and an audio branch, each with keys and values in pages. A "key
and value" is one 64-bit number that depends on the tokens at the position and on every earlier number of the same group,
read through the block tables; the branches' numbers depend on the trunk's. A token depends on all numbers of its
branch. So a page that is shared wrongly, not copied, stale, evicted too early, or missing in a group changes tokens.
:func:`alone` computes the same request without pages.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from .plan import AUDIO, PAGE_SIZE, TEXT, TRUNK, SequencePlan, StepPlan, StepResults
from .request_state import RequestState
from .scheduler import Scheduler

BLANK, TEXT_EOS, AUDIO_END = 1, 2, 3
FIRST_TOKEN, NUM_TOKENS = 10, 50
DELAY = 2
_MASK = (1 << 64) - 1
_WEIGHTS = np.random.default_rng(20).integers(1, 2**63, 1 << 16, dtype=np.uint64) | np.uint64(1)
_SALTS = (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0)


@dataclass
class _Slot:
    request_id: str
    num_generated: int
    text_ended: bool


class ContentModel:
    """Runs plans on simulated pages. ``seeds`` gives each request's seed; one text in ``text_odds`` steps ends, etc."""

    def __init__(self, scheduler: Scheduler, seeds: dict[str, int], shuffle_seed: int = 0):
        pools = scheduler.memory.pools
        self.scheduler = scheduler
        self.seeds = seeds
        self.trunk = np.zeros((pools.trunk.num_pages, PAGE_SIZE), np.uint64)
        self.upper = np.zeros((pools.text.num_pages + pools.audio.num_pages, PAGE_SIZE), np.uint64)
        self.caches = (self.trunk, self.upper, self.upper)
        self.tables = tuple(np.full_like(table, -1) for table in scheduler.memory.tables)
        self.slots: dict[int, _Slot] = {}
        self.random = random.Random(shuffle_seed)
        self.rows_run = [0, 0, 0]

    def run(self, plan: StepPlan) -> StepResults:
        """Execute a plan: slot set-up, block tables, page copies, rows in random order of sequences, sampling.

        Requests aborted since the plan was made give meaningless pairs.
        """
        for assignment in plan.assigned:
            if assignment.request_id in self.scheduler.requests:
                self._assign(*assignment)
        self.note_block_writes(plan)
        for group, source, target in self._shuffled(plan.copies):
            self.caches[group][target] = self.caches[group][source]
        for sequence in self._shuffled(plan.sequences):
            if sequence.request_id in self.scheduler.requests:
                self._forward(sequence)
        pairs = [self._sample(sequence) for sequence in plan.sampling]
        return StepResults(*([list(column) for column in zip(*pairs)] or [[], [], [], []]))

    def note_block_writes(self, plan: StepPlan) -> None:
        """Keep the model's own copy of the block tables current."""
        for group, slot, index, page in self._shuffled(plan.block_writes):
            self.tables[group][slot, index] = page

    def poison_free_pages(self) -> None:
        """Overwrite every page that nobody holds and nobody remembers."""
        for pool, cache in zip(self.scheduler.memory.pools.groups, self.caches, strict=True):
            for page in range(pool.first_page, pool.first_page + pool.num_pages):
                if not pool.references(page) and not pool.is_cached(page):
                    cache[page] = np.uint64(self.random.getrandbits(64))

    def _shuffled(self, items: tuple) -> list:
        return self.random.sample(items, len(items))

    def _assign(self, request_id: str, slot: int, num_generated: int) -> None:
        state = self.scheduler.requests[request_id]
        assert num_generated == state.num_generated
        self.slots[slot] = _Slot(request_id, num_generated, TEXT_EOS in state.generated_text.tolist())

    def _groups(self, sequence: SequencePlan) -> list[int]:
        return [TRUNK] + [TEXT] * sequence.run_text + [AUDIO] * sequence.run_audio

    def _forward(self, sequence: SequencePlan) -> None:
        slot = self.slots[sequence.slot]
        state = self.scheduler.requests[sequence.request_id]
        assert slot.request_id == sequence.request_id, "a request runs in somebody else's slot"
        assert sequence.run_text or slot.text_ended
        assert sequence.run_audio == (state.output_type == "both")
        rows = state.rows(sequence.start, sequence.length).tolist()
        assert len(rows) == sequence.length > 0
        groups = self._groups(sequence)
        for group in groups:
            table = self.tables[group][sequence.slot, : len(sequence.pages(group))]
            assert (table == sequence.pages(group)).all(), "block writes do not add up to the block table"
            self.rows_run[group] += sequence.length
        views = {group: self._gather(group, sequence) for group in groups}
        for offset, row in enumerate(rows):
            position = sequence.start + offset
            hidden = _hidden(row, views[TRUNK][:position])
            for group in groups:
                value = hidden if group == TRUNK else _branch(group, hidden, views[group][:position])
                views[group][position] = value
                page = self.tables[group][sequence.slot, position // PAGE_SIZE]
                self.caches[group][page, position % PAGE_SIZE] = value

    def _gather(self, group: int, sequence: SequencePlan) -> np.ndarray:
        return self.caches[group][sequence.pages(group)].reshape(-1)

    def _sample(self, sequence: SequencePlan) -> tuple[int, int, bool, bool]:
        if sequence.request_id not in self.scheduler.requests:
            return 0, 0, False, False
        slot = self.slots[sequence.slot]
        assert slot.num_generated == sequence.num_generated
        length = sequence.start + sequence.length
        views = [self._gather(g, sequence)[:length] if g in self._groups(sequence) else None for g in range(3)]
        seed = self.seeds[sequence.request_id]
        result = _pair(seed, slot.num_generated, views[TEXT], views[AUDIO], slot.text_ended)
        slot.num_generated += 1
        slot.text_ended = result[2]
        return result


def alone(state: RequestState, seed: int) -> tuple[list[int], list[int], str]:
    """Text history, audio history and finish reason of a fresh request when it has the model for itself."""
    rows = state.rows(0, state.prompt_len).tolist()
    speaks, text_ended = state.output_type == "both", False
    size = state.prompt_len + state.max_new_tokens
    views = [np.zeros(size, np.uint64) for _ in range(3)]
    texts: list[int] = []
    audios: list[int] = []
    computed = 0
    while True:
        for position in range(computed, len(rows)):
            hidden = views[TRUNK][position] = _hidden(rows[position], views[TRUNK][:position])
            for group in (TEXT, AUDIO):
                views[group][position] = _branch(group, int(hidden), views[group][:position])
        computed = len(rows)
        text_view = None if text_ended else views[TEXT][:computed]
        audio_view = views[AUDIO][:computed] if speaks else None
        text, audio, text_ended, finished = _pair(seed, len(texts), text_view, audio_view, text_ended)
        texts.append(text)
        audios.append(audio)
        if finished or len(texts) == state.max_new_tokens:
            return texts, audios, "stop" if finished else "length"
        rows.append([audio, text, 0])


def _pair(
    seed: int, step: int, text_view: np.ndarray | None, audio_view: np.ndarray | None, text_ended: bool
) -> tuple[int, int, bool, bool]:
    """One step of reference behaviour section 9 with hashes in place of logits."""
    text = BLANK if text_ended else _token(TEXT, seed, step, text_view, TEXT_EOS, 11)
    text_ended = text_ended or text == TEXT_EOS
    if audio_view is None:
        return text, BLANK, text_ended, text_ended
    audio = BLANK if step < DELAY else _token(AUDIO, seed, step, audio_view, AUDIO_END, 31)
    return text, audio, text_ended, audio == AUDIO_END


def _token(group: int, seed: int, step: int, view: np.ndarray, end: int, odds: int) -> int:
    value = _mix(_fold(view) + seed * 0x9E3779B97F4A7C15 + step * 0xD1B54A32D192ED03 + _SALTS[group])
    return end if value % odds == 0 else FIRST_TOKEN + (value >> 8) % NUM_TOKENS


def _hidden(row: list[int], before: np.ndarray) -> int:
    audio, text, feature = row
    return _mix(_mix(_mix(_mix(audio + 1) + text) + feature) + _fold(before) + len(before))


def _branch(group: int, hidden: int, before: np.ndarray) -> int:
    return _mix(hidden ^ _SALTS[group]) ^ _mix(_fold(before) + _SALTS[group])


def _fold(view: np.ndarray) -> int:
    """Every number and its position count."""
    return int(np.dot(view, _WEIGHTS[: len(view)]))


def _mix(x: int) -> int:
    x &= _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
