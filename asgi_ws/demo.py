"""The demo's application: this machine's own readings once a second, and what its visitors type."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import psutil
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from asgi_ws.errors import BadRequest, RequestError
from asgi_ws.hub import Hub, get_hub
from asgi_ws.routes import live_page
from asgi_ws.settings import Settings

logger = logging.getLogger("asgi_ws")

INTERVAL = 1.0  # seconds between two readings
BUSIEST = 3  # processes
MAX_TEXT = 280  # characters of what a visitor says
MAX_BODY = 16 * 1024  # bytes: each of them may be written as two escapes of six

_MIB = 1 << 20


def make_app() -> tuple[Starlette, str]:
    """Return the application, and the API key that its page shows the counts with.

    Raises:
        SettingsError: `ASGI_WS_*` in the environment is not what it should be.
    """
    key = Settings.load().api_key or secrets.token_urlsafe(18)
    hub = Hub(live=True, api_key=key)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Any]]:
        async with hub:
            publishing = asyncio.create_task(_publish_readings(hub))
            try:
                yield {"hub": hub}
            finally:
                publishing.cancel()
                await asyncio.wait([publishing])

    app = Starlette(
        routes=[
            Route("/", live_page),
            Route("/say", _may_say, methods=["HEAD"]),
            Route("/say", _say, methods=["POST"]),
            Mount("/ws", hub),
        ],
        exception_handlers={RequestError: _refuse},
        lifespan=lifespan,
    )
    return app, key


class Machine:
    """What this machine does; a rate is since the reading before."""

    def __init__(self) -> None:
        self._readings: dict[str, Callable[[], dict[str, Any]]] = {
            "machine.load": self.load,
            "machine.memory": self.memory,
            "machine.network": self.network,
            "machine.processes": self.processes,
        }
        self._traffic = (time.monotonic(), 0, 0)
        self.read()  # from here on, for it is what the first rates are since

    def read(self) -> dict[str, dict[str, Any]]:
        """Take every reading, by event; it blocks. What cannot be had here is logged once, and left out."""
        taken = {}
        for event, reading in tuple(self._readings.items()):
            try:
                taken[event] = reading()
            except Exception as error:
                logger.warning("%s cannot be read on this machine: %r", event, error)
                del self._readings[event]
        return taken

    def load(self) -> dict[str, Any]:
        """How busy the processors are, in percent, and how many processes ran or waited to."""
        minutes = dict(zip(("1m", "5m", "15m"), psutil.getloadavg(), strict=True))
        averages = {f"average_{span}": round(value, 2) for span, value in minutes.items()}
        return {"cpu_percent": psutil.cpu_percent(), "cpus": psutil.cpu_count(), **averages}

    def memory(self) -> dict[str, Any]:
        """How full the memory is."""
        memory = psutil.virtual_memory()
        return {
            "used_percent": memory.percent,
            "available_mib": memory.available // _MIB,
            "total_mib": memory.total // _MIB,
        }

    def network(self) -> dict[str, Any]:
        """What went through all interfaces, per second and since the machine's start."""
        counters = psutil.net_io_counters()
        if counters is None:
            raise LookupError("no network interface")
        then, received, sent = self._traffic
        now = time.monotonic()
        self._traffic = (now, counters.bytes_recv, counters.bytes_sent)
        kib = 1024 * max(now - then, 0.001)  # a clock may be coarse
        return {
            "received_kib_s": round((counters.bytes_recv - received) / kib, 1),
            "sent_kib_s": round((counters.bytes_sent - sent) / kib, 1),
            "received_mib": counters.bytes_recv // _MIB,
            "sent_mib": counters.bytes_sent // _MIB,
        }

    def processes(self) -> dict[str, Any]:
        """How many there are, and those that had the most of a processor; `process_iter` remembers them."""
        found = [process.info for process in psutil.process_iter(["pid", "name", "cpu_percent"])]
        found.sort(key=lambda info: info["cpu_percent"] or 0.0, reverse=True)
        return {"count": len(found), "busiest": found[:BUSIEST]}


async def _publish_readings(hub: Hub) -> None:
    loop = asyncio.get_running_loop()
    machine = await asyncio.to_thread(Machine)
    while True:
        await asyncio.sleep(INTERVAL - loop.time() % INTERVAL)
        for event, data in (await asyncio.to_thread(machine.read)).items():
            try:
                await hub.broadcast(event, data)
            except RequestError as error:  # the broker may be away; the next second tries again
                logger.warning("%s was not published: %s", event, error)


class _Said(msgspec.Struct):
    text: str


async def _may_say(_: Request) -> Response:
    """Let a page find out that it may."""
    return Response(status_code=204)


async def _say(request: Request) -> Response:
    text = _text(await _body(request))
    position = await (await get_hub(request)).broadcast("said", {"text": text})
    return JSONResponse(msgspec.to_builtins(position))


async def _body(request: Request) -> bytes:
    # A form of another site can send any text, but not call it JSON without asking first (CORS).
    kind = request.headers.get("content-type", "none").partition(";")[0].strip()
    if kind != "application/json":
        raise BadRequest(f"expected the content type application/json, got {kind[:80]}")
    body = b""
    try:
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY:
                raise BadRequest(f"expected at most {MAX_BODY} bytes, got more")
    except ClientDisconnect as error:
        raise BadRequest("expected the whole body, got a part") from error
    return body


def _text(body: bytes) -> str:
    try:
        text = msgspec.json.decode(body, type=_Said).text.strip()
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadRequest(f'expected {{"text": "…"}} as JSON, got something else: {error}') from error
    if not 1 <= len(text) <= MAX_TEXT:
        raise BadRequest(f"expected a text of 1 to {MAX_TEXT} characters, got {len(text)}")
    return text


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    status = 400 if isinstance(error, BadRequest) else 503
    return JSONResponse({"code": error.code, "message": str(error)}, status)
