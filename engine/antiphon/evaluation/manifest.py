"""Manifests: one JSON object a line, each a recording with what is said in it or what should be answered.

    {"id": "p000", "wav": "p000.wav", "task": "asr", "instruction": "Please transcribe the audio.", "reference": "…"}
    {"id": "p022", "wav": "p022.wav", "task": "chat", "output_type": "both", "reference": "…", "answer": "…"}

``wav`` is relative to the manifest. ``reference`` (what is said) is needed for ``asr`` and optional for ``chat``, ``answer``
(the expected text) is needed for ``chat``. Other keys are kept out of the way, not errors: data sets carry their own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError

INSTRUCTION = "Please transcribe the audio."


@dataclass(frozen=True)
class Row:
    """One recording to be judged; ``instruction`` is the text in front of it when it is transcribed."""

    id: str
    wav: Path
    task: str
    instruction: str
    output_type: str
    reference: str | None
    answer: str | None


def read_manifest(path: Path) -> list[Row]:
    """All rows of a manifest; raises InputError that names file, line and key."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text; expected one JSON object a line") from error
    rows = [_row(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise InputError(f"{path}: holds no rows; expected one JSON object a line")
    return rows


def _row(path: Path, number: int, line: str) -> Row:
    where = f"{path}, line {number}"
    try:
        values = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{where}: expected a JSON object, got {type(values).__name__}")
    task = _text(values, "task", where, required=True)
    if task not in ("asr", "chat"):
        raise InputError(f"{where}: task {task!r}; expected 'asr' or 'chat'")
    output_type = _text(values, "output_type", where) or ("text" if task == "asr" else "both")
    if output_type not in ("text", "both"):
        raise InputError(f"{where}: output_type {output_type!r}; expected 'text' or 'both'")
    wav = _text(values, "wav", where, required=True)
    return Row(
        id=_text(values, "id", where) or wav,
        wav=path.parent / wav,
        task=task,
        instruction=_text(values, "instruction", where) or INSTRUCTION,
        output_type=output_type,
        reference=_text(values, "reference", where, required=task == "asr"),
        answer=_text(values, "answer", where, required=task == "chat"),
    )


def _text(values: dict, key: str, where: str, *, required: bool = False) -> str | None:
    value = values.get(key)
    if value is None and not required:
        return None
    if not isinstance(value, str):
        raise InputError(f"{where}: {key} must be text, got {json.dumps(value)}")
    return value
