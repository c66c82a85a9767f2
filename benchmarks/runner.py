"""Asks every rival in turn, round after round, so that what disturbs one disturbs all alike."""

import gc
from collections.abc import Callable, Sequence

from benchmarks.plan import Plan
from benchmarks.results import Case, Result
from benchmarks.rivals import Rival
from benchmarks.scenario import Sample, Scenario
from benchmarks.server import running
from benchmarks.void import Void


def cases(scenario: Scenario, rivals: Sequence[Rival], plan: Plan) -> list[Case]:
    """Return who takes part, in which variants."""
    taking_part = [rival for rival in rivals if scenario.name in rival.scenarios]
    return [Case(rival, variant) for rival in taking_part for variant in scenario.variants(plan)]


async def run(
    scenario: Scenario, rivals: Sequence[Rival], plan: Plan, done: Callable[[Case], None]
) -> Result:
    """Run a scenario; `done` hears of each round of each case."""
    result = Result(scenario, cases(scenario, rivals, plan))
    for _ in range(plan.rounds):
        for case in result.cases:
            await _round(scenario, case, plan)
            done(case)
    return result


async def _round(scenario: Scenario, case: Case, plan: Plan) -> None:
    gc.collect()
    try:
        case.add(await _sample(scenario, case, plan))
    except (Void, OSError) as why:
        case.void(str(why) or repr(why))


async def _sample(scenario: Scenario, case: Case, plan: Plan) -> Sample:
    async with running(case.rival) as server:
        sample = await scenario.measure(server, plan, case.variant)
        report = await server.report()
    if scenario.name != "slow" and (report.dropped or report.slow):
        raise Void(f"the server dropped {report.dropped} messages and gave up {report.slow} sessions")
    return sample
