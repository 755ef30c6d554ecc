"""What quantised weights change: ``python -m benchmarks.quantisation [--eval MANIFEST --judge] [--json OUT]``.

Logits against the same model in float32, over the answers that the float32 model gives (demo) or over random ids (synthetic):
rms of the difference over the rms of the logits, mean Kullback-Leibler divergence in nats, share of positions with the same
best token. One row per choice of what is quantised, so that each part's sensitivity can be read off. With ``--judge`` also
word error rate and right answers of converted checkpoints. ``--calibrate MANIFEST`` adds int4 with activation-aware scales; its
recordings are then left out of everything that is judged.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from antiphon import checkpoint
from antiphon.calibration import record_inputs
from antiphon.checkpoint.quantize import quantize_checkpoint
from antiphon.config import LlmConfig
from antiphon.evaluation import evaluate, read_manifest, summarise
from antiphon.execution.kv_cache import PAGE_SIZE, allocate, sizes_for
from antiphon.models.dual_qwen import AttentionLayout, DualQwen, StepLayout
from antiphon.prompt import make_prompt
from antiphon.request import SamplingParams
from antiphon.runtime import load_runtime
from antiphon.solo import SoloRun, adapted_features
from antiphon_kernels.linear_weight import dequantize_weight, quantize_weight

from .engine import ROOT, locate
from .report import add_json_option, publish, table

LAYERS, HEADS = ("qkv_weight", "o_weight", "gate_up", "down"), ("lm_head", "audio_head")
VARIANTS: dict[str, Mapping[str, str]] = {
    "int8": dict.fromkeys((*LAYERS, *HEADS), "int8"),
    "int4, heads int8": dict.fromkeys(LAYERS, "int4") | dict.fromkeys(HEADS, "int8"),
    "int4, heads bf16": dict.fromkeys(LAYERS, "int4"),
    "int4, heads int4": dict.fromkeys((*LAYERS, *HEADS), "int4"),
}
PARTS: dict[str, Mapping[str, str]] = {
    **{f"only heads {scheme}": dict.fromkeys(HEADS, scheme) for scheme in ("int8", "int4")},
    **{f"only embed {scheme}": {"embed": scheme} for scheme in ("int8", "int4")},
    **{f"only {part} int4": {part: "int4"} for part in LAYERS},
}
COLUMNS = ("model", "weights", "text_rms", "text_kl", "text_same", "audio_rms", "audio_kl", "audio_same")
QUALITY = ("weights", "wer", "wer_all", "plain_wer", "plain_wer_all", "answers", "points")


@dataclass(frozen=True)
class Sequence:
    """Ids of both streams [T], adaptor outputs and their rows; rows from ``first`` on are compared."""

    audio_ids: Tensor
    text_ids: Tensor
    features: Tensor | None
    feature_rows: Tensor
    first: int


def answers(folder: Path, manifest: Path, leave_out: Path | None) -> list[Sequence]:
    """The first eight recordings of task chat, none of ``leave_out``, with the float32 model's own greedy answers."""
    runtime = load_runtime(folder, dtype="float32")
    known = {row.id for row in read_manifest(leave_out)} if leave_out else set()
    rows = [row for row in read_manifest(manifest) if row.task == "chat" and row.id not in known]
    found = []
    for row in rows[:8]:
        message = {"role": "user", "message_type": "audio", "content": str(row.wav)}
        prompt = make_prompt([message], "both", runtime.builder, runtime.encoder)
        steps = list(SoloRun(runtime.llm, prompt, SamplingParams(), 0).steps())[:-1]
        text, audio = (torch.tensor([getattr(s, stream) for s in steps]) for stream in ("text", "audio"))
        rows = torch.cat((prompt.feature_rows, torch.full_like(text, -1)))
        ids = torch.cat((prompt.audio_ids, audio)), torch.cat((prompt.text_ids, text))
        found.append(Sequence(*ids, adapted_features(runtime.llm, prompt), rows, len(prompt) - 1))
    return found


def random_ids(config: LlmConfig, length: int) -> list[Sequence]:
    """One sequence of random ids, text in the one stream and speech codes in the other."""
    generator = torch.Generator().manual_seed(0)
    audio = torch.randint(config.audio_token_offset, config.vocab_size, (length,), generator=generator)
    text = torch.randint(config.special.msg_end - 2, (length,), generator=generator)
    return [Sequence(audio, text, None, torch.full((length,), -1), 0)]


def logits(model: DualQwen, sequence: Sequence) -> list[Tensor]:
    """Float32 logits [n, V] of both heads at the compared rows, from one pass."""
    c, length = model.config, len(sequence.audio_ids)
    sizes = sizes_for(c, length)
    position = torch.arange(length)

    def attention(branches: int) -> AttentionLayout:
        tables = torch.arange(branches * sizes.text, dtype=torch.int32).view(branches, -1)
        slots = torch.cat([position + b * sizes.text * PAGE_SIZE for b in range(branches)])
        starts, lens = torch.arange(branches + 1) * length, torch.full((branches,), length)
        return AttentionLayout(position.repeat(branches), slots, tables, starts.int(), lens.int(), length)

    heads = torch.cat((position[sequence.first :], length + position[sequence.first :]))
    layout = StepLayout(attention(1), attention(2), position.repeat(2), length, 1, heads, len(heads) // 2)
    dtype = model.embed_table.dtype
    kv = allocate(c, sizes, dtype, torch.device("cpu"))
    features = None if sequence.features is None else sequence.features.to(dtype)
    x = model.embed(sequence.audio_ids, sequence.text_ids, features, sequence.feature_rows)
    return [part.float() for part in model.logits(model.hidden(x, layout, kv), layout)]


def rounded(weights: Mapping[str, Tensor], schemes: Mapping[str, str]) -> dict[str, Tensor]:
    """Float weights of which some stand for quantised ones; ``schemes`` by the last part of the name."""

    def through(weight: Tensor, scheme: str) -> Tensor:
        width = weight.shape[-1]
        wide = F.pad(weight, (0, -width % 128))
        return dequantize_weight(*quantize_weight(wide, scheme), weight.dtype)[..., :width]

    kinds = {name: name.rpartition(".")[2] for name in weights}
    return {n: through(w, schemes[kinds[n]]) if kinds[n] in schemes else w for n, w in weights.items()}


def compare(wanted: list[Tensor], found: list[Tensor]) -> dict[str, float]:
    """The metrics of one variant, text and audio apart."""
    row = {}
    for stream, want, got in zip(("text", "audio"), wanted, found):
        row[f"{stream}_rms"] = ((got - want).square().mean() / want.square().mean()).sqrt().item()
        row[f"{stream}_kl"] = F.kl_div(
            got.log_softmax(-1), want.log_softmax(-1), log_target=True, reduction="sum"
        ).item()
        row[f"{stream}_kl"] /= len(want)
        row[f"{stream}_same"] = (got.argmax(-1) == want.argmax(-1)).float().mean().item()
    return row


def sensitivity(name: str, folder: Path, options: argparse.Namespace, work: Path) -> Iterator[dict]:
    """Rows over variants of one model."""
    config, demo = checkpoint.load_model_config(folder), name == "demo"
    manifest = options.eval or ROOT / "examples" / "questions" / "manifest.jsonl"
    sequences = answers(folder, manifest, options.calibrate) if demo else random_ids(config.llm, options.length)
    weights = checkpoint.load_llm(config, torch.float32)

    def run(some: Mapping[str, Tensor]) -> list[Tensor]:
        model = DualQwen(config.llm, dict(some))
        return [torch.cat(parts) for parts in zip(*(logits(model, s) for s in sequences))]

    wanted = run(weights)
    half = {key: w.bfloat16() for key, w in weights.items()}
    yield {"model": name, "weights": "bfloat16", **compare(wanted, run(half))}
    for label, schemes in (VARIANTS | PARTS if demo else VARIANTS).items():
        yield {"model": name, "weights": label, **compare(wanted, run(rounded(weights, schemes)))}
    if demo and options.calibrate:
        aware = checkpoint.load_model_config(calibrated(folder, options.calibrate, work))
        found = run(checkpoint.load_llm(aware, torch.float32))
        yield {"model": name, "weights": "int4 calibrated, heads int8", **compare(wanted, found)}


def calibrated(folder: Path, manifest: Path, work: Path) -> Path:
    """The int4 conversion of ``folder`` calibrated on ``manifest``, made on first use."""
    if not (work / "aware" / "config.json").exists():
        inputs = record_inputs(load_runtime(folder, load_detokenizer=False, compact=False), read_manifest(manifest))
        config = checkpoint.load_model_config(folder)
        quantize_checkpoint(config, work / "aware", "int4", inputs=inputs, calibration=manifest.name)
    return work / "aware"


def quality(folder: Path, manifest: Path, calibrate: Path | None, work: Path) -> Iterator[dict]:
    """Error rates and right answers of the demo model and its conversions, ``points`` above bfloat16's worst rate."""
    from antiphon.api import KimiAudio

    config, known = (
        checkpoint.load_model_config(folder),
        {row.id for row in read_manifest(calibrate)} if calibrate else set(),
    )
    rows = [row for row in read_manifest(manifest) if row.id not in known]
    models = {"float32": (folder, "float32"), "bfloat16": (folder, "bfloat16")}
    for scheme in ("int8", "int4"):
        quantize_checkpoint(config, work / scheme, scheme)
        models[scheme] = (work / scheme, "bfloat16")
    if calibrate is not None:
        models["int4 calibrated"] = (calibrated(folder, calibrate, work), "bfloat16")
    base = None
    for label, (path, dtype) in models.items():
        report = summarise(evaluate(KimiAudio(path, device="cpu", dtype=dtype), rows))
        base = report if label == "bfloat16" else base
        row = {"weights": label, "wer": 100 * report.usual.wer, "wer_all": 100 * report.usual.wer_all}
        row |= {"plain_wer": 100 * report.plain.wer, "plain_wer_all": 100 * report.plain.wer_all}
        row["answers"] = 100 * report.answer_accuracy
        row["points"] = None if base is None else row["wer_all"] - 100 * base.usual.wer_all
        yield row


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=["demo", "0.5b"], help="demo or a synthetic preset")
    parser.add_argument("--length", type=int, default=64, help="positions of a synthetic model's sequence")
    parser.add_argument(
        "--eval", type=Path, metavar="MANIFEST", help="recordings for the demo model (default: its questions)"
    )
    parser.add_argument("--judge", action="store_true", help="also error rates and right answers on --eval")
    parser.add_argument(
        "--calibrate", type=Path, metavar="MANIFEST", help="calibrated int4 too; its recordings are not judged"
    )
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()), help="where synthetic models are kept"
    )
    add_json_option(parser)
    options = parser.parse_args()
    if options.judge and not options.eval:
        parser.error("--judge needs --eval")
    with tempfile.TemporaryDirectory() as work:
        conversions = Path(work)
        rows = []
        for name in options.models:
            rows += sensitivity(name, locate(name, options.work), options, conversions)
        print(table(rows, COLUMNS), flush=True)
        judged = []
        if options.judge:
            judged = list(quality(locate("demo", options.work), options.eval, options.calibrate, conversions))
            print(table(judged, QUALITY), flush=True)
    publish("quantisation", rows, options.json, quality=judged)


if __name__ == "__main__":
    main()
