"""Where channels, commands, endpoints and hooks are declared: a hub is a router, and includes others."""

import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from asgi_ws import endpoints
from asgi_ws.auth import Authenticate, check_authenticate
from asgi_ws.channels import Channel, Events, PresenceMode
from asgi_ws.commands import Command
from asgi_ws.endpoints import Endpoint, Endpoints
from asgi_ws.handlers import name_of
from asgi_ws.hooks import Hooks, OnConnect, OnDisconnect, check_hook
from asgi_ws.patterns import Pattern, PatternMap
from asgi_ws.publication import Slow
from asgi_ws.sources import Generate, Source

BROADCAST = endpoints.BROADCAST
USER_PREFIX = endpoints.USER_PREFIX
OWN_PREFIX = "$"
Function = TypeVar("Function", bound=Callable[..., Awaitable[Any]])

_PACKAGE = str(Path(__file__).parent)


class Router:
    """A set of declarations, to be included in a hub with `hub.include_router`."""

    def __init__(self) -> None:
        self.channels: PatternMap[Channel] = PatternMap()
        self.commands: dict[str, Command] = {}
        self.endpoints = Endpoints()
        self.hooks = Hooks()
        self.authenticator: Authenticate | None = None
        self.sources: dict[str, Source] = {}
        self._parent: Router | None = None

    def channel(
        self,
        pattern: str,
        *,
        public: bool = False,
        history: int | None = None,
        history_ttl: float | None = None,
        presence: PresenceMode = False,
        events: Events | None = None,
        slow: Slow | None = None,
    ) -> Channel:
        """Declare a channel, or all channels of a pattern; see `Channel`.

        Raises:
            ValueError: The pattern is none, is the hub's own, or could answer for a name that another
                one answers for; the message has both places.
        """
        channel = Channel(
            pattern,
            public=public,
            history=history,
            history_ttl=history_ttl,
            presence=presence,
            events=events,
            slow=slow,
            place=_place(),
        )
        _refuse_own(pattern, channel.place)
        self._declare(channel)
        return channel

    def command(self, name: str) -> Callable[[Function], Function]:
        """Decorate an async function that clients may call by this name; see `Command`.

        Raises:
            ValueError: The name is none, or has a command already; the message has both places.
            TypeError: The function takes what a client cannot give.
        """
        place = _place()

        def declare(function: Function) -> Function:
            self._declare_command(Command(name, function, place))
            return function

        return declare

    def endpoint(
        self,
        path: str,
        *,
        channel: str | Channel | None = None,
        kind: str | None = None,
        authenticate: Authenticate | None = None,
        origins: Iterable[str] | None = None,
        source: str | None = None,
        channels: Iterable[str | Channel] = (),
        commands: Iterable[str] = (),
        broadcast: bool = False,
        user: bool = False,
    ) -> Endpoint:
        """Serve another WebSocket URL beside `/stream`, with rights of its own; see `Endpoint`.

        Raises:
            ValueError: The path is none, is the hub's own, or could answer for one that another endpoint
                answers for; the message has both places.
            TypeError: What it is to have contradicts itself.
        """
        endpoint = Endpoint(
            path,
            channel=channel,
            kind=kind,
            authenticate=None if authenticate is None else check_authenticate(authenticate),
            origins=origins,
            source=source,
            channels=channels,
            commands=commands,
            broadcast=broadcast,
            user=user,
            place=_place(),
        )
        self._serve(endpoint)
        return endpoint

    def authenticate(self, function: Authenticate) -> Authenticate:
        """Decorate the function that says who a session is, where its endpoint has none of its own.

        It has the connection and the token (the bearer header's, else `TOKEN_COOKIE`'s, else `?token=` with
        `TOKEN_IN_QUERY`), and returns an `Identity`, or `None` for anonymous. Raising `Unauthorized` refuses
        the connection (4001); without a token it asks the client for one, in its first message.

        Raises:
            TypeError: It is not async.
        """
        self._authenticate(check_authenticate(function))
        return function

    def on_connect(self, function: OnConnect) -> OnConnect:
        """Decorate a function of (session, connection) that is called before a session joins any channel.

        What it puts into `session.state` is there for the channels' functions. What it raises ends the
        session: `Forbidden` with 4003, `Unauthorized` with 4001, and what is no error of this package with
        1011, logged. Several are called one after another.

        Raises:
            TypeError: It is not async, or takes other arguments.
        """
        hooks = Hooks()
        hooks.connect.append(check_hook(function, "on_connect", "session", "connection"))
        self._hook(hooks)
        return function

    def on_disconnect(self, function: OnDisconnect) -> OnDisconnect:
        """Decorate a function of (session, code, reason) that is called once when a session is gone.

        It is called for every session whose `on_connect` has finished, when the hub stops as well;
        `session.channels` has those that it had at its end.

        Raises:
            TypeError: It is not async, or takes other arguments.
        """
        hooks = Hooks()
        hooks.disconnect.append(check_hook(function, "on_disconnect", "session", "code", "reason"))
        self._hook(hooks)
        return function

    def source(
        self, name: str, *, max_instances: int = 64, event: str | None = None, slow: Slow = "latest"
    ) -> Callable[[Generate], Source]:
        """Decorate an async generator function that clients can watch; see `Source`.

        Raises:
            TypeError: It is no async generator function, or takes what a name cannot spell.
            ValueError: The name is none, is the hub's own, or belongs to another source or could be
                answered for by a channel; the message has both places.
        """
        place = _place()

        def declare(function: Generate) -> Source:
            _refuse_own(str(name), place)
            source = Source(name, function, max_instances=max_instances, event=event, slow=slow, place=place)
            self._declare_source(source)
            return source

        return declare

    def include_router(self, router: "Router") -> None:
        """Take in all that a router declares, now and later.

        Raises:
            ValueError: It is included already, declares what is declared here, or has an `authenticate` of
                its own, as this one has.
        """
        if router._parent is not None or router in self._ancestors():
            raise ValueError(f"expected a router that is in no other, got {router!r}")
        for entry in router.channels:
            self._declare(entry.value)
        for command in router.commands.values():
            self._declare_command(command)
        for source in router.sources.values():
            self._declare_source(source)
        for endpoint in router.endpoints:
            self._serve(endpoint)
        self._hook(router.hooks)
        if router.authenticator is not None:
            self._authenticate(router.authenticator)
        router._parent = self

    def _ancestors(self) -> "Iterator[Router]":
        router: Router | None = self
        while router is not None:
            yield router
            router = router._parent

    def find(self, name: str) -> tuple[Channel, dict[str, Any]] | None:
        """Return the declaration of a channel, and its parameters; `None` if nothing declares it."""
        return None if name.startswith(OWN_PREFIX) else self.channels.find(name)

    def find_source(self, name: str) -> Source | None:
        """Return the source that a name, full or shorter, belongs to."""
        return self.sources.get(name.partition("?")[0]) if self.sources else None

    def find_any(self, name: str) -> tuple[Channel | Source, dict[str, Any]] | None:
        """Return the channel or the source of a full name, and its parameters."""
        source = self.find_source(name)
        return self.find(name) if source is None else (source, source.read(name))

    def full_name(self, name: str) -> str:
        """Return a channel's full name: that of a source has all of its parameters.

        Raises:
            BadRequest: It is of a source, and has parameters that are not the source's.
        """
        source = self.find_source(name)
        return name if source is None else source.complete(name)

    def _declare(self, channel: Channel) -> None:
        for source in self.sources.values():
            _refuse_rivals(source, channel.pattern, channel.place)
        self.channels.add(channel.pattern, channel, channel.place)
        if self._parent is not None:
            self._parent._declare(channel)

    def _declare_command(self, command: Command) -> None:
        for router in self._ancestors():
            other = router.commands.get(command.name)
            if other is not None:
                raise ValueError(
                    f"{command.place}: expected one command {command.name!r}, got a second; the first is at "
                    f"{other.place}"
                )
        for router in self._ancestors():
            router.commands[command.name] = command

    def _serve(self, endpoint: Endpoint) -> None:
        self.endpoints.add(endpoint)
        if self._parent is not None:
            self._parent._serve(endpoint)

    def _hook(self, hooks: Hooks) -> None:
        self.hooks.include(hooks)
        if self._parent is not None:
            self._parent._hook(hooks)

    def _authenticate(self, function: Authenticate) -> None:
        for router in self._ancestors():
            if router.authenticator is not None:
                got = f"{name_of(router.authenticator)} and {name_of(function)}"
                raise ValueError(f"expected one authenticate function, got {got}")
        for router in self._ancestors():
            router.authenticator = function

    def _declare_source(self, source: Source) -> None:
        for entry in self.channels:
            _refuse_rivals(source, entry.pattern, entry.place)
        other = self.sources.setdefault(source.name, source)
        if other is not source:
            got = f"{source.name!r} ({other.place}) and {source.name!r} ({source.place})"
            raise ValueError(f"expected one source at most of a name, got {got}")
        if self._parent is not None:
            self._parent._declare_source(source)


def own_channels() -> list[Channel]:
    """Return the channels that every hub has by itself."""
    patterns = (BROADCAST, USER_PREFIX + "{user:path}")
    return [Channel(pattern, public=True, own=True, place="asgi_ws") for pattern in patterns]


def _refuse_own(text: str, place: str) -> None:
    if text == BROADCAST or text.startswith((USER_PREFIX, OWN_PREFIX)):
        own = f"{BROADCAST}, {USER_PREFIX}…, {OWN_PREFIX}…"
        raise ValueError(f"{place}: expected a pattern beside the hub's own ({own}), got {text!r}")


def _refuse_rivals(source: Source, pattern: Pattern, place: str) -> None:
    if source.rivals(pattern):
        got = f"source {source.name!r} ({source.place}) and channel {pattern.text!r} ({place})"
        raise ValueError(f"expected a source or a channel at most to answer for any name, got {got}")


def _place() -> str:
    """Return the file and line outside this package that is being executed."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
