"""The channels of one session: joining them and leaving them, as its client asks.

Subscribes are checked in order; what has to wait (the application's function, a broker) waits in a task of
its own, so it holds up neither events nor other requests.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any, NamedTuple

from msgspec import UNSET

from asgi_ws import endings
from asgi_ws.answers import Ref, present, refuse, told
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
    Unavailable,
)
from asgi_ws.handlers import within
from asgi_ws.messages import MAX_REQUESTS, AskPresence, Subscribe, Subscribed, Unsubscribe, Unsubscribed
from asgi_ws.node import Join, Resume
from asgi_ws.patterns import check_channel
from asgi_ws.run import Run
from asgi_ws.session import Session, State
from asgi_ws.snapshots import Carried, Patient, align, take
from asgi_ws.sources import Source
from asgi_ws.topic import Subscription

MAX_JOINS = 8  # subscribes of one session that wait at once
# What a subscription is ended with, by the error that its channel's function raises.
_CODES = {"forbidden": "forbidden", "not_found": "forbidden", "unauthorized": "unauthorized"}


class _Join(NamedTuple):
    """A subscribe on its way. Its subscription has the full name; the client may have asked for a shorter."""

    request: Subscribe
    channel: Channel | Source
    params: dict[str, Any]
    subscription: Subscription
    vital: bool


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
        joins = {channel: Subscribe(channel=channel) for channel in self._session.own}
        for request in asked:
            if request.offset is not None or request.channel not in joins:
                joins[request.channel] = request
        for request in joins.values():
            self.subscribe(request, vital=request.channel == self._session.home)

    def subscribe(self, request: Subscribe, *, vital: bool = False) -> None:
        """Join a channel, or answer why not; one that is `vital` ends the session if it is refused."""
        try:
            channel = self._full_name(request)
            if channel in self._later:
                self._postpone(channel, request.ref, partial(self.subscribe, request))
                return
            join = self._admissible(channel, request, vital)
        except RequestError as error:
            self._refuse(error, request, vital)
            return
        self._session.subscriptions[channel] = join.subscription
        self._waiting.append(join)
        self._next()

    async def authorize_again(self) -> None:
        """Ask for every channel that the session has whether it still may: it is somebody else now."""
        held = [one for one in self._session.subscriptions.values() if one.live]
        for start in range(0, len(held), MAX_JOINS):
            await asyncio.gather(*map(self._ask_again, held[start : start + MAX_JOINS]))
        for subscription in filter(self._holds, held):
            self._run.node.presence.renew(subscription, self._session.identity)

    def stop(self) -> None:
        """Cancel what is still waiting: the session is gone."""
        self._waiting.clear()
        for task in self._tasks:
            task.cancel()

    def unsubscribe(self, request: Unsubscribe) -> None:
        """Leave a channel, as soon as it is joined."""
        ref = request.ref
        try:
            channel = self._full_name(request)
            subscription = self._session.subscriptions.get(channel)
            if subscription is None:
                raise NotFound(f"expected a channel that is subscribed to, got {brief(channel)}")
        except RequestError as error:
            self._fail(error, ref, request.channel)
            return
        if subscription.live:
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

    def _full_name(self, request: Subscribe | Unsubscribe) -> str:
        self._check_source(request.channel)
        return self._run.router.full_name(request.channel)

    def _check_source(self, channel: str) -> None:
        """Refuse a source that its endpoint does not have, before anything is said of its parameters."""
        source = self._run.router.find_source(channel)
        if source is None or self._session.endpoint.lists("", source):
            return
        if channel.partition("?")[0] != (self._session.home or "").partition("?")[0]:
            raise NotFound(f"expected a channel of this server, got {brief(channel)}")

    def _admissible(self, channel: str, request: Subscribe, vital: bool) -> _Join:
        check_channel(channel)
        held = self._session.subscriptions
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
        return _Join(request, declared, params, kind(self._session, channel, declared.slow), vital)

    def _declared(self, channel: str) -> tuple[Channel | Source, dict[str, Any]]:
        self._check_source(channel)
        found = self._run.router.find_any(channel)
        if found is None or not self._session.may_have(channel, found[0]):
            raise NotFound(f"expected a channel of this server, got {channel!r}")
        return found

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
        request, subscription, identity = join.request, join.subscription, self._session.identity
        try:
            start = await self._start(join)
        except Exception as error:
            self._abandon(subscription)
            self._refuse(error, request, join.vital)
        except asyncio.CancelledError as error:
            self._abandon(subscription)
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
            # Not we are cancelled: what was awaited was.
            self._refuse(error, request, join.vital)
        else:
            if self._holds(subscription):
                self._admit(join, *start)
            else:  # unsubscribed by the hub meanwhile, or gone, and the application took no notice
                self._run.node.leave(subscription)
                ended = Forbidden("expected to be let in, got unsubscribed by the server")
                self._refuse(ended, request, join.vital)
            if self._session.identity is not identity:  # it was asked for who it no longer is
                await self._ask_again(subscription)
        for later in self._later.pop(subscription.channel, ()):
            later()

    async def _start(self, join: _Join) -> tuple[Join, Carried]:
        if not join.channel.asks:
            return await self._find(join), Carried()

        async def ask_and_find() -> tuple[Join, Carried]:
            await join.channel.authorize(self._session, join.params)
            if self._session.phase is State.CLOSED:  # and the application has swallowed that
                raise Unavailable("expected a session that is there, got one that has gone")
            return await self._find_with_state(join, await self._find(join))

        return await within(self._run.settings.command_timeout, ask_and_find(), self._run.clock)

    async def _find(self, join: _Join) -> Join:
        resume = _resume(join.request)
        if isinstance(join.channel, Source):
            await self._run.generators.join(join.channel, join.params, join.subscription)
            return Join(None, [], None if resume is None or not resume.epoch else False)
        return await self._run.node.join(join.subscription, join.channel.retention, resume)

    async def _find_with_state(self, join: _Join, found: Join) -> tuple[Join, Carried]:
        """Ask for the state of those who start or could not resume: position first, so nothing is missing."""
        wants_all = join.request.epoch is None and join.request.offset is not None
        if isinstance(join.channel, Source) or found.recovered or wants_all or not join.channel.has_snapshot:
            return found, Carried()
        node, subscription = self._run.node, join.subscription
        state = await take(self._session, join.channel, join.params, self._run.settings.max_event_bytes)
        found = await align(node, join.channel, subscription, found, state)
        if subscription.overrun:
            raise Unavailable(f"expected at most {subscription.limit} events while subscribing; try again")
        return found, state

    def _admit(self, join: _Join, found: Join, state: Carried) -> None:
        request, position = join.request, found.position
        message = Subscribed(
            channel=join.subscription.channel,
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
        if self._holds(subscription):
            del self._session.subscriptions[subscription.channel]
        self._run.node.leave(subscription)

    def _holds(self, subscription: Subscription) -> bool:
        held = self._session.subscriptions.get(subscription.channel) is subscription
        return held and self._session.phase is not State.CLOSED

    # Asking again, when the session is somebody else or has a new token.

    async def _ask_again(self, subscription: Subscription) -> None:
        found = self._run.router.find_any(subscription.channel)
        if found is None or not found[0].asks or not self._holds(subscription):
            return
        channel, params = found
        try:
            await within(
                self._run.settings.command_timeout, channel.authorize(self._session, params), self._run.clock
            )
        except Exception as error:
            if self._holds(subscription):
                self._revoke(subscription, error)

    def _revoke(self, subscription: Subscription, error: Exception) -> None:
        channel = subscription.channel
        known = told(error, self._session)
        self._abandon(subscription)
        if channel == self._session.home:
            self._session.end(endings.of_error(known))
            return
        # Where it could not be asked the right is not known, and so it is none: for now.
        code = _CODES.get(known.code, "failed")
        message = Unsubscribed(
            channel=channel, code=code, message=str(known) or code, resubscribe=code == "failed"
        )
        self._session.tell(message)

    def _refuse(self, error: BaseException, request: Subscribe, vital: bool) -> None:
        if vital:
            self._session.end(endings.of_error(told(error, self._session)))
        else:
            self._fail(error, request.ref, request.channel)

    def _fail(self, error: BaseException, ref: Ref, channel: str | None = None) -> None:
        refuse(self._session, self._run.metrics, error, ref, channel)


def _resume(request: Subscribe) -> Resume | None:
    return None if request.offset is None else Resume(request.epoch, request.offset)
