"""The compiled CPU operators (csrc/cpu), registered as backend ``native`` of their operators.

The module ``antiphon_kernels._native`` is optional: without it everything runs on the other backends, and
:func:`status` says how to build it. ``ANTIPHON_CPU_ISA`` (scalar, avx2, avx512, avx512vnni, avx512bf16, amx) forces an instruction set,
``ANTIPHON_CPU_THREADS`` the number of threads; by default the best of the CPU and all CPUs the process may use.
"""

from __future__ import annotations

import importlib.util
import logging

BUILD_COMMAND = "pip install -e ."

MAX_STEP_ROWS = 512
"""Rows of a branch that a native step of the language model takes (kMaxStepRows in csrc/cpu/model_step.h)."""

available = importlib.util.find_spec("antiphon_kernels._native") is not None
"""True if the compiled module is present."""


def status() -> str:
    """One line for people: the instruction set and threads in use, or the command that builds the module."""
    if not available:
        return f"native CPU operators: not built; `{BUILD_COMMAND}` in Antiphon's source folder builds them"
    from antiphon_kernels import _native

    return f"native CPU operators: {_native.isa()}, {_native.num_threads()} threads"


def bind_model_step(model, kv_trunk, kv_upper, num_text_layers: int, num_audio_layers: int):
    """The ``model_step.ModelStep`` of a model and its pages, or None where the native path cannot run it."""
    if not available:
        return None
    from .model_step import ModelStep, available_for

    if not available_for(model, kv_trunk, kv_upper):
        return None
    return ModelStep(model, kv_trunk, kv_upper, num_text_layers, num_audio_layers)


def bind_token_step(step, state, head_delay: int, draft=None):
    """The ``token_step.TokenStep`` of a bound model step, its draft and the requests' state, or None without a step."""
    if step is None:
        return None
    from .token_step import TokenStep

    return TokenStep(step, state, head_delay, draft)


def bind_vocoder(config, weights):
    """The ``vocoder.BoundVocoder`` of a generator's weights, or None where the native path cannot run it or is not chosen."""
    if not available:
        return None
    from .vocoder import BoundVocoder, available_for, chosen

    return BoundVocoder(config, weights) if chosen() and available_for(config, weights) else None


def packed_vocoder_bytes(num_bytes: int, dtype) -> int:
    """Bytes that a bound vocoder keeps beside ``num_bytes`` of weights, as ``vocoder.packed_bytes``."""
    if not available:
        return 0
    from .vocoder import packed_bytes

    return packed_bytes(num_bytes, dtype)


def bind_flow_pass(config, dense, cos, sin, eps: float, packed_limit: int):
    """The ``flow_pass.FlowPass`` of a DiT's linear maps, or None where the native path cannot run it or is not chosen."""
    if not available:
        return None
    from .flow_pass import FlowPass, available_for
    from .network_pass import chosen

    return FlowPass(config, dense, cos, sin, eps, packed_limit) if chosen() and available_for(config, dense) else None


def bind_encoder_pass(convolutions, positions, layers, final_norm, causal: bool, eps: float):
    """The ``encoder_pass.EncoderPass`` of an audio encoder, or None where the native path cannot run it or is not chosen."""
    if not available:
        return None
    from .encoder_pass import EncoderPass, available_for
    from .network_pass import chosen

    if not chosen() or not available_for(convolutions, positions, layers, final_norm):
        return None
    return EncoderPass(convolutions, positions, layers, final_norm, causal, eps)


def prefers_fixed(weight) -> bool:
    """True where the operator ``linear_fixed`` serves a matrix [out, in] better than ``linear`` and may be chosen."""
    if not available:
        return False
    from .linear_fixed import prefers

    return prefers(weight)


def prefers_panels() -> bool:
    """True where networks of many rows are faster with weights as ``linear_panels`` takes them and may be given such."""
    if not available:
        return False
    from .linear_panels import prefers

    return prefers()


def prefers_compact(dtype, many_rows: bool = False) -> bool:
    """True where ``linear_compact`` decodes in ``dtype``, or works on ``many_rows``, faster than ``linear`` with plain weights and may
    be chosen."""
    if not available:
        return False
    from .linear_compact import prefers

    return prefers(dtype, many_rows)


def empty_rows(shape, dtype, device, allocate=None):
    """``rows.empty_rows``, a matrix [out, in] for weights, or a contiguous one where there is no native module."""
    import torch

    allocate = allocate or torch.empty
    if not available:
        return allocate(shape, dtype=dtype, device=device)
    from . import rows

    return rows.empty_rows(shape, dtype, device, allocate)


if available:
    from . import (  # noqa: F401
        alias_free_snake,
        conv1d,
        encoder_attention,
        flow_attention,
        gelu,
        layer_norm_modulate,
        linear,
        linear_compact,
        linear_fixed,
        linear_panels,
        linear_quantized,
        paged_attention,
        rms_norm,
        rope_cache,
        sample_tokens,
        silu_mul,
        streams,
    )
else:
    logging.getLogger("antiphon").info(status())
