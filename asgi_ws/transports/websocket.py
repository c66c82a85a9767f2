"""A session over a WebSocket, on any ASGI server.

The server's task reads; a second one writes, so that a client that does not read holds up nobody. A WebSocket
always needs a reader: while none waits, uvicorn reads nothing, pongs neither.
"""

import asyncio
import contextlib
import contextvars
import logging
from asyncio import _enter_task as enter_task  # see asyncio-extending: for those who run steps of tasks
from asyncio import _leave_task as leave_task

from starlette.requests import HTTPConnection
from starlette.types import Message, Receive, Scope, Send

from asgi_ws import endings
from asgi_ws.eager import Failed, Rest, begin
from asgi_ws.endings import Ending
from asgi_ws.endpoints import Endpoint
from asgi_ws.outbox import Batch
from asgi_ws.run import Run
from asgi_ws.session import Session
from asgi_ws.transports import bypass
from asgi_ws.transports.conversation import Conversation
from asgi_ws.transports.direct import EXTENSION, Connection, DirectLink
from asgi_ws.transports.handshake import Refused, denial, shake

logger = logging.getLogger("asgi_ws")

# How long a client may take to answer the close frame, as in uvicorn and websockets.
CLOSE_TIMEOUT = 10.0
# After so many messages the writer gives way, for a socket that takes them all never makes it wait.
_STINT = 64


class WebSocketLink:
    """The transport's end of a session: its task writes; while that rests, the fan-out takes its first steps.

    A `send` to a socket that takes the message needs one step only. Where the writer rests, that step is
    taken in its name, at once, and saves two switches of tasks for each message; what is left of a `send`
    that had to wait is the writer's.
    """

    __slots__ = (
        "_begun", "_context", "_deadline", "_loop", "_rests", "_send", "_session", "_transport", "_waiter",
        "_writer",
    )  # fmt: skip

    def __init__(self, session: Session, send: Send) -> None:
        self._session = session
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._waiter: asyncio.Future[None] = self._loop.create_future()
        self._rests = False  # whether the writer has nothing to write, and waits for it
        self._begun: tuple[Batch, Rest] | None = None
        self._writer: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._deadline = asyncio.timeout(None)

    def write(self, batch: Batch) -> bool:
        # Only one message: what follows would have to wait for a first one that has to.
        if not self._rests or len(batch.payloads) > 1:
            return False
        loop, writer = self._loop, self._writer
        assert writer is not None
        try:
            enter_task(loop, writer)
        except RuntimeError:  # in another task nothing can be done in the name of this one
            return False
        try:
            message = {"type": "websocket.send", batch.codec.kind: batch.messages[0]}
            try:
                sending = self._send(message)
            except Exception as error:  # no coroutine function: some middleware's own callable
                rest: Rest | None = Failed(error)
            else:
                rest = begin(sending, self._context)
        finally:
            leave_task(loop, writer)
        if rest is None:
            return True
        self._begun = batch, rest
        return False

    def wake(self) -> None:
        if self._rests:
            self._rests = False
            if not self._waiter.done():  # it may be cancelled
                self._waiter.set_result(None)

    def abort(self) -> None:
        # ASGI has no word for it: the app returns, and the server closes the connection; uvicorn only when
        # all is written, which may be never.
        if self._transport is not None:
            self._transport.abort()
        if self._writer is not None:
            self._writer.cancel()
        self._stop_reading(after=0.0)

    async def serve(self, conversation: Conversation, receive: Receive) -> None:
        """Read and write until the connection is gone."""
        self._writer = self._loop.create_task(self._write(), context=self._context)
        code = endings.ABNORMAL.code
        server = _uvicorn(receive)
        self._transport = getattr(server, "transport", None)
        try:
            conversation.begin(self, pong=not getattr(server, "ping_interval", None))
            async with self._deadline:
                code = await _read(conversation, receive)
        except TimeoutError:
            logger.debug("session %s did not answer the close frame", self._session.id)
        finally:
            self._writer.cancel()
            conversation.end(code)  # first: what is awaited in here may be cancelled again
            await asyncio.wait([self._writer])

    async def _write(self) -> None:
        try:
            await self._write_all()
        except Exception as error:  # each server has its own for a client that is gone
            logger.debug("writing to session %s failed: %r", self._session.id, error)
            self._stop_reading(after=0.0)
        else:
            self._stop_reading(after=CLOSE_TIMEOUT)

    async def _write_all(self) -> None:
        session = self._session
        while True:
            if self._begun is not None:
                await self._finish()
            elif (batch := session.next) is not None:
                await self._write_batch(batch)
            elif session.ending is None:
                await self._rest()
            else:
                self._stop_reading(after=CLOSE_TIMEOUT)  # granian does not close while somebody reads
                await self._send(_close(session.ending))
                return

    async def _rest(self) -> None:
        self._waiter, self._rests = self._loop.create_future(), True
        try:
            await self._waiter
        except asyncio.CancelledError as error:
            # Whoever cancels this task means the `send` that was begun in its name, if there is one.
            if self._begun is None:
                raise
            await self._finish(error)
        finally:
            self._rests = False

    async def _finish(self, error: BaseException | None = None) -> None:
        """Go on with the `send` that was begun; its batch is the first that waits, or was dropped."""
        assert self._begun is not None
        (batch, rest), self._begun = self._begun, None
        sent = 0
        try:
            await (rest if error is None else rest.interrupt(error))
            sent = 1
        finally:
            self._session.written(batch, sent)

    async def _write_batch(self, batch: Batch) -> None:
        session, sent = self._session, 0
        try:
            for message in batch.messages:
                await self._send({"type": "websocket.send", session.codec.kind: message})
                sent += 1
                session.progress = session.clock.monotonic()
                if sent % _STINT == 0:
                    await asyncio.sleep(0)
        finally:
            session.written(batch, sent)

    def _stop_reading(self, after: float) -> None:
        with contextlib.suppress(RuntimeError):  # it has stopped already
            self._deadline.reschedule(asyncio.get_running_loop().time() + after)


async def serve(scope: Scope, receive: Receive, send: Send, run: Run, endpoint: Endpoint) -> None:
    """Serve one WebSocket connection, from the handshake to its end."""
    connection = HTTPConnection(scope)
    await receive()  # websocket.connect
    try:
        handshake = await shake(connection, run, endpoint)
    except Refused as refused:
        run.metrics.rejected[refused.why] += 1
        await refuse(scope, receive, send, refused.ending, http=run.settings.refuse == "http")
        return
    subprotocol = handshake.codec.subprotocol if scope.get("subprotocols") else None
    await send({"type": "websocket.accept", "subprotocol": subprotocol})
    conversation = Conversation(scope, run, handshake, "websocket")
    direct = _direct(scope) if run.settings.fast else None
    if direct is None:
        await WebSocketLink(conversation.session, send).serve(conversation, receive)
    else:
        bypass.tell(scope, run)
        DirectLink(conversation, direct).begin()
        await conversation.wait()


async def refuse(scope: Scope, receive: Receive, send: Send, ending: Ending, *, http: bool) -> None:
    """Refuse a handshake: with an HTTP answer, or accepted and closed, so that a browser reads the code."""
    if http:
        await _deny(scope, send, ending)
        return
    # A browser that offered subprotocols fails a handshake that chooses none, and never sees the code.
    subprotocol = next(iter(scope.get("subprotocols") or []), None)
    await send({"type": "websocket.accept", "subprotocol": subprotocol})
    await send(_close(ending))
    await _await_disconnect(receive)


async def _read(conversation: Conversation, receive: Receive) -> int:
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return message.get("code") or endings.ABNORMAL.code
        payload = message.get("text")
        conversation.receive(message.get("bytes") or b"" if payload is None else payload)
        # A server that has the next message already does not wait in `receive`: the writer has its turn here.
        await asyncio.sleep(0)


async def _deny(scope: Scope, send: Send, ending: Ending) -> None:
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": ending.code})  # becomes a 403
        return
    response = denial(ending)
    start = {"status": response.status_code, "headers": response.raw_headers}
    await send({"type": "websocket.http.response.start", **start})
    await send({"type": "websocket.http.response.body", "body": response.body})


async def _await_disconnect(receive: Receive) -> None:
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT):
            while (await receive())["type"] != "websocket.disconnect":
                pass
    except TimeoutError:
        return


def _close(ending: Ending) -> Message:
    return {"type": "websocket.close", "code": ending.code, "reason": ending.reason}


def _direct(scope: Scope) -> Connection | None:
    """Return the connection itself, where the server is ours and offers it."""
    extension = (scope.get("extensions") or {}).get(EXTENSION)
    return None if extension is None else extension["connection"]


def _uvicorn(receive: Receive) -> object | None:
    """Return uvicorn's own connection, as far as nobody has wrapped its `receive`.

    It pings by itself, and can be told to drop a connection for which ASGI has no word.
    """
    owner = getattr(receive, "__self__", None)
    return owner if type(owner).__module__.startswith("uvicorn.") else None
