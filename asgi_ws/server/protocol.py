"""uvicorn's WebSocket class on websockets' sans-I/O protocol, whose connection a hub can adopt.

Whoever does not adopt it finds uvicorn's own class, unchanged.
"""

from collections.abc import Mapping
from typing import Any

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

from asgi_ws import endings
from asgi_ws.transports.direct import EXTENSION, Owner


class _Void:
    """The queue and the event of a connection that has an owner: nobody waits for either."""

    def put_nowait(self, _: object) -> None:
        return

    def set(self) -> None:
        return


_GONE: Any = None
_VOID: Any = _Void()


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """A WebSocket connection that offers itself in `scope["extensions"]["asgi_ws"]`."""

    owner: Owner | None = None
    paused = False

    # What a hub may do with it: `asgi_ws.transports.direct.Connection`.

    def adopt(self, owner: Owner) -> None:
        self.owner = owner
        waiting, self.queue, self.writable = self.queue, _VOID, _VOID
        while not waiting.empty():
            self._hand_over(waiting.get_nowait())
        if self.disconnected:
            self.loop.call_soon(owner.lost, endings.ABNORMAL.code)
        elif self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self._forget_handshake()

    def write(self, frames: bytes) -> None:
        self.transport.write(frames)

    def close(self, code: int, reason: str) -> None:
        if self.close_sent or self.transport.is_closing():
            return
        self.close_sent = True
        self.conn.send_close(code, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_timer = self.loop.call_later(self.close_timeout, self.transport.close)

    def abort(self) -> None:
        self.transport.abort()

    # What uvicorn and the event loop call.

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        scope = getattr(self, "scope", None)
        if scope is not None:  # the task that is to see it has not run yet
            scope["extensions"][EXTENSION] = {"connection": self}

    def send_receive_event_to_app(self) -> None:
        if self.owner is None:
            super().send_receive_event_to_app()
            return
        frames, self.frames = self.frames, []
        data = frames[0] if len(frames) == 1 else b"".join(frames)
        if self.close_sent:
            return
        if self.curr_msg_data_type == "bytes":
            self.owner.received(bytes(data))
            return
        try:
            text = bytes(data).decode()
        except UnicodeDecodeError:
            self.conn.send_close(1007)
            self.handle_parser_exception()
            return
        self.owner.received(text)

    def pause_writing(self) -> None:
        self.paused = True
        if self.owner is None:
            super().pause_writing()

    def resume_writing(self) -> None:
        self.paused = False
        if self.owner is None:
            super().resume_writing()
        else:
            self.owner.resumed()

    def shutdown(self) -> None:
        if self.owner is not None:
            self.owner.stopping()
        super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.owner is not None:
            received = self.conn.close_rcvd
            self.owner.lost(endings.ABNORMAL.code if received is None else received.code)

    async def run_asgi(self) -> None:
        try:
            await self.app(self.scope, self.receive, self.send)
        except ClientDisconnected:
            pass
        except BaseException:
            self.logger.exception("Exception in ASGI application\n")
            self.send_500_response()
        else:
            if not self.handshake_complete:
                self.logger.error("ASGI callable returned without completing handshake.")
                self.send_500_response()
        if self.owner is None and self.close_timer is None:
            self.transport.close()

    def _forget_handshake(self) -> None:
        # An idle connection has no use for it, and it is a quarter of its memory. The headers are cleared
        # because websockets' parser keeps its request for as long as it lives.
        self.request.headers.clear()
        self.response.headers.clear()
        self.scope = self.request = self.response = _GONE
        self.client = self.server = None

    def _hand_over(self, message: Mapping[str, Any]) -> None:
        assert self.owner is not None
        if message["type"] == "websocket.receive":
            text = message.get("text")
            self.owner.received(message["bytes"] if text is None else text)
