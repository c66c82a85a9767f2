"""The clients: asyncio protocols that do no more than they must.

A delivery that is like the one before it costs two slices and a comparison; anything else is parsed.
"""

import asyncio
import time
from collections.abc import Callable
from typing import cast

from benchmarks import frames
from benchmarks.dialects import Dialect
from benchmarks.frames import Frame, masked
from benchmarks.message import MARK, NUMBER, STAMP
from benchmarks.tally import Tally


class Client(asyncio.Protocol):
    """What every client does with what it does not read itself: pings, ends, incomplete frames."""

    __slots__ = ("dialect", "rest", "tally", "transport")

    def __init__(self, tally: Tally, dialect: Dialect) -> None:
        self.tally = tally
        self.dialect = dialect
        self.rest = b""
        self.transport: asyncio.Transport

    def connection_lost(self, _: Exception | None) -> None:
        self.tally.fail("a session was lost")

    def text(self, data: bytes, frame: Frame) -> None:
        """Take a message."""
        raise NotImplementedError

    def read(self, data: bytes) -> None:
        """Take what was received, frame by frame."""
        data, end = self.rest + data, 0
        for frame in frames.frames(data):
            end = frame.end
            self._take(data, frame)
        self.rest = data[end:]

    def _take(self, data: bytes, frame: Frame) -> None:
        if frame.opcode == frames.PING:
            self.transport.write(masked(data[frame.payload : frame.end], frames.PONG))
        elif frame.opcode == frames.CLOSE:
            self.tally.fail(f"a session was closed: {data[frame.payload + 2 : frame.end].decode()!r}")
        elif frame.opcode in {frames.TEXT, frames.BINARY}:
            self.text(data, frame)

    def _answer(self, data: bytes, frame: Frame) -> None:
        answer = self.dialect.answer(data[frame.payload : frame.end])
        if answer:
            self.transport.write(masked(answer))


class Opening(Client):
    """A client until it is ready; then its place is taken by a listener.

    Args:
        request: The handshake.
        awaited: After how many messages it is ready.
        welcome: Called when it is welcome.
        ready: Called when it is ready; returns who takes its place.
    """

    __slots__ = ("_awaited", "_heard", "_heir", "_ready", "_request", "_upgraded", "_welcome")

    def __init__(
        self,
        tally: Tally,
        dialect: Dialect,
        *,
        request: bytes,
        awaited: int,
        welcome: Callable[[], None],
        ready: Callable[["Opening"], Client],
    ) -> None:
        super().__init__(tally, dialect)
        self._request = request
        self._awaited = awaited
        self._welcome = welcome
        self._ready = ready
        self._heard = 0
        self._heir: Client | None = None
        self._upgraded = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self._upgraded:
            self._read_on(data)
            return
        self.rest += data
        head, end, rest = self.rest.partition(b"\r\n\r\n")
        if end:
            self.rest = b""
            self._upgrade(head)
            self._read_on(rest)

    def text(self, data: bytes, frame: Frame) -> None:
        if self._heir is not None:
            self._heir.text(data, frame)
            return
        self._heard += 1
        self._answer(data, frame)
        self._progress()

    def _read_on(self, data: bytes) -> None:
        self.read(data)
        if self._heir is not None:
            self._heir.rest = self.rest

    def _upgrade(self, head: bytes) -> None:
        if not head.startswith(b"HTTP/1.1 101 "):
            self.tally.fail(f"a handshake was refused: {head[:60].decode()!r}")
            return
        self._upgraded = True
        greeting = self.dialect.greeting()
        if greeting:
            self.transport.write(masked(greeting))
        self._progress()

    def _progress(self) -> None:
        if self._heard == self.dialect.welcome:
            self._welcome()
        if self._heard == self._awaited:
            self._heir = self._ready(self)


class Listener(Client):
    """A client that is ready: checks that it hears every message, once, in order."""

    __slots__ = ("expected",)

    def __init__(self, opening: Opening) -> None:
        super().__init__(opening.tally, opening.dialect)
        self.transport = opening.transport
        self.expected = 0

    def data_received(self, data: bytes) -> None:
        tally = self.tally
        count, odd = divmod(len(data), tally.frame)
        if odd or self.rest or not self._as_expected(data, count):
            self.read(data)
            return
        self.expected += count
        if tally.latencies is not None:
            for frame in range(count):
                self._note(data, tally.mark + frame * tally.frame)
        tally.take(count)

    def text(self, data: bytes, frame: Frame) -> None:
        mark = data.find(MARK, frame.payload, frame.end)
        if self.dialect.replies or mark < 0:
            self._answer(data, frame)
        if mark < 0:
            return
        number = int(data[mark + NUMBER.start : mark + NUMBER.stop])
        if number != self.expected:
            self.tally.fail(f"expected message {self.expected}, got {number}")
        self.expected = number + 1
        if self.tally.latencies is not None:
            self._note(data, mark)
        self.tally.size = frame.end - frame.start
        if not self.dialect.replies:
            self.tally.frame, self.tally.mark = self.tally.size, mark - frame.start
        self.tally.take(1)

    def _as_expected(self, data: bytes, count: int) -> bool:
        first, last = self.tally.mark, self.tally.mark + (count - 1) * self.tally.frame
        return data.startswith(b"%b%08d" % (MARK, self.expected), first) and (
            count == 1 or data.startswith(b"%b%08d" % (MARK, self.expected + count - 1), last)
        )

    def _note(self, data: bytes, mark: int) -> None:
        assert self.tally.latencies is not None
        published = int(data[mark + STAMP.start : mark + STAMP.stop])
        self.tally.latencies.append(time.monotonic_ns() - published)


class Asker(Client):
    """A client that asks, waits for the answer, and asks again, until it is told to stop."""

    __slots__ = ("_asked", "_number", "asking")

    def __init__(self, opening: Opening) -> None:
        super().__init__(opening.tally, opening.dialect)
        self.transport = opening.transport
        self.asking = False
        self._number = 0
        self._asked = 0

    def ask(self) -> None:
        self._number += 1
        self._asked = time.monotonic_ns()
        self.transport.write(masked(self.dialect.question(self._number)))

    def data_received(self, data: bytes) -> None:
        self.read(data)

    def text(self, data: bytes, frame: Frame) -> None:
        mark = data.find(MARK, frame.payload, frame.end)
        if mark < 0:
            self._answer(data, frame)
            return
        if int(data[mark + NUMBER.start : mark + NUMBER.stop]) != self._number:
            self.tally.fail("an answer did not fit its question")
        if self.tally.latencies is not None:
            self.tally.latencies.append(time.monotonic_ns() - self._asked)
        if self.asking:
            self.ask()
        else:
            self.tally.take(1)
