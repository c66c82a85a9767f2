"""The main job on every server: mount, publish, and every client hears every event in order."""

import asyncio

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from asgi_ws import Hub
from tests.servers import SERVERS, receive, serve, welcomed

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("server", SERVERS)
async def test_every_client_hears_every_event_in_order(server):
    hub = Hub()
    app = Starlette(routes=[Mount("/ws", hub)], lifespan=hub.lifespan)
    with serve(app, server) as served:
        async with served.connect() as one, served.connect() as two:
            await welcomed(one)
            await welcomed(two)
            for n in range(10):
                await asyncio.to_thread(hub.from_thread.broadcast, "tick", {"n": n})
            for ws in (one, two):
                heard = [(await receive(ws, "event"))["data"]["n"] for _ in range(10)]
                assert heard == list(range(10))
            assert served.get("/ws/status").json()["active_connections"] == 2
