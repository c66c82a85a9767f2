"""A client in memory, for tests: it waits with a deadline, and says what came instead."""

import asyncio
import itertools
from collections.abc import Iterable, Mapping
from typing import Any, Self
from urllib.parse import parse_qs, quote, urlsplit

import msgspec
from starlette.types import ASGIApp

from asgi_ws.publication import Position
from asgi_ws.testing.cable import Cable, Closed, Payload, scope_for
from asgi_ws.testing.inbox import Inbox, Received, brief, difference, listed
from asgi_ws.testing.rest import settle

TIMEOUT = 5.0
MSGPACK = "asgi-ws.v1.msgpack"


class Failed(AssertionError):
    """A request was answered with an error.

    Attributes:
        code: The error's code, as in `"forbidden"`.
        answer: The whole message.
    """

    def __init__(self, request: Mapping[str, Any], answer: Received) -> None:
        super().__init__(f"{request['type']} was refused: {answer['code']}: {answer['message']}")
        self.code: str = answer["code"]
        self.answer = answer


class Client:
    """A session of a hub, seen from its client; made by `connect`.

    What has been received and not been taken is taken by `receive`, `assert_event` and `request`, the
    oldest first. The server's pings are not among it: they are counted, and answered as a browser would.

    Attributes:
        welcome: The first message.
        joined: What the channels that are joined at connection were answered, by name.
        messages: Everything received, in order, taken or not; without pings.
        pings: How many pings came.
        answers_pings: Set it to `False` for a client that shows no sign of life.
        subprotocol: What the app has chosen, or `None`.
    """

    def __init__(
        self,
        app: ASGIApp,
        path: str,
        *,
        headers: Mapping[str, str],
        subprotocol: str | None,
        resume: Mapping[str, Position],
        timeout: float,
        scope: Mapping[str, Any],
    ) -> None:
        self._app = app
        self._path = _with_resume(path, resume)
        self._headers = {"host": "testserver", **{name.lower(): headers[name] for name in headers}}
        self._offered = [] if subprotocol is None else [subprotocol]
        self._scope = scope
        self._timeout = timeout
        self._refs = itertools.count(1)
        self._inbox = Inbox(timeout, self._error)
        self._cable: Cable
        self._positions: dict[str, Position] = {}
        self.welcome: Received = {}
        self.joined: dict[str, Received] = {}
        self.messages: list[Received] = []
        self.pings = 0
        self.answers_pings = True

    def __repr__(self) -> str:
        left, received = len(self._inbox.messages), len(self.messages)
        return f"<Client {self._path}, {left} of {received} messages not taken>"

    async def __aenter__(self) -> Self:
        scope = scope_for(self._path, tuple(self._headers.items()), self._offered, **self._scope)
        self._cable = Cable(self._app, scope, self._take, self._inbox.look)
        try:
            self.welcome = await self.receive("welcome")
            for channel in _asked(self._path):
                await self._inbox.until(lambda: self._answered(channel), f"an answer for {channel!r}")  # noqa: B023
            await settle()
        except BaseException:
            self._cable.cut(1001)
            await self._until_done()
            raise
        answers = [message for message in self._inbox.messages if _joins(message) is not None]
        for answer in answers:
            self._inbox.messages.remove(answer)
            self.joined[answer["channel"]] = answer
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        await self.close(1001)
        if kind is None:
            self._raise_what_the_app_raised()

    @property
    def subprotocol(self) -> str | None:
        accepted = self._cable.accepted
        chosen: str | None = None if accepted is None else accepted.get("subprotocol")
        return chosen

    @property
    def session(self) -> str:
        """The session's id."""
        session: str = self.welcome["session"]
        return session

    @property
    def events(self) -> list[Received]:
        """Every event received, in order, taken or not."""
        return [message for message in self.messages if message["type"] == "event"]

    @property
    def positions(self) -> dict[str, Position]:
        """Where the client is in each channel with history, to resume from."""
        return dict(self._positions)

    def position(self, channel: str) -> Position | None:
        """Return where the client is in a channel: `None` before it is joined, or without history."""
        return self._positions.get(channel)

    # Saying.

    async def send(self, message: Mapping[str, Any] | list[Any]) -> None:
        """Send a request as it is, or several in an array."""
        self._put(message)

    async def send_raw(self, payload: Payload) -> None:
        """Send a message that need not be one."""
        self._write(payload)

    async def request(self, message: Mapping[str, Any]) -> Received:
        """Send a request with a `ref`, its own or a new one, and return its answer, an error too.

        Raises:
            AssertionError: There was none in time.
        """
        ref = message.get("ref")
        ref = f"test-{next(self._refs)}" if ref is None else ref
        self._put({**message, "ref": ref})
        return await self._inbox.take(lambda m: m.get("ref") == ref, f"the answer to {brief(message)}")

    async def subscribe(
        self, channel: str, *, epoch: str | None = None, offset: int | None = None
    ) -> Received:
        """Subscribe, or resume from a position, and return the answer.

        Raises:
            Failed: The answer is an error.
        """
        fields = {"epoch": epoch, "offset": offset}
        given = {name: value for name, value in fields.items() if value is not None}
        return await self._ask({"type": "subscribe", "channel": channel, **given})

    async def unsubscribe(self, channel: str) -> Received:
        """Leave a channel and return the answer.

        Raises:
            Failed: The answer is an error.
        """
        return await self._ask({"type": "unsubscribe", "channel": channel})

    async def call(self, command: str, params: Any = None) -> Any:
        """Call a command with an object of parameters, and return what it has returned.

        Raises:
            Failed: The answer is an error.
        """
        given = {} if params is None else {"params": params}
        return (await self._ask({"type": "call", "command": command, **given}))["data"]

    async def publish(self, channel: str, event: str, data: Any, *, key: str | None = None) -> Any:
        """Publish as a client does; return the position, as an object or `None`.

        Raises:
            Failed: The answer is an error.
        """
        message = {"type": "publish", "channel": channel, "event": event, "data": data}
        return (await self._ask(message if key is None else {**message, "key": key}))["data"]

    # Hearing.

    async def receive(self, *types: str, channel: str | None = None) -> Received:
        """Take the next message, or the next of some types or of a channel; others stay.

        Raises:
            AssertionError: There was none in time; it says what there was.
            Closed: The connection ended before.
        """
        what = " or ".join(types) or "a message"
        where = "" if channel is None else f" of channel {channel!r}"
        return await self._inbox.take(
            lambda m: (not types or m["type"] in types) and channel in {None, m.get("channel")},
            f"{what}{where}",
        )

    async def assert_event(self, channel: str | None, event: str, data: Any = ...) -> Received:
        """Take the next event of a channel and compare it; `None` is for those of `session.send`.

        Args:
            channel: The channel's full name.
            event: The name that it is to have.
            data: What its data is to be; left out, anything.

        Raises:
            AssertionError: It is another one, or none came in time.
        """
        where = "the session alone" if channel is None else f"channel {channel!r}"
        got = await self._inbox.take(
            lambda m: m["type"] == "event" and m.get("channel") == channel, f"event {event!r} for {where}"
        )
        expected = {"event": event} if data is ... else {"event": event, "data": data}
        actual = {name: got[name] for name in expected}
        if actual != expected:
            raise AssertionError(f"{where} has another event than expected:\n{difference(expected, actual)}")
        return got

    async def assert_nothing(self, channel: str | None = None, *, seconds: float = 0.0) -> None:
        """See to it that nothing has been received but what was taken, once everything has come to rest.

        Args:
            channel: Of this channel only.
            seconds: So much real time more, for an app that waits for threads or sockets. For time that a
                hub goes by, move its clock first.

        Raises:
            AssertionError: There was something.
        """
        await settle()
        if seconds:
            await asyncio.sleep(seconds)
        found = [m for m in self._inbox.messages if channel is None or m.get("channel") == channel]
        if found:
            where = "" if channel is None else f" of channel {channel!r}"
            raise AssertionError(f"expected nothing{where}, got {listed(found)}")

    async def closed(self) -> Closed:
        """Wait until the app has closed the connection; return how.

        Raises:
            AssertionError: It did not in time.
        """
        ended = await self._inbox.until(lambda: self._cable.ended, "the connection to be closed", ends=True)
        self._raise_what_the_app_raised()
        if isinstance(ended, Closed):
            return ended
        raise ended

    # The link.

    def stall(self, after: int = 0) -> None:
        """Read `after` messages more, and then nothing: the app's `send` waits, as with a full socket."""
        self._cable.stall(after)

    def resume_reading(self) -> None:
        """Read again what has been waiting."""
        self._cable.resume()

    async def drop(self) -> None:
        """Break the connection without a word, as the end of a network does (1006), and wait for the app.

        `positions` says where to resume: `connect(app, path, resume=client.positions)`.
        """
        await self.close(1006)

    async def close(self, code: int = 1000) -> None:
        """Close the connection and wait until the app is done with it. Idempotent.

        Raises:
            AssertionError: The app was not done in time; it is cancelled.
        """
        self._cable.cut(code)
        await self._until_done()

    # Inside.

    async def _ask(self, message: Received) -> Received:
        answer = await self.request(message)
        if answer["type"] == "error":
            raise Failed(message, answer)
        return answer

    def _put(self, message: Any) -> None:
        self._write(
            msgspec.msgpack.encode(message) if self._binary else msgspec.json.encode(message).decode()
        )

    def _write(self, payload: Payload) -> None:
        if (error := self._error()) is not None:
            raise error
        self._cable.put(payload)

    @property
    def _binary(self) -> bool:
        return self.subprotocol == MSGPACK

    def _take(self, payload: Payload) -> None:
        message = _read(payload)
        if message["type"] == "ping":
            self.pings += 1
            if self.welcome.get("pong") and self.answers_pings:
                self._put({"type": "pong"})
            return
        self._follow(message)
        self.messages.append(message)
        self._inbox.put(message)

    def _follow(self, message: Received) -> None:
        kind, channel, offset = message["type"], message.get("channel"), message.get("offset")
        if channel is None or offset is None:
            return
        if kind in {"subscribed", "gap"}:
            self._positions[channel] = Position(message["epoch"], offset)
        elif kind in {"event", "position"} and channel in self._positions:
            self._positions[channel] = Position(self._positions[channel].epoch, offset)

    def _answered(self, channel: str) -> bool:
        return any(_joins(message) == channel for message in self._inbox.messages)

    def _error(self) -> BaseException | None:
        """Why nothing more comes: what the app has raised says more than how the connection ended."""
        task = self._cable.task
        raised = task.exception() if task.done() and not task.cancelled() else None
        # That the client is gone is no news.
        return self._cable.ended if raised is None or isinstance(raised, ConnectionResetError) else raised

    def _raise_what_the_app_raised(self) -> None:
        error = self._error()
        if error is not None and error is not self._cable.ended:
            raise error

    async def _until_done(self) -> None:
        task = self._cable.task
        if not (await asyncio.wait([task], timeout=self._timeout))[0]:
            task.cancel()
            await asyncio.wait([task], timeout=self._timeout)
            raise AssertionError(
                f"expected the app to be done with the connection within {self._timeout:g} s, got none of it"
            )


def connect(
    app: ASGIApp,
    path: str = "/ws/stream",
    *,
    headers: Mapping[str, str] | None = None,
    subprotocol: str | None = None,
    resume: Mapping[str, Position] | None = None,
    timeout: float = TIMEOUT,
    **scope: Any,
) -> Client:
    """Connect to an ASGI app that mounts a hub; `async with` gives the client.

    When the block begins, `welcome` has come, and an answer for every channel of the URL; when it ends,
    the app is done with the connection, and what it has raised is raised here.

    Args:
        app: Any ASGI app, in this event loop.
        path: With the mount's path and the query.
        headers: The handshake's, as in `{"authorization": "Bearer ..."}`.
        subprotocol: `"asgi-ws.v1.json"` or `"asgi-ws.v1.msgpack"`; `None` offers none.
        resume: Positions to resume from by channel: another client's `positions`.
        timeout: Real seconds that anything may take.
        scope: What is to be else in the ASGI scope, as in `client=("192.0.2.1", 1)`.

    Raises:
        Closed: The app refused the connection; it has the code.
        Denied: The app refused it with an HTTP status.
    """
    return Client(
        app,
        path,
        headers=headers or {},
        subprotocol=subprotocol,
        resume=resume or {},
        timeout=timeout,
        scope=scope,
    )


def _with_resume(path: str, resume: Mapping[str, Position]) -> str:
    for channel, position in resume.items():
        value = quote(f"{position.epoch}.{position.offset}.{channel}", safe="")
        path += f"{'&' if '?' in path else '?'}resume={value}"
    return path


def _asked(path: str) -> Iterable[str]:
    """The channels that a URL names."""
    query = parse_qs(urlsplit(path).query)
    resumed = [value.split(".", 2)[-1] for value in query.get("resume", ())]
    return [*query.get("channel", ()), *resumed]


def _read(payload: Payload) -> Received:
    message: Received = (
        msgspec.json.decode(payload) if isinstance(payload, str) else msgspec.msgpack.decode(payload)
    )
    return message


def _joins(message: Received) -> str | None:
    """The channel that a message answers for, where nobody has asked by a request."""
    answers = message["type"] in {"subscribed", "error"} and "ref" not in message
    return message.get("channel") if answers else None
