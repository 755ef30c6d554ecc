"""FlashInfer as the attention of the language model, where it is installed and suits: plan once a step, run in every layer.

Our own kernel needs no plan, which lets several decode steps follow each other without the host; so captured decode steps keep
it, and FlashInfer takes the eager ones (prompts and mixed steps) unless :class:`PlannedAttention` is asked for graph mode.
Key/value splits have a fixed size (eager) or do not happen (graph mode), so that a row does not depend on the batch around it.
Written for ``flashinfer.BatchPrefillWithPagedKVCacheWrapper`` as of 0.7; a test checks these calls against the real package.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import LlmConfig
from ..errors import ConfigError
from .kv_cache import PAGE_SIZE

logger = logging.getLogger(__name__)
WORKSPACE_BYTES = 128 << 20
SPLIT_PAGES = 16
"""Pages of one key/value split: 256 keys, as in our own kernel."""
HEAD_DIMS = (64, 128, 256)
LAYOUT = "NHD"
"""Pages are [page_size, heads, head_dim]; keys and values are two tensors."""
CHOICES = ("auto", "antiphon", "flashinfer")
Attend = Callable[[Tensor, Tensor], Tensor]


def wrapper_class() -> type:
    """FlashInfer's wrapper for ragged queries over paged keys; ImportError if it is not there or incomplete."""
    return importlib.import_module("flashinfer.prefill").BatchPrefillWithPagedKVCacheWrapper


def is_installed() -> bool:
    """Whether the package is there, without importing it."""
    return importlib.util.find_spec("flashinfer") is not None


def suits(config: LlmConfig, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether FlashInfer can compute this model's attention."""
    return device.type == "cuda" and dtype in (torch.bfloat16, torch.float16) and config.head_dim in HEAD_DIMS


def choose(choice: str, config: LlmConfig, dtype: torch.dtype, device: torch.device) -> FlashInferAttention | None:
    """FlashInfer's attention, or None for our own. ``auto`` takes FlashInfer where it is installed, suits and imports.

    Raises:
        ConfigError: an unknown choice, or ``flashinfer`` where it is missing or does not suit.
    """
    if choice not in CHOICES:
        raise ConfigError(f"attention {choice!r}: expected one of {', '.join(CHOICES)}")
    usable = is_installed() and suits(config, dtype, device)
    if choice == "flashinfer" and not usable:
        raise ConfigError(
            "attention 'flashinfer' needs the package flashinfer-python, a CUDA device, bfloat16 or float16, "
            f"and a head size of {HEAD_DIMS}; use 'auto'"
        )
    if choice == "antiphon" or not usable:
        return None
    try:
        return FlashInferAttention(config, dtype, device)
    except ImportError as error:
        if choice == "flashinfer":
            raise ConfigError(f"flashinfer is installed but does not import: {error}") from error
        logger.warning("flashinfer is installed but does not import (%s); using our own attention", error)
        return None


def page_arrays(tables: np.ndarray, seq_lens: np.ndarray) -> dict[str, np.ndarray]:
    """FlashInfer's ragged page lists of block tables [S, W] and context lengths [S]: int32 indptr, indices, last_page_len."""
    counts = -(-seq_lens // PAGE_SIZE)
    used = np.arange(tables.shape[1]) < counts[:, None]
    return {
        "paged_kv_indptr": np.concatenate(([0], np.cumsum(counts))).astype(np.int32),
        "paged_kv_indices": np.ascontiguousarray(tables[used], np.int32),
        "paged_kv_last_page_len": (seq_lens - (counts - 1) * PAGE_SIZE).astype(np.int32),
    }


def plan_arguments(
    config: LlmConfig, dtype: torch.dtype, cu_seqlens: np.ndarray, tables: np.ndarray, seq_lens: np.ndarray, graph: bool
) -> dict[str, Any]:
    """Keyword arguments of ``plan``; the arrays stay on the host, where FlashInfer reads them."""
    arrays = {"qo_indptr": np.asarray(cu_seqlens, np.int32), **page_arrays(tables, seq_lens)}
    splits = {"disable_split_kv": True} if graph else {"fixed_split_size": SPLIT_PAGES}
    return {
        **{name: torch.from_numpy(array) for name, array in arrays.items()},
        "num_qo_heads": config.num_heads,
        "num_kv_heads": config.num_kv_heads,
        "head_dim_qk": config.head_dim,
        "page_size": PAGE_SIZE,
        "causal": True,
        "sm_scale": config.head_dim**-0.5,
        "q_data_type": dtype,
        "kv_data_type": dtype,
        "non_blocking": True,
        **splits,
    }


class PlannedAttention:
    """One wrapper: plan the sequences of a step, then call with q [T, Hq, D] and one layer's pages [2, pages, 16, Hkv, D].

    Args:
        graph_rows: sequences of a captured decode step, whose buffers are then fixed; None for eager steps.
        graph_pages: most pages that those sequences can have together.
        wrapper: FlashInfer's class, for tests.
    """

    def __init__(
        self,
        config: LlmConfig,
        dtype: torch.dtype,
        device: torch.device,
        graph_rows: int | None = None,
        graph_pages: int = 0,
        wrapper: type | None = None,
    ):
        self.config, self.dtype, self.device = config, dtype, device
        self.graph = graph_rows is not None
        workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        self._wrapper = (wrapper or wrapper_class())(workspace, LAYOUT, **self._buffers(graph_rows, graph_pages))

    def plan(self, cu_seqlens: np.ndarray, tables: np.ndarray, seq_lens: np.ndarray) -> Attend:
        """Prepare a step; returns what its layers call."""
        arguments = plan_arguments(self.config, self.dtype, cu_seqlens, tables, seq_lens, self.graph)
        self._wrapper.plan(**arguments)
        return self

    def __call__(self, q: Tensor, kv: Tensor) -> Tensor:
        """Attention of one layer, [T, Hq, D]."""
        return self._wrapper.run(q, (kv[0], kv[1]))

    def _buffers(self, rows: int | None, pages: int) -> dict[str, Any]:
        if rows is None:
            return {}

        def zeros(size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.int32, device=self.device)

        return {
            "use_cuda_graph": True,
            "qo_indptr_buf": zeros(rows + 1),
            "paged_kv_indptr_buf": zeros(rows + 1),
            "paged_kv_indices_buf": zeros(pages),
            "paged_kv_last_page_len_buf": zeros(rows),
        }


class FlashInferAttention:
    """Plans of eager steps, one for the trunk and one for the branches."""

    def __init__(self, config: LlmConfig, dtype: torch.dtype, device: torch.device, wrapper: type | None = None):
        self._parts = tuple(PlannedAttention(config, dtype, device, wrapper=wrapper) for _ in range(2))

    def plan(self, part: int, cu_seqlens: np.ndarray, tables: np.ndarray, seq_lens: np.ndarray) -> Attend | None:
        """``part``: 0 for the trunk, 1 for the branches; None if the part has no sequence."""
        return self._parts[part].plan(cu_seqlens, tables, seq_lens) if len(seq_lens) else None
