"""What a client asks: one object a session that reads each request and hands it to who answers it.

Requests are started in order; what has to wait waits elsewhere, so it holds up neither events nor other
requests.
"""

from functools import partial

from msgspec import UNSET
from starlette.requests import HTTPConnection
from starlette.types import Scope

from asgi_ws import endings
from asgi_ws.admission import NO_AUTH, Admission
from asgi_ws.answers import refuse
from asgi_ws.calls import Calls
from asgi_ws.codecs import Invalid, Payload, size_of
from asgi_ws.endings import Ending
from asgi_ws.errors import BadRequest
from asgi_ws.joins import Joins
from asgi_ws.memo import Memo
from asgi_ws.messages import (
    AskPresence,
    Auth,
    Call,
    History,
    Ping,
    Pong,
    Publish,
    Request,
    Subscribe,
    Unsubscribe,
)
from asgi_ws.run import Run
from asgi_ws.session import Session


class Requests:
    """Reads what one session's client sends, and answers."""

    __slots__ = ("_admission", "_joins", "_lazy_calls", "_run", "_session")

    def __init__(self, session: Session, run: Run, scope: Scope) -> None:
        self._session = session
        self._run = run
        self._joins = Joins(session, run)
        self._lazy_calls: Calls | None = None  # most sessions only listen
        memo = None if run.authenticator(session.endpoint) is None else Memo(scope)
        self._admission = (
            Admission(session, run, self._joins, self._handle, memo)
            if memo is not None or run.router.hooks
            else None
        )

    def begin(self, asked: list[Subscribe], connection: HTTPConnection) -> None:
        """Let the session in, and join the channels that it has by itself and those that its URL asks for."""
        if self._admission is None:
            self._joins.begin(asked)
        else:
            self._admission.begin(asked, connection)

    async def wait(self) -> None:
        """Wait until the application has let the session in."""
        if self._admission is not None:
            await self._admission.wait()

    def receive(self, payload: Payload) -> None:
        """Take a message from the client. Never raises: what is wrong with it is answered."""
        if self._session.ending is not None:
            return  # who is being shown out has nothing more to ask
        self._session.heard = self._session.clock.monotonic()
        self._run.metrics.messages_received += 1
        if size_of(payload) > self._run.settings.max_message_bytes:
            self._session.end(endings.TOO_BIG)
            return
        for request in self._session.codec.requests(payload):
            self._handle(request)

    def stop(self) -> None:
        """Cancel what is still waiting: the session is gone."""
        self._joins.stop()
        if self._lazy_calls is not None:
            self._lazy_calls.stop()
        if self._admission is not None:
            self._admission.stop()

    def leave(self, ending: Ending) -> None:
        """Tell the application that the session is gone."""
        if self._admission is not None:
            self._admission.leave(ending)

    @property
    def _calls(self) -> Calls:
        if self._lazy_calls is None:
            self._lazy_calls = Calls(self._session, self._run)
        return self._lazy_calls

    def _ask(self, request: Call | Publish | AskPresence | History) -> None:
        match request:
            case Call():
                self._calls.call(request)
            case Publish():
                self._calls.publish(request)
            case AskPresence(channel, ref):
                self._joins.after(channel, ref, partial(self._joins.ask, request))
            case History(channel, ref):
                self._joins.after(channel, ref, partial(self._calls.history, request))

    def _handle(self, request: Request | Invalid) -> None:
        match request:
            case Invalid(ref, message):
                refuse(self._session, self._run.metrics, BadRequest(message), ref)
            case _ if self._admission is not None and self._admission.takes(request):
                pass
            case Auth(ref=ref):
                refuse(self._session, self._run.metrics, BadRequest(NO_AUTH), ref)
            case Subscribe():
                self._joins.subscribe(request)
            case Unsubscribe():
                self._joins.unsubscribe(request)
            case Call() | Publish() | AskPresence() | History():
                self._ask(request)
            case Ping(ref):
                self._session.tell(Pong(ref=UNSET if ref is None else ref))
            case Pong():
                self._session.pongs = True
