"""Pings for every connection of a server that a hub has adopted, with one timer for all of them."""

import asyncio
import secrets
from contextvars import Context
from typing import Protocol

from asgi_ws.frames import header

_PING = 0x89  # FIN and the opcode
_TICK = 1.0
_MAX_SLOTS = 64


class Pinged(Protocol):
    """Who is pinged: a connection.

    Attributes:
        slot: Its place on the wheel; kept there, for a dictionary of all would be ten times as large.
    """

    slot: "set[Pinged] | None"

    def write(self, frames: bytes) -> None:
        """Write frames as they are."""

    def silent(self) -> None:
        """Learn that a ping was not answered in time."""


class Keepalive:
    """A wheel of slots, one a tick: each connection is pinged once a turn, and not all at the same moment.

    Args:
        interval: Seconds between two pings of one connection.
        timeout: Seconds within which it is to answer; `None`: it need not.
    """

    def __init__(self, interval: float, timeout: float | None) -> None:
        self._tick = max(min(_TICK, interval, timeout or interval), interval / _MAX_SLOTS)
        self._slots: list[set[Pinged]] = [set() for _ in range(max(1, round(interval / self._tick)))]
        self._hand = 0
        self._count = 0
        self._timeout = timeout
        # What the pings on their way carry, and until when they are to be answered; the oldest first.
        self._unanswered: dict[Pinged, tuple[bytes, float]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Keepalive {self._count} connections, {len(self._unanswered)} unanswered>"

    def add(self, connection: Pinged) -> None:
        """Ping a connection, first one interval from now."""
        connection.slot = self._slots[self._hand]
        connection.slot.add(connection)
        self._count += 1
        if self._timer is None:
            self._arm()

    def remove(self, connection: Pinged) -> None:
        """Ping a connection no more; the timer rests with the last one. Idempotent."""
        if connection.slot is None:
            return
        connection.slot.discard(connection)
        connection.slot = None
        self._unanswered.pop(connection, None)
        self._count -= 1
        if not self._count and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def answered(self, connection: Pinged, payload: bytes) -> None:
        """Take a pong; one that answers nothing is ignored."""
        payload_and_deadline = self._unanswered.get(connection)
        if payload_and_deadline is not None and payload_and_deadline[0] == payload:
            del self._unanswered[connection]

    def _arm(self) -> None:
        # With no context: that of the request which has armed it would live as long as there are connections.
        self._timer = asyncio.get_running_loop().call_later(self._tick, self._turn, context=Context())

    def _turn(self) -> None:
        self._arm()
        now = asyncio.get_running_loop().time()
        for connection in self._overdue(now):
            connection.silent()
        self._hand = (self._hand + 1) % len(self._slots)
        payload = secrets.token_bytes(4)
        frame = header(_PING, len(payload)) + payload
        for connection in tuple(self._slots[self._hand]):
            if connection in self._unanswered:
                continue
            if self._timeout is not None:
                self._unanswered[connection] = payload, now + self._timeout
            connection.write(frame)

    def _overdue(self, now: float) -> list[Pinged]:
        overdue = []
        for connection, (_, deadline) in self._unanswered.items():
            if deadline > now:
                break
            overdue.append(connection)
        return overdue
