"""From publish to client, at a rate that a server should not notice."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from benchmarks.crowd import Crowd
from benchmarks.meter import Meter
from benchmarks.plan import Plan
from benchmarks.scenario import Figure, Measure, Sample, Scenario, Variant
from benchmarks.server import Server

DELIVERIES = 50_000  # a second
TIMES = 3  # as long as other scenarios

FIGURES = (Figure("p99", "p99 ms", 2), Figure("p50", "p50 ms", 2), Figure("max", "max ms", 2))


@asynccontextmanager
async def latency(server: Server, plan: Plan, variant: Variant) -> AsyncIterator[Measure]:
    async with Crowd(server) as crowd:
        await crowd.join(variant.number)
        await crowd.settle()
        yield partial(listen, crowd, plan.warm_up, TIMES * plan.seconds)


async def listen(crowd: Crowd, warm_up: float, seconds: float, **order: float) -> Sample:
    """Publish at the rate and return the percentiles, in milliseconds."""
    rate = DELIVERIES / len(crowd.clients)
    await crowd.hear(turns=max(1, int(warm_up * rate)), rate=rate, **order)
    noted = crowd.tally.latencies = []
    with Meter(crowd.server) as meter:
        await crowd.hear(turns=max(1, int(seconds * rate)), rate=rate, **order)
    crowd.tally.latencies = None
    return {**percentiles(noted), **meter.shares()}


def percentiles(nanoseconds: list[int]) -> Sample:
    """Return p50, p99 and the most, in milliseconds."""
    nanoseconds.sort()
    last = len(nanoseconds) - 1
    return {
        "p50": nanoseconds[last // 2] / 1e6,
        "p99": nanoseconds[last * 99 // 100] / 1e6,
        "max": nanoseconds[last] / 1e6,
    }


LATENCY = Scenario("latency", "from publish to client at 50,000 deliveries/s", latency, FIGURES)
