"""Operators of Antiphon: one file each with its mathematics, reference, kernels and dispatch."""

from .add_rms_norm import add_rms_norm
from .advance_streams import Stop, advance_streams
from .dual_embed import dual_embed
from .linear import linear
from .operator import BackendError, Operator, count_calls, operators, set_backend, use_backend
from .paged_attention import paged_attention
from .rms_norm import rms_norm
from .rope_cache import rope_cache
from .sample_tokens import sample_tokens
from .silu_mul import silu_mul

__all__ = [
    "BackendError",
    "Operator",
    "Stop",
    "add_rms_norm",
    "advance_streams",
    "count_calls",
    "dual_embed",
    "linear",
    "operators",
    "paged_attention",
    "rms_norm",
    "rope_cache",
    "sample_tokens",
    "set_backend",
    "silu_mul",
    "use_backend",
]
