"""Who is in the channels of this node's sessions, as those sessions are told it.

The broadcaster counts, over all nodes. This tells: a user's first session is a `join`, its last one a `leave`
as soon as the user has been away for five seconds, so that a reload, or a connection that is made again, is
neither. Channels of counts, and crowds, are told how many there are instead, once a second at most; so is
who was too slow for joins and leaves, and reads again.

What there is to tell is told in rounds, each message encoded once per codec, however many hear it. One timer
serves all channels; where there is nothing to tell there is none.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from asgi_ws.auth import Identity, encode_info
from asgi_ws.broadcasters import Broadcaster, Change, Member, Presence, PresenceKeeper
from asgi_ws.clock import Clock, Timer
from asgi_ws.codecs import Codec
from asgi_ws.fanout import SLICE
from asgi_ws.room import MAX_MEMBERS, News, Room
from asgi_ws.topic import Subscription, Topic

logger = logging.getLogger("asgi_ws")

GRACE = 5.0  # seconds that a user may be away without leaving

_PAUSE = 0.1  # seconds from one round of joins and leaves to the next, where there is more to tell at all
_PERIOD = 1.0  # seconds from one round of counts to the next


class _Away(NamedTuple):
    """A user without sessions, and when that is a leave."""

    due: float
    room: Room
    member: Member


class Presences:
    """The channels with presence that have sessions here.

    Args:
        broadcaster: One with the feature `presence`, where a channel is declared with it.
        topics: Who is subscribed here, by channel.
        clock: The time to go by.
    """

    def __init__(self, broadcaster: Broadcaster, topics: Mapping[str, Topic], clock: Clock) -> None:
        self._keeper = broadcaster if isinstance(broadcaster, PresenceKeeper) else None
        self._topics = topics
        self._clock = clock
        self._rooms: dict[str, Room] = {}
        self._away: deque[_Away] = deque()
        self._untold: dict[Room, None] = {}
        self._uncounted: dict[Room, None] = {}
        self._behind: dict[Room, None] = {}
        self._told = self._counted = -math.inf
        self._work: Iterator[bool | None] | None = None
        self._timer: Timer | None = None
        self._due = math.inf
        self._stopped = False

    def __repr__(self) -> str:
        return f"<Presences of {len(self._rooms)} channels, {len(self._away)} away>"

    def enter(self, subscription: Subscription, identity: Identity | None, *, counted: bool) -> None:
        """Count a live session in, or anew where it has become somebody.

        Args:
            subscription: The session's; one that is not live has left meanwhile.
            identity: Who it is; anonymous ones count, but are no members.
            counted: The channel is declared with `presence="count"`.
        """
        if not subscription.live or self._stopped:
            return
        room = self._rooms.get(subscription.channel)
        if room is None:
            room = self._rooms[subscription.channel] = Room(subscription.channel, counted=counted)
        session, since = subscription.subscriber.id, self._clock.time()
        assert self._keeper is not None, "the start refuses a broadcaster without presence"
        if identity is None:
            self._keeper.join(room.channel, session, None, b"null", since)
            return
        away = room.away.get(identity.user)
        info = b"null" if counted else _info(identity)
        self._keeper.join(room.channel, session, identity.user, info, since if away is None else away.since)

    def renew(self, subscription: Subscription, identity: Identity | None) -> None:
        """Count a session anew, wherever it is in: it has become somebody, or shows something else."""
        room = self._rooms.get(subscription.channel)
        if room is not None:
            self.enter(subscription, identity, counted=room.counted)

    def leave(self, subscription: Subscription) -> None:
        """Count a session out; its topic has let it go, so it hears nothing more."""
        room = self._rooms.get(subscription.channel)
        if room is None or not subscription.live:
            return
        if not self._topics.get(room.channel):
            self._close(room)
        assert self._keeper is not None
        self._keeper.leave(room.channel, subscription.subscriber.id)

    def changed(self, change: Change) -> None:
        """Learn from the broadcaster that a session has come or gone."""
        room = self._rooms.get(change.channel)
        if room is None:
            return
        room.users, room.sessions = change.users, change.sessions
        if change.member is not None:
            room.note(change.member)
        if room.counted or room.crowded:
            room.crowded = not room.calm
            self._uncounted[room] = None
        elif change.member is not None:
            self._note(room, change.came, change.member)
        self._arm()

    async def find(self, channel: str, *, counted: bool) -> Presence:
        """Return who is in a channel, over all nodes, as its clients here are told it.

        Args:
            channel: One that is declared with presence.
            counted: The members are not wanted, only how many there are.

        Raises:
            Unavailable: The broker is away.
        """
        assert self._keeper is not None, "the start refuses a broadcaster without presence"
        limit = 0 if counted else MAX_MEMBERS
        room = self._rooms.get(channel)
        if room is None:
            return await self._keeper.members(channel, limit)
        with room.observed() as changed:
            found = await self._keeper.members(channel, limit)
        if self._rooms.get(channel) is not room:
            return found
        return room.presence(found, changed)

    def stop(self) -> None:
        """Tell nothing more: everybody here is about to go, and the broadcaster counts them out."""
        self._stopped = True
        self._rooms.clear()
        self._rest()

    def _note(self, room: Room, came: bool, member: Member) -> None:
        if came:
            back = room.away.pop(member.user, None) is not None
            if member.sessions == 1 and not back:
                self._add(room, News(came, member))
        elif not member.sessions:
            room.away[member.user] = member
            self._away.append(_Away(self._clock.monotonic() + GRACE, room, member))
        self._bound(room)

    def _add(self, room: Room, news: News) -> None:
        room.news.append(news)
        self._untold[room] = None

    def _bound(self, room: Room) -> None:
        if room.overcrowded:
            room.crowded = True
            room.clear()
            self._uncounted[room] = None

    def _close(self, room: Room) -> None:
        del self._rooms[room.channel]
        room.clear()
        if not self._rooms:
            self._rest()

    def _rest(self) -> None:
        self._away.clear()
        self._untold.clear()
        self._uncounted.clear()
        self._behind.clear()
        self._work = None
        self._disarm()

    # The timer: one, set to what is due next.

    def _arm(self) -> None:
        due = min(
            self._away[0].due if self._away else math.inf,
            self._told + _PAUSE if self._untold else math.inf,
            self._counted + _PERIOD if self._uncounted or self._behind else math.inf,
        )
        if due < self._due:
            self._disarm()
            self._due = due
            self._timer = self._clock.call_later(max(0.0, due - self._clock.monotonic()), self._tick)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._due = None, math.inf

    def _tick(self) -> None:
        self._due = -math.inf  # what comes up meanwhile waits for the end of this round
        if self._work is None:
            self._work = self._round(self._clock.monotonic())
        if self._goes_on(self._work):
            self._timer = self._clock.call_later(0.0, self._tick)
            return
        self._work = None
        self._disarm()
        self._arm()

    @staticmethod
    def _goes_on(work: Iterator[bool | None]) -> bool:
        """Do a slice of a round and return whether there is more; at `True` the writers have their turn."""
        end = time.perf_counter() + SLICE
        try:
            return any(pause or time.perf_counter() >= end for pause in work)
        except Exception:  # the next round must come, whatever was wrong with this one
            logger.exception("a round of presence ended early")
            return False

    def _round(self, now: float) -> Iterator[bool | None]:
        self._expire(now)
        if (self._uncounted or self._behind) and now >= self._counted + _PERIOD:
            self._counted = now
            yield from self._tell_counts()
            yield from self._tell_those_behind()
        if self._untold and now >= self._told + _PAUSE:
            self._told = now
            yield from self._tell_news()

    def _expire(self, now: float) -> None:
        while self._away and self._away[0].due <= now:
            _, room, member = self._away.popleft()
            if room.away.get(member.user) is member:
                del room.away[member.user]
                self._add(room, News(came=False, member=member))
                self._bound(room)

    def _tell_news(self) -> Iterator[bool | None]:
        rooms, self._untold = self._untold, {}
        for room in rooms:
            # A crowd that is none any more says so first: its clients do not know who came in the meantime.
            news = [] if room in self._uncounted else room.take()
            if news:
                yield from self._tell(room, partial(room.encode_news, news))
            if room.news:
                self._untold[room] = None
            # A session may be in many channels: the next one's news have to find room in its outbox.
            yield True

    def _tell_counts(self) -> Iterator[None]:
        rooms, self._uncounted = self._uncounted, {}
        for room in rooms:
            yield from self._tell(room, room.encode_counts)
            yield

    def _tell(self, room: Room, encode: Callable[[Codec], Sequence[bytes]]) -> Iterator[None]:
        # In a pause everybody may have left, and others may have come.
        topic = self._topics.get(room.channel)
        if topic is None or self._rooms.get(room.channel) is not room:
            return
        for behind in topic.tell(encode):
            room.behind.update(behind)
            yield
        if room.behind:
            self._behind[room] = None

    def _tell_those_behind(self) -> Iterator[None]:
        rooms, self._behind = self._behind, {}
        for room in rooms:
            topic = self._topics.get(room.channel)
            if topic is not None and self._rooms.get(room.channel) is room:
                room.tell_those_behind(topic)
                if room.behind:
                    self._behind[room] = None
            yield


def _info(identity: Identity) -> bytes:
    try:
        return encode_info(identity)
    except Exception:  # it was right at the handshake; the application has changed it since
        logger.exception("the info of user %r cannot be shown", identity.user)
        return b"null"
