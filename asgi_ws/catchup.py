"""Sessions that fell behind in a channel, brought back as their clients read again.

Whoever lags holds nothing of what it misses. When all that it had is written, it is fed from history: one
stretch, and the next when that is written, until there is no more; then it is live again, without a seam.
What history no longer has is a `gap`, with the channel's state where it has a snapshot. Replays are fed the
same way.
"""

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import Any

from asgi_ws.channels import Channel
from asgi_ws.eager import begin, finish
from asgi_ws.handlers import within
from asgi_ws.node import Join, Node
from asgi_ws.router import Router
from asgi_ws.session import Session
from asgi_ws.settings import Settings
from asgi_ws.snapshots import Carried, align, take
from asgi_ws.topic import Subscription, Topic, gap

logger = logging.getLogger("asgi_ws")

SLICE = 0.005  # seconds
# How long to leave a broker alone that could not be read.
PAUSE = 1.0


class CatchUp:
    """Feeds the sessions of a run that lag behind."""

    def __init__(self, node: Node, router: Router, settings: Settings) -> None:
        self._node = node
        self._router = router
        self._settings = settings
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
        if topic is not None and subscription.position is None:  # there is no history to read
            topic.release(subscription)
            self._next(session)
            return
        if found is None or topic is None:  # it has left the channel
            self._next(session)
            return
        feeding = self._feed(session, subscription, topic, *found)
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
        self,
        session: Session,
        subscription: Subscription,
        topic: Topic,
        channel: Channel,
        params: dict[str, Any],
    ) -> None:
        try:
            if not await self._feed_from_history(session, subscription, topic, channel):
                await self._lose(session, subscription, topic, channel, params)
        except Exception:
            logger.warning("channel %r could not be read from history", topic.channel, exc_info=True)
            self._again(session, subscription)
            await asyncio.sleep(PAUSE)
        if session not in self._tasks:
            self._next(session)

    async def _feed_from_history(
        self, session: Session, subscription: Subscription, topic: Topic, channel: Channel
    ) -> bool:
        """Go on with one that lags; return whether nothing is lost for it."""
        assert subscription.position is not None
        if not topic.lags(subscription):  # it has left before this task began
            return True
        topic.hold(subscription)  # what is published while history is read
        stretch = await self._node.stretch(topic.channel, subscription.position, channel.retention)
        if not topic.lags(subscription):
            return True
        if stretch is None:
            return False
        if stretch.more or subscription.overrun:
            self._again(session, subscription)
            topic.feed(subscription, stretch.publications)
        else:
            topic.admit(subscription, subscription.position, stretch.publications)
        return True

    async def _lose(
        self,
        session: Session,
        subscription: Subscription,
        topic: Topic,
        channel: Channel,
        params: dict[str, Any],
    ) -> None:
        """Say what is lost, with the channel's state, and let it hear what follows that."""
        join = Join(await self._node.broadcaster.position(topic.channel), [], None)
        state = Carried()
        if channel.has_snapshot:
            join, state = await self._state(session, subscription, channel, params, join)
        if topic.lags(subscription):
            session.tell(gap(topic.channel, join.position, data=state.data, binary=state.binary))
            more = join.more or subscription.overrun
            topic.admit(subscription, join.position, join.missed, more=more)

    async def _state(
        self,
        session: Session,
        subscription: Subscription,
        channel: Channel,
        params: dict[str, Any],
        join: Join,
    ) -> tuple[Join, Carried]:
        await asyncio.sleep(0)  # from here on in a task: the application's function may need one

        async def ask() -> tuple[Join, Carried]:
            state = await take(session, channel, params, self._settings.max_event_bytes)
            return await align(self._node, channel, subscription, join, state), state

        try:
            return await within(self._settings.command_timeout, ask(), self._node.pace.clock)
        except Exception:
            logger.exception("the snapshot of channel %r failed; its gap has none", subscription.channel)
            return join, Carried()

    def _again(self, session: Session, subscription: Subscription) -> None:
        if session.lagging is not None:
            session.lagging.append(subscription)
