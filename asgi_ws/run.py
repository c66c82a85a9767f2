"""What exists between a start of the hub and its stop."""

import asyncio
import logging
import os
from collections import Counter
from contextvars import Context
from typing import Any

from asgi_ws import endings
from asgi_ws.auth import Authenticate
from asgi_ws.broadcasters import Broadcaster
from asgi_ws.catchup import CatchUp
from asgi_ws.clock import MACHINE, Clock
from asgi_ws.endings import Ending
from asgi_ws.endpoints import Endpoint
from asgi_ws.errors import RequestError
from asgi_ws.generators import Generators
from asgi_ws.heartbeat import Heartbeat
from asgi_ws.inquiries import Inquiries
from asgi_ws.messages import Unsubscribed
from asgi_ws.metrics import Metrics
from asgi_ws.node import Node
from asgi_ws.router import Router
from asgi_ws.session import Session
from asgi_ws.settings import Settings

logger = logging.getLogger("asgi_ws")

# How long a stop waits for clients to answer the close frame, then for what is aborted, and then for the
# application's last words.
CLOSE_WAIT = 2.0
UNSUBSCRIBED = "expected to stay subscribed, got unsubscribed by the server"
HEALTH_WAIT = 1.0


class Run:
    """The node, its sessions and their heartbeat, and what can be said of them."""

    def __init__(
        self, settings: Settings, router: Router, broadcaster: Broadcaster, clock: Clock = MACHINE
    ) -> None:
        self.settings = settings
        self.router = router
        self.clock = clock
        self.metrics = Metrics()
        self.node = Node(broadcaster, self.metrics, clock)
        self.inquiries = Inquiries(self.node.presence, self.metrics, settings.max_event_bytes)
        self.generators = Generators(self.node, settings.max_event_bytes)
        self.heartbeat = Heartbeat(settings.heartbeat, settings.send_timeout, self.node.pace, self.metrics)
        self.catch_up = CatchUp(self.node, router, settings)
        self.sessions: dict[str, Session] = {}
        self.closed = False
        self.told_bypassed = False
        self._goodbyes: set[asyncio.Task[None]] = set()
        self._started = clock.monotonic()
        self._empty = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Run {len(self.sessions)} sessions {self.node!r}>"

    async def start(self) -> None:
        """Start the broadcaster; a hub that is disabled needs none."""
        if self.settings.enabled:
            await self.node.broadcaster.start(self.node)

    async def close(self) -> None:
        """End every session, and wait for the clients to answer and for the application's last words."""
        self.closed = True
        self.node.presence.stop()
        self.inquiries.stop()
        for session in tuple(self.sessions.values()):
            session.end(endings.RESTART)
        await self._until_empty()
        for session in tuple(self.sessions.values()):
            session.link.abort()
        await self._until_empty()
        if self._goodbyes:
            await asyncio.wait(self._goodbyes, timeout=CLOSE_WAIT)
        for task in self._goodbyes:
            logger.warning("an on_disconnect did not end in %g s: cancelled", CLOSE_WAIT)
            task.cancel()
        if self._goodbyes:
            await asyncio.wait(self._goodbyes, timeout=CLOSE_WAIT)
        await self.generators.stop()

    async def stop(self) -> None:
        """Let go of the broadcaster, when the sessions are closed."""
        await self.node.settle()
        if self.settings.enabled:
            await self.node.broadcaster.stop()

    def authenticator(self, endpoint: Endpoint) -> Authenticate | None:
        """Return the application's function that says who a session of an endpoint is, if it has one."""
        return endpoint.authenticate or self.router.authenticator

    def say_goodbye(self, session: Session, ending: Ending) -> None:
        """Let the application's `on_disconnect` know; the stop waits for it."""
        if not self.router.hooks.disconnect:
            return
        goodbye = self.router.hooks.disconnected(session, ending, self.settings.command_timeout)
        task = asyncio.get_running_loop().create_task(goodbye, context=Context())
        self._goodbyes.add(task)
        task.add_done_callback(self._goodbyes.discard)

    def disconnect(self, user: str | None, session: str | None, ending: Ending) -> int:
        """End the sessions of a user, or one by its id; return how many there were."""
        if session is not None:
            found = self.sessions.get(session)
            chosen = [] if found is None else [found]
        else:
            chosen = [one for one in self.sessions.values() if one.user == user]
        return sum(one.end(ending) for one in chosen)

    def unsubscribe(self, channel: str, user: str) -> int:
        """Take a user's sessions out of a channel; return how many had it, or were about to."""
        count = 0
        for session in tuple(self.sessions.values()):
            if session.user == user and (held := session.subscriptions.pop(channel, None)):
                count += 1
                self.node.leave(held)
                if held.live:  # who is still joining is refused
                    session.tell(Unsubscribed(channel=channel, code="server", message=UNSUBSCRIBED))
        return count

    def add(self, session: Session) -> None:
        """Take in a session whose handshake is done."""
        self.sessions[session.id] = session
        self.heartbeat.add(session)
        self.metrics.connections_total += 1
        self.metrics.peak_connections = max(self.metrics.peak_connections, len(self.sessions))

    def remove(self, session: Session) -> None:
        """Let go of a session whose connection is gone."""
        del self.sessions[session.id]
        self.heartbeat.remove(session)
        self.catch_up.forget(session)
        for subscription in session.subscriptions.values():
            self.node.leave(subscription)
        if not self.sessions:
            self._empty.set()

    @property
    def uptime(self) -> float:
        """Seconds since the start."""
        return round(self.clock.monotonic() - self._started, 3)

    def status(self) -> dict[str, Any]:
        """Return who is connected, as `/status` has it."""
        sessions = self.sessions.values()
        here = {"node": self.node.id, "pid": os.getpid(), "active_connections": len(sessions)}
        return {
            "status": "ok" if self.settings.enabled else "disabled",
            "node": self.node.id,
            "uptime": self.uptime,
            "active_connections": len(sessions),
            "connections": {**self._kinds, **Counter(session.kind for session in sessions)},
            "transports": {"websocket": 0, **Counter(session.transport for session in sessions)},
            "users": len({session.user for session in sessions} - {None}),
            "channels": len(self.node.fanout.topics),
            "subscriptions": self.node.fanout.subscriptions,
            "active_sources": len(self.generators),
            "nodes": [{**here, "uptime": self.uptime}],
        }

    def stats(self) -> dict[str, Any]:
        """Return what was counted since the start, as `/stats` has it."""
        return self.metrics.stats(len(self.sessions))

    async def health(self) -> dict[str, Any]:
        """Ask the broadcaster, within a second, and return what `/health` answers."""
        round_trip = await self._round_trip() if self.settings.enabled else None
        connected = round_trip is not None
        healthy = "healthy" if connected else "unhealthy"
        return {
            "status": healthy if self.settings.enabled else "disabled",
            "broadcaster": {
                "kind": self.node.broadcaster.kind,
                "connected": connected,
                "round_trip_ms": None if round_trip is None else round(round_trip * 1000, 3),
            },
            "active_connections": len(self.sessions),
            "uptime": self.uptime,
        }

    @property
    def _kinds(self) -> dict[str, int]:
        return dict.fromkeys(["stream", *(endpoint.kind for endpoint in self.router.endpoints)], 0)

    async def _round_trip(self) -> float | None:
        try:
            async with asyncio.timeout(HEALTH_WAIT):
                return await self.node.broadcaster.ping()
        except (RequestError, OSError):  # TimeoutError is an OSError
            return None

    async def _until_empty(self) -> None:
        if not self.sessions:
            return
        self._empty.clear()
        try:
            async with asyncio.timeout(CLOSE_WAIT):
                await self._empty.wait()
        except TimeoutError:
            return
