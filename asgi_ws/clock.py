"""The time that a hub goes by: an object, so that a test can bring one that it moves by hand."""

import asyncio
import time
from collections.abc import Callable
from contextvars import Context
from typing import Any, Protocol


class Timer(Protocol):
    """What `Clock.call_later` returns."""

    def cancel(self) -> None:
        """Do not call it, unless it was called already. Idempotent."""


class Clock:
    """The machine's own time."""

    __slots__ = ()

    def time(self) -> float:
        """Return seconds since 1970."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds since some moment; they never go back."""
        return time.monotonic()

    def call_later(
        self, seconds: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Timer:
        """Call a function in the running loop when so much time has passed; as `loop.call_later`."""
        return asyncio.get_running_loop().call_later(seconds, callback, *args, context=context)

    def timeout(self, seconds: float) -> asyncio.Timeout:
        """Return `asyncio.timeout`, by this clock."""
        return asyncio.timeout(seconds)


MACHINE = Clock()
