"""A channel as one node sees it: who listens, and what this turn has brought. No await in here."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Protocol

from msgspec import UNSET, UnsetType

from asgi_ws.codecs import Codec
from asgi_ws.messages import Gap, Message, Moved
from asgi_ws.metrics import Metrics
from asgi_ws.outbox import Batch
from asgi_ws.publication import Position, Publication, Slow

logger = logging.getLogger("asgi_ws")

# How many publications may pass while one subscribe waits for its position.
HOLD_LIMIT = 1000
# How many events' names `latest` tells apart while somebody lags; of more than that, the oldest are a gap.
MAX_NEWEST = 1000
# After so many subscribers a delivery may be interrupted: a fraction of a millisecond.
_SHARE = 128


class Subscriber(Protocol):
    """Who hears a channel: a session. It neither joins nor leaves a channel within these calls."""

    id: str
    codec: Codec

    direct: Callable[[bytes], object] | None
    """Writes frames as they are; `None` while anything stands in the way: then `deliver`."""

    def deliver(self, batch: Batch) -> bool:
        """Take a batch of events, and write it if that can be done now; never waits, never raises.

        Returns:
            Whether it fits: `False` is a client too slow for it.
        """

    def collect(self, batch: Batch) -> bool:
        """Take a batch of events, more of which follow: `wake` will be called."""

    def wake(self) -> None:
        """Write what was collected, at once."""

    def has_room(self, publications: "Sequence[Publication | Position]") -> bool:
        """Whether these find room beside what waits to be written."""

    def replay(self, batch: Batch) -> None:
        """Take events that come from history."""

    def tell(self, message: Message) -> None:
        """Take a message that is no event."""

    def squeeze(self, batch: Batch) -> bool:
        """Take a batch that did not fit in the place of its channel's oldest events; whether it fits then."""

    def lag(self, subscription: "Subscription") -> None:
        """Learn that it lags behind in a channel, until all is written and it has caught up."""

    def slow(self, channel: str, policy: str) -> None:
        """Learn that it is too slow for a channel, and what follows from that."""

    def give_up(self, batch: Batch) -> None:
        """Be ended: it is too slow for a batch, and nothing else can be done."""


Touched = dict[Subscriber, None]


class Subscription:
    """A subscriber's place in a channel. Until it is `live`, it holds back what is published meanwhile.

    Args:
        slow: What is done where its client is too slow.
        limit: How many publications may be held back; more than that and it is `overrun`.

    Attributes:
        position: Where it stands, while it lags behind.
        count: How many publications its topic had seen, when it fell behind.
    """

    __slots__ = (
        "channel", "count", "held", "limit", "live", "overrun", "position", "slow", "subscriber",
    )  # fmt: skip

    def __init__(
        self, subscriber: Subscriber, channel: str, slow: Slow = "resync", limit: int = HOLD_LIMIT
    ) -> None:
        self.subscriber = subscriber
        self.channel = channel
        self.slow = slow
        self.limit = limit
        self.held: list[Publication | Position] = []
        self.overrun = False
        self.live = False
        self.position: Position | None = None
        self.count = 0

    def hold(self, publication: Publication | Position) -> None:
        """Keep for later what the channel brings; a position stands for a gap before it."""
        if len(self.held) < self.limit:
            self.held.append(publication)
        else:
            self.overrun = True


class Topic:
    """The subscriptions of one channel, and the publications of this turn.

    A subscriber that is too slow is dealt with as the channel's policy says. `resync`, `drop_newest` and
    `latest` take it out of the live ones, so that it costs nothing, until all it has is written.

    `asked`, `ready` and `lock` belong to the node: whether the broadcaster has been asked to deliver this
    channel here, and whether it does.
    """

    __slots__ = (
        "_delivery", "_forgotten", "_last", "_newest", "asked", "channel", "count", "joining", "lagging",
        "live", "lock", "metrics", "ready", "slow", "turn",
    )  # fmt: skip

    def __init__(self, channel: str, metrics: Metrics) -> None:
        self.channel = channel
        self.metrics = metrics
        self.slow: Slow = "resync"
        self.live: dict[Codec, dict[Subscriber, Subscription]] = {}
        self.lagging: dict[Subscriber, Subscription] = {}
        self.joining: set[Subscription] = set()
        self.turn: list[Publication] = []
        self.count = 0  # publications so far
        self.asked = self.ready = False
        self.lock = asyncio.Lock()
        self._delivery: Iterator[None] | None = None
        self._last: Position | None = None
        # For `latest`: of each event's name the newest publication, with its number; the oldest first.
        self._newest: dict[str, tuple[int, Publication]] = {}
        self._forgotten = 0  # the number after the last that was dropped from there

    def __len__(self) -> int:
        return sum(map(len, self.live.values())) + len(self.lagging)

    def __repr__(self) -> str:
        return f"<Topic {self.channel!r} {len(self)} live, {len(self.joining)} joining>"

    @property
    def empty(self) -> bool:
        return not self.joining and not len(self)

    def admit(
        self,
        subscription: Subscription,
        position: Position | None,
        missed: Sequence[Publication] = (),
        *,
        more: bool = False,
    ) -> None:
        """Make a subscription live: what it missed, what it has held back since, then every turn.

        Args:
            subscription: One that is joining; one that has left meanwhile is not let in.
            position: After which its events follow; what was missed comes first.
            missed: What history had after it.
            more: History has more: the subscription lags behind, what it has held back is in there.
        """
        self.flush()
        if subscription not in self.joining:
            return
        self.joining.remove(subscription)
        self.slow = subscription.slow
        after = position
        if missed:
            position = missed[-1].position
        held = [] if more else [one for one in subscription.held if _follows(one, position)]
        subscription.held = []
        begin = [*missed, *held]
        if not more:  # else its position is not the channel's, and the next event would seem to leave a hole
            self._last = self._last or position
        if after is not None and begin and not subscription.subscriber.has_room(begin):
            begin, position, more = [], after, True  # it is fed when what waits already is written
        self._enliven(subscription)
        self._begin(subscription.subscriber, begin)
        if more:
            self.lag(subscription, position)

    def remove(self, subscription: Subscription) -> None:
        """Take a subscription out; no event follows for it."""
        self.flush()
        self.joining.discard(subscription)
        live = self.live.get(subscription.subscriber.codec, {})
        if live.get(subscription.subscriber) is subscription:
            del live[subscription.subscriber]
        if self.lags(subscription):
            self._catch_up(subscription)
        if not len(self):
            self._last = None  # what comes until somebody listens again is nobody's gap

    def lag(self, subscription: Subscription, position: Position | None) -> None:
        """Let a subscription fall behind: nothing is written for it until it asks.

        It is to be fed from history after `position`, or without one to be released.
        """
        subscriber = subscription.subscriber
        self.live[subscriber.codec].pop(subscriber, None)
        self.lagging[subscriber] = subscription
        subscription.position, subscription.count = position, self.count
        subscriber.lag(subscription)

    def lags(self, subscription: Subscription) -> bool:
        """Whether a subscription has fallen behind, and is still here."""
        return self.lagging.get(subscription.subscriber) is subscription

    def hold(self, subscription: Subscription) -> None:
        """Keep what is published from now on for one that lags, until it is admitted."""
        subscription.held = []
        subscription.overrun = False
        self.joining.add(subscription)

    def feed(self, subscription: Subscription, publications: Sequence[Publication]) -> None:
        """Give one that lags a stretch of what it misses; it lags on."""
        self.joining.discard(subscription)
        subscription.held = []
        if publications:
            subscription.position = publications[-1].position
            self._replay(publications, subscription.subscriber)

    def release(self, subscription: Subscription) -> None:
        """Let one that lags hear the channel again without history: the newest events, or a gap."""
        self.flush()
        subscriber, missed = subscription.subscriber, self.count - subscription.count
        newest = [p for number, p in self._newest.values() if number >= subscription.count]
        told = subscription.slow == "latest" and subscription.count >= self._forgotten
        self._enliven(subscription)
        if not told:
            self._tell_gap(self._last, [subscriber], missed - len(newest))
        self.metrics.events_dropped += missed - len(newest)
        self._replay(newest, subscriber)

    def _enliven(self, subscription: Subscription) -> None:
        subscription.live = True
        self._catch_up(subscription)
        self.live.setdefault(subscription.subscriber.codec, {})[subscription.subscriber] = subscription

    def _catch_up(self, subscription: Subscription) -> None:
        self.lagging.pop(subscription.subscriber, None)
        if not self.lagging:
            self._newest = {}

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
        return False

    def flush(self) -> None:
        """Deliver all of it now: who listens is about to change."""
        while self.step() or self.turn:
            pass

    def tell(self, encode: Callable[[Codec], Sequence[bytes]]) -> Iterator[Collection[Subscriber]]:
        """Give everyone who is live messages that are no events, made once per codec.

        It pauses after each share of the subscribers; who leaves in a pause gets nothing more.

        Yields:
            Those who have not got them, for they lag behind or are too slow.
        """
        if self.lagging:
            yield tuple(self.lagging)
        for codec, subscribers in tuple(self.live.items()):
            if not subscribers:
                continue
            batch = Batch(codec, encode(codec), modest=True)
            for share in _shares(subscribers):
                slow = self._write(batch, [one for one in share if one in subscribers])
                yield [*slow, *(one for one in share if one in self.lagging)]

    def gap(self, position: Position | None) -> None:
        """Tell everyone who is live that something before `position` is lost."""
        self.flush()
        self._last = position
        for subscription in self.joining:
            subscription.hold(position or Position("", 0))
        for subscribers in self.live.values():
            self._tell_gap(position, subscribers)
        if self.slow != "resync":  # else they find it in history
            self._tell_gap(position, self.lagging)

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
                slow = self._write(batch, others) if touched is None else _collect(batch, others, touched)
                for subscriber in slow:
                    self._slow_down(subscriber, batch, run)
                yield
        if self.lagging and self.slow == "latest":
            self._keep_newest(run)
        self.count += len(run)

    def _write(self, batch: Batch, subscribers: Sequence[Subscriber]) -> list[Subscriber]:
        """Write a batch, and return who is too slow for it."""
        frames, written, slow = batch.frames, 0, []
        for subscriber in subscribers:
            # The innermost loop of the whole: most have nothing in the way, and cost one call.
            if (write := subscriber.direct) is not None:
                write(frames)
                written += 1
            elif not subscriber.deliver(batch):
                slow.append(subscriber)
        self.metrics.events_delivered += written * batch.events
        self.metrics.bytes_sent += written * batch.size
        return slow

    def _slow_down(self, subscriber: Subscriber, batch: Batch, run: Sequence[Publication]) -> None:
        """Deal with who is too slow for a batch, as the policy says."""
        if self.slow == "disconnect" or (self.slow == "resync" and not run[0].offset):
            subscriber.give_up(batch)
            return
        subscriber.slow(self.channel, self.slow)
        if self.slow != "drop_oldest" or not subscriber.squeeze(batch):
            position = run[0].before if self.slow == "resync" else None
            self.lag(self.live[subscriber.codec][subscriber], position)

    def _keep_newest(self, run: Sequence[Publication]) -> None:
        for number, publication in enumerate(run, self.count):
            self._newest.pop(publication.event, None)
            self._newest[publication.event] = number, publication
        while len(self._newest) > MAX_NEWEST:
            number, _ = self._newest.pop(next(iter(self._newest)))
            self._forgotten = number + 1

    def _deliver_to_excluded(
        self, run: Sequence[Publication], share: Sequence[Subscriber], excluded: set[str]
    ) -> list[Subscriber]:
        """Deliver to those who are not to have all of it, and return the others."""
        others = []
        for subscriber in share:
            if subscriber.id not in excluded:
                others.append(subscriber)
            elif (batch := self._encode(run, subscriber.codec, subscriber.id)) is None:
                self._lose(run, [subscriber])
            elif batch.payloads and not subscriber.deliver(batch):
                self._slow_down(subscriber, batch, run)
        return others

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

    def _replay(self, publications: Sequence[Publication], subscriber: Subscriber) -> None:
        if not publications:
            return
        excluded = subscriber.id if any(p.exclude == subscriber.id for p in publications) else None
        if (batch := self._encode(publications, subscriber.codec, excluded)) is None:
            self._lose(publications, [subscriber])
        elif batch.payloads:
            subscriber.replay(batch)

    def _encode(
        self, publications: Sequence[Publication], codec: Codec, excluded: str | None = None
    ) -> Batch | None:
        """Return what all hear of them, or what an excluded session does: where its own went by."""
        try:
            if excluded is None:
                told = [codec.event(p) for p in publications]
            else:
                told = [e for p in publications if (e := self._event_or_moved(p, codec, excluded))]
        except Exception:  # what another node has published may be anything
            logger.exception("a turn of channel %r cannot be told in %s", self.channel, codec.subprotocol)
            return None
        last = publications[-1]
        return Batch(
            codec,
            told,
            len(told),
            channel=self.channel,
            position=last.position if last.offset else None,
            alone=self.slow == "latest",
        )

    def _event_or_moved(self, publication: Publication, codec: Codec, excluded: str) -> bytes | None:
        if publication.exclude != excluded:
            return codec.event(publication)
        moved = Moved(channel=self.channel, offset=publication.offset)
        return codec.encode(moved) if publication.offset else None

    def _lose(self, publications: Sequence[Publication], subscribers: Iterable[Subscriber]) -> None:
        last = publications[-1]
        self._tell_gap(last.position if last.offset else None, subscribers)

    def _tell_gap(
        self,
        position: Position | None,
        subscribers: Iterable[Subscriber],
        dropped: int = 0,
    ) -> None:
        message = gap(self.channel, position, dropped)
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


def _collect(batch: Batch, subscribers: Iterable[Subscriber], touched: Touched) -> list[Subscriber]:
    slow = []
    for subscriber in subscribers:
        if subscriber.collect(batch):
            touched[subscriber] = None
        else:
            slow.append(subscriber)
    return slow


def gap(
    channel: str,
    position: Position | None,
    dropped: int = 0,
    data: Any = UNSET,
    binary: bool | UnsetType = UNSET,
) -> Gap:
    """Return the message that something before a position is lost, `dropped` events where that is known."""
    epoch, offset = (UNSET, UNSET) if position is None else (position.epoch, position.offset)
    return Gap(
        channel=channel, epoch=epoch, offset=offset, dropped=dropped or UNSET, data=data, binary=binary
    )


def _follows(one: Publication | Position, position: Position | None) -> bool:
    """Whether what was held back is news to who begins after a position; a gap is, unless it is before."""
    if position is None or not one.offset:
        return True
    return one.epoch != position.epoch or one.offset > position.offset
