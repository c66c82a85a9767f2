"""A channel as one node sees it: who listens, and what this turn has brought. No await in here."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from msgspec import UNSET

from asgi_ws.codecs import Codec
from asgi_ws.messages import Gap, Message, Moved
from asgi_ws.metrics import Metrics
from asgi_ws.outbox import Batch
from asgi_ws.publication import Position, Publication

logger = logging.getLogger("asgi_ws")

# How many publications may pass while one subscribe waits for its position.
HOLD_LIMIT = 1000
# After so many subscribers a delivery may be interrupted: a fraction of a millisecond.
_SHARE = 128


class Subscriber(Protocol):
    """Who hears a channel: a session. It neither joins nor leaves a channel within these calls."""

    id: str
    codec: Codec

    direct: Callable[[bytes], object] | None
    """Writes frames as they are; `None` while anything stands in the way: then `deliver`."""

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
        self.held: list[Publication | Position] = []
        self.overrun = False
        self.live = False

    def hold(self, publication: Publication | Position) -> None:
        """Keep for later what the channel brings; a position stands for a gap before it."""
        if len(self.held) < self.limit:
            self.held.append(publication)
        else:
            self.overrun = True


class Topic:
    """The subscriptions of one channel, and the publications of this turn.

    `asked`, `ready` and `lock` belong to the node: whether the broadcaster has been asked to deliver this
    channel here, and whether it does.
    """

    __slots__ = (
        "_delivery",
        "_last",
        "asked",
        "channel",
        "joining",
        "live",
        "lock",
        "metrics",
        "ready",
        "turn",
    )

    def __init__(self, channel: str, metrics: Metrics) -> None:
        self.channel = channel
        self.metrics = metrics
        self.live: dict[Codec, dict[Subscriber, None]] = {}
        self.joining: set[Subscription] = set()
        self.turn: list[Publication] = []
        self.asked = self.ready = False
        self.lock = asyncio.Lock()
        self._delivery: Iterator[None] | None = None
        self._last: Position | None = None

    def __len__(self) -> int:
        return sum(map(len, self.live.values()))

    def __repr__(self) -> str:
        return f"<Topic {self.channel!r} {len(self)} live, {len(self.joining)} joining>"

    @property
    def empty(self) -> bool:
        return not self.joining and not any(self.live.values())

    def admit(
        self, subscription: Subscription, position: Position | None, missed: Sequence[Publication] = ()
    ) -> None:
        """Make a subscription live: what it missed, what it has held back since, then every turn.

        Args:
            subscription: One that is joining; one that has left meanwhile is not let in.
            position: After which its events follow; what was missed comes first.
            missed: What history had after it.
        """
        self.flush()
        if subscription not in self.joining:
            return
        self.joining.remove(subscription)
        subscriber, held = subscription.subscriber, subscription.held
        if missed:
            position = missed[-1].position
        subscription.held = []
        subscription.live = True
        self._begin(subscriber, [*missed, *(one for one in held if _follows(one, position))])
        self._last = self._last or position
        self.live.setdefault(subscriber.codec, {})[subscriber] = None

    def remove(self, subscription: Subscription) -> None:
        """Take a subscription out; no event follows for it."""
        self.flush()
        self.joining.discard(subscription)
        self.live.get(subscription.subscriber.codec, {}).pop(subscription.subscriber, None)
        if not any(self.live.values()):
            self._last = None  # what comes until somebody listens again is nobody's gap

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

    def gap(self, position: Position | None) -> None:
        """Tell everyone who is live that something before `position` is lost."""
        self.flush()
        self._last = position
        for subscription in self.joining:
            subscription.hold(position or Position("", 0))
        for subscribers in self.live.values():
            self._tell_gap(position, subscribers)

    def _deliver(self, turn: Sequence[Publication], touched: Touched | None) -> Iterator[None]:
        self._observe(turn)
        for run in self._runs(turn):
            yield from self._deliver_run(run, touched)

    def _runs(self, turn: Sequence[Publication]) -> Iterator[list[Publication]]:
        """Cut a turn where a publication does not follow the one before it, and say so there."""
        run: list[Publication] = []
        for publication in turn:
            if publication.offset:
                if self._last is not None and not publication.continues(self._last):
                    if run:
                        yield run
                    run = []
                    for subscribers in self.live.values():
                        self._tell_gap(publication.before, subscribers)
                self._last = publication.position
            run.append(publication)
        yield run

    def _deliver_run(self, run: Sequence[Publication], touched: Touched | None) -> Iterator[None]:
        excluded = {p.exclude for p in run if p.exclude is not None}
        for codec, subscribers in self.live.items():
            if not subscribers:
                continue
            batch = self._encode(run, codec)
            if batch is None:
                self._lose(run, subscribers)
                continue
            for share in _shares(subscribers):
                others = self._deliver_to_excluded(run, share, excluded) if excluded else share
                if touched is None:
                    self._write(batch, others)
                else:
                    _collect(batch, others, touched)
                yield

    def _write(self, batch: Batch, subscribers: Sequence[Subscriber]) -> None:
        frames, written = batch.frames, 0
        for subscriber in subscribers:
            # The innermost loop of the whole: most have nothing in the way, and cost one call.
            if (write := subscriber.direct) is not None:
                write(frames)
                written += 1
            else:
                subscriber.deliver(batch)
        self.metrics.events_delivered += written * batch.events
        self.metrics.bytes_sent += written * batch.size

    def _begin(self, subscriber: Subscriber, first: Sequence[Publication | Position]) -> None:
        """Give a subscriber what it begins with, gaps where they were."""
        publications: list[Publication] = []
        for one in first:
            if isinstance(one, Publication):
                publications.append(one)
                continue
            self._replay(publications, subscriber)
            publications = []
            self._tell_gap(one if one.offset else None, [subscriber])
        self._replay(publications, subscriber)

    def _deliver_to_excluded(
        self, run: Sequence[Publication], share: Sequence[Subscriber], excluded: set[str]
    ) -> list[Subscriber]:
        """Deliver to those who are not to have all of it, and return the others."""
        others = []
        for subscriber in share:
            if subscriber.id in excluded:
                self._deliver_around(run, subscriber)
            else:
                others.append(subscriber)
        return others

    def _deliver_around(self, turn: Sequence[Publication], subscriber: Subscriber) -> None:
        for publication in turn:
            if publication.exclude != subscriber.id:
                self._deliver_one(publication, subscriber)
            elif publication.offset:
                subscriber.tell(Moved(channel=self.channel, offset=publication.offset))

    def _deliver_one(self, publication: Publication, subscriber: Subscriber) -> None:
        batch = self._encode([publication], subscriber.codec)
        if batch is None:
            self._lose([publication], [subscriber])
        else:
            subscriber.deliver(batch)

    def _replay(self, publications: Sequence[Publication], subscriber: Subscriber) -> None:
        if not publications:
            return
        if any(p.exclude == subscriber.id for p in publications):
            self._deliver_around(publications, subscriber)
        elif (batch := self._encode(publications, subscriber.codec)) is None:
            self._lose(publications, [subscriber])
        else:
            subscriber.replay(batch)

    def _encode(self, publications: Sequence[Publication], codec: Codec) -> Batch | None:
        try:
            events = [codec.event(publication) for publication in publications]
        except Exception:  # what another node has published may be anything
            logger.exception("a turn of channel %r cannot be told in %s", self.channel, codec.subprotocol)
            return None
        return Batch(codec, events, len(events))

    def _lose(self, publications: Sequence[Publication], subscribers: Iterable[Subscriber]) -> None:
        last = publications[-1]
        self._tell_gap(last.position if last.offset else None, subscribers)

    def _tell_gap(self, position: Position | None, subscribers: Iterable[Subscriber]) -> None:
        epoch, offset = (UNSET, UNSET) if position is None else (position.epoch, position.offset)
        message = Gap(channel=self.channel, epoch=epoch, offset=offset)
        for subscriber in subscribers:
            subscriber.tell(message)

    def _observe(self, turn: Sequence[Publication]) -> None:
        now = time.time()
        for publication in turn:
            self.metrics.delivery_latency.observe(now - publication.time)


def _shares(subscribers: Iterable[Subscriber]) -> Iterator[Sequence[Subscriber]]:
    everyone = list(subscribers)
    for begin in range(0, len(everyone), _SHARE):
        yield everyone[begin : begin + _SHARE]


def _collect(batch: Batch, subscribers: Iterable[Subscriber], touched: Touched) -> None:
    for subscriber in subscribers:
        subscriber.collect(batch)
        touched[subscriber] = None


def _follows(one: Publication | Position, position: Position | None) -> bool:
    """Whether what was held back is news to who begins after a position; a gap is, unless it is before."""
    if position is None or not one.offset:
        return True
    return one.epoch != position.epoch or one.offset > position.offset
