"""From a publication to the sessions of its channel, turn by turn. No await in here.

`deliver` marks: the publication joins its topic, the topic is dirty. `flush` writes, once for all that
came in one turn of the event loop: each dirty topic encodes its turn once per codec and hands that one
batch to every subscriber. The cost follows the subscribers concerned, not channels or idle sessions.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

from msgspec import UNSET

from asgi_ws.codecs import Codec
from asgi_ws.messages import Gap, Message, Moved
from asgi_ws.metrics import Metrics
from asgi_ws.outbox import Batch
from asgi_ws.publication import Position, Publication

# A turn is flushed at once when it holds this much, so that it stays bounded in memory and in time.
TURN_MESSAGES = 1000
TURN_BYTES = 256 * 1024


# How many publications may pass while one subscribe waits for its position.
HOLD_LIMIT = 1000


class Subscriber(Protocol):
    """Who hears a channel: a session. It neither joins nor leaves a channel within these calls."""

    id: str
    codec: Codec

    def deliver(self, batch: Batch) -> None:
        """Take a batch of events; never waits, never raises."""

    def tell(self, message: Message) -> None:
        """Take a message that is no event."""


class Subscription:
    """A subscriber's place in a channel. Until it is `live`, it holds back what is published meanwhile.

    Args:
        limit: How many publications may be held back; more than that and it is `overrun`.
    """

    __slots__ = ("channel", "held", "limit", "live", "overrun", "subscriber")

    def __init__(self, subscriber: Subscriber, channel: str, limit: int = HOLD_LIMIT) -> None:
        self.subscriber = subscriber
        self.channel = channel
        self.limit = limit
        self.held: list[Publication] = []
        self.overrun = False
        self.live = False

    def hold(self, publication: Publication) -> None:
        if len(self.held) < self.limit:
            self.held.append(publication)
        else:
            self.overrun = True


class Topic:
    """A channel as this node sees it: who listens, and what this turn has brought.

    `ready` and `lock` belong to the node: whether the broadcaster delivers this channel here.
    """

    __slots__ = ("channel", "joining", "live", "lock", "metrics", "ready", "turn")

    def __init__(self, channel: str, metrics: Metrics) -> None:
        self.channel = channel
        self.metrics = metrics
        self.live: dict[Codec, dict[Subscriber, None]] = {}
        self.joining: set[Subscription] = set()
        self.turn: list[Publication] = []
        self.ready = False
        self.lock = asyncio.Lock()

    def __len__(self) -> int:
        return sum(map(len, self.live.values()))

    @property
    def empty(self) -> bool:
        return not self.joining and not any(self.live.values())

    def admit(self, subscription: Subscription, after: int, missed: Sequence[Publication] = ()) -> None:
        """Make a subscription live: what it missed, what it held back beyond `after`, then every turn."""
        self.flush()
        self.joining.discard(subscription)
        subscriber = subscription.subscriber
        held = [p for p in subscription.held if not p.offset or p.offset > after]
        subscription.held = []
        subscription.live = True
        self._deliver([*missed, *held], subscriber.codec, {subscriber: None})
        self.live.setdefault(subscriber.codec, {})[subscriber] = None

    def remove(self, subscription: Subscription) -> None:
        """Take a subscription out; no event follows for it."""
        self.flush()
        self.joining.discard(subscription)
        self.live.get(subscription.subscriber.codec, {}).pop(subscription.subscriber, None)

    def flush(self) -> None:
        """Hand this turn to everyone who is live."""
        turn, self.turn = self.turn, []
        if not turn:
            return
        now = time.time()
        for publication in turn:
            self.metrics.delivery_latency.observe(now - publication.time)
        for codec, subscribers in self.live.items():
            if subscribers:
                self._deliver(turn, codec, subscribers)

    def gap(self, position: Position | None) -> None:
        """Tell everyone who is live that something before `position` is lost."""
        self.flush()
        epoch, offset = (UNSET, UNSET) if position is None else (position.epoch, position.offset)
        message = Gap(channel=self.channel, epoch=epoch, offset=offset)
        for subscribers in self.live.values():
            for subscriber in subscribers:
                subscriber.tell(message)

    def _deliver(
        self, publications: Sequence[Publication], codec: Codec, subscribers: dict[Subscriber, None]
    ) -> None:
        if not publications:
            return
        batch = _batch(publications, codec)
        excluded = {p.exclude for p in publications if p.exclude is not None}
        for subscriber in subscribers:
            if excluded and subscriber.id in excluded:
                self._deliver_around(publications, subscriber)
            else:
                subscriber.deliver(batch)

    def _deliver_around(self, publications: Sequence[Publication], subscriber: Subscriber) -> None:
        for publication in publications:
            if publication.exclude != subscriber.id:
                subscriber.deliver(_batch([publication], subscriber.codec))
            elif publication.offset:
                subscriber.tell(Moved(channel=self.channel, offset=publication.offset))


class Fanout:
    """The topics of a node, and the turn in hand."""

    def __init__(self, metrics: Metrics) -> None:
        self.topics: dict[str, Topic] = {}
        self._metrics = metrics
        self._dirty: list[Topic] = []
        self._scheduled = False
        self._messages = 0
        self._bytes = 0

    def __repr__(self) -> str:
        return f"<Fanout {len(self.topics)} topics, {self._messages} messages this turn>"

    @property
    def subscriptions(self) -> int:
        return sum(map(len, self.topics.values()))

    @property
    def full(self) -> bool:
        """Whether this turn holds as much as it may."""
        return self._messages >= TURN_MESSAGES or self._bytes >= TURN_BYTES

    def topic(self, channel: str) -> Topic:
        """Return a channel's topic, made if need be."""
        topic = self.topics.get(channel)
        if topic is None:
            topic = self.topics[channel] = Topic(channel, self._metrics)
        return topic

    def forget(self, topic: Topic) -> None:
        """Drop a topic that is empty."""
        del self.topics[topic.channel]

    def deliver(self, publication: Publication) -> None:
        """Take a publication into this turn."""
        self._messages += 1
        self._bytes += len(publication.data)
        topic = self.topics.get(publication.channel)
        if topic is None:
            return
        for subscription in topic.joining:
            subscription.hold(publication)
        if not topic.turn:
            self._dirty.append(topic)
            self._schedule()
        topic.turn.append(publication)

    def flush(self) -> None:
        """End the turn: write what it brought."""
        self._scheduled = False
        self._messages = self._bytes = 0
        dirty, self._dirty = self._dirty, []
        for topic in dirty:
            topic.flush()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self.flush)


def _batch(publications: Sequence[Publication], codec: Codec) -> Batch:
    payloads = [codec.event(publication) for publication in publications]
    return Batch(payloads, sum(map(codec.size, payloads)), len(payloads))
