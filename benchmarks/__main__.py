"""`python -m benchmarks`: run them, show them, write them down."""

import asyncio
import gc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
import uvloop

from benchmarks import bars, chart, machine, runner, table
from benchmarks.plan import Plan
from benchmarks.results import Result
from benchmarks.rivals import RIVALS, Rival, find
from benchmarks.scenario import Scenario
from benchmarks.scenarios import SCENARIOS

_DEFAULT = Plan()


def _named(_: click.Context, __: click.Parameter, value: str | None) -> Sequence[Rival]:
    try:
        return RIVALS if value is None else [find(name.strip()) for name in value.split(",")]
    except KeyError as unknown:
        known = ", ".join(rival.name for rival in RIVALS)
        raise click.BadParameter(f"expected some of {known}, got {unknown}") from None


@click.command()
@click.argument("scenario", nargs=-1, type=click.Choice(list(SCENARIOS)))
@click.option("--list", "listing", is_flag=True, help="Show the scenarios and rivals, and run nothing.")
@click.option("--rivals", metavar="A,B", callback=_named, help="Only these; ratios are to the first of them.")
@click.option(
    "--json",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write results and, beside them, the chart (.svg).",
)
@click.option("--quick", is_flag=True, help="Small and short: shows that all works, not how well.")
@click.option("--sessions", type=click.IntRange(10), help=f"Default: {_DEFAULT.sessions}.")
@click.option("--rounds", type=click.IntRange(1), help=f"Default: {_DEFAULT.rounds}.")
@click.option(
    "--seconds", type=click.FloatRange(0.01), help=f"A round's length; default: {_DEFAULT.seconds:g}."
)
def main(
    scenario: Sequence[str],
    listing: bool,
    rivals: Sequence[Rival],
    file: Path | None,
    quick: bool,
    **numbers: Any,
) -> None:
    """Measure what a broadcast costs the server, here and elsewhere: all scenarios, or those named."""
    if listing:
        _list()
        return
    plan = _DEFAULT.quick() if quick else _DEFAULT
    plan = plan._replace(**{name: number for name, number in numbers.items() if number is not None})
    chosen = [SCENARIOS[name] for name in scenario or SCENARIOS]
    _run(chosen, _installed(rivals), plan, file)


def _list() -> None:
    click.echo("Scenarios:")
    for scenario in SCENARIOS.values():
        click.echo(f"  {scenario.name:<18}{scenario.about}")
    click.echo("\nRivals:")
    for rival in RIVALS:
        click.echo(f"  {rival.name:<18}{rival.about}")
        if rival.missing:
            click.echo(f"  {'':<18}not installed: {rival.missing}")


def _installed(rivals: Sequence[Rival]) -> list[Rival]:
    for rival in rivals:
        if rival.missing:
            click.echo(f"{rival.name} is not installed: {rival.missing}")
    return [rival for rival in rivals if not rival.missing]


def _run(scenarios: Sequence[Scenario], rivals: Sequence[Rival], plan: Plan, file: Path | None) -> None:
    machine.allow_many_files()
    os.sched_setaffinity(0, {machine.GENERATOR_CORE})
    gc.disable()
    begin = machine.describe()
    results = {scenario.name: _measure(scenario, rivals, plan) for scenario in scenarios}
    verdicts = bars.verdicts(results)
    if verdicts:
        click.echo(table.render_bars(verdicts))
    if file is not None:
        record = _record(begin, rivals, plan, results, verdicts)
        file.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
        file.with_suffix(".svg").write_text(chart.render(results.values()))


def _measure(scenario: Scenario, rivals: Sequence[Rival], plan: Plan) -> Result:
    length = plan.rounds * len(runner.cases(scenario, rivals, plan))
    with click.progressbar(
        length=length, label=f"{scenario.name:<9}", show_pos=True, item_show_func=str
    ) as bar:
        coroutine = runner.run(scenario, rivals, plan, lambda case: bar.update(1, case.label))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
            result = loop.run(coroutine)
    click.echo(table.render(result) + "\n")
    return result


def _record(
    begin: dict[str, Any],
    rivals: Sequence[Rival],
    plan: Plan,
    results: dict[str, Result],
    verdicts: list[Any],
) -> dict[str, Any]:
    return {
        "machine": begin,
        "versions": machine.versions(sorted({name for rival in rivals for name in rival.distributions}))
        | {rival.name: rival.version() for rival in rivals if rival.version()},
        "missing": {rival.name: rival.missing for rival in RIVALS if rival.missing},
        "plan": plan._asdict(),
        "scenarios": {name: result.record() for name, result in results.items()},
        "bars": verdicts,
    }


if __name__ == "__main__":
    main()
