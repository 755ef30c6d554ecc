"""What enters every matrix of the language model while it works through a manifest: rows for activation-aware scales."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from antiphon_kernels import LinearWeight, silu_mul, use_backend

from .evaluation.manifest import Row
from .models.dual_qwen import DecoderLayer, DualQwen
from .prompt import make_prompt
from .request import SamplingParams
from .runtime import Runtime
from .solo import SoloRun

MAX_ROWS = 256
"""Rows kept per matrix and branch, evenly over the whole run."""
PARTS = {"qkv": "qkv_weight", "output": "o_weight", "gate_up": "gate_up", "down": "down"}
"""Attribute of a layer → packed name."""


class Reservoir:
    """At most ``MAX_ROWS`` rows, bfloat16; each row that came is equally likely to be among them."""

    def __init__(self, width: int, seed: int):
        self._kept = torch.empty(MAX_ROWS, width, dtype=torch.bfloat16)
        self._count = 0
        self._generator = torch.Generator().manual_seed(seed)

    def add(self, rows: Tensor) -> None:
        """Offer rows [n, width]: the first ones are kept, the i-th after them replaces one with probability MAX_ROWS / i."""
        order = torch.arange(self._count, self._count + len(rows))
        drawn = (torch.rand(len(rows), dtype=torch.float64, generator=self._generator) * (order + 1)).long()
        places = torch.where(order < MAX_ROWS, order, drawn)
        chosen = places < MAX_ROWS
        self._kept[places[chosen]] = rows.detach()[chosen.to(rows.device)].to(self._kept)
        self._count += len(rows)

    @property
    def rows(self) -> Tensor:
        """What is kept, [n, width]."""
        return self._kept[: min(self._count, MAX_ROWS)]


@dataclass(frozen=True)
class RecordedLinear(LinearWeight):
    """A linear map that also keeps rows that enter it, per branch."""

    reservoirs: tuple[Reservoir, ...] = field(kw_only=True)

    @classmethod
    def over(cls, linear: LinearWeight, seed: int) -> RecordedLinear:
        branches = range(linear.weight.shape[0])
        kept = tuple(Reservoir(linear.num_inputs, seed + branch) for branch in branches)
        return cls(**{f.name: getattr(linear, f.name) for f in fields(LinearWeight)}, reservoirs=kept)

    def __call__(self, x: Tensor, split: int) -> Tensor:
        for reservoir, rows in zip(self.reservoirs, (x[:split], x[split:])):
            reservoir.add(rows)
        return super().__call__(x, split)

    def gated(self, x: Tensor, split: int) -> Tensor:
        return silu_mul(self(x, split))


def record_inputs(
    runtime: Runtime, rows: Iterable[Row], on_row: Callable[[Row], None] = lambda row: None
) -> dict[str, list[Tensor]]:
    """Transcribe or answer every row of a manifest, greedily; returns rows [n, in] per branch by packed name.

    Rows of task ``asr`` exercise trunk and text branch only: without ``chat`` rows of output type ``both`` the audio branch
    gets no rows, hence no scales. The voice is not needed. ``runtime.llm`` records from now on: throw it away.
    """
    recorded = _record(runtime.llm)
    with use_backend("reference"):  # the native step computes a whole step in one call, where nothing can be seen
        for row in rows:
            prompt = make_prompt(_conversation(row), row.output_type, runtime.builder, runtime.encoder)
            for _ in SoloRun(runtime.llm, prompt, SamplingParams(), 0).steps():
                pass
            on_row(row)
    return {name: [reservoir.rows for reservoir in linear.reservoirs] for name, linear in recorded.items()}


def _conversation(row: Row) -> list[dict[str, object]]:
    spoken = {"role": "user", "message_type": "audio", "content": str(row.wav)}
    instruction = {"role": "user", "message_type": "text", "content": row.instruction}
    return [instruction, spoken] if row.task == "asr" else [spoken]


def _record(llm: DualQwen) -> dict[str, RecordedLinear]:
    recorded: dict[str, RecordedLinear] = {}
    for stack, layers in (("trunk", llm.trunk), ("upper", llm.upper)):
        for i, layer in enumerate(layers):
            recorded |= _record_layer(f"{stack}.{i}", layer)
    return recorded


def _record_layer(prefix: str, layer: DecoderLayer) -> dict[str, RecordedLinear]:
    found = {}
    for seed, (attribute, name) in enumerate(PARTS.items()):
        linear = RecordedLinear.over(getattr(layer, attribute), 2 * seed)
        setattr(layer, attribute, linear)
        found[f"{prefix}.{name}"] = linear
    return found
