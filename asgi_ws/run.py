"""What exists between a start of the hub and its stop."""

import asyncio
import os
import time
from collections import Counter
from typing import Any

from asgi_ws import endings
from asgi_ws.broadcasters import Broadcaster
from asgi_ws.catchup import CatchUp
from asgi_ws.errors import RequestError
from asgi_ws.heartbeat import Heartbeat
from asgi_ws.inquiries import Inquiries
from asgi_ws.metrics import Metrics
from asgi_ws.node import Node
from asgi_ws.router import Router
from asgi_ws.session import Session
from asgi_ws.settings import Settings

# How long a stop waits for clients to answer the close frame, and then for what is aborted.
CLOSE_WAIT = 2.0
HEALTH_WAIT = 1.0


class Run:
    """The node, its sessions and their heartbeat, and what can be said of them."""

    def __init__(self, settings: Settings, router: Router, broadcaster: Broadcaster) -> None:
        self.settings = settings
        self.router = router
        self.metrics = Metrics()
        self.node = Node(broadcaster, self.metrics)
        self.inquiries = Inquiries(self.node.presence, self.metrics, settings.max_event_bytes)
        self.heartbeat = Heartbeat(settings.heartbeat, settings.send_timeout, self.node.pace, self.metrics)
        self.catch_up = CatchUp(self.node, router, settings)
        self.sessions: dict[str, Session] = {}
        self._started = time.monotonic()
        self._empty = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Run {len(self.sessions)} sessions {self.node!r}>"

    async def start(self) -> None:
        """Start the broadcaster; a hub that is disabled needs none."""
        if self.settings.enabled:
            await self.node.broadcaster.start(self.node)

    async def stop(self) -> None:
        """End every session, wait for the clients to answer, and let go of the broadcaster."""
        self.node.presence.stop()
        self.inquiries.stop()
        for session in tuple(self.sessions.values()):
            session.end(endings.RESTART)
        await self._until_empty()
        for session in tuple(self.sessions.values()):
            session.link.abort()
        await self._until_empty()
        await self.node.settle()
        if self.settings.enabled:
            await self.node.broadcaster.stop()

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
        return round(time.monotonic() - self._started, 3)

    def status(self) -> dict[str, Any]:
        """Return who is connected, as `/status` has it."""
        sessions = self.sessions.values()
        here = {"node": self.node.id, "pid": os.getpid(), "active_connections": len(sessions)}
        return {
            "status": "ok" if self.settings.enabled else "disabled",
            "node": self.node.id,
            "uptime": self.uptime,
            "active_connections": len(sessions),
            "connections": {"stream": 0, **Counter(session.kind for session in sessions)},
            "transports": {"websocket": 0, **Counter(session.transport for session in sessions)},
            "users": len({session.user for session in sessions} - {None}),
            "channels": len(self.node.fanout.topics),
            "subscriptions": self.node.fanout.subscriptions,
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
