"""The object a developer holds: declare on it, publish with it, mount it."""

import asyncio
import os
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Self

import msgspec
from starlette.requests import HTTPConnection
from starlette.types import Receive, Scope, Send

from asgi_ws import history, lifespan
from asgi_ws.broadcasters import Broadcaster, Presence, from_url
from asgi_ws.channels import Channel
from asgi_ws.clock import MACHINE, Clock
from asgi_ws.codecs import JSON, brief, encode_data
from asgi_ws.endings import DISCONNECTED, of_application
from asgi_ws.endpoints import Endpoint, stream
from asgi_ws.errors import BadRequest, NotRunning, Undeclared
from asgi_ws.feed import Feed
from asgi_ws.lifecycle import Lifecycle
from asgi_ws.patterns import check_channel, check_key
from asgi_ws.publication import Position, Publication, Retention
from asgi_ws.router import BROADCAST, USER_PREFIX, Router, own_channels
from asgi_ws.routes import Routes
from asgi_ws.run import Run
from asgi_ws.settings import Settings
from asgi_ws.threads import Backlog, wait_for

DEFAULT_NAMESPACE = "asgi_ws"


class Hub(Router):
    """The realtime layer of one application: an ASGI app, and an async context manager.

    Args:
        broadcaster: A URL or a `Broadcaster`; `None`: `ASGI_WS_BROADCASTER`.
        settings: Any setting in lower case; it wins over `ASGI_WS_*`.

    Raises:
        SettingsError: A setting cannot be; the message names it.
    """

    def __init__(self, *, broadcaster: str | Broadcaster | None = None, **settings: Any) -> None:
        super().__init__()
        if isinstance(broadcaster, str):
            settings["broadcaster"], broadcaster = broadcaster, None
        self.settings = Settings.load(os.environ, **settings)
        self.stream = stream()
        self.clock: Clock = MACHINE
        self._broadcaster = (
            from_url(self.settings) if broadcaster is None else _check_broadcaster(broadcaster)
        )
        self._failed_before_start = 0
        self._backlog = Backlog(self._count_failed)
        self._feeds: set[asyncio.Task[None]] = set()
        self._lifecycle = Lifecycle(repr(self), self._make_run, self._started, self._backlog.close)
        for channel in own_channels():
            self._declare(channel)
        self._routes = Routes(self)
        self.from_thread = FromThread(self)

    def __repr__(self) -> str:
        return f"<Hub {self.settings.namespace!r}>"

    # Living in an application.

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the hub's routes, as an ASGI app that is mounted anywhere."""
        self.put_into(scope)
        if scope["type"] == "lifespan":
            await lifespan.serve(self, receive, send)
        else:
            await self._routes(scope, receive, send)

    async def __aenter__(self) -> Self:
        """Start, unless it has started; the last to leave stops it."""
        await self._lifecycle.enter()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Leave."""
        await self._lifecycle.leave()

    @asynccontextmanager
    async def lifespan(self, _app: Any) -> AsyncIterator[dict[str, Any]]:
        """The `lifespan=` of a Starlette or FastAPI app; `request.state.hub` is this hub.

        In a lifespan of your own: `async with hub: yield {"hub": hub}`.
        """
        async with self:
            yield {"hub": self} if self.is_default else {}

    @property
    def is_default(self) -> bool:
        """Whether it is the one that `get_hub` finds: two hubs in a process differ in their namespace."""
        return self.settings.namespace == DEFAULT_NAMESPACE

    def serves(self, scope: Scope) -> bool:
        """Whether a request is for one of the hub's own routes, or for an application behind it."""
        return self._routes.serve(scope)

    def put_into(self, scope: Scope) -> None:
        """Let a request find this hub in its state."""
        if self.is_default:
            scope.setdefault("state", {})["hub"] = self

    async def current(self) -> Run:
        """Return the run in hand, started if need be; for the routes."""
        return await self._lifecycle.current()

    # Publishing. Everything that can be refused is refused before anything is sent.

    async def publish(
        self, channel: str, event: str, data: Any, *, key: str | None = None, exclude: str | None = None
    ) -> Position | None:
        """Publish an event to a channel's sessions, on every node.

        Args:
            channel: A declared channel's name, 1–255 bytes of UTF-8.
            event: 1–64 of `A–Z a–z 0–9 _ . : -`.
            data: Anything that msgspec can encode as JSON, a Pydantic model, or `Binary`.
            key: At most 128 bytes; a second publish with it within 5 minutes sends nothing and returns
                the first position.
            exclude: The id of a session that is not to have it.

        Returns:
            Its position; `None` where the hub is disabled or the channel has no history.

        Raises:
            BadRequest: A name is none.
            Undeclared: No channel declares the name, or the channel lacks the event.
            TypeError: JSON cannot carry the data, or it is not of the event's declared type.
            TooLarge: The data is over `MAX_EVENT_BYTES`.
            Unavailable: The broker is away.
            NotRunning: The hub was stopped.
            WrongLoop: The hub runs in another event loop.
        """
        if not self.settings.enabled:
            return None
        return await self._send(*self._publication(channel, event, data, key, exclude))

    async def broadcast(
        self, event: str, data: Any, *, key: str | None = None, exclude: str | None = None
    ) -> Position | None:
        """Publish to every `/stream` session, on every node; see `publish`."""
        return await self.publish(BROADCAST, event, data, key=key, exclude=exclude)

    async def publish_to_user(
        self, user: str, event: str, data: Any, *, key: str | None = None, exclude: str | None = None
    ) -> Position | None:
        """Publish to every `/stream` session of a user, on every node; see `publish`."""
        return await self.publish(_channel_of(user), event, data, key=key, exclude=exclude)

    def publish_nowait(
        self, channel: str, event: str, data: Any, *, key: str | None = None, exclude: str | None = None
    ) -> None:
        """Publish from any thread, the loop's own included, before the start too; never blocks.

        What cannot be sent raises now, as `publish` does; what fails later is counted in
        `publish_failed` and logged once per episode. At most 10,000 wait. These keep their order among
        themselves; an awaited publish may overtake them.
        """
        if self.settings.enabled:
            self._put(*self._publication(channel, event, data, key, exclude))

    def broadcast_nowait(
        self, event: str, data: Any, *, key: str | None = None, exclude: str | None = None
    ) -> None:
        """Publish to every `/stream` session from any thread; see `publish_nowait`."""
        self.publish_nowait(BROADCAST, event, data, key=key, exclude=exclude)

    def publish_to_user_nowait(
        self, user: str, event: str, data: Any, *, key: str | None = None, exclude: str | None = None
    ) -> None:
        """Publish to every `/stream` session of a user from any thread; see `publish_nowait`."""
        self.publish_nowait(_channel_of(user), event, data, key=key, exclude=exclude)

    async def history(self, channel: str, after: Position | None = None, limit: int = 100) -> dict[str, Any]:
        """Return what is kept of a channel: the latest events in order, or the first after a position.

        Returns:
            As the answer to a client's `history`: `epoch` and `offset` of the last event, or of the channel's
            top where there is none, the `events` as they are in JSON, and with `after` whether everything
            after it is still kept (`recovered`); if not, there are no events.

        Raises:
            BadRequest: The channel's name is none, it has no history, or the limit is below 1.
            Undeclared: No channel declares the name.
            Unavailable: The broker is away.
            NotRunning: The hub was stopped.
            WrongLoop: The hub runs in another event loop.
        """
        declared, _ = self._declared(channel)
        if limit < 1:
            raise BadRequest(f"expected a limit of 1 or more, got {limit}")
        if not self.settings.enabled:
            return history.Page(Position("", 0), (), None if after is None else False).answer([])
        node = (await self._lifecycle.current()).node
        page = await history.read(node, declared, channel, after, limit)
        return page.answer([msgspec.json.decode(JSON.event(one)) for one in page.publications])

    async def feed(self, channel: str, items: AsyncIterable[Any], event: str = "token") -> None:
        """Publish an async iterable into a channel with history, so that a page that reloads has it whole.

        The first event is `start`, the last `end` or `failed`, both without data (`null`). Between them are
        events called `event`, each with what came within 20 ms: text items as one text, others as a list.
        A page subscribes with `"offset":0` and has all of it if it has `start`. A feed that is more than the
        history keeps goes on, and is logged once with the setting to raise.

        What the iterable raises is raised again, and so is a cancellation, after `failed` is published; a
        generator is closed. Where the hub is disabled, the iterable is read and nothing is published.

        Args:
            channel: The name of a declared channel, with history.
            items: What is read to its end, in the caller's task.
            event: A name other than `start`, `end` and `failed`.

        Raises:
            ValueError: The channel has no history. This and the next are raised before anything is read.
            Undeclared: No channel declares the name, or the channel lacks one of the events.
            TypeError: It is no async iterable, or an item is not of the event's declared type.
            Exception: Whatever `publish` raises.
        """
        if not isinstance(items, AsyncIterable):
            raise TypeError(f"expected an async iterable, got {type(items).__name__}")
        if not self.settings.enabled:
            async for _ in items:
                pass
            return
        await self._feed(channel, self._with_history(channel), event).run(items, self._keep_feed)

    # Sessions.

    async def disconnect(
        self,
        *,
        user: str | None = None,
        session: str | None = None,
        code: int = DISCONNECTED.code,
        reason: str = "",
    ) -> int:
        """End every session of a user, or one session by its id; return how many that were.

        Args:
            user: The user's id.
            session: The session's id.
            code: 4000–4299, whose range tells the client whether to come back, or 1000.
            reason: For people; at most 123 bytes of it are sent.

        Raises:
            TypeError: Neither a user nor a session is named, or both are.
            ValueError: The code is none that an application may use.
            NotRunning: The hub was stopped.
        """
        if (user is None) is (session is None):
            raise TypeError(f"expected a user or a session, got {user!r} and {session!r}")
        ending = of_application(code, reason)
        run = await self._lifecycle.current()
        return run.disconnect(user, session, ending)

    async def unsubscribe(self, channel: str, *, user: str) -> int:
        """Take every session of a user out of a channel; return how many were in it.

        The clients are told, and not to subscribe again; whether they may is the channel's function's to say.

        Raises:
            BadRequest: A name is none.
            NotRunning: The hub was stopped.
        """
        channel = self.full_name(check_channel(channel))
        run = await self._lifecycle.current()
        return run.unsubscribe(channel, user)

    # Telling.

    async def presence(self, channel: str) -> Presence:
        """Return who is in a channel, on every node; at most 1,000 members, and none for `"count"`.

        Raises:
            BadRequest: The name is none.
            Undeclared: No channel declares the name, or the one that does has no presence.
            Unavailable: The broker is away.
            NotRunning: The hub was stopped.
            WrongLoop: The hub runs in another event loop.
        """
        declared, _ = self._declared(channel)
        if not declared.presence:
            raise Undeclared(
                f"expected a channel with presence, got {channel!r}; add presence=True at {declared.place}"
            )
        if not self.settings.enabled:
            return Presence([], 0, 0)
        node = (await self._lifecycle.current()).node
        found = await node.presence.find(channel, counted=declared.presence == "count")
        members = [replace(member, info=msgspec.json.decode(member.info)) for member in found.members]
        return replace(found, members=members)

    async def status(self) -> dict[str, Any]:
        """Return what `GET /status` answers."""
        return (await self._lifecycle.current()).status()

    async def health(self) -> dict[str, Any]:
        """Ask the broadcaster and return what `GET /health` answers."""
        return await (await self._lifecycle.current()).health()

    def stats(self) -> dict[str, Any]:
        """Return this node's numbers since its start, as `GET /stats` answers them.

        Raises:
            NotRunning: There is no start to count from.
        """
        if self._lifecycle.run is None:
            raise NotRunning(f"expected {self!r} to be running, got stats before its start")
        return self._lifecycle.run.stats()

    # Inside.

    async def _send(self, publication: Publication, retention: Retention) -> Position | None:
        run = await self._lifecycle.current()
        try:
            return await run.node.publish(publication, retention)
        except Exception:
            run.metrics.publish_failed += 1
            raise

    def _feed(self, name: str, channel: Channel, event: str) -> Feed:
        async def publish(event: str, data: Any) -> int:
            publication, retention = self._publication(name, event, data, None, None)
            await self._send(publication, retention)
            return publication.size

        return Feed(name, channel, event, publish, self.settings.history_channel_bytes)

    def _keep_feed(self, publisher: asyncio.Task[None]) -> None:
        self._feeds.add(publisher)
        publisher.add_done_callback(self._feeds.discard)

    def _with_history(self, name: str) -> Channel:
        channel, _ = self._declared(name)
        if channel.retention.size and "history" in self._broadcaster.features:
            return channel
        raise ValueError(
            f"expected a channel with history to feed into, got {name!r} (declared at {channel.place}), "
            "which has none: who reloads the page could not have what was before"
        )

    def _publication(
        self, channel: str, event: str, data: Any, key: str | None, exclude: str | None
    ) -> tuple[Publication, Retention]:
        declared, _ = self._declared(channel)
        declared.check_event(event, data)
        check_key(key)
        encoded, binary = encode_data(data, self.settings.max_event_bytes)
        publication = Publication(
            channel=channel,
            event=event,
            data=encoded,
            time=self.clock.time(),
            key=key,
            exclude=exclude,
            binary=binary,
        )
        return publication, declared.retention

    def _declared(self, channel: str) -> tuple[Channel, dict[str, Any]]:
        found = self.find(check_channel(channel))
        if found is None:
            raise Undeclared(self._undeclared(channel))
        return found

    def _undeclared(self, channel: str) -> str:
        source = self.find_source(channel)
        if source is not None:
            return (
                f"expected a declared channel, got {channel!r}, which belongs to source {source.name!r} "
                f"({source.place}): what it yields is all that is published there"
            )
        nearest = self.channels.nearest(channel)
        hint = "." if nearest is None else f"; did you mean {nearest!r}?"
        return (
            f"expected a declared channel, got {channel!r}{hint} To declare it: "
            f"hub.channel({channel!r}, public=True), or as a decorator of a function that says who may"
        )

    def _declare(self, channel: Channel) -> None:
        super()._declare(channel)
        channel.settle(self, self.settings)

    def _serve(self, endpoint: Endpoint) -> None:
        if self._lifecycle.run is not None:
            endpoint.settle(self)
        super()._serve(endpoint)

    def _make_run(self) -> Run:
        for entry in self.channels:
            entry.value.check_start(self._broadcaster.features)
        for endpoint in self.endpoints:
            endpoint.settle(self)
        return Run(self.settings, self, self._broadcaster, self.clock)

    def _started(self) -> None:
        run = self._lifecycle.run
        assert run is not None
        assert self._lifecycle.loop is not None
        run.metrics.publish_failed += self._failed_before_start
        self._failed_before_start = 0
        self._backlog.open(self._lifecycle.loop)

    def _put(self, publication: Publication, retention: Retention) -> None:
        async def publish() -> None:
            run = await self._lifecycle.current()
            await run.node.publish(publication, retention)

        self._backlog.put(publish)

    def _count_failed(self) -> None:
        if self._lifecycle.run is None:
            self._failed_before_start += 1
        else:
            self._lifecycle.run.metrics.publish_failed += 1


class FromThread:
    """The publishing verbs for a worker thread: each waits for its result, 10 s at most."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def publish(
        self, channel: str, event: str, data: Any, *, key: str | None = None, exclude: str | None = None
    ) -> Position | None:
        """See `Hub.publish`.

        Raises:
            WrongLoop: This is an event loop's own thread.
            NotRunning: The hub has not started, and this thread works for no loop.
            Timeout: There was no result in time.
        """
        return self._wait(lambda: self._hub.publish(channel, event, data, key=key, exclude=exclude))

    def broadcast(
        self, event: str, data: Any, *, key: str | None = None, exclude: str | None = None
    ) -> Position | None:
        """See `Hub.broadcast`."""
        return self.publish(BROADCAST, event, data, key=key, exclude=exclude)

    def publish_to_user(
        self, user: str, event: str, data: Any, *, key: str | None = None, exclude: str | None = None
    ) -> Position | None:
        """See `Hub.publish_to_user`."""
        return self.publish(_channel_of(user), event, data, key=key, exclude=exclude)

    def _wait(self, make: Callable[[], Any]) -> Position | None:
        if not self._hub.settings.enabled:
            return None
        lifecycle = self._hub._lifecycle
        position: Position | None = wait_for(make, None if lifecycle.run is None else lifecycle.loop)
        return position


def _channel_of(user: object) -> str:
    if not isinstance(user, str) or not user:
        raise BadRequest(f"expected a user's id as text, got {brief(user)}")
    return USER_PREFIX + user


def _check_broadcaster(broadcaster: object) -> Broadcaster:
    if isinstance(broadcaster, Broadcaster):
        return broadcaster
    raise TypeError(f"expected a broadcaster's URL or a Broadcaster, got {broadcaster!r}")


async def get_hub(connection: HTTPConnection) -> Hub:
    """Find the hub of the app that a request came to, as in `Annotated[Hub, Depends(get_hub)]`.

    Raises:
        NotRunning: The app's state has none.
    """
    hub = getattr(connection.state, "hub", None)
    if isinstance(hub, Hub):
        return hub
    raise NotRunning(
        "expected a hub in this app's state, got none: use FastAPI(lifespan=hub.lifespan), "
        'app.add_middleware(HubMiddleware, hub=hub), or yield {"hub": hub} from your own lifespan; a hub '
        "that is only mounted is in the state of its own routes alone: import it"
    )
