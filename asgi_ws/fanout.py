"""From publications to the sessions of their channels, turn by turn. No await in here.

`deliver` marks: the publication joins its topic, the topic is dirty. `flush` writes, once for all that
came in one turn of the event loop: each dirty topic encodes its turn once per codec, and each session gets
one write, on however many dirty channels it is. The cost follows the subscribers concerned; idle sessions
and channels cost nothing. A flush for very many sessions is cut into slices, between which the loop runs.
"""

import asyncio
import time
from collections.abc import Iterator

from asgi_ws.metrics import Metrics
from asgi_ws.publication import Publication
from asgi_ws.topic import Topic, Touched

# A turn is flushed at once when it holds this much, so that it stays bounded in memory and in time.
TURN_MESSAGES = 1000
TURN_BYTES = 256 * 1024
SLICE = 0.005  # seconds


class Fanout:
    """The topics of a node, and the turn in hand."""

    def __init__(self, metrics: Metrics) -> None:
        self.topics: dict[str, Topic] = {}
        self._metrics = metrics
        self._dirty: list[Topic] = []
        self._touched: Touched = {}
        self._scheduled = False
        self._work: Iterator[None] | None = None
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

    @property
    def busy(self) -> bool:
        """Whether a flush is cut into slices, and there are more."""
        return self._work is not None

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
        """End the turn: write what it brought, a slice of it where it is much."""
        self._scheduled = False
        self._messages = self._bytes = 0
        if self._work is None:
            self._work = self._deliver_dirty()
        end = time.perf_counter() + SLICE
        for _ in self._work:
            if time.perf_counter() >= end:
                self._wake_touched()
                self._schedule()
                return
        self._work = None

    def _deliver_dirty(self) -> Iterator[None]:
        while self._dirty:
            dirty, self._dirty = self._dirty, []
            touched = self._touched if len(dirty) > 1 else None
            for topic in dirty:
                while topic.step(touched):
                    yield
            self._wake_touched()
            self._metrics.turns += 1

    def _wake_touched(self) -> None:
        touched = tuple(self._touched)
        self._touched.clear()
        for subscriber in touched:
            subscriber.wake()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self.flush)
