"""Limits of an engine, and how they become page counts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from .config import LlmConfig
from .errors import ConfigError
from .execution.flashinfer_attention import CHOICES
from .execution.kv_cache import PAGE_SIZE, KVSizes, page_bytes

DEFAULT_KV_BYTES = 1 << 30
NATIVE_STEPS = 8
"""Decode steps of a launch by the native step unless told otherwise: as many pairs as one round of a draft can give."""


@dataclass(frozen=True)
class EngineConfig:
    """What an engine may hold and do in one step. None means "auto", see :func:`resolve`.

    max_sequences: requests that generate at once. token_budget: rows of one language-model step. kv_bytes: memory of all
    key/value pages. kv_pages: pages per group instead. max_voices: requests whose sound is being made at once (default:
    max_sequences). max_speech_batch: chunks in one ODE solve. encode_seconds: sound that one step encodes at most (one
    request in any case). max_waiting: requests that may queue before new ones are refused. keep_text_branch: run the text
    branch of speaking requests to the end, so that the next turn of a conversation finds its text keys in the cache;
    costs the branch, changes no token. decode_steps_per_launch: decode steps that run in a row without the host, by captured
    graphs or by the native step of a CPU (of up to 16 requests), while nobody waits to be admitted and no speech chunk is
    about to be complete; saves the gap between steps, and text comes in groups; changes no token
    (default: 1; by the native step 8, or as many as take no longer than a step with prompts may; with a draft 8, for it
    proposes within a launch). attention: "antiphon", "flashinfer"
    (everywhere) or "auto" (FlashInfer for prompts, where it is installed and suits).
    """

    max_sequences: int = 16
    token_budget: int = 512
    kv_bytes: int | None = None
    kv_pages: int | None = None
    max_voices: int | None = None
    max_speech_batch: int = 16
    encode_seconds: float = 30.0
    max_waiting: int = 1024
    prefix_caching: bool = True
    keep_text_branch: bool = False
    decode_steps_per_launch: int | None = None
    attention: str = "auto"

    def __post_init__(self) -> None:
        for name in ("max_sequences", "token_budget", "max_speech_batch", "max_waiting"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.token_budget < self.max_sequences:
            raise ConfigError(f"token_budget {self.token_budget} is below max_sequences {self.max_sequences}")
        if self.attention not in CHOICES:
            raise ConfigError(f"attention {self.attention!r}: expected one of {', '.join(CHOICES)}")
        steps = self.decode_steps_per_launch
        if steps is not None and not 1 <= steps <= PAGE_SIZE:
            raise ConfigError(f"decode_steps_per_launch must be 1 to {PAGE_SIZE}, got {steps}")


def resolve(
    config: EngineConfig, llm: LlmConfig, dtype: torch.dtype, *, native: bool = False, drafts: bool = False
) -> EngineConfig:
    """``config`` with every "auto" filled in: one longest request must always fit, more as the memory allows.

    ``native``: decode steps are native calls. ``drafts``: the model has a draft.
    """
    steps = config.decode_steps_per_launch or (NATIVE_STEPS if native or drafts else 1)
    if drafts and steps == 1:
        raise ConfigError("a draft proposes within a launch of several steps; set decode_steps_per_launch to 2 or more")
    config = replace(config, max_voices=config.max_voices or config.max_sequences, decode_steps_per_launch=steps)
    if config.kv_pages is not None:
        return config
    trunk, upper = page_bytes(llm, dtype)
    longest = -(-llm.max_positions // PAGE_SIZE)
    wanted = longest + (config.max_sequences - 1) * -(-1536 // PAGE_SIZE)
    budget = config.kv_bytes if config.kv_bytes is not None else max(DEFAULT_KV_BYTES, longest * (trunk + 2 * upper))
    pages = min(wanted, budget // (trunk + 2 * upper))
    if pages < 2:
        raise ConfigError(f"kv_bytes {budget} holds {pages} pages of {trunk + 2 * upper} bytes; raise it")
    return replace(config, kv_pages=pages, kv_bytes=pages * (trunk + 2 * upper))


def kv_sizes(config: EngineConfig) -> KVSizes:
    """Pages per group of a resolved configuration."""
    assert config.kv_pages is not None, "resolve() comes first"
    return KVSizes(config.kv_pages, config.kv_pages, config.kv_pages)
