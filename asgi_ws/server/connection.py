"""A WebSocket connection that a hub has adopted: no task, no queue, and nothing of its handshake.

What the hub sends goes to the transport as it is; what the client sends is parsed by websockets' sans-I/O
protocol and handed over at once. However it ends, the owner hears of it once, and as soon as it is certain;
the transport may then still be flushing, but not for ever.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from websockets.frames import CTRL_OPCODES, CloseCode, Frame, Opcode
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from asgi_ws import endings
from asgi_ws.codecs import Payload
from asgi_ws.server.keepalive import Keepalive, Pinged
from asgi_ws.transports.direct import Owner

# How long a client may take to answer the close frame, or to read what is left for it; as in uvicorn.
CLOSE_TIMEOUT = 10.0
# The same where a whole server waits for it.
STOP_TIMEOUT = 1.0


class Connection(asyncio.Protocol):
    """What `asgi_ws.transports.direct.Connection` asks for, and the transport's protocol once it is adopted.

    Args:
        transport: Where frames are written to.
        websocket: The parser, its handshake done.
        connections: The server's; whoever is in there is told to `shutdown`.
        release: Lets go of the connection, and returns the ASGI messages that nobody has received.
        keepalive: Who pings, if anybody does.
    """

    __slots__ = (
        "_closing", "_connections", "_keepalive", "_message", "_owner", "_release", "_text", "_timer",
        "_transport", "_websocket", "paused", "slot", "write",
    )  # fmt: skip

    def __init__(
        self,
        transport: asyncio.Transport,
        websocket: ServerProtocol,
        connections: set[Any],
        release: Callable[["Connection"], Iterable[Mapping[str, Any]]],
        keepalive: Keepalive | None,
    ) -> None:
        self.paused = False
        self.slot: set[Pinged] | None = None
        self._transport = transport
        self.write = transport.write
        self._websocket = websocket
        self._connections = connections
        self._release: Callable[[Connection], Iterable[Mapping[str, Any]]] | None = release
        self._keepalive = keepalive
        self._owner: Owner | None = None
        self._closing = False
        self._timer: asyncio.TimerHandle | None = None
        # A message that comes in fragments: one buffer, for a list of single bytes is forty times as large.
        self._message: bytearray | None = None
        self._text = False

    def __repr__(self) -> str:
        state = "not adopted" if self._owner is None else "closing" if self._closing else "open"
        return f"<Connection {state}{', paused' * self.paused}>"

    # For the owner.

    @property
    def pings(self) -> bool:
        return self._keepalive is not None

    def adopt(self, owner: Owner) -> None:
        assert self._release is not None, "adopted twice"
        release, self._release = self._release, None
        self._owner = owner
        for message in release(self):
            if message["type"] == "websocket.receive" and not self._closing:
                text = message.get("text")
                owner.received(bytes(message["bytes"]) if text is None else text)
        if self._transport.is_closing():
            self._set_timer(CLOSE_TIMEOUT, self._transport.abort)
        elif self._websocket.eof_sent:
            asyncio.get_running_loop().call_soon(self._finish)
        elif self._keepalive is not None and not self._closing:
            self._keepalive.add(self)

    def close(self, code: int, reason: str) -> None:
        if self._websocket.state is not OPEN or self._transport.is_closing():
            return
        self._closing = True
        self._websocket.send_close(code, reason)
        self._flush()
        self._set_timer(CLOSE_TIMEOUT, self._end)
        if self._keepalive is not None:
            self._keepalive.remove(self)

    def abort(self) -> None:
        self._transport.abort()

    # For the keepalive.

    def silent(self) -> None:
        self._websocket.fail(CloseCode.INTERNAL_ERROR, "keepalive ping timeout")
        self._flush()
        self._lose(CloseCode.INTERNAL_ERROR)
        self._end()

    # For the handshake.

    def expect(self, *, text: bool, message: bytes) -> None:
        """Take a message whose first fragments came before the connection was adopted."""
        self._text = text
        self._message = bytearray(message)

    # For the server.

    def shutdown(self) -> None:
        """Say goodbye: the server is about to end."""
        if self._owner is not None:
            self._owner.stopping()
        if not self.paused:
            self.close(endings.RESTART.code, "")  # where the owner has not
        if self._transport.is_closing():
            return
        if self._websocket.state is OPEN:
            # Its last words wait until the client reads.
            self._set_timer(CLOSE_TIMEOUT, self._transport.abort)
        else:
            self._set_timer(STOP_TIMEOUT, self._end)

    # For the event loop.

    def data_received(self, data: bytes) -> None:
        if self._owner is None:
            return  # it has failed: what the client sent before it knows is read, and dropped
        websocket = self._websocket
        websocket.receive_data(data)
        self._hand_over(self._owner)
        self._flush()  # pongs and the close frame's echo, after all that the owner has to say
        if websocket.eof_sent:
            self._finish()

    def eof_received(self) -> None:
        # No close frame will follow. The transport closes itself when it has flushed.
        self._lose(self._code)
        self._set_timer(CLOSE_TIMEOUT, self._transport.abort)

    def pause_writing(self) -> None:
        self.paused = True
        if self._owner is not None:
            self._owner.held()

    def resume_writing(self) -> None:
        self.paused = False
        if self._owner is not None:
            self._owner.resumed()

    def connection_lost(self, _: Exception | None) -> None:
        self._connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self._lose(self._code)

    # Inside.

    @property
    def _code(self) -> int:
        received = self._websocket.close_rcvd
        return endings.ABNORMAL.code if received is None else received.code

    def _hand_over(self, owner: Owner) -> None:
        for frame in self._websocket.events_received():
            assert isinstance(frame, Frame)
            try:
                payload = self._payload(frame)
            except UnicodeDecodeError as error:
                self._websocket.fail(CloseCode.INVALID_DATA, f"{error.reason} at position {error.start}")
                return
            if payload is not None and not self._closing:
                owner.received(payload)

    def _payload(self, frame: Frame) -> Payload | None:
        """Return the message that a frame completes, if it does."""
        if frame.opcode in CTRL_OPCODES:
            if frame.opcode is Opcode.PONG and self._keepalive is not None:
                self._keepalive.answered(self, bytes(frame.data))
            return None
        if frame.opcode is not Opcode.CONT:
            self._text = frame.opcode is Opcode.TEXT
            if frame.fin:
                return _decoded(frame.data, text=self._text)
            self._message = bytearray()
        assert self._message is not None, "websockets lets no continuation pass that continues nothing"
        self._message += frame.data
        if not frame.fin:
            return None
        message, self._message = self._message, None
        return _decoded(message, text=self._text)

    def _flush(self) -> None:
        if output := self._websocket.data_to_send():
            self._transport.write(b"".join(output))

    def _finish(self) -> None:
        """End what websockets has: the closing handshake is done, or the client broke the rules."""
        websocket = self._websocket
        if websocket.close_rcvd is not None and websocket.parser_exc is None:
            self._lose(websocket.close_rcvd.code)
            self._end()
        else:
            assert websocket.close_sent is not None
            self._lose(websocket.close_sent.code)
            linger(self._transport)
            self._set_timer(CLOSE_TIMEOUT, self._end)

    def _lose(self, code: int) -> None:
        if self._keepalive is not None:
            self._keepalive.remove(self)
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.lost(code)

    def _end(self) -> None:
        self._transport.close()
        self._set_timer(CLOSE_TIMEOUT, self._transport.abort)

    def _set_timer(self, seconds: float, action: Callable[[], object]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, action)


def linger(transport: asyncio.Transport) -> None:
    """Send no more, but go on reading until the client has closed.

    A socket that is closed with bytes unread resets the connection, and the client, still sending, never sees
    the close frame. TLS has no half-closed connections, but reads by itself until the client has answered.
    """
    if transport.can_write_eof():
        transport.write_eof()
    else:
        transport.close()


def _decoded(data: bytes | bytearray | memoryview, *, text: bool) -> Payload:
    return bytes(data).decode() if text else bytes(data)
