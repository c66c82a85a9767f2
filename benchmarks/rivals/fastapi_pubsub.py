"""fastapi-websocket-pubsub: the client subscribes by RPC, and answers each delivery."""

from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, WebSocket
from fastapi_websocket_pubsub import PubSubEndpoint

from benchmarks.control import PORT, obeying

endpoint = PubSubEndpoint()


async def publish(channel: str, data: dict[str, Any]) -> None:
    await endpoint.publish([channel], data=data)


@asynccontextmanager
async def lifespan(_: FastAPI) -> Any:
    async with obeying(publish):
        yield


app = FastAPI(lifespan=lifespan)


@app.websocket("/pubsub")
async def listen(ws: WebSocket) -> None:
    await endpoint.main_loop(ws)


if __name__ == "__main__":
    uvicorn.run(app, port=PORT, log_level="warning")
