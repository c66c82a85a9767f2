"""As much of RFC 6455 as a load generator needs, on the client's side."""

import struct
from collections.abc import Iterator
from typing import NamedTuple

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10

_KEY = b"dGhlIHNhbXBsZSBub25jZQ=="


class Frame(NamedTuple):
    """Where a frame lies in what was received: its header, its payload, its end."""

    opcode: int
    start: int
    payload: int
    end: int


def request(port: int, path: str) -> bytes:
    """Return the handshake: no extensions, no subprotocol."""
    return (
        b"GET %b HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: %b\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ) % (path.encode(), port, _KEY)


def masked(payload: bytes, opcode: int = TEXT) -> bytes:
    """Return a frame as clients send it; masked with zeros, which costs the server as much as any mask."""
    size = len(payload)
    if size < 126:
        return struct.pack("!BBI", 0x80 | opcode, 0x80 | size, 0) + payload
    return struct.pack("!BBHI", 0x80 | opcode, 0x80 | 126, size, 0) + payload


def frames(data: bytes) -> Iterator[Frame]:
    """Find the whole frames in what was received; what follows the last of them is incomplete."""
    start, total = 0, len(data)
    while total - start >= 2:
        size, payload = data[start + 1], start + 2
        if size == 126:
            size, payload = int.from_bytes(data[payload : payload + 2]), payload + 2
        elif size == 127:
            size, payload = int.from_bytes(data[payload : payload + 8]), payload + 8
        end = payload + size
        if end > total or payload > total:
            return
        yield Frame(data[start] & 0x0F, start, payload, end)
        start = end
