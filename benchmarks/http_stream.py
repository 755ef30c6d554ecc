"""A small HTTP/1.1 client on asyncio: one request per connection, the body as it comes. Cheap enough to load a server with."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit


class HttpFailure(Exception):
    """An answer that is no 200; ``status`` 0: the connection broke."""

    def __init__(self, status: int, body: bytes = b""):
        super().__init__(f"{status} {body[:200].decode('utf-8', 'replace')}")
        self.status = status


async def post(url: str, body: bytes, kind: str, key: str = "") -> AsyncIterator[bytes]:
    """Pieces of the body of the answer to a POST. HttpFailure."""
    parts = urlsplit(url)
    try:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 80)
    except OSError as error:
        raise HttpFailure(0, str(error).encode()) from error
    head = (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        f"Connection: close\r\n{f'Authorization: Bearer {key}' + chr(13) + chr(10) if key else ''}\r\n"
    )
    try:
        writer.write(head.encode() + body)
        await writer.drain()
        status, headers = await _head(reader)
        pieces = _chunked(reader) if headers.get("transfer-encoding") == "chunked" else _plain(reader)
        if status != 200:
            raise HttpFailure(status, b"".join([piece async for piece in pieces]))
        async for piece in pieces:
            yield piece
    except (OSError, asyncio.IncompleteReadError, ValueError) as error:
        raise HttpFailure(0, repr(error).encode()) from error
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
    return int(lines[0].split()[1]), headers


async def _chunked(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int(await reader.readline(), 16):
        yield (await reader.readexactly(size + 2))[:-2]


async def _plain(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while piece := await reader.read(1 << 16):
        yield piece
