"""Where channels and commands are declared: a hub is a router, and includes others."""

import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from asgi_ws.channels import Channel, Events, PresenceMode
from asgi_ws.commands import Command
from asgi_ws.patterns import PatternMap
from asgi_ws.publication import Slow

BROADCAST = "broadcast"
USER_PREFIX = "user:"
OWN_PREFIX = "$"
Function = TypeVar("Function", bound=Callable[..., Awaitable[Any]])

_PACKAGE = str(Path(__file__).parent)


class Router:
    """A set of declarations, to be included in a hub with `hub.include_router`."""

    def __init__(self) -> None:
        self.channels: PatternMap[Channel] = PatternMap()
        self.commands: dict[str, Command] = {}
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

    def include_router(self, router: "Router") -> None:
        """Take in all that a router declares, now and later.

        Raises:
            ValueError: It is included already, or declares what is declared here.
        """
        if router._parent is not None or router in self._ancestors():
            raise ValueError(f"expected a router that is in no other, got {router!r}")
        for entry in router.channels:
            self._declare(entry.value)
        for command in router.commands.values():
            self._declare_command(command)
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


def own_channels() -> list[Channel]:
    """Return the channels that every hub has by itself."""
    patterns = (BROADCAST, USER_PREFIX + "{user:path}")
    return [Channel(pattern, public=True, own=True, place="asgi_ws") for pattern in patterns]


def own_names(user: str | None) -> tuple[str, ...]:
    """Return which of those a session of a user has."""
    return (BROADCAST,) if user is None else (BROADCAST, USER_PREFIX + user)


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
