"""Publishers, clients that read, and clients that do not: nobody waits for the last, nobody loses by them."""

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psutil
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from asgi_ws import Hub
from tests.servers import DEADLINE, Served, serve, until
from tests.test_hostile import Raw, speaker
from tests.test_protocol import on_uvicorn

PAD = "x" * 50_000

READERS = """
# So many clients, each of which reads until it has so many events, and checks their order.
import asyncio, json, sys, websockets

async def read(url, events, ready):
    options = dict(max_size=None, max_queue=None, compression=None, ping_interval=None, proxy=None)
    heard = 0
    async with websockets.connect(url, **options) as ws:
        await ws.recv()
        await ws.recv()
        ready.release()
        try:
            while heard < events:
                message = json.loads(await ws.recv())
                if message["type"] == "event":
                    assert message["data"]["n"] == heard, (message, heard)
                    heard += 1
        except websockets.ConnectionClosed:
            pass
        return heard

async def main(url, clients, events):
    ready = asyncio.Semaphore(0)
    reading = [asyncio.create_task(read(url, events, ready)) for _ in range(clients)]
    for _ in reading:
        await ready.acquire()
    print("ready", flush=True)
    print(json.dumps(await asyncio.gather(*reading)), flush=True)

asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
"""


@contextlib.contextmanager
def readers(served: Served, clients: int, events: int) -> Iterator[subprocess.Popen[str]]:
    """Clients that read as fast as they can, in a process of their own."""
    command = [sys.executable, "-c", READERS, f"{served.ws}/ws/stream", str(clients), str(events)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def heard_by(process: subprocess.Popen[str]) -> list[int]:
    """How many events each client has heard, in order, when all of them are done."""
    output, _ = process.communicate(timeout=60)
    return json.loads(output)


class Watch:
    """What a flood does to the process: its memory, and how long the loop was away from others."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._began = self.memory = self._process.memory_info().rss
        self.ticks = 0
        self.longest = 0.0

    @property
    def growth(self) -> int:
        return self.memory - self._began

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.get_running_loop().create_task(self._tick())
        try:
            yield
        finally:
            task.cancel()

    async def _tick(self) -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.005)
            now = time.perf_counter()
            self.longest = max(self.longest, now - last)
            self.ticks += 1
            self.memory = max(self.memory, self._process.memory_info().rss)
            last = now


async def one_by_one(hub: Hub, count: int) -> None:
    for number in range(count):
        await hub.broadcast("tick", {"n": number})


async def all_at_once(hub: Hub, count: int) -> None:
    await asyncio.gather(*(hub.broadcast("tick", {"n": number}) for number in range(count)))


async def without_waiting(hub: Hub, count: int) -> None:
    for number in range(count):
        hub.broadcast_nowait("tick", {"n": number})


WAYS = {way.__name__: way for way in (one_by_one, all_at_once, without_waiting)}


def app_that_floods(hub: Hub) -> Starlette:
    """`POST /flood?way=…&count=…` publishes in a plain loop, and answers with what that did."""

    async def flood(request: Request) -> JSONResponse:
        watch = Watch()
        began = time.perf_counter()
        async with watch.running():
            await WAYS[request.query_params["way"]](hub, int(request.query_params["count"]))
        seconds = time.perf_counter() - began
        figures = {"growth": watch.growth, "ticks": watch.ticks, "longest": watch.longest}
        return JSONResponse({"seconds": seconds, **figures})

    routes = [Mount("/ws", hub), Route("/flood", flood, methods=["POST"])]
    return Starlette(routes=routes, lifespan=hub.lifespan)


def app_that_pads(hub: Hub) -> Starlette:
    """`POST /pad` publishes large events until someone is too slow for them, and says how many."""

    async def pad(request: Request) -> JSONResponse:
        for number in range(2000):
            await hub.publish("room", "said", {"n": number, "pad": PAD})
            await asyncio.sleep(0.002)  # what a client that reads needs for one
            if hub.stats()["slow_clients"]:
                return JSONResponse(number + 1)
        raise AssertionError("nobody was too slow")

    routes = [Mount("/ws", hub), Route("/pad", pad, methods=["POST"])]
    return Starlette(routes=routes, lifespan=hub.lifespan)


def hub_with_room(**settings: Any) -> Hub:
    hub = Hub(**settings)
    hub.channel("room", public=True, history=0)
    return hub


@contextlib.contextmanager
def reader(served: Served, heard: list[Any]) -> Iterator[None]:
    """A client beside, in a thread: it reads all the time, and `heard` is what it hears."""
    with speaker(served, path="/ws/stream?channel=room", joins=2) as client:

        def read() -> None:
            with contextlib.suppress(Exception):
                while True:
                    heard.append(client.hear())

        thread = threading.Thread(target=read)
        thread.start()
        try:
            yield
        finally:
            client.ws.close()
            thread.join(DEADLINE)


def numbers(messages: list[Any]) -> list[int]:
    return [message["data"]["n"] for message in messages if message["type"] == "event"]


# Clients that do not read.


@on_uvicorn
def test_a_client_that_does_not_read_is_closed_as_4102_and_the_others_hear_everything(server):
    hub = hub_with_room(send_timeout=0.5)
    heard: list[Any] = []
    with serve(app_that_pads(hub), server) as served:
        with reader(served, heard), Raw(served, "/ws/stream?channel=room", receive_buffer=4096) as stalled:
            published = served.post("/pad").json()
            until(lambda: hub.stats()["disconnects"] == {"4102": 1}, "the abort")
            until(lambda: len(numbers(heard)) == published, "the last event")
            assert numbers(heard) == list(range(published))
            stats = hub.stats()
            assert stats["slow_clients"] == 1
            assert stats["events_emitted"] == published
            assert stats["events_dropped"] > 0
            assert stats["events_delivered"] + stats["events_dropped"] == 2 * published
            assert stats["active_connections"] == 1
            # Whoever reads on has what was sent before, in order.
            assert stalled.close_code() in {1006, 4102}
            assert numbers(stalled.messages) == list(range(len(numbers(stalled.messages))))


@on_uvicorn
def test_a_client_that_reads_again_in_time_is_told_why_it_was_closed(server):
    hub = hub_with_room()
    with serve(app_that_pads(hub), server) as served:
        with Raw(served, "/ws/stream?channel=room", receive_buffer=4096) as stalled:
            served.post("/pad")
            assert stalled.close_code() == 4102
            assert stalled.messages[-1] == {
                "type": "disconnect", "code": 4102, "reason": "too slow", "reconnect": True,
                "delay": [0.2, 8.0],
            }  # fmt: skip
            sent = numbers(stalled.messages)
            assert sent == list(range(len(sent)))
        until(lambda: hub.stats()["disconnects"] == {"4102": 1})
        assert hub.stats()["events_delivered"] == len(sent)


@on_uvicorn
def test_one_write_that_does_not_finish_within_send_timeout_aborts_the_connection(server):
    """Though its outbox is far from full."""
    hub = hub_with_room(send_timeout=0.5, outbox_bytes="1GiB", outbox_messages=100_000)
    with serve(app_that_pads(hub), server) as served:
        with Raw(served, "/ws/stream?channel=room", receive_buffer=4096):
            published = 0
            while not hub.stats()["slow_clients"]:
                hub.from_thread.publish("room", "said", {"n": published, "pad": PAD})
                published += 1
                time.sleep(0.001)
                assert published * len(PAD) < 1e9, "it was not aborted"
            until(lambda: hub.stats()["disconnects"] == {"4102": 1})
        stats = hub.stats()
        assert (stats["slow_clients"], stats["active_connections"]) == (1, 0)
        assert 0 < stats["events_delivered"] + stats["events_dropped"] <= published


@on_uvicorn
def test_nothing_is_left_of_a_connection_that_was_aborted_and_it_holds_up_no_stop(server):
    hub = hub_with_room(send_timeout=0.5)
    with serve(app_that_pads(hub), server, timeout_graceful_shutdown=None) as served:
        connections = served.server.server_state.connections
        with Raw(served, "/ws/stream?channel=room", receive_buffer=4096):
            served.post("/pad")
            until(lambda: hub.stats()["disconnects"] == {"4102": 1})
            deadline = time.monotonic() + 3.0
            while connections:  # the set is uvicorn's own
                assert time.monotonic() < deadline, f"the server still holds {connections}"
                time.sleep(0.01)


# Publishers that never stop.


@on_uvicorn
@pytest.mark.parametrize("way", WAYS)
def test_a_flood_of_publishes_reaches_every_client_that_reads(server, way):
    hub = Hub()
    clients, count = 20, 2500
    with serve(app_that_floods(hub), server) as served, readers(served, clients, count) as process:
        assert served.post("/flood", params={"way": way, "count": count}).status_code == 200
        assert heard_by(process) == [count] * clients
        until(lambda: hub.stats()["active_connections"] == 0)
        stats = hub.stats()
        assert (stats["slow_clients"], stats["events_dropped"]) == (0, 0)
        assert stats["events_delivered"] == count * clients


@pytest.mark.parametrize(("server", "clients", "count"), [
    ("uvicorn", 0, 1_000_000), ("uvicorn", 1, 100_000), ("fast", 1, 100_000),
])  # fmt: skip
def test_a_loop_of_publishes_needs_no_more_memory_and_lets_the_loop_go_on(server, clients, count):
    hub = Hub()
    with serve(app_that_floods(hub), server) as served, contextlib.ExitStack() as stack:
        served.post("/flood", params={"way": "one_by_one", "count": 2000})  # what is allocated once
        process = stack.enter_context(readers(served, clients, count)) if clients else None
        with _patience(100):
            figures = served.post("/flood", params={"way": "one_by_one", "count": count}).json()
        if process is not None:
            assert heard_by(process) == [count]
        rate = count / figures["seconds"]
        print(f"\n{server}, {clients} clients: {count} publishes, {rate:,.0f}/s, {figures}")
        assert hub.stats()["slow_clients"] == 0
        assert figures["growth"] < 60e6
        assert figures["longest"] < 1.0
        assert figures["ticks"] > 2 * figures["seconds"]


@contextlib.contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """Let a request take longer than anything else here."""
    import tests.servers as servers

    usual, servers.DEADLINE = servers.DEADLINE, seconds
    try:
        yield
    finally:
        servers.DEADLINE = usual


def test_a_publisher_does_not_wait_for_a_client_that_does_not_read():
    """Nor does a second one, later: it waits at most once for the same client."""
    hub = Hub(outbox_bytes="1GiB", outbox_messages=10_000_000, send_timeout=60)
    with serve(app_that_floods(hub)) as served:
        flood = {"way": "one_by_one", "count": 20_000}
        alone = served.post("/flood", params=flood).json()["seconds"]
        with Raw(served, receive_buffer=4096):
            with_it = served.post("/flood", params=flood).json()["seconds"]
            assert with_it < alone * 3 + 2.0
            assert hub.stats()["active_connections"] == 1
