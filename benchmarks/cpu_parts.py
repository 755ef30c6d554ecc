"""The speech networks against plain PyTorch on the CPU: ``python -m benchmarks.cpu_parts [--json OUT]``.

Full-size random weights. Vocoder: a chunk of 2.4 s (120 mel frames), whole and its largest activations alone. DiT: one evaluation
over 168 rows (30 tokens and 12 of look-ahead) with 900 rows cached. Both sides are measured in turn and their results compared;
``native`` counts calls of our operators that ran natively, of all.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from antiphon.checkpoint import expected, packing
from antiphon.checkpoint.network_weights import Arrangement, arrange, choose_arrangement
from antiphon.checkpoint.packing import Packer
from antiphon.checkpoint.presets import kimi_audio_7b
from antiphon.checkpoint.random_weights import anti_alias_taps
from antiphon.config import FlowConfig, VocoderConfig
from antiphon.models.bigvgan import BigVgan
from antiphon.models.flow_dit import FlowBatch, FlowDit, FlowWindow
from antiphon_kernels import alias_free_snake, count_calls
from antiphon_kernels.native import empty_rows, status

from .plain_modules import PlainDit, PlainVocoder, plain_snake
from .report import add_json_option, publish, table

FRAMES, ROWS, WINDOW, TIME = 120, 168, 900, 517
COLUMNS = ("part", "dtype", "ours_ms", "plain_ms", "ratio", "ratio_min", "ratio_max", "difference", "native")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def random_weights(packed: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Values for packed meta tensors: maps that keep the size of their input, activations of usual strength."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, shape in ((name, meta.shape) for name, meta in packed.items()):
        if name.endswith("filter"):
            found[name] = anti_alias_taps()
        elif name.endswith("alpha"):
            found[name] = torch.ones(shape)
        elif name.endswith("inv_beta"):
            found[name] = torch.full(shape, 0.5)
        elif len(shape) == 1:
            found[name] = torch.zeros(shape, dtype=dtype)
        else:
            spread = 0.5 * torch.Size(shape[1:]).numel() ** -0.5
            found[name] = (torch.randn(shape, generator=generator) * spread).to(dtype)
    return found


def meta_packer(shapes: expected.Shapes) -> Packer:
    """A packer that yields shapes only."""
    return Packer(shapes, lambda name: torch.empty(shapes[name]), torch.float32, torch.device("meta"))


def in_turn(ours: Callable[[], Tensor], plain: Callable[[], Tensor], repeats: int) -> dict:
    """Median times of both, the ratio over pairs, the largest difference of the results over their largest value."""
    with count_calls() as calls:
        mine = ours()
        native = f"{sum(n for (_, backend), n in calls.items() if backend == 'native')} of {sum(calls.values())}"
    theirs = plain()
    pairs = [(_seconds(ours), _seconds(plain)) for _ in range(repeats)]
    ratios = [b / a for a, b in pairs]
    difference = (mine.float() - theirs.float()).abs().max() / theirs.float().abs().max()
    return {
        "ours_ms": 1e3 * statistics.median(a for a, _ in pairs),
        "plain_ms": 1e3 * statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "difference": difference.item(),
        "native": native,
    }


def vocoder_row(config: VocoderConfig, dtype: torch.dtype, repeats: int) -> dict:
    """A whole chunk."""
    packer = meta_packer(expected.vocoder_keys(config))
    weights = random_weights(dict(packing.pack_vocoder(packer, config)), dtype)
    ours, plain = BigVgan(config, weights), PlainVocoder(config, weights)
    mel = torch.randn(1, FRAMES, config.num_mels)
    return {"part": f"vocoder {config.upsample_initial_channel}"} | in_turn(
        lambda: ours(mel), lambda: plain(mel), repeats
    )


def activation_row(config: VocoderConfig, stage: int, dtype: torch.dtype, repeats: int) -> dict:
    """The activation of one stage's signal."""
    length, channels = FRAMES, config.upsample_initial_channel >> (stage + 1)
    for rate in config.upsample_rates[: stage + 1]:
        length *= rate
    x, ones = torch.randn(1, channels, length).to(dtype), torch.ones(channels)
    arguments = (x, ones, 0.5 * ones, anti_alias_taps(), anti_alias_taps())
    row = in_turn(lambda: alias_free_snake(*arguments), lambda: plain_snake(*arguments), repeats)
    return {"part": f"activation {channels} x {length}"} | row


def dit_rows(config: FlowConfig, dtype: torch.dtype, repeats: int) -> list[dict]:
    """One evaluation over ``ROWS`` rows with a full window; a narrower dtype against the plain module in float32 as well."""
    weights = random_weights(dict(packing.pack_plain(meta_packer(expected.flow_keys(config)))), dtype)
    rows = [dit_row(config, weights, weights, repeats)]
    if dtype != torch.float32:
        rows.append(dit_row(config, weights, {name: w.float() for name, w in weights.items()}, repeats))
    return rows


def as_loaded(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights as loading a checkpoint leaves them: so arranged as is fastest, else with their rows at its distances."""
    arrangement = choose_arrangement(None, next(iter(weights.values())).dtype, torch.device("cpu"))
    if arrangement is not Arrangement.PLAIN:
        return arrange(dict(weights), arrangement)
    return {name: empty_rows(w.shape, w.dtype, w.device).copy_(w) if w.ndim == 2 else w for name, w in weights.items()}


def dit_row(config: FlowConfig, weights: dict[str, Tensor], plain_weights: dict[str, Tensor], repeats: int) -> dict:
    """Ours with ``weights`` against the plain module with ``plain_weights``."""
    ours, plain = FlowDit(config, as_loaded(weights)), PlainDit(config, plain_weights)
    dtype, plain_dtype = (next(iter(w.values())).dtype for w in (weights, plain_weights))
    window = FlowWindow.empty(config, 1, WINDOW, dtype, torch.device("cpu"))
    window.keys.normal_(), window.values.normal_()
    x, tokens = torch.randn(ROWS, config.num_mels).to(dtype), torch.arange(ROWS // 4)
    positions = torch.arange(WINDOW, WINDOW + ROWS)
    starts, slot = torch.tensor([0, ROWS], dtype=torch.int32), torch.zeros(1, dtype=torch.int64)
    batch = FlowBatch(tokens, positions, starts, slot, torch.tensor([WINDOW], dtype=torch.int32), ROWS)
    condition, moment = ours.condition(tokens), ours.time_table([TIME])[0]
    table, wide = plain_weights["semantic_token_embedding.weight"], x.to(plain_dtype)
    cache = [
        (k[0].transpose(0, 1).to(plain_dtype), v[0].transpose(0, 1).to(plain_dtype))
        for k, v in zip(window.keys, window.values)
    ]
    row = in_turn(
        lambda: ours.velocity(x, moment, condition, batch, window),
        lambda: plain(wide, plain.time(TIME) + table[tokens.repeat_interleave(4)], positions, cache)[0],
        repeats,
    )
    against = "" if plain_dtype == dtype else ", plain in float32"
    return {"part": f"DiT {config.hidden_size}, {ROWS} rows, {WINDOW} cached{against}"} | row


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--parts", nargs="+", choices=("vocoder", "activation", "dit"), default=["vocoder", "activation", "dit"]
    )
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--channels", type=int, help="vocoder width instead of the released one, for a quick look")
    parser.add_argument("--depth", type=int, help="DiT layers instead of the released ones, for a quick look")
    add_json_option(parser)
    options = parser.parse_args()
    full = kimi_audio_7b()
    vocoder = replace(full.vocoder, upsample_initial_channel=options.channels or full.vocoder.upsample_initial_channel)
    flow = replace(full.flow, depth=options.depth or full.flow.depth)
    rows = []
    with torch.inference_mode():
        for name in options.dtypes:
            dtype, found = DTYPES[name], []
            if "vocoder" in options.parts:
                found.append(vocoder_row(vocoder, dtype, options.repeats))
            if "activation" in options.parts:
                found += [activation_row(vocoder, stage, dtype, options.repeats) for stage in (0, 3, 6)]
            if "dit" in options.parts:
                found += dit_rows(flow, dtype, options.repeats)
            rows += [{"dtype": name} | row for row in found]
    print(status(), f"; PyTorch threads: {torch.get_num_threads()}", sep="")
    print(table(rows, COLUMNS))
    publish("cpu_parts", rows, options.json, native=status(), torch_threads=torch.get_num_threads())


def _seconds(call: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
