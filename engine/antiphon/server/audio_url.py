"""Fetching ``audio_url``: from allowed hosts only, and only from public addresses, checked at the moment of connecting."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
from urllib.parse import SplitResult, urljoin, urlsplit

from .errors import ApiError, bad_request

MAX_REDIRECTS = 3
TIMEOUT = 10.0
BLOCK = 1 << 16


def fetch(url: str, hosts: tuple[str, ...], max_bytes: int, param: str, *, allow_private: bool = False) -> bytes:
    """The body at ``url``. Blocks.

    The address that was checked is the one that is connected to, so a name cannot resolve to another one in between;
    every redirect is checked again.

    Raises:
        ApiError: the scheme, host or address is not allowed, or nothing usable came.
    """
    for _ in range(MAX_REDIRECTS + 1):
        parts = _checked(url, hosts, param)
        address = _resolve(parts, param, allow_private)
        status, location, body = _get(parts, address, max_bytes, param)
        if status in (301, 302, 303, 307, 308) and location:
            url = urljoin(url, location)
            continue
        if status != 200:
            raise bad_request(f"{parts.hostname} answered {status}", param, "invalid_url")
        return body
    raise bad_request(f"more than {MAX_REDIRECTS} redirects", param, "invalid_url")


def _checked(url: str, hosts: tuple[str, ...], param: str) -> SplitResult:
    if not hosts:
        raise ApiError(400, "audio_url is switched off on this server; send input_audio", param=param, code="unsupported")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise bad_request(f"not a usable address: {error}", param, "invalid_url") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
        raise bad_request("expected http:// or https:// and a host, without a user", param, "invalid_url")
    if parts.hostname.lower() not in hosts or port == 0:
        raise bad_request(f"the host {parts.hostname!r} is not on this server's list", param, "url_not_allowed")
    return parts


def _resolve(parts: SplitResult, param: str, allow_private: bool) -> str:
    """A public address of the host; one private address among its addresses spoils them all."""
    try:
        found = socket.getaddrinfo(parts.hostname, _port(parts), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise bad_request(f"the host {parts.hostname!r} is not known", param, "invalid_url") from error
    addresses = [entry[4][0] for entry in found]
    for text in addresses:
        address = ipaddress.ip_address(text.partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None) or address
        if not allow_private and (not mapped.is_global or mapped.is_multicast):
            raise bad_request(f"the host {parts.hostname!r} is not at a public address", param, "url_not_allowed")
    return addresses[0]


def _get(parts: SplitResult, address: str, max_bytes: int, param: str) -> tuple[int, str | None, bytes]:
    """One request to ``address`` in the name of the host."""
    connection = http.client.HTTPConnection(parts.hostname, _port(parts), timeout=TIMEOUT)
    try:
        raw = socket.create_connection((address, _port(parts)), timeout=TIMEOUT)
        if parts.scheme == "https":
            raw = ssl.create_default_context().wrap_socket(raw, server_hostname=parts.hostname)
        connection.sock = raw
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", target, headers={"Accept": "audio/*", "User-Agent": "antiphon"})
        answer = connection.getresponse()
        body = b""
        while answer.status == 200 and (block := answer.read(BLOCK)):
            body += block
            if len(body) > max_bytes:
                raise ApiError(400, f"more than {max_bytes} bytes at the address", param=param, code="audio_too_long")
        return answer.status, answer.headers.get("Location"), body
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise bad_request(f"{parts.hostname} could not be read: {error}", param, "invalid_url") from error
    finally:
        connection.close()


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)
