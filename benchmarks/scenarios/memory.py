"""What a session costs that does nothing."""

import asyncio

from benchmarks.crowd import Crowd
from benchmarks.plan import Plan
from benchmarks.scenario import Figure, Sample, Scenario, Variant, as_planned
from benchmarks.server import Server

CALM = 0.5  # seconds until nothing of the handshakes is left


async def memory(server: Server, _: Plan, variant: Variant) -> Sample:
    count = 2 * variant.number
    async with Crowd(server) as crowd:
        # The first ones fill the allocator's pools, and import what is imported late.
        await crowd.join(count // 10)
        await asyncio.sleep(CALM)
        before = server.memory()
        await crowd.join(count)
        await asyncio.sleep(CALM)
        crowd.tally.check()
        return {"kb": (server.memory() - before) / count, "first": before / 1024}


MEMORY = Scenario(
    "memory",
    "resident memory of an idle subscribed session, and of the server before them",
    memory,
    (Figure("kb", "kB/session"), Figure("first", "MB before", 0)),
    as_planned,
)
