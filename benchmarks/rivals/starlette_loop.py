"""Starlette, as in every tutorial: a set of connections and a loop over it."""

import json
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from benchmarks.control import PORT, obeying

connections: set[WebSocket] = set()


async def listen(ws: WebSocket) -> None:
    await ws.accept()
    connections.add(ws)
    try:
        async for text in ws.iter_text():
            await ws.send_text(text)
    finally:
        connections.discard(ws)


async def publish(_: str, data: dict[str, Any]) -> None:
    text = json.dumps(data, separators=(",", ":"))
    for ws in tuple(connections):
        await ws.send_text(text)


@asynccontextmanager
async def lifespan(_: Starlette) -> Any:
    async with obeying(publish):
        yield


app = Starlette(routes=[WebSocketRoute("/", listen)], lifespan=lifespan)

if __name__ == "__main__":
    uvicorn.run(app, port=PORT, log_level="warning")
