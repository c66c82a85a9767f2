"""What an application declares about a channel, and asks of who wants to hear it."""

import types
import typing
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Protocol, Self, get_args, overload

import msgspec

from asgi_ws.codecs import dump_model
from asgi_ws.errors import NotRunning, SettingsError, Undeclared
from asgi_ws.handlers import Handler
from asgi_ws.patterns import Pattern, check_event
from asgi_ws.publication import Position, Retention, Slow
from asgi_ws.session import Session
from asgi_ws.settings import Settings

SubscribeRight = Callable[..., Awaitable[None]]
Events = Mapping[str, Any] | Sequence[str]


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


class Channel:
    """A declared channel, or all the channels of one pattern.

    As a decorator it takes the function that is asked whether a session may subscribe; called with the
    pattern's parameters it is one of its channels, to publish to.

    Args:
        pattern: As in `dialog:{dialog_id:int}`.
        public: Every `/stream` session may subscribe; nobody is asked.
        history: How many publications are kept; 0 turns history and positions off; `None`: the setting.
        history_ttl: For how many seconds; `None`: the setting.
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
        events: Events | None = None,
        slow: Slow | None = None,
        place: str = "?",
        own: bool = False,
    ) -> None:
        self.pattern = Pattern(pattern)
        self.public = public
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
        """Whether the application is asked who may subscribe."""
        return self._right is not None

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
            SettingsError: It has neither a function nor `public=True`, or a history that cannot be.
        """
        if self._history and "history" not in features:
            raise SettingsError(
                f"{self.place}: expected a broadcaster with history for channel {self.pattern.text!r}, "
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
        check_event(event)
        if self.events is None:
            return
        if event not in self.events:
            known = ", ".join(map(repr, self.events))
            raise Undeclared(
                f"expected an event of channel {self.pattern.text!r} ({known}), got {event!r}; "
                f"add it to events= at {self.place}"
            )
        _check_data(event, data, self.events[event])

    async def authorize(self, session: Session, params: dict[str, Any]) -> None:
        """Ask whether a session may subscribe; whatever the application's function raises says no."""
        if self._right is not None:
            await self._right(session, params)


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


def _events(events: Events) -> dict[str, Any]:
    declared = dict(events) if isinstance(events, Mapping) else dict.fromkeys(events, Any)
    for event in declared:
        check_event(event)
    return declared


def _check_data(event: str, data: Any, kind: Any) -> None:
    try:
        _conform(data, kind)
    except (ValueError, TypeError) as error:  # ValidationError is a ValueError, Pydantic's too
        expected = getattr(kind, "__name__", kind)
        raise TypeError(
            f"expected the data of event {event!r} to be {expected}, got {type(data).__name__}: {error}"
        ) from error


def _conform(data: Any, kind: Any) -> None:
    if kind is Any or _is_instance(data, kind):
        return
    if typing.get_origin(kind) in {typing.Union, types.UnionType}:
        _conform_to_one(data, typing.get_args(kind))
    else:
        msgspec.convert(msgspec.to_builtins(data, enc_hook=dump_model), kind, dec_hook=_read_model)


def _conform_to_one(data: Any, kinds: Sequence[Any]) -> None:
    errors = []
    for kind in kinds:
        try:
            return _conform(data, kind)
        except (ValueError, TypeError) as error:
            errors.append(str(error))
    raise TypeError("; ".join(errors))


def _is_instance(data: Any, kind: Any) -> bool:
    try:
        return isinstance(data, kind)
    except TypeError:  # a TypedDict, or a generic
        return False


def _read_model(kind: Any, value: Any) -> Any:
    read = getattr(kind, "model_validate_json", None)
    if read is None:
        raise TypeError(f"expected {kind.__name__}, got {type(value).__name__}")
    return read(msgspec.json.encode(value), strict=True)  # strict: it is sent as it is, not as it is read
