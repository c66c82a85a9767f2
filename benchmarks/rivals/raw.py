"""The floor: asyncio protocols on uvloop, and one prepared frame written to each transport.

What a turn of the loop brings for a channel is joined and written once.
"""

import asyncio
import base64
import hashlib
import re
import struct
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import msgspec
import uvloop

from benchmarks.control import PORT, obey
from benchmarks.message import BROADCAST

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY = re.compile(rb"(?i)sec-websocket-key: *(\S+)")
_MASKED = 4

topics: dict[str, set[asyncio.Transport]] = {BROADCAST: set()}
turn: dict[str, list[bytes]] = {}


class WebSocket(asyncio.Protocol):
    """Shakes hands, subscribes, and sends back what it is sent."""

    __slots__ = ("_channels", "_open", "_transport")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._channels: list[str] = []
        self._open = False

    def data_received(self, data: bytes) -> None:
        if self._open:
            self._echo(data)
            return
        key = _KEY.search(data)
        if key is None:
            self._transport.close()
            return
        self._open = True
        self._transport.write(_upgrade(key[1]))
        query = parse_qs(urlsplit(data.split(b" ", 2)[1].decode()).query)
        self._channels = [BROADCAST, *query.get("channel", ())]
        for channel in self._channels:
            topics.setdefault(channel, set()).add(self._transport)

    def connection_lost(self, _: Exception | None) -> None:
        for channel in self._channels:
            topics[channel].discard(self._transport)

    def _echo(self, data: bytes) -> None:
        # Whole and short frames only: that is what the generator sends.
        while data:
            size = data[1] & 0x7F
            mask, end = data[2 : 2 + _MASKED], 2 + _MASKED + size
            self._transport.write(frame(_unmask(data[2 + _MASKED : end], mask)))
            data = data[end:]


def frame(payload: bytes) -> bytes:
    if len(payload) < 126:
        return struct.pack("!BB", 0x81, len(payload)) + payload
    return struct.pack("!BBH", 0x81, 126, len(payload)) + payload


async def publish(channel: str, data: dict[str, Any]) -> None:
    if not turn:
        asyncio.get_running_loop().call_soon(flush)
    turn.setdefault(channel, []).append(frame(msgspec.json.encode(data)))


def flush() -> None:
    for channel, prepared in turn.items():
        joined = b"".join(prepared)
        for transport in topics.get(channel, ()):
            transport.write(joined)
    turn.clear()


def _upgrade(key: bytes) -> bytes:
    accept = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %b\r\n\r\n"
    ) % accept


def _unmask(payload: bytes, mask: bytes) -> bytes:
    size = len(payload)
    key = (mask * (size // _MASKED + 1))[:size]
    return (int.from_bytes(payload) ^ int.from_bytes(key)).to_bytes(size)


async def main() -> None:
    loop = asyncio.get_running_loop()
    await loop.create_server(WebSocket, "127.0.0.1", PORT, backlog=2048)
    await obey(publish)


if __name__ == "__main__":
    uvloop.run(main())
