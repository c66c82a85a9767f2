"""Time that passes when a test says so."""

import asyncio
import contextlib
import heapq
import itertools
from collections.abc import Callable, Iterator
from contextvars import Context
from typing import Any

from asgi_ws.broadcasters.memory import MemoryBroadcaster
from asgi_ws.clock import MACHINE
from asgi_ws.clock import Clock as MachineClock
from asgi_ws.hub import Hub
from asgi_ws.testing.rest import settle


class _Alarm:
    """A timer of a clock that is moved by hand."""

    __slots__ = ("args", "callback", "cancelled", "context")

    def __init__(
        self, callback: Callable[..., object], args: tuple[Any, ...], context: Context | None
    ) -> None:
        self.callback = callback
        self.args = args
        self.context = context
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Clock(MachineClock):
    """A clock that begins at the machine's time and stands still until it is moved."""

    __slots__ = ("_alarms", "_began", "_moved", "_order")

    def __init__(self) -> None:
        self._began = MACHINE.time(), MACHINE.monotonic()
        self._moved = 0.0
        self._alarms: list[tuple[float, int, _Alarm]] = []
        self._order = itertools.count()

    def __repr__(self) -> str:
        return f"<Clock moved by {self._moved:g} s, {len(self._alarms)} alarms>"

    def time(self) -> float:
        return self._began[0] + self._moved

    def monotonic(self) -> float:
        return self._began[1] + self._moved

    def call_later(
        self, seconds: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> _Alarm:
        alarm = _Alarm(callback, args, context)
        heapq.heappush(self._alarms, (self._moved + seconds, next(self._order), alarm))
        return alarm

    def timeout(self, seconds: float) -> asyncio.Timeout:
        deadline = asyncio.timeout(None)
        self.call_later(seconds, _expire, deadline)
        return deadline

    async def advance(self, seconds: float) -> None:
        """Let so much time pass: what falls due happens at its moment and in order, and is waited for.

        Raises:
            ValueError: Time does not go back.
        """
        if not seconds >= 0:
            raise ValueError(f"expected seconds to let pass, got {seconds!r}")
        end = self._moved + seconds
        await settle()
        while self._alarms and self._alarms[0][0] <= end:
            when, _, alarm = heapq.heappop(self._alarms)
            self._moved = max(self._moved, when)
            if not alarm.cancelled:
                asyncio.get_running_loop().call_soon(alarm.callback, *alarm.args, context=alarm.context)
                await settle()
        self._moved = end
        await settle()


@contextlib.contextmanager
def hub_time(hub: Hub) -> Iterator[Clock]:
    """Let a hub go by a clock of the test's, until the block ends.

    What it moves: `HISTORY_TTL` and keys with `memory://`, `HEARTBEAT`, `SEND_TIMEOUT`, `COMMAND_TIMEOUT`,
    and when identities expire. What it does not: your own `asyncio.sleep`, and brokers.

    Raises:
        RuntimeError: The hub has started already.
    """
    if hub._lifecycle.run is not None:
        raise RuntimeError(f"expected hub_time before the start of {hub!r}, got one that runs")
    clock, before = Clock(), hub.clock
    _set(hub, clock)
    try:
        yield clock
    finally:
        _set(hub, before)


def _set(hub: Hub, clock: MachineClock) -> None:
    hub.clock = clock
    if isinstance(hub._broadcaster, MemoryBroadcaster):
        hub._broadcaster.clock = clock.time


def _expire(deadline: asyncio.Timeout) -> None:
    with contextlib.suppress(RuntimeError):  # its block has ended
        deadline.reschedule(asyncio.get_running_loop().time())
