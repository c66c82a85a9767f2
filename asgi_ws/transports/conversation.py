"""What a transport begins when the handshake is done, and ends when the connection is gone."""

import secrets

from starlette.types import Scope

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

    __slots__ = ("_asked", "_requests", "_run", "session")

    def __init__(self, scope: Scope, run: Run, handshake: Handshake, transport: str) -> None:
        self.session = Session(
            id=secrets.token_urlsafe(12),
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
        self._asked = handshake.asked
        self._requests = Requests(self.session, run)

    def begin(self, link: Link, *, pong: bool) -> None:
        """Welcome the client and join its channels; `pong` where the server has no pings of its own."""
        self.session.link = link
        self._run.add(self.session)
        self.session.welcome(sorted(self._run.node.broadcaster.features), pong=pong)
        self._requests.begin(self._asked)
        self._asked = []

    def receive(self, payload: Payload) -> None:
        """Take a message from the client."""
        self._requests.receive(payload)

    def end(self, code: int) -> None:
        """The connection is gone; `code` is what the client's side gave."""
        self._requests.stop()
        self._run.remove(self.session)
        self.session.gone(code)
