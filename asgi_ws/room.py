"""One channel's presence as a node knows it, and as its sessions are told it. No await in here."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from asgi_ws import messages
from asgi_ws.broadcasters import Member, Presence
from asgi_ws.codecs import Codec
from asgi_ws.messages import Counts, Joined, Left
from asgi_ws.outbox import Batch
from asgi_ws.topic import Subscriber, Topic

logger = logging.getLogger("asgi_ws")

# Beyond so many members a channel is a crowd; it is one until it is clearly smaller, for each return to joins
# and leaves makes every client ask for the list.
MAX_MEMBERS = 1000
CALM = 900

# Joins and leaves in one round: they have to fit into an outbox beside what else waits, and all writes of
# them into a share of the loop's time, some hundredths of a second where each is a task's.
ROUND = 50
WRITES = 5000


class News(NamedTuple):
    """A join or a leave that is to be told."""

    came: bool
    member: Member


class Room:
    """A channel with presence that has sessions here.

    Attributes:
        counted: It is declared with `presence="count"`.
        crowded: There are too many to tell of each.
        users, sessions: How many there are, over all nodes.
        away: The users that have left, and may be back before that is told.
        news: What is to be told.
        behind: Who was too slow for what was told.
    """

    __slots__ = (
        "_observers", "away", "behind", "channel", "counted", "crowded", "news", "sessions", "users"
    )  # fmt: skip

    def __init__(self, channel: str, *, counted: bool) -> None:
        self.channel = channel
        self.counted = counted
        self.crowded = False
        self.users = self.sessions = 0
        self.away: dict[str, Member] = {}
        self.news: deque[News] = deque()
        self.behind: set[Subscriber] = set()
        self._observers: list[Callable[[Member], None]] = []

    def __repr__(self) -> str:
        return f"<Room {self.channel!r} {self.users} users, {len(self.news)} news>"

    @property
    def overcrowded(self) -> bool:
        """Whether there are too many to tell of each, or too much is left to tell."""
        return self.users + len(self.away) > MAX_MEMBERS or len(self.news) > MAX_MEMBERS

    @property
    def calm(self) -> bool:
        """Whether there are few enough to tell of each again."""
        return self.users <= CALM

    def clear(self) -> None:
        """Forget who is away, and what was to be told."""
        self.away.clear()
        self.news.clear()

    def note(self, member: Member) -> None:
        """Learn that a member has changed."""
        for observe in self._observers:
            observe(member)

    @contextmanager
    def observed(self) -> Iterator[dict[str, Member]]:
        """Gather the members that change meanwhile, by user."""
        changed: dict[str, Member] = {}

        def observe(member: Member) -> None:
            changed[member.user] = member

        self._observers.append(observe)
        try:
            yield changed
        finally:
            self._observers.remove(observe)

    def presence(self, found: Presence, changed: Mapping[str, Member]) -> Presence:
        """Return what the broadcaster has found, with what has changed on its way, and with those away."""
        members = {member.user: member for member in found.members} | dict(changed)
        members |= {user: member for user, member in self.away.items() if user not in members}
        there = [member for member in members.values() if member.sessions or member.user in self.away]
        most = 0 if self.counted else MAX_MEMBERS
        return Presence(there[:most], self.users + len(self.away), self.sessions)

    def take(self) -> list[News]:
        """Return what is to be told in one round."""
        most = min(ROUND, max(1, WRITES // max(1, self.sessions)))
        return [self.news.popleft() for _ in range(min(most, len(self.news)))]

    def encode_news(self, news: Sequence[News], codec: Codec) -> list[bytes]:
        """Return joins and leaves as clients of a codec have them."""
        return [
            codec.encode((Joined if one.came else Left)(self.channel, shown(one.member, codec)))
            for one in news
        ]

    def encode_counts(self, codec: Codec) -> list[bytes]:
        """Return the counts as clients of a codec have them."""
        return [codec.encode(Counts(self.channel, self.users + len(self.away), self.sessions))]

    def tell_those_behind(self, topic: Topic) -> None:
        """Give the counts to those who were too slow and read again: they learn that something was told."""
        self.behind = {one for one in self.behind if not self._is_told(one, topic)}

    def _is_told(self, one: Subscriber, topic: Topic) -> bool:
        if one in topic.live.get(one.codec, ()):
            return one.deliver(Batch(one.codec, self.encode_counts(one.codec), modest=True))
        return one not in topic.lagging  # then it has left


def shown(member: Member, codec: Codec) -> messages.Member:
    """Return a member as clients of a codec have it."""
    try:
        info = codec.carry(member.info, binary=False)
    except Exception:  # what another node has sent may be anything
        logger.exception("the info of user %r cannot be told in %s", member.user, codec.subprotocol)
        info = codec.carry(b"null", binary=False)
    return messages.Member(member.user, member.sessions, info, int(member.since * 1000))
