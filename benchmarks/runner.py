"""Asks every rival in turn, round after round, so that what disturbs one disturbs all alike."""

import gc
import itertools
from collections.abc import Callable, Sequence

from benchmarks.plan import Plan
from benchmarks.results import Case, Result
from benchmarks.rivals import Rival
from benchmarks.scenario import Scenario
from benchmarks.stand import Stand


def cases(scenario: Scenario, rivals: Sequence[Rival], plan: Plan) -> list[Case]:
    """Return who takes part, in which variants."""
    taking_part = [rival for rival in rivals if scenario.name in rival.scenarios]
    return [Case(rival, variant) for rival in taking_part for variant in scenario.variants(plan)]


def rounds(scenario: Scenario, plan: Plan) -> int:
    """Return how often each case is measured."""
    return plan.fresh_rounds if scenario.fresh else plan.rounds


async def run(
    scenario: Scenario, rivals: Sequence[Rival], plan: Plan, done: Callable[[Case], None]
) -> Result:
    """Run a scenario; `done` hears of each round of each case."""
    result = Result(scenario, cases(scenario, rivals, plan))
    groups = itertools.groupby(result.cases, lambda case: case.rival.name if scenario.apart else "")
    for _, group in groups:
        stands = [Stand(scenario, case, plan) for case in group]
        try:
            for _ in range(rounds(scenario, plan)):
                await _round(stands, done)
        finally:
            for stand in stands:
                await stand.close()
    return result


async def _round(stands: Sequence[Stand], done: Callable[[Case], None]) -> None:
    for stand in stands:
        gc.collect()
        await stand.round()
        done(stand.case)
