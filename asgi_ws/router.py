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
from asgi_ws.patterns import PatternMap
from asgi_ws.publication import Slow

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
        _refuse_own(channel)
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
        for endpoint in router.endpoints:
            self._serve(endpoint)
        self._hook(router.hooks)
        if router.authenticator is not None:
            if self.authenticator is not None:
                got = f"{name_of(self.authenticator)} and {name_of(router.authenticator)}"
                raise ValueError(f"expected one authenticate function, got {got}")
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

    def _declare(self, channel: Channel) -> None:
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
        self.authenticator = function
        if self._parent is not None:
            self._parent._authenticate(function)


def own_channels() -> list[Channel]:
    """Return the channels that every hub has by itself."""
    patterns = (BROADCAST, USER_PREFIX + "{user:path}")
    return [Channel(pattern, public=True, own=True, place="asgi_ws") for pattern in patterns]


def _refuse_own(channel: Channel) -> None:
    text = channel.pattern.text
    if text == BROADCAST or text.startswith((USER_PREFIX, OWN_PREFIX)):
        own = f"{BROADCAST}, {USER_PREFIX}…, {OWN_PREFIX}…"
        raise ValueError(f"{channel.place}: expected a pattern beside the hub's own ({own}), got {text!r}")


def _place() -> str:
    """Return the file and line outside this package that is being executed."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
