"""The hub lives in any ASGI app, in three ways, beside whatever else the app serves, under any root path."""

import asyncio
import json
import re
import subprocess
import sys
from collections import defaultdict
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


# Every host has GET /hello, GET /hub that says whether its state has the hub, a WebSocket /echo (not Django),
# and a lifespan of its own, which `hub.lifespan` takes the place of.


@asynccontextmanager
async def nothing(_app=None):
    yield


def fastapi_host(hub, way, prefix, lifespan):
    app = FastAPI(lifespan=hub.lifespan if way == "lifespan" else lifespan)

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


def starlette_host(hub, way, prefix, lifespan):
    async def hello(request):
        return PlainTextResponse(HELLO)

    async def state(request):
        return JSONResponse(hasattr(request.state, "hub"))

    async def echo(ws):
        await ws.accept()
        await ws.send_text(await ws.receive_text())

    routes = [Route("/hello", hello), Route("/hub", state), WebSocketRoute("/echo", echo)]
    if way == "middleware":
        return HubMiddleware(Starlette(routes=routes, lifespan=lifespan), hub, prefix)
    lifespan = hub.lifespan if way == "lifespan" else lifespan
    return Starlette(routes=[*routes, Mount(prefix, hub)], lifespan=lifespan)


def litestar_host(hub, way, prefix, lifespan):
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
    async def mounted(
        scope: litestar.types.Scope, receive: litestar.types.Receive, send: litestar.types.Send
    ) -> None:
        await hub(scope, receive, send)

    handlers = [hello, state, echo]
    if way == "middleware":
        app = litestar.Litestar(handlers, lifespan=[lifespan], logging_config=None)
        return HubMiddleware(app, hub, prefix)
    lifespan = hub.lifespan if way == "lifespan" else lifespan
    return litestar.Litestar([*handlers, mounted], lifespan=[lifespan], logging_config=None)


def quart_host(hub, way, prefix, lifespan):
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
    async def serving():
        async with lifespan():
            yield

    if way == "middleware":
        return HubMiddleware(app, hub, prefix)
    # Quart mounts nothing itself; this tells everything that it mounts of the lifespan, the hub too.
    return DispatcherMiddleware({prefix: hub, "": app})


def django_host(hub, way, prefix, lifespan):
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
DISPATCHER = ("quart", "lifespan")  # knows no root path, and what it has at "/" takes all


def host(name, hub, way, prefix, lifespan=nothing):
    return HOSTS[name][0](hub, way, prefix, lifespan)


@pytest.fixture(scope="module")
def http():
    """One client for all requests: each `served.get` would read the machine's certificates anew."""
    with httpx2.Client(timeout=DEADLINE) as client:
        yield client


async def hears(served, path, hub):
    """Check that an event reaches who is connected to the hub at a path."""
    async with served.connect(path + "/stream") as ws:
        await welcomed(ws)
        await asyncio.to_thread(hub.from_thread.broadcast, "tick", {"at": path})
        assert (await receive(ws, "event"))["data"] == {"at": path}


async def receive_text(ws):
    async with asyncio.timeout(DEADLINE):
        return await ws.recv()


async def echoes(served, path="/echo"):
    """Check that the app's own WebSocket works."""
    async with served.connect(path) as ws:
        await ws.send("hi")
        assert await receive_text(ws) == "hi"


@pytest.mark.parametrize("prefix", ["/ws", "/api/v1/ws"])
@pytest.mark.parametrize(("name", "way"), WAYS)
async def test_a_hub_lives_in_an_app_and_its_neighbours_are_untouched(name, way, prefix, http):
    hub = Hub()
    with serve(host(name, hub, way, prefix)) as served:
        await hears(served, prefix, hub)
        async with served.connect(prefix + "/stream/") as ws:  # a trailing slash makes no difference
            await welcomed(ws)
            for path in ("/status", "/status/"):
                assert http.get(served.http + prefix + path).json()["status"] == "ok"
        assert http.get(served.http + prefix + "/health").json()["status"] == "healthy"
        # What is the app's is the app's, its ways to say no included.
        assert http.get(served.http + "/hello").text == HELLO
        nowhere = http.get(served.http + "/nowhere")
        assert nowhere.status_code == 404
        assert "no such endpoint" not in nowhere.text
        with pytest.raises(websockets.InvalidStatus):
            await served.connect("/nowhere")
        if name != "django":  # it has no WebSockets
            await echoes(served)
        # Litestar takes no state from a lifespan.
        assert http.get(served.http + "/hub").json() is (
            way != "bare" and (name, way) != ("litestar", "lifespan")
        )


@pytest.mark.parametrize(
    ("name", "way"),
    [(name, way) for name, way in WAYS if (name, way) != DISPATCHER],
)
async def test_at_the_root_the_app_keeps_its_own_routes(name, way, http):
    hub = Hub()
    with serve(host(name, hub, way, "/")) as served:
        await hears(served, "", hub)
        assert http.get(served.http + "/health").json()["status"] == "healthy"
        assert http.get(served.http + "/hello").text == HELLO
        if name != "django":
            await echoes(served)


async def test_the_app_keeps_its_own_routes_below_the_prefix_of_the_middleware(http):
    async def echo(ws):
        await ws.accept()
        await ws.send_text(await ws.receive_text())

    routes = [WebSocketRoute("/ws", echo), WebSocketRoute("/ws/chat", echo)]
    hub = Hub()
    with serve(HubMiddleware(Starlette(routes=routes), hub)) as served:
        await hears(served, "/ws", hub)
        await echoes(served, "/ws/chat")
        await echoes(served, "/ws")


@pytest.mark.parametrize("path", ["/ws", "/ws/", "/ws/nothing", "/ws/stream/more", "/wstream", "/ws/streams"])
@pytest.mark.parametrize("way", ["lifespan", "middleware"])
async def test_what_the_hub_has_not_is_no_ones(way, path, http):
    with serve(host("starlette", Hub(), way, "/ws")) as served:
        assert http.get(served.http + path, follow_redirects=True).status_code == 404
        with pytest.raises((websockets.InvalidStatus, websockets.ConnectionClosed)) as refused:
            async with served.connect(path) as ws:
                await receive_text(ws)
        if isinstance(refused.value, websockets.ConnectionClosed):  # the hub's way to say no
            assert refused.value.rcvd.code == 4004


# Behind a proxy that cuts a prefix off, `path` may have it or not, and the server or the app may name it.


@pytest.mark.parametrize("way", ["lifespan", "middleware"])
@pytest.mark.parametrize(
    ("app_root", "server_root", "asked", "mounted"),
    [
        ("", "/api", "", "/ws"),  # uvicorn --root-path, the proxy strips
        ("/api", "", "", "/ws"),  # FastAPI(root_path=...), the proxy strips
        ("/api", "", "/api", "/ws"),  # the same, the proxy does not
        ("/api", "/api", "", "/ws"),  # both name it, the proxy strips
        ("", "/a/pi", "", "/v1/ws"),
        ("/a/pi", "", "", "/v1/ws"),
        ("/a/pi", "", "/a/pi", "/v1/ws"),
        ("/api/", "", "", "/ws"),
        ("/w", "", "", "/ws"),  # what is mounted begins like it
        ("/w", "", "/w", "/ws"),
    ],
)
async def test_a_root_path_is_no_obstacle(app_root, server_root, asked, mounted, way, http):
    hub = Hub()
    app = host("fastapi", hub, way, mounted)
    app.root_path = app_root
    with serve(app, root_path=server_root) as served:
        assert http.get(served.http + asked + "/hello").text == HELLO  # the app is where it is asked for
        await echoes(served, asked + "/echo")
        await hears(served, asked + mounted, hub)
        async with served.connect(asked + mounted + "/stream/") as ws:
            await welcomed(ws)
        assert http.get(served.http + asked + mounted + "/health").json()["status"] == "healthy"


@pytest.mark.parametrize(
    ("name", "way"), [(name, way) for name, way in WAYS if way != "bare" and (name, way) != DISPATCHER]
)
async def test_every_framework_has_it_under_a_root_path(name, way, http):
    hub = Hub()
    with serve(host(name, hub, way, "/ws"), root_path="/api") as served:
        assert http.get(served.http + "/hello").text == HELLO
        await hears(served, "/ws", hub)
        assert http.get(served.http + "/ws/health/").json()["status"] == "healthy"


async def test_a_mount_in_a_mount_has_it_too(http):
    hub = Hub()
    inner = Starlette(routes=[Mount("/v1", routes=[Mount("/ws", hub)])])
    app = Starlette(routes=[Mount("/api", inner)], lifespan=hub.lifespan)
    for root in ("", "/root"):
        with serve(app, root_path=root) as served:
            await hears(served, "/api/v1/ws", hub)
            assert http.get(served.http + "/api/v1/ws/health").json()["status"] == "healthy"


class Logged(Hub):
    """Logs its starts and stops."""

    def __init__(self, log, **settings):
        super().__init__(**settings)
        self.log = log

    async def __aenter__(self):
        await super().__aenter__()
        self.log.append("the hub is up")
        return self

    async def __aexit__(self, *error):
        self.log.append("the hub goes down")
        await super().__aexit__(*error)


@pytest.mark.parametrize("name", HOSTS)
def test_the_hub_is_up_before_the_app_starts_and_until_it_has_stopped(name, http):
    log = []
    hub = Logged(log)

    @asynccontextmanager
    async def lifespan(_app=None):
        log.append(f"the app starts at {(await hub.broadcast('app.starts', None)).offset}")
        yield
        log.append(f"the app stops at {(await hub.broadcast('app.stops', None)).offset}")

    with serve(host(name, hub, "middleware", "/ws", lifespan), lifespan="on") as served:
        assert http.get(served.http + "/ws/health").json()["status"] == "healthy"
    own = [] if name == "django" else ["the app starts at 1", "the app stops at 2"]  # Django has no lifespan
    assert log == ["the hub is up", *own, "the hub goes down"]


# request.state.hub, and Depends(get_hub).

HubDep = Annotated[Hub, Depends(get_hub)]


def lifespan_way(hub):
    app = FastAPI(lifespan=hub.lifespan)
    app.mount("/ws", hub)
    return app


def own_lifespan_way(hub):
    @asynccontextmanager
    async def lifespan(app):
        async with hub:
            yield {"hub": hub, "mine": 1}

    app = FastAPI(lifespan=lifespan)
    app.mount("/ws", hub)
    return app


def middleware_way(hub):
    app = FastAPI()
    app.add_middleware(HubMiddleware, hub=hub)
    return app


def bare_way(hub):
    app = FastAPI()
    app.mount("/ws", hub)
    return app


def add_routes(app):
    @app.get("/state")
    async def state(request: Request):
        return await request.state.hub.broadcast("said", "state")

    @app.get("/async")
    async def depends(hub: HubDep):
        return await hub.broadcast("said", "async")

    @app.get("/def")
    def depends_in_a_thread(hub: HubDep):
        return hub.from_thread.broadcast("said", "def")

    @app.websocket("/socket")
    async def socket(ws: WebSocket, hub: HubDep):
        await ws.accept()
        await ws.send_json((await hub.broadcast("said", "socket")).offset)


@pytest.mark.parametrize("way", [lifespan_way, own_lifespan_way, middleware_way])
async def test_routes_find_the_hub_of_their_app(way, http):
    app = way(Hub())
    add_routes(app)
    with serve(app) as served:
        async with served.connect() as ws:
            await welcomed(ws)
            for offset, path in enumerate(["/state", "/async", "/def"], 1):
                assert http.get(served.http + path).json()["offset"] == offset
                assert (await receive(ws, "event"))["data"] == path[1:]
            async with served.connect("/socket") as socket:
                assert await receive_text(socket) == "4"
            assert (await receive(ws, "event"))["data"] == "socket"


@pytest.mark.parametrize("path", ["/async", "/def"])
def test_where_no_hub_is_in_the_state_get_hub_says_what_to_do(path):
    app = bare_way(Hub())
    add_routes(app)
    with TestClient(app) as client:
        with pytest.raises(
            NotRunning, match=r"FastAPI\(lifespan=hub.lifespan\), .*HubMiddleware.* import it"
        ):
            client.get(path)
        with pytest.raises(NotRunning, match="import it"), client.websocket_connect("/socket"):
            pass


# Two hubs.


@pytest.mark.parametrize("form", ["mounts", "middleware"])
async def test_two_hubs_live_side_by_side(form, http):
    hub, other = Hub(), Hub(namespace="other")

    @asynccontextmanager
    async def lifespan(app):
        async with other.lifespan(app) as nothing, hub.lifespan(app) as state:
            yield nothing | state

    app = FastAPI(lifespan=lifespan if form == "mounts" else None)
    if form == "mounts":
        app.mount("/ws", hub)
        app.mount("/other", other)
    else:
        app.add_middleware(HubMiddleware, hub=hub)
        app.add_middleware(HubMiddleware, hub=other, prefix="/other")

    @app.get("/hub")
    async def which(hub: HubDep):
        return hub.settings.namespace

    with serve(app) as served:
        async with served.connect("/ws/stream") as ws, served.connect("/other/stream") as there:
            await welcomed(ws)
            await welcomed(there)
            for n in range(3):
                await asyncio.to_thread(hub.from_thread.broadcast, "said", f"hub {n}")
                await asyncio.to_thread(other.from_thread.broadcast, "said", f"other {n}")
            for socket, name in ((ws, "hub"), (there, "other")):
                heard = [await receive(socket, "event") for _ in range(3)]
                assert [(event["data"], event["offset"]) for event in heard] == [
                    (f"{name} {n}", n + 1) for n in range(3)
                ]
            for path in ("/ws", "/other"):
                assert http.get(f"{served.http}{path}/stats").json()["events_emitted"] == 3
            assert http.get(served.http + "/hub").json() == "asgi_ws"  # only the default one is in the state


# Publishing from where an app has it: routes, worker threads, plain threads.

FOUR_LINES = """
from fastapi import FastAPI
from asgi_ws import Hub

hub = Hub()
app = FastAPI(lifespan=hub.lifespan)
app.mount("/ws", hub)

@app.post("/say/{n}")
async def say(n: int):
    await hub.broadcast("said", n)
"""


@asynccontextmanager
async def plain_uvicorn(directory):
    """`uvicorn app:app` as a process of its own, in a directory, on a free port; yields it with its log."""
    log = directory / "log"
    command = [sys.executable, "-m", "uvicorn", "app:app", "--port", "0", "--no-access-log"]
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=directory, stdout=out, stderr=out)
    try:
        said = await eventually(
            lambda: re.search(r"running on http://\S+:(\d+)", log.read_text()), "uvicorn to start"
        )
        yield Served(int(said[1])), log
    finally:
        process.terminate()
        process.wait(DEADLINE)


async def test_a_broadcast_reaches_a_thousand_clients_and_a_hundred_that_vanish_harm_no_one(tmp_path):
    (tmp_path / "app.py").write_text(FOUR_LINES)
    events, clients, vanish = 60, 1000, 100
    async with plain_uvicorn(tmp_path) as (served, log), httpx2.AsyncClient(timeout=DEADLINE) as http:
        gate = asyncio.Semaphore(50)

        async def connect():
            async with gate:
                ws = await served.connect()
                await welcomed(ws)
                return ws

        async def listen(ws):
            heard = []
            while not heard or heard[-1] != events - 1:
                heard.append((await receive(ws, "event"))["data"])
            return heard

        sockets = await asyncio.gather(*(connect() for _ in range(clients)))
        listening = [asyncio.create_task(listen(ws)) for ws in sockets[vanish:]]
        for n in range(events):
            if n == events // 2:
                for ws in sockets[:vanish]:
                    ws.transport.abort()
            assert (await http.post(f"{served.http}/say/{n}")).status_code == 200
        for heard in await asyncio.gather(*listening):
            assert heard == list(range(events))
        gone = {"active_connections": clients - vanish, "connections_total": clients}
        async with asyncio.timeout(DEADLINE):
            while (stats := (await http.get(served.http + "/ws/stats")).json()) | gone != stats:
                await asyncio.sleep(0.05)
        assert stats["slow_clients"] == 0
        await asyncio.gather(*(ws.close() for ws in sockets[vanish:]))
    assert "Traceback" not in log.read_text()


async def parallel(served, path, times, at_once=50):
    """POST to a path so many times, with so many requests at once."""
    limits = httpx2.Limits(max_connections=at_once)
    async with httpx2.AsyncClient(timeout=DEADLINE, limits=limits) as client:
        answers = await asyncio.gather(*(client.post(f"{served.http}{path}/{n}") for n in range(times)))
    assert {answer.status_code for answer in answers} == {200}
    return [answer.json() for answer in answers]


async def test_def_endpoints_publish_under_fifty_parallel_requests():
    hub = Hub()
    app = lifespan_way(hub)

    @app.post("/emit/{n}")
    def emit(n: int):
        return hub.from_thread.broadcast("emitted", n).offset

    with serve(app) as served:
        async with served.connect() as ws:
            await welcomed(ws)
            offsets = await parallel(served, "/emit", 500)
            assert sorted(offsets) == list(range(1, 501))
            heard = [await receive(ws, "event") for _ in range(500)]
            assert {event["offset"]: event["data"] for event in heard} == {
                o: n for n, o in enumerate(offsets)
            }
            assert [event["offset"] for event in heard] == list(range(1, 501))


async def test_broadcast_nowait_from_every_kind_of_thread_at_once():
    hub = Hub(outbox_messages=10_000)  # the client shares its loop with a hundred requests
    app = lifespan_way(hub)

    @app.post("/loop/{n}")
    async def in_the_loop(n: int):
        for i in range(20):
            hub.broadcast_nowait("emitted", [f"loop {n}", i])

    @app.post("/worker/{n}")
    def in_a_worker(n: int):
        for i in range(20):
            hub.broadcast_nowait("emitted", [f"worker {n}", i])

    def in_a_thread(n):
        for i in range(200):
            hub.broadcast_nowait("emitted", [f"thread {n}", i])

    with serve(app) as served:
        async with served.connect() as ws:
            await welcomed(ws)
            expected = {f"{kind} {n}": list(range(20)) for kind in ("loop", "worker") for n in range(50)}
            expected |= {f"thread {n}": list(range(200)) for n in range(8)}
            emitting = asyncio.gather(
                parallel(served, "/loop", 50),
                parallel(served, "/worker", 50),
                *(asyncio.to_thread(in_a_thread, n) for n in range(8)),
            )
            heard = defaultdict(list)
            for _ in range(sum(map(len, expected.values()))):
                who, i = (await receive(ws, "event"))["data"]
                heard[who].append(i)  # each emitter's events are in its order
            assert heard == expected
            await emitting
            assert hub.stats()["publish_failed"] == 0
