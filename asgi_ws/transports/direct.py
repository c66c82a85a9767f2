"""A session whose connection is handed over by our own server: no task, no `send`, the bytes as they are.

The server offers itself in `scope["extensions"]["asgi_ws"]["connection"]`. After the handshake the hub
adopts the connection, and the ASGI task ends. What this bypasses: middleware that wraps `send`, or waits
for the connection's end. `ASGI_WS_FAST=false` switches it off.
"""

from typing import Protocol

from asgi_ws import endings
from asgi_ws.codecs import Payload
from asgi_ws.outbox import Batch
from asgi_ws.session import State
from asgi_ws.transports.conversation import Conversation

EXTENSION = "asgi_ws"

# What waits is joined into writes of about this size: asyncio's own mark for a full buffer.
WRITE_BYTES = 64 * 1024


class Owner(Protocol):
    """Who adopts a connection; each call comes from the event loop, none may wait."""

    def received(self, payload: Payload) -> None:
        """Take a whole message from the client."""

    def held(self) -> None:
        """Learn that the transport takes no more bytes for now."""

    def resumed(self) -> None:
        """Learn that the transport takes bytes again."""

    def stopping(self) -> None:
        """Learn that the server is about to close the connection: last words, now."""

    def lost(self, code: int) -> None:
        """Learn that the connection is gone, and with what code."""


class Connection(Protocol):
    """What the server offers: a WebSocket connection after its handshake."""

    paused: bool

    @property
    def pings(self) -> bool:
        """Whether the server finds dead clients with pings of its own."""

    def adopt(self, owner: Owner) -> None:
        """Take the connection out of the ASGI task's hands; what the client has sent already follows."""

    def write(self, frames: bytes) -> None:
        """Write frames as they are; they are buffered where the socket does not take them."""

    def close(self, code: int, reason: str) -> None:
        """Begin the closing handshake."""

    def abort(self) -> None:
        """Drop the connection."""


class DirectLink:
    """The transport's end of a session: writes at once, unless the transport is paused."""

    __slots__ = ("_closing", "_connection", "_conversation", "_waiting")

    def __init__(self, conversation: Conversation, connection: Connection) -> None:
        self._conversation = conversation
        self._connection = connection
        self._closing = False
        self._waiting = True

    def begin(self) -> None:
        """Welcome the client, in one write with all that it hears first, and adopt the connection."""
        self._conversation.begin(self, pong=not self._connection.pings)
        self._waiting = False
        self.wake()
        self._connection.adopt(self)

    # For the session.

    def write(self, _: Batch) -> bool:
        return False  # `session.direct` writes, unless something stands in the way

    def wake(self) -> None:
        if self._waiting:
            return
        session = self._conversation.session
        while not self._connection.paused and (share := session.share(WRITE_BYTES)):
            self._connection.write(b"".join([batch.frames for batch in share]))
            for batch in share:
                session.written(batch, len(batch))
        if session.next is not None:
            return
        if session.phase is State.OPEN:
            session.direct = None if self._connection.paused else self._connection.write
        elif session.ending is not None and not self._closing:
            self._closing = True
            self._connection.close(session.ending.code, session.ending.reason)

    def abort(self) -> None:
        self._connection.abort()

    # For the connection.

    def received(self, payload: Payload) -> None:
        self._conversation.receive(payload)

    def held(self) -> None:
        self._conversation.session.direct = None

    def resumed(self) -> None:
        self.wake()

    def stopping(self) -> None:
        self._conversation.session.end(endings.RESTART)

    def lost(self, code: int) -> None:
        self._conversation.end(code)
