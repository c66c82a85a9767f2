"""What this project has promised itself, and whether a run keeps it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from benchmarks.results import Case, Result


class Side(NamedTuple):
    """A rival, in a variant if there are several: the first or the last."""

    rival: str
    variant: int = 0


class Bar(NamedTuple):
    """A case's figure against another's, or against nothing; at most or at least so much."""

    scenario: str
    key: str
    ours: Side
    theirs: Side | None
    most: float | None = None
    least: float | None = None

    def value(self, result: Result) -> float | None:
        """Return what is to be compared, `None` where a side did not take part."""
        ours = _find(result, self.ours)
        if ours is None:
            return None
        if self.theirs is None:
            spread = ours.spread(self.key)
            return None if spread is None else spread.median
        theirs = _find(result, self.theirs)
        return None if theirs is None else ours.ratio(theirs, self.key)

    def kept(self, value: float) -> bool:
        return (self.most is None or value <= self.most) and (self.least is None or value >= self.least)

    @property
    def bound(self) -> str:
        return f"≤ {self.most:g}" if self.most is not None else f"≥ {self.least:g}"


FAST, STOCK = Side("asgi_ws"), Side("asgi_ws_stock")
RAW, BUN = Side("raw"), Side("bun")

BARS = (
    Bar("fanout", "cpu", FAST, RAW, most=1.2),
    Bar("fanout", "cpu", FAST, BUN, most=1.2),
    Bar("fanout", "cpu", FAST, Side("broadcaster"), most=0.4),
    Bar("fanout", "cpu", STOCK, Side("starlette_queue"), most=0.65),
    Bar("fanout", "cpu", STOCK, Side("starlette_loop"), most=1.1),
    Bar("burst", "rate", FAST, BUN, least=2.5),
    Bar("memory", "kb", FAST, None, most=9),
    Bar("connect", "rate", FAST, Side("starlette_loop"), least=1.8),
    Bar("latency", "p99", FAST, RAW, most=1.3),
    Bar("channels", "cpu", Side("asgi_ws", -1), FAST, most=1.2),
    Bar("slow", "p99", Side("asgi_ws", -1), FAST, most=1.2),
    Bar("growth", "cpu", Side("asgi_ws", -1), FAST, most=1.15),
)


def verdicts(results: Mapping[str, Result]) -> list[dict[str, Any]]:
    """Return every bar that a run can speak of."""
    found = []
    for bar in BARS:
        value = bar.value(results[bar.scenario]) if bar.scenario in results else None
        if value is not None:
            found.append(_verdict(bar, value, results[bar.scenario]))
    return found


def _verdict(bar: Bar, value: float, result: Result) -> dict[str, Any]:
    sides = [_find(result, side) for side in (bar.ours, bar.theirs) if side is not None]
    return {
        "scenario": bar.scenario,
        "figure": bar.key,
        "of": " / ".join(case.label for case in sides if case is not None),
        "value": value,
        "bar": bar.bound,
        "kept": bar.kept(value),
    }


def _find(result: Result, side: Side) -> Case | None:
    found = [case for case in result.cases if case.rival.name == side.rival]
    return found[side.variant] if found else None
