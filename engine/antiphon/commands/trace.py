"""``antiphon trace``: every intermediate array of one request, for anyone who must compare numerics."""

from __future__ import annotations

import argparse
import os
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..progress import StatusLine
from .messages import read_messages
from .options import add_model_options, add_sampling_options, load_model, sampling_arguments


def add(subparsers) -> None:
    parser = subparsers.add_parser(
        "trace",
        help="every intermediate array of one request",
        description="Run one request and write its arrays: audio_ids, text_ids, continuous_mask (prompt); speech_codes_K, "
        "whisper_features_K (K-th recording); prefill_text_logits, prefill_audio_logits (last prompt position); "
        "text_stream, audio_stream (raw ids, one per step); text_tokens, audio_tokens (after the official filtering); "
        "text; and for output type both: mel [frames, 80], wav [samples].",
    )
    parser.add_argument("--messages", type=Path, required=True, metavar="M.json", help="official message list")
    parser.add_argument("--output-type", choices=("text", "both"), default="text")
    parser.add_argument(
        "--noise",
        type=Path,
        metavar="NOISE.npz",
        help="noise_0, noise_1, …: [frames, 80] per detokenizer chunk, in order",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="TRACE.npz")
    add_model_options(parser)
    add_sampling_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    messages = read_messages(arguments.messages)
    noise = read_noise(arguments.noise) if arguments.noise else None
    if not arguments.out.resolve().parent.is_dir():
        raise InputError(f"{arguments.out}: its folder does not exist")
    status = StatusLine()
    model = load_model(arguments, load_detokenizer=arguments.output_type == "both", status=status)
    status.show("running", force=True)
    trace = model.trace(messages, output_type=arguments.output_type, noise=noise, **sampling_arguments(arguments))
    status.clear()
    arrays = trace_arrays(trace)
    write_npz(arguments.out, arrays)
    print(f"{arguments.out}: {', '.join(arrays)}")
    return 0


def read_noise(path: Path) -> list[np.ndarray]:
    """Arrays ``noise_0``, ``noise_1``, … of an npz file as float32 [frames, 80]; the numbering must have no gap."""
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path}: {'is not an npz file' if path.is_file() else 'does not exist'}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    names = [f"noise_{index}" for index in range(len(arrays))]
    if not arrays or set(names) != set(arrays):
        raise InputError(f"{path}: expected noise_0, noise_1, … without gaps, got {sorted(arrays) or 'nothing'}")
    for name in names:
        if arrays[name].ndim != 2 or arrays[name].dtype.kind != "f":
            raise InputError(
                f"{path}: {name} must be floats [frames, 80], got {arrays[name].dtype} {arrays[name].shape}"
            )
    return [arrays[name].astype(np.float32, copy=False) for name in names]


def trace_arrays(trace: Any) -> dict[str, np.ndarray]:
    """The fields of a ``Trace`` as arrays: lists become ``name_0``, ``name_1``, …; what is None is left out."""
    arrays = {}
    for name in (field.name for field in fields(trace)):
        value = getattr(trace, name)
        if isinstance(value, (list, tuple)):
            arrays |= {f"{name}_{index}": np.asarray(item) for index, item in enumerate(value)}
        elif value is not None:
            arrays[name] = np.asarray(value)
    return arrays


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an uncompressed npz under exactly this name, in one step."""
    partial = path.with_name(path.name + ".part")
    try:
        with open(partial, "wb") as file:
            np.savez(file, **arrays)
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error
