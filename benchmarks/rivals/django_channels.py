"""Django Channels on Daphne, a consumer in one group, the in-memory layer."""

import asyncio
import json
from typing import Any

import django
from django.conf import settings

settings.configure(
    INSTALLED_APPS=["channels"],
    CHANNEL_LAYERS={
        # More than its 100 messages a channel: what does not fit, it drops without a word.
        "default": {"BACKEND": "channels.layers.InMemoryChannelLayer", "CONFIG": {"capacity": 10_000}}
    },
)
django.setup()

from channels.generic.websocket import AsyncWebsocketConsumer  # noqa: E402
from channels.layers import get_channel_layer  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from daphne.endpoints import build_endpoint_description_strings  # noqa: E402
from daphne.server import Server  # noqa: E402
from django.urls import path  # noqa: E402

from benchmarks.control import PORT, obey  # noqa: E402
from benchmarks.message import BROADCAST  # noqa: E402


class Consumer(AsyncWebsocketConsumer):
    groups = (BROADCAST,)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        await self.send(text_data, bytes_data)

    async def order_shipped(self, event: dict[str, Any]) -> None:
        await self.send(text_data=event["text"])


async def publish(channel: str, data: dict[str, Any]) -> None:
    text = json.dumps(data, separators=(",", ":"))
    await get_channel_layer().group_send(channel, {"type": "order.shipped", "text": text})


app = ProtocolTypeRouter({"websocket": URLRouter([path("", Consumer.as_asgi())])})

if __name__ == "__main__":
    endpoints = build_endpoint_description_strings(host="127.0.0.1", port=PORT)
    server = Server(app, endpoints=endpoints, signal_handlers=False)
    tasks = []
    server.ready_callable = lambda: tasks.append(asyncio.ensure_future(obey(publish)))
    server.run()
