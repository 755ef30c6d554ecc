"""``antiphon eval``: error rates, right answers and speed of a checkpoint on a manifest."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..progress import Progress, StatusLine
from .options import add_model_options, add_weight_options, load_model


def add(subparsers) -> None:
    parser = subparsers.add_parser(
        "eval",
        help="error rates and right answers on a manifest",
        description="Greedy decoding. Rows of task asr are transcribed; rows of task chat are answered, and transcribed too "
        "where they state what is said (wer counts asr rows, wer_all every recording). Rates are over normalised text "
        "(Whisper's English normaliser, Chinese by character), and over plain words beside it.",
    )
    parser.add_argument("--manifest", type=Path, required=True, metavar="F.jsonl", help="one JSON object a line")
    parser.add_argument("--speech", action="store_true", help="speak every answer and transcribe it back")
    parser.add_argument("--seed", type=int, default=0, help="of the detokenizer's noise (default: 0)")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    add_model_options(parser)
    add_weight_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from ..evaluation import ItemResult, evaluate, read_manifest, summarise

    rows = read_manifest(arguments.manifest)
    needs_speech = any(row.task == "chat" and (arguments.speech or row.output_type == "both") for row in rows)
    status = StatusLine()
    model = load_model(arguments, load_detokenizer=needs_speech, status=status)
    progress = Progress(len(rows), "evaluating", status)

    def report(item: ItemResult) -> None:
        status.clear()
        print(_line(item), flush=True)
        progress.step()

    items = evaluate(model, rows, speech=arguments.speech, seed=arguments.seed, on_item=report)
    summary = summarise(items)
    print(summary.table())
    if arguments.json:
        print(json.dumps(summary.as_json(), ensure_ascii=False))
    return 0


def _line(item) -> str:
    from ..evaluation.report import exactly_right

    parts = [f"{item.row.id:8s}"]
    if item.transcript is not None:
        same = "" if item.transcript == item.row.reference else f" (said: {item.row.reference})"
        parts.append(f"{item.transcript}{same}")
    if item.answer is not None:
        parts.append(f"→ {item.answer}" + ("" if exactly_right(item) else f" (expected: {item.row.answer})"))
    if item.heard is not None:
        parts.append(f"⇒ {item.heard}")
    return "  ".join(parts)
