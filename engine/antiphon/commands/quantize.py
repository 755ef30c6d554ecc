"""``antiphon quantize MODEL OUT``: a converted checkpoint with int8 or int4 weights."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..progress import Progress, StatusLine

if TYPE_CHECKING:
    from ..checkpoint.activation_scaling import InputRows


def add(subparsers) -> None:
    parser = subparsers.add_parser(
        "quantize",
        help="convert a checkpoint to int8 or int4 weights",
        description="Write a converted checkpoint: the language model's matrices in int8 (a scale per output channel) or int4 "
        "(a scale per 128 inputs), rounded to nearest or with activation-aware scales; the other parts are linked.",
    )
    parser.add_argument("model", metavar="MODEL", help="official checkpoint, folder or hub name")
    parser.add_argument("out", type=Path, metavar="OUT", help="new or empty folder")
    parser.add_argument("--scheme", required=True, metavar="int8|int4", help="how the layers' matrices are stored")
    parser.add_argument("--heads", metavar="KIND", help="the two heads: int8, int4 or bfloat16 (default: int8)")
    parser.add_argument("--calibrate", type=Path, metavar="MANIFEST", help="choose scales by what these rows activate")
    parser.add_argument("--speech-tokenizer", metavar="DIR", help="GLM-4-Voice tokenizer, folder or hub name")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from ..checkpoint import locate
    from ..checkpoint.quantize import check_plan, quantize_checkpoint
    from ..checkpoint.quantized import packed_specs

    folder = locate.resolve(arguments.model)
    speaks = (folder / "audio_detokenizer").exists() or (folder / "vocoder").exists()
    config = locate.load_model_config(folder, arguments.speech_tokenizer, load_detokenizer=speaks)
    plan = check_plan(config, arguments.out, arguments.scheme, arguments.heads)
    status = StatusLine()
    inputs = _record(arguments, status) if arguments.calibrate else None
    progress = Progress(len(packed_specs(config.llm, plan)), "converting", status)
    quantize_checkpoint(
        config,
        arguments.out,
        arguments.scheme,
        heads=arguments.heads,
        inputs=inputs,
        calibration=arguments.calibrate and arguments.calibrate.name,
        on_tensor=lambda name: progress.step(),
    )
    status.clear()
    print(f"{arguments.out}: layers {plan.layers}, heads {plan.heads}, {_size(folder)} → {_size(arguments.out)}")
    return 0


def _record(arguments: argparse.Namespace, status: StatusLine) -> InputRows:
    from ..calibration import record_inputs
    from ..evaluation import read_manifest
    from ..runtime import load_runtime

    rows = read_manifest(arguments.calibrate)
    status.show(f"loading {arguments.model}")
    runtime = load_runtime(
        arguments.model,
        load_detokenizer=False,
        device="cpu",
        speech_tokenizer=arguments.speech_tokenizer,
        compact=False,  # what records runs on the reference operators, which would widen every matrix at every call
    )
    progress = Progress(len(rows), "recording activations", status)
    return record_inputs(runtime, rows, lambda row: progress.step())


def _size(folder: Path) -> str:
    """Bytes of the language model's files."""
    return f"{sum(path.stat().st_size for path in folder.glob('*.safetensors')) / 1e9:.3f} GB"
