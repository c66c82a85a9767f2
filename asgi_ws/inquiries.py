"""Who is in a channel, for the sessions that ask.

Whoever asks in the same turn of the loop, or while an answer is on its way, shares the next one: it is made
once per codec, so that asking costs a client more than the server.
"""

import asyncio
from collections.abc import Iterable, Iterator

from msgspec import Raw

from asgi_ws.answers import Ref, present, refuse
from asgi_ws.broadcasters import Member, Presence
from asgi_ws.codecs import Codec
from asgi_ws.errors import Forbidden, LimitExceeded
from asgi_ws.messages import MAX_REQUESTS, Present, Reply
from asgi_ws.metrics import Metrics
from asgi_ws.presence import Presences
from asgi_ws.room import shown
from asgi_ws.session import Session

# After so many answers the loop has its turn.
_SHARE = 64
_MEMBER_BYTES = 64  # what a member has besides its user's id and its info: names, numbers

_Waiting = dict[Session, list[Ref]]


class Inquiries:
    """Answers `presence` requests, one channel at a time.

    Args:
        presences: Where it is known.
        max_bytes: What the members in an answer may have; it has those who have been there longest.
    """

    def __init__(self, presences: Presences, metrics: Metrics, max_bytes: int) -> None:
        self._presences = presences
        self._metrics = metrics
        self._max_bytes = max_bytes
        self._waiting: dict[str, _Waiting] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Inquiries about {len(self._waiting)} channels>"

    def ask(self, session: Session, channel: str, ref: Ref, *, counted: bool) -> None:
        """Answer a session soon; if it has left the channel by then, with an error.

        Raises:
            LimitExceeded: So many of the session's questions wait already.
        """
        if channel not in self._waiting:
            self._waiting[channel] = {}
            task = asyncio.get_running_loop().create_task(self._answer_all(channel, counted=counted))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        refs = self._waiting[channel].setdefault(session, [])
        if len(refs) >= MAX_REQUESTS:
            raise LimitExceeded(f"expected at most {MAX_REQUESTS} requests to wait for a presence, got more")
        refs.append(ref)

    def stop(self) -> None:
        """Answer nothing more: everybody is about to go."""
        for task in self._tasks:
            task.cancel()

    async def _answer_all(self, channel: str, *, counted: bool) -> None:
        try:
            while waiting := self._waiting[channel]:
                self._waiting[channel] = {}
                await self._answer(channel, waiting, counted=counted)
        finally:
            del self._waiting[channel]

    async def _answer(self, channel: str, waiting: _Waiting, *, counted: bool) -> None:
        try:
            found = await self._presences.find(channel, counted=counted)
        except Exception as error:
            for session, refs in waiting.items():
                for ref in refs:
                    refuse(session, self._metrics, error, ref, channel)
            return
        answers: dict[Codec, Raw] = {}
        for number, (session, refs) in enumerate(waiting.items(), 1):
            if session.codec not in answers:
                answers[session.codec] = self._present(found, session.codec)
            self._reply(session, channel, refs, answers[session.codec])
            if not number % _SHARE:
                await asyncio.sleep(0)

    def _reply(self, session: Session, channel: str, refs: Iterable[Ref], answer: Raw) -> None:
        subscription = session.subscriptions.get(channel)
        for ref in refs:
            if subscription is not None and subscription.live:
                session.tell(Reply(ref=present(ref), data=answer))
            else:
                error = Forbidden(f"expected a channel that is subscribed to, got {channel!r}")
                refuse(session, self._metrics, error, ref, channel)

    def _present(self, found: Presence, codec: Codec) -> Raw:
        members = [shown(member, codec) for member in self._fitting(found.members)]
        return Raw(codec.encode(Present(members, found.users, found.sessions)))

    def _fitting(self, members: Iterable[Member]) -> Iterator[Member]:
        size = 0
        for member in members:
            size += len(member.user) + len(member.info) + _MEMBER_BYTES
            if size > self._max_bytes:
                return
            yield member
