"""A whole evaluation of the flow-matching DiT, or several Euler steps, as one native call: weights are bound once, buffers
are kept.

The same kernels on the same rows as the operators, so results are equal to theirs bit for bit; what is saved is the way
through Python and the dispatcher, ten operators a layer, each with a result to allocate and a second thread to wake.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from .. import _native, operator
from .arguments import DTYPES, pointer
from .network_pass import Dense, addresses, chosen, fit_tiles

LAYER = ("adaLN_modulation.1", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
TILE_ROWS = 16
ALONE_WORK = 16 << 20
"""Multiplications of a layer below which one thread is faster than two: measured, hidden 192, at 48 rows."""


class Config(Protocol):
    """Sizes of the network."""

    hidden_size: int
    depth: int
    num_heads: int


class Batch(Protocol):
    """Rows of a ragged batch (``models/flow_dit.py`` says which)."""

    positions: Tensor
    cu_seqlens: Tensor
    slots: Tensor
    cache_lens: Tensor
    frames_per_token: int


def linears(depth: int) -> list[str]:
    """Names of the linear maps in the order in which the C++ side takes them."""
    layers = [f"blocks.{layer}.{name}" for layer in range(depth) for name in LAYER]
    return ["input_linear", *layers, "final_layer.adaLN_modulation.1", "final_layer.linear"]


def available_for(config: Config, dense: Mapping[str, Dense]) -> bool:
    """True if all linear maps are contiguous on the CPU, of one native dtype and of sizes that tiles take."""
    hidden = config.hidden_size
    if config.depth < 1 or hidden % config.num_heads or hidden // config.num_heads % 2:
        return False
    return fit_tiles([dense[name] for name in linears(config.depth)], first_of_any_depth=True)


class FlowPass:
    """Bound to one network; keeps its weights alive. Check :func:`available_for` first. ``bound`` is the C++ object.

    Args:
        cos, sin: float32 [max_positions, head_dim / 2].
        eps: of the layer norms.
        packed_limit: bytes in which windows may stay packed over the steps of :meth:`integrate`; a batch that needs
            more packs them in every step. The object holds the memory.
        alone_work: multiplications of a layer below which the calling thread works alone.
    """

    def __init__(
        self,
        config: Config,
        dense: Mapping[str, Dense],
        cos: Tensor,
        sin: Tensor,
        eps: float,
        packed_limit: int,
        alone_work: int = ALONE_WORK,
    ):
        maps = [dense[name] for name in linears(config.depth)]
        self._tables, self._maps = (cos.contiguous(), sin.contiguous()), maps
        self._dtype, self._num_outputs = maps[0].bias.dtype, len(maps[-1].bias)
        self.bound = _native.FlowPass(
            DTYPES[self._dtype],
            config.num_heads,
            eps,
            [t.data_ptr() for t in self._tables],
            [addresses(m) for m in maps],
            alone_work,
            packed_limit,
        )

    def fits(self, batch: Batch) -> bool:
        """True if there are rows, tiles hold whole tokens of them, and the native backend is in use."""
        return batch.positions.shape[0] > 0 and TILE_ROWS % batch.frames_per_token == 0 and chosen()

    def __call__(self, x: Tensor, modulation: Tensor, batch: Batch, keys: Tensor, values: Tensor) -> Tensor:
        """Velocity [T, num_mels] of x [T, num_mels].

        modulation [T / frames_per_token, hidden] is silu(time + condition); keys, values [layers, slots, window, heads,
        head_dim], contiguous within a layer.
        """
        return self._run(x, modulation, batch, keys, values, ())

    def integrate(
        self, x: Tensor, modulation: Tensor, batch: Batch, keys: Tensor, values: Tensor, widths: Sequence[float]
    ) -> Tensor:
        """The state after Euler steps of ``widths`` from x [T, num_mels]; modulation [steps, T / frames_per_token, hidden].

        The modulations of all steps are made at once, so that their weights are read once, and the window is packed for
        attention once, which ``packed_limit`` bounds.

        Raises:
            ValueError: no steps, or modulations of another number of them.
        """
        if not 0 < len(widths) == len(modulation):
            raise ValueError(f"expected modulations of 1 or more steps, one for each width; got {len(modulation)} for {len(widths)}")
        return self._run(x, modulation, batch, keys, values, widths)

    def fill(
        self,
        x: Tensor,
        modulation: Tensor,
        batch: Batch,
        keys: Tensor,
        values: Tensor,
        rows: Tensor,
        places: Tensor,
    ) -> None:
        """The pass that stores keys and values of ``rows`` at ``places`` (slot * window + row), int64 [n] each."""
        self._run(x, modulation, batch, keys, values, (), (rows.contiguous(), places.contiguous()))

    def _run(
        self,
        x: Tensor,
        modulation: Tensor,
        batch: Batch,
        keys: Tensor,
        values: Tensor,
        widths: Sequence[float],
        filled: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | None:
        if operator.counting:
            operator.calls["flow_pass", "native"] += 1
        out = None if filled else x.new_empty(x.shape[0], self._num_outputs)
        tensors = [x, modulation, batch.positions, batch.cu_seqlens, batch.slots, batch.cache_lens]
        tensors = [t.contiguous() for t in tensors]
        sizes = [x.shape[0], batch.frames_per_token, batch.slots.shape[0], keys.shape[2], keys.stride(0)]
        self.bound.run(
            [*sizes, filled[0].shape[0] if filled else 0],
            [pointer(t) for t in (*tensors, keys, values, out, *(filled or (None, None)))],
            widths,
        )
        return out
