"""The channels of one session: joining them and leaving them, as its client asks.

Subscribes are checked in order; what has to wait (the application's function, a broker) waits in a task of
its own, so it holds up neither events nor other requests.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any, NamedTuple

from msgspec import UNSET

from asgi_ws.answers import Ref, present, refuse
from asgi_ws.channels import Channel
from asgi_ws.codecs import brief
from asgi_ws.eager import begin, finish
from asgi_ws.errors import (
    AlreadySubscribed,
    BadRequest,
    Forbidden,
    LimitExceeded,
    NotFound,
    RequestError,
    Timeout,
    Unavailable,
)
from asgi_ws.messages import MAX_REQUESTS, AskPresence, Subscribe, Subscribed, Unsubscribe, Unsubscribed
from asgi_ws.node import Join, Resume
from asgi_ws.patterns import check_channel
from asgi_ws.router import own_names
from asgi_ws.run import Run
from asgi_ws.session import Session
from asgi_ws.snapshots import Patient, State, align, take
from asgi_ws.topic import Subscription

MAX_JOINS = 8  # subscribes of one session that wait at once


class _Join(NamedTuple):
    """A subscribe on its way."""

    request: Subscribe
    channel: Channel
    params: dict[str, Any]
    subscription: Subscription


class Joins:
    """Joins the channels of one session, and leaves them."""

    __slots__ = ("_later", "_run", "_session", "_tasks", "_waiting")

    def __init__(self, session: Session, run: Run) -> None:
        self._session = session
        self._run = run
        # Lists, for an idle session has a pair of these, and nothing in them.
        self._waiting: list[_Join] = []
        self._tasks: list[asyncio.Task[None]] = []
        # What is to be done with a channel as soon as it is joined: an unsubscribe, and what follows it.
        self._later: dict[str, list[Callable[[], None]]] = {}

    def begin(self, asked: Iterable[Subscribe]) -> None:
        """Join the channels that the session has by itself, and those that its URL asks for."""
        joins = {channel: Subscribe(channel=channel) for channel in self._own}
        for request in asked:
            if request.offset is not None or request.channel not in joins:
                joins[request.channel] = request
        for request in joins.values():
            self.subscribe(request)

    def subscribe(self, request: Subscribe) -> None:
        """Join a channel, or answer why not."""
        if request.channel in self._later:
            self._postpone(request.channel, request.ref, partial(self.subscribe, request))
            return
        try:
            join = self._admissible(request)
        except RequestError as error:
            self._fail(error, request.ref, request.channel)
            return
        self._session.subscriptions[request.channel] = join.subscription
        self._waiting.append(join)
        self._next()

    def stop(self) -> None:
        """Cancel what is still waiting: the session is gone."""
        self._waiting.clear()
        for task in self._tasks:
            task.cancel()

    def unsubscribe(self, request: Unsubscribe) -> None:
        """Leave a channel, as soon as it is joined."""
        channel, ref = request.channel, request.ref
        subscription = self._session.subscriptions.get(channel)
        if subscription is None:
            error = NotFound(f"expected a channel that is subscribed to, got {brief(channel)}")
            self._fail(error, ref, channel)
        elif subscription.live:
            self._run.node.leave(self._session.subscriptions.pop(channel))
            self._session.tell(Unsubscribed(channel=channel, code="client", ref=present(ref)))
        else:
            self._postpone(channel, ref, partial(self.unsubscribe, request))

    def after(self, channel: str, ref: Ref, action: Callable[[], None]) -> None:
        """Do what concerns a channel, at once or when the requests before it that concern it are done."""
        subscription = self._session.subscriptions.get(channel)
        if channel in self._later or not (subscription is None or subscription.live):
            self._postpone(channel, ref, partial(self.after, channel, ref, action))
        else:
            action()

    def ask(self, request: AskPresence) -> None:
        """Answer who is in a channel: only those who are in it may know."""
        try:
            channel, _ = self._declared(check_channel(request.channel))
            if request.channel not in self._session.subscriptions:
                raise Forbidden(f"expected a channel that is subscribed to, got {request.channel!r}")
            if not channel.presence:
                raise BadRequest(f"expected a channel with presence, got {request.channel!r}")
            counted = channel.presence == "count"
            self._run.inquiries.ask(self._session, request.channel, request.ref, counted=counted)
        except RequestError as error:
            self._fail(error, request.ref, request.channel)

    def _postpone(self, channel: str, ref: Ref, action: Callable[[], None]) -> None:
        later = self._later.setdefault(channel, [])
        if len(later) < MAX_REQUESTS:
            later.append(action)
        else:
            error = LimitExceeded(
                f"expected at most {MAX_REQUESTS} requests to wait for a subscribe, got one more"
            )
            self._fail(error, ref)

    # Subscribing: the checks at once, the application's function and the position when it is its turn.

    def _admissible(self, request: Subscribe) -> _Join:
        channel, held = check_channel(request.channel), self._session.subscriptions
        if channel in held:
            raise AlreadySubscribed(f"expected a channel that is not subscribed to, got {channel!r}")
        if len(held) >= self._run.settings.max_subscriptions:
            limit = self._run.settings.max_subscriptions
            raise LimitExceeded(f"expected at most {limit} channels, got one more: {channel!r}")
        if request.epoch is not None and request.offset is None:
            raise BadRequest("expected an offset with the epoch, got none")
        if request.epoch is None and request.offset:
            raise BadRequest(f'expected an epoch with the offset, or "offset":0, got {request.offset}')
        declared, params = self._declared(channel)
        kind = Patient if declared.has_snapshot else Subscription
        return _Join(request, declared, params, kind(self._session, channel, declared.slow))

    def _declared(self, channel: str) -> tuple[Channel, dict[str, Any]]:
        found = self._run.router.find(channel)
        if found is None or (found[0].own and channel not in self._own):
            raise NotFound(f"expected a channel of this server, got {channel!r}")
        return found

    @property
    def _own(self) -> tuple[str, ...]:
        return own_names(self._session.user)

    def _next(self) -> None:
        while self._waiting and len(self._tasks) < MAX_JOINS:
            waiting = self._waiting.pop(0)
            join = self._join(waiting)
            # Where nobody is asked, neither the application nor a broker, there is nothing to wait for.
            if waiting.channel.asks or not self._run.node.broadcaster.embedded:
                self._spawn(join)
            elif (rest := begin(join)) is not None:
                self._spawn(finish(rest))

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.append(task)
        task.add_done_callback(self._joined)

    def _joined(self, task: asyncio.Task[None]) -> None:
        self._tasks.remove(task)
        self._next()

    async def _join(self, join: _Join) -> None:
        request, subscription = join.request, join.subscription
        try:
            start = await self._start(join)
        except Exception as error:
            self._abandon(subscription)
            self._fail(error, request.ref, request.channel)
        except asyncio.CancelledError as error:
            self._abandon(subscription)
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
            # Not we are cancelled: what the application awaited was.
            self._fail(error, request.ref, request.channel)
        else:
            self._admit(join, *start)
        for later in self._later.pop(request.channel, ()):
            later()

    async def _start(self, join: _Join) -> tuple[Join, State]:
        if not join.channel.asks:
            return await self._find(join), State()
        seconds = self._run.settings.command_timeout
        try:
            async with asyncio.timeout(seconds) as deadline:
                await join.channel.authorize(self._session, join.params)
                return await self._find_with_state(join, await self._find(join))
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise Timeout(f"expected an answer within {seconds:g} s, got none") from error

    async def _find(self, join: _Join) -> Join:
        return await self._run.node.join(join.subscription, join.channel.retention, _resume(join.request))

    async def _find_with_state(self, join: _Join, found: Join) -> tuple[Join, State]:
        """Ask for the state of those who start or could not resume: position first, so nothing is missing."""
        wants_all = join.request.epoch is None and join.request.offset is not None
        if found.recovered or wants_all or not join.channel.has_snapshot:
            return found, State()
        node, subscription = self._run.node, join.subscription
        state = await take(self._session, join.channel, join.params, self._run.settings.max_event_bytes)
        found = await align(node, join.channel, subscription, found, state)
        if subscription.overrun:
            raise Unavailable(f"expected at most {subscription.limit} events while subscribing; try again")
        return found, state

    def _admit(self, join: _Join, found: Join, state: State) -> None:
        request, position = join.request, found.position
        message = Subscribed(
            channel=request.channel,
            ref=present(request.ref),
            epoch=UNSET if position is None else position.epoch,
            offset=UNSET if position is None else position.offset,
            recovered=UNSET if found.recovered is None else found.recovered,
            data=state.data,
            binary=state.binary,
        )
        self._session.tell(message)
        self._run.node.admit(join.subscription, found)
        if join.channel.presence:
            counted = join.channel.presence == "count"
            self._run.node.presence.enter(join.subscription, self._session.identity, counted=counted)

    def _abandon(self, subscription: Subscription) -> None:
        self._session.subscriptions.pop(subscription.channel, None)
        self._run.node.leave(subscription)

    def _fail(self, error: BaseException, ref: Ref, channel: str | None = None) -> None:
        refuse(self._session, self._run.metrics, error, ref, channel)


def _resume(request: Subscribe) -> Resume | None:
    return None if request.offset is None else Resume(request.epoch, request.offset)
