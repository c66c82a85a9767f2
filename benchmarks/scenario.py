"""What a scenario is."""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from benchmarks.plan import Plan
from benchmarks.server import Server

Sample = dict[str, float]


class Figure(NamedTuple):
    """One number of a sample, and how people see it."""

    key: str
    heading: str
    digits: int = 1


class Variant(NamedTuple):
    """One size of a scenario that comes in several."""

    number: int
    label: str


class Scenario(NamedTuple):
    """A question to all rivals.

    Attributes:
        measure: Asks a server that has just started, in one variant.
        figures: What it measures; the first is what it is about.
        variants: In which sizes it is asked.
    """

    name: str
    about: str
    measure: Callable[[Server, Plan, Variant], Awaitable[Sample]]
    figures: tuple[Figure, ...]
    variants: Callable[[Plan], tuple[Variant, ...]]


def as_planned(plan: Plan) -> tuple[Variant, ...]:
    """Return the one size that most scenarios have: the plan's sessions."""
    return (Variant(plan.sessions, ""),)
