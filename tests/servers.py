"""Real ASGI servers on free ports, in a thread of this process, and clients for them."""

import asyncio
import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import uvicorn
import websockets
from hypercorn.asyncio import serve as hypercorn_serve
from hypercorn.config import Config as HypercornConfig

from asgi_ws.server import WebSocketProtocol

SERVERS = ("uvicorn", "fast", "wsproto", "hypercorn", "granian")
_WS_CLASSES: dict[str, Any] = {
    "uvicorn": "websockets-sansio",
    "fast": WebSocketProtocol,
    "wsproto": "wsproto",
}
DEADLINE = 20.0  # seconds that anything may take here


class Served:
    """A server that runs, by its port."""

    def __init__(self, port: int, server: Any = None) -> None:
        self.port = port
        self.server = server
        self.http = f"http://127.0.0.1:{port}"
        self.ws = f"ws://127.0.0.1:{port}"

    def connect(self, path: str = "/ws/stream", **options: Any) -> websockets.connect:
        """Connect the `websockets` client; no pings of its own, no limits that would hide ours."""
        options = {"ping_interval": None, "max_size": None, "compression": None, "proxy": None} | options
        return websockets.connect(self.ws + path, **options)

    def get(self, path: str, **options: Any) -> httpx2.Response:
        return httpx2.get(self.http + path, timeout=DEADLINE, **options)

    def post(self, path: str, **options: Any) -> httpx2.Response:
        return httpx2.post(self.http + path, **({"timeout": DEADLINE} | options))


@contextlib.contextmanager
def serve(app: Any, server: str = "uvicorn", **options: Any) -> Iterator[Served]:
    """Serve an app until the block ends, lifespan included; `options` are uvicorn's."""
    starter = {"hypercorn": _hypercorn, "granian": _granian}.get(server)
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        port = listener.getsockname()[1]
        if starter is None:
            ws = _WS_CLASSES[server]
            with _uvicorn(app, listener, **{"ws": ws, **options}) as running:
                yield Served(port, running)
        else:
            with starter(app, listener) as running:
                yield Served(port, running)


def until(condition: Callable[[], Any], what: str = "the condition") -> Any:
    """Wait in a thread for something to become true."""
    deadline = time.monotonic() + DEADLINE
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {DEADLINE} s for {what}"
        time.sleep(0.005)
    return value


async def eventually(condition: Callable[[], Any], what: str = "the condition") -> Any:
    """Wait in a loop for something to become true."""
    async with asyncio.timeout(DEADLINE):
        while not (value := condition()):
            await asyncio.sleep(0.005)
    return value


async def receive(ws: Any, type: str | None = None) -> dict[str, Any]:
    """Return the next message, or the next of a type, from a JSON client."""
    async with asyncio.timeout(DEADLINE):
        while True:
            message = json.loads(await ws.recv())
            if type is None or message["type"] == type:
                return message


async def send(ws: Any, **message: Any) -> None:
    await ws.send(json.dumps(message))


async def welcomed(ws: Any, channels: int = 1) -> dict[str, Any]:
    """Read the welcome and what follows it: `subscribed` for each channel that is joined at connection."""
    welcome = await receive(ws)
    assert welcome["type"] == "welcome"
    for _ in range(channels):
        assert (await receive(ws))["type"] == "subscribed"
    return welcome


@contextlib.contextmanager
def _uvicorn(app: Any, listener: socket.socket, **options: Any) -> Iterator[uvicorn.Server]:
    defaults = {"lifespan": "auto", "log_config": None, "access_log": False, "timeout_graceful_shutdown": 5}
    server = uvicorn.Server(uvicorn.Config(app, **{**defaults, **options}))
    with _thread(lambda: server.run(sockets=[listener])) as thread:
        until(lambda: server.started or not thread.is_alive(), "uvicorn to start")
        assert server.started, "uvicorn did not start"
        try:
            yield server
        finally:
            server.should_exit = True


@contextlib.contextmanager
def _hypercorn(app: Any, listener: socket.socket) -> Iterator[None]:
    config = HypercornConfig()
    config.bind = [f"fd://{os.dup(listener.fileno())}"]  # it closes what it is given
    config.graceful_timeout = 2
    config.errorlog = None
    with _looped(lambda stop: hypercorn_serve(app, config, shutdown_trigger=stop.wait), listener):
        yield None


@contextlib.contextmanager
def _granian(app: Any, listener: socket.socket) -> Iterator[None]:
    from granian.constants import Interfaces
    from granian.server.embed import Server

    port = listener.getsockname()[1]
    listener.close()  # granian binds by itself
    server = Server(app, port=port, interface=Interfaces.ASGI, log_enabled=False)

    async def run(stop: asyncio.Event) -> None:
        serving = asyncio.get_running_loop().create_task(server.serve())
        await stop.wait()
        server.stop()
        await serving

    with _looped(run, None, port):
        yield None


@contextlib.contextmanager
def _looped(
    run: Callable[[asyncio.Event], Any], listener: socket.socket | None, port: int | None = None
) -> Iterator[None]:
    """Run a server's coroutine in a loop of its own, in a thread, until the block ends."""
    ready: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def main() -> None:
        stop = asyncio.Event()
        ready.append((asyncio.get_running_loop(), stop))
        await run(stop)

    with _thread(lambda: asyncio.run(main())):
        until(lambda: ready)
        loop, stop = ready[0]
        try:
            address = ("127.0.0.1", port) if listener is None else listener.getsockname()
            until(lambda: _answers(address), "the server to answer")
            yield None
        finally:
            loop.call_soon_threadsafe(stop.set)


def _answers(address: tuple[str, int]) -> bool:
    """Whether a request is answered: a listening socket takes connections before its server is up."""
    try:
        httpx2.get(f"http://127.0.0.1:{address[1]}/__ready__", timeout=1.0)
    except httpx2.HTTPError:
        return False
    return True


@contextlib.contextmanager
def _thread(target: Callable[[], Any]) -> Iterator[threading.Thread]:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            target()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(DEADLINE)
        assert not thread.is_alive(), "the server did not stop"
    if failures:
        raise failures[0]
