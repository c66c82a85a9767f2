"""encode/broadcaster with `memory://`, its README's chat room."""

import json
from contextlib import asynccontextmanager
from typing import Any

import anyio
import uvicorn
from broadcaster import Broadcast
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from benchmarks.control import PORT, obeying
from benchmarks.message import BROADCAST

broadcast = Broadcast("memory://")


async def listen(ws: WebSocket) -> None:
    await ws.accept()
    async with anyio.create_task_group() as tasks:

        async def receive() -> None:
            async for text in ws.iter_text():
                await broadcast.publish(BROADCAST, text)
            tasks.cancel_scope.cancel()

        tasks.start_soon(receive)
        await send(ws)


async def send(ws: WebSocket) -> None:
    async with broadcast.subscribe(channel=BROADCAST) as subscriber:
        async for event in subscriber:
            await ws.send_text(event.message)


async def publish(channel: str, data: dict[str, Any]) -> None:
    await broadcast.publish(channel, json.dumps(data, separators=(",", ":")))


@asynccontextmanager
async def lifespan(_: Starlette) -> Any:
    async with broadcast, obeying(publish):
        yield


app = Starlette(routes=[WebSocketRoute("/", listen)], lifespan=lifespan)

if __name__ == "__main__":
    uvicorn.run(app, port=PORT, log_level="warning")
