"""``antiphon chat``: one turn of a conversation, spoken or typed, answered in text and in speech."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..deltas import AudioDelta, Delta, FinishDelta, TextDelta, Usage
from ..errors import InputError
from ..progress import StatusLine
from .messages import Message, audio_message, read_messages, text_message, write_messages
from .options import add_model_options, add_sampling_options, add_weight_options, load_model, sampling_arguments
from .sound import WavWriter


def add(subparsers) -> None:
    parser = subparsers.add_parser(
        "chat",
        help="ask in speech or text, get text and speech back",
        description="One turn: the text (if given) and then the recording are the user's message. The answer's text is "
        "printed as it comes; with --out the model also speaks, and the WAV (24 kHz, 16 bit) grows while it does.",
    )
    parser.add_argument("--audio", metavar="IN.wav", help="what the user says, a sound file of any format")
    parser.add_argument("--text", metavar="T", help="what the user writes, before the recording")
    parser.add_argument("--out", type=Path, metavar="OUT.wav", help="answer in speech too, into this file")
    parser.add_argument(
        "--history",
        type=Path,
        metavar="FILE",
        help="earlier turns as an official message list (JSON; recordings relative to it); this turn is appended, and "
        "the file is created if it is not there",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end instead of the text")
    group = parser.add_argument_group("speech")
    group.add_argument(
        "--overlap",
        choices=("reference", "exact", "lookahead"),
        default="reference",
        help="how chunks are joined: as the official code does, without any seam, or early (default: reference)",
    )
    group.add_argument("--ode-steps", type=int, default=29, metavar="N", help="flow-matching steps (default: 29)")
    add_model_options(parser)
    add_weight_options(parser)
    add_sampling_options(parser)
    parser.set_defaults(run=run)


@dataclass
class Answer:
    """What one turn produced; ``first_audio`` in seconds from the call, None without speech."""

    text: str = ""
    reason: str = ""
    first_text: float | None = None
    first_audio: float | None = None
    elapsed: float = 0.0
    usage: Usage | None = None


def run(arguments: argparse.Namespace) -> int:
    turn = _user_turn(arguments)
    history = read_messages(arguments.history) if arguments.history and arguments.history.exists() else []
    wav = WavWriter(arguments.out) if arguments.out else None
    status = StatusLine()
    model = load_model(arguments, load_detokenizer=wav is not None, status=status)
    status.show("listening")
    start = time.perf_counter()
    deltas = model.generate_stream(
        history + turn,
        output_type="both" if wav else "text",
        speech=_speech_options(arguments) if wav else None,
        **sampling_arguments(arguments),
    )
    status.clear()
    answer = _follow(deltas, wav, start, echo=not arguments.json)
    if arguments.history:
        write_messages(arguments.history, history + turn + [_assistant_turn(answer, wav)])
    if arguments.json:
        print(json.dumps(_report(answer, wav), ensure_ascii=False))
    return 0


def _speech_options(arguments: argparse.Namespace):
    from ..speech import SpeechOptions

    return SpeechOptions(overlap=arguments.overlap, ode_steps=arguments.ode_steps)


def _user_turn(arguments: argparse.Namespace) -> list[Message]:
    turn = []
    if arguments.text is not None:
        turn.append(text_message("user", arguments.text))
    if arguments.audio is not None:
        turn.append(audio_message("user", arguments.audio))
    if not turn:
        raise InputError("chat needs --audio, --text or both")
    return turn


def _follow(deltas: Iterator[Delta], wav: WavWriter | None, start: float, *, echo: bool) -> Answer:
    """Print and write an answer while it is generated; ``start`` is when it was asked for."""
    status = StatusLine(below=echo and sys.stdout.isatty())
    answer = Answer()
    try:
        for delta in deltas:
            elapsed = time.perf_counter() - start
            if isinstance(delta, TextDelta):
                answer.first_text = elapsed if answer.first_text is None else answer.first_text
                answer.text += delta.text
                if echo:
                    print(delta.text, end="", flush=True)
            elif isinstance(delta, AudioDelta):
                answer.first_audio = elapsed if answer.first_audio is None else answer.first_audio
                wav.write(delta.pcm)
            elif isinstance(delta, FinishDelta):
                answer.reason, answer.usage = delta.reason, delta.usage
            status.show(f"{elapsed:.1f} s" + (f", {wav.seconds:.2f} s of speech" if wav else ""))
    finally:
        status.clear()
        if wav:
            wav.close()
        if echo:
            print(flush=True)
    answer.elapsed = time.perf_counter() - start
    if echo and wav:
        _say_what_was_written(answer, wav)
    return answer


def _say_what_was_written(answer: Answer, wav: WavWriter) -> None:
    if wav.num_samples:
        note = f"{wav.path}: {wav.seconds:.2f} s of speech, the first after {answer.first_audio:.2f} s"
    else:
        note = f"the model said nothing aloud; {wav.path} was not written"
    print(f"antiphon: {note}; {answer.elapsed:.2f} s in all", file=sys.stderr)


def _assistant_turn(answer: Answer, wav: WavWriter | None) -> Message:
    """Speech with its text, as the official examples keep it; the text alone where it is longer than the format allows."""
    if wav and wav.num_samples and answer.usage.text_tokens <= answer.usage.audio_tokens:
        return {"role": "assistant", "message_type": "audio-text", "content": [str(wav.path), answer.text]}
    return text_message("assistant", answer.text)


def _report(answer: Answer, wav: WavWriter | None) -> dict[str, Any]:
    return {
        "text": answer.text,
        "wav": str(wav.path) if wav and wav.num_samples else None,
        "speech_seconds": round(wav.seconds, 4) if wav else None,
        "finish_reason": answer.reason,
        "first_text_s": answer.first_text,
        "first_audio_s": answer.first_audio,
        "elapsed_s": answer.elapsed,
        "usage": asdict(answer.usage) if answer.usage else None,
    }
