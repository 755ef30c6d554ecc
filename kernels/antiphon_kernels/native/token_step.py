"""Decode steps from the requests' state to their next pairs of tokens as one native call.

What a step reads, the network, both heads' sampling and the state machine: the kernels are those of the operators, so
tokens, pages and state are equal to theirs. A draft, smaller weights of the same model, makes several steps cheaper and
changes no token: csrc/cpu/token_step.h says why.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from .. import operator
from .arguments import are
from .linear import MAX_ROWS
from .model_step import ModelStep, chosen


class State(Protocol):
    """The requests' state: arrays over slots, two entries a slot where the streams have their own."""

    ids: list[int]
    text_history: Tensor
    audio_history: Tensor
    history_len: Tensor
    text_ended: Tensor
    stop: Tensor
    speaks: Tensor
    limit: Tensor
    temperature: Tensor
    penalty: Tensor
    top_k: Tensor
    window: Tensor
    seeds: Tensor


class Batch(Protocol):
    """One ragged step (``StepBatch``): here only steps in which every sequence has one row and draws."""

    num_rows: int
    num_sequences: int
    features: Tensor | None
    slots: np.ndarray
    starts: np.ndarray
    samples: np.ndarray
    steps: np.ndarray
    run_text: np.ndarray
    run_audio: np.ndarray
    tables: tuple[np.ndarray, np.ndarray, np.ndarray]


class Steps(NamedTuple):
    """``drawn``: int64 [steps, 4, R] (text, audio, text_ended, stop); then how many rows and heads the model computed,
    how many pairs its draft proposed, and how many of those were right."""

    drawn: Tensor
    trunk_rows: int
    text_rows: int
    audio_rows: int
    text_heads: int
    audio_heads: int
    drafted: int
    accepted: int


class TokenStep:
    """Bound to a model step and the state of its requests; keeps them alive.

    Args:
        head_delay: steps of a request in which the audio head does not run.
        draft: the same model with smaller matrices, bound to the same pages.
    """

    def __init__(self, step: ModelStep, state: State, head_delay: int, draft: ModelStep | None = None):
        from .. import _native

        streams = (state.text_history, state.audio_history, state.history_len, state.text_ended, state.stop)
        streams += (state.speaks, state.limit)
        sampling = (state.temperature, state.penalty, state.top_k, state.window, state.seeds)
        tensors = (*streams, *sampling)
        i32, i64, f32, flag = torch.int32, torch.int64, torch.float32, torch.bool
        dtypes = (i32, i32, i64, flag, i64, flag, i64, f32, f32, i64, i64, i64)
        assert all(are(dtype, t) for dtype, t in zip(dtypes, tensors, strict=True)), "the state is that of DecodeState"
        self._keep = (step, tensors, draft)
        sizes = [*state.text_history.shape, head_delay]
        addresses = ([t.data_ptr() for t in streams], [t.data_ptr() for t in sampling])
        self._step = _native.TokenStep(step.bound, *addresses, sizes, state.ids, draft and draft.bound)

    @property
    def max_rows(self) -> int:
        """Sequences of a step; 0 where operators are told not to run natively."""
        return MAX_ROWS if chosen() else 0

    def fits(self, batch: Batch) -> bool:
        """True if up to :attr:`max_rows` sequences with one row each draw, none of them for the first time."""
        return (
            0 < batch.num_rows == batch.num_sequences <= self.max_rows
            and batch.features is None
            and len({table.shape for table in batch.tables}) == 1
            and bool(batch.samples.all() and (batch.steps > 0).all() and (batch.run_text | batch.run_audio).all())
        )

    def __call__(self, batch: Batch, steps: int = 1) -> Steps:
        """So many steps of a batch that :meth:`fits`; the pages of all of them must be there.

        A request that stops runs no further; its entries behind that mean nothing. A draft has something to do from two
        steps on and up to 8 sequences: it proposes what a step of :attr:`max_rows` rows can then check.
        """
        if operator.counting:
            operator.calls["token_step", "native"] += steps
        n, max_pages = batch.num_rows, batch.tables[0].shape[1]
        rows = [
            np.ascontiguousarray(array, dtype)
            for array, dtype in (
                (batch.slots, np.int64),
                (batch.starts - batch.steps, np.int64),
                (batch.run_text, np.bool_),
                (batch.run_audio, np.bool_),
            )
        ]
        tables = [np.ascontiguousarray(table, np.int32) for table in batch.tables]
        drawn = torch.empty(steps, 4, n, dtype=torch.int64)
        addresses = [[array.ctypes.data for array in arrays] for arrays in (rows, tables)]
        return Steps(drawn, *self._step.run(n, *addresses, max_pages, steps, drawn.data_ptr()))
