"""One channel that all sessions have: a message a turn, a hundred, and more and more sessions."""

import resource
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

from benchmarks.crowd import Crowd
from benchmarks.plan import Plan
from benchmarks.scenario import Figure, Measure, Scenario, Variant
from benchmarks.server import Server
from benchmarks.stream import stream

_SPARE = 500  # files for all else

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
        sizes.append(size)
        size *= 2
    # All of them are up at once; where so many files are too many, the ends are what matters.
    while len(sizes) > 2 and sum(sizes) > _files() - _SPARE:
        del sizes[-2]
    return tuple(Variant(size, f"{size:,} sessions") for size in sizes)


def _files() -> int:
    """How many files this process may have open, once it has asked for all it can."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard


FANOUT = Scenario("fanout", "all sessions hear one message per turn of the loop", fanout, FIGURES)
BURST = Scenario("burst", "all sessions hear 100 messages per turn of the loop", burst, FIGURES)
GROWTH = Scenario("growth", "fanout with 1,000 to 16,000 sessions", fanout, FIGURES, _doubling, apart=True)
