"""As many deliveries as a server can do, turn after turn."""

import time

from benchmarks.crowd import Crowd
from benchmarks.meter import Meter
from benchmarks.plan import Plan
from benchmarks.scenario import Sample


async def stream(crowd: Crowd, plan: Plan, **order: int) -> Sample:
    """Publish for the plan's time and return the server's CPU per delivery and deliveries per second.

    The next turn is ordered when all but one are delivered: so the server always has something to do, but
    no rival falls behind, nor joins into one write what several turns brought.
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
        turn = crowd.order(**order)
        deliveries += turn
        await crowd.finish(ahead=turn)
    await crowd.finish()
    return deliveries
