"""What must be done at least, from the model's configuration alone: the yardsticks for what a rehearsal recorded."""

from __future__ import annotations

from ..config import FRAMES_PER_TOKEN, FlowConfig, LlmConfig
from .step_costs import layer_params


def decode_bytes(c: LlmConfig, batch: int, context: int, text: bool, audio: bool, weight_bytes: float = 2.0) -> float:
    """Weights and keys and values that a decode step of ``batch`` rows at ``context`` positions each must read.

    Trunk, the branches that run and their heads; small vectors and activations are left out.
    """
    layers = c.num_trunk_layers + (c.num_text_layers if text else 0) + (c.num_audio_layers if audio else 0)
    heads = (text + audio) * c.vocab_size * c.hidden_size
    kv = 2 * c.num_kv_heads * c.head_dim * 2 * layers
    return weight_bytes * (layers * layer_params(c) + heads) + kv * context * batch


def flow_reference_flops(c: FlowConfig, rows: int, kept: int, cached: int, steps: int) -> float:
    """Operations of the reference for one chunk: modulations per frame, and one more whole pass over the kept rows."""
    return steps * _flow_pass(c, rows, cached) + _flow_pass(c, kept, cached)


def _flow_pass(c: FlowConfig, rows: int, cached: int) -> float:
    h, mlp = c.hidden_size, int(c.hidden_size * c.mlp_ratio)
    block = 4 * h * h + 2 * h * mlp + 6 * h * h
    ends = 2 * c.num_mels * h + 2 * h * h
    return 2.0 * rows * (c.depth * block + ends) + c.depth * 4.0 * rows * (rows + cached) * h


def flow_share_without_frames(c: FlowConfig) -> float:
    """Share of a block's products that conditioning per token leaves: 0.75 for the released network."""
    per_frame = 4 + 2 * c.mlp_ratio
    return (per_frame + 6 / FRAMES_PER_TOKEN) / (per_frame + 6)
