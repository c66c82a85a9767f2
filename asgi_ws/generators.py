"""The sources that run on this node: one generator for each full name, however many watch.

The first who watches starts it, and the last who goes stops it: it is cancelled, and its `finally` runs.
Until that is over the name stays taken, so none runs twice; whoever comes meanwhile waits for the next one.
Events go from the generator to this node's sessions, past the broadcaster.
"""

import asyncio
import contextvars
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any, cast

from asgi_ws.codecs import encode_data
from asgi_ws.errors import LimitExceeded, Unavailable
from asgi_ws.messages import Unsubscribed
from asgi_ws.node import Node
from asgi_ws.publication import Publication
from asgi_ws.session import Session
from asgi_ws.sources import Source
from asgi_ws.topic import Subscription, Topic

logger = logging.getLogger("asgi_ws")

STOP_WAIT = 5.0  # seconds that a generator may take to stop before that is logged
# What a generator may yield in one turn of the loop; of less than that, a session's outbox has room.
_TURN_EVENTS = 100
_TURN_BYTES = 64 * 1024
_TURN_SECONDS = 0.001
_SHARE = 128  # sessions that are told something in one turn

_TEXTS = {
    "ended": "the source has ended",
    "failed": "the source failed, the server's log has the details; subscribing starts it anew",
}


class _Turn:
    """What a generator has yielded since it last let the loop have its turn."""

    __slots__ = ("_began", "_bytes", "_events")

    def __init__(self) -> None:
        self._began = 0.0
        self._events = self._bytes = 0

    def add(self, size: int) -> bool:
        """Count an event, and return whether it is time to give way: else nobody could write."""
        now = time.perf_counter()
        if not self._events:
            self._began = now
            asyncio.get_running_loop().call_soon(self._end)
        self._events += 1
        self._bytes += size
        much = self._events >= _TURN_EVENTS or self._bytes >= _TURN_BYTES
        return self._events > 1 and (much or now - self._began >= _TURN_SECONDS)

    def _end(self) -> None:
        self._events = self._bytes = 0


class Generator:
    """One source with one set of parameters, from its start until its `finally` is over.

    Args:
        channel: Its full name.
        params: Its parameters.
        max_bytes: `MAX_EVENT_BYTES`.
        gone: Is called when it is over.
    """

    def __init__(
        self,
        source: Source,
        channel: str,
        params: dict[str, Any],
        node: Node,
        *,
        max_bytes: int,
        gone: Callable[["Generator"], None],
    ) -> None:
        self.source = source
        self.channel = channel
        self.leaving = False  # nobody can join it any more
        self._params = params
        self._node = node
        self._max_bytes = max_bytes
        self._stopped = False
        self._turn = _Turn()
        self._overdue: asyncio.TimerHandle | None = None
        self._gone = gone
        # A context of its own: it must not work on behalf of whoever happened to come first.
        self.task = asyncio.get_running_loop().create_task(
            self._run(), name=f"source {channel}", context=contextvars.Context()
        )
        self.task.add_done_callback(self._finished)

    def __repr__(self) -> str:
        return f"<Generator {self.channel!r} {'leaving' if self.leaving else 'running'}>"

    def stop(self) -> None:
        """Cancel it: nobody watches any more. Idempotent."""
        if self.leaving:
            return
        self.leaving = self._stopped = True
        self._await_end()
        self.task.cancel()

    # In its own task.

    async def _run(self) -> None:
        items = self.source.function(**self._params)
        try:
            code = await self._relay(items)
            if code is not None:
                self.leaving = True
                self._await_end()
                await self._dismiss(code)
        finally:
            await self._close(items)

    async def _relay(self, items: AsyncGenerator[Any, None]) -> str | None:
        """Publish what it yields; return with which code it ended, `None` if it was stopped."""
        try:
            await self._publish_all(items)
        except asyncio.CancelledError as error:
            if self._stopped:
                raise
            self._log(error)  # what it awaited was cancelled, or somebody cancels every task
        except Exception as error:
            self._log(error)
        else:
            return None if self._stopped else "ended"
        return None if self._stopped else "failed"

    async def _publish_all(self, items: AsyncGenerator[Any, None]) -> None:
        async for item in items:
            if self._stopped:  # it has swallowed that it was cancelled
                return
            publication = self._publication(item)
            self._node.emit(publication)
            if self._turn.add(publication.size):
                await self._node.give_way()

    def _publication(self, item: Any) -> Publication:
        data, binary = encode_data(item, self._max_bytes)
        return Publication(
            channel=self.channel, event=self.source.event, data=data, time=time.time(), binary=binary
        )

    async def _dismiss(self, code: str) -> None:
        """Tell everyone who watches that it is over."""
        message = Unsubscribed(
            channel=self.channel, code=code, message=_TEXTS[code], resubscribe=code == "failed"
        )
        topic = self._node.fanout.topic(self.channel)  # it is there as long as somebody watches
        topic.flush()  # only now it is known who lags
        watching = [*topic.live.values(), topic.lagging]
        watchers = [subscription for by_session in watching for subscription in by_session.values()]
        for number, subscription in enumerate(watchers, 1):
            self._dismiss_one(topic, subscription, message)
            if not number % _SHARE:
                await asyncio.sleep(0)

    def _dismiss_one(self, topic: Topic, subscription: Subscription, message: Unsubscribed) -> None:
        session = cast("Session", subscription.subscriber)
        if session.subscriptions.get(self.channel) is not subscription:  # it has gone meanwhile
            return
        if topic.lags(subscription):
            topic.release(subscription)  # what it missed, or that it did, before it is over
        del session.subscriptions[self.channel]
        self._node.leave(subscription)
        session.tell(message)

    async def _close(self, items: AsyncGenerator[Any, None]) -> None:
        try:
            await items.aclose()
        except Exception as error:
            self._log(error)

    # Its end.

    def _await_end(self) -> None:
        self._overdue = asyncio.get_running_loop().call_later(STOP_WAIT, self._log_overdue)

    def _finished(self, task: asyncio.Task[None]) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log(error)
        self._gone(self)

    def _log(self, error: BaseException) -> None:
        logger.error("source %r failed", self.channel, exc_info=error)

    def _log_overdue(self) -> None:
        logger.error(
            "source %r has not stopped after %g s: its generator goes on although it is cancelled, or its "
            "finally takes long; until it has, nobody can watch it",
            self.channel,
            STOP_WAIT,
        )


class Generators:
    """The generators of one node."""

    def __init__(self, node: Node, max_bytes: int) -> None:
        self._node = node
        self._max_bytes = max_bytes
        self._running: dict[str, Generator] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._running)

    def __repr__(self) -> str:
        return f"<Generators {len(self)} running>"

    async def join(self, source: Source, params: dict[str, Any], subscription: Subscription) -> None:
        """Let a subscription watch a source, starting it if it is the first; no event comes before `admit`.

        Raises:
            LimitExceeded: `max_instances` of the source run already.
            Unavailable: The hub stops.
        """
        channel = subscription.channel
        while leaving := self._in_the_way(source, channel):
            await asyncio.wait(leaving, return_when=asyncio.FIRST_COMPLETED)
        if self._closed:
            raise Unavailable("expected a server that runs, got one that stops")
        # Who watches is there before the generator: it could not be stopped if nobody came.
        self._node.fanout.topic(channel).joining.add(subscription)
        if channel not in self._running:
            self._start(source, channel, params)

    async def stop(self) -> None:
        """Stop all of them, and wait for their `finally` as long as that may take; none starts after."""
        self._closed = True
        for generator in self._running.values():
            generator.stop()
        if self._running:
            await asyncio.wait(self._tasks(self._running.values()), timeout=STOP_WAIT)
        for generator in tuple(self._running.values()):
            logger.error(
                "source %r is left behind: it has not stopped after %g s", generator.channel, STOP_WAIT
            )

    def _in_the_way(self, source: Source, channel: str) -> list[asyncio.Task[None]]:
        """Return what has to end, one of them at least, before this name can be watched."""
        running = self._running.get(channel)
        if running is not None:
            return self._tasks([running] if running.leaving else [])
        others = [one for one in self._running.values() if one.source is source]
        if len(others) < source.max_instances:
            return []
        leaving = [one for one in others if one.leaving]
        if not leaving:
            limit = source.max_instances
            raise LimitExceeded(
                f"expected at most {limit} of source {source.name!r} to run (max_instances), got one more"
            )
        return self._tasks(leaving)

    def _start(self, source: Source, channel: str, params: dict[str, Any]) -> None:
        generator = Generator(
            source,
            channel,
            params,
            self._node,
            max_bytes=self._max_bytes,
            gone=self._forget,
        )
        self._running[channel] = generator
        self._node.vacated[channel] = generator.stop

    def _forget(self, generator: Generator) -> None:
        del self._running[generator.channel]
        del self._node.vacated[generator.channel]

    @staticmethod
    def _tasks(generators: Iterable[Generator]) -> list[asyncio.Task[None]]:
        return [generator.task for generator in generators]
