"""The application's own functions: what they may ask for, checked when they are registered."""

import asyncio
import functools
import inspect
import types
import typing
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, TypeVar

from asgi_ws.clock import MACHINE, Clock
from asgi_ws.errors import Timeout
from asgi_ws.session import Session

T = TypeVar("T")


class Handler:
    """An async function and the parameters it takes: a `Session` by annotation, the others by name.

    Args:
        function: The application's.
        what: What it is called in errors, as in "the function of channel 'orders'".
        required: The names that it must take.
        optional: The names that it may take besides.

    Raises:
        TypeError: It is not async, or takes what cannot be given.
    """

    def __init__(
        self,
        function: Callable[..., Awaitable[Any]],
        what: str,
        *,
        required: Collection[str] = (),
        optional: Collection[str] = (),
    ) -> None:
        if not inspect.iscoroutinefunction(function):
            raise TypeError(f"expected {what} to be async, got {name_of(function)}")
        self.function = function
        self._session, self._names = _parameters(function, required, optional)

    def __repr__(self) -> str:
        return f"<Handler {name_of(self.function)}>"

    async def __call__(self, session: Session, params: Mapping[str, Any]) -> Any:
        """Call it with those of the parameters that it takes."""
        given = {name: params[name] for name in self._names}
        if self._session is not None:
            given[self._session] = session
        return await self.function(**given)


async def within(seconds: float, awaitable: Awaitable[T], clock: Clock = MACHINE) -> T:
    """Await what is the application's, but no longer than that.

    Raises:
        Timeout: It took longer.
        RuntimeError: Not we are cancelled: what it awaited was.
    """
    try:
        async with clock.timeout(seconds) as deadline:
            return await awaitable
    except TimeoutError as error:
        if not deadline.expired():
            raise
        raise Timeout(f"expected an answer within {seconds:g} s, got none") from error
    except asyncio.CancelledError as error:
        if (task := asyncio.current_task()) is None or task.cancelling():
            raise
        raise RuntimeError("what the application's function awaited was cancelled") from error


def _parameters(
    function: Callable[..., Any], required: Collection[str], optional: Collection[str]
) -> tuple[str | None, list[str]]:
    """Check that every parameter can be given; return which one is the session, and the others."""
    sessions: list[str] = []
    names: list[str] = []
    hints = hints_of(function)
    for parameter in inspect.signature(function).parameters.values():
        by_name = parameter.kind is not parameter.POSITIONAL_ONLY
        if is_session(hints.get(parameter.name)) and by_name and not sessions:
            sessions.append(parameter.name)
        elif by_name and parameter.name in (*required, *optional):
            names.append(parameter.name)
        else:
            expected = ", ".join(["a Session", *required, *optional])
            raise TypeError(
                f"expected the parameters of {name_of(function)} to be {expected}, got {parameter}"
            )
    missing = set(required) - set(names)
    if missing:
        raise TypeError(f"expected {name_of(function)} to take {', '.join(sorted(missing))}, got none")
    return (sessions[0] if sessions else None), names


def is_session(hint: object) -> bool:
    """Whether a parameter is annotated as a `Session`."""
    return hint is Session or hint == "Session"


def hints_of(function: Callable[..., Any], *, extras: bool = False) -> dict[str, Any]:
    """Return a function's annotations, as types where they can be had; `extras`: `Annotated` stays."""
    while isinstance(function, functools.partial):
        function = function.func
    try:
        return typing.get_type_hints(function, include_extras=extras)
    except NameError:  # an annotation that only a type checker can see
        return {name: _hint(function, name, extras=extras) for name in function.__annotations__}


def _hint(function: Callable[..., Any], name: str, *, extras: bool) -> Any:
    hint = function.__annotations__[name]
    alone = types.SimpleNamespace(__annotations__={name: hint})
    try:
        names = inspect.unwrap(function).__globals__
        return typing.get_type_hints(alone, names, include_extras=extras)[name]
    except NameError:
        return hint


def name_of(function: object) -> str:
    """Return what a function is called in errors."""
    return getattr(function, "__qualname__", repr(function))
