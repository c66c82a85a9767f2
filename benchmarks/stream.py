"""As many deliveries as a server can do, turn after turn."""

import time

from benchmarks.crowd import Crowd
from benchmarks.meter import Meter
from benchmarks.plan import Plan
from benchmarks.scenario import Sample


async def stream(crowd: Crowd, plan: Plan, *, per_turn: int, channels: int = 0) -> Sample:
    """Publish for a moment and return the server's CPU per delivery, and deliveries per second.

    A turn is ordered while the last one is being delivered, and no earlier: the server always has
    something to do, and nobody reads or writes as one what several turns have brought.
    """
    await _play(crowd, plan.warm_up, per_turn, channels)
    with Meter(crowd.server) as meter:
        deliveries = await _play(crowd, plan.seconds, per_turn, channels)
    return {
        "cpu": meter.cpu / deliveries * 1e6,
        "rate": deliveries / meter.wall,
        "bytes": crowd.tally.size,
        "deliveries": deliveries,
        **meter.shares(),
    }


async def _play(crowd: Crowd, seconds: float, per_turn: int, channels: int) -> int:
    end, deliveries = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        turn = crowd.order(per_turn=per_turn, channels=channels)
        deliveries += turn
        await crowd.finish(ahead=turn)
    await crowd.finish()
    return deliveries
