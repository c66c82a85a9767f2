"""What a scenario is."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple

from benchmarks.plan import Plan
from benchmarks.server import Server

Sample = dict[str, float]
Measure = Callable[[], Awaitable[Sample]]


class Figure(NamedTuple):
    """One number of a sample, and how people see it."""

    key: str
    heading: str
    digits: int = 1


class Variant(NamedTuple):
    """One size of a scenario that comes in several."""

    number: int
    label: str


def as_planned(plan: Plan) -> tuple[Variant, ...]:
    """Return the one size that most scenarios have: the plan's sessions."""
    return (Variant(plan.sessions, ""),)


class Scenario(NamedTuple):
    """A question to all rivals.

    Attributes:
        stage: Brings the clients to a server that has just started, and yields what measures once.
        figures: What is measured; the first is what it is about.
        variants: In which sizes it is asked.
        fresh: Whether each measurement needs a server that has just started.
        apart: Whether only one rival is there at a time, since its variants are large.
    """

    name: str
    about: str
    stage: Callable[[Server, Plan, Variant], AbstractAsyncContextManager[Measure]]
    figures: tuple[Figure, ...]
    variants: Callable[[Plan], tuple[Variant, ...]] = as_planned
    fresh: bool = False
    apart: bool = False
