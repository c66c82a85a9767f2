"""As many deliveries as a server can do, turn after turn."""

import time

from benchmarks.crowd import Crowd
from benchmarks.meter import Meter
from benchmarks.plan import Plan
from benchmarks.scenario import Sample

# The next round is ordered when all of the last one is delivered, so what is on its way is bounded: to
# about so much time, and so many messages for one session.
ROUND_SECONDS = 0.1
ROUND_MESSAGES = 300


async def stream(crowd: Crowd, plan: Plan, *, per_turn: int, channels: int = 0) -> Sample:
    """Publish for the plan's time and return the server's CPU per delivery and deliveries per second."""
    turns = await _warm_up(crowd, plan, per_turn, channels)
    deliveries = 0
    with Meter(crowd.server) as meter:
        end = time.monotonic() + plan.seconds
        while time.monotonic() < end:
            deliveries += await crowd.hear(turns=turns, per_turn=per_turn, channels=channels)
    return {
        "cpu": meter.cpu / deliveries * 1e6,
        "rate": deliveries / meter.wall,
        "bytes": crowd.tally.frame,
        "deliveries": deliveries,
        **meter.shares(),
    }


async def _warm_up(crowd: Crowd, plan: Plan, per_turn: int, channels: int) -> int:
    """Return how many turns make a round for this server."""
    turns, most = 1, max(1, ROUND_MESSAGES // (1 if channels else per_turn))
    end = time.monotonic() + plan.warm_up
    while time.monotonic() < end:
        begin = time.monotonic()
        await crowd.hear(turns=turns, per_turn=per_turn, channels=channels)
        each = (time.monotonic() - begin) / turns
        turns = min(most, max(1, int(ROUND_SECONDS / each)))
    return turns
