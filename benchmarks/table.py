"""Results for the terminal."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.results import Case, Result
from benchmarks.scenario import Figure

# What says whether a run is worth anything: the share of the time that the server and the generator
# worked, and that another program had the server's core.
_SHARES = {"busy": "server", "generator": "generator", "stolen": "stolen"}


def render(result: Result) -> str:
    """Return a scenario's table."""
    first, *others = result.scenario.figures
    headings = [first.heading, "least", "most", "× first", *(figure.heading for figure in others)]
    rows = [["", *headings, *_SHARES.values()]]
    rows += [_row(result, case, first, others) for case in result.cases]
    title = f"{result.scenario.name}: {result.scenario.about}"
    return "\n".join([title, *_aligned(rows), *_voids(result)])


def render_bars(verdicts: Iterable[Mapping[str, Any]]) -> str:
    """Return which bars are kept."""
    rows = [["bar", "", "value", "expected", ""]]
    for verdict in verdicts:
        kept = "kept" if verdict["kept"] else "MISSED"
        name = f"{verdict['scenario']} {verdict['figure']}"
        rows.append([name, verdict["of"], f"{verdict['value']:.2f}", verdict["bar"], kept])
    return "\n".join(_aligned(rows))


def _row(result: Result, case: Case, first: Figure, others: Sequence[Figure]) -> list[str]:
    spread = case.spread(first.key)
    if spread is None:
        return [case.label, "void"]
    floor = result.floor(case)
    ratio = None if floor is None else case.ratio(floor, first.key)
    return [
        case.label,
        *(_number(value, first.digits) for value in spread),
        _number(ratio, 2),
        *(_median(case, figure.key, figure.digits) for figure in others),
        *(_share(case, key) for key in _SHARES),
    ]


def _median(case: Case, key: str, digits: int) -> str:
    spread = case.spread(key)
    return _number(None if spread is None else spread.median, digits)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _share(case: Case, key: str) -> str:
    spread = case.spread(key)
    return "" if spread is None else f"{spread.median:.0%}"


def _voids(result: Result) -> list[str]:
    return [
        f"  {case.label}: {len(case.voids)} of {len(case.samples)} rounds void: {case.voids[0]}"
        for case in result.cases
        if case.voids
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    columns = max(map(len, rows))
    whole = [[*row, *[""] * (columns - len(row))] for row in rows]
    widths = [max(len(row[column]) for row in whole) for column in range(columns)]
    return [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in whole
    ]
