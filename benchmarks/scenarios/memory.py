"""What a session costs that does nothing."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.crowd import Crowd
from benchmarks.plan import Plan
from benchmarks.scenario import Figure, Measure, Sample, Scenario, Variant
from benchmarks.server import Server


@asynccontextmanager
async def memory(server: Server, _: Plan, variant: Variant) -> AsyncIterator[Measure]:
    count = 2 * variant.number

    async def measure() -> Sample:
        before = server.memory()
        await crowd.join(count)
        await crowd.settle()
        return {"kb": (server.memory() - before) / count, "first": before / 1024}

    async with Crowd(server) as crowd:
        # The first ones fill the allocator's pools, and import what is imported late.
        await crowd.join(count // 10)
        await crowd.settle()
        yield measure


MEMORY = Scenario(
    "memory",
    "resident memory of an idle subscribed session, and of the server before them",
    memory,
    (Figure("kb", "kB/session"), Figure("first", "MB before", 0)),
    fresh=True,
)
