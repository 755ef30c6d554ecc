"""Official message lists in JSON files; recordings are named relative to the file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..errors import InputError

Message = dict[str, Any]


def read_messages(path: Path) -> list[Message]:
    """The messages of a JSON file with the paths of recordings made usable from the current folder.

    Only the list itself is checked here; roles, types and contents are checked where the prompt is built.
    """
    try:
        messages = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: is not JSON: {error}") from error
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise InputError(f"{path}: expected a list of messages {{role, message_type, content}}")
    return [_with_paths(message, lambda name: str(path.parent / name)) for message in messages]


def write_messages(path: Path, messages: list[Message]) -> None:
    """The inverse of :func:`read_messages`; the file is replaced in one step."""
    folder = path.resolve().parent
    stored = [_with_paths(message, lambda name: os.path.relpath(Path(name).resolve(), folder)) for message in messages]
    partial = path.with_name(path.name + ".part")
    try:
        partial.write_text(json.dumps(stored, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error


def _with_paths(message: Message, change) -> Message:
    """A copy of ``message`` with the path of its recording changed; malformed messages pass through."""
    kind, content = message.get("message_type"), message.get("content")
    if kind == "audio" and isinstance(content, str):
        return message | {"content": change(content)}
    if kind == "audio-text" and isinstance(content, list) and content and isinstance(content[0], str):
        return message | {"content": [change(content[0]), *content[1:]]}
    return message


def text_message(role: str, text: str) -> Message:
    """A text message in the official format."""
    return {"role": role, "message_type": "text", "content": text}


def audio_message(role: str, path: str) -> Message:
    """An audio message in the official format."""
    return {"role": role, "message_type": "audio", "content": path}
