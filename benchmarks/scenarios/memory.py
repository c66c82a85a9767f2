"""What a session costs that does nothing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.crowd import Crowd
from benchmarks.plan import Plan
from benchmarks.scenario import Figure, Measure, Sample, Scenario, Variant
from benchmarks.server import Server

CALM = 0.5  # seconds until nothing of the handshakes is left


@asynccontextmanager
async def memory(server: Server, _: Plan, variant: Variant) -> AsyncIterator[Measure]:
    count = 2 * variant.number

    async def measure() -> Sample:
        before = server.memory()
        await crowd.join(count)
        await asyncio.sleep(CALM)
        crowd.tally.check()
        return {"kb": (server.memory() - before) / count, "first": before / 1024}

    async with Crowd(server) as crowd:
        # The first ones fill the allocator's pools, and import what is imported late.
        await crowd.join(count // 10)
        await asyncio.sleep(CALM)
        yield measure


MEMORY = Scenario(
    "memory",
    "resident memory of an idle subscribed session, and of the server before them",
    memory,
    (Figure("kb", "kB/session"), Figure("first", "MB before", 0)),
    fresh=True,
)
