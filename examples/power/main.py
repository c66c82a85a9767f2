"""Live readings of a power meter: one measurement for each module and interval, however many watch it.

    uvicorn main:app --ws asgi_ws.server:WebSocketProtocol
    wscat -c 'ws://127.0.0.1:8000/ws/power?module=4&interval=0.5'

The meter is simulated; put your driver in its place.
"""

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
from fastapi import FastAPI

from asgi_ws import Hub, NotFound

MODULES = range(1, 9)
# No client can ask for a measurement that the meter cannot keep up with.
Interval = Annotated[float, msgspec.Meta(ge=0.05, le=3600)]


class Reading(msgspec.Struct):
    """Optical power in dBm, and when it was measured, in seconds since 1970."""

    module: int
    dbm: float
    at: float


class Meter:
    """One module of the meter, held by whoever measures, and by nobody else."""

    def __init__(self, module: int) -> None:
        self.module = module

    async def read(self) -> Reading:
        now = time.time()
        return Reading(self.module, -12 + math.sin(now) + random.gauss(0, 0.02), now)

    def close(self) -> None:
        """Let go of the module."""


hub = Hub()
app = FastAPI(lifespan=hub.lifespan)
app.mount("/ws", hub)


@hub.source("power", max_instances=64)
async def power(module: int, interval: Interval = 0.1) -> AsyncIterator[Reading]:
    """Measure until nobody watches any more."""
    meter = Meter(module)
    try:
        while True:
            yield await meter.read()
            await asyncio.sleep(interval)
    finally:
        meter.close()


@power.subscribe_right
async def may_watch(module: int) -> None:
    if module not in MODULES:
        raise NotFound(f"expected a module of {MODULES[0]} to {MODULES[-1]}, got {module}")


# /ws/power?module=4&interval=0.1 beside subscribing to "power?module=4&interval=0.1" on /ws/stream.
hub.endpoint("/power", source="power")
