"""A channel as one node sees it: who listens, and what this turn has brought. No await in here."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

from msgspec import UNSET

from asgi_ws.codecs import Codec
from asgi_ws.messages import Gap, Message, Moved
from asgi_ws.metrics import Metrics
from asgi_ws.outbox import Batch
from asgi_ws.publication import Position, Publication

# How many publications may pass while one subscribe waits for its position.
HOLD_LIMIT = 1000
# After so many subscribers a delivery may be interrupted: a fraction of a millisecond.
_SHARE = 128


class Subscriber(Protocol):
    """Who hears a channel: a session. It neither joins nor leaves a channel within these calls."""

    id: str
    codec: Codec

    def deliver(self, batch: Batch) -> None:
        """Take a batch of events and write it if that can be done now; never waits, never raises."""

    def collect(self, batch: Batch) -> None:
        """Take a batch of events, more of which follow: `wake` will be called."""

    def wake(self) -> None:
        """Write what was collected, at once."""

    def replay(self, batch: Batch) -> None:
        """Take the events that a new subscription begins with."""

    def tell(self, message: Message) -> None:
        """Take a message that is no event."""


Touched = dict[Subscriber, None]


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
    """The subscriptions of one channel, and the publications of this turn.

    `ready` and `lock` belong to the node: whether the broadcaster delivers this channel here.
    """

    __slots__ = ("_delivery", "channel", "joining", "live", "lock", "metrics", "ready", "turn")

    def __init__(self, channel: str, metrics: Metrics) -> None:
        self.channel = channel
        self.metrics = metrics
        self.live: dict[Codec, dict[Subscriber, None]] = {}
        self.joining: set[Subscription] = set()
        self.turn: list[Publication] = []
        self.ready = False
        self.lock = asyncio.Lock()
        self._delivery: Iterator[None] | None = None

    def __len__(self) -> int:
        return sum(map(len, self.live.values()))

    def __repr__(self) -> str:
        return f"<Topic {self.channel!r} {len(self)} live, {len(self.joining)} joining>"

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
        if publications := [*missed, *held]:
            self._replay(publications, subscriber)
        self.live.setdefault(subscriber.codec, {})[subscriber] = None

    def remove(self, subscription: Subscription) -> None:
        """Take a subscription out; no event follows for it."""
        self.flush()
        self.joining.discard(subscription)
        self.live.get(subscription.subscriber.codec, {}).pop(subscription.subscriber, None)

    def step(self, touched: Touched | None = None) -> bool:
        """Deliver this turn to a share of the subscribers, and return whether there is more to do.

        With `touched`, batches are only collected, and whoever has got one is noted.
        """
        if self._delivery is None:
            if not self.turn:
                return False
            turn, self.turn = self.turn, []
            self._delivery = self._deliver(turn, touched)
        for _ in self._delivery:
            return True
        self._delivery = None
        return bool(self.turn)

    def flush(self) -> None:
        """Deliver all of it now: who listens is about to change."""
        while self.step():
            pass

    def abandon(self) -> None:
        """Give up a delivery that has failed, and say so to everyone."""
        self._delivery = None
        self.gap(None)

    def gap(self, position: Position | None) -> None:
        """Tell everyone who is live that something before `position` is lost."""
        self.flush()
        epoch, offset = (UNSET, UNSET) if position is None else (position.epoch, position.offset)
        message = Gap(channel=self.channel, epoch=epoch, offset=offset)
        for subscribers in self.live.values():
            for subscriber in subscribers:
                subscriber.tell(message)

    def _deliver(self, turn: Sequence[Publication], touched: Touched | None) -> Iterator[None]:
        self._observe(turn)
        excluded = {p.exclude for p in turn if p.exclude is not None}
        for codec, subscribers in self.live.items():
            if not subscribers:
                continue
            batch = _batch(turn, codec)
            for number, subscriber in enumerate(subscribers, 1):
                if excluded and subscriber.id in excluded:
                    self._deliver_around(turn, subscriber)
                elif touched is None:
                    subscriber.deliver(batch)
                else:
                    subscriber.collect(batch)
                    touched[subscriber] = None
                if not number % _SHARE:
                    yield

    def _deliver_around(self, turn: Sequence[Publication], subscriber: Subscriber) -> None:
        for publication in turn:
            if publication.exclude != subscriber.id:
                subscriber.deliver(_batch([publication], subscriber.codec))
            elif publication.offset:
                subscriber.tell(Moved(channel=self.channel, offset=publication.offset))

    def _replay(self, publications: Sequence[Publication], subscriber: Subscriber) -> None:
        if any(p.exclude == subscriber.id for p in publications):
            self._deliver_around(publications, subscriber)
        else:
            subscriber.replay(_batch(publications, subscriber.codec))

    def _observe(self, turn: Sequence[Publication]) -> None:
        now = time.time()
        for publication in turn:
            self.metrics.delivery_latency.observe(now - publication.time)


def _batch(publications: Sequence[Publication], codec: Codec) -> Batch:
    return Batch(codec, [codec.event(publication) for publication in publications], len(publications))
