"""Sessions that fell behind in a channel, brought back as their clients read again.

Whoever lags holds nothing of what it misses. When all that it had is written, it is fed from history: one
stretch, and the next when that is written, until there is no more; then it is live again, without a seam.
What history no longer has is a `gap`. Replays are fed the same way.
"""

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import Any

from asgi_ws.channels import Channel
from asgi_ws.eager import begin, finish
from asgi_ws.node import Node
from asgi_ws.router import Router
from asgi_ws.session import Session
from asgi_ws.topic import Subscription, Topic

logger = logging.getLogger("asgi_ws")

SLICE = 0.005  # seconds
# How long to leave a broker alone that could not be read.
PAUSE = 1.0


class CatchUp:
    """Feeds the sessions of a run that lag behind."""

    def __init__(self, node: Node, router: Router) -> None:
        self._node = node
        self._router = router
        self._ready: dict[Session, None] = {}
        self._tasks: dict[Session, asyncio.Task[None]] = {}
        self._scheduled = False

    def __repr__(self) -> str:
        return f"<CatchUp {len(self._ready)} ready, {len(self._tasks)} being fed>"

    def drained(self, session: Session) -> None:
        """Learn that a session that lags has written all it had."""
        self._ready[session] = None
        self._schedule()

    def forget(self, session: Session) -> None:
        """Let go of a session that is no more."""
        self._ready.pop(session, None)
        if (task := self._tasks.pop(session, None)) is not None:
            task.cancel()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        end = time.perf_counter() + SLICE
        for session in tuple(self._ready):
            if time.perf_counter() >= end:
                self._schedule()
                return
            del self._ready[session]
            self._serve(session)

    def _serve(self, session: Session) -> None:
        if not session.idle or not session.lagging or session in self._tasks:
            return
        subscription = session.lagging.pop(0)
        found, topic = self._router.find(subscription.channel), self._topic(subscription)
        if found is None or topic is None:  # it has left the channel
            self._next(session)
            return
        feeding = self._feed(session, subscription, topic, found[0])
        # A history that is at hand needs no task.
        if not self._node.broadcaster.embedded:
            self._spawn(session, feeding)
        elif (rest := begin(feeding)) is not None:
            self._spawn(session, finish(rest))

    def _topic(self, subscription: Subscription) -> Topic | None:
        topic = self._node.fanout.topics.get(subscription.channel)
        return topic if topic is not None and topic.lags(subscription) else None

    def _next(self, session: Session) -> None:
        if session.lagging and session.idle:
            self.drained(session)

    def _spawn(self, session: Session, feeding: Coroutine[Any, Any, None]) -> None:
        def fed(task: asyncio.Task[None]) -> None:
            if self._tasks.get(session) is task:
                del self._tasks[session]
                self._next(session)

        task = self._tasks[session] = asyncio.get_running_loop().create_task(feeding)
        task.add_done_callback(fed)

    async def _feed(
        self, session: Session, subscription: Subscription, topic: Topic, channel: Channel
    ) -> None:
        try:
            await self._feed_from_history(session, subscription, topic, channel)
        except Exception:
            logger.warning("channel %r could not be read from history", topic.channel, exc_info=True)
            self._again(session, subscription)
            await asyncio.sleep(PAUSE)
        if session not in self._tasks:
            self._next(session)

    async def _feed_from_history(
        self, session: Session, subscription: Subscription, topic: Topic, channel: Channel
    ) -> None:
        if subscription.position is None:
            topic.release(subscription)
            return
        topic.hold(subscription)  # what is published while history is read
        stretch = await self._node.stretch(topic.channel, subscription.position, channel.retention)
        if not topic.lags(subscription):
            return
        if stretch is None:
            await self._lose(subscription, topic)
        elif stretch.more or subscription.overrun:
            self._again(session, subscription)
            topic.feed(subscription, stretch.publications)
        else:
            topic.admit(subscription, subscription.position, stretch.publications)

    async def _lose(self, subscription: Subscription, topic: Topic) -> None:
        position = await self._node.broadcaster.position(topic.channel)
        if topic.lags(subscription):
            topic.lose(subscription, position)

    def _again(self, session: Session, subscription: Subscription) -> None:
        if session.lagging is not None:
            session.lagging.append(subscription)
