"""Starlette's TestClient, and other tests that run no server: with a lifespan and without."""

import asyncio
import gc
import logging
import threading

import httpx2
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from asgi_ws import Hub, HubMiddleware, NotRunning, WrongLoop

pytestmark = pytest.mark.anyio

LAZY = "starts on its first use"


def with_lifespan(hub):
    app = FastAPI(lifespan=hub.lifespan)
    app.mount("/ws", hub)
    return add_routes(app, hub)


def with_middleware(hub):
    app = FastAPI()
    app.add_middleware(HubMiddleware, hub=hub)
    return add_routes(app, hub)


def bare(hub):
    app = FastAPI()
    app.mount("/ws", hub)
    return add_routes(app, hub)


def add_routes(app, hub):
    @app.post("/say/{text}")
    async def say(text: str):
        return await hub.broadcast("said", text)

    @app.post("/def/{text}")
    def say_in_a_thread(text: str):
        return hub.from_thread.broadcast("said", text)

    @app.post("/nowait/{text}")
    async def say_nowait(text: str):
        hub.broadcast_nowait("said", text)

    return app


every_way = pytest.mark.parametrize("way", [with_lifespan, with_middleware, bare])


def welcomed(ws):
    """Read the welcome, and return what the session's own channel begins with."""
    assert ws.receive_json()["type"] == "welcome"
    message = ws.receive_json()
    assert (message["type"], message["channel"]) == ("subscribed", "broadcast")
    return message


def heard(ws):
    message = ws.receive_json()
    assert message["type"] == "event"
    return message["data"]


@every_way
def test_with_a_lifespan_everything_works(way):
    hub = Hub()
    with TestClient(way(hub)) as client, client.websocket_connect("/ws/stream") as ws:
        welcomed(ws)
        for path in ("/say", "/def", "/nowait"):
            assert client.post(f"{path}/hi").status_code == 200
            assert heard(ws) == "hi"
        # The test is a thread beside the loop: it publishes as any thread does.
        assert hub.from_thread.broadcast("said", "from the test").offset == 4
        assert heard(ws) == "from the test"
        hub.broadcast_nowait("said", "nowait")
        assert heard(ws) == "nowait"
        ws.send_json({"type": "ping", "ref": 1})
        assert ws.receive_json() == {"type": "pong", "ref": 1}
        assert client.get("/ws/status").json()["active_connections"] == 1


@every_way
def test_without_a_lifespan_the_hub_starts_itself_and_says_so(way, caplog):
    caplog.set_level(logging.INFO, "asgi_ws")
    hub = Hub()
    client = TestClient(way(hub))
    # Each request has a loop of its own, so a life of its own.
    assert client.post("/say/hi").json()["offset"] == 1
    assert client.post("/def/hi").json()["offset"] == 1
    assert client.get("/ws/health").json()["status"] == "healthy"
    with client.websocket_connect("/ws/stream") as ws:
        assert welcomed(ws)["offset"] == 0
        hub.from_thread.broadcast("said", "from the test")
        assert heard(ws) == "from the test"
    assert client.get("/ws/status").json()["active_connections"] == 0
    said = [record.getMessage() for record in caplog.records if record.name == "asgi_ws"]
    assert len(said) == 5
    assert all(LAZY in message for message in said)


@every_way
def test_without_a_lifespan_a_second_loop_is_told_to_enter_the_client(way):
    client = TestClient(way(Hub()))
    expected = r"with TestClient\(app\)"
    with client.websocket_connect("/ws/stream") as ws:  # its loop is open until it is closed
        welcomed(ws)
        with pytest.raises(WrongLoop, match=expected):
            client.post("/say/hi")
        for path in ("health", "status"):
            assert client.get(f"/ws/{path}").status_code == 503
            assert "with TestClient(app)" in client.get(f"/ws/{path}").text
        with client.websocket_connect("/ws/stream") as other, pytest.raises(WebSocketDisconnect) as closed:
            other.receive_json()
        assert closed.value.code == 1013
        client.post("/nowait/hi")  # which any thread may
        assert heard(ws) == "hi"
    assert client.post("/say/hi").status_code == 200


@every_way
def test_inside_with_another_open_loop_is_told_what_to_use(way):
    hub = Hub()
    with TestClient(way(hub)) as client:
        if way is bare:
            client.get("/ws/health")  # starts it
        for _ in range(2):
            with pytest.raises(WrongLoop, match=r"with TestClient\(app\).*from_thread.*publish_nowait"):
                asyncio.run(hub.broadcast("said", "hi"))
        assert client.post("/say/hi").json()["offset"] == 1


@pytest.mark.parametrize("way", [with_lifespan, with_middleware])
def test_every_with_is_a_start_and_what_comes_between_is_not_running(way):
    hub = Hub()
    app = way(hub)
    epochs = set()
    for _ in range(3):
        with TestClient(app) as client, client.websocket_connect("/ws/stream?resume=.0.broadcast") as ws:
            before = welcomed(ws)
            assert before["offset"] == 0
            epochs.add(before["epoch"])
            assert client.post("/say/hi").json() == {"epoch": before["epoch"], "offset": 1}
            assert heard(ws) == "hi"
        with pytest.raises(NotRunning):
            hub.stats()
        with pytest.raises(NotRunning):
            hub.from_thread.broadcast("said", "hi")
    assert len(epochs) == 3


def test_after_a_stop_it_is_not_running_until_the_next_start():
    hub = Hub()

    async def main():
        async with hub:
            await hub.broadcast("said", "hi")
        for publish in (hub.broadcast("said", "hi"), hub.publish_to_user("7", "said", "hi")):
            with pytest.raises(NotRunning, match="after its stop"):
                await publish
        transport = httpx2.ASGITransport(bare(hub))
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            assert (await client.get("/ws/health")).status_code == 503
            async with hub:
                assert (await client.get("/ws/health")).status_code == 200
                assert (await client.post("/say/hi")).json()["offset"] == 1

    asyncio.run(main())


async def test_httpx_without_a_server_starts_it(caplog):
    caplog.set_level(logging.INFO, "asgi_ws")
    hub = Hub()
    before = asyncio.all_tasks()
    transport = httpx2.ASGITransport(bare(hub))
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
        for n in range(3):
            assert (await client.post("/say/hi")).json()["offset"] == n + 1
        assert (await client.get("/ws/stats")).json()["events_emitted"] == 3
    assert [LAZY in record.getMessage() for record in caplog.records if record.name == "asgi_ws"] == [True]
    assert asyncio.all_tasks() == before


@every_way
@pytest.mark.parametrize("entered", [True, False])
def test_a_test_that_leaves_its_websocket_open_leaves_nothing_behind(way, entered, caplog):
    hub = Hub()
    threads = threading.active_count()
    client = TestClient(way(hub))
    if entered:
        with client:
            session = client.websocket_connect("/ws/stream").__enter__()
            welcomed(session)
            client.post("/say/hi")
            session.__exit__(None, None, None)
    else:
        session = client.websocket_connect("/ws/stream").__enter__()
        welcomed(session)
        hub.broadcast_nowait("said", "hi")
        session.__exit__(None, None, None)
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []
    assert threading.active_count() == threads


# ENABLED=false.


@every_way
@pytest.mark.parametrize("refuse", ["close", "http"])
def test_a_disabled_hub_refuses_sessions_and_publishes_nothing(way, refuse):
    hub = Hub(enabled=False, refuse=refuse)
    with TestClient(way(hub)) as client:
        if refuse == "close":
            with client.websocket_connect("/ws/stream") as ws, pytest.raises(WebSocketDisconnect) as closed:
                ws.receive_json()
            assert (closed.value.code, closed.value.reason) == (1013, "disabled (ASGI_WS_ENABLED)")
        else:
            with pytest.raises(WebSocketDenialResponse) as denied, client.websocket_connect("/ws/stream"):
                pass
            assert denied.value.status_code == 503
            assert denied.value.json() == {"code": "unavailable", "message": "disabled (ASGI_WS_ENABLED)"}
        for path in ("/say", "/def", "/nowait"):
            assert client.post(f"{path}/hi").json() is None
        health = client.get("/ws/health")
        assert (health.status_code, health.json()["status"]) == (200, "disabled")
        assert client.get("/ws/status").json()["status"] == "disabled"
        assert client.get("/ws/stats").json()["events_emitted"] == 0


async def test_publishing_on_a_disabled_hub_checks_nothing_and_needs_no_start():
    hub = Hub(enabled=False)
    for _ in range(2):
        assert await hub.broadcast("no event's name", object()) is None
        assert await hub.publish("declared by nothing", "tick", 1) is None
        assert await hub.publish_to_user("7", "tick", 1, key="") is None
        assert hub.broadcast_nowait("no event's name", object()) is None
        async with hub:
            pass


async def test_from_thread_on_a_disabled_hub_needs_no_start():
    hub = Hub(enabled=False)
    for _ in range(2):
        assert await asyncio.to_thread(hub.from_thread.broadcast, "no event's name", object()) is None
        async with hub:
            pass


def test_an_app_mounted_beside_it_is_as_it_was():
    app = Starlette(
        routes=[Mount("/ws", Hub(enabled=False)), Mount("/other", with_lifespan(Hub(namespace="other")))]
    )
    with TestClient(app) as client:
        assert client.get("/ws/health").json()["status"] == "disabled"
        assert client.get("/other/ws/health").json()["status"] == "healthy"
