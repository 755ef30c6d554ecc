"""A small HTTP/1.1 client on asyncio: connections are used again, bodies come as they come. Cheap enough to load a server with."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator
from urllib.parse import urlsplit


class HttpFailure(Exception):
    """An answer that is no 200; ``status`` 0: the connection broke."""

    def __init__(self, status: int, body: bytes = b""):
        super().__init__(f"{status} {body[:200].decode('utf-8', 'replace')}")
        self.status = status


class Connection:
    """One connection; ``whole``: the last answer was read to its end, so that another request may follow."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.reader, self.writer = reader, writer
        self.whole = False

    @property
    def usable(self) -> bool:
        return self.whole and not self.reader.at_eof() and not self.writer.is_closing()

    async def body(self, headers: dict[str, str]) -> AsyncIterator[bytes]:
        """Pieces of the answer's body."""
        reader = self.reader
        if headers.get("transfer-encoding") == "chunked":
            while size := int(await reader.readline(), 16):
                yield (await reader.readexactly(size + 2))[:-2]
            await reader.readline()
        else:
            yield await reader.readexactly(int(headers.get("content-length", "0")))
        self.whole = headers.get("connection") != "close"

    async def close(self) -> None:
        """Hang up."""
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


_idle: dict[tuple[asyncio.AbstractEventLoop, str], list[Connection]] = defaultdict(list)


async def _connection(host: str, port: int, netloc: str) -> Connection:
    """One that is idle, or a new one. HttpFailure."""
    idle = _idle[asyncio.get_running_loop(), netloc]
    while idle:
        if (known := idle.pop()).usable:
            return known
        await known.close()
    try:
        return Connection(*await asyncio.open_connection(host, port))
    except OSError as error:
        raise HttpFailure(0, str(error).encode()) from error


async def post(url: str, body: bytes, kind: str, key: str = "") -> AsyncGenerator[bytes, None]:
    """Pieces of the body of the answer to a POST; leaving the iteration hangs up. HttpFailure."""
    parts = urlsplit(url)
    connection = await _connection(parts.hostname, parts.port or 80, parts.netloc)
    authorization = f"Authorization: Bearer {key}\r\n" if key else ""
    head = (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\n{authorization}\r\n"
    )
    connection.whole = False
    try:
        connection.writer.write(head.encode() + body)
        await connection.writer.drain()
        status, headers = await _head(connection.reader)
        if status != 200:
            raise HttpFailure(status, b"".join([piece async for piece in connection.body(headers)]))
        async for piece in connection.body(headers):
            yield piece
    except (OSError, asyncio.IncompleteReadError, ValueError) as error:
        raise HttpFailure(0, repr(error).encode()) from error
    finally:
        if connection.whole:
            _idle[asyncio.get_running_loop(), parts.netloc].append(connection)
        else:
            await connection.close()


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
    return int(lines[0].split()[1]), headers
