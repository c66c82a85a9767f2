"""Awaitables whose first step is taken where they are called: most need no second, and so no task."""

from asyncio import CancelledError
from collections.abc import Awaitable, Generator
from contextvars import Context
from types import CoroutineType
from typing import Any


class Suspended:
    """An awaitable that was begun and had to wait; awaited in a task, it goes on from there."""

    __slots__ = ("_error", "_steps", "_waits_for")

    def __init__(self, steps: Generator[Any, Any, None], waits_for: Any) -> None:
        self._steps = steps
        self._waits_for = waits_for
        self._error: BaseException | None = None

    def interrupt(self, error: BaseException) -> "Suspended":
        """Have it go on with an error raised where it waits, as a task does that is cancelled there."""
        self._error = error
        return self

    def __await__(self) -> Generator[Any, Any, None]:
        try:
            waits_for = self._waits_for if self._error is None else self._steps.throw(self._error)
            while True:
                try:
                    value = yield waits_for
                except BaseException as error:
                    waits_for = self._steps.throw(error)
                else:
                    waits_for = self._steps.send(value)
        except StopIteration:
            return


class Failed:
    """An awaitable that failed in its first step: awaited, it raises that."""

    __slots__ = ("_error",)

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def interrupt(self, _: BaseException) -> "Failed":
        """It has ended already."""
        return self

    def __await__(self) -> Generator[Any, Any, None]:
        raise self._error
        yield


Rest = Suspended | Failed


def begin(awaitable: Awaitable[None], context: Context | None = None) -> Rest | None:
    """Take the first step; return what is left to await, `None` if that was all.

    What asks for the current task in this step finds the caller's: enter the one that is to go on, and give
    its context.
    """
    steps: Any = awaitable if type(awaitable) is CoroutineType else awaitable.__await__()
    try:
        waits_for = steps.send(None) if context is None else context.run(steps.send, None)
    except StopIteration:
        return None
    except (Exception, CancelledError) as error:
        return Failed(error)
    return Suspended(steps, waits_for)


async def finish(rest: Rest) -> None:
    """Take the other steps, in a task."""
    await rest
