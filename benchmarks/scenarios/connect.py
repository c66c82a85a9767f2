"""How fast a crowd gets in."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.crowd import Crowd
from benchmarks.meter import Meter
from benchmarks.plan import Plan
from benchmarks.scenario import Figure, Measure, Sample, Scenario, Variant
from benchmarks.server import Server


@asynccontextmanager
async def connect(server: Server, _: Plan, variant: Variant) -> AsyncIterator[Measure]:
    count = 2 * variant.number

    async def measure() -> Sample:
        with Meter(server) as meter:
            await crowd.join(count)
        return {"rate": count / meter.wall, "cpu": meter.cpu / count * 1e6, **meter.shares()}

    async with Crowd(server) as crowd:
        await crowd.join(count // 10)
        yield measure


CONNECT = Scenario(
    "connect",
    "handshakes, 64 on their way at once, until the client is welcome and subscribed",
    connect,
    (Figure("rate", "connects/s", 0), Figure("cpu", "µs CPU/connect", 0)),
    fresh=True,
)
