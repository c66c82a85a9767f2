"""Who is in the channels, by session and by user: each coming and going costs the same. No await in here."""

from collections.abc import Iterator
from itertools import islice

from asgi_ws.broadcasters import Change, Member, Presence


class _Room:
    """One channel: the user of every session, and every user as a member."""

    __slots__ = ("sessions", "users")

    def __init__(self) -> None:
        self.sessions: dict[str, str | None] = {}
        self.users: dict[str, Member] = {}


class Members:
    """The sessions and the users of every channel that has any."""

    def __init__(self) -> None:
        self._rooms: dict[str, _Room] = {}

    def __repr__(self) -> str:
        return f"<Members of {len(self._rooms)} channels>"

    def join(
        self, channel: str, session: str, user: str | None, info: bytes, since: float
    ) -> Iterator[Change]:
        """Count a session in, and tell each change once it is made; see `PresenceKeeper.join`."""
        room = self._rooms.get(channel)
        if room is not None and session in room.sessions:
            if room.sessions[session] == user:
                self._inform(room, user, info)
                return
            yield from self.leave(channel, session)
        yield self._enter(channel, session, user, info, since)

    def leave(self, channel: str, session: str) -> Iterator[Change]:
        """Count a session out, and tell the change once it is made; see `PresenceKeeper.leave`."""
        room = self._rooms.get(channel)
        if room is None or session not in room.sessions:
            return
        user = room.sessions.pop(session)
        member = None if user is None else _less(room, user)
        if not room.sessions:
            del self._rooms[channel]
        yield Change(channel, False, member, len(room.users), len(room.sessions))

    def presence(self, channel: str, limit: int) -> Presence:
        """Return who is in a channel, `limit` members at most."""
        room = self._rooms.get(channel)
        if room is None:
            return Presence([], 0, 0)
        return Presence(list(islice(room.users.values(), limit)), len(room.users), len(room.sessions))

    def _enter(self, channel: str, session: str, user: str | None, info: bytes, since: float) -> Change:
        room = self._rooms.setdefault(channel, _Room())
        room.sessions[session] = user
        member = None
        if user is not None:
            before = room.users.get(user)
            member = Member(user, 1, info, since) if before is None else _more(before, info)
            room.users[user] = member
        return Change(channel, True, member, len(room.users), len(room.sessions))

    @staticmethod
    def _inform(room: _Room, user: str | None, info: bytes) -> None:
        if user is not None:
            member = room.users[user]
            room.users[user] = Member(user, member.sessions, info, member.since)


def _more(member: Member, info: bytes) -> Member:
    return Member(member.user, member.sessions + 1, info, member.since)


def _less(room: _Room, user: str) -> Member:
    member = room.users[user]
    member = Member(user, member.sessions - 1, member.info, member.since)
    if member.sessions:
        room.users[user] = member
    else:
        del room.users[user]
    return member
