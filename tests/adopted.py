"""A connection in memory that the hub adopts, as it does on its own server: for `asgi_ws.testing.cable.Cable`."""

import asyncio
from collections.abc import Callable
from typing import Any

from asgi_ws.testing.cable import Closed

HIGH = 2048  # bytes that wait, from which on it is paused
CLOSE = 8


class AdoptedCable:
    """One connection; what is not read waits in it, as in a socket and its transport."""

    def __init__(self, app: Any, scope: dict[str, Any], received: Callable[[Any], object]) -> None:
        self.ended: Closed | None = None
        self.paused = False
        self.pings = False
        self._received = received
        self._owner: Any = None
        self._early: list[Any] = []
        self._sent: list[tuple[int, bytes]] = []
        self._room: int | None = None
        self._gone = False
        self._scope = {**scope, "extensions": {"asgi_ws": {"connection": self}}}
        self._loop = asyncio.get_running_loop()
        self._incoming: asyncio.Queue[Any] = asyncio.Queue()
        self._incoming.put_nowait({"type": "websocket.connect"})
        self.task = asyncio.ensure_future(app(self._scope, self._incoming.get, self._send))

    async def _send(self, message: Any) -> None:
        assert message["type"] == "websocket.accept", message

    # For the hub.

    def adopt(self, owner: Any) -> None:
        self._owner = owner
        for payload in self._early:
            owner.received(payload)
        if self._gone:
            owner.lost(1006)

    def write(self, data: bytes) -> None:
        start = 0
        while start < len(data):
            size, payload = data[start + 1], start + 2
            if size in (126, 127):
                width = 2 if size == 126 else 8
                size, payload = int.from_bytes(data[payload : payload + width]), payload + width
            self._sent.append((data[start] & 15, data[payload : payload + size]))
            start = payload + size
        self._read()

    def close(self, code: int, reason: str) -> None:
        self._sent.append((CLOSE, code.to_bytes(2) + reason.encode()))
        self._read()

    def abort(self) -> None:
        self.cut(1006)

    # For the client.

    @property
    def stalled(self) -> bool:
        return self._room is not None and self._room <= 0

    def put(self, payload: Any) -> None:
        self._loop.call_soon(self._arrive, payload)

    def stall(self, after: int) -> None:
        self._room = after
        self._loop.call_soon(self._read)

    def resume(self) -> None:
        self._room = None
        self._read()

    def cut(self, code: int) -> None:
        if not self._gone:
            self._gone = True
            self.ended = self.ended or Closed(code)
            self._loop.call_soon(self._lose, code)

    def _arrive(self, payload: Any) -> None:
        if self._owner is None:
            self._early.append(payload)
        elif not self._gone:
            self._owner.received(payload)

    def _lose(self, code: int) -> None:
        if self._owner is not None:
            self._owner.lost(code)

    def _read(self) -> None:
        while self._sent and not self.stalled and not self._gone:
            opcode, payload = self._sent.pop(0)
            if self._room is not None:
                self._room -= 1
            if opcode == CLOSE:
                self.ended = Closed(int.from_bytes(payload[:2]), payload[2:].decode())
                self.cut(self.ended.code)
            else:
                self._received(payload.decode() if opcode == 1 else payload)
        full = sum(len(payload) for _, payload in self._sent) >= HIGH
        if full and not self.paused:
            self.paused = True
            if self._owner is not None:
                self._owner.held()
        elif not self._sent and self.paused and not self._gone:
            self.paused = False
            if self._owner is not None:
                self._owner.resumed()
