"""What an application declares about a channel, and asks of who wants to hear it."""

from collections.abc import AsyncIterable, Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, Self, TypeVar, get_args, overload

from asgi_ws.errors import BadRequest, Forbidden, NotRunning, SettingsError, Undeclared
from asgi_ws.handlers import Handler
from asgi_ws.patterns import Pattern, check_event
from asgi_ws.publication import Position, Retention, Slow
from asgi_ws.session import Session
from asgi_ws.settings import Settings
from asgi_ws.values import Reader, conform

SubscribeRight = Callable[..., Awaitable[None]]
Events = Mapping[str, Any] | Sequence[str]
PresenceMode = Literal["count"] | bool
Function = TypeVar("Function", bound=Callable[..., Awaitable[Any]])


class Snapshot(NamedTuple):
    """A channel's state, and the position that it is of: events up to it are in it, later ones follow.

    Attributes:
        data: As what is published, but `null` is data, too.
        position: `None` where it is not known: the position that was read before, so that what was published
            meanwhile may be in the data and follow again.
    """

    data: Any
    position: Position | None = None


class Publisher(Protocol):
    """Who publishes for a channel: the hub."""

    async def publish(
        self, channel: str, event: str, data: Any, *, key: str | None, exclude: str | None
    ) -> Position | None:
        """See `Hub.publish`."""

    def publish_nowait(
        self, channel: str, event: str, data: Any, *, key: str | None, exclude: str | None
    ) -> None:
        """See `Hub.publish_nowait`."""

    async def feed(self, channel: str, items: AsyncIterable[Any], event: str) -> None:
        """See `Hub.feed`."""


class Channel:
    """A declared channel, or all the channels of one pattern.

    As a decorator it takes the function that is asked whether a session may subscribe; called with the
    pattern's parameters it is one of its channels, to publish to.

    Args:
        pattern: As in `dialog:{dialog_id:int}`.
        public: Every `/stream` session may subscribe; nobody is asked.
        history: How many publications are kept; 0 turns history and positions off; `None`: the setting.
        history_ttl: For how many seconds; `None`: the setting.
        presence: `True`: its sessions are told who is there; `"count"`: only how many.
        events: The events it has, with the types of their data or without; `None`: any.
        slow: What is done with a client that is too slow for it: `resync` feeds it from history as it
            reads (without history: as `disconnect`), `disconnect` ends the session (4102), `drop_oldest` and
            `drop_newest` say how much as a `gap`, `latest` keeps only the newest of each event's name;
            `None`: the setting.
        place: Where it was declared, as in `app.py:12`.
        own: The hub has it by itself; a session only if it is the session's.
    """

    def __init__(
        self,
        pattern: str,
        *,
        public: bool = False,
        history: int | None = None,
        history_ttl: float | None = None,
        presence: PresenceMode = False,
        events: Events | None = None,
        slow: Slow | None = None,
        place: str = "?",
        own: bool = False,
    ) -> None:
        self.pattern = Pattern(pattern)
        if presence not in (True, False, "count"):
            raise ValueError(f'{place}: expected presence=True, False or "count", got {presence!r}')
        self.public = public
        self.presence = presence
        self.events = None if events is None else _events(events)
        self.place = place
        self.own = own
        self.publisher: Publisher | None = None
        self.retention = Retention(0, 0.0)
        self.slow: Slow = "disconnect"
        self._slow = _check_slow(slow)
        self._history = history
        self._history_ttl = history_ttl
        self._right: Handler | None = None
        self._snapshot: Handler | None = None
        self._publish_right: Handler | None = None
        self._readers: dict[str, Reader] = {}

    def __repr__(self) -> str:
        return f"<Channel {self.pattern.text!r} declared at {self.place}>"

    @overload
    def __call__(self, right: SubscribeRight, /) -> Self: ...
    @overload
    def __call__(self, /, **params: Any) -> "BoundChannel": ...
    def __call__(self, right: SubscribeRight | None = None, /, **params: Any) -> "Self | BoundChannel":
        if right is None:
            return BoundChannel(self, self.pattern.render(**params))
        what = f"the function of channel {self.pattern.text!r}"
        self._right = Handler(right, what, required=self.pattern.params)
        return self

    @property
    def asks(self) -> bool:
        """Whether the application is asked anything when a session subscribes."""
        return self._right is not None or self._snapshot is not None or not self.public

    @property
    def has_snapshot(self) -> bool:
        """Whether there is a state that those who start are given."""
        return self._snapshot is not None

    @property
    def has_publish_right(self) -> bool:
        """Whether clients may publish at all."""
        return self._publish_right is not None

    def snapshot(self, function: Function) -> Function:
        """Decorate the function that returns the channel's state, for those who start or could not resume.

        It takes what the channel's function takes, and returns data, or a `Snapshot`, which says of which
        position.

        Raises:
            TypeError: It takes what cannot be given, or there is one already.
        """
        what = f"the snapshot of channel {self.pattern.text!r}"
        self._refuse_second(self._snapshot, what)
        self._snapshot = Handler(function, what, required=self.pattern.params)
        return function

    def publish_right(self, function: Function) -> Function:
        """Decorate the function that is asked whether a client may publish; it raises to refuse.

        It takes what the channel's function takes, and by name `event` and `data`, which comes as the type
        that is declared for the event. Without such a function no client may publish.

        Raises:
            TypeError: It takes what cannot be given, there is one already, or the data of an event has a
                type that cannot be read from JSON.
        """
        what = f"the publish right of channel {self.pattern.text!r}"
        self._refuse_second(self._publish_right, what)
        taken = {"event", "data"} & set(self.pattern.params)
        if taken:
            raise TypeError(f"expected {what} to have no parameter {min(taken)!r} in its pattern, got one")
        optional = ("event", "data")
        self._publish_right = Handler(function, what, required=self.pattern.params, optional=optional)
        self._readers = {event: Reader(kind) for event, kind in (self.events or {}).items()}
        return function

    async def publish(
        self, event: str, data: Any, *, key: str | None = None, exclude: str | None = None
    ) -> Position | None:
        """Publish to a channel without parameters; see `Hub.publish`."""
        return await self().publish(event, data, key=key, exclude=exclude)

    def publish_nowait(
        self, event: str, data: Any, *, key: str | None = None, exclude: str | None = None
    ) -> None:
        """Publish to a channel without parameters; see `Hub.publish_nowait`."""
        self().publish_nowait(event, data, key=key, exclude=exclude)

    async def feed(self, items: AsyncIterable[Any], event: str = "token") -> None:
        """Publish an async iterable into a channel without parameters; see `Hub.feed`."""
        await self().feed(items, event)

    def settle(self, publisher: Publisher, settings: Settings) -> None:
        """Belong to a hub: its settings fill what the declaration left open."""
        self.publisher = publisher
        size = settings.history if self._history is None else self._history
        ttl = settings.history_ttl if self._history_ttl is None else self._history_ttl
        self.retention = Retention(size, ttl)
        self.slow = self._slow or settings.slow

    def check_start(self, features: Collection[str]) -> None:
        """Refuse a declaration that nobody could subscribe to, or that the broadcaster cannot keep.

        Raises:
            SettingsError: It has neither a function nor `public=True`, or a history or presence that cannot
                be.
        """
        for feature, wanted in ("history", self._history), ("presence", self.presence):
            if wanted and feature not in features:
                raise SettingsError(
                    f"{self.place}: expected a broadcaster with {feature} for channel {self.pattern.text!r}, "
                    f"got one with {', '.join(sorted(features)) or 'nothing'}"
                )
        if self._right is None and not self.public:
            raise SettingsError(
                f"{self.place}: expected channel {self.pattern.text!r} to have a function or public=True, "
                "got neither"
            )

    def check_event(self, event: str, data: Any) -> None:
        """Refuse what this channel does not carry.

        Raises:
            BadRequest: The event's name is none.
            Undeclared: The channel has no such event.
            TypeError: The data is not of the event's type.
        """
        self.check_event_name(event)
        if self.events is not None:
            _check_data(event, data, self.events[event])

    def check_event_name(self, event: str) -> None:
        """Refuse an event that this channel does not carry, whatever its data; see `check_event`."""
        check_event(event)
        if self.events is not None and event not in self.events:
            known = ", ".join(map(repr, self.events))
            raise Undeclared(
                f"expected an event of channel {self.pattern.text!r} ({known}), got {event!r}; "
                f"add it to events= at {self.place}"
            )

    def read_event(self, event: str, value: Any) -> Any:
        """Return what a client publishes, from `values.receive`, as the type of the event's data.

        Raises:
            BadRequest: The event's name is none, the channel has no such event, or the data does not fit.
        """
        check_event(event)
        if self.events is None:
            return _read_any(value, "data")
        if event not in self._readers:
            known = ", ".join(map(repr, self.events))
            raise BadRequest(f"expected an event of this channel ({known}), got {event!r}")
        return self._readers[event](value, "data")

    async def may_publish(self, session: Session, params: dict[str, Any], event: str, data: Any) -> None:
        """Ask whether a session may publish this; whatever the application's function raises says no."""
        assert self._publish_right is not None
        await self._publish_right(session, {**params, "event": event, "data": data})

    async def state_for(self, session: Session, params: dict[str, Any]) -> Snapshot | None:
        """Return the channel's state for a session, `None` where there is no function that gives it."""
        if self._snapshot is None:
            return None
        state = await self._snapshot(session, params)
        return state if isinstance(state, Snapshot) else Snapshot(state)

    def _refuse_second(self, handler: Handler | None, what: str) -> None:
        if handler is not None:
            raise TypeError(
                f"{self.place}: expected one function for {what}, got a second beside {handler!r}"
            )

    async def authorize(self, session: Session, params: dict[str, Any]) -> None:
        """Ask whether a session may subscribe; whatever the application's function raises says no."""
        if self._right is not None:
            await self._right(session, params)
        elif not self.public:  # declared while the hub runs: no start has refused it
            raise Forbidden("expected a channel that may be subscribed to, got one that is closed")


class BoundChannel:
    """One channel of a declared pattern; `name` is what is published to."""

    __slots__ = ("_channel", "name")

    def __init__(self, channel: Channel, name: str) -> None:
        self._channel = channel
        self.name = name

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<BoundChannel {self.name!r}>"

    async def publish(
        self, event: str, data: Any, *, key: str | None = None, exclude: str | None = None
    ) -> Position | None:
        """Publish to this channel; see `Hub.publish`."""
        return await self._publisher.publish(self.name, event, data, key=key, exclude=exclude)

    def publish_nowait(
        self, event: str, data: Any, *, key: str | None = None, exclude: str | None = None
    ) -> None:
        """Publish to this channel from any thread; see `Hub.publish_nowait`."""
        self._publisher.publish_nowait(self.name, event, data, key=key, exclude=exclude)

    async def feed(self, items: AsyncIterable[Any], event: str = "token") -> None:
        """Publish an async iterable into this channel; see `Hub.feed`."""
        await self._publisher.feed(self.name, items, event)

    @property
    def _publisher(self) -> Publisher:
        if self._channel.publisher is None:
            raise NotRunning(
                f"{self._channel.place}: expected the router of channel {self.name!r} to be in a hub "
                "(hub.include_router), got one that is in none"
            )
        return self._channel.publisher


def _check_slow(slow: Slow | None) -> Slow | None:
    if slow is not None and slow not in get_args(Slow):
        raise ValueError(f"expected slow to be {', '.join(get_args(Slow))}, got {slow!r}")
    return slow


_read_any = Reader(Any)


def _events(events: Events) -> dict[str, Any]:
    declared = dict(events) if isinstance(events, Mapping) else dict.fromkeys(events, Any)
    for event in declared:
        check_event(event)
    return declared


def _check_data(event: str, data: Any, kind: Any) -> None:
    try:
        conform(data, kind)
    except (ValueError, TypeError) as error:  # ValidationError is a ValueError, Pydantic's too
        expected = getattr(kind, "__name__", kind)
        raise TypeError(
            f"expected the data of event {event!r} to be {expected}, got {type(data).__name__}: {error}"
        ) from error
