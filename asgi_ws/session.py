"""One connected client, whatever the transport.

Its life is the table `MOVES`: what is not in it does not happen. The transport reads and writes; the
session says what, and never waits for either.
"""

import logging
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Any, Protocol

from msgspec import UNSET

from asgi_ws import endings
from asgi_ws.auth import Identity
from asgi_ws.clock import Clock
from asgi_ws.codecs import Codec, encode_data
from asgi_ws.endings import Ending
from asgi_ws.endpoints import Declared, Endpoint
from asgi_ws.messages import PROTOCOL, Disconnect, Message, Ping, Welcome
from asgi_ws.metrics import Metrics
from asgi_ws.outbox import Batch, Outbox, Pace
from asgi_ws.patterns import check_event
from asgi_ws.publication import Position, Publication
from asgi_ws.settings import Settings
from asgi_ws.topic import Subscription, gap

logger = logging.getLogger("asgi_ws")


class State(Enum):
    """Where a session is in its life."""

    CONNECTING = auto()  # the handshake is done, nothing is sent yet
    PENDING = auto()  # welcomed, but it has to say first who it is
    OPEN = auto()
    CLOSING = auto()  # the last message and the close frame are on their way
    CLOSED = auto()


class Move(Enum):
    """What happens to a session."""

    WELCOME = auto()  # the first message
    ASK = auto()  # the first message, which asks who it is
    ADMIT = auto()  # it has said who it is
    END = auto()  # the server ends it
    GONE = auto()  # the connection is no more


MOVES = {
    (State.CONNECTING, Move.WELCOME): State.OPEN,
    (State.CONNECTING, Move.ASK): State.PENDING,
    (State.CONNECTING, Move.END): State.CLOSING,
    (State.CONNECTING, Move.GONE): State.CLOSED,
    (State.PENDING, Move.ADMIT): State.OPEN,
    (State.PENDING, Move.END): State.CLOSING,
    (State.PENDING, Move.GONE): State.CLOSED,
    (State.OPEN, Move.END): State.CLOSING,
    (State.OPEN, Move.GONE): State.CLOSED,
    (State.CLOSING, Move.GONE): State.CLOSED,
}


class Link(Protocol):
    """The transport's end of a session."""

    def write(self, batch: Batch, /) -> bool:
        """Write a batch at once, if that needs no waiting; return whether it did."""

    def wake(self) -> None:
        """Write what the session has `next`; called whenever there may be something."""

    def abort(self) -> None:
        """Drop the connection without waiting for anything."""


class CatchUp(Protocol):
    """Who brings back a session that lags behind."""

    def drained(self, session: "Session", /) -> None:
        """Learn that all it had is written."""


class Session:
    """A connected client, as the application sees it.

    Attributes:
        id: Unguessable, new with every connection.
        identity: Who it is, `None` for anonymous; `user` is its id.
        kind: That of its endpoint, `"stream"` for `/stream`.
        transport: `"websocket"`.
        connected_at: Seconds since 1970.
        state: The application's own; nothing of it is ever sent.
        app: The ASGI app that serves it (`scope["app"]`), `None` if it does not say.
    """

    __slots__ = (
        "_catch_up", "_metrics", "_outbox", "_pace", "_settings", "_slow", "app", "codec", "connected_at",
        "direct", "ending", "endpoint", "heard", "home", "id", "identity", "lagging", "link", "phase",
        "pongs", "progress", "state", "subscriptions", "transport",
    )  # fmt: skip

    def __init__(
        self,
        *,
        id: str,
        endpoint: Endpoint,
        home: str | None,
        transport: str,
        codec: Codec,
        identity: Identity | None,
        app: Any,
        settings: Settings,
        pace: Pace,
        metrics: Metrics,
        catch_up: "CatchUp",
    ) -> None:
        self.id = id
        self.endpoint = endpoint
        self.home = home  # the channel that its URL names
        self.transport = transport
        self.codec = codec
        self.identity = identity
        self.app = app
        self.connected_at = pace.clock.time()
        self.state: dict[str, Any] = {}
        self.phase = State.CONNECTING
        self.subscriptions: dict[str, Subscription] = {}
        self.ending: Ending | None = None
        self.progress = self.heard = pace.clock.monotonic()
        self.pongs = False
        self._settings = settings
        self._outbox = Outbox(settings.outbox_messages, settings.outbox_bytes)
        self._pace = pace
        self._metrics = metrics
        self._catch_up = catch_up
        self._slow = False
        self.lagging: list[Subscription] | None = None
        self.link: Link
        # Set by a link that can write frames as they are, as long as nothing waits before them.
        self.direct: Callable[[bytes], object] | None = None

    def __repr__(self) -> str:
        return f"<Session {self.id} {self.phase.name} {len(self.subscriptions)} channels {self._outbox!r}>"

    @property
    def user(self) -> str | None:
        return None if self.identity is None else self.identity.user

    @property
    def kind(self) -> str:
        return self.endpoint.kind

    @property
    def own(self) -> list[str]:
        """The channels that it has from the start, whoever else may not have them."""
        own = list(self.endpoint.own(self.user))
        return own if self.home is None else [self.home, *own]

    @property
    def channels(self) -> list[str]:
        """The channels it has, those it is just joining included."""
        return list(self.subscriptions)

    async def send(self, event: str, data: Any) -> None:
        """Send an event to this session alone; it has no channel and no position, and is not replayed.

        Raises:
            BadRequest: The event's name is none.
            TypeError: JSON cannot carry the data.
            TooLarge: The data is over `MAX_EVENT_BYTES`.
        """
        text, binary = encode_data(data, self._settings.max_event_bytes)
        event = check_event(event)
        publication = Publication(channel="", event=event, data=text, time=self.clock.time(), binary=binary)
        batch = self._single(self.codec.event(publication))
        if not self.deliver(batch):
            self.give_up(batch)

    async def close(self, code: int = endings.DISCONNECTED.code, reason: str = "") -> None:
        """End the session; the client is told whether to reconnect by the range of the code.

        Raises:
            ValueError: The code is neither 1000 nor of 4000–4299.
        """
        self.end(endings.of_application(code, reason))

    # For the fan-out, the requests and the heartbeat: nothing of this waits.

    def may_have(self, channel: str, declared: Declared) -> bool:
        """Whether a channel exists for this session, as far as its endpoint goes."""
        return (self.endpoint.lists(channel, declared) and not declared.own) or channel in self.own

    def welcome(self, features: list[str], *, pong: bool, pending: bool = False) -> None:
        """Begin; `pong` asks the client for signs of life, where the server has no pings of its own.

        A session that is `pending` has no more than this until it is admitted.
        """
        self._move(Move.ASK if pending else Move.WELCOME)
        message = Welcome(
            session=self.id,
            protocol=PROTOCOL,
            features=features,
            heartbeat=self._settings.heartbeat,
            user=self.user,
            time=int(self.connected_at * 1000),
            pong=pong or UNSET,
            auth="required" if pending else UNSET,
        )
        self.tell(message)

    def admit(self, identity: Identity | None) -> bool:
        """Learn who a pending session is; return whether it still waited for that."""
        if not self._move(Move.ADMIT):
            return False
        self.identity = identity
        return True

    def deliver(self, batch: Batch) -> bool:
        """Take a batch and write it if that can be done now; return whether it fits."""
        if self.phase is not State.OPEN and self.phase is not State.PENDING:
            return True  # there is nobody to be slow
        if self.direct is not None:
            self.direct(batch.frames)
        elif self._outbox.batches or not self.link.write(batch):
            taken = self.collect(batch)
            self.link.wake()
            return taken
        self._metrics.events_delivered += batch.events
        self._metrics.bytes_sent += batch.size
        return True

    def collect(self, batch: Batch) -> bool:
        """Take a batch, more of which follow: `wake` will be called."""
        if self.phase is not State.OPEN and self.phase is not State.PENDING:
            return True
        if not self._outbox:
            self._wait()
            self._outbox.turn = self._metrics.turns
        return self._outbox.put(batch, self._metrics.turns)

    def wake(self) -> None:
        """Write what was collected."""
        self.link.wake()

    def has_room(self, publications: Sequence[Publication | Position]) -> bool:
        """Whether events from history find room beside what waits to be written; about, as to bytes."""
        size = sum(one.size for one in publications if isinstance(one, Publication))
        return self._outbox.has_room(len(publications), size)

    def replay(self, batch: Batch) -> None:
        """Take events that come from history: as a whole, unless too much waits already."""
        if self._outbox.over:
            self.give_up(batch)
        elif self.phase is State.OPEN:
            self._force(batch)

    def tell(self, message: Message) -> None:
        """Take a message that is no channel's event."""
        batch = self._single(self.codec.encode(message))
        if not self.deliver(batch):
            self.give_up(batch)

    # Where the client is too slow.

    def slow(self, channel: str, policy: str) -> None:
        """Count and log an episode, which ends when all is written."""
        if not self._slow:
            self._slow = True
            self._metrics.slow_clients += 1
            logger.warning("session %s is too slow for channel %r: %s", self.id, channel, policy)

    def squeeze(self, batch: Batch) -> bool:
        """Take a batch that did not fit in the place of its channel's oldest events, which are a gap."""
        if self.phase is not State.OPEN:
            return True
        dropped = self._outbox.drop_oldest(batch)
        fits = self._outbox.fits(batch)
        if dropped:
            self._metrics.events_dropped += sum(old.events for old in dropped)
            self._outbox.put_before_channel(self._gap(dropped))
        if fits:
            self._outbox.force(batch)  # the gap may have taken its place
        return fits

    def lag(self, subscription: Subscription) -> None:
        """Learn that it lags behind in a channel, until all is written and it has caught up."""
        if self.lagging is None:
            self.lagging = []
        self.lagging.append(subscription)
        if not self._outbox:
            self._catch_up.drained(self)

    def give_up(self, batch: Batch) -> None:
        """End: the client is too slow for a batch."""
        self._count_slow(batch.events)
        self.end(endings.TOO_SLOW)

    # For the heartbeat.

    def beat(self) -> None:
        """Show a sign of life and look for one."""
        now = self.clock.monotonic()
        expires_at = None if self.identity is None else self.identity.expires_at
        if expires_at is not None and expires_at < self.clock.time():
            self.end(endings.EXPIRED)
        elif self.pongs and now - self.heard > 2 * self._settings.heartbeat:
            self.end(endings.NO_SIGN_OF_LIFE)
        else:
            self.tell(Ping())

    def end(self, ending: Ending) -> bool:
        """End it: one last message, then the close frame. Only the first ending counts, and is `True`."""
        if not self._move(Move.END):
            return False
        self.ending = ending
        delay = ending.delay or UNSET
        message = Disconnect(
            code=ending.code, reason=ending.reason, reconnect=delay is not UNSET, delay=delay
        )
        self._force(self._single(self.codec.encode(message)))
        return True

    def abort(self) -> None:
        """Drop a connection whose last write does not finish."""
        if self.ending is not endings.TOO_SLOW:
            self._count_slow(0)
        self._move(Move.END)
        self.ending = endings.TOO_SLOW
        self.link.abort()

    # For the transport.

    @property
    def clock(self) -> Clock:
        """The time that it goes by."""
        return self._pace.clock

    @property
    def next(self) -> Batch | None:
        """What is to be written now."""
        return self._outbox.first()

    def share(self, max_bytes: int) -> list[Batch]:
        """What is to be written now, of several batches as many as fit into one write."""
        return self._outbox.share(max_bytes)

    def written(self, batch: Batch, sent: int) -> None:
        """Learn that the first `sent` messages of a batch are on their way, and the others never will be."""
        metrics = self._metrics
        events = sent if batch.events else 0
        whole = sent == len(batch)
        self.progress = self.clock.monotonic()
        metrics.events_delivered += events
        metrics.bytes_sent += batch.size if whole else sum(map(len, batch.payloads[:sent]))
        if self._outbox.done(batch):
            metrics.events_dropped += batch.events - events
        else:  # it was dropped, and counted, while it was being written
            metrics.events_dropped -= events
        if not self._outbox:
            self._pace.caught_up(self)
            self._slow = False
            if self.lagging:
                self._catch_up.drained(self)

    @property
    def idle(self) -> bool:
        """Whether it is open, and all it had is written."""
        return self.phase is State.OPEN and not self._outbox

    def gone(self, code: int) -> Ending:
        """Learn that the connection is no more; return how it ended, `code` being what the client said."""
        self._move(Move.GONE)
        self._metrics.events_dropped += self._outbox.clear()
        self._pace.caught_up(self)
        ending = self.ending or Ending(code, "")
        self._metrics.disconnects[ending.code] += 1
        return ending

    def _single(self, payload: bytes) -> Batch:
        return Batch(self.codec, (payload,))

    def _force(self, batch: Batch) -> None:
        if not self._outbox:
            self._wait()
        self._outbox.force(batch)
        self.link.wake()

    def _gap(self, dropped: Sequence[Batch]) -> Batch:
        """Return the `gap` that stands for batches of a channel, among them one that stood for others."""
        channel, position = dropped[-1].channel, dropped[-1].position
        assert channel is not None
        count = sum(old.events + old.dropped for old in dropped)
        message = self.codec.encode(gap(channel, position, count))
        return Batch(self.codec, (message,), channel=channel, position=position, dropped=count)

    def _wait(self) -> None:
        self.direct = None
        self.progress = self.clock.monotonic()
        self._pace.behind(self)

    def _count_slow(self, events: int) -> None:
        dropped = self._outbox.clear() + events
        self._metrics.slow_clients += not self._slow
        self._metrics.events_dropped += dropped
        logger.warning("session %s is too slow: closed, with %d events not sent", self.id, dropped)

    def _move(self, move: Move) -> bool:
        phase = MOVES.get((self.phase, move))
        if phase is None:
            return False
        self.phase = phase
        if phase is not State.OPEN:
            self.direct = None
        return True
