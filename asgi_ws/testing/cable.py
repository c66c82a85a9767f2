"""A WebSocket connection in memory: to the app a server, to the client a network that can stall and break."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote, unquote

from starlette.types import ASGIApp, Message, Scope

Payload = str | bytes
# What a URL may hold as it is; anything else is percent-encoded.
_SAFE = "%/:?#[]@!$&'()*+,;=~"


class Closed(AssertionError):
    """The app has closed the connection, or it was cut.

    Attributes:
        code: The close code; 1006 where none came.
        reason: What the app said.
    """

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return f"the connection is closed: {self.code} {self.reason}".rstrip()


class Denied(AssertionError):
    """The app has answered the handshake with HTTP.

    Attributes:
        status: The status.
        body: The body.
    """

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(status, body)
        self.status = status
        self.body = body

    def __str__(self) -> str:
        return f"the handshake was denied: {self.status} {self.body.decode(errors='replace')}".rstrip()


def scope_for(
    path: str, headers: Sequence[tuple[str, str]], subprotocols: Sequence[str], **more: Any
) -> Scope:
    """Return the scope of a handshake; `more` wins over what a server would say."""
    raw, _, query = quote(path, safe=_SAFE).partition("?")
    return {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": unquote(raw),
        "raw_path": raw.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers],
        "client": ("testclient", 50000),
        "server": ("testserver", 80),
        "subprotocols": list(subprotocols),
        "state": {},
        "extensions": {"websocket.http.response": {}},
        **more,
    }


class Cable:
    """One connection.

    Args:
        app: The ASGI app at its far end.
        scope: Of the handshake.
        received: Is called for each message that the client reads.
        changed: Is called when it is accepted, and when it ends.
    """

    def __init__(
        self,
        app: ASGIApp,
        scope: Scope,
        received: Callable[[Payload], object],
        changed: Callable[[], object],
    ) -> None:
        self.accepted: Message | None = None
        self.ended: Closed | Denied | None = None
        self._received = received
        self._changed = changed
        self._incoming: asyncio.Queue[Message] = asyncio.Queue()
        self._denial: Message = {}
        self._body = b""
        self._lost = False
        self._room: int | None = None  # messages that the app may send before it has to wait
        self._readable = asyncio.Event()
        self._incoming.put_nowait({"type": "websocket.connect"})
        self.task = asyncio.ensure_future(app(scope, self._incoming.get, self._send))
        self.task.add_done_callback(self._finished)

    @property
    def stalled(self) -> bool:
        """Whether the app's next message has to wait."""
        return self._room is not None and self._room <= 0

    def put(self, payload: Payload) -> None:
        """Send a message to the app."""
        kind = "text" if isinstance(payload, str) else "bytes"
        self._incoming.put_nowait({"type": "websocket.receive", kind: payload})

    def stall(self, after: int) -> None:
        """Read so many messages more, and then none."""
        self._room = after
        self._readable.set()  # there may be room now for what waits

    def resume(self) -> None:
        """Read again."""
        self._room = None
        self._readable.set()

    def cut(self, code: int) -> None:
        """Be gone, as far as the app can see; what it is sending is lost."""
        if not self._lost:
            self._lost = True
            self._end(Closed(code))
            self._incoming.put_nowait({"type": "websocket.disconnect", "code": code, "reason": ""})
            self._readable.set()

    async def _send(self, message: Message) -> None:
        while self.stalled and not self._lost:
            self._readable.clear()
            await self._readable.wait()
        if self._lost:
            raise ConnectionResetError("the client is gone")
        if self._room is not None:
            self._room -= 1
        self._take(message)

    def _take(self, message: Message) -> None:
        match message["type"]:
            case "websocket.accept":
                self.accepted = message
                self._changed()
            case "websocket.send":
                payload = message.get("text")
                self._received(message["bytes"] if payload is None else payload)
            case "websocket.close":
                self._close(message)
            case "websocket.http.response.start":
                self._denial = message
            case "websocket.http.response.body":
                self._body += message.get("body", b"")
                if not message.get("more_body"):
                    self._end(Denied(self._denial["status"], self._body))

    def _close(self, message: Message) -> None:
        if self.accepted is None:  # which is all that a client sees of it
            self._end(Denied(403, b""))
            return
        code, reason = message.get("code") or 1000, message.get("reason") or ""
        self._end(Closed(code, reason))
        self._lost = True
        self._incoming.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})

    def _end(self, ended: Closed | Denied) -> None:
        self.ended = self.ended or ended
        self._changed()

    def _finished(self, _: object) -> None:
        # A server whose app returns, or fails, without a word drops the connection.
        self._lost = True
        self._end(Closed(1006))
