"""What a client asks besides its channels: commands of the application, publishes, and looks into history.

The calls of a session run one at a time, in order. So do its publishes and its looks into history, beside
the calls: a slow command does not hold up what somebody types.
"""

from functools import partial
from typing import Any

from msgspec import UNSET, Raw

from asgi_ws import history
from asgi_ws.answers import present
from asgi_ws.channels import Channel
from asgi_ws.codecs import brief, encode_data
from asgi_ws.errors import Forbidden, NotFound
from asgi_ws.lanes import Job, Lane
from asgi_ws.messages import Call, History, Publish, Reply
from asgi_ws.patterns import check_channel, check_key
from asgi_ws.publication import Position, Publication
from asgi_ws.run import Run
from asgi_ws.session import Session
from asgi_ws.values import receive


class Calls:
    """Answers the `call`s, `publish`es and `history`s of one session; made for its first one."""

    __slots__ = ("_calls", "_publishes", "_run", "_session")

    def __init__(self, session: Session, run: Run) -> None:
        self._session = session
        self._run = run
        self._calls = Lane(session, run)
        self._publishes = Lane(session, run)

    def call(self, request: Call) -> None:
        """Have a command done, when it is its turn."""
        request.params = request.params.copy()  # it holds the whole message else
        what = f"command {brief(request.command)}"
        size = _size(request.params) + len(request.command)
        self._calls.put(Job(partial(self._call, request), what, size, request.ref))

    def publish(self, request: Publish) -> None:
        """Publish, when it is its turn."""
        request.data = request.data.copy()
        what = f"a publish to {brief(request.channel)}"
        size = _size(request.data) + len(request.channel) + len(request.event) + len(request.key or "")
        do = partial(self._publish, request)
        self._publishes.put(Job(do, what, size, request.ref, request.channel))

    def history(self, request: History) -> None:
        """Tell what a channel has kept, when it is its turn: after what was published before."""
        what = f"the history of {brief(request.channel)}"
        do = partial(self._history, request)
        self._publishes.put(Job(do, what, len(request.channel), request.ref, request.channel))

    def stop(self) -> None:
        """Cancel what runs and what waits: the session is gone."""
        self._calls.stop()
        self._publishes.stop()

    async def _call(self, request: Call) -> Reply:
        command = self._run.router.commands.get(request.command)
        if command is None or not self._session.endpoint.allows(request.command):
            raise NotFound(f"expected a command of this server, got {brief(request.command)}")
        result = await command(self._session, self._received(request.params, "params", {}))
        data, binary = encode_data(result, self._run.settings.max_event_bytes)
        carried = self._session.codec.carry(data, binary=binary)
        return Reply(data=carried, ref=present(request.ref), binary=binary or UNSET)

    async def _publish(self, request: Publish) -> Reply | None:
        channel, params = self._find(request.channel)
        if not channel.has_publish_right:
            raise Forbidden(f"expected a channel that takes events from clients, got {request.channel!r}")
        check_key(request.key)
        value = channel.read_event(request.event, self._received(request.data, "data", None))
        # Encoded before the application sees it: what it agrees to is what is sent.
        data, binary = encode_data(value, self._run.settings.max_event_bytes)
        await channel.may_publish(self._session, params, request.event, value)
        publication = Publication(
            channel=request.channel,
            event=request.event,
            data=data,
            time=self._run.clock.time(),
            key=request.key,
            sender=self._session.user,
            binary=binary,
        )
        position = await self._give(publication, channel)
        return None if request.ref is None else Reply(data=_position(position), ref=request.ref)

    async def _give(self, publication: Publication, channel: Channel) -> Position | None:
        try:
            return await self._run.node.publish(publication, channel.retention)
        except Exception:
            self._run.metrics.publish_failed += 1
            raise

    async def _history(self, request: History) -> Reply:
        channel, _ = self._find(request.channel)
        subscription = self._session.subscriptions.get(request.channel)
        if subscription is None or not subscription.live:
            raise Forbidden(f"expected a channel that is subscribed to, got {request.channel!r}")
        after = None if request.after is None else Position(request.after.epoch, request.after.offset)
        page = await history.read(self._run.node, channel, request.channel, after, request.limit)
        page = page.within(self._run.settings.max_event_bytes)
        codec, session = self._session.codec, self._session.id
        events = [Raw(codec.event(one)) for one in page.publications if one.exclude != session]
        return Reply(data=page.answer(events), ref=present(request.ref))

    def _find(self, name: str) -> tuple[Channel, dict[str, Any]]:
        found = self._run.router.find(check_channel(name))
        if found is None or not self._session.may_have(name, found[0]):
            raise NotFound(f"expected a channel of this server, got {name!r}")
        return found

    def _received(self, raw: Raw, what: str, otherwise: Any) -> Any:
        return receive(self._session.codec, raw, what) if _size(raw) else otherwise


def _size(raw: Raw) -> int:
    return len(memoryview(raw))


def _position(position: Position | None) -> dict[str, Any]:
    return {} if position is None else {"epoch": position.epoch, "offset": position.offset}
