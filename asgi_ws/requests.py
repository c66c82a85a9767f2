"""What a client asks, and the answers: one object a session.

Requests are started in order; what has to wait (a subscribe) waits in a task of its own, so it holds up
neither events nor other requests.
"""

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterable
from typing import Any, NamedTuple

from msgspec import UNSET

from asgi_ws import endings
from asgi_ws.channels import Channel
from asgi_ws.codecs import Invalid, Payload, brief, size_of
from asgi_ws.eager import Suspended, begin
from asgi_ws.errors import AlreadySubscribed, BadRequest, LimitExceeded, NotFound, RequestError, Timeout
from asgi_ws.messages import (
    MAX_REQUESTS,
    Error,
    Ping,
    Pong,
    Request,
    Subscribe,
    Subscribed,
    Unsubscribe,
    Unsubscribed,
)
from asgi_ws.node import Join, Resume
from asgi_ws.patterns import MAX_BYTES, check_channel
from asgi_ws.router import BROADCAST, USER_PREFIX
from asgi_ws.run import Run
from asgi_ws.session import Session
from asgi_ws.topic import Subscription

logger = logging.getLogger("asgi_ws")

MAX_JOINS = 8  # subscribes of one session that wait at once

Ref = int | str | None


class _Join(NamedTuple):
    """A subscribe on its way."""

    request: Subscribe
    channel: Channel
    params: dict[str, Any]
    subscription: Subscription


class Requests:
    """Reads what one session's client sends, and answers."""

    __slots__ = ("_later", "_run", "_session", "_tasks", "_waiting")

    def __init__(self, session: Session, run: Run) -> None:
        self._session = session
        self._run = run
        # Lists, for an idle session has a pair of these, and nothing in them.
        self._waiting: list[_Join] = []
        self._tasks: list[asyncio.Task[None]] = []
        # What is to be done with a channel as soon as it is joined: an unsubscribe, and what follows it.
        self._later: dict[str, list[Subscribe | Unsubscribe]] = {}

    def receive(self, payload: Payload) -> None:
        """Take a message from the client. Never raises: what is wrong with it is answered."""
        self._session.heard = time.monotonic()
        self._run.metrics.messages_received += 1
        if size_of(payload) > self._run.settings.max_message_bytes:
            self._session.end(endings.TOO_BIG)
            return
        for request in self._session.codec.requests(payload):
            self._handle(request)

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
            self._postpone(request)
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

    def _handle(self, request: Request | Invalid) -> None:
        match request:
            case Invalid(ref, message):
                self._fail(BadRequest(message), ref)
            case Subscribe():
                self.subscribe(request)
            case Unsubscribe():
                self._unsubscribe(request)
            case Ping(ref):
                self._session.tell(Pong(ref=UNSET if ref is None else ref))
            case Pong():
                self._session.pongs = True

    def _unsubscribe(self, request: Unsubscribe) -> None:
        channel, ref = request.channel, request.ref
        subscription = self._session.subscriptions.get(channel)
        if subscription is None:
            error = NotFound(f"expected a channel that is subscribed to, got {brief(channel)}")
            self._fail(error, ref, channel)
        elif subscription.live:
            self._run.node.leave(self._session.subscriptions.pop(channel))
            self._session.tell(Unsubscribed(channel=channel, code="client", ref=_present(ref)))
        else:
            self._postpone(request)

    def _postpone(self, request: Subscribe | Unsubscribe) -> None:
        later = self._later.setdefault(request.channel, [])
        if len(later) < MAX_REQUESTS:
            later.append(request)
        else:
            error = LimitExceeded(
                f"expected at most {MAX_REQUESTS} requests to wait for a subscribe, got one more"
            )
            self._fail(error, request.ref)

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
        found = self._run.router.find(channel)
        if found is None or (found[0].own and channel not in self._own):
            raise NotFound(f"expected a channel of this server, got {channel!r}")
        return _Join(request, *found, Subscription(self._session, channel))

    @property
    def _own(self) -> tuple[str, ...]:
        user = self._session.user
        return (BROADCAST,) if user is None else (BROADCAST, USER_PREFIX + user)

    def _next(self) -> None:
        while self._waiting and len(self._tasks) < MAX_JOINS:
            waiting = self._waiting.pop(0)
            join = self._join(waiting)
            # Where nobody is asked, neither the application nor a broker, there is nothing to wait for.
            if waiting.channel.asks or not self._run.node.broadcaster.embedded:
                self._spawn(join)
            elif (rest := begin(join)) is not None:
                self._spawn(_finish(rest))

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
            found = await self._authorize_and_find(join)
        except Exception as error:
            self._abandon(subscription)
            self._fail(self._explain(error), request.ref, request.channel)
        except asyncio.CancelledError as error:
            self._abandon(subscription)
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
            # Not we are cancelled: what the application awaited was.
            self._fail(self._explain(error), request.ref, request.channel)
        else:
            self._admit(request, subscription, found)
        for later in self._later.pop(request.channel, ()):
            self._handle(later)

    async def _authorize_and_find(self, join: _Join) -> Join:
        node, retention, resume = self._run.node, join.channel.retention, _resume(join.request)
        if not join.channel.asks:
            return await node.join(join.subscription, retention, resume)
        seconds = self._run.settings.command_timeout
        try:
            async with asyncio.timeout(seconds) as deadline:
                await join.channel.authorize(self._session, join.params)
                return await node.join(join.subscription, retention, resume)
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise Timeout(f"expected an answer within {seconds:g} s, got none") from error

    def _admit(self, request: Subscribe, subscription: Subscription, found: Join) -> None:
        position = found.position
        message = Subscribed(
            channel=request.channel,
            ref=_present(request.ref),
            epoch=UNSET if position is None else position.epoch,
            offset=UNSET if position is None else position.offset,
            recovered=UNSET if found.recovered is None else found.recovered,
        )
        self._session.tell(message)
        self._run.node.admit(subscription, found)

    def _abandon(self, subscription: Subscription) -> None:
        self._session.subscriptions.pop(subscription.channel, None)
        self._run.node.leave(subscription)

    def _explain(self, error: BaseException) -> RequestError:
        if isinstance(error, RequestError):
            return error
        logger.error("a subscribe of session %s failed", self._session.id, exc_info=error)
        return RequestError("expected this to work, got an error of the server's; its log has the details")

    def _fail(self, error: RequestError, ref: Ref, channel: str | None = None) -> None:
        self._run.metrics.errors[error.code] += 1
        message = Error(
            code=error.code,
            message=str(error) or error.code,
            ref=_present(ref),
            channel=UNSET if channel is None or len(channel) > MAX_BYTES else channel,
            retry_after=getattr(error, "retry_after", None) or UNSET,
        )
        self._session.tell(message)


async def _finish(rest: Suspended) -> None:
    await rest


def _present(ref: Ref) -> Any:
    return UNSET if ref is None else ref


def _resume(request: Subscribe) -> Resume | None:
    return None if request.offset is None else Resume(request.epoch, request.offset)
