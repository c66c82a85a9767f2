"""An async iterable into a channel with history, such as a language model's answer that survives a reload.

The first event is `start`, the last `end` or `failed`. Between them come the items, those of some
milliseconds joined into one event. The caller's task reads, for an iterable may belong to it; a task of the
feed's own publishes, and goes on to say `failed` when the caller is cancelled. Between the two is a bounded
buffer: an iterable that is faster than its publisher waits.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator
from itertools import groupby
from typing import Any

from asgi_ws.broadcasters.memory import PUBLICATION_BYTES
from asgi_ws.channels import Channel
from asgi_ws.errors import BadRequest, TooLarge

logger = logging.getLogger("asgi_ws")

START, END, FAILED = "start", "end", "failed"
JOIN = 0.02  # seconds within which items are joined
MAX_ITEMS = 256  # that wait to be published
CANCEL_WAIT = 1.0  # seconds that a caller who is cancelled waits until that is said

Publish = Callable[[str, Any], Awaitable[int]]


class Feed:
    """One iterable on its way into one channel.

    Args:
        name: The channel's name.
        channel: Its declaration.
        event: What the items' events are called.
        publish: Publishes an event with its data, and returns the bytes that it has in history.
        max_bytes: `HISTORY_CHANNEL_BYTES`.

    Raises:
        BadRequest: The event's name is none, or is one that the feed uses by itself.
        Undeclared: The channel does not list one of the events.
        TypeError: The channel's `start`, `end` or `failed` has data of a type that `None` is not.
    """

    def __init__(self, name: str, channel: Channel, event: str, publish: Publish, max_bytes: int) -> None:
        _check_event(event)
        channel.check_event_name(event)
        for own in (START, END, FAILED):
            channel.check_event(own, None)
        self._name = name
        self._channel = channel
        self._event = event
        self._publish = publish
        self._max_bytes = max_bytes
        self._items: list[Any] = []
        self._last: str | None = None
        self._some = asyncio.Event()  # there is an item, or no more will come
        self._hurry = asyncio.Event()  # the buffer is full, or no more will come
        self._room = asyncio.Event()  # set by the publisher: not before `start` is published
        self._events = self._bytes = 0
        self._began = time.monotonic()
        self._outgrown = False
        self._reader: asyncio.Task[Any] | None = None
        self._interrupted = False

    def __repr__(self) -> str:
        return f"<Feed into {self._name!r}, {self._events} events, {len(self._items)} items waiting>"

    async def run(self, items: AsyncIterable[Any], keep: Callable[[asyncio.Task[None]], None]) -> None:
        """Publish all of it; what the iterable raises is raised again once `failed` is published.

        Args:
            items: What is to be read.
            keep: Takes the publisher's task, which may outlive a caller that is cancelled.
        """
        reader = self._reader = _this_task()
        publisher = asyncio.get_running_loop().create_task(self._publish_all())
        publisher.add_done_callback(self._published)
        keep(publisher)
        cancelling = reader.cancelling()
        try:
            await self._read(items, publisher)
        except BaseException as error:
            self._finish(FAILED)
            if self._interrupted and reader.uncancel() <= cancelling and not isinstance(error, Exception):
                publisher.result()
            wait = None if isinstance(error, Exception) else CANCEL_WAIT
            await asyncio.wait([publisher], timeout=wait)  # it goes on by itself
            raise
        self._finish(END)
        if self._interrupted:
            reader.uncancel()
        await asyncio.shield(publisher)

    # Reading, in the caller's task.

    async def _read(self, items: AsyncIterable[Any], publisher: asyncio.Task[None]) -> None:
        await self._room.wait()
        iterator = aiter(items)
        async with _closing(iterator):
            async for item in iterator:
                if publisher.done():  # and the iterable has swallowed that it was cancelled
                    publisher.result()
                self._put(item)
                await self._room.wait()

    def _put(self, item: Any) -> None:
        self._items.append(item)
        self._some.set()
        if len(self._items) >= MAX_ITEMS:
            self._room.clear()
            self._hurry.set()

    def _finish(self, last: str) -> None:
        self._last = last
        self._some.set()
        self._hurry.set()

    # Publishing, in a task of its own.

    async def _publish_all(self) -> None:
        try:
            await self._say(START)
            self._room.set()
            while await self._publish_next():
                pass
            assert self._last is not None
            await self._say(self._last)
        except Exception:
            if self._events:  # whoever has its start shall have its end
                with contextlib.suppress(Exception):
                    await self._say(FAILED)
            raise

    async def _publish_next(self) -> bool:
        """Publish what came within some milliseconds; return whether more may come."""
        await self._some.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(JOIN):
                await self._hurry.wait()
        items, self._items = self._items, []
        if self._last is None:
            self._some.clear()
            self._hurry.clear()
        self._room.set()
        more = self._last is None
        for run in _runs(items):
            await self._publish_run(run)
        return more

    async def _publish_run(self, run: list[Any]) -> None:
        """Publish items as one event, as several where they are too large for one."""
        try:
            await self._say(self._event, "".join(run) if isinstance(run[0], str) else run)
        except TooLarge:
            if len(run) == 1:
                raise
            half = len(run) // 2
            await self._publish_run(run[:half])
            await self._publish_run(run[half:])

    def _published(self, publisher: asyncio.Task[None]) -> None:
        error = None if publisher.cancelled() else publisher.exception()
        if error is None and not publisher.cancelled():
            return
        if self._last is None and self._reader is not None:
            # An iterable that is silent would never let go of the caller; cancelled, it is closed as well.
            self._interrupted = True
            self._reader.cancel()
        elif self._last == FAILED:  # the caller is told of something else
            logger.error("a feed into channel %r could not say that it failed", self._name, exc_info=error)

    async def _say(self, event: str, data: Any = None) -> None:
        self._bytes += await self._publish(event, data) + PUBLICATION_BYTES
        self._events += 1
        self._watch_history()

    def _watch_history(self) -> None:
        """Log once that whoever reloads the page has no longer all of it, and what to raise."""
        setting = self._too_small()
        if setting is not None and not self._outgrown:
            self._outgrown = True
            logger.warning(
                "a feed into channel %r (declared at %s) is more than its history keeps: who reloads now "
                "does not have its start; raise %s",
                self._name,
                self._channel.place,
                setting,
            )

    def _too_small(self) -> str | None:
        size, ttl = self._channel.retention
        if self._events > size:
            return f"history= of the channel, or ASGI_WS_HISTORY ({size})"
        if time.monotonic() - self._began > ttl:
            return f"history_ttl= of the channel, or ASGI_WS_HISTORY_TTL ({ttl:g} s)"
        if self._bytes > self._max_bytes:
            return f"ASGI_WS_HISTORY_CHANNEL_BYTES ({self._max_bytes})"
        return None


@contextlib.asynccontextmanager
async def _closing(iterator: AsyncIterator[Any]) -> AsyncIterator[None]:
    """Close a generator that is left before its end; other iterators have nothing to close."""
    try:
        yield
    finally:
        if (aclose := getattr(iterator, "aclose", None)) is not None:
            await aclose()


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


def _runs(items: list[Any]) -> Iterator[list[Any]]:
    """Cut items where text begins or ends; text without a letter says nothing."""
    for is_text, run in groupby(items, lambda item: isinstance(item, str)):
        found = [item for item in run if item or not is_text]
        if found:
            yield found


def _check_event(event: str) -> None:
    if event in {START, END, FAILED}:
        raise BadRequest(f"expected an event other than {START}, {END} and {FAILED}, got {event!r}")
