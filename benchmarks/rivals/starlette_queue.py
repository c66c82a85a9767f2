"""Starlette with a queue and a writer task for each connection, so that a stuck client stops nobody."""

import asyncio
import json
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from benchmarks.control import PORT, obeying

queues: set[asyncio.Queue[str]] = set()


async def listen(ws: WebSocket) -> None:
    await ws.accept()
    queue: asyncio.Queue[str] = asyncio.Queue(maxsize=1000)
    queues.add(queue)
    writer = asyncio.create_task(write(ws, queue))
    try:
        async for text in ws.iter_text():
            queue.put_nowait(text)
    finally:
        queues.discard(queue)
        writer.cancel()


async def write(ws: WebSocket, queue: asyncio.Queue[str]) -> None:
    while True:
        await ws.send_text(await queue.get())


async def publish(_: str, data: dict[str, Any]) -> None:
    text = json.dumps(data, separators=(",", ":"))
    for queue in queues:
        if not queue.full():  # the slow lose messages
            queue.put_nowait(text)


@asynccontextmanager
async def lifespan(_: Starlette) -> Any:
    async with obeying(publish):
        yield


app = Starlette(routes=[WebSocketRoute("/", listen)], lifespan=lifespan)

if __name__ == "__main__":
    uvicorn.run(app, port=PORT, log_level="warning")
