"""One channel that all sessions have: a message a turn, a hundred, and more and more sessions."""

from benchmarks.crowd import Crowd
from benchmarks.plan import Plan
from benchmarks.scenario import Figure, Sample, Scenario, Variant, as_planned
from benchmarks.server import Server
from benchmarks.stream import stream

FIGURES = (
    Figure("cpu", "µs CPU/delivery", 2),
    Figure("rate", "deliveries/s", 0),
    Figure("bytes", "bytes", 0),
)


async def fanout(server: Server, plan: Plan, variant: Variant) -> Sample:
    return await _deliver(server, plan, variant.number, per_turn=1)


async def burst(server: Server, plan: Plan, variant: Variant) -> Sample:
    return await _deliver(server, plan, variant.number, per_turn=100)


async def _deliver(server: Server, plan: Plan, sessions: int, per_turn: int) -> Sample:
    async with Crowd(server) as crowd:
        await crowd.join(sessions)
        await crowd.settle()
        return await stream(crowd, plan, per_turn=per_turn)


def _doubling(plan: Plan) -> tuple[Variant, ...]:
    sizes, size = [], plan.sessions
    while size <= plan.most_sessions:
        sizes.append(Variant(size, f"{size:,} sessions"))
        size *= 2
    return tuple(sizes)


FANOUT = Scenario("fanout", "all sessions hear one message per turn of the loop", fanout, FIGURES, as_planned)
BURST = Scenario("burst", "all sessions hear 100 messages per turn of the loop", burst, FIGURES, as_planned)
GROWTH = Scenario("growth", "fanout with 1,000 to 16,000 sessions", fanout, FIGURES, _doubling)
