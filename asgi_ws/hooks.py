"""What the application does when a session comes, and when it is gone."""

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from starlette.requests import HTTPConnection

from asgi_ws.endings import Ending
from asgi_ws.errors import NotRunning
from asgi_ws.handlers import name_of, within
from asgi_ws.session import Session

logger = logging.getLogger("asgi_ws")

OnConnect = Callable[[Session, HTTPConnection], Awaitable[None]]
OnDisconnect = Callable[[Session, int, str], Awaitable[None]]
F = TypeVar("F", bound=Callable[..., Awaitable[None]])


class Hooks:
    """The functions of `@hub.on_connect` and `@hub.on_disconnect`, in the order of their registration."""

    def __init__(self) -> None:
        self.connect: list[OnConnect] = []
        self.disconnect: list[OnDisconnect] = []

    def __bool__(self) -> bool:
        return bool(self.connect or self.disconnect)

    def __repr__(self) -> str:
        return f"<Hooks {len(self.connect)} on_connect, {len(self.disconnect)} on_disconnect>"

    def include(self, hooks: "Hooks") -> None:
        """Take in those of another."""
        self.connect += hooks.connect
        self.disconnect += hooks.disconnect

    async def disconnected(self, session: Session, ending: Ending, seconds: float) -> None:
        """Tell every function of a session that is gone; where one fails the next one is called."""
        for function in self.disconnect:
            try:
                await within(seconds, function(session, ending.code, ending.reason), session.clock)
            except NotRunning as error:  # what it has to say comes too late, as after any stop
                logger.warning("%s of session %s: %s", name_of(function), session.id, error)
            except Exception:
                logger.exception("%s of session %s failed", name_of(function), session.id)


def check_hook(function: F, what: str, *arguments: str) -> F:
    """Return a function, if it is async and takes these arguments; else `TypeError`."""
    checked: Any = function
    if not inspect.iscoroutinefunction(checked):
        raise TypeError(f"expected {what} to be async, got {name_of(function)}")
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        expected = ", ".join(arguments)
        raise TypeError(f"expected {what} to take {expected}, got {name_of(function)}: {error}") from error
    return function
