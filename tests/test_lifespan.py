"""A hub starts and stops with its app, any number of times, in any loop, and leaves nothing behind."""

import asyncio
import gc
import logging
import socket
from contextlib import asynccontextmanager

import anyio
import httpx2
import pytest
import uvicorn
import uvloop
import websockets
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.testclient import TestClient

from asgi_ws import Hub, HubMiddleware, NotRunning, Position, Settings, SettingsError, WrongLoop, run
from asgi_ws.broadcasters.memory import MemoryBroadcaster
from tests.servers import DEADLINE, Served, eventually, receive, serve, welcomed

pytestmark = pytest.mark.anyio

LAZY = "starts on its first use"


@asynccontextmanager
async def uvicorn_here(app):
    """uvicorn in the test's own loop, so that the test sees every task that is left."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=5))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        await eventually(lambda: server.started or serving.done(), "uvicorn to start")
        try:
            yield Served(listener.getsockname()[1], server)
        finally:
            server.should_exit = True
            await serving


async def get(served, path):
    async with httpx2.AsyncClient(timeout=DEADLINE, verify=False) as client:
        return await client.get(served.http + path)


async def closed(ws):
    """Return the code that a connection was closed with, whatever was still to be read."""
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(websockets.ConnectionClosed) as closing:
            while True:
                await ws.recv()
    return closing.value.rcvd.code


async def subscribed(ws):
    """Read the welcome, and return what the session's own channel begins with."""
    assert (await receive(ws))["type"] == "welcome"
    message = await receive(ws)
    assert message["type"] == "subscribed"
    return message


def is_running(hub):
    try:
        hub.stats()
    except NotRunning:
        return False
    return True


def mounted(hub):
    return Starlette(routes=[Mount("/ws", hub)])


# With the app: its startup and shutdown, and what can go wrong there.


async def answers(scope, receive, send):
    assert scope["type"] == "http"
    await PlainTextResponse("hello")(scope, receive, send)


async def raises_at_once(scope, receive, send):
    if scope["type"] == "lifespan":
        raise ValueError("expected http")
    await answers(scope, receive, send)


async def returns_at_once(scope, receive, send):
    if scope["type"] != "lifespan":
        await answers(scope, receive, send)


async def raises_at_the_message(scope, receive, send):
    if scope["type"] == "lifespan":
        message = await receive()
        raise ValueError(f"expected http.request, got {message}")
    await answers(scope, receive, send)


async def returns_at_the_message(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
    else:
        await answers(scope, receive, send)


async def knows_no_shutdown(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
    else:
        await answers(scope, receive, send)


@pytest.mark.parametrize(
    "app",
    [
        raises_at_once,
        returns_at_once,
        raises_at_the_message,
        returns_at_the_message,
        knows_no_shutdown,
    ],
)
async def test_an_app_without_lifespan_has_the_hubs(app, caplog):
    caplog.set_level(logging.INFO, "asgi_ws")
    hub = Hub()
    async with uvicorn_here(HubMiddleware(app, hub)) as served:
        assert is_running(hub)  # before the first request
        async with served.connect() as ws:
            await welcomed(ws)
            await hub.broadcast("tick", 1)
            assert (await receive(ws, "event"))["data"] == 1
        assert (await get(served, "/")).text == "hello"
    assert not is_running(hub)
    assert LAZY not in caplog.text


def broken():
    """A hub that cannot start: what it declares lacks who may subscribe."""
    hub = Hub()
    hub.channel("orders")
    return hub


def logging_lifespan(log, fails=""):
    @asynccontextmanager
    async def lifespan(app):
        log.append("startup")
        if fails == "startup":
            raise LookupError("the app's own trouble")
        yield
        log.append("shutdown")
        if fails == "shutdown":
            raise LookupError("the app's own trouble")

    return lifespan


ways = pytest.mark.parametrize(
    "way",
    [
        lambda hub, lifespan: Starlette(lifespan=hub.lifespan),
        lambda hub, lifespan: HubMiddleware(Starlette(lifespan=lifespan), hub),
        lambda hub, lifespan: hub,
    ],
    ids=["lifespan", "middleware", "the hub alone"],
)


@ways
def test_where_the_hub_cannot_start_the_app_does_not_either(way, caplog):
    log = []
    app = way(broken(), logging_lifespan(log))
    with pytest.raises(SettingsError, match="'orders'"), TestClient(app):
        pass
    caplog.clear()
    with pytest.raises(AssertionError, match="uvicorn did not start"), serve(app):
        pass
    assert "expected channel 'orders' to have a function" in caplog.text  # uvicorn says why
    assert log == []


@pytest.mark.parametrize("fails", ["startup", "shutdown"])
def test_where_the_app_fails_the_hub_is_stopped(fails):
    hub = Hub()
    app = HubMiddleware(Starlette(lifespan=logging_lifespan([], fails)), hub)
    with pytest.raises(LookupError), TestClient(app):
        assert is_running(hub)
    assert not is_running(hub)


async def test_a_start_that_failed_can_be_tried_again():
    class Away(MemoryBroadcaster):
        async def start(self, receiver):
            raise SettingsError("not yet")

    broadcaster = Away(Settings())
    hub = Hub(broadcaster=broadcaster)
    for _ in range(2):
        with pytest.raises(SettingsError, match="not yet"):
            async with hub:
                pass
    broadcaster.__class__ = MemoryBroadcaster
    async with hub:
        assert await hub.broadcast("tick", 1)


async def test_starting_twice_is_starting_once():
    hub = Hub()
    app = HubMiddleware(Starlette(lifespan=hub.lifespan), hub)
    async with hub:
        first = await hub.broadcast("tick", 1)
        async with uvicorn_here(app):
            second = await hub.broadcast("tick", 2)
        third = await hub.broadcast("tick", 3)  # one still holds it up
    assert [first.offset, second.offset, third.offset] == [1, 2, 3]
    assert first.epoch == second.epoch == third.epoch
    with pytest.raises(NotRunning):
        await hub.broadcast("tick", 4)


# Stop, and start again.


async def test_at_the_stop_clients_are_told_and_a_restart_is_empty_and_new():
    hub = Hub()
    async with uvicorn_here(mounted(hub)) as served:
        async with hub:
            await hub.broadcast("tick", 1)
            ws = await served.connect()
            before = await subscribed(ws)
            assert before["offset"] == 1
        goodbye = await receive(ws)
        delay = goodbye.pop("delay")
        assert goodbye == {"type": "disconnect", "code": 1012, "reason": "restart", "reconnect": True}
        assert 0 <= delay[0] < delay[1]
        assert await closed(ws) == 1012

        # Stopped.
        for publish in (
            hub.broadcast("tick", 2),
            hub.publish_to_user("7", "tick", 2),
            hub.status(),
            hub.health(),
        ):
            with pytest.raises(NotRunning, match="after its stop"):
                await publish
        assert await closed(await served.connect()) == 1013
        assert [(await get(served, f"/ws/{path}")).status_code for path in ("health", "status", "stats")] == [
            503
        ] * 3

        # Started again.
        async with hub, served.connect(f"/ws/stream?resume={before['epoch']}.1.broadcast") as ws:
            after = await subscribed(ws)
            assert after["epoch"] != before["epoch"]
            assert (after["recovered"], after["offset"]) == (False, 0)
            stats = hub.stats()
            assert (stats["connections_total"], stats["events_emitted"], stats["rejected"]) == (1, 0, {})
            assert (await hub.broadcast("tick", 1)).offset == 1
            assert (await receive(ws, "event"))["data"] == 1


async def test_a_client_that_does_not_read_does_not_hold_up_the_stop(monkeypatch):
    monkeypatch.setattr(run, "CLOSE_WAIT", 0.1)
    hub = Hub(max_event_bytes="1MiB", outbox_bytes="1GiB")
    async with uvicorn_here(mounted(hub)) as served:
        before = asyncio.all_tasks()
        async with hub:
            ws = await served.connect()
            await welcomed(ws)
            ws.transport.pause_reading()
            for _ in range(40):  # more than sockets can hold
                await hub.broadcast("much", "x" * 1_000_000)
        ws.transport.abort()
        await eventually(lambda: asyncio.all_tasks() == before, "every task to end")


async def test_what_is_published_nowait_before_the_stop_is_delivered_and_after_it_waits_for_the_next_start():
    hub = Hub()
    hub.broadcast_nowait("tick", "before")
    async with uvicorn_here(mounted(hub)) as served:
        async with hub:
            ws = await served.connect("/ws/stream?resume=.0.broadcast")
            hub.broadcast_nowait("tick", "last")
        assert [(await receive(ws, "event"))["data"] for _ in range(2)] == ["before", "last"]
        assert await closed(ws) == 1012
        hub.broadcast_nowait("tick", "after")
        async with hub, served.connect("/ws/stream?resume=.0.broadcast") as ws:
            assert (await receive(ws, "event"))["data"] == "after"
            assert hub.stats()["publish_failed"] == 0


class Slow(MemoryBroadcaster):
    """Finishes a publish, or a stop, only when it may."""

    def __init__(self, slow):
        super().__init__(Settings())
        self.slow = slow
        self.waits = asyncio.Event()
        self.may = asyncio.Event()

    async def publish(self, publication, retention):
        await self.wait("publish")
        return await super().publish(publication, retention)

    async def stop(self):
        await self.wait("stop")
        await super().stop()

    async def wait(self, what):
        if what == self.slow:
            self.waits.set()
            async with asyncio.timeout(DEADLINE):
                await self.may.wait()


@pytest.mark.parametrize("slow", ["publish", "stop"])
async def test_a_start_while_a_stop_is_under_way_is_a_whole_start(slow):
    broadcaster = Slow(slow)
    hub = Hub(broadcaster=broadcaster)

    async def start():
        await hub.__aenter__()
        return await hub.broadcast("tick", 1)

    await hub.__aenter__()
    hub.broadcast_nowait("tick", 0)
    stopping = asyncio.create_task(hub.__aexit__())
    await eventually(broadcaster.waits.is_set, "the stop to be under way")
    starting = asyncio.create_task(start())
    await asyncio.wait([starting], timeout=0.05)  # it may wait for the stop
    broadcaster.may.set()
    _, first = await asyncio.gather(stopping, starting)
    assert (await hub.broadcast("tick", 2)) == Position(first.epoch, first.offset + 1)
    hub.broadcast_nowait("tick", 3)
    async with asyncio.timeout(2):
        await eventually(
            lambda: hub.stats()["events_emitted"] == first.offset + 2, "what was published nowait"
        )
    await hub.__aexit__()


# What is left: nothing.


async def in_use(hub):
    """One life of a hub, with clients that go and clients that stay until its end."""
    async with hub, uvicorn_here(mounted(hub)) as served:
        async with served.connect() as one, served.connect("/ws/stream?channel=nothing") as two:
            await welcomed(one)
            await welcomed(two, 0)
            await hub.broadcast("tick", 1)
            hub.broadcast_nowait("tick", 2)
            await asyncio.to_thread(hub.from_thread.broadcast, "tick", 3)
            assert sorted([(await receive(one, "event"))["data"] for _ in range(3)]) == [1, 2, 3]
        stays = await served.connect()
        await welcomed(stays)
    assert await closed(stays) == 1012


@pytest.fixture
def complaints(caplog):
    """What asyncio says of tasks that were left behind; a ResourceWarning is an error anyway."""
    gc.collect()  # what others left
    caplog.clear()

    def said():
        gc.collect()
        texts = [record.getMessage() for record in caplog.records if record.name == "asyncio"]
        return [text for text in texts if "destroyed" in text or "never" in text]

    return said


async def test_start_and_stop_leave_no_task(complaints):
    hub = Hub()
    asyncio.get_running_loop().set_debug(True)
    before = asyncio.all_tasks()
    for _ in range(5):
        await in_use(hub)
        await eventually(lambda: asyncio.all_tasks() == before, "every task to end")
    assert complaints() == []


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_hub_lives_in_one_loop_after_another(loop_factory, complaints):
    hub = Hub()

    async def main():
        await in_use(hub)
        await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()}, "every task to end")

    for _ in range(3):
        with asyncio.Runner(loop_factory=loop_factory, debug=True) as runner:
            runner.run(main())
    assert complaints() == []


def test_a_hub_whose_loop_was_closed_under_it_begins_anew(complaints):
    hub = Hub()

    async def main():
        position = await hub.broadcast("tick", 1)  # nobody started it, nobody stops it
        hub.broadcast_nowait("tick", 2)
        await eventually(lambda: hub.stats()["events_emitted"] == 2)
        return position

    async def held():
        await hub.__aenter__()
        return await main()

    positions = [asyncio.run(life(), debug=True) for life in (main, main, held, main)]
    assert [position.offset for position in positions] == [1] * 4
    assert len({position.epoch for position in positions}) == 4
    assert complaints() == []


def test_what_is_published_nowait_at_the_end_of_a_loop_does_not_stop_up_the_next():
    hub = Hub()

    async def first():
        await hub.broadcast("tick", 1)
        hub.broadcast_nowait("tick", 2)

    async def second():
        async with hub:
            hub.broadcast_nowait("tick", 3)
            async with asyncio.timeout(2):
                await eventually(
                    lambda: hub.stats()["events_emitted"] == 2, "both that were published nowait"
                )

    asyncio.run(first())
    asyncio.run(second())


async def test_a_session_whose_task_is_cancelled_is_gone():
    """Again and again at each await, as anyio does it: Starlette's TestClient, timeouts in middlewares."""
    hub = Hub()
    incoming, outgoing = asyncio.Queue(), asyncio.Queue()
    incoming.put_nowait({"type": "websocket.connect"})
    scope = {"type": "websocket", "path": "/stream", "query_string": b"", "headers": [], "subprotocols": []}
    async with hub:
        with anyio.CancelScope() as scope_of_the_task:

            async def send(message):
                outgoing.put_nowait(message)
                if outgoing.qsize() == 3:  # accepted, welcomed, subscribed
                    scope_of_the_task.cancel()

            await hub(scope, incoming.get, send)
        assert outgoing.qsize() == 3
        assert hub.stats()["active_connections"] == 0
        assert hub.stats()["disconnects"] == {"1006": 1}


# A hub that nobody started.


async def test_a_hub_that_nobody_starts_starts_on_its_first_use_and_says_so_once(caplog):
    caplog.set_level(logging.INFO, "asgi_ws")
    hub = Hub()
    async with uvicorn_here(mounted(hub)) as served:
        before = asyncio.all_tasks()
        positions = await asyncio.gather(*(hub.broadcast("tick", n) for n in range(50)))
        assert [position.offset for position in positions] == list(range(1, 51))
        assert asyncio.all_tasks() == before  # without a session it holds no task
        for n in range(2):
            async with served.connect() as ws:
                await welcomed(ws)
                await hub.broadcast("tick", n)
                assert (await receive(ws, "event"))["data"] == n
            await eventually(lambda: asyncio.all_tasks() == before, "every task to end")
        assert (await get(served, "/ws/status")).json()["active_connections"] == 0
        assert [record.getMessage() for record in caplog.records if LAZY in record.getMessage()] == [
            "<Hub 'asgi_ws'> starts on its first use: no lifespan has started it"
        ]


@pytest.mark.parametrize("first", ["stream", "status", "stats", "health"])
async def test_any_first_request_starts_it(first):
    hub = Hub()
    async with uvicorn_here(mounted(hub)) as served:
        if first == "stream":
            async with served.connect() as ws:
                await welcomed(ws)
        else:
            assert (await get(served, f"/ws/{first}")).status_code == 200
        assert is_running(hub)


# Loops that it is not for.


async def test_another_loop_is_told_what_to_do():
    hub = Hub()
    with serve(HubMiddleware(answers, hub)):
        for use in (hub.broadcast("tick", 1), hub.status(), hub.__aenter__()):
            with pytest.raises(WrongLoop, match=r"with TestClient\(app\).*from_thread.*publish_nowait"):
                await use
        assert (await asyncio.to_thread(hub.from_thread.broadcast, "tick", 1)).offset == 1  # and it lives on


async def test_from_thread_refuses_the_loops_own_thread():
    async with Hub() as hub:
        with pytest.raises(WrongLoop, match="await instead"):
            hub.from_thread.broadcast("tick", 1)


def test_from_thread_before_the_start_is_not_running():
    with pytest.raises(NotRunning):
        Hub().from_thread.broadcast("tick", 1)


def test_trio_is_refused_by_name():
    start = Hub().__aenter__()  # run as trio would run it: there is no loop of asyncio's
    with pytest.raises(WrongLoop, match=r"asyncio or uvloop.*trio"):
        start.send(None)
