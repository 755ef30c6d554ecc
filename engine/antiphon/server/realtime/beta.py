"""Events under their names of the beta interface, for clients that were written for it."""

from __future__ import annotations

from typing import Any

RENAMED = {
    "response.output_audio.": "response.audio.",
    "response.output_audio_transcript.": "response.audio_transcript.",
    "response.output_text.": "response.text.",
}
PARTS = {"output_audio": "audio", "output_text": "text"}


def to_beta(event: dict[str, Any]) -> list[dict[str, Any]]:
    """The events that say the same; none for one that the beta did not have."""
    kind = event["type"]
    if kind == "conversation.item.done":
        return []
    if kind == "conversation.item.added":
        kind = "conversation.item.created"
    for new, old in RENAMED.items():
        if kind.startswith(new):
            kind = old + kind[len(new) :]
    changed = event | {"type": kind}
    if "item" in changed:
        changed["item"] = _item(changed["item"])
    if "response" in changed:
        changed["response"] = changed["response"] | {"output": [_item(one) for one in changed["response"]["output"]]}
    greeting = [changed]
    if kind == "session.created":
        greeting.append({"type": "conversation.created", "event_id": event["event_id"] + "c", "conversation": {}})
    return greeting


def _item(item: dict[str, Any]) -> dict[str, Any]:
    content = [part | {"type": PARTS.get(part["type"], part["type"])} for part in item["content"]]
    return item | {"content": content}
