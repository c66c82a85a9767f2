"""uvicorn's WebSocket class on websockets' sans-I/O protocol, whose connection a hub can adopt.

Whoever does not adopt it finds uvicorn's own class, with these differences: frames that come before the
handshake is answered are kept until it is; what is wrong with a frame is told to a client that still sends;
headers too large for websockets are refused; no client can hold up the server's end.
"""

import asyncio
import sys
import weakref
from collections.abc import Iterable, Mapping
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.exceptions import InvalidState
from websockets.frames import Frame
from websockets.http11 import Request
from websockets.protocol import Protocol

from asgi_ws.server.connection import Connection, linger
from asgi_ws.server.keepalive import Keepalive
from asgi_ws.transports.direct import EXTENSION

_keepalives: weakref.WeakKeyDictionary[ServerState, Keepalive] = weakref.WeakKeyDictionary()


class _Adopted:
    """The queue and the event of an ASGI task whose connection a hub has: whoever asks for it learns why."""

    async def get(self) -> None:
        raise RuntimeError(
            "a hub has adopted this connection, so nothing else can send or receive: let the middleware that "
            "does leave the hub's path alone, or set ASGI_WS_FAST=false"
        )

    wait = get


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """A WebSocket connection that offers itself in `scope["extensions"]["asgi_ws"]`."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._server_state = server_state
        self._offer: Connection | None = None
        self._adopted = False
        self._early = b""
        self._failed = False

    # What the event loop and uvicorn call.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        http: Any = self.transport.get_protocol()
        self._early = _after_request(http)
        if hasattr(http, "parser"):
            http.parser = None  # it and its parser hold each other, and have done their work

    def data_received(self, data: bytes) -> None:
        if self._failed:
            return
        if self.handshake_initiated and not self.handshake_complete:
            # https://www.rfc-editor.org/rfc/rfc6455#section-4.1 has clients wait. Those that do not are
            # not answered, with a pong say, before the handshake is.
            self._early += data
            self.transport.pause_reading()
            return
        self.conn.receive_data(data)
        try:
            self.handle_events()
        except InvalidState:  # a message that is no UTF-8, in one piece with the close frame behind it
            self._failed = True
        if self._failed or self.conn.parser_exc is not None:
            self._fail()
        elif not self.handshake_initiated:
            # Headers too many or too long: websockets has the answer, and no event for it.
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._offer is not None:
            self._offer.paused = True

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._offer is not None:
            self._offer.paused = False

    def shutdown(self) -> None:
        if not self.transport.is_closing():  # uvicorn would fail at a second close frame
            super().shutdown()
        if self.close_timer is not None:
            self.close_timer.cancel()
        # Who does not read would hold up the server's end.
        self.close_timer = self.loop.call_later(self.close_timeout, self.transport.abort)

    async def run_asgi(self) -> None:
        try:
            result: object = await cast("Any", self.app)(self.scope, self.receive, self.send)
        except ClientDisconnected:
            pass
        except BaseException:
            self.logger.exception("Exception in ASGI application\n")
            self.send_500_response()
        else:
            if not self.handshake_complete:
                self.logger.error("ASGI callable returned without completing handshake.")
                self.send_500_response()
            elif result is not None:
                self.logger.error("ASGI callable should return None, but returned '%s'.", result)
        finally:
            self._withdraw()
        if not self._adopted and self.close_timer is None:
            self.transport.close()

    # What uvicorn's own methods call.

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        scope: Any = getattr(self, "scope", None)
        if scope is not None:  # the task that is to see it has not run yet
            self._offer = Connection(
                self.transport, self.conn, self.connections, self._release, self._keepalive
            )
            scope["extensions"][EXTENSION] = {"connection": self._offer}

    def handle_cont(self, event: Frame) -> None:
        # One buffer, for a list of fragments takes forty bytes for each of the message's.
        if not isinstance(self.frames[0], bytearray):
            self.frames = [cast("bytes", bytearray(self.frames[0]))]
        self.frames[0] += event.data
        if event.fin:
            self.send_receive_event_to_app()

    def handle_parser_exception(self) -> None:
        self._failed = True  # `data_received` goes on

    def start_keepalive(self) -> None:
        """Begin with the frames: the answer to the handshake is on its way."""
        super().start_keepalive()
        # websockets' parser keeps its request for as long as it lives; one for frames alone has none.
        self.conn.parser = Protocol.parse(self.conn)
        next(self.conn.parser)
        early, self._early = self._early, b""
        if early:
            self.transport.resume_reading()
            self.data_received(early)

    # Inside.

    @property
    def _keepalive(self) -> Keepalive | None:
        """The one of this server: none where its settings say so."""
        if not self.ping_interval:
            return None
        keepalive = _keepalives.get(self._server_state)
        if keepalive is None:
            keepalive = _keepalives[self._server_state] = Keepalive(self.ping_interval, self.ping_timeout)
        return keepalive

    def _release(self, connection: Connection) -> Iterable[Mapping[str, Any]]:
        """Let a hub have the connection; return what its client has sent already."""
        self._adopted = True
        self.stop_keepalive()
        queue, self.queue, self.writable = self.queue, cast("Any", _Adopted()), cast("Any", _Adopted())
        if self in self.connections:
            self.connections.remove(self)
            self.connections.add(cast("Any", connection))
            self.transport.set_protocol(connection)
            if self.read_paused:
                self.transport.resume_reading()
            if self.close_timer is not None:
                self.close_timer.cancel()
        else:
            self.loop.call_soon(connection.connection_lost, None)
        if self.frames:
            connection.expect(text=self.curr_msg_data_type == "text", message=self.frames[0])
        return [queue.get_nowait() for _ in range(queue.qsize())]

    def _withdraw(self) -> None:
        # The offer and this object hold each other.
        self._offer = None
        self.scope["extensions"].pop(EXTENSION, None)

    def _fail(self) -> None:
        """Fail the connection, when what came before the failure has been handed over."""
        self._failed = True
        sent = self.conn.close_sent
        assert sent is not None
        self.queue.put_nowait({"type": "websocket.disconnect", "code": sent.code, "reason": sent.reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = self.disconnected = True
        if self.close_timer is not None:
            self.close_timer.cancel()
        self.close_timer = self.loop.call_later(self.close_timeout, self.transport.close)
        self.transport.resume_reading()
        linger(self.transport)


def _after_request(http: Any) -> bytes:
    """Return what came in one piece with the handshake, which uvicorn's HTTP classes drop."""
    upgrade = sys.exc_info()[1]
    if type(upgrade).__name__ == "HttpParserUpgrade":
        # httptools: the class is handling it right now, and it says where in its data the request ends.
        assert upgrade is not None
        assert upgrade.__traceback__ is not None
        data = upgrade.__traceback__.tb_frame.f_locals.get("data", b"")
        return bytes(data[upgrade.args[0] :])
    h11 = getattr(http, "conn", None)
    return b"" if h11 is None else bytes(h11.trailing_data[0])
