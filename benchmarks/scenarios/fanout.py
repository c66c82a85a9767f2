"""One channel that all sessions have: a message a turn, a hundred, and more and more sessions."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

from benchmarks.crowd import Crowd
from benchmarks.plan import Plan
from benchmarks.scenario import Figure, Measure, Scenario, Variant
from benchmarks.server import Server
from benchmarks.stream import stream

FIGURES = (
    Figure("cpu", "µs CPU/delivery", 2),
    Figure("rate", "deliveries/s", 0),
    Figure("bytes", "bytes", 0),
)

Stage = AbstractAsyncContextManager[Measure]


def fanout(server: Server, plan: Plan, variant: Variant) -> Stage:
    return _stage(server, plan, variant.number, per_turn=1)


def burst(server: Server, plan: Plan, variant: Variant) -> Stage:
    return _stage(server, plan, variant.number, per_turn=100)


@asynccontextmanager
async def _stage(server: Server, plan: Plan, sessions: int, per_turn: int) -> AsyncIterator[Measure]:
    async with Crowd(server) as crowd:
        await crowd.join(sessions)
        await crowd.settle()
        yield partial(stream, crowd, plan, per_turn=per_turn)


def _doubling(plan: Plan) -> tuple[Variant, ...]:
    sizes, size = [], plan.sessions
    while size <= plan.most_sessions:
        sizes.append(Variant(size, f"{size:,} sessions"))
        size *= 2
    return tuple(sizes)


FANOUT = Scenario("fanout", "all sessions hear one message per turn of the loop", fanout, FIGURES)
BURST = Scenario("burst", "all sessions hear 100 messages per turn of the loop", burst, FIGURES)
GROWTH = Scenario("growth", "fanout with 1,000 to 16,000 sessions", fanout, FIGURES, _doubling, apart=True)
