"""Official tensors → packed tensors: q|k|v and gate|up in one matrix, branches stacked, weight norm folded.

Every packed tensor is allocated once and filled part by part from the mapped file, so at no time are there two full
copies. The functions are generators, so a consumer may transform (quantise, move) each tensor as it comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..config import EncoderConfig, LlmConfig, VocoderConfig
from ..errors import CheckpointError
from .expected import Shapes

Named = tuple[str, torch.Tensor]
Allocate = Callable[..., torch.Tensor]
"""As ``torch.empty``: shape, dtype, device."""
BETA_EPS = 1e-9


@dataclass(frozen=True)
class Packer:
    """Allocates packed tensors in ``dtype`` on ``device`` and fills them with what ``read`` yields.

    On the meta device nothing is read: only shapes and dtypes come out. ``where`` names the file in errors. ``matrix``
    allocates what :meth:`join` makes of linear maps, those with a bias; ``allocate`` everything else.
    """

    shapes: Shapes
    read: Callable[[str], torch.Tensor]
    dtype: torch.dtype
    device: torch.device
    where: Path = Path()
    matrix: Allocate = torch.empty
    allocate: Allocate = torch.empty

    def join(self, *keys: str | None) -> torch.Tensor:
        """The tensors ``keys`` one below the other; None stands for zeros of the first one's shape."""
        rows, rest = self._size(keys)
        allocate = self.matrix if self._is_linear(keys[0], rest) else self.allocate
        target = allocate((rows, *rest), dtype=self.dtype, device=self.device)
        self._fill(target, keys)
        return target

    def stack(self, *branches: Sequence[str]) -> torch.Tensor:
        """Joined tensors of each branch, stacked: ``[branches, rows, ...]``."""
        rows, rest = self._size(branches[0])
        target = self.allocate((len(branches), rows, *rest), dtype=self.dtype, device=self.device)
        for part, keys in zip(target, branches):
            self._fill(part, keys)
        return target

    def source(self, key: str) -> torch.Tensor:
        """The official tensor ``key`` as stored."""
        if self.device.type == "meta":
            return torch.empty(self.shapes[key], device="meta")
        return self.read(key)

    def _is_linear(self, key: str, rest: tuple[int, ...]) -> bool:
        name, _, kind = key.rpartition(".")
        return kind == "weight" and len(rest) == 1 and f"{name}.bias" in self.shapes

    def _size(self, keys: Sequence[str | None]) -> tuple[int, tuple[int, ...]]:
        shapes = [self.shapes[key or keys[0]] for key in keys]
        return sum(shape[0] for shape in shapes), shapes[0][1:]

    def _fill(self, target: torch.Tensor, keys: Sequence[str | None]) -> None:
        begin = 0
        for key in keys:
            part = target[begin : begin + self.shapes[key or keys[0]][0]]
            begin += part.shape[0]
            if key is None:
                part.zero_()
            else:
                part.copy_(self.source(key))


def pack_llm(packer: Packer, c: LlmConfig) -> Iterator[Named]:
    """Packed tensors of the language model; the names are listed at :func:`antiphon.checkpoint.load_llm`."""
    yield "embed", packer.join("model.embed_tokens.weight")
    for i in range(c.num_trunk_layers):
        yield from _qwen_layer(packer, f"trunk.{i}", [f"model.layers.{i}"])
    for j in range(max(c.num_text_layers, c.num_audio_layers)):
        text = [f"model.layers.{c.num_trunk_layers + j}"] if j < c.num_text_layers else []
        audio = [f"model.mimo_layers.{j}"] if j < c.num_audio_layers else []
        yield from _qwen_layer(packer, f"upper.{j}", text + audio)
    yield "final_norm", packer.stack(["model.norm.weight"], ["model.mimo_norm.weight"])
    yield "lm_head", packer.join("lm_head.weight")
    yield "audio_head", packer.join("mimo_output.weight")
    for layer in (0, 3, 4):
        for kind in ("weight", "bias"):
            yield f"adaptor.{layer}.{kind}", packer.join(f"model.vq_adaptor.layers.{layer}.{kind}")


def _qwen_layer(packer: Packer, name: str, branches: Sequence[str]) -> Iterator[Named]:
    parts = {
        "input_norm": ("input_layernorm.weight",),
        "qkv_weight": tuple(f"self_attn.{p}_proj.weight" for p in "qkv"),
        "qkv_bias": tuple(f"self_attn.{p}_proj.bias" for p in "qkv"),
        "o_weight": ("self_attn.o_proj.weight",),
        "post_norm": ("post_attention_layernorm.weight",),
        "gate_up": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
        "down": ("mlp.down_proj.weight",),
    }
    for part, keys in parts.items():
        yield f"{name}.{part}", packer.stack(*([f"{branch}.{key}" for key in keys] for branch in branches))


def pack_encoder(packer: Packer, c: EncoderConfig) -> Iterator[Named]:
    """Packed tensors of a Whisper-shaped encoder without what follows its layers."""
    for conv in ("conv1", "conv2"):
        yield f"{conv}.weight", packer.join(f"{conv}.weight")
        yield f"{conv}.bias", packer.join(f"{conv}.bias")
    yield "positions", packer.join("embed_positions.weight")
    for i in range(c.num_layers):
        layer = f"layers.{i}"
        attention = f"{layer}.self_attn"
        yield f"{layer}.qkv.weight", packer.join(*(f"{attention}.{p}_proj.weight" for p in "qkv"))
        yield f"{layer}.qkv.bias", packer.join(f"{attention}.q_proj.bias", None, f"{attention}.v_proj.bias")
        renamed = {
            "attn_norm": "self_attn_layer_norm",
            "mlp_norm": "final_layer_norm",
            "out": "self_attn.out_proj",
            "fc1": "fc1",
            "fc2": "fc2",
        }
        for name, official in renamed.items():
            for kind in ("weight", "bias"):
                yield f"{layer}.{name}.{kind}", packer.join(f"{layer}.{official}.{kind}")


def pack_plain(packer: Packer) -> Iterator[Named]:
    """Every tensor under its own name."""
    for key in packer.shapes:
        yield key, packer.join(key)


def pack_vocoder(packer: Packer, c: VocoderConfig) -> Iterator[Named]:
    """Weight norm folded in float32; activation parameters and filters stay float32 whatever the dtype."""
    for key in packer.shapes:
        name, kind = key.rsplit(".", 1)
        if kind == "weight_v":
            yield f"{name}.weight", _fold(packer, name).to(packer.dtype)
        elif kind == "bias":
            yield key, packer.join(key)
        elif kind == "alpha":
            yield key, _scale(packer, key, c)
        elif kind == "beta":
            beta = _scale(packer, key, c)
            yield f"{name}.inv_beta", beta if beta.is_meta else 1.0 / (beta + BETA_EPS)
        elif kind == "filter":
            yield key, packer.source(key).to(packer.device, torch.float32, copy=True).flatten()


def _fold(packer: Packer, name: str) -> torch.Tensor:
    """``v * g / ||v||``, the norm over all dimensions but the first (also for transposed convolutions)."""
    v = packer.source(f"{name}.weight_v").to(packer.device, torch.float32)
    if v.is_meta:
        return v
    g = packer.source(f"{name}.weight_g").to(packer.device, torch.float32)
    norm = torch.linalg.vector_norm(v, dim=(1, 2), keepdim=True)
    if not bool(norm.all()):
        raise CheckpointError(
            f"{packer.where}: {name}.weight_v has a row of zeros, so its weight norm is undefined; download the file again"
        )
    return v * (g / norm)


def _scale(packer: Packer, key: str, c: VocoderConfig) -> torch.Tensor:
    value = packer.source(key).to(packer.device, torch.float32, copy=True)
    return value.exp_() if c.snake_logscale and not value.is_meta else value
