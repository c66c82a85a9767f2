"""The other way: a request and its answer."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.client import Asker
from benchmarks.crowd import Crowd
from benchmarks.meter import Meter
from benchmarks.plan import Plan
from benchmarks.scenario import Figure, Measure, Sample, Scenario, Variant
from benchmarks.scenarios.latency import percentiles
from benchmarks.server import Server


@asynccontextmanager
async def inbound(server: Server, plan: Plan, variant: Variant) -> AsyncIterator[Measure]:
    async def measure() -> Sample:
        await crowd.ask(plan.warm_up)
        noted = crowd.tally.latencies = []
        with Meter(server) as meter:
            await crowd.ask(plan.seconds)
        cpu = meter.cpu / len(noted) * 1e6
        return {"cpu": cpu, "rate": len(noted) / meter.wall, **percentiles(noted), **meter.shares()}

    async with Crowd(server, role=Asker) as crowd:
        await crowd.join(variant.number)
        await crowd.settle()
        yield measure


INBOUND = Scenario(
    "inbound",
    "every session asks, waits for the answer, and asks again",
    inbound,
    (
        Figure("cpu", "µs CPU/request"),
        Figure("rate", "requests/s", 0),
        Figure("p50", "p50 ms"),
        Figure("p99", "p99 ms"),
    ),
)
