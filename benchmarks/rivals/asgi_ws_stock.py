"""This project, on uvicorn as it comes: history and metrics on, the defaults throughout."""

from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from asgi_ws import Hub
from benchmarks.control import PORT, obeying
from benchmarks.order import Report

# Several of these at once are meant: each has clients of its own.
hub = Hub(broadcaster="memory://?workers=allow")
hub.channel("c:{n:int}", public=True)


async def publish(channel: str, data: dict[str, Any]) -> None:
    await hub.publish(channel, "order.shipped", data)


def report() -> Report:
    stats = hub.stats()
    return Report(dropped=stats["events_dropped"], slow=stats["slow_clients"])


@asynccontextmanager
async def lifespan(_: Starlette) -> Any:
    async with hub, obeying(publish, report):
        yield


app = Starlette(routes=[Mount("/ws", hub)], lifespan=lifespan)

if __name__ == "__main__":
    uvicorn.run(app, port=PORT, log_level="warning")
