"""Allocation of the paged key/value tensors. Who owns which page is the scheduler's business (``scheduler.kv_pool``)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..config import LlmConfig
from ..models.dual_qwen import KVPages

PAGE_SIZE = 16


@dataclass(frozen=True)
class KVSizes:
    """Pages per group. The text group owns pages [0, text) of the upper tensor, the audio group [text, text + audio)."""

    trunk: int
    text: int
    audio: int


def page_bytes(config: LlmConfig, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes of one trunk page and of one upper page (keys and values of all its layers)."""
    upper = max(config.num_text_layers, config.num_audio_layers)
    one = 2 * PAGE_SIZE * config.num_kv_heads * config.head_dim * dtype.itemsize
    return one * config.num_trunk_layers, one * upper


def sizes_for(config: LlmConfig, positions: int) -> KVSizes:
    """Pages that hold ``positions`` positions of speaking requests in every group."""
    pages = -(-positions // PAGE_SIZE)
    return KVSizes(pages, pages, pages)


def allocate(config: LlmConfig, sizes: KVSizes, dtype: torch.dtype, device: torch.device) -> KVPages:
    """The tensors, zero-filled: [layers, 2, pages, PAGE_SIZE, num_kv_heads, head_dim]."""
    upper = max(config.num_text_layers, config.num_audio_layers)
    tail = (PAGE_SIZE, config.num_kv_heads, config.head_dim)
    return KVPages(
        trunk=torch.zeros(config.num_trunk_layers, 2, sizes.trunk, *tail, dtype=dtype, device=device),
        upper=torch.zeros(upper, 2, sizes.text + sizes.audio, *tail, dtype=dtype, device=device),
    )
