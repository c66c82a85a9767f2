"""A server that publishes without pause, as a process of its own: `python -m tests.chaos uvicorn`.

It prints its port. `POST /go?rate=` begins to publish into every room in turn, `POST /halt` ends that and
says how much each room has had.
"""

import asyncio
import itertools
import socket
import sys
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from asgi_ws import Hub
from asgi_ws.server import WebSocketProtocol

ROOMS = 50
TICK = 0.01  # seconds
SERVERS: dict[str, Any] = {"uvicorn": "websockets-sansio", "fast": WebSocketProtocol}


class Load:
    """Publishes numbers: in each room they begin with 0, and the event's offset is one more."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.published = [0] * ROOMS
        self.task: asyncio.Task[None] | None = None

    async def go(self, request: Request) -> JSONResponse:
        self.task = asyncio.get_running_loop().create_task(self._publish(int(request.query_params["rate"])))
        return JSONResponse({})

    async def halt(self, _: Request) -> JSONResponse:
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait([self.task])
        return JSONResponse(self.published)

    async def _publish(self, rate: int) -> None:
        rooms = itertools.cycle(range(ROOMS))
        while True:
            await asyncio.sleep(TICK)
            # On a machine that is slow the rate is lower: nothing is made up for.
            for room in itertools.islice(rooms, max(1, int(rate * TICK))):
                await self.hub.publish(f"room:{room}", "tick", {"n": self.published[room], "pad": "x" * 40})
                self.published[room] += 1


def make_app() -> Starlette:
    hub = Hub(history=100_000, history_channel_bytes="4MiB", history_bytes="256MiB", history_ttl="1h")
    hub.channel("room:{n:int}", public=True)
    load = Load(hub)
    routes = [
        Mount("/ws", hub),
        Route("/go", load.go, methods=["POST"]),
        Route("/halt", load.halt, methods=["POST"]),
    ]
    return Starlette(routes=routes, lifespan=hub.lifespan)


def main(server: str) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        config = uvicorn.Config(
            make_app(), ws=SERVERS[server], log_level="warning", access_log=False, timeout_graceful_shutdown=1
        )
        print(listener.getsockname()[1], flush=True)
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main(sys.argv[1])
