"""The client's events about items: ``conversation.item.create``, ``delete``, ``retrieve``, ``truncate``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...audio import load_audio
from ..errors import bad_request
from ..media import from_base64
from .audio import RATES, decode
from .items import Item
from .schema import Content, ItemCreate, ItemDelete, ItemParam, ItemRetrieve, ItemTruncate
from .truncating import truncate_item

if TYPE_CHECKING:
    from .session import Session

CONTENT = {
    "user": ("input_text", "input_audio"),
    "system": ("input_text",),
    "assistant": ("output_text", "output_audio"),
}
"""Which content parts whose items may have."""


def new_item(session: Session, param: ItemParam) -> Item:
    """An item as a client describes it. Blocks: call it in an executor."""
    item = Item(param.role, [part.model_dump(exclude_none=True, exclude={"audio"}) for part in param.content])
    item.id = param.id or item.id
    for index, part in enumerate(param.content):
        _take_part(session, item, index, part)
    return item


def _take_part(session: Session, item: Item, index: int, part: Content) -> None:
    where, allowed = f"item.content[{index}]", CONTENT[item.role]
    if part.type not in allowed:
        raise bad_request(f"{part.type} is no content of the {item.role}; use {' or '.join(allowed)}", where)
    if part.type == "input_audio":
        if not part.audio:
            raise bad_request("a recording is missing", f"{where}.audio")
        kind = session.settings.input_format
        samples = decode(from_base64(part.audio, f"{where}.audio"), kind)
        item.sound[index] = load_audio((samples, RATES[kind]), session.service.config.max_audio_seconds)
    elif part.text is None and part.transcript is None:
        raise bad_request("text is missing", f"{where}.text")


async def add(session: Session, item: Item, after: str | None = None) -> None:
    """Put an item into the conversation and say so."""
    items = session.items
    if len(items) >= items.max_items:
        raise bad_request(f"a conversation may have {items.max_items} items", code="too_many_items")
    try:
        before = items.insert(item, after)
    except KeyError:
        raise bad_request(f"there is no item {after!r}", "previous_item_id", "item_not_found") from None
    for kind in ("conversation.item.added", "conversation.item.done"):
        await session.send(kind, previous_item_id=before, item=item.public())


async def create(session: Session, event: ItemCreate) -> None:
    if event.item.id is not None and session.items.find(event.item.id) is not None:
        raise bad_request(f"there already is an item {event.item.id!r}", "item.id")
    await add(session, await session.service.in_thread(new_item, session, event.item), event.previous_item_id)


async def delete(session: Session, event: ItemDelete) -> None:
    item = _known(session, event.item_id)
    if session.response is not None and session.response.item is item:
        raise bad_request("the item is still being generated; cancel the response first", "item_id")
    session.items.remove(item)
    await session.send("conversation.item.deleted", item_id=item.id)


async def retrieve(session: Session, event: ItemRetrieve) -> None:
    await session.send("conversation.item.retrieved", item=_known(session, event.item_id).public())


async def truncate(session: Session, event: ItemTruncate) -> None:
    await truncate_item(session, _known(session, event.item_id), event.content_index, event.audio_end_ms)


def _known(session: Session, item_id: str) -> Item:
    item = session.items.find(item_id)
    if item is None:
        raise bad_request(f"there is no item {item_id!r}", "item_id", "item_not_found")
    return item
