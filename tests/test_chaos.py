"""A thousand clients whose connections end at any byte, and who come back: none misses, doubles or mixes up an event.

For some seconds as a part of the tests; `ASGI_WS_TEST_MINUTES=1` makes it a minute on each server.
"""

import asyncio
import os
import random
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast
from urllib.parse import quote

import msgspec
import pytest
import uvloop

from tests.chaos import ROOMS
from tests.servers import Served

CLIENTS = 1000
RATE = 1000  # publications a second, over all rooms
KILLS = 300  # a second
SECONDS = 60 * float(os.environ.get("ASGI_WS_TEST_MINUTES", "0")) or 2.0
PATIENCE = 30.0  # until all have arrived, in the beginning, and have heard all, in the end

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
TEXT, CLOSE, PING, PONG = 1, 8, 9, 10
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: a close that sends RST


def masked(opcode: int, payload: bytes) -> bytes:
    """A short frame, masked with zeros."""
    return bytes((0x80 | opcode, 0x80 | len(payload), 0, 0, 0, 0)) + payload


class Message(msgspec.Struct):
    """As much of a message as is looked at."""

    type: str
    channel: str = ""
    offset: int = -1
    epoch: str = ""
    recovered: bool | None = None
    data: Any = None
    code: str | int | None = None


read = msgspec.json.Decoder(Message).decode


class Client:
    """One who listens to a room through many connections."""

    def __init__(self, crowd: "Crowd", number: int) -> None:
        self.crowd = crowd
        self.room = f"room:{number % ROOMS}"
        self.number = number % ROOMS
        self.epoch = ""
        self.offset = -1  # after which the next event is awaited; -1 before the first connection
        self.line: Line | None = None
        self.joined = False

    def connect(self) -> None:
        self.crowd.spawn(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: Line(self), "127.0.0.1", self.crowd.port)
        except OSError:
            self.crowd.counts["connections refused"] += 1
            self.away()

    def away(self) -> None:
        """Come back after a moment."""
        self.line, self.joined = None, False
        if not self.crowd.over:
            asyncio.get_running_loop().call_later(random.uniform(0, 0.3), self.connect)

    @property
    def path(self) -> str:
        if self.offset < 0:
            return f"/ws/stream?channel={self.room}"
        return "/ws/stream?resume=" + quote(f"{self.epoch}.{self.offset}.{self.room}")

    def take(self, message: Message) -> None:
        counts = self.crowd.counts
        if message.channel != self.room:
            if message.type in {"disconnect", "error"}:
                counts[f"{message.type} {message.code}"] += 1
            return
        match message.type:
            case "subscribed":
                self._begin(message)
            case "event":
                counts["heard"] += 1
                expected, got = self.offset, message.data["n"]
                counts["out of order"] += got != message.offset - 1
                counts["lost"] += max(0, got - expected)
                counts["doubled"] += got < expected
                self.offset = message.offset
            case _:
                counts[f"unexpected {message.type}"] += 1

    def _begin(self, message: Message) -> None:
        counts = self.crowd.counts
        if self.offset >= 0:
            counts["recovered" if message.recovered else "not recovered"] += 1
            counts["moved"] += (message.epoch, message.offset) != (self.epoch, self.offset)
        self.epoch, self.offset, self.joined = message.epoch, message.offset, True


class Line(asyncio.Protocol):
    """One connection."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.rest = b""
        self.upgraded = False
        self.ended = False
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.client.line = self
        self.transport.write(
            b"GET %b HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: %b\r\nSec-WebSocket-Version: 13\r\n\r\n" % (self.client.path.encode(), KEY)
        )

    def data_received(self, data: bytes) -> None:
        data = self.rest + data
        if not self.upgraded:
            head, end, rest = data.partition(b"\r\n\r\n")
            if not end:
                self.rest = data
                return
            self.upgraded = head.startswith(b"HTTP/1.1 101")
            self.client.crowd.counts["handshakes refused"] += not self.upgraded
            data = rest
        self.rest = self._frames(data)

    def _frames(self, data: bytes) -> bytes:
        start, total = 0, len(data)
        while total - start >= 2:
            size, payload = data[start + 1], start + 2
            if size == 126:
                size, payload = int.from_bytes(data[payload : payload + 2]), payload + 2
            elif size == 127:
                size, payload = int.from_bytes(data[payload : payload + 8]), payload + 8
            if payload + size > total:
                break
            self._frame(data[start] & 15, data[payload : payload + size])
            start = payload + size
        return data[start:]

    def _frame(self, opcode: int, payload: bytes) -> None:
        if opcode == TEXT:
            self.client.take(read(payload))
        elif opcode == PING and not self.ended:
            self.transport.write(masked(PONG, payload))

    def connection_lost(self, _: Exception | None) -> None:
        if self.client.line is self:
            self.client.crowd.counts["lines lost by the server"] += not self.ended
            self.client.away()

    # Ways to end. What was received in part is gone; what was received whole was handled.

    def abort(self) -> None:
        self._end()
        self.transport.abort()

    def reset(self) -> None:
        self._end()
        with socket.socket(fileno=os.dup(self.transport.get_extra_info("socket").fileno())) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.transport.abort()

    def half_close(self) -> None:
        self.ended = True  # and go on reading, until the server has had enough
        self.transport.write_eof()

    def close(self) -> None:
        self.ended = True
        self.transport.write(masked(CLOSE, (1001).to_bytes(2)))

    def stall(self) -> None:
        self.transport.pause_reading()
        asyncio.get_running_loop().call_later(random.uniform(0.05, 0.3), self._read_again)

    def _read_again(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def _end(self) -> None:
        self.ended = True
        self.client.away()


ENDS: tuple[tuple[str, Callable[[Line], None]], ...] = (
    ("aborted", Line.abort),
    ("reset", Line.reset),
    ("half-closed", Line.half_close),
    ("closed", Line.close),
    ("stalled", Line.stall),
)


class Crowd:
    """All the clients, and what has come of them."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.counts: Counter[str] = Counter()
        self.over = False
        self.clients = [Client(self, number) for number in range(CLIENTS)]
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def run(self, served: Served) -> list[int]:
        """Arrive, be killed for a while under load, and hear all; return how much each room has had."""
        try:
            return await self._run(served)
        finally:  # a loop that is closed with connections open does not end
            self.over = True
            await asyncio.sleep(0.4)  # who is about to come back has come
            for client in self.clients:
                if client.line is not None:
                    client.line.abort()
            await asyncio.sleep(0.2)

    async def _run(self, served: Served) -> list[int]:
        for client in self.clients:
            client.connect()
        await self._until(lambda: all(client.joined for client in self.clients), "to arrive")
        await asyncio.to_thread(served.post, f"/go?rate={RATE}", timeout=PATIENCE)
        await self._kill(until=time.monotonic() + SECONDS)
        published: list[int] = (await asyncio.to_thread(served.post, "/halt", timeout=PATIENCE)).json()
        await self._until(
            lambda: all(c.joined and c.offset == published[c.number] for c in self.clients), "to hear all"
        )
        await asyncio.sleep(0.2)  # for what should not come
        self.over = True
        for client in self.clients:
            if client.line is not None:
                client.line.close()
        await self._until(lambda: not any(client.line for client in self.clients), "to leave")
        return published

    async def _kill(self, until: float) -> None:
        due = time.monotonic()
        while time.monotonic() < until:
            due += 1 / KILLS
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            line = random.choice(self.clients).line
            if line is not None and not line.ended:
                name, end = random.choice(ENDS)
                end(line)
                self.counts[name] += 1

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"waited {PATIENCE} s for all {what}: {dict(self.counts)}"
            await asyncio.sleep(0.05)


@contextmanager
def server(name: str) -> Iterator[Served]:
    command = [sys.executable, "-m", "tests.chaos", name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            yield Served(int(process.stdout.readline()))
        finally:
            process.terminate()
            said = process.stderr.read()
            process.wait(30)
    assert "Traceback" not in said, said[-4000:]


@pytest.fixture
def untraced() -> Iterator[None]:
    """Without coverage: a thousand clients in one process must keep up with the server."""
    trace = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(trace)


@pytest.mark.timeout(60 + 3 * PATIENCE + SECONDS)
@pytest.mark.parametrize("name", ["uvicorn", "fast"])
def test_whoever_comes_back_has_missed_nothing(name, capsys, untraced):
    with server(name) as served, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        crowd = Crowd(served.port)
        published = runner.run(crowd.run(served))
        stats = served.get("/ws/stats").json()
        counts = crowd.counts
        ends = {end: counts[end] for end, _ in ENDS}
        with capsys.disabled():
            print(
                f"\n{name}: {CLIENTS} clients, {ROOMS} rooms, {SECONDS:g} s: {sum(published)} published, "
                f"{counts['heard']} heard, {ends}, {counts['recovered']} resumed; lost {counts['lost']}, "
                f"doubled {counts['doubled']}, out of order {counts['out of order']}"
            )
        assert min(published) > 0
        assert min(ends.values()) > 0
        assert counts["recovered"] > 0
        known = {"heard", "recovered", "connections refused", *ends}
        wrong = {what: count for what, count in counts.items() if count and what not in known}
        assert not wrong
        # Each client hears every event of its room: it was there before the first.
        assert counts["heard"] == sum(published[number % ROOMS] for number in range(CLIENTS))
        assert stats["active_connections"] == 0
