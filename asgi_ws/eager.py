"""Awaitables whose first step is taken where they are called: most need no second, and so no task."""

from collections.abc import Awaitable, Generator
from typing import Any


class Suspended:
    """An awaitable that was begun and had to wait; awaited in a task, it goes on from there."""

    __slots__ = ("_steps", "_waits_for")

    def __init__(self, steps: Generator[Any, Any, None], waits_for: Any) -> None:
        self._steps = steps
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, None]:
        waits_for = self._waits_for
        try:
            while True:
                try:
                    value = yield waits_for
                except BaseException as error:
                    waits_for = self._steps.throw(error)
                else:
                    waits_for = self._steps.send(value)
        except StopIteration:
            return


def begin(awaitable: Awaitable[None]) -> Suspended | None:
    """Take the first step; return what is left to await, `None` if that was all.

    What asks for the current task in this step finds the caller's: enter the one that is to go on.
    """
    steps = awaitable.__await__()
    try:
        waits_for = next(steps)
    except StopIteration:
        return None
    return Suspended(steps, waits_for)
