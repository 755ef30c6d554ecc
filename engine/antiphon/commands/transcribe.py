"""``antiphon transcribe AUDIO…``: what is said in recordings."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from ..config import SAMPLE_RATE_IN
from ..errors import InputError
from ..progress import StatusLine
from .messages import text_message
from .options import add_model_options, add_weight_options, load_model

PROMPT = "Please transcribe the audio."


def add(subparsers) -> None:
    parser = subparsers.add_parser(
        "transcribe",
        help="recordings to text",
        description="Transcribe recordings of any format. A recording that cannot be read is reported, the others are "
        "still transcribed, and the exit code is 2.",
    )
    parser.add_argument("audio", nargs="+", metavar="AUDIO", help="a sound file")
    parser.add_argument("--prompt", default=PROMPT, metavar="T", help="the instruction (default: %(default)r)")
    parser.add_argument(
        "--json", action="store_true", help="one JSON object per recording: audio, text, seconds, elapsed, rtf"
    )
    add_model_options(parser)
    add_weight_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    status = StatusLine()
    model = load_model(arguments, load_detokenizer=False, status=status)
    failed = False
    for path in arguments.audio:
        status.show(f"listening to {path}", force=True)
        try:
            result = _transcribe(model, arguments.prompt, path)
        except InputError as error:
            status.clear()
            print(f"antiphon: error: {error}", file=sys.stderr)
            failed = True
            continue
        status.clear()
        print(_line(arguments, result), flush=True)
    return 2 if failed else 0


def _transcribe(model, prompt: str, path: str) -> dict[str, Any]:
    from ..audio import load_audio

    start = time.perf_counter()
    samples = load_audio(path)
    recording = {"role": "user", "message_type": "audio", "content": (samples, SAMPLE_RATE_IN)}
    _, text = model.generate([text_message("user", prompt), recording], output_type="text")
    elapsed, seconds = time.perf_counter() - start, len(samples) / SAMPLE_RATE_IN
    return {"audio": path, "text": text, "seconds": seconds, "elapsed": elapsed, "rtf": elapsed / seconds}


def _line(arguments: argparse.Namespace, result: dict[str, Any]) -> str:
    if arguments.json:
        return json.dumps(result, ensure_ascii=False)
    return result["text"] if len(arguments.audio) == 1 else f"{result['audio']}: {result['text']}"
