"""How fast a crowd gets in."""

from benchmarks.crowd import Crowd
from benchmarks.meter import Meter
from benchmarks.plan import Plan
from benchmarks.scenario import Figure, Sample, Scenario, Variant, as_planned
from benchmarks.server import Server


async def connect(server: Server, _: Plan, variant: Variant) -> Sample:
    count = 2 * variant.number
    async with Crowd(server) as crowd:
        await crowd.join(count // 10)
        with Meter(server) as meter:
            await crowd.join(count)
        return {"rate": count / meter.wall, "cpu": meter.cpu / count * 1e6, **meter.shares()}


CONNECT = Scenario(
    "connect",
    "handshakes, 64 on their way at once, until the client is welcome and subscribed",
    connect,
    (Figure("rate", "connects/s", 0), Figure("cpu", "µs CPU/connect", 0)),
    as_planned,
)
