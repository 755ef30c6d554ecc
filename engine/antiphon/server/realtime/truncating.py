"""``conversation.item.truncate``: the history forgets what was not heard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...config import LlmConfig
from ...conversation_codec import decode_conversation, encode_conversation
from ...truncation import truncate
from ..errors import bad_request
from .items import Item

if TYPE_CHECKING:
    from .session import Session


async def truncate_item(session: Session, item: Item, content_index: int, heard_ms: int) -> None:
    """Cut a spoken answer behind ``heard_ms``; its transcript goes, since nobody knows how much of it was heard."""
    if item.role != "assistant" or item.content[0]["type"] != "output_audio":
        raise bad_request("only spoken answers of the assistant can be truncated", "item_id")
    if content_index != 0:
        raise bad_request("the item has one content part, 0", "content_index")
    active = session.response
    if active is not None and active.item is item:
        active.cancel("client_cancelled")
        await active.done.wait()
    if heard_ms > item.audio_ms:
        text = f"the answer lasts {item.audio_ms} ms, which is shorter than {heard_ms} ms"
        raise bad_request(text, "audio_end_ms")
    if item.kept is not None and session.service.engine.info.llm is not None:
        item.kept = await session.service.in_thread(_cut, item.kept, item.prompt_len, heard_ms, session.service.engine.info.llm)
    item.content[0]["transcript"] = None
    item.audio_ms = heard_ms
    item.version += 1
    fields = {"item_id": item.id, "content_index": content_index, "audio_end_ms": heard_ms}
    await session.send("conversation.item.truncated", **fields)


def _cut(data: bytes, prompt_len: int, heard_ms: int, config: LlmConfig) -> bytes:
    return encode_conversation(truncate(decode_conversation(data), prompt_len, heard_ms, config))
