"""RFC 6455 on our server class, byte by byte: on a host app's ordinary route, and where a hub has the connection.

Beside each client that breaks a rule there is one that does not, and it is answered in the end.
"""

import asyncio
import base64
import contextlib
import hashlib
import itertools
import json
import logging
import os
import socket
import ssl
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import pytest
import websockets
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from asgi_ws import Hub
from asgi_ws.frames import header
from asgi_ws.server import connection as connections
from tests.servers import DEADLINE, Served, serve, until

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
MAX_SIZE = 2 << 20
SIZES = (0, 1, 125, 126, 127, 65535, 65536, 65537, 1 << 20)
KEY = base64.b64encode(b"0123456789abcdef")
ACCEPT = base64.b64encode(hashlib.sha1(KEY + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())


# A client that writes what it likes, and reads strictly.


class Frame(NamedTuple):
    """A frame as the server sent it."""

    opcode: int
    payload: bytes
    fin: bool = True
    rsv: int = 0

    @property
    def code(self) -> int | None:
        """The code of a close frame; none where it is empty."""
        assert self.opcode == CLOSE, self
        return struct.unpack("!H", self.payload[:2])[0] if self.payload else None


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    masked: bool = True,
    length: int | None = None,
) -> bytes:
    """A frame as a client sends it; `length` is what its header says where that is not the truth."""
    length = len(payload) if length is None else length
    if length < 126:
        head = bytes([fin << 7 | rsv << 4 | opcode, masked << 7 | length])
    elif length < 1 << 16:
        head = struct.pack("!BBH", fin << 7 | rsv << 4 | opcode, masked << 7 | 126, length)
    else:
        head = struct.pack("!BBQ", fin << 7 | rsv << 4 | opcode, masked << 7 | 127, length)
    if not masked:
        return head + payload
    mask = os.urandom(4)
    key = mask * (len(payload) // 4 + 1)
    number = int.from_bytes(payload, "big") ^ int.from_bytes(key[: len(payload)], "big")
    return head + mask + number.to_bytes(len(payload), "big")


def close_frame(code: int | None = None, reason: bytes = b"") -> bytes:
    return frame(CLOSE, b"" if code is None else struct.pack("!H", code) + reason)


class Raw:
    """A client on a bare socket."""

    def __init__(
        self,
        port: int,
        path: str,
        *,
        early: bytes = b"",
        buffer: int | None = None,
        tls: ssl.SSLContext | None = None,
        **headers: str,
    ) -> None:
        plain = socket.socket()
        plain.settimeout(DEADLINE)
        if buffer is not None:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        plain.connect(("127.0.0.1", port))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = plain if tls is None else tls.wrap_socket(plain, server_hostname="127.0.0.1")
        self._received = b""
        fields = {
            "Host": f"127.0.0.1:{port}",
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": KEY.decode(),
            "Sec-WebSocket-Version": "13",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        lines = [
            f"GET {path} HTTP/1.1",
            *(f"{name}: {value}" for name, value in fields.items() if value),
            "",
            "",
        ]
        self.write("\r\n".join(lines).encode() + early)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def write(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> tuple[int, dict[str, str]]:
        """Read the answer to the handshake, and nothing behind it."""
        while b"\r\n\r\n" not in self._received:
            self._more()
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        return int(status.split()[1]), {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}

    def opened(self) -> Self:
        status, fields = self.answer()
        assert status == 101
        assert fields["sec-websocket-accept"] == ACCEPT.decode()
        return self

    def send(self, opcode: int, payload: bytes = b"", **options: Any) -> None:
        self.write(frame(opcode, payload, **options))

    def read(self) -> Frame:
        """Read a frame; a server never masks one, and writes its length as short as it can."""
        first, second = self._take(2)
        assert not second & 0x80, "a server's frame is masked"
        length = second
        if length == 126:
            (length,) = struct.unpack("!H", self._take(2))
            assert length > 125, "a length longer than need be"
        elif length == 127:
            (length,) = struct.unpack("!Q", self._take(8))
            assert length > 65535, "a length longer than need be"
        return Frame(first & 0x0F, self._take(length), bool(first & 0x80), first >> 4 & 7)

    def until_closed(self) -> list[Frame]:
        """Read what comes until the close frame, which is the last; the server closes, and resets nothing."""
        frames = [self.read()]
        while frames[-1].opcode != CLOSE:
            frames.append(self.read())
        return frames

    def ended(self) -> bool:
        """Whether the server has closed the connection, and in good order: waits until it has."""
        while not self._received:
            try:
                self._more()
            except EOFError:
                return True
        return False

    def _take(self, count: int) -> bytes:
        while len(self._received) < count:
            self._more()
        taken, self._received = self._received[:count], self._received[count:]
        return taken

    def _more(self) -> None:
        data = self.socket.recv(1 << 18)
        if not data:
            raise EOFError
        self._received += data


# Whom it talks to: the three do the same, one in an ASGI task, one adopted, one in a hub.


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    with contextlib.suppress(WebSocketDisconnect):
        while (message := await websocket.receive())["type"] != "websocket.disconnect":
            await websocket.send(
                {"type": "websocket.send", **{k: v for k, v in message.items() if k != "type"}}
            )


class Echo:
    """An owner of adopted connections that answers everything with itself."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.codes: list[int] = []
        self._loop = asyncio.get_running_loop()

    def close(self, code: int, reason: str) -> None:
        """Close the connection, from another thread."""

        async def close() -> None:
            self.connection.close(code, reason)

        asyncio.run_coroutine_threadsafe(close(), self._loop).result(DEADLINE)

    def received(self, payload: str | bytes) -> None:
        opcode, data = (TEXT, payload.encode()) if isinstance(payload, str) else (BINARY, payload)
        assert isinstance(data, bytes)
        self.connection.write(header(0x80 | opcode, len(data)) + data)

    def held(self) -> None:
        pass

    def resumed(self) -> None:
        pass

    def stopping(self) -> None:
        self.connection.close(1012, "")

    def lost(self, code: int) -> None:
        self.codes.append(code)


class Gate:
    """Where an ASGI task waits, in another thread's loop, until the test lets it go on."""

    def __init__(self) -> None:
        self.waiting = self.open = False

    async def wait(self) -> None:
        self.waiting = True
        async with asyncio.timeout(DEADLINE):
            while not self.open:
                await asyncio.sleep(0.002)


class Adopting:
    """An ASGI app that gives its connections away; an object, for Starlette takes a function for an endpoint."""

    def __init__(self, world: "World") -> None:
        self.world = world

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if b"wait=before" in scope["query_string"]:
            await self.world.gates["before"].wait()
        await send({"type": "websocket.accept"})
        if b"wait=after" in scope["query_string"]:
            await self.world.gates["after"].wait()
        owner = Echo(scope["extensions"]["asgi_ws"]["connection"])
        self.world.owners.append(owner)
        owner.connection.adopt(owner)


class World:
    """A server, and what is known of the connections in it."""

    def __init__(self, **options: Any) -> None:
        self.owners: list[Echo] = []
        self.gates = {"before": Gate(), "after": Gate()}
        self.hub = Hub(max_message_bytes=MAX_SIZE)
        self.app = Starlette(
            routes=[
                WebSocketRoute("/ordinary", echo),
                WebSocketRoute("/refused", self._refuse),
                WebSocketRoute("/burst", self._burst),
                WebSocketRoute("/flood", self._flood),
                Route("/hello", lambda _: PlainTextResponse("hello")),
                WebSocketRoute("/adopted", Adopting(self)),
                Mount("/hub", self.hub),
            ],
            lifespan=self.hub.lifespan,
        )
        self.options = {"ws_max_size": MAX_SIZE, **options}
        self.served: Served

    @contextlib.contextmanager
    def running(self) -> Iterator[Self]:
        with serve(self.app, "fast", **self.options) as self.served:
            yield self

    @property
    def port(self) -> int:
        return self.served.port

    def open(self, target: str, **options: Any) -> Raw:
        """Connect to one of the targets, and read what a hub begins with."""
        path = {"hub": "/hub/stream"}.get(target, f"/{target}")
        raw = Raw(self.port, path, **options).opened()
        if target == "hub":
            assert [json.loads(raw.read().payload)["type"] for _ in range(2)] == ["welcome", "subscribed"]
        return raw

    @contextlib.contextmanager
    def adopted(self, path: str = "/adopted", **options: Any) -> Iterator[tuple[Raw, Echo]]:
        """Connect to the one that is adopted, and return its owner too."""
        number = len(self.owners)
        with Raw(self.port, path, **options).opened() as raw:
            yield raw, until(lambda: self.owners[number:])[0]

    async def _refuse(self, websocket: WebSocket) -> None:
        await self.gates["before"].wait()
        await websocket.close()

    async def _flood(self, websocket: WebSocket) -> None:
        await websocket.accept()
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                await websocket.send_bytes(bytes(1_000_000))

    async def _burst(self, websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.receive()
        for number in range(100):
            await websocket.send_text(str(number) * 1000)
        await websocket.close(4242, "that is all")


def proves_alive(raw: Raw, target: str) -> None:
    """Whether a connection still answers."""
    if target == "hub":
        raw.send(TEXT, b'{"type":"ping","ref":"alive"}')
        assert json.loads(raw.read().payload) == {"type": "pong", "ref": "alive"}
    else:
        raw.send(TEXT, b"alive")
        assert raw.read() == Frame(TEXT, b"alive")


@pytest.fixture(scope="module")
def world():
    with World().running() as world:
        yield world


@pytest.fixture(autouse=True)
def nothing_is_an_error_to_the_server(caplog):
    yield
    # uvicorn's own handling of text, on an ordinary route.
    known = "Invalid UTF-8 sequence received from client."
    errors = [
        r for r in caplog.get_records("call") if r.levelno >= logging.WARNING and r.getMessage() != known
    ]
    assert not errors, [r.getMessage() for r in errors]


@pytest.fixture(params=["ordinary", "adopted"])
def echoing(request):
    return request.param


@pytest.fixture(params=["ordinary", "adopted", "hub"])
def target(request):
    return request.param


def fails(world: World, target: str, *data: bytes, code: int) -> None:
    """Assert that a client that writes this is closed with the code, and nobody else is."""
    with world.open(target) as raw, world.open(target) as bystander:
        proves_alive(raw, target)
        for piece in data:
            raw.write(piece)
        closing = raw.until_closed()[-1]
        assert closing.code == code
        closing.payload[2:].decode()
        assert raw.ended()
        proves_alive(bystander, target)


class TestMessages:
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("opcode", [TEXT, BINARY])
    def test_of_any_size_are_echoed(self, world, echoing, opcode, size):
        payload = b"*" * size if opcode == TEXT else os.urandom(size)
        with world.open(echoing) as raw:
            raw.send(opcode, payload)
            assert raw.read() == Frame(opcode, payload)
            raw.write(close_frame(1000))
            assert raw.read().code == 1000

    @pytest.mark.parametrize("size", [0, 125, 126, 127, 65536])
    def test_chopped_into_single_bytes(self, world, echoing, size):
        payload = b"*" * size
        with world.open(echoing) as raw:
            for byte in frame(TEXT, payload):
                raw.write(bytes([byte]))
            assert raw.read() == Frame(TEXT, payload)

    @pytest.mark.parametrize("step", [997, 1460, 2048])
    def test_chopped_into_segments(self, world, echoing, step):
        payload = os.urandom(1 << 18)
        data = frame(BINARY, payload)
        with world.open(echoing) as raw:
            for start in range(0, len(data), step):
                raw.write(data[start : start + step])
            assert raw.read() == Frame(BINARY, payload)

    def test_many_in_one_segment_are_answered_in_order(self, world, echoing):
        with world.open(echoing) as raw:
            raw.write(b"".join(frame(TEXT, str(n).encode()) for n in range(1000)))
            assert [raw.read().payload for _ in range(1000)] == [str(n).encode() for n in range(1000)]

    @pytest.mark.parametrize("size", [size for size in SIZES if size > 100])
    def test_a_hub_reads_requests_of_any_size(self, world, size):
        with world.open("hub") as raw:
            raw.send(TEXT, b'{"type":"ping","ref":1}'.ljust(size))
            assert json.loads(raw.read().payload) == {"type": "pong", "ref": 1}
            raw.send(TEXT, b"")
            assert json.loads(raw.read().payload)["code"] == "bad_request"
            proves_alive(raw, "hub")

    @pytest.mark.parametrize("form", [126, 127])
    def test_a_length_in_a_longer_form_than_need_be_is_read_or_refused(self, world, echoing, form):
        head = struct.pack("!BBH" if form == 126 else "!BBQ", 0x81, 0x80 | form, 5)
        with world.open(echoing) as raw:
            raw.write(head + bytes(4) + b"hello")
            answer = raw.read()
            assert answer == Frame(TEXT, b"hello") or answer.code == 1002


class TestFragments:
    @pytest.mark.parametrize("opcode", [TEXT, BINARY])
    @pytest.mark.parametrize(
        "parts",
        [
            (b"one", b"two"),
            (b"one", b"", b"two", b""),
            (b"", b"", b""),
            (b"", b"late"),
            ("grüß".encode()[:3], "grüß".encode()[3:]),
            tuple(bytes([byte]) for byte in "𝄞 €".encode()),
            (b"x" * 70_000, b"y" * 70_000),
        ],
        ids=len,
    )
    def test_are_joined(self, world, echoing, opcode, parts):
        with world.open(echoing) as raw:
            for number, part in enumerate(parts, 1):
                raw.send(CONT if number > 1 else opcode, part, fin=number == len(parts))
            assert raw.read() == Frame(opcode, b"".join(parts))
            proves_alive(raw, echoing)

    def test_ten_thousand_of_one_byte(self, world, echoing):
        with world.open(echoing) as raw:
            first, *others, last = (bytes([n % 256]) for n in range(10_000))
            raw.write(frame(BINARY, first, fin=False))
            raw.write(b"".join(frame(CONT, part, fin=False) for part in others))
            raw.write(frame(CONT, last))
            assert raw.read() == Frame(BINARY, bytes(n % 256 for n in range(10_000)))

    def test_pings_between_them_are_answered_at_once(self, world, echoing):
        with world.open(echoing) as raw:
            raw.send(TEXT, b"one ", fin=False)
            raw.send(PING, b"first")
            assert raw.read() == Frame(PONG, b"first")
            raw.send(CONT, b"two ", fin=False)
            raw.send(PING, b"second")
            raw.send(PONG, b"unasked")
            assert raw.read() == Frame(PONG, b"second")
            raw.send(CONT, b"three")
            assert raw.read() == Frame(TEXT, b"one two three")

    def test_chopped_with_pings_between_them_into_single_bytes(self, world, echoing):
        data = frame(TEXT, b"one ", fin=False) + frame(PING, b"?") + frame(CONT, "zwö€lf".encode())
        with world.open(echoing) as raw:
            for byte in data:
                raw.write(bytes([byte]))
            # Its last bytes may be read at once with the ping.
            assert {raw.read(), raw.read()} == {Frame(PONG, b"?"), Frame(TEXT, "one zwö€lf".encode())}

    def test_a_close_frame_between_them_ends_the_connection(self, world, target):
        """RFC 6455 has an answer of the same code; websockets counts the message that is not whole."""
        with world.open(target) as raw:
            raw.send(TEXT, b"one", fin=False)
            raw.write(close_frame(1000))
            assert raw.read().code in {1000, 1002}
            assert raw.ended()


class TestPings:
    @pytest.mark.parametrize("size", [0, 1, 4, 124, 125])
    def test_are_answered_with_what_they_carry(self, world, target, size):
        payload = os.urandom(size)
        with world.open(target) as raw:
            raw.send(PING, payload)
            assert raw.read() == Frame(PONG, payload)

    def test_many_at_once_in_order(self, world, target):
        with world.open(target) as raw:
            raw.write(b"".join(frame(PING, bytes([n])) for n in range(100)))
            assert [raw.read() for _ in range(100)] == [Frame(PONG, bytes([n])) for n in range(100)]

    def test_chopped_into_single_bytes(self, world, target):
        with world.open(target) as raw:
            for byte in frame(PING, b"chopped"):
                raw.write(bytes([byte]))
            assert raw.read() == Frame(PONG, b"chopped")

    @pytest.mark.parametrize("payload", [b"", b"unasked", b"x" * 125])
    def test_a_pong_that_nobody_asked_for_is_ignored(self, world, target, payload):
        with world.open(target) as raw:
            raw.send(PONG, payload)
            proves_alive(raw, target)


BREACHES = {
    "a ping of 126 bytes": frame(PING, b"x" * 126),
    "a pong of 126 bytes": frame(PONG, b"x" * 126),
    "a close frame of 126 bytes": frame(CLOSE, struct.pack("!H", 1000) + b"x" * 124),
    "a fragmented ping": frame(PING, b"one", fin=False) + frame(CONT, b"two"),
    "a fragmented pong": frame(PONG, b"one", fin=False),
    "a fragmented close frame": frame(CLOSE, struct.pack("!H", 1000), fin=False),
    **{
        f"the reserved opcode {opcode:#x}": frame(opcode, b"?")
        for opcode in (*range(3, 8), *range(0xB, 0x10))
    },
    **{f"the reserved bits {rsv:03b}": frame(TEXT, b"?", rsv=rsv) for rsv in range(1, 8)},
    "a reserved bit on a ping": frame(PING, rsv=4),
    "a frame that is not masked": frame(TEXT, b"plain", masked=False),
    "a close frame that is not masked": frame(CLOSE, struct.pack("!H", 1000), masked=False),
    "a continuation of nothing": frame(CONT, b"?"),
    "a first continuation of nothing": frame(CONT, b"?", fin=False),
    "a continuation of a whole message": frame(TEXT, b"a", fin=False) + frame(CONT, b"b") + frame(CONT, b"c"),
    "a message within a message": frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"),
    "a binary message within a text one": frame(TEXT, b"a", fin=False) + frame(BINARY, b"b"),
    "a fragment within a message": frame(TEXT, b"a", fin=False) + frame(TEXT, b"b", fin=False),
}


class TestBreaches:
    @pytest.mark.parametrize("breach", BREACHES)
    def test_fail_the_connection_and_no_other(self, world, target, breach):
        fails(world, target, BREACHES[breach], code=1002)

    def test_what_came_before_in_the_same_segment_is_not_lost(self, world):
        with world.open("adopted") as raw:
            raw.write(frame(TEXT, b"one") + frame(PING, b"two") + frame(TEXT, b"three") + frame(3))
            *before, closing = raw.until_closed()
            assert [f.payload for f in before if f.opcode == TEXT] == [b"one", b"three"]
            assert closing.code == 1002

    def test_what_comes_after_it_is_read_and_dropped(self, world, echoing):
        """So that the close frame arrives: a socket that is closed with bytes unread resets the connection."""
        with world.open(echoing) as raw:
            raw.write(frame(3))
            for _ in range(100):
                raw.write(frame(PING, b"?") + frame(TEXT, b"x" * 10_000))
            assert raw.until_closed()[-1].code == 1002
            assert raw.ended()

    def test_a_client_that_then_does_not_close_is_closed(self, monkeypatch):
        monkeypatch.setattr(connections, "CLOSE_TIMEOUT", 0.2)
        with World().running() as world, world.open("adopted") as raw:
            raw.write(frame(3))
            assert raw.until_closed()[-1].code == 1002
            assert raw.ended()  # its half of it
            until(
                lambda: not world.served.server.server_state.connections, "the server to close its own half"
            )


BAD_TEXT = {
    "no UTF-8": b"\xff",
    "a lone continuation": b"ok \x80",
    "a surrogate": b"\xed\xa0\x80",
    "a pair of surrogates": b"\xed\xa0\x80\xed\xb0\x80",
    "an overlong slash": b"\xc0\xaf",
    "an overlong null": b"\xe0\x80\x80",
    "more than Unicode has": b"\xf4\x90\x80\x80",
    "an end within a character": b"\xe2\x82",
    "Latin-1": "grüß".encode("latin-1"),
}


class TestText:
    @pytest.mark.parametrize("text", BAD_TEXT)
    def test_that_is_no_utf_8_fails_the_connection(self, world, target, text):
        fails(world, target, frame(TEXT, BAD_TEXT[text]), code=1007)

    @pytest.mark.parametrize("text", BAD_TEXT)
    def test_the_same_in_fragments(self, world, target, text):
        bad = b"before " + BAD_TEXT[text]
        *parts, last = [bad[n : n + 1] for n in range(len(bad))]
        data = [frame(CONT if n else TEXT, part, fin=False) for n, part in enumerate(parts)]
        fails(world, target, *data, frame(CONT, last), code=1007)

    def test_a_character_that_the_message_ends_within(self, world, target):
        fails(world, target, frame(TEXT, b"\xe2", fin=False), frame(CONT, b"\x82"), code=1007)

    def test_what_came_before_in_the_same_segment_is_not_lost(self, world):
        with world.open("adopted") as raw:
            raw.write(frame(TEXT, b"one") + frame(TEXT, b"\xff") + frame(TEXT, b"never") + frame(PING))
            *before, closing = raw.until_closed()
            assert [f.payload for f in before if f.opcode == TEXT] == [b"one"]
            assert closing.code == 1007

    def test_a_close_frame_behind_it_changes_nothing(self, world, echoing):
        with world.open(echoing) as raw, world.open(echoing) as bystander:
            raw.write(frame(TEXT, b"\xff") + close_frame(1000))
            assert raw.until_closed()[-1].code in {1000, 1007}
            assert raw.ended()
            proves_alive(bystander, echoing)

    def test_a_breach_behind_it_changes_nothing(self, world, echoing):
        with world.open(echoing) as raw, world.open(echoing) as bystander:
            raw.write(frame(TEXT, b"\xff") + frame(3))
            assert raw.until_closed()[-1].code in {1002, 1007}
            assert raw.ended()
            proves_alive(bystander, echoing)

    @pytest.mark.parametrize("text", ["\0", "\ufeffbom", "\uffff", "\U0010ffff", "\ud7ff\ue000", "𝄞" * 100])
    def test_that_is_odd_is_echoed(self, world, echoing, text):
        with world.open(echoing) as raw:
            raw.send(TEXT, text.encode())
            assert raw.read() == Frame(TEXT, text.encode())

    @pytest.mark.parametrize("data", BAD_TEXT.values(), ids=list(BAD_TEXT))
    def test_as_a_binary_message_it_is_fine(self, world, echoing, data):
        with world.open(echoing) as raw:
            raw.send(BINARY, data)
            assert raw.read() == Frame(BINARY, data)


class TestClosing:
    @pytest.mark.parametrize("code", [*range(1000, 1004), *range(1007, 1015), 3000, 3999, 4000, 4999])
    @pytest.mark.parametrize("reason", [b"", "adiós".encode(), b"x" * 123])
    def test_the_clients_close_frame_is_echoed(self, world, target, code, reason):
        with world.open(target) as raw:
            raw.write(close_frame(code, reason))
            answer = raw.read()
            assert (answer.code, answer.payload[2:]) == (code, reason)
            assert raw.ended()

    def test_an_empty_one_too(self, world, target):
        with world.open(target) as raw:
            raw.write(close_frame())
            assert raw.read() == Frame(CLOSE, b"")
            assert raw.ended()

    @pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535])
    def test_a_code_that_is_none_fails_the_connection(self, world, target, code):
        fails(world, target, close_frame(code), code=1002)

    def test_a_body_of_one_byte_fails_it(self, world, target):
        fails(world, target, frame(CLOSE, b"\x03"), code=1002)

    @pytest.mark.parametrize("reason", BAD_TEXT)
    def test_a_reason_that_is_no_utf_8_fails_it(self, world, target, reason):
        fails(world, target, close_frame(1000, BAD_TEXT[reason]), code=1007)

    def test_what_follows_it_is_ignored(self, world, target):
        with world.open(target) as raw:
            raw.write(close_frame(1000) + frame(TEXT, b"late") + frame(PING, b"late") + close_frame(4000))
            assert raw.read().code == 1000
            assert raw.ended()

    def test_what_came_before_it_is_answered_before_it(self, world):
        with world.open("adopted") as raw:
            raw.write(frame(PING, b"?") + frame(TEXT, b"one") + frame(TEXT, b"two") + close_frame(1000))
            *before, closing = raw.until_closed()
            assert [f.payload for f in before if f.opcode == TEXT] == [b"one", b"two"]
            assert closing.code == 1000
            assert raw.ended()

    def test_the_owner_learns_of_the_code_once(self, world):
        for code, expected in [(1001, 1001), (None, 1005), (4321, 4321)]:
            with world.adopted() as (raw, owner):
                raw.write(close_frame(code))
                assert raw.read().code == code
            until(lambda owner=owner, expected=expected: owner.codes == [expected])

    def test_of_the_server_with_data_in_flight_both_ways(self, world):
        """A hundred messages, a close frame behind them, and all the while the client sends."""
        with world.open("burst") as raw:
            for _ in range(200):
                raw.send(TEXT, b"x" * 1000)
            *messages, closing = raw.until_closed()
            assert [m.payload for m in messages] == [(str(n) * 1000).encode() for n in range(100)]
            assert (closing.code, closing.payload[2:]) == (4242, b"that is all")
            raw.send(TEXT, b"the client had not yet read it")
            raw.write(close_frame(4242))
            assert raw.ended()

    def test_of_an_adopted_one_by_the_server_with_data_in_flight_both_ways(self, world):
        with world.adopted() as (raw, owner):
            raw.write(b"".join(frame(TEXT, str(n).encode() * 1000) for n in range(100)))
            assert raw.read() == Frame(TEXT, b"0" * 1000)
            owner.close(4242, "that is all")
            for _ in range(100):
                raw.send(TEXT, b"too late" * 100)
            *_, closing = raw.until_closed()
            assert (closing.code, closing.payload[2:]) == (4242, b"that is all")
            raw.write(close_frame(4242))
            assert raw.ended()
            until(lambda: owner.codes == [4242])

    def test_from_both_sides_at_once(self, world):
        with world.adopted() as (raw, owner):
            owner.close(4000, "")
            raw.write(close_frame(1001))
            assert raw.read().code == 4000
            assert raw.ended()
            until(lambda: owner.codes == [1001])

    def test_twice_sends_one_frame(self, world):
        with world.adopted() as (raw, owner):
            owner.close(4000, "first")
            owner.close(4001, "second")
            assert raw.read().payload[2:] == b"first"
            raw.write(close_frame(4000))
            assert raw.ended()

    def test_a_client_that_does_not_answer_is_closed(self, monkeypatch):
        monkeypatch.setattr(connections, "CLOSE_TIMEOUT", 0.2)
        with World().running() as world, world.adopted() as (raw, owner):
            owner.close(4000, "")
            assert raw.read().code == 4000
            raw.send(PING, b"still there?")
            assert raw.read() == Frame(PONG, b"still there?")
            assert raw.ended()
            until(lambda: owner.codes == [1006])


class TestHalfClosed:
    def test_is_closed(self, world, target):
        with world.open(target) as raw:
            proves_alive(raw, target)
            raw.socket.shutdown(socket.SHUT_WR)
            assert raw.ended()

    @pytest.mark.parametrize(
        "data", [frame(TEXT, b"hello")[:4], frame(TEXT, b"hello", fin=False)], ids=["a frame", "a message"]
    )
    def test_within(self, world, target, data):
        with world.open(target) as raw, world.open(target) as bystander:
            raw.write(data)
            raw.socket.shutdown(socket.SHUT_WR)
            assert raw.ended()
            proves_alive(bystander, target)

    def test_what_was_asked_before_is_answered(self, world):
        """More than the kernel holds: the rest is written after the client has sent its last."""
        with world.adopted(buffer=4096) as (raw, owner):
            payloads = [bytes([n]) * 100_000 for n in range(10)]
            for payload in payloads:
                raw.send(BINARY, payload)
            raw.socket.shutdown(socket.SHUT_WR)
            until(lambda: owner.codes == [1006])
            assert [raw.read().payload for _ in payloads] == payloads
            assert raw.ended()

    def test_a_client_that_then_does_not_read_is_dropped(self, monkeypatch):
        monkeypatch.setattr(connections, "CLOSE_TIMEOUT", 0.2)
        with World().running() as world, world.open("adopted", buffer=4096) as raw:
            state = world.served.server.server_state
            for _ in range(100):
                raw.send(BINARY, bytes(100_000))
            raw.socket.shutdown(socket.SHUT_WR)
            until(lambda: not state.connections, "the server to drop the connection")


EARLY = {
    "a message": (frame(TEXT, b"early"), [Frame(TEXT, b"early")]),
    "an empty message": (frame(TEXT), [Frame(TEXT, b"")]),
    "a ping": (frame(PING, b"early"), [Frame(PONG, b"early")]),
    "several": (
        b"".join(frame(TEXT, str(n).encode()) for n in range(50)),
        [Frame(TEXT, str(n).encode()) for n in range(50)],
    ),
    "half a message": (frame(TEXT, b"one ", fin=False), []),
    "a large one": (frame(BINARY, b"x" * 200_000), [Frame(BINARY, b"x" * 200_000)]),
    "a close frame": (close_frame(4000), [Frame(CLOSE, struct.pack("!H", 4000))]),
}


@pytest.mark.parametrize("http", ["httptools", "h11"])
class TestBeforeTheAnswer:
    """A client has to wait for the answer to its handshake; one that does not is understood all the same."""

    @pytest.mark.parametrize("early", EARLY)
    @pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
    def test_frames_are_handled_after_it_in_order(self, servers, echoing, http, early, apart):
        data, answers = EARLY[early]
        world = servers(http)
        gate = world.gates["before"] = Gate()
        path = f"/{echoing}?wait=before"
        with Raw(world.port, path, early=b"" if apart else data) as raw:
            if echoing == "adopted":
                until(lambda: gate.waiting)
            if apart:
                raw.write(data)
            gate.open = True
            raw.opened()
            assert [raw.read() for _ in answers] == answers
            if early == "half a message":
                raw.send(CONT, b"two")
                assert raw.read() == Frame(TEXT, b"one two")
            if early == "a close frame":
                assert raw.ended()
            else:
                proves_alive(raw, echoing)

    @pytest.mark.parametrize("cut", [1, 3, 5, 7])
    def test_part_of_a_frame(self, servers, echoing, http, cut):
        data = frame(TEXT, b"early")
        with Raw(servers(http).port, f"/{echoing}", early=data[:cut]) as raw:
            raw.opened()
            raw.write(data[cut:])
            assert raw.read() == Frame(TEXT, b"early")

    @pytest.mark.parametrize("breach", ["a continuation of nothing", "a frame that is not masked"])
    def test_a_breach_is_answered_behind_it(self, servers, echoing, http, breach):
        with Raw(servers(http).port, f"/{echoing}", early=BREACHES[breach]) as raw:
            assert raw.opened().read().code == 1002
            assert raw.ended()

    def test_requests_to_a_hub(self, servers, http):
        early = b"".join(frame(TEXT, json.dumps({"type": "ping", "ref": n}).encode()) for n in range(3))
        with Raw(servers(http).port, "/hub/stream", early=early) as raw:
            raw.opened()
            messages = [json.loads(raw.read().payload) for _ in range(5)]
            assert [m["type"] for m in messages] == ["welcome", "subscribed", "pong", "pong", "pong"]
            assert [m["ref"] for m in messages[2:]] == [0, 1, 2]

    def test_a_flood_is_held_back(self, servers, http):
        """The client's bytes stay in the kernel, and with the client, until the application has accepted."""
        world = servers(http)
        gate = world.gates["before"] = Gate()
        with Raw(world.port, "/adopted?wait=before") as raw:
            until(lambda: gate.waiting)
            raw.socket.settimeout(0.2)
            with pytest.raises(TimeoutError):
                while True:
                    raw.write(frame(BINARY, bytes(1 << 20)))
            gate.open = True
            raw.socket.settimeout(DEADLINE)
            assert raw.opened().read() == Frame(BINARY, bytes(1 << 20))

    def test_a_refusal_needs_none_of_them(self, servers, http):
        world = servers(http)
        gate = world.gates["before"] = Gate()
        gate.open = True
        with Raw(world.port, "/refused", early=frame(TEXT, b"early")) as raw:
            assert raw.answer()[0] == 403


class TestBetweenTheAnswerAndTheAdoption:
    """A middleware may let other tasks run between the two."""

    @pytest.fixture
    def waiting(self, world):
        gate = world.gates["after"] = Gate()
        with Raw(world.port, "/adopted?wait=after") as raw:
            until(lambda: gate.waiting)
            yield gate, raw.opened()

    def test_messages_are_handed_over(self, waiting):
        gate, raw = waiting
        raw.write(b"".join(frame(TEXT, str(n).encode()) for n in range(10)) + frame(PING))
        assert raw.read().opcode == PONG
        gate.open = True
        assert [raw.read().payload for _ in range(10)] == [str(n).encode() for n in range(10)]
        proves_alive(raw, "adopted")

    def test_half_a_message_is(self, waiting):
        gate, raw = waiting
        raw.write(frame(TEXT, b"one ", fin=False) + frame(CONT, b"two ", fin=False) + frame(PING))
        assert raw.read().opcode == PONG
        gate.open = True
        raw.write(frame(CONT, b"three"))
        assert raw.read() == Frame(TEXT, b"one two three")

    def test_half_a_frame_is(self, waiting):
        gate, raw = waiting
        data = frame(TEXT, b"in two halves")
        raw.write(frame(PING) + data[:7])
        assert raw.read().opcode == PONG
        gate.open = True
        raw.write(data[7:])
        assert raw.read() == Frame(TEXT, b"in two halves")

    @pytest.mark.parametrize("how", ["closes", "resets", "breaks a rule", "half-closes"])
    def test_a_client_that_leaves_is_lost_to_its_owner(self, world, waiting, how):
        gate, raw = waiting
        number = len(world.owners)
        match how:
            case "closes":
                raw.write(close_frame(4000))
                assert raw.read().code == 4000
            case "resets":
                raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                raw.socket.close()
            case "breaks a rule":
                raw.write(frame(3))
                assert raw.read().code == 1002
            case "half-closes":
                raw.socket.shutdown(socket.SHUT_WR)
                assert raw.ended()
        gate.open = True
        owner = until(lambda: world.owners[number:] and world.owners[number])
        until(lambda: owner.codes == [{"closes": 4000, "breaks a rule": 1002}.get(how, 1006)])


@pytest.fixture(scope="module")
def servers():
    """Servers by their HTTP class."""
    with contextlib.ExitStack() as stack:
        worlds: dict[str, World] = {}

        def world(http: str) -> World:
            if http not in worlds:
                worlds[http] = stack.enter_context(World(http=http).running())
            return worlds[http]

        yield world


@pytest.fixture(scope="module")
def small():
    with World(ws_max_size=TestSize.LIMIT).running() as world:
        yield world


class TestSize:
    LIMIT = 100_000

    @pytest.mark.parametrize("opcode", [TEXT, BINARY])
    def test_up_to_the_limit_is_fine(self, small, echoing, opcode):
        with small.open(echoing) as raw:
            raw.send(opcode, b"x" * self.LIMIT)
            assert raw.read() == Frame(opcode, b"x" * self.LIMIT)

    def test_one_byte_more_is_too_big(self, small, target):
        fails(small, target, frame(TEXT, b"x" * (self.LIMIT + 1)), code=1009)

    def test_so_are_fragments_whose_sum_is(self, small, target):
        half = b"x" * (self.LIMIT // 2)
        fails(
            small,
            target,
            frame(TEXT, half, fin=False) + frame(CONT, half, fin=False) + frame(CONT, b"x"),
            code=1009,
        )

    def test_the_header_is_enough(self, small, target):
        fails(small, target, frame(BINARY, length=1 << 40), code=1009)

    def test_a_length_beyond_63_bits(self, small, target):
        with small.open(target) as raw:
            raw.write(frame(BINARY, length=1 << 63))
            assert raw.until_closed()[-1].code in {1002, 1009}

    def test_a_client_still_sending_is_told(self, small, target):
        """Ten megabytes, all of which it sends before it reads."""
        fails(small, target, frame(BINARY, bytes(10 << 20)), code=1009)

    def test_a_compressed_bomb_is_too_big(self, small, target):
        squeeze = zlib.compressobj(9, zlib.DEFLATED, -12)
        bomb = squeeze.compress(bytes(20 << 20)) + squeeze.flush(zlib.Z_SYNC_FLUSH)
        assert len(bomb) < self.LIMIT
        with small.open(target, Sec_WebSocket_Extensions="permessage-deflate") as raw:
            raw.send(BINARY, bomb[:-4], rsv=4)
            assert raw.until_closed()[-1].code == 1009
            assert raw.ended()


class TestDeflate:
    """permessage-deflate is negotiated by uvicorn; a hub's own frames stay as they are, and may."""

    OFFER = {"Sec_WebSocket_Extensions": "permessage-deflate; client_max_window_bits"}

    @pytest.mark.anyio
    @pytest.mark.parametrize("fragments", [1, 3])
    async def test_a_client_library_understands_the_hub_and_is_understood(self, world, fragments):
        async with world.served.connect("/hub/stream", compression="deflate") as ws:
            assert ws.protocol.extensions
            assert json.loads(await ws.recv())["type"] == "welcome"
            for n in range(50):
                text = json.dumps({"type": "ping", "ref": n, "pad": "x" * 100 * n})
                step = len(text) // fragments + 1
                parts = [text[i : i + step] for i in range(0, len(text), step)]
                await ws.send(parts if fragments > 1 else text)
            await asyncio.to_thread(world.hub.from_thread.broadcast, "news", {"text": "n" * 10_000})
            async with asyncio.timeout(DEADLINE):
                messages = [json.loads(await ws.recv()) for _ in range(52)]
            assert [m["ref"] for m in messages if m["type"] == "pong"] == list(range(50))
            assert [m["data"]["text"] for m in messages if m["type"] == "event"] == ["n" * 10_000]

    @pytest.mark.anyio
    async def test_an_ordinary_route_compresses_both_ways(self, world):
        async with world.served.connect("/ordinary", compression="deflate") as ws:
            assert ws.protocol.extensions
            async with asyncio.timeout(DEADLINE):
                for text in ("hello", "x" * 100_000, ""):
                    await ws.send(text)
                    assert await ws.recv() == text

    def test_a_hubs_frames_are_not_compressed(self, world):
        with world.open("hub", **self.OFFER) as raw:
            squeeze = zlib.compressobj(9, zlib.DEFLATED, -12)
            data = squeeze.compress(b'{"type":"ping","ref":7}') + squeeze.flush(zlib.Z_SYNC_FLUSH)
            raw.send(TEXT, data[:-4], rsv=4)
            answer = raw.read()
            assert answer.rsv == 0
            assert json.loads(answer.payload) == {"type": "pong", "ref": 7}
            proves_alive(raw, "hub")  # not compressed, which is as good

    def test_data_that_is_not_deflated_fails_the_connection(self, world, target):
        with world.open(target, **self.OFFER) as raw:
            raw.send(TEXT, b"\xff\xff\xff\xff", rsv=4)
            assert raw.until_closed()[-1].code in {1002, 1007, 1011}
            assert raw.ended()

    @pytest.mark.parametrize("rsv", [1, 2, 3, 5, 6, 7])
    def test_the_other_reserved_bits_stay_reserved(self, world, target, rsv):
        with world.open(target, **self.OFFER) as raw:
            raw.send(TEXT, b"?", rsv=rsv)
            assert raw.until_closed()[-1].code == 1002
            assert raw.ended()


class TestHandshake:
    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({"Sec_WebSocket_Key": ""}, 400),
            ({"Sec_WebSocket_Key": "short"}, 400),
            ({"Sec_WebSocket_Key": base64.b64encode(b"x" * 17).decode()}, 400),
            ({"Sec_WebSocket_Version": ""}, 400),
            ({"Sec_WebSocket_Version": "8"}, 400),
            ({"Cookie": "x" * 10_000}, 431),
            ({f"X-{n}": "y" for n in range(200)}, 431),
        ],
        ids=["no key", "bad key", "long key", "no version", "old version", "long header", "many headers"],
    )
    def test_what_is_wrong_with_it_is_answered(self, world, target, headers, status):
        path = {"hub": "/hub/stream"}.get(target, f"/{target}")
        with Raw(world.port, path, **headers) as raw:
            assert raw.answer()[0] == status
            while not raw.ended():
                raw._received = b""

    def test_without_an_upgrade_it_is_http(self, world):
        with Raw(world.port, "/hello", Upgrade="", Connection="") as raw:
            assert raw.answer()[0] == 200

    def test_of_any_case(self, world, target):
        path = {"hub": "/hub/stream"}.get(target, f"/{target}")
        with Raw(world.port, path, Upgrade="WebSocket", Connection="keep-alive, UPGRADE") as raw:
            raw.opened()


@pytest.mark.anyio
async def test_the_librarys_own_client_and_we_understand_each_other(world, echoing):
    """What it sends by itself: pings, fragments, and its own closing handshake."""
    async with world.served.connect(f"/{echoing}") as ws, asyncio.timeout(DEADLINE):
        await (await ws.ping(b"payload"))
        await ws.send(["frag", "men", "ted"])
        assert await ws.recv() == "fragmented"
        await ws.send(itertools.repeat(b"abc", 3))
        assert await ws.recv() == b"abcabcabc"
        await ws.close(4000, "bye")
        assert isinstance(ws.protocol.close_exc, websockets.ConnectionClosedError)
        assert (ws.close_code, ws.close_reason) == (4000, "bye")
