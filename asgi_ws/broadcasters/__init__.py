"""How publications get from a node to all nodes: the interface, and finding one by URL.

A third party registers its own under the entry-point group `asgi_ws.broadcasters`: the name is the
URL's scheme, the object a callable that takes the hub's `Settings` and returns a `Broadcaster`.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable
from urllib.parse import urlsplit

from asgi_ws.errors import SettingsError
from asgi_ws.publication import Position, Publication, Retention
from asgi_ws.settings import Settings

ENTRY_POINTS = "asgi_ws.broadcasters"

# What a broadcaster can promise; a hub that declares something its broadcaster lacks does not start.
Feature = Literal["history", "idempotency", "presence", "total_order"]


class History(NamedTuple):
    """What is kept of a channel after a position.

    Attributes:
        position: The channel's top when this was read; it covers every publication returned.
        publications: In order, each with its position.
        complete: Nothing is missing between the position asked for and the first publication, nor
            between the last one and `position`. If it is false, there are no publications.
    """

    position: Position
    publications: Sequence[Publication]
    complete: bool


@dataclass(frozen=True, slots=True)
class Member:
    """A user's presence in a channel, over all of its sessions.

    Attributes:
        sessions: How many it has there; 0 where the last one left less than five seconds ago.
        info: What others may see of the user, as its newest session has it. Between nodes JSON text as
            UTF-8, to the application what that text says.
        since: When the first of the sessions came, in seconds since 1970.
    """

    user: str
    sessions: int
    info: Any
    since: float


@dataclass(frozen=True, slots=True)
class Presence:
    """Who is in a channel, over all nodes.

    A dataclass, so that a FastAPI route may return it.

    Attributes:
        members: Those who have been there longest, in the order in which they came.
        users: How many there are, of which `members` may be a part.
        sessions: How many sessions there are, those of nobody known included.
    """

    members: list[Member]
    users: int
    sessions: int


class Change(NamedTuple):
    """What the coming or going of one session has made of a channel's presence, over all nodes.

    Attributes:
        came: Whether it came; else it went.
        member: Its user as it is now, with 0 sessions if that was its last; `None` for an anonymous session.
        users, sessions: How many there are now.
    """

    channel: str
    came: bool
    member: Member | None
    users: int
    sessions: int


class Receiver(Protocol):
    """Who hears what a broadcaster carries: the node. Each call is made in the node's event loop."""

    def deliver(self, publication: Publication) -> None:
        """Take a publication of a subscribed channel, in the channel's order, once."""

    def missed(self, channel: str, position: Position | None) -> None:
        """Learn that something of a channel up to `position` is lost, and cannot be had from history."""

    def changed(self, change: Change) -> None:
        """Learn that a session has come or gone, here or on another node.

        Called for the channels in which this node has a session, in an order that is right for each user.
        Changes that neither bring a user nor take one away may be left out where a later one has their
        counts. With the feature `presence` only.
        """


class Broadcaster(ABC):
    """Carries publications between nodes.

    Every method is called in the event loop that `start` was called in. All but `start` and `stop` raise
    `Unavailable` while the broker is away, and never hang: a broadcaster bounds its own waiting.
    """

    kind: ClassVar[str]
    features: ClassVar[frozenset[Feature]]
    embedded: ClassVar[bool] = False
    """It delivers every channel by itself, so `subscribe` and `unsubscribe` are never called, and its other
    methods but `start` and `stop` never wait."""

    @abstractmethod
    async def start(self, receiver: Receiver) -> None:
        """Begin; a broker that is away is no error. After `stop` a broadcaster may be started again."""

    @abstractmethod
    async def stop(self) -> None:
        """Let go of everything: tasks, connections, files. Idempotent."""

    @abstractmethod
    async def ping(self) -> float:
        """Ask the broker, as a publication would, and return the seconds it took."""

    @abstractmethod
    async def publish(self, publication: Publication, retention: Retention) -> Position | None:
        """Give a publication its position, keep it as `retention` says and hand it to every node.

        The publishing node, too, delivers what comes back. A `key` that the channel has seen within
        five minutes sends nothing and returns the first position.

        Returns:
            The position; `None` with nothing kept (`retention.size` 0), or without the feature `history`.
        """

    async def subscribe(self, channel: str) -> None:
        """Deliver a channel's publications from now on. Called for a node's first subscriber only."""
        raise NotImplementedError(f"{self.kind} subscribes to nothing")

    async def unsubscribe(self, channel: str) -> None:
        """Stop delivering a channel. Called for a node's last subscriber; what comes late is ignored."""
        raise NotImplementedError(f"{self.kind} subscribes to nothing")

    @abstractmethod
    async def position(self, channel: str) -> Position | None:
        """Return a channel's top: every publication delivered from now on is after it.

        `None` without the feature `history`.
        """

    async def history(
        self, channel: str, after: Position | None, retention: Retention, limit: int | None
    ) -> History:
        """Return what is kept after a position, or all that is kept with `None`, at most `limit` of it.

        Where more is kept than `limit`, what comes last is left out and `position` is the last one
        returned. A position of another epoch, above the top or below what is kept is not `complete`.

        Raises:
            NotImplementedError: Without the feature `history`.
        """
        raise NotImplementedError(f"{self.kind} keeps no history")


@runtime_checkable
class PresenceKeeper(Protocol):
    """What a broadcaster with the feature `presence` does besides: it counts, over all nodes.

    `join` and `leave` only note what this node has; telling the broker is the broadcaster's business, in the
    same order. It repeats what it has noted before `PRESENCE_TTL` is over, and says it again to a broker
    that has lost it; a node that is gone does not, and its sessions are counted out as if they had left.
    So neither call waits, nor fails while the broker is away. `stop` counts every session of the node out.

    Telling clients, and not telling them when somebody is back at once, is the node's business.
    """

    def join(self, channel: str, session: str, user: str | None, info: bytes, since: float) -> None:
        """Count a session in; one that is in already is from now on who this says.

        Args:
            channel: Where.
            session: The session's id.
            user: `None` for an anonymous session: it counts, but is no member.
            info: What others may see of the user, JSON text.
            since: Since when the user is there, if it is not there already.
        """

    def leave(self, channel: str, session: str) -> None:
        """Count a session out; one that is not in is none to count."""

    async def members(self, channel: str, limit: int) -> Presence:
        """Return who is there, `limit` members at most.

        What this node has noted before is in it, and it is not ahead of `changed`: of each change in it that
        node has been told. (A broker tells in order, so its own echo after the answer says as much.)

        Raises:
            Unavailable: The broker is away.
        """


_SCHEMES = {"memory": "asgi_ws.broadcasters.memory:MemoryBroadcaster"}


def from_url(settings: Settings) -> Broadcaster:
    """Return the broadcaster that the scheme of `settings.broadcaster` names, imported only now.

    Raises:
        SettingsError: No broadcaster has this scheme, or it does not understand the rest.
    """
    scheme = urlsplit(settings.broadcaster).scheme
    found = entry_points(group=ENTRY_POINTS)
    if scheme in _SCHEMES:
        return _load(_SCHEMES[scheme])(settings)
    for entry in found.select(name=scheme):
        broadcaster: Broadcaster = entry.load()(settings)
        return broadcaster
    expected = " or ".join(f"{name}://" for name in sorted({*_SCHEMES, *found.names}))
    raise SettingsError(f"ASGI_WS_BROADCASTER: expected {expected}, got {scheme}://")


def _load(path: str) -> Callable[[Settings], Broadcaster]:
    module, _, name = path.partition(":")
    make: Callable[[Settings], Broadcaster] = getattr(importlib.import_module(module), name)
    return make
