"""How a session comes in: it says who it is, the application has its say, then it joins its channels.

Only where there is something to say: a session of a hub without `authenticate` and hooks has none of this.
"""

import asyncio
from collections.abc import Callable
from contextvars import Context

from msgspec import UNSET
from starlette.requests import HTTPConnection

from asgi_ws import endings
from asgi_ws.answers import present, refuse, told
from asgi_ws.auth import Identity, identify
from asgi_ws.clock import Clock, Timer
from asgi_ws.endings import Ending
from asgi_ws.errors import BadRequest, Forbidden, LimitExceeded, Unauthorized
from asgi_ws.handlers import within
from asgi_ws.joins import Joins
from asgi_ws.memo import Memo
from asgi_ws.messages import MAX_REQUESTS, Auth, Ping, Pong, Reply, Request, Subscribe
from asgi_ws.run import Run
from asgi_ws.session import Session, State

MAX_AUTHS = 8  # auth requests of one session that wait
NO_AUTH = "expected no auth, for nothing here takes a token; got one"


class Admission:
    """Lets one session in, and hears who it is, as often as it says so.

    All of it happens in one task at most, one step after another, with no context of the request's: what a
    middleware has put there is not to live as long as the session.

    Args:
        session: Whose.
        run: Where it lives.
        joins: Its channels.
        handle: Handles a request that had to wait.
        memo: Its handshake, where there is an `authenticate` to be asked again.
    """

    __slots__ = (
        "_asked", "_connection", "_ending", "_entered", "_handle", "_held", "_joins", "_memo", "_run",
        "_session", "_task", "_timer", "_waiting",
    )  # fmt: skip

    def __init__(
        self, session: Session, run: Run, joins: Joins, handle: Callable[[Request], None], memo: Memo | None
    ) -> None:
        self._session = session
        self._run = run
        self._joins = joins
        self._handle = handle
        self._memo = memo
        self._asked: list[Subscribe] = []
        # While `on_connect` is asked: the connection, and the requests that wait for what it says.
        self._connection: HTTPConnection | None = None
        self._held: list[Request] | None = None
        self._entered = False
        self._ending: Ending | None = None
        self._waiting: list[Auth] | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: Timer | None = None

    def begin(self, asked: list[Subscribe], connection: HTTPConnection) -> None:
        """Let the session in; one that is pending only when it has said who it is."""
        self._asked = asked
        if self._session.phase is State.PENDING:
            seconds, end = self._run.settings.auth_timeout, self._session.end
            clock = self._run.clock
            self._timer = clock.call_later(seconds, end, endings.AUTH_TIMED_OUT, context=Context())
        else:
            self._come(connection)
            if self._held is not None:
                self._work()

    def takes(self, request: Request) -> bool:
        """Whether a request is for here: says who it is, comes too early, or has to wait."""
        match request:
            case Auth():
                self._take_auth(request)
            case Ping() | Pong():
                return False
            case _ if self._session.phase is State.PENDING:
                self._fail(Unauthorized("expected auth first, got another request"), request)
            case _ if self._held is not None:
                self._hold(request, self._held)
            case _:
                return False
        return True

    async def wait(self) -> None:
        """Wait until `on_connect` has said what it has to say."""
        if self._held is not None and self._task is not None:
            await asyncio.wait([self._task])

    def stop(self) -> None:
        """Cancel what is under way: the session is gone."""
        self._waiting = None
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def leave(self, ending: Ending) -> None:
        """Tell the application how the session ended, if its `on_connect` has finished."""
        self._ending = ending
        if self._held is None:  # else it has not yet
            self._say_goodbye()

    # Coming in.

    def _come(self, connection: HTTPConnection) -> None:
        if self._run.router.hooks.connect:
            self._connection, self._held = connection, []
        else:
            self._entered = True
            self._join()

    def _join(self) -> None:
        asked, self._asked = self._asked, []
        self._joins.begin(asked)

    async def _enter(self) -> None:
        """Ask `on_connect`; then join the channels, and handle what has waited for it."""
        assert self._connection is not None
        connection, self._connection = self._connection, None
        try:
            await self._connect(connection)
        finally:
            held, self._held = self._held or [], None
            if self._ending is not None:  # it took no notice of the session's end
                self._say_goodbye()
        if self._session.phase is State.OPEN:
            self._join()
            for request in held:
                self._handle(request)

    async def _connect(self, connection: HTTPConnection) -> None:
        session, seconds = self._session, self._run.settings.command_timeout
        try:
            for function in self._run.router.hooks.connect:
                await within(seconds, function(session, connection), session.clock)
                self._entered = True
        except Exception as error:
            session.end(endings.of_error(told(error, session, "on_connect")))

    def _say_goodbye(self) -> None:
        if self._entered and self._ending is not None:
            self._entered = False
            self._run.say_goodbye(self._session, self._ending)

    # Saying who it is.

    def _take_auth(self, request: Auth) -> None:
        if self._memo is None:
            self._fail(BadRequest(NO_AUTH), request)
            return
        if self._waiting is None:
            self._waiting = []
        if len(self._waiting) < MAX_AUTHS:
            self._waiting.append(request)
            self._work()
        else:
            self._fail(LimitExceeded(f"expected at most {MAX_AUTHS} auth to wait, got one more"), request)

    def _work(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work_off(), context=Context())

    async def _work_off(self) -> None:
        try:
            if self._held is not None:
                await self._enter()
            while self._waiting:
                await self._auth(self._waiting.pop(0))
            self._waiting = None
        finally:
            self._task = None

    async def _auth(self, request: Auth) -> None:
        session, own = self._session, self._session.own
        try:
            identity = await self._identify(request.token)
            if session.phase not in {State.OPEN, State.PENDING}:
                return  # it has ended meanwhile
            admitted = self._accept(identity)
        except Exception as error:
            self._fail(error, request)
            return
        data = {"user": session.user, "expires_in": _left(identity, self._run.clock)}
        session.tell(Reply(ref=present(request.ref), data=data))
        if not admitted:
            for channel in session.own:
                if channel not in own:
                    self._joins.subscribe(Subscribe(channel=channel))
            await self._joins.authorize_again()
            return
        assert self._memo is not None
        self._come(self._memo.connection)
        if self._held is not None:
            await self._enter()

    async def _identify(self, token: str) -> Identity | None:
        assert self._memo is not None
        authenticate = self._run.authenticator(self._session.endpoint)
        try:
            identity = await within(
                self._run.settings.auth_timeout,
                identify(self._memo.connection, authenticate, token),
                self._run.clock,
            )
        except Unauthorized as error:
            raise Unauthorized(str(error) or "expected a valid token") from error
        if (left := _left(identity, self._run.clock)) is not None and left <= 0:
            raise Unauthorized("expected a token that has not expired")
        return identity

    def _accept(self, identity: Identity | None) -> bool:
        """Be who the token says, as far as that may be; return whether the session was pending."""
        session = self._session
        if identity is None and (session.user is not None or self._run.settings.require_auth):
            raise Unauthorized("expected a user's token")
        if session.phase is State.PENDING:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            return session.admit(identity)
        if identity is not None and session.user not in {None, identity.user}:
            raise Forbidden("expected a token of the session's user, got another user's")
        session.identity = identity
        return False

    # Holding and answering.

    def _hold(self, request: Request, held: list[Request]) -> None:
        if len(held) < MAX_REQUESTS:
            held.append(request)
        else:
            error = LimitExceeded(f"expected at most {MAX_REQUESTS} requests to wait, got one more")
            self._fail(error, request)

    def _fail(self, error: Exception, request: Request) -> None:
        ref, channel = request.ref, getattr(request, "channel", None)
        refuse(self._session, self._run.metrics, error, None if ref is UNSET else ref, channel)


def _left(identity: Identity | None, clock: Clock) -> float | None:
    """Return for how many seconds a token is still good, `None` for ever."""
    if identity is None or identity.expires_at is None:
        return None
    return round(identity.expires_at - clock.time(), 3)
