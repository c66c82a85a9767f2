"""A tenth more clients that never read: what do the others notice, and what does the server keep?"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.crowd import Crowd
from benchmarks.plan import Plan
from benchmarks.scenario import Figure, Measure, Sample, Scenario, Variant
from benchmarks.scenarios.latency import FIGURES, listen
from benchmarks.server import Server

# So that the outbox of a stuck session, 1 MiB by default, is full long before the end.
SIZE = 8192
TIMES = 10  # as long as other scenarios


@asynccontextmanager
async def slow(server: Server, plan: Plan, variant: Variant) -> AsyncIterator[Measure]:
    async def measure() -> Sample:
        before = server.memory()
        sample = await listen(readers, plan.warm_up, TIMES * plan.seconds, size=SIZE)
        return {**sample, "mb": (server.memory() - before) / 1024}

    async with Crowd(server) as readers, Crowd(server, small=True) as stuck:
        await readers.join(plan.sessions)
        await stuck.join(plan.sessions // 10)
        await readers.settle()
        if variant.number:
            stuck.stop_reading()
        yield measure


def _none_and_some(plan: Plan) -> tuple[Variant, ...]:
    return Variant(0, "none stuck"), Variant(plan.sessions // 10, f"{plan.sessions // 10:,} stuck")


SLOW = Scenario(
    "slow",
    "latency of 1,000 clients at 50,000 deliveries/s of 8 KiB, while none or 100 others never read",
    slow,
    (*FIGURES, Figure("mb", "MB grown", 0)),
    _none_and_some,
    fresh=True,
)
