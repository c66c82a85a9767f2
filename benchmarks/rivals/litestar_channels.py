"""Litestar's channels plugin with the memory backend, and the WebSocket handler that it makes itself."""

from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from litestar import Litestar
from litestar.channels import ChannelsPlugin
from litestar.channels.backends.memory import MemoryChannelsBackend

from benchmarks.control import PORT, obeying
from benchmarks.message import BROADCAST

channels = ChannelsPlugin(
    backend=MemoryChannelsBackend(), channels=[BROADCAST], create_ws_route_handlers=True
)


async def publish(channel: str, data: dict[str, Any]) -> None:
    channels.publish(data, channel)


@asynccontextmanager
async def lifespan(_: Litestar) -> Any:
    async with obeying(publish):
        yield


app = Litestar(plugins=[channels], lifespan=[lifespan])

if __name__ == "__main__":
    uvicorn.run(app, port=PORT, log_level="warning")
