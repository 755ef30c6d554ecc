"""FlashInfer as the attention of the language model, where it is installed and suits: plan once a step, run in every layer.

Our own kernel needs no plan, which lets several decode steps follow each other without the host; so ``auto`` keeps it for
captured decode steps, and FlashInfer takes the eager ones (prompts and mixed steps). Who asks for ``flashinfer`` gets it in
captured steps too, one step a launch: :class:`CapturedDecode` is planned before every replay.
Key/value splits have a fixed size (eager) or do not happen (captured), so that a row does not depend on the batch around it.
Written for ``flashinfer.BatchPrefillWithPagedKVCacheWrapper`` and ``BatchDecodeWithPagedKVCacheWrapper`` as of 0.7; a test checks
these calls against the real package.
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


def decode_wrapper_class() -> type:
    """FlashInfer's wrapper for one query per sequence, in a CUDA graph if asked for; ImportError as above."""
    return importlib.import_module("flashinfer.decode").BatchDecodeWithPagedKVCacheWrapper


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
    config: LlmConfig, dtype: torch.dtype, cu_seqlens: np.ndarray, tables: np.ndarray, seq_lens: np.ndarray
) -> dict[str, Any]:
    """Keyword arguments of ``plan``; the arrays stay on the host, where FlashInfer reads them."""
    arrays = {"qo_indptr": np.asarray(cu_seqlens, np.int32), **page_arrays(tables, seq_lens)}
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
        "fixed_split_size": SPLIT_PAGES,
    }


def decode_plan_arguments(
    config: LlmConfig, dtype: torch.dtype, tables: np.ndarray, seq_lens: np.ndarray
) -> dict[str, Any]:
    """Keyword arguments of the decode wrapper's ``plan``: one query per sequence."""
    pages = page_arrays(tables, seq_lens)
    return {
        **{name.removeprefix("paged_kv_"): torch.from_numpy(array) for name, array in pages.items()},
        "num_qo_heads": config.num_heads,
        "num_kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "page_size": PAGE_SIZE,
        "q_data_type": dtype,
        "kv_data_type": dtype,
        "sm_scale": config.head_dim**-0.5,
        "non_blocking": True,
        "disable_split_kv": True,
    }


class PlannedAttention:
    """One wrapper of eager steps: plan the sequences, then call with q [T, Hq, D] and a layer's pages [2, pages, 16, Hkv, D].

    ``wrapper``: FlashInfer's class, for tests.
    """

    def __init__(self, config: LlmConfig, dtype: torch.dtype, device: torch.device, wrapper: type | None = None):
        self.config, self.dtype = config, dtype
        self._wrapper = (wrapper or wrapper_class())(_workspace(device), LAYOUT)

    def plan(self, cu_seqlens: np.ndarray, tables: np.ndarray, seq_lens: np.ndarray) -> Attend:
        """Prepare a step; returns what its layers call."""
        self._wrapper.plan(**plan_arguments(self.config, self.dtype, cu_seqlens, tables, seq_lens))
        return self

    def __call__(self, q: Tensor, kv: Tensor) -> Tensor:
        """Attention of one layer, [T, Hq, D]."""
        return self._wrapper.run(q, (kv[0], kv[1]))


class CapturedDecode:
    """The wrapper of a captured decode step of ``rows`` sequences with at most ``width`` pages each; its buffers are fixed.

    Plan before the capture and before every replay, on the stream of the replay; call inside the capture.
    """

    def __init__(
        self,
        config: LlmConfig,
        dtype: torch.dtype,
        device: torch.device,
        rows: int,
        width: int,
        workspace: Tensor,
        wrapper: type | None = None,
    ):
        self.config, self.dtype = config, dtype

        def zeros(size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.int32, device=device)

        self._wrapper = (wrapper or decode_wrapper_class())(
            workspace,
            LAYOUT,
            use_cuda_graph=True,
            use_tensor_cores=True,
            paged_kv_indptr_buffer=zeros(rows + 1),
            paged_kv_indices_buffer=zeros(rows * width),
            paged_kv_last_page_len_buffer=zeros(rows),
        )

    def plan(self, tables: np.ndarray, seq_lens: np.ndarray) -> None:
        """Block tables int32 [rows, width] and context lengths [rows] of the step to come; idle rows have one page."""
        self._wrapper.plan(**decode_plan_arguments(self.config, self.dtype, tables, seq_lens))

    def __call__(self, q: Tensor, kv: Tensor) -> Tensor:
        """Attention of one layer, [rows, Hq, D]."""
        return self._wrapper.run(q, (kv[0], kv[1]))


class CapturedAttention:
    """Makes the wrappers of captured decode steps, which never run at the same time and so share one workspace."""

    def __init__(self, config: LlmConfig, dtype: torch.dtype, device: torch.device, wrapper: type | None = None):
        self.config, self.dtype, self.device = config, dtype, device
        self._wrapper, self._shared = wrapper, _workspace(device)

    def open(self, rows: int, width: int) -> CapturedDecode:
        """For ``rows`` sequences with block tables of ``width`` pages."""
        return CapturedDecode(self.config, self.dtype, self.device, rows, width, self._shared, self._wrapper)


def _workspace(device: torch.device) -> Tensor:
    return torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)


class FlashInferAttention:
    """Plans of eager steps, one for the trunk and one for the branches."""

    def __init__(self, config: LlmConfig, dtype: torch.dtype, device: torch.device, wrapper: type | None = None):
        self._parts = tuple(PlannedAttention(config, dtype, device, wrapper=wrapper) for _ in range(2))

    def plan(self, part: int, cu_seqlens: np.ndarray, tables: np.ndarray, seq_lens: np.ndarray) -> Attend | None:
        """``part``: 0 for the trunk, 1 for the branches; None if the part has no sequence."""
        return self._parts[part].plan(cu_seqlens, tables, seq_lens) if len(seq_lens) else None
