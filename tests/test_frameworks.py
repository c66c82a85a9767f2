"""The hub lives in any ASGI app, in three ways, beside whatever else the app serves, under any root path."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import httpx2
import pytest
import websockets
from fastapi import Depends, FastAPI, Request, WebSocket
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import TestClient

from asgi_ws import Hub, HubMiddleware, NotRunning, get_hub
from tests.servers import DEADLINE, Served, eventually, receive, serve, welcomed

pytestmark = pytest.mark.anyio

HELLO = "hello from the app"


# Every host has GET /hello, a WebSocket /echo (not Django), GET /hub that says whether its state has the hub,
# and hooks that write into `log` when it starts and when it stops.


def events_of(log):
    """The host's own lifespan."""

    @asynccontextmanager
    async def lifespan(_app=None):
        log.append("the app starts")
        yield
        log.append("the app stops")

    return lifespan


def fastapi_host(hub, way, prefix, log):
    app = FastAPI(lifespan=hub.lifespan if way == "lifespan" else events_of(log))

    @app.get("/hello")
    def hello():
        return PlainTextResponse(HELLO)

    @app.get("/hub")
    async def state(request: Request):
        return hasattr(request.state, "hub")

    @app.websocket("/echo")
    async def echo(ws: WebSocket):
        await ws.accept()
        await ws.send_text(await ws.receive_text())

    if way == "middleware":
        app.add_middleware(HubMiddleware, hub=hub, prefix=prefix)
    else:
        app.mount(prefix, hub)
    return app


def starlette_host(hub, way, prefix, log):
    async def hello(request):
        return PlainTextResponse(HELLO)

    async def state(request):
        return JSONResponse(hasattr(request.state, "hub"))

    async def echo(ws):
        await ws.accept()
        await ws.send_text(await ws.receive_text())

    routes = [Route("/hello", hello), Route("/hub", state), WebSocketRoute("/echo", echo)]
    if way == "middleware":
        return HubMiddleware(Starlette(routes=routes, lifespan=events_of(log)), hub, prefix)
    lifespan = hub.lifespan if way == "lifespan" else events_of(log)
    return Starlette(routes=[*routes, Mount(prefix, hub)], lifespan=lifespan)


def litestar_host(hub, way, prefix, log):
    import litestar

    @litestar.get("/hello", media_type="text/plain")
    async def hello() -> str:
        return HELLO

    @litestar.get("/hub")
    async def state(request: litestar.Request) -> bool:
        return hasattr(request.state, "hub")

    @litestar.websocket("/echo")
    async def echo(socket: litestar.WebSocket) -> None:
        await socket.accept()
        await socket.send_text(await socket.receive_text())

    @litestar.asgi(prefix, is_mount=True, copy_scope=True)
    async def mounted(scope: litestar.types.Scope, receive: litestar.types.Receive, send: litestar.types.Send) -> None:
        await hub(scope, receive, send)

    handlers = [hello, state, echo]
    if way == "middleware":
        return HubMiddleware(litestar.Litestar(handlers, lifespan=[events_of(log)]), hub, prefix)
    lifespan = hub.lifespan if way == "lifespan" else events_of(log)
    return litestar.Litestar([*handlers, mounted], lifespan=[lifespan])


def quart_host(hub, way, prefix, log):
    import quart
    from hypercorn.middleware import DispatcherMiddleware

    app = quart.Quart("host")

    @app.get("/hello")
    async def hello():
        return HELLO

    @app.get("/hub")
    async def state():
        return json.dumps("hub" in quart.request.scope.get("state", {}))

    @app.websocket("/echo")
    async def echo():
        await quart.websocket.send(await quart.websocket.receive())

    @app.while_serving
    async def lifespan():
        async with events_of(log)():
            yield

    if way == "middleware":
        return HubMiddleware(app, hub, prefix)
    # Quart mounts nothing itself; this tells everything that it mounts of the lifespan, the hub too.
    return DispatcherMiddleware({prefix: hub, "": app})


def django_host(hub, way, prefix, log):
    import django
    from django.conf import settings
    from django.core.asgi import get_asgi_application
    from django.http import HttpResponse, JsonResponse
    from django.urls import path

    class Urls:
        urlpatterns = [
            path("hello", lambda request: HttpResponse(HELLO)),
            path("hub", lambda request: JsonResponse("hub" in request.scope["state"], safe=False)),
        ]

    if not settings.configured:
        settings.configure(ROOT_URLCONF=Urls, ALLOWED_HOSTS=["*"], SECRET_KEY="x", LOGGING_CONFIG=None)
        django.setup()
    return HubMiddleware(get_asgi_application(), hub, prefix)


HOSTS = {
    "fastapi": (fastapi_host, ("lifespan", "middleware", "bare")),
    "starlette": (starlette_host, ("lifespan", "middleware", "bare")),
    "litestar": (litestar_host, ("lifespan", "middleware", "bare")),
    "quart": (quart_host, ("lifespan", "middleware")),
    "django": (django_host, ("middleware",)),
}
WAYS = [(name, way) for name, (_, ways) in HOSTS.items() for way in ways]


def host(name, hub, way, prefix, log=None):
    return HOSTS[name][0](hub, way, prefix, [] if log is None else log)


async def hears(served: Served, path: str, hub: Hub) -> None:
    """Check that the stream is at a path, that an event arrives, and that the numbers are beside it."""
    async with served.connect(path + "/stream") as ws:
        await welcomed(ws)
        await asyncio.to_thread(hub.from_thread.broadcast, "tick", {"at": path})
        assert (await receive(ws, "event"))["data"] == {"at": path}
        assert served.get(path + "/status").json()["active_connections"] == 1


@pytest.mark.parametrize("prefix", ["/ws", "/api/v1/ws"])
@pytest.mark.parametrize(("name", "way"), WAYS)
async def test_a_hub_lives_in_the_app_and_its_neighbours_never_notice(name, way, prefix):
    hub = Hub()
    with serve(host(name, hub, way, prefix)) as served:
        await hears(served, prefix, hub)
        # A trailing slash makes no difference, for WebSockets neither.
        async with served.connect(prefix + "/stream/") as ws:
            await welcomed(ws)
        for path in ("/status/", "/health", "/health/", "/stats"):
            response = served.get(prefix + path)
            assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
        # What is the app's is the app's.
        assert served.get("/hello").text == HELLO
        nowhere = served.get("/nowhere")
        assert nowhere.status_code == 404
        assert "no such endpoint" not in nowhere.text
        assert served.get("/hub").json() is (way != "bare")
        if name != "django":  # it has no WebSockets
            async with served.connect("/echo") as ws:
                await ws.send("hi")
                assert await ws.recv() == "hi"
        with pytest.raises(websockets.InvalidStatus):  # the app's way to say no; the hub's is a close code
            await served.connect("/nowhere")
        assert hub.stats()["rejected"] == {}
