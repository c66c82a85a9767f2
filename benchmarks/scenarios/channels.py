"""The same deliveries over few channels and over many: what nobody publishes to must cost nothing."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from benchmarks.crowd import Crowd
from benchmarks.plan import Plan
from benchmarks.scenario import Measure, Scenario, Variant
from benchmarks.scenarios.fanout import FIGURES
from benchmarks.server import Server
from benchmarks.stream import stream

SUBSCRIBERS = 10  # of each channel
SUBSCRIPTIONS = 100  # of each session, where there are many


@asynccontextmanager
async def channels(server: Server, plan: Plan, variant: Variant) -> AsyncIterator[Measure]:
    # A neighbourhood is as many channels as give each session one; each turn publishes to one of them.
    neighbourhood = plan.sessions // SUBSCRIBERS

    def subscribed(session: int) -> list[str]:
        return [f"c:{n}" for n in range(session % neighbourhood, variant.number, neighbourhood)]

    async with Crowd(server) as crowd:
        await crowd.join(plan.sessions, subscribed)
        await crowd.settle()
        yield partial(stream, crowd, plan, per_turn=neighbourhood, channels=variant.number)


def _few_and_many(plan: Plan) -> tuple[Variant, ...]:
    few = plan.sessions // SUBSCRIBERS
    many = few * SUBSCRIPTIONS
    return Variant(few, f"{few:,} channels"), Variant(many, f"{many:,} channels")


CHANNELS = Scenario(
    "channels",
    "10 sessions a channel, 100 channels a turn: sessions with 1 subscription each, and with 100",
    channels,
    FIGURES,
    _few_and_many,
)
