"""From publish to client, at a rate that a server should not notice."""

from benchmarks.crowd import Crowd
from benchmarks.meter import Meter
from benchmarks.plan import Plan
from benchmarks.scenario import Figure, Sample, Scenario, Variant, as_planned
from benchmarks.server import Server

DELIVERIES = 50_000  # a second

FIGURES = (Figure("p99", "p99 ms", 2), Figure("p50", "p50 ms", 2), Figure("max", "max ms", 2))


async def latency(server: Server, plan: Plan, variant: Variant) -> Sample:
    async with Crowd(server) as crowd:
        await crowd.join(variant.number)
        await crowd.settle()
        return await listen(crowd, plan, 2 * plan.seconds)


async def listen(crowd: Crowd, plan: Plan, seconds: float, **order: float) -> Sample:
    """Publish at the rate and return the percentiles, in milliseconds."""
    rate = DELIVERIES / len(crowd.clients)
    await crowd.hear(turns=max(1, int(plan.warm_up * rate)), rate=rate, **order)
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


LATENCY = Scenario("latency", "from publish to client at 50,000 deliveries/s", latency, FIGURES, as_planned)
