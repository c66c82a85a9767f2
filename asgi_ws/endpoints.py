"""WebSocket URLs beside `/stream`, each with a channel, a kind and rights of its own.

What a session may have is what its endpoint lists: the channel that the URL names, then `channels`,
`commands`, and with `broadcast` and `user` the hub's own. `/stream` is an endpoint as well: the one that
lists everything.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from starlette.datastructures import QueryParams

from asgi_ws import settings
from asgi_ws.auth import Authenticate
from asgi_ws.errors import BadRequest, NotFound, SettingsError
from asgi_ws.patterns import Pattern, PatternMap, check_channel

BROADCAST = "broadcast"
USER_PREFIX = "user:"

# What the hub serves by itself, or will: no endpoint can have one of these paths.
OWN_PATHS = (
    "/stream", "/status", "/stats", "/health", "/metrics", "/publish", "/disconnect", "/drain", "/live",
    "/client.js", "/client.d.ts", "/react.js",
)  # fmt: skip
OWN_PLACE = "the hub's own"
# The hub's own part of a URL's query; the rest is the source's.
OWN_QUERY = frozenset({"channel", "resume", "token"})
# Longer paths are found nowhere: what is found is remembered, so it must not be long.
MAX_PATH = 1024

_converters = re.compile(r":\w+(?=\})")


class Declared(Protocol):
    """What is declared about a channel, as far as an endpoint knows it: a channel's, or a source's."""

    own: bool


class Channel(Declared, Protocol):
    """A declared channel, as far as an endpoint knows it."""

    pattern: Pattern


class Source(Declared, Protocol):
    """A declared source, as far as an endpoint knows it."""

    def name_for(self, query: Mapping[str, str], /) -> str:
        """Return the channel for these parameters; `BadRequest` where they are not its own."""


class Declarations(Protocol):
    """Where an endpoint finds what it names: the hub."""

    channels: PatternMap[Any]

    def find(self, name: str, /) -> tuple[Any, dict[str, Any]] | None:
        """Return the declaration of a channel, and its parameters."""


class Endpoint:
    """A WebSocket URL.

    Args:
        path: Below the hub's mount, as in `/dialogs/{dialog_id:int}`.
        channel: The declared channel that its sessions have from the start, by name or as it was declared;
            `dialog:{dialog_id}` has the path's parameters, whose converters it may leave out.
        kind: What its sessions are counted as; `None`: the source's name, or the first literal segment of
            the channel, or else of the path.
        authenticate: Who a session is; `None`: `@hub.authenticate` says it.
        origins: The only pages that may connect, in place of `ALLOWED_ORIGINS` and the same origin.
        source: The source that its sessions watch from the start; its parameters are the query's.
        channels: Declared channels, and sources by name, that its sessions may subscribe to besides.
        commands: Commands that its sessions may call.
        broadcast: Its sessions have the channel `broadcast`.
        user: Its sessions have the channel `user:<id>` of their user.
        everything: They may have all that is declared; for `/stream`.
        place: Where it was declared, as in `app.py:12`.

    Raises:
        ValueError: The path, the channel or an origin is none, or there is nothing that its sessions have.
        TypeError: It has both a channel and a source, or a text where a list belongs.
    """

    def __init__(
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
        everything: bool = False,
        place: str = "?",
    ) -> None:
        self.path = _path(path)
        self.place = place
        self.channel = None if channel is None else Pattern(_text(channel))
        self.source = source
        self.authenticate = authenticate
        self.origins = None if origins is None else tuple(_origin(one) for one in _several(origins))
        self.channels = tuple(_text(one) for one in _several(channels))
        self.commands = frozenset(_several(commands))
        self.broadcast = broadcast
        self.user = user
        self.everything = everything
        self.kind = self._kind() if kind is None else _check_kind(kind)
        self._check()
        # Found in what is declared, when the hub starts.
        self._home: Channel | None = None
        self._source: Source | None = None
        self._listed: frozenset[Declared] = frozenset()
        self._names: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"<Endpoint {self.path.text!r} declared at {self.place}>"

    def own(self, user: str | None) -> Iterator[str]:
        """The hub's own channels that a session has from the start."""
        if self.broadcast:
            yield BROADCAST
        if self.user and user is not None:
            yield USER_PREFIX + user

    def lists(self, name: str, declared: Declared) -> bool:
        """Whether its sessions may subscribe to a channel, as far as the endpoint goes.

        Args:
            name: The channel's.
            declared: What declares it: a channel, or a source.
        """
        return self.everything or declared in self._listed or name in self._names

    def allows(self, command: str) -> bool:
        """Whether its sessions may call a command."""
        return self.everything or command in self.commands

    def home(self, params: Mapping[str, Any], query: QueryParams) -> str | None:
        """Return the channel that a session of a URL has from the start, `None` where it has none.

        Args:
            params: The path's parameters, read, and perhaps those of a mount around it.
            query: The query's, of which a source reads its own.

        Raises:
            NotFound: No channel can be called so.
            BadRequest: The query is not what the source expects.
        """
        params = {name: params[name] for name in self.path.params}
        if self._source is not None:
            return self._source.name_for(_parameters(query.multi_items(), params))
        if self._home is None:
            return None if self.channel is None else self.channel.text
        try:
            return check_channel(self._home.pattern.render(**params))
        except (ValueError, BadRequest) as error:
            raise NotFound(f"expected the path of a channel, got {params!r}") from error

    def settle(self, declared: Declarations) -> None:
        """Find what it names in what is declared.

        Raises:
            SettingsError: Something is not declared, or the channel's parameters are not the path's.
        """
        self._home = None if self.channel is None else self._find_home(declared)
        self._source = None if self.source is None else self._find_source(declared)
        found = {one: _sources(declared).get(one) or self._find(one, declared) for one in self.channels}
        # One name of a pattern is no more than that.
        self._names = frozenset(one for one, channel in found.items() if _is_one_of(one, channel))
        self._listed = frozenset(channel for one, channel in found.items() if one not in self._names)
        if self.commands:
            known = getattr(declared, "commands", {})
            for command in sorted(self.commands):
                if command not in known:
                    raise self._undeclared("command", command, known)

    def _find_home(self, declared: Declarations) -> Channel | None:
        assert self.channel is not None
        found = self._find(self.channel.text, declared)
        # One name of a pattern has no parameters left.
        pattern = found.pattern if self.channel.params else self.channel
        if pattern.params != self.path.params:
            raise SettingsError(
                f"{self.place}: expected the parameters of path {self.path.text!r} to be those of channel "
                f"{pattern.text!r}, got {_shown(self.path)} and {_shown(pattern)}"
            )
        return found if self.channel.params else None

    def _find(self, text: str, declared: Declarations) -> Channel:
        """Find a channel by its pattern, with converters or without; or one name of a pattern."""
        # The hub's own are had by `broadcast=True` and `user=True`, for they are each user's own.
        known: list[Channel] = [entry.value for entry in declared.channels if not entry.value.own]
        for channel in known:
            if text in {channel.pattern.text, _bare(channel.pattern.text)}:
                return channel
        found = None if "{" in text else declared.find(text)
        if found is None or found[0].own:
            raise self._undeclared("channel", text, [channel.pattern.text for channel in known])
        one: Channel = found[0]
        return one

    def _find_source(self, declared: Declarations) -> Source:
        known = _sources(declared)
        assert self.source is not None
        if self.source not in known:
            raise self._undeclared("source", self.source, known)
        return known[self.source]

    def _undeclared(self, what: str, name: str, known: Iterable[str]) -> SettingsError:
        names = ", ".join(map(repr, known)) or "none"
        return SettingsError(
            f"{self.place}: expected endpoint {self.path.text!r} to name a declared {what} ({names}), "
            f"got {name!r}"
        )

    def _kind(self) -> str:
        of_channel = None if self.channel is None else self.channel.first_literal
        return self.source or of_channel or self.path.first_literal or "endpoint"

    def _check(self) -> None:
        if self.channel is not None and self.source is not None:
            raise TypeError(
                f"expected endpoint {self.path.text!r} to have a channel or a source, got both: "
                f"{self.channel.text!r} and {self.source!r}"
            )
        has = (self.channel, self.source, self.channels, self.commands, self.broadcast, self.user)
        if not any(has) and not self.everything:
            expected = "a channel, a source, or something listed"
            raise ValueError(f"expected endpoint {self.path.text!r} to have {expected}, got nothing")


class Endpoints:
    """The endpoints of a router, by their paths; the hub's own paths are taken."""

    def __init__(self) -> None:
        self._paths: PatternMap[Endpoint | None] = PatternMap()
        for path in OWN_PATHS:
            self._paths.add(path, None, OWN_PLACE)

    def __iter__(self) -> Iterator[Endpoint]:
        return (entry.value for entry in self._paths if entry.value is not None)

    def add(self, endpoint: Endpoint) -> None:
        """Take one in; `ValueError` if another one could answer for one of its paths."""
        self._paths.add(endpoint.path, endpoint, endpoint.place)

    def find(self, path: str) -> tuple[Endpoint, dict[str, Any]] | None:
        """Return the endpoint of a path, and the path's parameters."""
        found = self._paths.find(path) if len(path) <= MAX_PATH else None
        if found is None or found[0] is None:
            return None
        return found[0], found[1]


def _path(text: str) -> Pattern:
    if not isinstance(text, str) or not re.fullmatch(r"(/[^/\s?#]+)+/?", text):
        raise ValueError(f"expected a path such as '/dialogs/{{dialog_id:int}}', got {text!r}")
    return Pattern(text.removesuffix("/"))


def _sources(declared: Declarations) -> Mapping[str, Source]:
    sources: Mapping[str, Source] = getattr(declared, "sources", {})
    return sources


def _is_one_of(name: str, declared: Declared) -> bool:
    pattern = getattr(declared, "pattern", None)
    return isinstance(pattern, Pattern) and bool(pattern.params) and "{" not in name


def _text(channel: str | Channel) -> str:
    if isinstance(channel, str):
        return channel
    pattern = getattr(channel, "pattern", None)
    if not isinstance(pattern, Pattern):
        raise TypeError(f"expected a channel's name or a declared channel, got {channel!r}")
    return pattern.text


def _several(values: Iterable[Any]) -> Iterable[Any]:
    # A text is a list of texts, too, and `origins="*"` would be one of no sense.
    if isinstance(values, str):
        raise TypeError(f"expected a list, got {values!r}")
    return values


def _origin(text: str) -> str:
    try:
        return settings.origin(text)
    except ValueError as error:
        raise ValueError(f"expected {settings.ORIGINS.expected}, got {text!r}") from error


def _check_kind(kind: str) -> str:
    if not isinstance(kind, str) or not re.fullmatch(r"[A-Za-z0-9_.:-]{1,64}", kind):
        raise ValueError(f"expected a kind of 1 to 64 of A-Z a-z 0-9 _ . : -, got {kind!r}")
    return kind


def _bare(text: str) -> str:
    return _converters.sub("", text)


def _shown(pattern: Pattern) -> str:
    return ", ".join(f"{name}:{converter}" for name, converter in pattern.params.items()) or "none"


def _parameters(query: Iterable[tuple[str, str]], params: Mapping[str, Any]) -> dict[str, str]:
    """What a source is asked for: the query's pairs beside the hub's own, and the path's parameters."""
    asked = {name: str(value) for name, value in params.items()}
    for name, value in query:
        if name in OWN_QUERY:
            continue
        if name in asked:
            raise BadRequest(f"expected each parameter once, got {name!r} twice")
        asked[name] = value
    return asked


def stream() -> Endpoint:
    """Return `/stream`, whose sessions may have all that is declared."""
    return Endpoint("/stream", kind="stream", broadcast=True, user=True, everything=True, place=OWN_PLACE)
