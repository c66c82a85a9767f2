"""ASGI as uvicorn speaks it, on our class: what an app's ordinary routes know of a WebSocket stays as it is.

Where nothing else is said, a test runs on uvicorn's own class too, for ours must not differ from it.
"""

import asyncio
import contextlib
import gc
import http.client
import itertools
import json
import logging
import shutil
import socket
import ssl
import struct
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
import websockets
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount
from starlette.websockets import WebSocket, WebSocketDisconnect
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from websockets.http11 import Request, Response

from asgi_ws import Hub
from asgi_ws.server import WebSocketProtocol
from asgi_ws.server import connection as connections
from asgi_ws.server.connection import Connection
from asgi_ws.server.keepalive import Keepalive
from tests.servers import DEADLINE, Served, eventually, serve, until, welcomed
from tests.test_server_rfc6455 import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    Frame,
    Gate,
    Raw,
    World,
    frame,
)

pytestmark = pytest.mark.anyio

Handler = Callable[[Any, Any, Any], Any]


class Host:
    """A host app whose routes are made by the tests, one each."""

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}
        self._numbers = itertools.count(1)
        self.served: Served

    async def __call__(self, scope: Any, receive: Any, send: Any) -> Any:
        if scope["type"] != "lifespan":
            path = scope["path"].removeprefix(scope["root_path"])
            return await self._handlers[path](scope, receive, send)
        await receive()
        scope["state"]["from the lifespan"] = "here"
        await send({"type": "lifespan.startup.complete"})
        await receive()
        return await send({"type": "lifespan.shutdown.complete"})

    def route(self, handler: Handler) -> str:
        """Serve an ASGI app, and return its path."""
        path = f"/route/{next(self._numbers)}"
        self._handlers[path] = handler
        return path

    def connect(self, handler: Handler, query: str = "", **options: Any) -> websockets.connect:
        return self.served.connect(self.route(handler) + query, **options)


@contextlib.contextmanager
def hosting(server: str, **options: Any) -> Iterator[Host]:
    host = Host()
    with serve(host, server, **options) as host.served:
        yield host


@pytest.fixture(scope="module", params=["uvicorn", "fast"])
def host(request):
    with hosting(request.param) as host:
        yield host


@pytest.fixture
def logged(caplog):
    """What the server has logged as an error, taken."""
    caplog.set_level(logging.INFO, "uvicorn.error")

    def take() -> list[str]:
        return [record.getMessage().strip() for record in caplog.records if record.levelno >= logging.ERROR]

    return take


async def refused(connecting: Any) -> websockets.Response:
    """The answer to a handshake that is refused."""
    with pytest.raises(websockets.InvalidStatus) as refusal:
        async with asyncio.timeout(DEADLINE):
            await connecting
    return refusal.value.response


async def closing(ws: Any) -> tuple[int | None, str | None]:
    """Wait until the server has closed, and return how; 1006 for a close without a close frame."""
    async with asyncio.timeout(DEADLINE):
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                await ws.recv()
        await ws.wait_closed()
    return ws.close_code, ws.close_reason


async def accepted(receive: Any, send: Any, **options: Any) -> None:
    assert (await receive()) == {"type": "websocket.connect"}
    await send({"type": "websocket.accept", **options})


class TestScope:
    async def scope(self, host: Host, query: str = "", **options: Any) -> dict[str, Any]:
        seen: list[Any] = []

        async def app(scope, receive, send):
            seen.append({**scope})
            await accepted(receive, send)
            await send({"type": "websocket.close"})

        async with host.connect(app, query, **options) as ws:
            seen[0]["peer"] = ws.local_address
            await closing(ws)
        return seen[0]

    async def test_has_what_the_spec_asks_for(self, host):
        scope = await self.scope(host, "?a=1&b=%20%C3%BC")
        port = host.served.port
        assert scope["type"] == "websocket"
        assert scope["asgi"]["version"] == "3.0"
        assert scope["http_version"] == "1.1"
        assert scope["scheme"] == "ws"
        assert scope["path"].startswith("/route/")
        assert scope["raw_path"] == scope["path"].encode()
        assert scope["query_string"] == b"a=1&b=%20%C3%BC"
        assert scope["root_path"] == ""
        assert scope["server"] == ("127.0.0.1", port)
        assert scope["client"] == scope["peer"]
        assert scope["subprotocols"] == []
        assert scope["state"] == {"from the lifespan": "here"}
        assert scope["extensions"]["websocket.http.response"] == {}

    async def test_has_the_headers_as_they_came(self, host):
        headers = [("X-Twice", "one"), ("X-Twice", "two"), ("X-Empty", ""), ("Cookie", "a=b; c=d")]
        scope = await self.scope(host, additional_headers=headers)
        assert [value for name, value in scope["headers"] if name == b"x-twice"] == [b"one", b"two"]
        found = dict(scope["headers"])
        assert found[b"cookie"] == b"a=b; c=d"
        assert found[b"x-empty"] == b""
        assert found[b"upgrade"] == b"websocket"
        assert all(name == name.lower() for name in found)

    async def test_has_the_subprotocols_in_their_order(self, host):
        scope = await self.scope(host, subprotocols=["chat", "v2.chat", "other"])
        assert scope["subprotocols"] == ["chat", "v2.chat", "other"]

    async def test_decodes_the_path(self, host):
        seen = []

        async def app(scope, receive, send):
            seen.append((scope["path"], scope["raw_path"]))
            await accepted(receive, send)

        host._handlers["/ünder/a b"] = app
        with contextlib.suppress(websockets.ConnectionClosed):
            async with host.served.connect("/%C3%BCnder/a%20b") as ws:
                await closing(ws)
        assert seen == [("/ünder/a b", b"/%C3%BCnder/a%20b")]

    async def test_the_state_is_each_connections_own(self, host):
        seen = []

        async def app(scope, receive, send):
            seen.append(dict(scope["state"]))
            scope["state"]["mine"] = True
            await accepted(receive, send)
            await send({"type": "websocket.close"})

        for _ in range(2):
            async with host.connect(app) as ws:
                await closing(ws)
        assert seen == [{"from the lifespan": "here"}] * 2

    async def test_of_ours_offers_the_connection(self):
        with hosting("fast") as host:
            scope = await self.scope(host)
            assert scope["extensions"] == {"websocket.http.response": {}}  # no more: the task is done
            seen = []

            async def app(scope, receive, send):
                seen.append(repr(scope["extensions"]["asgi_ws"]["connection"]))
                await accepted(receive, send)

            async with host.connect(app) as ws:
                await closing(ws)
            assert seen == ["<Connection not adopted>"]


class TestAccepting:
    async def test_with_a_subprotocol_and_headers(self, host):
        async def app(scope, receive, send):
            headers = [(b"x-one", b"1"), (b"X-Two", b"2"), (b"set-cookie", b"a=b"), (b"set-cookie", b"c=d")]
            await accepted(receive, send, subprotocol="v2.chat", headers=headers)
            await receive()

        async with host.connect(app, subprotocols=["chat", "v2.chat"]) as ws:
            assert ws.subprotocol == "v2.chat"
            headers = ws.response.headers
            assert (headers["X-One"], headers["X-Two"]) == ("1", "2")
            assert headers.get_all("Set-Cookie") == ["a=b", "c=d"]
            assert headers["Server"] == "uvicorn"
            assert len(headers.get_all("Date")) == 1

    async def test_with_none_of_them(self, host):
        async def app(scope, receive, send):
            await accepted(receive, send, subprotocol=None, headers=[])
            await receive()

        async with host.connect(app, subprotocols=["chat"]) as ws:
            assert ws.subprotocol is None

    async def test_twice_is_an_error(self, host, logged):
        async def app(scope, receive, send):
            await accepted(receive, send)
            await send({"type": "websocket.accept"})

        async with host.connect(app) as ws:
            assert (await closing(ws))[0] == 1006
        await eventually(logged)
        assert logged() == ["Exception in ASGI application"]

    async def test_late_keeps_nobody_else_waiting(self, host):
        gate = Gate()

        async def late(scope, receive, send):
            await gate.wait()
            await accepted(receive, send)
            await send({"type": "websocket.send", "text": "late"})
            await receive()

        async def at_once(scope, receive, send):
            await accepted(receive, send)
            await send({"type": "websocket.send", "text": "at once"})
            await receive()

        connecting = asyncio.ensure_future(host.connect(late).__aenter__())
        async with host.connect(at_once) as ws:
            assert await ws.recv() == "at once"
            assert not connecting.done()
            gate.open = True
            async with await connecting as other:
                assert await other.recv() == "late"


class TestRefusing:
    async def test_by_a_close_is_a_403(self, host, logged):
        async def app(scope, receive, send):
            await receive()
            await send({"type": "websocket.close", "code": 4001, "reason": "lost"})

        response = await refused(host.connect(app))
        assert response.status_code == 403
        assert not logged()

    async def test_the_app_then_reads_a_disconnect(self, host):
        seen = []

        async def app(scope, receive, send):
            await receive()
            await send({"type": "websocket.close"})
            seen.append(await receive())

        assert (await refused(host.connect(app))).status_code == 403
        await eventually(lambda: seen)
        assert seen == [{"type": "websocket.disconnect", "code": 1006}]

    async def test_with_a_response_of_json(self, host):
        async def app(scope, receive, send):
            await WebSocket(scope, receive, send).send_denial_response(
                JSONResponse({"code": "unauthorized"}, 401, headers={"Retry-After": "5", "X-Own": "yes"})
            )

        response = await refused(host.connect(app))
        assert response.status_code == 401
        assert json.loads(response.body) == {"code": "unauthorized"}
        assert (response.headers["Retry-After"], response.headers["X-Own"]) == ("5", "yes")
        assert response.headers["Content-Type"] == "application/json"

    async def test_with_a_response_in_pieces(self, host):
        async def app(scope, receive, send):
            await receive()
            await send({"type": "websocket.http.response.start", "status": 503, "headers": []})
            for piece in (b"not ", b"now"):
                await send({"type": "websocket.http.response.body", "body": piece, "more_body": True})
            await send({"type": "websocket.http.response.body", "body": b"!"})

        response = await refused(host.connect(app))
        assert (response.status_code, response.body) == (503, b"not now!")

    @pytest.mark.parametrize("status", [99, 600])
    async def test_with_a_status_that_is_none_is_an_error(self, host, logged, status):
        async def app(scope, receive, send):
            await receive()
            await send({"type": "websocket.http.response.start", "status": status, "headers": []})

        assert (await refused(host.connect(app))).status_code == 500
        assert logged() == ["Exception in ASGI application"]

    async def test_with_the_start_of_a_response_alone_ends_the_connection(self, host):
        async def app(scope, receive, send):
            await receive()
            await send({"type": "websocket.http.response.start", "status": 404, "headers": []})

        with pytest.raises((websockets.InvalidMessage, websockets.InvalidStatus)):
            async with asyncio.timeout(DEADLINE):
                await host.connect(app)


class TestErrors:
    @pytest.mark.parametrize("early", [True, False], ids=["before the connect", "after it"])
    async def test_before_the_accept_is_a_500(self, host, logged, early):
        async def app(scope, receive, send):
            if not early:
                await receive()
            raise ValueError("the app's own")

        assert (await refused(host.connect(app))).status_code == 500
        assert logged() == ["Exception in ASGI application"]

    async def test_a_return_before_the_accept_is_one(self, host, logged):
        async def app(scope, receive, send):
            await receive()

        assert (await refused(host.connect(app))).status_code == 500
        assert logged() == ["ASGI callable returned without completing handshake."]

    @pytest.mark.parametrize("type", ["websocket.send", "websocket.unknown", "http.response.start"])
    async def test_another_message_before_the_accept_is_one(self, host, logged, type):
        async def app(scope, receive, send):
            await receive()
            await send({"type": type, "text": "too early"})

        assert (await refused(host.connect(app))).status_code == 500
        assert logged() == ["Exception in ASGI application"]

    async def test_after_the_accept_ends_the_connection_without_a_close_frame(self, host, logged):
        async def app(scope, receive, send):
            await accepted(receive, send)
            await send({"type": "websocket.send", "text": "last words"})
            raise ValueError("the app's own")

        async with host.connect(app) as ws:
            assert await ws.recv() == "last words"
            assert (await closing(ws))[0] == 1006
        assert logged() == ["Exception in ASGI application"]

    async def test_a_return_after_the_accept_does(self, host, logged):
        async def app(scope, receive, send):
            await accepted(receive, send)
            await send({"type": "websocket.send", "text": "last words"})

        async with host.connect(app) as ws:
            assert await ws.recv() == "last words"
            assert (await closing(ws))[0] == 1006
        assert not logged()

    async def test_an_app_that_returns_something_is_told(self, host, logged):
        async def app(scope, receive, send):
            await accepted(receive, send)
            return 123

        async with host.connect(app) as ws:
            await closing(ws)
        await eventually(logged)
        assert logged() == ["ASGI callable should return None, but returned '123'."]

    @pytest.mark.parametrize(
        "type", ["websocket.accept", "websocket.http.response.start", "lifespan.startup"]
    )
    async def test_another_message_after_the_accept_ends_it(self, host, logged, type):
        async def app(scope, receive, send):
            await accepted(receive, send)
            await send({"type": type, "status": 200})

        async with host.connect(app) as ws:
            assert (await closing(ws))[0] == 1006
        await eventually(logged)
        assert logged() == ["Exception in ASGI application"]


class TestClosing:
    @pytest.mark.parametrize(
        ("message", "expected"),
        [
            ({}, (1000, "")),
            ({"code": 1001}, (1001, "")),
            ({"code": 4000, "reason": "adiós"}, (4000, "adiós")),
            ({"code": 3000, "reason": None}, (3000, "")),
            ({"code": 4999, "reason": "x" * 123}, (4999, "x" * 123)),
        ],
    )
    async def test_of_the_server(self, host, logged, message, expected):
        seen = []

        async def app(scope, receive, send):
            await accepted(receive, send)
            await send({"type": "websocket.send", "text": "last words"})
            await send({"type": "websocket.close", **message})
            seen.append(await receive())

        async with host.connect(app) as ws:
            assert await ws.recv() == "last words"
            assert await closing(ws) == expected
        await eventually(lambda: seen)
        assert (seen[0]["type"], seen[0]["code"]) == ("websocket.disconnect", expected[0])
        assert not logged()

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [((), (1000, "")), ((1001, "away"), (1001, "away")), ((4321, "ciao"), (4321, "ciao"))],
    )
    async def test_of_the_client(self, host, arguments, expected):
        seen = []

        async def app(scope, receive, send):
            await accepted(receive, send)
            seen.append(await receive())

        async with host.connect(app) as ws:
            await ws.close(*arguments)
        await eventually(lambda: seen)
        code, reason = expected
        assert seen == [{"type": "websocket.disconnect", "code": code, "reason": reason}]

    async def test_of_nobody(self, host):
        """A connection that is lost has no close frame: uvicorn says 1005."""
        seen = []

        async def app(scope, receive, send):
            await accepted(receive, send)
            seen.append(await receive())

        async with host.connect(app) as ws:
            ws.transport.abort()
        await eventually(lambda: seen)
        assert (seen[0]["type"], seen[0]["code"]) == ("websocket.disconnect", 1005)

    async def test_before_the_accept_leaves_the_app_in_peace(self, host, logged):
        gate, seen = Gate(), []

        async def app(scope, receive, send):
            await receive()
            await gate.wait()
            seen.append(await receive())
            with contextlib.suppress(OSError):
                await send({"type": "websocket.accept"})
                seen.append("accepted")

        path = host.route(app)
        with Raw(host.served.port, path):
            await eventually(lambda: gate.waiting)
        connections = host.served.server.server_state.connections
        await eventually(lambda: not connections)
        gate.open = True
        await eventually(lambda: seen)
        assert seen == [{"type": "websocket.disconnect", "code": 1006}]
        assert not logged()

    async def test_a_send_after_it_is_an_error(self, host, logged):
        async def app(scope, receive, send):
            await accepted(receive, send)
            await send({"type": "websocket.close"})
            await send({"type": "websocket.send", "text": "too late"})

        async with host.connect(app) as ws:
            assert await closing(ws) == (1000, "")
        await eventually(logged)
        assert logged() == ["Exception in ASGI application"]

    async def test_a_send_to_a_client_that_is_gone_ends_the_app_quietly(self, host, logged):
        gone = []

        async def app(scope, receive, send):
            await accepted(receive, send)
            assert (await receive())["type"] == "websocket.disconnect"
            try:
                await send({"type": "websocket.send", "text": "too late"})
            except OSError as error:
                gone.append(error)
                raise

        async with host.connect(app):
            pass
        await eventually(lambda: gone)
        assert not logged()

    async def test_starlette_sees_a_disconnect(self, host, logged):
        seen = []

        async def app(scope, receive, send):
            websocket = WebSocket(scope, receive, send)
            await websocket.accept()
            with pytest.raises(WebSocketDisconnect) as disconnect:
                while True:
                    await websocket.receive_text()
            seen.append((disconnect.value.code, disconnect.value.reason))
            with pytest.raises(RuntimeError):
                await websocket.receive()
            with pytest.raises((WebSocketDisconnect, RuntimeError)):
                await websocket.send_text("too late")
            seen.append("done")

        async with host.connect(app) as ws:
            await ws.send("hello")
            await ws.close(4001, "bye")
        await eventually(lambda: seen[1:])
        assert seen == [(4001, "bye"), "done"]
        assert not logged()

    async def test_messages_in_the_buffer_come_before_it(self, host):
        gate, seen = Gate(), []

        async def app(scope, receive, send):
            await accepted(receive, send)
            await gate.wait()
            while not seen or seen[-1]["type"] != "websocket.disconnect":
                seen.append(await receive())

        async with host.connect(app) as ws:
            for n in range(5):
                await ws.send(str(n))
            leaving = asyncio.ensure_future(ws.close(4000))
            await eventually(lambda: gate.waiting)
            gate.open = True
            await leaving
        await eventually(lambda: len(seen) == 6)
        assert [message.get("text") for message in seen[:5]] == list("01234")
        assert seen[5]["code"] == 4000


class TestMessages:
    async def test_of_both_kinds_both_ways(self, host):
        seen = []

        async def app(scope, receive, send):
            await accepted(receive, send)
            while (message := await receive())["type"] == "websocket.receive":
                seen.append({key: value for key, value in message.items() if value is not None})
                await send({**message, "type": "websocket.send"})

        async with host.connect(app) as ws, asyncio.timeout(DEADLINE):
            for payload in ("text", "", "grüß €𝄞", b"bytes", b"", bytes(range(256)), "x" * 200_000):
                await ws.send(payload)
                assert await ws.recv() == payload
                kind = "text" if isinstance(payload, str) else "bytes"
                assert seen[-1] == {"type": "websocket.receive", kind: payload}
                assert type(seen[-1][kind]) is type(payload)

    async def test_in_fragments_are_whole_for_the_app(self, host):
        seen = []

        async def app(scope, receive, send):
            await accepted(receive, send)
            while (message := await receive())["type"] == "websocket.receive":
                seen.append(message.get("text") or message.get("bytes"))

        async with host.connect(app) as ws:
            await ws.send(["a", "b", "", "c"])
            await ws.send([b"a", b"b", b"", b"c"])
        await eventually(lambda: seen[1:])
        assert seen == ["abc", b"abc"]

    async def test_an_app_that_does_not_receive_holds_the_client_up(self, host):
        gate, seen = Gate(), []

        async def app(scope, receive, send):
            await accepted(receive, send)
            await gate.wait()
            while (message := await receive())["type"] == "websocket.receive":
                seen.append(len(message["bytes"]))

        with Raw(host.served.port, host.route(app)).opened() as raw:
            data = frame(BINARY, bytes(100_000))
            raw.socket.settimeout(0.2)
            sent = 0
            with pytest.raises(TimeoutError):
                while sent < len(data) * 1000:
                    sent += raw.socket.send(data[sent % len(data) :])
            gate.open = True
            raw.socket.settimeout(DEADLINE)
            raw.write(data[sent % len(data) :])
            whole = sent // len(data) + 1
            await eventually(lambda: len(seen) == whole)

    async def test_a_client_that_does_not_read_holds_the_app_up(self, host):
        sent, gone = [], []

        async def app(scope, receive, send):
            await accepted(receive, send)
            try:
                for n in range(1000):
                    await send({"type": "websocket.send", "bytes": n.to_bytes(4, "big") * 25_000})
                    sent.append(n)
            finally:
                gone.append(len(sent))

        with Raw(host.served.port, host.route(app), buffer=4096).opened() as raw:
            await eventually(lambda: sent)
            count = -1
            while len(sent) != count:  # until a while has brought no more
                count = len(sent)
                await asyncio.sleep(0.1)
            assert count < 500
            assert [raw.read().payload[:4] for _ in range(count)] == [
                n.to_bytes(4, "big") for n in range(count)
            ]
            await eventually(lambda: len(sent) > count)
        await eventually(lambda: gone)

    async def test_many_tasks_may_send(self, host):
        async def app(scope, receive, send):
            await accepted(receive, send)
            message = {"type": "websocket.send", "text": "x" * 10_000}
            await asyncio.gather(*(send(message) for _ in range(100)))
            await send({"type": "websocket.close"})

        async with host.connect(app) as ws, asyncio.timeout(DEADLINE):
            assert [message async for message in ws] == ["x" * 10_000] * 100


class TestSettings:
    async def test_headers(self):
        options = {"headers": [("x-Own", "yes")], "server_header": False, "date_header": False}
        with hosting("fast", **options) as host:

            async def app(scope, receive, send):
                await accepted(receive, send)
                await receive()

            async with host.connect(app) as ws:
                assert ws.response.headers["X-Own"] == "yes"
                assert "Server" not in ws.response.headers
                assert "Date" not in ws.response.headers

    async def test_root_path(self):
        with hosting("fast", root_path="/api") as host:
            scope = await TestScope().scope(host)
            assert scope["root_path"] == "/api"
            assert scope["path"].startswith("/api/route/")

    @pytest.mark.parametrize("trusted", [True, False])
    async def test_proxy_headers(self, trusted):
        allowed = "127.0.0.1" if trusted else "192.0.2.1"
        with hosting("fast", proxy_headers=True, forwarded_allow_ips=allowed) as host:
            headers = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}
            scope = await TestScope().scope(host, additional_headers=headers)
            assert (scope["client"][0], scope["scheme"]) == (
                ("203.0.113.7", "wss") if trusted else ("127.0.0.1", "ws")
            )

    async def test_maximal_size(self):
        with hosting("fast", ws_max_size=1000) as host:
            seen = []

            async def app(scope, receive, send):
                await accepted(receive, send)
                while (message := await receive())["type"] == "websocket.receive":
                    await send({**message, "type": "websocket.send"})
                seen.append(message["code"])

            async with host.connect(app) as ws:
                await ws.send("x" * 1000)
                assert len(await ws.recv()) == 1000
                await ws.send("x" * 1001)
                assert (await closing(ws))[0] == 1009
            await eventually(lambda: seen)
            assert seen == [1009]

    @pytest.mark.parametrize("wanted", [True, False])
    async def test_compression(self, wanted):
        with hosting("fast", ws_per_message_deflate=wanted) as host:

            async def app(scope, receive, send):
                await accepted(receive, send)
                await receive()

            async with host.connect(app, compression="deflate") as ws:
                assert bool(ws.protocol.extensions) is wanted

    async def test_the_log_has_a_line_for_each_handshake(self, caplog):
        caplog.set_level(logging.INFO, "uvicorn.error")
        hub = Hub()
        app = Starlette(routes=[Mount("/ws", hub)], lifespan=hub.lifespan)
        with serve(app, "fast") as served:
            async with served.connect("/ws/stream?channel=none") as ws:
                await welcomed(ws)
                port = ws.local_address[1]
            await refused(served.connect("/elsewhere"))
        lines = [record.getMessage() for record in caplog.records if "WebSocket" in record.getMessage()]
        assert lines[0] == f'127.0.0.1:{port} - "WebSocket /ws/stream?channel=none" [accepted]'
        assert lines[1].endswith('"WebSocket /elsewhere" 403')

    async def test_limit_concurrency_counts_adopted_connections_while_they_last(self):
        with World(limit_concurrency=4).running() as world:
            get = world.served.get
            assert get("/hello").status_code == 200
            with contextlib.ExitStack() as stack:
                for _ in range(2):
                    stack.enter_context(world.adopted())
                assert get("/hello").status_code == 200
                for _ in range(2):
                    stack.enter_context(world.adopted())
                with httpx2.Client() as client:
                    assert client.get(f"{world.served.http}/hello").status_code == 503
            until(lambda: get("/hello").status_code == 200)


class TestHttp:
    async def test_is_served_on_the_same_port_while_sockets_are_open(self):
        with World().running() as world, world.adopted() as (raw, _), world.open("ordinary") as other:
            connection = http.client.HTTPConnection("127.0.0.1", world.port, timeout=DEADLINE)
            with contextlib.closing(connection):
                for _ in range(3):  # one connection, kept alive
                    connection.request("GET", "/hello")
                    response = connection.getresponse()
                    assert (response.status, response.read()) == (200, b"hello")
            for ws in (raw, other):
                ws.send(TEXT, b"still here")
                assert ws.read() == Frame(TEXT, b"still here")

    @pytest.mark.parametrize("http_class", ["httptools", "h11"])
    async def test_a_connection_that_was_kept_alive_may_become_a_websocket(self, http_class):
        with World(http=http_class, timeout_keep_alive=0.1).running() as world:
            for path in ("/ordinary", "/adopted"):
                with Raw(world.port, "/hello", Upgrade="", Connection="keep-alive") as raw:
                    status, headers = raw.answer()
                    assert (status, raw._take(int(headers["content-length"]))) == (200, b"hello")
                    host = f"Host: 127.0.0.1:{world.port}"
                    key = "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg=="
                    lines = ["Upgrade: websocket", "Connection: Upgrade", key, "Sec-WebSocket-Version: 13"]
                    raw.write("\r\n".join([f"GET {path} HTTP/1.1", host, *lines, "", ""]).encode())
                    raw.opened()
                    await asyncio.sleep(0.2)  # its time as an idle HTTP connection would be over
                    raw.send(TEXT, b"still here")
                    assert raw.read() == Frame(TEXT, b"still here")


class Pinged:
    """Counts pings; answers them if told to."""

    def __init__(self, raw: Raw, answers: bool = True) -> None:
        self.raw = raw
        self.pings: list[bytes] = []
        self.closing: Frame | None = None
        self._answers = answers

    def read_until(self, pings: int) -> None:
        while len(self.pings) < pings and self.closing is None:
            received = self.raw.read()
            if received.opcode == PING:
                self.pings.append(received.payload)
                if self._answers:
                    self.raw.send(PONG, received.payload)
            elif received.opcode == CLOSE:
                self.closing = received
            else:
                assert json.loads(received.payload)["type"] in {"welcome", "subscribed"}


@pytest.fixture(scope="module")
def keeping():
    """Servers by how often they ping, and how long they wait."""
    with contextlib.ExitStack() as stack:
        worlds: dict[Any, World] = {}

        def world(interval: float | None, timeout: float | None) -> World:
            if (interval, timeout) not in worlds:
                options = {"ws_ping_interval": interval, "ws_ping_timeout": timeout}
                worlds[interval, timeout] = stack.enter_context(World(**options).running())
            return worlds[interval, timeout]

        yield world


class TestKeepalive:
    """uvicorn's settings hold for adopted connections too, whose pings have one timer for all."""

    @pytest.fixture(params=["ordinary", "adopted", "hub"])
    def target(self, request):
        return request.param

    def test_who_answers_stays(self, keeping, target):
        with keeping(0.05, 5).open(target) as raw:
            pinged = Pinged(raw)
            pinged.read_until(pings=6)
            assert pinged.closing is None
            assert len(set(pinged.pings)) == 6
            assert all(len(payload) == 4 for payload in pinged.pings)

    def test_who_does_not_is_closed_with_1011(self, keeping, target):
        world = keeping(0.05, 0.1)
        with world.open(target) as raw:
            pinged = Pinged(raw, answers=False)
            pinged.read_until(pings=9)
            assert len(pinged.pings) == 1
            assert (pinged.closing.code, pinged.closing.payload[2:]) == (1011, b"keepalive ping timeout")
            assert raw.ended()
            until(lambda: not world.served.server.server_state.connections)

    def test_the_owner_learns_of_it(self, keeping):
        with keeping(0.05, 0.1).adopted() as (_, owner):
            until(lambda: owner.codes == [1011])

    @pytest.mark.parametrize("payload", [b"", b"else", b"x" * 125])
    def test_another_pong_is_no_answer(self, keeping, target, payload):
        with keeping(0.05, 0.1).open(target) as raw:
            assert raw.read().opcode == PING
            raw.send(PONG, payload)
            assert raw.read().code == 1011

    def test_messages_are_none_either(self, keeping, target):
        with keeping(0.05, 0.1).open(target) as raw:
            assert raw.read().opcode == PING
            raw.send(TEXT, b'{"type":"pong"}')
            assert raw.until_closed()[-1].code == 1011

    def test_without_a_timeout_nobody_need_answer(self, keeping, target):
        with keeping(0.05, None).open(target) as raw:
            pinged = Pinged(raw, answers=False)
            pinged.read_until(pings=5)
            assert pinged.closing is None

    @pytest.mark.parametrize("interval", [None, 0])
    def test_without_an_interval_there_are_none(self, keeping, target, interval):
        with keeping(interval, 0.05).open(target) as raw:
            raw.socket.settimeout(0.2)
            with pytest.raises(TimeoutError):
                raw.read()

    def test_a_silent_client_that_does_not_read_is_dropped(self, monkeypatch):
        """What lies in the transport's buffer will never leave it, and does not keep the connection."""
        monkeypatch.setattr(connections, "CLOSE_TIMEOUT", 0.2)
        with World(ws_ping_interval=0.3, ws_ping_timeout=0.3).running() as world:
            with world.adopted(buffer=4096) as (raw, owner):
                raw.socket.settimeout(1)
                with contextlib.suppress(OSError):
                    for _ in range(300):
                        raw.write(frame(BINARY, bytes(100_000)))
                until(lambda: not world.served.server.server_state.connections)
                assert owner.codes == [1011]

    def test_each_has_its_own_moment(self):
        """Pings of those who came at different times are not all of one turn of the wheel."""
        keepalive = Keepalive(20.0, 20.0)
        assert len(keepalive._slots) == 20
        assert len(Keepalive(0.5, None)._slots) == 1
        assert len(Keepalive(1e6, 20.0)._slots) == 64
        assert len(Keepalive(60.0, 1.0)._slots) == 60

    def test_the_timer_rests_when_nobody_is_there(self):
        with World(ws_ping_interval=5, ws_ping_timeout=5).running() as world:
            with contextlib.ExitStack() as stack:
                owners = [stack.enter_context(world.adopted())[1] for _ in range(3)]
                (keepalive,) = {owner.connection._keepalive for owner in owners}
                assert repr(keepalive) == "<Keepalive 3 connections, 0 unanswered>"
                assert keepalive._timer is not None
            until(lambda: keepalive._timer is None)
            assert repr(keepalive) == "<Keepalive 0 connections, 0 unanswered>"
            assert not any(keepalive._slots)
            with world.adopted():
                assert keepalive._timer is not None

    async def test_many_are_pinged_and_those_who_answer_stay(self):
        with World(ws_ping_interval=0.1, ws_ping_timeout=0.5).running() as world:
            async with contextlib.AsyncExitStack() as stack:
                answering = [
                    await stack.enter_async_context(world.served.connect("/adopted")) for _ in range(20)
                ]
                silent = [stack.enter_context(world.open("adopted")) for _ in range(20)]
                owners = world.owners
                await eventually(lambda: [owner.codes for owner in owners] == [[]] * 20 + [[1011]] * 20)
                for ws in answering:
                    await ws.send("still here")
                    assert await ws.recv() == "still here"
                for raw in silent:
                    assert [raw.read().opcode, raw.read().code] == [PING, 1011]


class Quick(WebSocketProtocol):
    """Gives up on who does not read sooner than after ten seconds; the kernel holds little for them."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.close_timeout = 0.3

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)


class TestStopping:
    """A stop is prompt, whatever the clients do; nothing here bounds it but our own timeouts."""

    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch):
        monkeypatch.setattr(connections, "CLOSE_TIMEOUT", 0.3)
        monkeypatch.setattr(connections, "STOP_TIMEOUT", 0.3)

    @contextlib.contextmanager
    def stopping(self) -> Iterator[tuple[World, Callable[[], None]]]:
        """A server, and what has it stop; it is rid of every client before the client is."""
        with World(ws=Quick, timeout_graceful_shutdown=None).running() as world:
            server = world.served.server

            def stop(*, wait: bool = True) -> None:
                server.should_exit = True
                until(lambda: not (wait and server.server_state.connections), "the connections to end")

            yield world, stop

    def test_tells_everybody(self):
        with self.stopping() as (world, stop), contextlib.ExitStack() as stack:
            ordinary, adopted, hub = (
                stack.enter_context(world.open(target)) for target in ("ordinary", "adopted", "hub")
            )
            stop(wait=False)
            assert ordinary.read().code == 1012
            assert adopted.read().code == 1012
            last = json.loads(hub.read().payload)
            assert (last["type"], last["code"], last["reconnect"]) == ("disconnect", 1012, True)
            closing = hub.read()
            assert (closing.code, closing.payload[2:]) == (1012, b"restart")
            for raw in (adopted, hub):  # those it waits for
                raw.send(CLOSE, struct.pack("!H", 1012))
            for raw in (ordinary, adopted, hub):
                assert raw.ended()

    @pytest.mark.parametrize("target", ["ordinary", "adopted", "hub"])
    def test_is_not_held_up_by_who_does_not_answer(self, target):
        with self.stopping() as (world, stop), world.open(target) as raw:
            stop(wait=False)
            assert raw.until_closed()[-1].code == 1012
            assert raw.ended()

    @pytest.mark.parametrize("target", ["ordinary", "adopted", "hub"])
    @pytest.mark.parametrize("messages", [1, 200], ids=["some of it in the buffer", "more than it takes"])
    def test_nor_by_who_does_not_read(self, target, messages):
        ping = {"type": "ping", "ref": "x" * 60}
        payload = json.dumps([ping] * 128).encode() if target == "hub" else b"x" * 100_000
        with self.stopping() as (world, stop), world.open(target, buffer=4096) as raw:
            raw.socket.settimeout(0.5)
            with contextlib.suppress(TimeoutError):
                for _ in range(messages):
                    raw.send(TEXT, payload)
            until(lambda: any(transport.get_write_buffer_size() for transport in _transports(world)))
            stop()

    def test_nor_by_who_is_half_way_through_a_handshake(self):
        with self.stopping() as (world, stop):
            gate = world.gates["before"] = Gate()
            with Raw(world.port, "/adopted?wait=before") as raw:
                until(lambda: gate.waiting)
                stop(wait=False)
                assert raw.answer()[0] == 500
                gate.open = True

    def test_nor_by_who_is_answered_and_not_yet_adopted(self):
        with self.stopping() as (world, stop):
            gate = world.gates["after"] = Gate()
            with Raw(world.port, "/adopted?wait=after").opened() as raw:
                until(lambda: gate.waiting)
                stop(wait=False)
                assert raw.read().code == 1012
                gate.open = True
                until(lambda: world.owners and world.owners[-1].codes == [1006])

    @pytest.mark.parametrize("target", ["flood", "adopted"])
    def test_nor_by_who_has_closed_and_does_not_read(self, target):
        """uvicorn would send a second close frame, and fail at it, and with it the whole stop."""
        with self.stopping() as (world, stop), world.open(target, buffer=4096) as raw:
            if target == "adopted":
                raw.write(frame(BINARY, bytes(2_000_000)) * 5)
            until(lambda: any(transport.get_write_buffer_size() for transport in _transports(world)))
            raw.send(CLOSE, struct.pack("!H", 1000))
            until(lambda: all(transport.is_closing() for transport in _transports(world)))
            stop()

    def test_nor_by_who_has_broken_a_rule_and_does_not_go(self):
        with self.stopping() as (world, stop):
            with world.open("ordinary") as ordinary, world.open("adopted") as adopted:
                for raw in (ordinary, adopted):
                    raw.write(frame(3))
                    assert raw.until_closed()[-1].code == 1002
                stop()


def _transports(world: World) -> list[asyncio.Transport]:
    """The transports of all connections, an ordinary one or adopted."""
    state = world.served.server.server_state
    return [getattr(c, "transport", None) or c._transport for c in tuple(state.connections)]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A key and a certificate of our own for 127.0.0.1."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl here")
    folder = tmp_path_factory.mktemp("tls")
    files = {"ssl_keyfile": str(folder / "key.pem"), "ssl_certfile": str(folder / "cert.pem")}
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", files["ssl_keyfile"], "-out", files["ssl_certfile"]]
    subprocess.run(command, check=True, capture_output=True, timeout=DEADLINE)
    return files


@pytest.fixture(scope="module")
def tls(certificate):
    """What a client needs to trust us."""
    return ssl.create_default_context(cafile=certificate["ssl_certfile"])


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def secure(request, certificate):
    with World(loop=request.param, ws_max_size=200_000, **certificate).running() as world:
        yield world


class TestTls:
    @pytest.fixture(params=["ordinary", "adopted"])
    def echoing(self, request):
        return request.param

    async def test_the_scope_says_so(self, certificate, tls):
        with hosting("fast", **certificate) as host:
            host.served.ws = host.served.ws.replace("ws:", "wss:")
            scope = await TestScope().scope(host, ssl=tls)
            assert scope["scheme"] == "wss"
            assert scope["client"] == scope["peer"]

    @pytest.mark.parametrize("size", [0, 125, 65536, 200_000])
    def test_messages(self, secure, echoing, tls, size):
        with secure.open(echoing, tls=tls) as raw:
            raw.send(BINARY, b"x" * size)
            assert raw.read() == Frame(BINARY, b"x" * size)
            raw.send(PING, b"?")
            assert raw.read() == Frame(PONG, b"?")

    @pytest.mark.parametrize(
        ("data", "code"),
        [
            (frame(3), 1002),
            (frame(TEXT, b"\xff"), 1007),
            (frame(BINARY, bytes(200_001)), 1009),
            (frame(CLOSE, struct.pack("!H", 4000)), 4000),
        ],
        ids=["a breach", "bad text", "too big", "a close frame"],
    )
    def test_endings(self, secure, echoing, tls, data, code):
        with secure.open(echoing, tls=tls) as raw, secure.open(echoing, tls=tls) as bystander:
            raw.write(data)
            assert raw.until_closed()[-1].code == code
            assert raw.ended()
            bystander.send(TEXT, b"still here")
            assert bystander.read() == Frame(TEXT, b"still here")

    @pytest.mark.parametrize("http_class", ["httptools", "h11"])
    def test_frames_together_with_the_handshake(self, certificate, tls, http_class):
        with World(http=http_class, **certificate).running() as world:
            with Raw(world.port, "/adopted", early=frame(TEXT, b"early"), tls=tls).opened() as raw:
                assert raw.read() == Frame(TEXT, b"early")

    async def test_a_hub(self, secure, tls):
        address = f"wss://127.0.0.1:{secure.port}/hub/stream"
        options = {"ssl": tls, "compression": None, "proxy": None}
        async with (
            websockets.connect(address, **options) as one,
            websockets.connect(address, **options) as two,
        ):
            for ws in (one, two):
                await welcomed(ws)
            await asyncio.to_thread(secure.hub.from_thread.broadcast, "tick", {"text": "x" * 100_000})
            async with asyncio.timeout(DEADLINE):
                for ws in (one, two):
                    assert json.loads(await ws.recv())["data"]["text"] == "x" * 100_000

    def test_a_client_that_does_not_read_pauses_it_and_resumes(self, secure, tls):
        with secure.adopted(tls=tls, buffer=4096) as (raw, owner):
            payloads = [bytes([n]) * 100_000 for n in range(50)]
            for payload in payloads:
                raw.send(BINARY, payload)
            until(lambda: owner.connection.paused)
            assert [raw.read().payload for _ in payloads] == payloads
            until(lambda: not owner.connection.paused)

    def test_one_that_hangs_up_is_lost(self, secure, tls):
        with secure.adopted(tls=tls) as (raw, owner):
            raw.socket.unwrap().close()
            until(lambda: owner.codes == [1006])

    def test_a_stop(self, certificate, tls, monkeypatch):
        monkeypatch.setattr(connections, "CLOSE_TIMEOUT", 0.3)
        monkeypatch.setattr(connections, "STOP_TIMEOUT", 0.3)
        with World(timeout_graceful_shutdown=None, **certificate).running() as world:
            with world.open("ordinary", tls=tls) as ordinary, world.open("adopted", tls=tls) as adopted:
                world.served.server.should_exit = True
                for raw in (ordinary, adopted):
                    assert raw.until_closed()[-1].code == 1012
                    assert raw.ended()


class TestNothingIsLeft:
    @pytest.fixture
    def living(self):
        """What there is of a kind; what is not freed without the garbage collector would wait for it."""
        gc.collect()
        gc.disable()
        before = gc.get_objects()
        known = set(map(id, before))

        def living(*kinds: type) -> list[Any]:
            return [
                found for found in gc.get_objects() if isinstance(found, kinds) and id(found) not in known
            ]

        yield living
        gc.enable()

    def test_of_a_handshake_once_the_connection_is_adopted(self, living):
        with World().running() as world:
            with world.open("adopted"), world.open("hub"):
                until(lambda: len(living(Connection)) == 2)
                until(lambda: not living(WebSocketProtocol, HttpToolsProtocol, Request, Response))

    def test_of_an_adopted_connection_that_is_closed(self, living):
        with World().running() as world:
            with world.adopted():
                assert len(living(Connection)) == 1
            until(lambda: world.owners[0].codes)
            world.owners.clear()
            until(lambda: not living(Connection))

    def test_of_an_ordinary_connection_that_is_closed(self, living):
        with World().running() as world:
            with world.open("ordinary"):
                until(lambda: living(WebSocketProtocol))
                assert not living(HttpToolsProtocol)
            until(lambda: not living(WebSocketProtocol, Connection))

    @pytest.mark.parametrize("how", ["close", "reset", "half-close", "breach", "vanish"])
    def test_of_connections_however_they_end(self, how):
        reset = (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        ends = {
            "close": lambda raw: raw.send(CLOSE, struct.pack("!H", 1000)),
            "reset": lambda raw: raw.socket.setsockopt(*reset),
            "half-close": lambda raw: raw.socket.shutdown(socket.SHUT_WR),
            "breach": lambda raw: raw.write(frame(3)),
            "vanish": lambda raw: None,
        }
        with World(loop="asyncio", ws_ping_interval=5).running() as world:
            state = world.served.server.server_state
            for _ in range(3):
                for target in ("ordinary", "adopted", "hub"):
                    with world.open(target) as raw:
                        ends[how](raw)
            until(lambda: not state.connections and not state.tasks)
            assert world.served.get("/hub/status").json()["active_connections"] == 0
            until(lambda: not state.connections)
            loop = world.owners[0]._loop
            # The server's own tick, and no more.
            until(lambda: sum(not timer.cancelled() for timer in tuple(loop._scheduled)) <= 1)
            assert all(len(owner.codes) == 1 for owner in world.owners)
