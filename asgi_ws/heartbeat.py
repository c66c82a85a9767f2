"""One timer for all sessions: pings, stuck writes, the loop's lag. It runs while there is a session."""

import asyncio
import math
from contextvars import Context
from typing import Protocol, cast

from asgi_ws.clock import Timer
from asgi_ws.metrics import Metrics
from asgi_ws.outbox import Pace, Writer

_TICK = 1.0


class Beating(Writer, Protocol):
    """Whose heart beats: a session."""

    def beat(self) -> None:
        """Show a sign of life and look for one; called once per interval."""

    def abort(self) -> None:
        """Be dropped, for its last write does not finish."""


class Heartbeat:
    """A wheel of slots, one a tick: each session beats once a turn, and not all at the same moment.

    Args:
        interval: Seconds between two beats of one session.
        send_timeout: Seconds that one write may take.
    """

    def __init__(self, interval: float, send_timeout: float, pace: Pace, metrics: Metrics) -> None:
        slots = math.ceil(interval / min(_TICK, send_timeout))
        self._tick = interval / slots
        self._slots: list[set[Beating]] = [set() for _ in range(slots)]
        self._slot_of: dict[Beating, set[Beating]] = {}
        self._hand = 0
        self._send_timeout = send_timeout
        self._pace = pace
        self._metrics = metrics
        self._timer: Timer | None = None

    def add(self, session: Beating) -> None:
        """Beat for a session, first one interval from now."""
        slot = self._slot_of[session] = self._slots[self._hand]
        slot.add(session)
        if self._timer is None:
            self._arm()

    def remove(self, session: Beating) -> None:
        """Stop beating for a session; the timer rests with the last one."""
        self._slot_of.pop(session).discard(session)
        if not self._slot_of and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        loop = asyncio.get_running_loop()
        # With no context: that of the request which has armed it would live as long as there are sessions.
        due = loop.time() + self._tick
        self._timer = self._pace.clock.call_later(self._tick, self._turn, due, context=Context())

    def _turn(self, due: float) -> None:
        self._metrics.loop_lag.append(max(0.0, asyncio.get_running_loop().time() - due))
        self._arm()
        self._hand = (self._hand + 1) % len(self._slots)
        for session in tuple(self._slots[self._hand]):
            session.beat()
        for writer in self._pace.stuck(self._send_timeout):
            cast("Beating", writer).abort()
