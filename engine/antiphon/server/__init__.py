"""The server: OpenAI's HTTP interface, Realtime and WebRTC over an ``AsyncEngine``. Needs the extra ``serve``."""

from __future__ import annotations

from .config import ServerConfig

__all__ = ["ServerConfig"]
