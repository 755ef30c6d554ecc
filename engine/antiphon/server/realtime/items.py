"""The items of a conversation, and how they become what the engine is asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...config import SAMPLE_RATE_IN
from ..ids import new_id


@dataclass
class Item:
    """One message. ``sound``: the user's recordings by content index, float32 at 16 kHz.

    An answer of the model has ``kept``: its encoded conversation, ``prompt_len``, the state of the items ``before`` it, and
    the instructions that stand in it.
    """

    role: str
    content: list[dict[str, Any]]
    id: str = field(default_factory=lambda: new_id("item_", 10))
    status: str = "completed"
    sound: dict[int, np.ndarray] = field(default_factory=dict)
    version: int = 0
    kept: bytes | None = None
    prompt_len: int = 0
    audio_ms: int = 0
    before: tuple = ()
    instructions: str = ""

    def public(self) -> dict[str, Any]:
        """As clients see it; sound itself is left out."""
        return {
            "id": self.id,
            "object": "realtime.item",
            "type": "message",
            "status": self.status,
            "role": self.role,
            "content": [dict(part) for part in self.content],
        }

    def messages(self) -> list[dict[str, Any]]:
        """In the official format; instructions become text of the user."""
        role, built = "assistant" if self.role == "assistant" else "user", []
        for index, part in enumerate(self.content):
            if index in self.sound:
                built.append({"role": role, "message_type": "audio", "content": (self.sound[index], SAMPLE_RATE_IN)})
            else:
                words = part.get("text") or part.get("transcript")
                if words:
                    built.append({"role": role, "message_type": "text", "content": words})
        return built


class ItemList:
    """Items in order, found by id."""

    def __init__(self, max_items: int = 1000):
        self.max_items = max_items
        self._items: list[Item] = []

    def __iter__(self):
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    @property
    def last_id(self) -> str | None:
        return self._items[-1].id if self._items else None

    def find(self, item_id: str) -> Item | None:
        return next((item for item in self._items if item.id == item_id), None)

    def insert(self, item: Item, after: str | None = None) -> str | None:
        """Put ``item`` behind ``after`` (``root``: in front; None: at the end); returns what is before it. KeyError."""
        if after is None:
            place = len(self._items)
        elif after == "root":
            place = 0
        else:
            place = next((i + 1 for i, one in enumerate(self._items) if one.id == after), None)
            if place is None:
                raise KeyError(after)
        self._items.insert(place, item)
        return self._items[place - 1].id if place else None

    def remove(self, item: Item) -> None:
        self._items.remove(item)

    def state(self, until: Item | None = None) -> tuple:
        """What the items before ``until`` (all of them) are now: equal as long as nothing in it has changed."""
        items = self._items if until is None else self._items[: self._items.index(until)]
        return tuple((item.id, item.version) for item in items)

    def engine_input(self, instructions: str) -> tuple[list[dict[str, Any]], bytes | None]:
        """Messages that are new, and the conversation before them as tokens.

        The last answer that stands as it was generated stands for everything up to it. Instructions come in front of what
        is new, unless they are in what is old.
        """
        messages: list[dict[str, Any]] = []
        history, said = None, ""
        for item in reversed(self._items):
            if item.kept is not None and item.before == self.state(item):
                history, said = item.kept, item.instructions
                break
            messages = item.messages() + messages
        if instructions and instructions != said:
            messages = [{"role": "user", "message_type": "text", "content": instructions}, *messages]
        return messages, history
