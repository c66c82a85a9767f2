"""One process that runs a hub: the fan-out here, the broadcaster between nodes, and what joins them."""

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from typing import NamedTuple

from asgi_ws.broadcasters import Broadcaster, Change
from asgi_ws.clock import MACHINE, Clock
from asgi_ws.errors import Unavailable
from asgi_ws.fanout import Fanout
from asgi_ws.metrics import Metrics
from asgi_ws.outbox import Pace
from asgi_ws.presence import Presences
from asgi_ws.publication import Position, Publication, Retention
from asgi_ws.topic import Subscription, Topic

logger = logging.getLogger("asgi_ws")

# What is read from history at once, and waits in an outbox beside others: publications, and bytes of them.
STRETCH = 128
STRETCH_BYTES = 128 * 1024


class Resume(NamedTuple):
    """Where a client left off; without an epoch it asks for everything that is kept."""

    epoch: str | None
    offset: int


class Join(NamedTuple):
    """What a subscription begins with: the position after which its events follow, and those missed.

    `recovered` is `None` where nothing was resumed; with `more`, history has more after those missed.
    """

    position: Position | None
    missed: list[Publication]
    recovered: bool | None
    more: bool = False


class Stretch(NamedTuple):
    """A part of a channel's history, in order; whether there may be `more` after it."""

    publications: list[Publication]
    more: bool


class Node:
    """Receives what the broadcaster carries, and subscribes where somebody here listens.

    Attributes:
        vacated: By channel, what is called when the last one who listens to it has gone.
    """

    def __init__(self, broadcaster: Broadcaster, metrics: Metrics, clock: Clock = MACHINE) -> None:
        self.id = secrets.token_hex(6)
        self.broadcaster = broadcaster
        self.metrics = metrics
        self.fanout = Fanout(metrics)
        self.pace = Pace(clock)
        self.presence = Presences(broadcaster, self.fanout.topics, clock)
        self.vacated: dict[str, Callable[[], None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Node {self.id} {self.broadcaster!r} {self.fanout!r}>"

    async def publish(self, publication: Publication, retention: Retention) -> Position | None:
        """Give a publication to the broadcaster; a full turn is flushed, and gives way to the writers."""
        if self.pace.closed:
            await self.pace.admit()
        position = await self.broadcaster.publish(publication, retention)
        self.metrics.events_emitted += 1
        self.metrics.broadcaster_published += 1
        if self.fanout.full:
            await self.give_way()
        return position

    def emit(self, publication: Publication) -> None:
        """Deliver what is this node's alone, past the broadcaster."""
        self.metrics.events_emitted += 1
        self.fanout.deliver(publication)
        if self.fanout.full:
            self.fanout.flush()

    async def give_way(self) -> None:
        """End the turn, and let the writers have theirs."""
        self.fanout.flush()
        turn = self.metrics.turns
        await self.pace.keep(lambda: self.fanout.busy and self.metrics.turns < turn + 2)

    def deliver(self, publication: Publication) -> None:
        self.metrics.broadcaster_received += 1
        self.fanout.deliver(publication)

    def missed(self, channel: str, position: Position | None) -> None:
        self.metrics.broadcaster_gaps += 1
        topic = self.fanout.topics.get(channel)
        if topic is not None:
            topic.gap(position)

    def changed(self, change: Change) -> None:
        self.presence.changed(change)

    async def join(self, subscription: Subscription, retention: Retention, resume: Resume | None) -> Join:
        """Have a channel delivered here, and find out where the subscription begins.

        From the call on, nothing that is published is missed: it is held back until `admit`.

        Raises:
            Unavailable: The broker is away, or more was published meanwhile than can be held back.
        """
        channel = subscription.channel
        topic = self.fanout.topic(channel)
        topic.joining.add(subscription)
        if not self.broadcaster.embedded:
            await self._subscribe(topic)
        join = await self._start(channel, retention, resume)
        if subscription.overrun:
            raise Unavailable(f"expected at most {subscription.limit} events while subscribing; try again")
        return join

    def admit(self, subscription: Subscription, join: Join) -> None:
        """Finish a join: the subscription is live, beginning with what it missed."""
        topic = self.fanout.topic(subscription.channel)
        topic.admit(subscription, join.position, join.missed, more=join.more)

    def leave(self, subscription: Subscription) -> None:
        """Take a subscription out, live or not; its channel is let go of with the last one. Idempotent."""
        topic = self.fanout.topics.get(subscription.channel)
        if topic is None:
            return
        topic.remove(subscription)
        self.presence.leave(subscription)
        if not topic.empty:
            return
        if subscription.channel in self.vacated:
            self.vacated[subscription.channel]()
        if self.broadcaster.embedded:
            self.fanout.forget(topic)
        else:
            task = asyncio.get_running_loop().create_task(self._unsubscribe(topic))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def settle(self) -> None:
        """Wait until every channel that nobody listens to any more is let go of."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def stretch(self, channel: str, after: Position, retention: Retention) -> Stretch | None:
        """Read on in a channel's history; `None` where something after the position is lost."""
        found = await self.broadcaster.history(channel, after, retention, STRETCH)
        return _within(found.publications) if found.complete else None

    # A lock per channel: a last unsubscribe on its way must not silence a first subscribe behind it.

    async def _subscribe(self, topic: Topic) -> None:
        if topic.ready:
            return
        async with topic.lock:
            if not topic.ready and not topic.empty:  # whoever came may have left
                topic.asked = True  # what is given up half-way is to be undone
                await self.broadcaster.subscribe(topic.channel)
                topic.ready = True

    async def _unsubscribe(self, topic: Topic) -> None:
        async with topic.lock:
            if topic.empty and topic.asked:
                topic.ready = topic.asked = False
                await self._let_go(topic.channel)
            if topic.empty and self.fanout.topics.get(topic.channel) is topic:
                self.fanout.forget(topic)

    async def _let_go(self, channel: str) -> None:
        try:
            await self.broadcaster.unsubscribe(channel)
        except Exception:
            # What still comes finds no subscriber; the broadcaster's own supervision tells of the broker.
            logger.warning("unsubscribing %r failed", channel, exc_info=True)

    async def _start(self, channel: str, retention: Retention, resume: Resume | None) -> Join:
        if not retention.size or "history" not in self.broadcaster.features:
            return Join(None, [], None if resume is None or not resume.epoch else False)
        if resume is None:
            return Join(await self.broadcaster.position(channel), [], None)
        if resume.epoch is None:
            return await self._everything(channel, retention)
        after = Position(resume.epoch, resume.offset)
        found = await self.stretch(channel, after, retention)
        if found is None:
            return Join(await self.broadcaster.position(channel), [], recovered=False)
        return Join(after, found.publications, recovered=True, more=found.more)

    async def _everything(self, channel: str, retention: Retention) -> Join:
        found = await self.broadcaster.history(channel, None, retention, STRETCH)
        if not found.publications:
            return Join(found.position, [], None)
        first, stretch = found.publications[0], _within(found.publications)
        return Join(Position(first.epoch, first.previous), stretch.publications, None, stretch.more)


def _within(publications: Sequence[Publication]) -> Stretch:
    """Return as many publications as may be taken at once: one at least."""
    taken: list[Publication] = []
    size = 0
    for publication in publications:
        if size >= STRETCH_BYTES:
            break
        taken.append(publication)
        size += publication.size
    return Stretch(taken, len(taken) < len(publications) or len(taken) >= STRETCH)
