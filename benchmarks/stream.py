"""As many deliveries as a server can do, turn after turn."""

import time

from benchmarks.crowd import Crowd
from benchmarks.meter import Meter
from benchmarks.plan import Plan
from benchmarks.scenario import Sample


async def stream(crowd: Crowd, plan: Plan, **order: int) -> Sample:
    """Publish for the plan's time and return the server's CPU per delivery and deliveries per second.

    The next turn is ordered when all of the last one is delivered: so nobody falls behind, and nobody joins
    into one write what several turns brought.
    """
    await _play(crowd, plan.warm_up, order)
    with Meter(crowd.server) as meter:
        deliveries = await _play(crowd, plan.seconds, order)
    return {
        "cpu": meter.cpu / deliveries * 1e6,
        "rate": deliveries / meter.wall,
        "deliveries": deliveries,
        **meter.shares(),
    }


async def _play(crowd: Crowd, seconds: float, order: dict[str, int]) -> int:
    end, deliveries = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        deliveries += await crowd.hear(**order)
    return deliveries
