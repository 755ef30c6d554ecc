"""Operators of Antiphon: one file each with its mathematics, reference, kernels and dispatch."""

from . import native
from .add_rms_norm import add_rms_norm
from .advance_streams import Stop, advance_streams
from .alias_free_snake import alias_free_snake
from .conv1d import conv1d
from .decode_inputs import decode_inputs
from .dual_embed import dual_embed
from .encoder_attention import encoder_attention
from .euler_step import euler_step
from .flow_attention import flow_attention
from .flow_rope import flow_rope
from .gate_residual import gate_residual
from .gelu import gelu
from .layer_norm_modulate import layer_norm_modulate
from .linear import linear
from .linear_compact import linear_compact
from .linear_fixed import linear_fixed, pack_fixed
from .linear_fp8 import linear_fp8
from .linear_fp8_silu_mul import linear_fp8_silu_mul
from .linear_int4 import linear_int4
from .linear_int4_silu_mul import linear_int4_silu_mul
from .linear_int8 import linear_int8
from .linear_int8_silu_mul import linear_int8_silu_mul
from .linear_panels import linear_panels
from .linear_silu_mul import linear_silu_mul
from .linear_weight import LinearWeight
from .operator import BackendError, Operator, count_calls, operators, set_backend, use_backend
from .paged_attention import paged_attention
from .rms_norm import rms_norm
from .rope_cache import rope_cache
from .sample_tokens import sample_tokens
from .silu_mul import silu_mul
from .vq_nearest import vq_nearest

__all__ = [
    "BackendError",
    "LinearWeight",
    "Operator",
    "Stop",
    "add_rms_norm",
    "advance_streams",
    "alias_free_snake",
    "conv1d",
    "count_calls",
    "decode_inputs",
    "dual_embed",
    "encoder_attention",
    "euler_step",
    "flow_attention",
    "flow_rope",
    "gate_residual",
    "gelu",
    "layer_norm_modulate",
    "linear",
    "linear_compact",
    "linear_fixed",
    "linear_fp8",
    "linear_fp8_silu_mul",
    "linear_int4",
    "linear_int4_silu_mul",
    "linear_int8",
    "linear_int8_silu_mul",
    "linear_panels",
    "linear_silu_mul",
    "native",
    "operators",
    "pack_fixed",
    "paged_attention",
    "rms_norm",
    "rope_cache",
    "sample_tokens",
    "set_backend",
    "silu_mul",
    "use_backend",
    "vq_nearest",
]
