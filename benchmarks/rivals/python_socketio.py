"""python-socketio: everyone is in one room, `emit` goes to all."""

from contextlib import asynccontextmanager
from typing import Any

import socketio
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from benchmarks.control import PORT, obeying

sio = socketio.AsyncServer(async_mode="asgi", cors_allowed_origins=[])


@sio.event
async def echo(_: str, data: Any) -> Any:
    return data


async def publish(channel: str, data: dict[str, Any]) -> None:
    await sio.emit(channel, data)


@asynccontextmanager
async def lifespan(_: Starlette) -> Any:
    async with obeying(publish):
        yield


app = Starlette(routes=[Mount("/", socketio.ASGIApp(sio))], lifespan=lifespan)

if __name__ == "__main__":
    uvicorn.run(app, port=PORT, log_level="warning")
