"""What a transport begins when the handshake is done, and ends when the connection is gone."""

import secrets

from starlette.types import Scope

from asgi_ws import endings
from asgi_ws.codecs import Payload
from asgi_ws.requests import Requests
from asgi_ws.run import Run
from asgi_ws.session import Link, Session
from asgi_ws.transports.handshake import Handshake


class Conversation:
    """A session with its requests and its place in the run.

    Args:
        scope: The connection's ASGI scope.
        run: Where the session lives.
        handshake: What was agreed on.
        transport: `"websocket"`.
    """

    __slots__ = ("_handshake", "_requests", "_run", "session")

    def __init__(self, scope: Scope, run: Run, handshake: Handshake, transport: str) -> None:
        self.session = Session(
            id=secrets.token_urlsafe(12),
            endpoint=handshake.endpoint,
            home=handshake.home,
            transport=transport,
            codec=handshake.codec,
            identity=handshake.identity,
            app=scope.get("app"),
            settings=run.settings,
            pace=run.node.pace,
            metrics=run.metrics,
            catch_up=run.catch_up,
        )
        self._run = run
        self._handshake: Handshake | None = handshake
        self._requests = Requests(self.session, run, scope)

    def begin(self, link: Link, *, pong: bool) -> None:
        """Welcome the client and let it in; `pong` where the server has no pings of its own."""
        assert self._handshake is not None
        handshake, self._handshake = self._handshake, None
        self.session.link = link
        self._run.add(self.session)
        features: list[str] = sorted(self._run.node.broadcaster.features)
        self.session.welcome(features, pong=pong, pending=handshake.pending)
        if self._run.closed:  # while the handshake was answered
            self.session.end(endings.RESTART)
        else:
            self._requests.begin(handshake.asked, handshake.connection)

    async def wait(self) -> None:
        """Wait until the application has let the session in: its middleware may be about to clean up."""
        await self._requests.wait()

    def receive(self, payload: Payload) -> None:
        """Take a message from the client."""
        self._requests.receive(payload)

    def end(self, code: int) -> None:
        """The connection is gone; `code` is what the client's side gave."""
        self._requests.stop()
        self._run.remove(self.session)
        self._requests.leave(self.session.gone(code))
