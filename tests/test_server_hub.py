"""A hub on our server class, which adopts its sessions; and on any other, where they are ASGI tasks.

What is asked here of both must not differ; what is asked of the first alone is what it is for.
"""

import asyncio
import contextlib
import contextvars
import gc
import itertools
import json
import logging
import random
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Self

import anyio
import msgspec
import psutil
import pytest
import websockets
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from asgi_ws import Hub, Session, endings
from asgi_ws.codecs import JSON
from asgi_ws.outbox import Batch
from asgi_ws.server import WebSocketProtocol
from asgi_ws.server import connection as connections
from tests.fakes import Client, turns
from tests.fakes import until as until_in_loop
from tests.servers import DEADLINE, Served, eventually, receive, serve, until, welcomed
from tests.test_server_rfc6455 import CLOSE, TEXT, Raw, frame

pytestmark = pytest.mark.anyio

QUIET = {"heartbeat": 1000}
PAD = "x" * 10_000


class Site:
    """A host app with a hub, and a look inside from another thread."""

    def __init__(self, *middleware: Middleware, **settings: Any) -> None:
        self.hub = Hub(**QUIET, **settings)
        for name in ("one", "two", "three", "room:{n}"):
            self.hub.channel(name, public=True)
        self.app = Starlette(
            routes=[Mount("/ws", self.hub), Route("/tasks", self._tasks)],
            lifespan=self.hub.lifespan,
            middleware=list(middleware),
        )
        self.served: Served

    @contextlib.contextmanager
    def on(self, server: str = "fast", **options: Any) -> Iterator["Site"]:
        with serve(self.app, server, **options) as self.served:
            self.served.get("/ws/status")  # the hub is up
            yield self

    @property
    def sessions(self) -> list[Any]:
        """Its sessions in the order of their coming."""
        return list(self.hub._lifecycle.run.sessions.values())

    def session(self, id: str) -> Session:
        return self.hub._lifecycle.run.sessions[id]

    @property
    def stats(self) -> dict[str, Any]:
        return self.hub.stats()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run something in the server's loop, and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self.hub._lifecycle.loop).result(DEADLINE)

    async def run_async(self, work: Coroutine[Any, Any, Any]) -> Any:
        return await asyncio.to_thread(self.run, work)

    def call(self, function: Callable[[], Any]) -> Any:
        async def work() -> Any:
            return function()

        return self.run(work())

    async def publish(self, channel: str, *data: Any) -> None:
        """Publish in the server's loop: all in one turn, where it is no full one."""

        async def work() -> None:
            for item in data:
                await self.hub.publish(channel, "tick", item)

        await self.run_async(work())

    async def one_by_one(self, channel: str, *data: Any) -> None:
        """Publish in the server's loop: each in a turn of its own, from no task, as a broker's reader does."""
        for item in data:
            await self.publish(channel, item)

    def join(self, query: str = "?channel=one", **options: Any) -> websockets.connect:
        return self.served.connect(f"/ws/stream{query}", **options)

    def raw(self, query: str = "?channel=one", joins: int = 2, **options: Any) -> Raw:
        raw = Raw(self.served.port, f"/ws/stream{query}", **options).opened()
        types = [json.loads(raw.read().payload)["type"] for _ in range(1 + joins)]
        assert types == ["welcome", *["subscribed"] * joins]
        return raw

    async def _tasks(self, _: Any) -> JSONResponse:
        return JSONResponse(len(asyncio.all_tasks()))


@pytest.fixture(autouse=True)
def nothing_is_an_error_to_the_server(caplog):
    yield
    errors = [r for r in caplog.get_records("call") if r.levelno >= logging.ERROR]
    assert not errors, [(r.getMessage(), r.exc_info) for r in errors]


async def heard(ws: Any, count: int) -> list[Any]:
    """The data of the next events, of whatever channel."""
    return [(await receive(ws, "event"))["data"] for _ in range(count)]


async def closed(ws: Any) -> tuple[int | None, str | None, list[Any]]:
    """Wait for the close frame, and return it with the messages before it."""
    messages = []
    async with asyncio.timeout(DEADLINE):
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                messages.append(json.loads(await ws.recv()))
        await ws.wait_closed()
    return ws.close_code, ws.close_reason, messages


both = pytest.mark.parametrize("server", ["uvicorn", "wsproto", "fast"])
loops = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])


@pytest.fixture(scope="module", params=["uvicorn", "wsproto", "fast"])
def same(request):
    """One and the same site on each server."""
    with Site().on(request.param) as site:
        yield site


class TestTheSame:
    async def test_subscribing_hearing_and_leaving(self, same):
        await self.subscribe_hear_and_leave(same)

    @both
    async def test_on_asyncios_own_loop(self, server):
        with Site().on(server, loop="asyncio") as site:
            await self.subscribe_hear_and_leave(site)

    async def subscribe_hear_and_leave(self, site: Site) -> None:
        async with site.join("?channel=one&channel=two") as ws:
            await welcomed(ws, 3)
            await site.publish("one", 1)
            await site.publish("two", 2)
            assert await heard(ws, 2) == [1, 2]
            await ws.send('{"type":"unsubscribe","channel":"two","ref":1}')
            assert (await receive(ws))["type"] == "unsubscribed"
            await site.publish("two", 3)
            await site.publish("one", 4)
            assert await heard(ws, 1) == [4]
            await ws.send('{"type":"subscribe","channel":"none"}')
            assert (await receive(ws))["code"] == "not_found"
            await ws.send("no JSON")
            assert (await receive(ws))["code"] == "bad_request"
            await ws.send(b"bytes")
            assert (await receive(ws))["code"] == "bad_request"
            await ws.send('{"type":"ping","ref":7}')
            assert await receive(ws) == {"type": "pong", "ref": 7}

    async def test_messagepack(self, same):
        data = {"text": "grüß", "n": [1, 2.5, None]}
        async with same.join(subprotocols=["asgi-ws.v1.msgpack"]) as ws, asyncio.timeout(DEADLINE):
            assert ws.subprotocol == "asgi-ws.v1.msgpack"
            types = [msgspec.msgpack.decode(await ws.recv())["type"] for _ in range(3)]
            assert types == ["welcome", "subscribed", "subscribed"]
            await same.publish("one", data)
            assert msgspec.msgpack.decode(await ws.recv())["data"] == data
            await ws.send(msgspec.msgpack.encode({"type": "ping", "ref": "r"}))
            assert msgspec.msgpack.decode(await ws.recv()) == {"type": "pong", "ref": "r"}

    @pytest.mark.parametrize(
        ("code", "reconnect"), [(1000, False), (4010, False), (4150, True), (4299, True)]
    )
    async def test_the_application_closes(self, same, code, reconnect):
        async with same.join() as ws:
            session = same.session((await welcomed(ws, 2))["session"])
            before = same.stats["disconnects"].get(str(code), 0)
            await same.run_async(session.close(code, "that is all"))
            found, reason, messages = await closed(ws)
            assert (found, reason) == (code, "that is all")
            assert (messages[-1]["type"], messages[-1]["reconnect"]) == ("disconnect", reconnect)
        await eventually(lambda: session not in same.sessions)
        assert same.stats["disconnects"][str(code)] == before + 1

    @pytest.mark.parametrize(("arguments", "code"), [((), 1000), ((1001,), 1001), ((4321, "bye"), 4321)])
    async def test_the_client_closes(self, same, arguments, code):
        async with same.join() as ws:
            session = same.session((await welcomed(ws, 2))["session"])
            before = same.stats["disconnects"].get(str(code), 0)
            await ws.close(*arguments)
        await eventually(lambda: session not in same.sessions)
        assert same.stats["disconnects"][str(code)] == before + 1

    @both
    async def test_too_big_a_message(self, server):
        with Site(max_message_bytes=1000).on(server) as site:
            async with site.join() as ws:
                await welcomed(ws, 2)
                await ws.send("x" * 1000)
                assert (await receive(ws))["code"] == "bad_request"
                await ws.send("x" * 1001)
                code, _, messages = await closed(ws)
                assert (code, messages[-1]["code"]) == (1009, 1009)

    @both
    async def test_the_server_stops(self, server):
        with Site().on(server) as site:
            async with site.join() as ws:
                await welcomed(ws, 2)
                site.served.server.should_exit = True
                code, reason, messages = await closed(ws)
                assert code == 1012
                if server == "fast":  # elsewhere the server is the first to know
                    assert reason == "restart"
                    last = messages[-1]
                    assert (last["type"], last["code"], last["reconnect"]) == ("disconnect", 1012, True)
                    assert last["delay"]


class TestAdopted:
    async def test_a_session_is_no_task(self):
        with Site().on() as site:
            before = site.served.get("/tasks").json()
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(30):
                    await welcomed(await stack.enter_async_context(site.join()), 2)
                await eventually(lambda: site.served.get("/tasks").json() == before)
                await site.publish("one", 1)
                assert site.served.get("/tasks").json() == before
                assert site.served.get("/ws/status").json()["active_connections"] == 30

    @pytest.mark.parametrize(("server", "fast"), [("fast", False), ("uvicorn", True)])
    async def test_elsewhere_it_is(self, server, fast):
        with Site(fast=fast).on(server) as site:
            before = site.served.get("/tasks").json()
            async with site.join() as one, site.join() as two:
                for ws in (one, two):
                    await welcomed(ws, 2)
                assert site.served.get("/tasks").json() >= before + 2

    @pytest.mark.parametrize("fast", [True, False])
    async def test_what_wraps_send_is_bypassed_unless_fast_is_off(self, fast):
        seen: list[Any] = []

        async def watching(send, message):
            seen.append(message["type"])
            await send(message)

        with Site(Middleware(Wrapping, wrap=watching), fast=fast).on() as site:
            async with site.join() as ws:
                await welcomed(ws, 2)
                await site.publish("one", 1)
                assert await heard(ws, 1) == [1]
        expected = ["websocket.accept", *["websocket.send"] * 4]
        assert seen[:5] == (["websocket.accept"] if fast else expected)

    @pytest.mark.parametrize("what", ["send", "receive"])
    async def test_a_middleware_that_goes_on_is_told_why_it_cannot(self, what, caplog):
        told: list[str] = []

        class Late:
            def __init__(self, app):
                self.app = app

            async def __call__(self, scope, receive, send):
                await self.app(scope, receive, send)
                if scope["type"] == "websocket":
                    with pytest.raises(RuntimeError, match="ASGI_WS_FAST=false") as error:
                        await (send({"type": "websocket.close"}) if what == "send" else receive())
                    told.append(str(error.value))

        with Site(Middleware(Late)).on() as site:
            async with site.join() as ws:
                await welcomed(ws, 2)
                await eventually(lambda: told)
                await site.publish("one", "still here")
                assert await heard(ws, 1) == ["still here"]

    async def test_a_middleware_that_fails_then_does_not_end_it(self, caplog):
        class Failing:
            def __init__(self, app):
                self.app = app

            async def __call__(self, scope, receive, send):
                await self.app(scope, receive, send)
                if scope["type"] == "websocket":
                    raise ValueError("too late")

        with Site(Middleware(Failing)).on() as site:
            async with site.join() as ws:
                await welcomed(ws, 2)
                await eventually(lambda: caplog.records)
                await site.publish("one", "still here")
                assert await heard(ws, 1) == ["still here"]
        assert [record.getMessage().strip() for record in caplog.records] == ["Exception in ASGI application"]
        caplog.clear()

    async def test_its_context_ends_with_the_handshake_and_not_its_app(self):
        with Site().on() as site:
            async with site.join() as ws:
                await welcomed(ws, 2)
                assert site.sessions[0].app is site.app

    @loops
    async def test_several_dirty_channels_are_one_write(self, loop):
        """One turn, whatever it brought, is one `write` of the transport for each session."""
        with Site().on(loop=loop, ws=Counting) as site:
            query = "?channel=one&channel=two&channel=three"
            async with site.join(query) as one, site.join(query) as two:
                for ws in (one, two):
                    await welcomed(ws, 4)
                Counting.writes.clear()

                async def turn() -> None:
                    for n in range(9):
                        await site.hub.publish(("one", "two", "three")[n % 3], "tick", n)

                await site.run_async(turn())
                for ws in (one, two):
                    assert sorted(await heard(ws, 9)) == list(range(9))
                assert len(Counting.writes) == 2
                assert len(set(map(len, Counting.writes))) == 1


class Writes:
    """A transport that counts what is written to it."""

    def __init__(self, transport: Any, written: list[bytes]) -> None:
        self._transport = transport
        self._written = written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        self._written.append(data)
        self._transport.write(data)


class Counting(WebSocketProtocol):
    writes: list[bytes] = []

    def connection_made(self, transport: Any) -> None:
        super().connection_made(Writes(transport, self.writes))


class Cramped(WebSocketProtocol):
    """The kernel holds little for a client that does not read, and so the transport is soon paused."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)


class Wrapping:
    """Middleware that has a function in the way of `send`."""

    def __init__(self, app: Any, wrap: Callable[[Any, Any], Any]) -> None:
        self.app = app
        self.wrap = wrap

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "websocket":
            await self.app(scope, receive, send)
            return

        async def wrapped(message: Any) -> None:
            await self.wrap(send, message)

        await self.app(scope, receive, wrapped)


class TestSlow:
    """Clients that do not read: what waits for them is shared, bounded, and nobody else's trouble."""

    @contextlib.contextmanager
    def site(self, loop: str = "uvloop", **settings: Any) -> Iterator[Site]:
        with Site(**settings).on(loop=loop, ws=Cramped) as site:
            yield site

    def paused(self, site: Site) -> list[bool]:
        return [session.link._connection.paused for session in site.sessions]

    async def stuff(self, site: Site) -> int:
        """Publish until every session is paused; return how many that were."""
        count = 0
        while not all(self.paused(site)):
            await site.publish("one", {"n": count, "pad": PAD})
            count += 1
            assert count < 2000
        return count

    @loops
    async def test_the_outbox_holds_references(self, loop):
        with self.site(loop) as site, site.raw(buffer=4096), site.raw(buffer=4096):
            await self.stuff(site)
            for n in range(5):
                await site.publish("one", {"n": n, "pad": PAD})
            outboxes = [session._outbox.batches for session in site.sessions]
            assert len(outboxes[0]) >= 5
            assert list(map(id, outboxes[0][-5:])) == list(map(id, outboxes[1][-5:]))

    @loops
    async def test_and_drains_in_order_when_it_reads_again(self, loop):
        with self.site(loop, outbox_bytes=50_000_000) as site, site.raw(buffer=4096) as raw:
            count = await self.stuff(site)
            for n in range(200):
                await site.publish("one", {"n": count + n, "pad": PAD})
            events = [json.loads(raw.read().payload) for _ in range(count + 200)]
            assert [event["data"]["n"] for event in events] == list(range(count + 200))
            await eventually(lambda: not any(self.paused(site)))
            assert not site.sessions[0]._outbox
            await site.publish("one", "live again")
            assert json.loads(raw.read().payload)["data"] == "live again"

    @pytest.mark.parametrize(
        "bounds", [{"outbox_messages": 20}, {"outbox_bytes": 200_000}], ids=["messages", "bytes"]
    )
    async def test_past_its_bounds_it_is_closed(self, bounds):
        with self.site(slow="disconnect", **bounds) as site, site.raw(buffer=4096) as raw:
            count = await self.stuff(site)
            for n in range(40):
                await site.publish("one", {"n": count + n, "pad": PAD})
            assert site.stats["slow_clients"] == 1
            *messages, closing = raw.until_closed()
            messages = [json.loads(message.payload) for message in messages]
            events = [message["data"]["n"] for message in messages if message["type"] == "event"]
            assert events == list(range(len(events)))
            assert count <= len(events) < count + 21
            assert (messages[-1]["type"], messages[-1]["code"]) == ("disconnect", 4102)
            assert closing.code == 4102
            raw.send(CLOSE, struct.pack("!H", 4102))
            assert raw.ended()
            await eventually(lambda: not site.sessions)
            assert site.stats["disconnects"] == {"4102": 1}
            assert site.stats["events_delivered"] == len(events)
            assert site.stats["events_dropped"] >= 1

    @loops
    async def test_one_whose_write_does_not_finish_is_dropped(self, loop):
        with self.site(loop, send_timeout=0.2) as site, site.raw(buffer=4096) as raw:
            await self.stuff(site)
            await site.publish("one", "what waits")
            await eventually(lambda: not site.sessions)
            assert site.stats["disconnects"] == {"4102": 1}
            assert site.stats["slow_clients"] == 1
            await eventually(lambda: not site.served.server.server_state.connections)
            with pytest.raises((EOFError, ConnectionError)):
                raw.until_closed()

    async def test_one_that_is_closed_meanwhile_hears_the_rest_and_why(self):
        with self.site() as site, site.raw(buffer=4096) as raw:
            count = await self.stuff(site)
            await site.publish("one", {"n": count})
            await site.run_async(site.sessions[0].close(4150, "enough"))
            *messages, closing = raw.until_closed()
            messages = [json.loads(message.payload) for message in messages]
            assert [message["data"]["n"] for message in messages[:-1]] == list(range(count + 1))
            assert (messages[-1]["type"], closing.code) == ("disconnect", 4150)

    async def test_a_stop_of_the_server_waits_for_it_to_read(self):
        with self.site() as site, site.raw(buffer=4096) as raw:
            count = await self.stuff(site)
            await site.publish("one", {"n": count})
            site.served.server.should_exit = True
            *messages, closing = raw.until_closed()
            messages = [json.loads(message.payload) for message in messages]
            assert [message["data"]["n"] for message in messages[:-1]] == list(range(count + 1))
            assert (messages[-1]["type"], closing.code) == ("disconnect", 1012)

    async def test_a_stop_does_not_wait_for_one_that_never_does(self, monkeypatch):
        """Longer than `SEND_TIMEOUT`; what bounds it here is nothing else."""
        monkeypatch.setattr(connections, "CLOSE_TIMEOUT", 60)
        began = 0.0
        with Site(send_timeout=0.3).on(ws=Cramped, timeout_graceful_shutdown=None) as site:
            with site.raw(buffer=4096):
                await self.stuff(site)
                began = time.monotonic()
                site.served.server.should_exit = True
                await eventually(lambda: not site.served.server.server_state.connections)
        assert time.monotonic() - began < 10

    @pytest.mark.parametrize("slow", ["resync", "disconnect"])
    async def test_a_hundred_that_never_read_among_three_hundred_that_do(self, slow):
        """The others hear everything, and memory is bounded: by the outboxes, whose messages are shared."""
        events, pad = 100, "x" * 20_000
        with self.site(outbox_bytes=300_000, slow=slow) as site, contextlib.ExitStack() as stack:
            for _ in range(100):
                stack.enter_context(site.raw(buffer=2048))
            stuck = site.sessions
            readers = stack.enter_context(Readers(site, 300, events))
            process = psutil.Process()
            before = peak = process.memory_info().rss
            for n in range(events):
                await site.publish("one", {"n": n, "pad": pad})
                await eventually(lambda n=n: min(map(len, readers.heard)) > n - 5, "the readers")
                peak = max(peak, process.memory_info().rss)
            await eventually(lambda: readers.finished, "the readers")
            assert readers.heard == [list(range(events))] * 300
            assert all(
                session.ending is not None if slow == "disconnect" else session.lagging for session in stuck
            )
            assert site.stats["slow_clients"] == 100
            # A hundred times two megabytes were published to them; and the readers are in this process, too.
            assert peak - before < 100 << 20


class Readers:
    """Clients on bare sockets in one thread that read all they can, and keep the numbers of the events."""

    def __init__(self, site: Site, clients: int, events: int) -> None:
        self.heard: list[list[int]] = [[] for _ in range(clients)]
        self._events = events
        self._raws = [site.raw() for _ in range(clients)]
        self._thread = threading.Thread(target=lambda: asyncio.run(self._read_all()), daemon=True)

    @property
    def finished(self) -> bool:
        return not self._thread.is_alive()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(DEADLINE)
        for raw in self._raws:
            raw.socket.close()

    async def _read_all(self) -> None:
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*(self._read(n) for n in range(len(self._raws))))

    async def _read(self, number: int) -> None:
        reader, writer = await asyncio.open_connection(sock=self._raws[number].socket)
        for _ in range(self._events):
            _, length = await reader.readexactly(2)
            if length >= 126:
                length = int.from_bytes(await reader.readexactly(2 if length == 126 else 8), "big")
            message = json.loads(await reader.readexactly(length))
            self.heard[number].append(message["data"]["n"])
        writer.close()


class TestLeaving:
    """Whenever a client goes, nothing of it stays."""

    def cut(self, raw: Raw, how: str) -> None:
        if how == "reset":
            raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif how == "half":
            raw.socket.shutdown(socket.SHUT_WR)
        raw.socket.close()

    @pytest.mark.parametrize("how", ["close", "reset", "half"])
    async def test_at_any_byte_of_what_it_sends(self, how):
        head = (
            b"GET /ws/stream?channel=one HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        sent = (
            frame(TEXT, b'{"type":"subscribe","channel":"two"}')
            + frame(TEXT, b'{"type":"ping"', fin=False)
            + frame(0, b"}")
            + frame(CLOSE, b"\x03\xe8")
        )
        cuts = [*range(1, len(head), 31), *range(len(head) - 2, len(head) + len(sent) + 1, 3)]
        with Site().on() as site:
            for cut in cuts:
                raw = Raw.__new__(Raw)
                raw.socket = socket.create_connection(("127.0.0.1", site.served.port), timeout=DEADLINE)
                raw.write((head + sent)[:cut])
                self.cut(raw, how)
            self.nothing_stays(site)

    @pytest.mark.parametrize("how", ["close", "reset", "half"])
    async def test_while_it_is_written_to(self, how):
        with Site().on() as site:
            rng = random.Random(7)
            for _ in range(40):
                with site.raw(buffer=4096) as raw:
                    work = asyncio.ensure_future(site.publish("one", *[{"pad": PAD}] * rng.randrange(1, 80)))
                    if rng.random() < 0.5:
                        await asyncio.sleep(rng.random() / 100)
                    self.cut(raw, how)
                    await work
            self.nothing_stays(site)

    @pytest.mark.parametrize("when", ["before the answer", "after it"])
    @pytest.mark.parametrize("how", ["close", "reset", "half"])
    async def test_while_the_application_makes_up_its_mind(self, when, how):
        with Site().on() as site:
            deciding = threading.Event()
            decided: list[asyncio.Event] = []

            async def decide() -> None:
                decided.append(asyncio.Event())
                deciding.set()
                async with asyncio.timeout(DEADLINE):
                    await decided[-1].wait()

            @site.hub.authenticate
            async def authenticate(connection, token):
                if when == "before the answer":
                    await decide()

            @site.hub.channel("slow")
            async def slow(session: Session):
                if when == "after it":
                    await decide()

            for _ in range(5):
                deciding.clear()
                raw = Raw(site.served.port, "/ws/stream?channel=slow")
                assert await asyncio.to_thread(deciding.wait, DEADLINE)
                self.cut(raw, how)
                if how != "half" or when == "after it":
                    await eventually(lambda: not site.served.server.server_state.connections)
                site.call(decided[-1].set)
            self.nothing_stays(site)

    def nothing_stays(self, site: Site) -> None:
        until(lambda: not site.sessions)
        until(lambda: not site.served.server.server_state.connections)
        status = site.served.get("/ws/status").json()
        assert (status["active_connections"], status["subscriptions"]) == (0, 0)
        assert not site.hub._lifecycle.run.heartbeat._slot_of
        assert not site.hub._lifecycle.run.node.pace._behind
        assert sum(site.stats["disconnects"].values()) == site.stats["connections_total"]


# Where nothing is adopted: what a middleware may do in its `send`, and what becomes of one that has begun.

secret = contextvars.ContextVar("secret", default="nobody's")
lock = contextvars.ContextVar[asyncio.Lock]("lock")


async def with_asyncio_timeout(send: Any, message: Any) -> None:
    async with asyncio.timeout(5):
        await send(message)


async def with_a_timeout_and_a_wait(send: Any, message: Any) -> None:
    async with asyncio.timeout(5) as timeout:
        await asyncio.sleep(0)
        timeout.reschedule(asyncio.get_running_loop().time() + 5)
        await send(message)
        await asyncio.sleep(0)


async def with_wait_for(send: Any, message: Any) -> None:
    await asyncio.wait_for(send(message), 5)


async def with_fail_after(send: Any, message: Any) -> None:
    with anyio.fail_after(5):
        await send(message)


async def with_a_cancel_scope(send: Any, message: Any) -> None:
    with anyio.CancelScope(deadline=anyio.current_time() + 5) as scope:
        await anyio.sleep(0)
        await send(message)
    assert not scope.cancelled_caught


async def with_a_shield(send: Any, message: Any) -> None:
    with anyio.CancelScope(shield=True), anyio.move_on_after(5):
        await asyncio.shield(asyncio.ensure_future(send(message)))


async def with_a_task_group(send: Any, message: Any) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(send, message)


async def with_asyncios_task_group(send: Any, message: Any) -> None:
    async with asyncio.TaskGroup() as group:
        await group.create_task(send(message))


async def with_a_lock(send: Any, message: Any) -> None:
    async with _lock():
        await send(message)
        if random.random() < 0.5:
            await asyncio.sleep(0.001)


async def with_a_semaphore_of_anyio(send: Any, message: Any) -> None:
    async with anyio.Semaphore(1):
        await send(message)


async def with_sleep(send: Any, message: Any) -> None:
    await asyncio.sleep(0)
    await send(message)


async def with_real_sleep(send: Any, message: Any) -> None:
    await asyncio.sleep(0.002)
    await send(message)


async def with_a_sleep_behind(send: Any, message: Any) -> None:
    await send(message)
    await asyncio.sleep(0.002)


async def with_a_thread(send: Any, message: Any) -> None:
    await asyncio.to_thread(lambda: None)
    await send(message)


async def with_anyios_thread(send: Any, message: Any) -> None:
    await anyio.to_thread.run_sync(lambda: None)
    await send(message)


async def with_its_task(send: Any, message: Any) -> None:
    task = asyncio.current_task()
    assert task is not None
    await send(message)
    await asyncio.sleep(0)
    assert asyncio.current_task() is task


async def with_its_context(send: Any, message: Any) -> None:
    assert secret.get() == "the task's"
    token = secret.set("the message's")
    await asyncio.sleep(0)
    assert secret.get() == "the message's"
    await send(message)
    secret.reset(token)


async def with_a_finished_future(send: Any, message: Any) -> None:
    future = asyncio.get_running_loop().create_future()
    future.set_result(None)
    await future
    await send(message)


async def with_a_callback(send: Any, message: Any) -> None:
    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.set_result, None)
    await future
    await send(message)


async def with_a_timeout_that_it_survives(send: Any, message: Any) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.002):
            await asyncio.sleep(60)
    with anyio.move_on_after(0.002):
        await anyio.sleep(60)
    with contextlib.suppress(TimeoutError):
        with anyio.fail_after(0.002):
            await anyio.sleep(60)
    await send(message)


async def with_deadlines_that_have_passed(send: Any, message: Any) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0):
            await asyncio.sleep(60)
    with anyio.move_on_after(0):
        await anyio.sleep(60)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.sleep(60), 0)
    await send(message)


async def with_an_anyio_deadline_that_has_passed(send: Any, message: Any) -> None:
    with anyio.move_on_after(0) as scope:
        await asyncio.sleep(60)
    assert scope.cancelled_caught
    await send(message)


def _lock() -> asyncio.Lock:
    try:
        return lock.get()
    except LookupError:
        lock.set(asyncio.Lock())
        return lock.get()


ODD = [value for name, value in list(globals().items()) if name.startswith("with_")]


class Setting:
    """Middleware that sets a context variable in the connection's task."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        secret.set("the task's")
        await self.app(scope, receive, send)


class Choosing:
    """Middleware whose `send` is wrapped as the connection's query says."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.wraps: dict[str, Any] = {wrap.__name__: wrap for wrap in ODD}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        for name, wrap in self.wraps.items():
            if f"wrap={name}".encode() in scope.get("query_string", b"").split(b"&"):
                await Wrapping(self.app, wrap)(scope, receive, send)
                return
        await self.app(scope, receive, send)


GENERIC = {"uvicorn": ("uvicorn", {}), "wsproto": ("wsproto", {}), "FAST=false": ("fast", {"fast": False})}
_rooms = itertools.count()


class OddSite(Site):
    """A host app on a server that adopts nothing, with middleware that does odd things."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(Middleware(Setting), **settings)
        self.choosing = Choosing(self.app)
        self.app = self.choosing

    @contextlib.asynccontextmanager
    async def client(self, wrap: Any) -> AsyncIterator[tuple[Any, str, Session]]:
        """A client whose messages go through such a middleware, its own channel, and its session."""
        room = f"room:{next(_rooms)}"
        self.choosing.wraps[wrap.__name__] = wrap
        async with self.join(f"?channel={room}&wrap={wrap.__name__}") as ws:
            welcome = await welcomed(ws, 2)
            yield ws, room, self.session(welcome["session"])


@pytest.fixture(scope="module", params=GENERIC)
def odd(request):
    server, settings = GENERIC[request.param]
    with OddSite(**settings).on(server) as site:
        yield site


class TestOddSends:
    @pytest.mark.parametrize(
        "wrap",
        ODD,
        ids=lambda wrap: wrap.__name__,
    )
    async def test_every_event_arrives_in_order(self, odd, wrap, monkeypatch):
        dropped = odd.stats["events_dropped"]
        async with odd.client(wrap) as (ws, room, session):
            await odd.one_by_one(room, *range(20))
            await odd.publish(room, *range(20, 60))
            await odd.one_by_one(room, *range(60, 80))
            assert await heard(ws, 80) == list(range(80))
            await ws.send('{"type":"ping","ref":1}')
            assert await receive(ws) == {"type": "pong", "ref": 1}
            await odd.run_async(session.close(4010, "bye"))
            assert (await closed(ws))[:2] == (4010, "bye")
        assert odd.stats["events_dropped"] == dropped

    @pytest.mark.parametrize("name", GENERIC)
    @loops
    async def test_all_of_them_at_once(self, name, loop):
        """One in the other, each with its own idea of who runs."""
        server, settings = GENERIC[name]
        middleware = [Middleware(Setting), *(Middleware(Wrapping, wrap=wrap) for wrap in ODD)]
        with Site(*middleware, **settings).on(server, loop=loop) as site:
            async with site.join() as ws:
                await welcomed(ws, 2)
                await site.one_by_one("one", *range(10))
                await site.publish("one", *range(10, 20))
                assert await heard(ws, 20) == list(range(20))

    @pytest.mark.parametrize("step", ["first", "later", "behind"])
    @pytest.mark.parametrize("error", [ValueError, TimeoutError, OSError, StopAsyncIteration])
    async def test_one_that_fails_ends_the_session(self, odd, step, error):
        """No event is missing in silence: what was not sent is followed by nothing."""

        async def failing(send, message):
            wrong = '"data":3' in (message.get("text") or "")
            if step != "first":
                await asyncio.sleep(0)
            if wrong and step != "behind":
                raise error("the middleware's own")
            await send(message)
            if wrong:
                raise error("the middleware's own")

        async with odd.client(failing) as (ws, room, session), odd.client(with_sleep) as (other, *_):
            await odd.one_by_one(room, *range(6))
            code, _, messages = await closed(ws)
            assert code == 1006
            assert [message["data"] for message in messages] == [0, 1, 2] + [3] * (step == "behind")
            await eventually(lambda: session not in odd.sessions)
            await other.send('{"type":"ping"}')
            assert (await receive(other))["type"] == "pong"

    @pytest.mark.parametrize("kind", ["asyncio", "anyio"])
    async def test_one_whose_timeout_fires_ends_the_session(self, odd, kind):
        async def impatient(send, message):
            if '"data":3' not in (message.get("text") or ""):
                await send(message)
            elif kind == "asyncio":
                async with asyncio.timeout(0.01):
                    await asyncio.Event().wait()
            else:
                with anyio.fail_after(0.01):
                    await anyio.Event().wait()

        async with odd.client(impatient) as (ws, room, session):
            await odd.one_by_one(room, *range(5))
            code, _, messages = await closed(ws)
            assert code == 1006
            assert [message["data"] for message in messages] == [0, 1, 2]
            await eventually(lambda: session not in odd.sessions)

    @pytest.mark.parametrize("end", ["abort", "close", "disconnect"])
    @pytest.mark.parametrize("kind", ["plain", "asyncio", "anyio", "swallowing"])
    async def test_one_that_was_just_begun_when_the_session_ends_is_ended_with_it(self, odd, end, kind):
        """In the very turn of the loop in which its first step was taken, its clean-up runs, in its task."""
        begun: list[Any] = []
        ended: list[Any] = []

        async def stuck(send, message):
            if '"data":3' not in (message.get("text") or ""):
                await send(message)
                return
            begun.append(asyncio.current_task())
            try:
                if kind == "plain":
                    await asyncio.Event().wait()
                elif kind == "asyncio":
                    async with asyncio.timeout(60):
                        await asyncio.Event().wait()
                elif kind == "anyio":
                    with anyio.CancelScope(), anyio.fail_after(60):
                        await anyio.Event().wait()
                else:
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.Event().wait()
            finally:
                ended.append(asyncio.current_task())

        async with odd.client(stuck) as (ws, room, session):
            await odd.one_by_one(room, *range(3))
            assert await heard(ws, 3) == [0, 1, 2]

            async def publish_and_end() -> None:
                loop = asyncio.get_running_loop()
                await odd.hub.publish(room, "tick", 3)
                if end == "close":
                    loop.call_soon(session.end, endings.DISCONNECTED)
                # To abort its link is what a lost connection comes to.
                loop.call_soon(session.link.abort if end == "disconnect" else session.abort)

            await odd.run_async(publish_and_end())
            await eventually(lambda: session not in odd.sessions)
            await eventually(lambda: ended)
        assert begun == ended
        assert None not in begun

    async def test_a_socket_that_takes_the_message_costs_no_switch_of_tasks(self, odd):
        """What is published from no task has been handed to the server when its flush returns."""
        sent: list[Any] = []

        async def noting(send, message):
            await send(message)
            sent.append((message.get("text"), asyncio.current_task()))

        async with odd.client(noting) as (ws, room, _):

            async def publish() -> int:
                loop = asyncio.get_running_loop()
                done = loop.create_future()

                def flushed() -> None:
                    done.set_result(len([text for text, _ in sent if text and '"data":7' in text]))

                await odd.hub.publish(room, "tick", 7)  # the flush is the next thing that the loop does
                loop.call_soon(flushed)
                return await done

            assert await odd.run_async(publish()) == 1
            assert await heard(ws, 1) == [7]
            assert all(task is not None for _, task in sent)

    @pytest.mark.parametrize("name", GENERIC)
    @pytest.mark.parametrize("kind", ["plain", "asyncio", "anyio"])
    async def test_one_that_waits_for_ever_is_cancelled(self, name, kind):
        """By `SEND_TIMEOUT`, and its own clean-up runs, in its own task."""
        ended: list[Any] = []

        async def stuck(send, message):
            if '"data":3' not in (message.get("text") or ""):
                await send(message)
                return
            task = asyncio.current_task()
            try:
                if kind == "plain":
                    await asyncio.Event().wait()
                elif kind == "asyncio":
                    async with asyncio.timeout(60):
                        await asyncio.Event().wait()
                else:
                    with anyio.CancelScope(), anyio.fail_after(60):
                        await anyio.Event().wait()
            finally:
                ended.append(asyncio.current_task() is task)

        server, settings = GENERIC[name]
        with OddSite(send_timeout=0.1, **settings).on(server) as site:
            async with site.client(stuck) as (ws, room, _):
                await site.one_by_one(room, *range(5))
                await closed(ws)
                await eventually(lambda: not site.sessions)
                assert site.stats["disconnects"] == {"4102": 1}
            await eventually(lambda: ended)
        assert ended == [True]


class TestHalfSent:
    """A `send` that has begun, and is not to go on: in one loop, without a server."""

    @pytest.fixture
    async def hub(self):
        async with Hub(**QUIET, outbox_messages=20) as hub:
            hub.channel("one", public=True)
            yield hub

    @contextlib.asynccontextmanager
    async def client(self, hub: Hub, **options: Any) -> Any:
        async with Client(hub, channels=["one"], **options) as client:
            for _ in range(3):
                await client.receive()
            await turns()
            yield client, list(hub._lifecycle.run.sessions.values())[-1]

    def middleware(self, kind: str, ended: list[Any]) -> Callable[[Any], Any]:
        """An app in front of a hub, each of whose sends notes in which task it ends."""

        def wrap(hub: Hub) -> Any:
            async def app(scope: Any, receive: Any, send: Any) -> None:
                async def wrapped(message: Any) -> None:
                    task = asyncio.current_task()
                    try:
                        if kind == "anyio":
                            with anyio.CancelScope():
                                await send(message)
                        else:
                            async with asyncio.timeout(60):
                                await send(message)
                    finally:
                        ended.append(asyncio.current_task() is task)

                await hub(scope, receive, wrapped)

            return app

        return wrap

    @pytest.mark.parametrize("kind", ["asyncio", "anyio"])
    @pytest.mark.parametrize("how", ["the client leaves", "the session is aborted"])
    @pytest.mark.parametrize("later", [0, 1, 2, 3])
    async def test_is_ended_in_the_task_that_began_it(self, hub, kind, how, later):
        ended: list[Any] = []
        app = self.middleware(kind, ended)(hub)
        async with Client(app, channels=["one"]) as client:
            for _ in range(3):
                await client.receive()
            await turns()
            session = list(hub._lifecycle.run.sessions.values())[-1]
            ended.clear()
            client.pause()

            def leave() -> None:
                if how == "the client leaves":
                    client.leave()
                else:
                    session.abort()

            await hub.publish("one", "tick", 1)
            loop = asyncio.get_running_loop()

            def soon(turns: int) -> None:
                if turns:
                    loop.call_soon(soon, turns - 1)
                else:
                    leave()

            loop.call_soon(soon, later)  # behind the flush, in the same turn or a few later
            await until_in_loop(lambda: not hub._lifecycle.run.sessions)
            await until_in_loop(lambda: client._task.done())
        gc.collect()
        assert ended in ([True], [])  # none where it was aborted before it was begun

    async def test_the_last_message_of_a_session_that_is_too_slow_is_not_taken_for_it(self, hub):
        """The outbox is cleared while a message is being sent: what follows is not taken for that one."""
        async with self.client(hub) as (client, session):
            client.pause()
            await hub.publish("one", "tick", 1)
            asyncio.get_running_loop().call_soon(
                lambda: [
                    session.deliver(batch) or session.give_up(batch)
                    for batch in (Batch(JSON, [b'{"type":"event","n":%d}' % n], 1) for n in range(40))
                ]
            )
            await turns()
            assert session.ending is not None
            client.resume()
            types = []
            with contextlib.suppress(TimeoutError):
                while True:
                    async with asyncio.timeout(0.3):
                        types.append((await client.receive())["type"])
            assert types[-1] == "disconnect"
            assert client.closed["code"] == 4102
