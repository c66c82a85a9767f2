"""What bad input gets: a clear error or the contract's close code, and nobody else notices.

Beside every hostile session there is a well-behaved one: in the end it hears an event, and has heard
nothing else. Whatever the server logs as an error fails the test.
"""

import contextlib
import itertools
import json
import logging
import socket
import struct
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from typing import Any, Self
from urllib.parse import quote

import msgspec
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.sync.client import ClientConnection, connect
from websockets.uri import parse_uri

from asgi_ws import Hub
from tests.servers import DEADLINE, Served, serve, until
from tests.test_protocol import Shared, app_of, hub_with_rooms, on_uvicorn, on_uvicorn_in_both_codecs

DEEP = 10_000
# What a server makes of a breach of the WebSocket protocol; uvicorn with wsproto may just hang up.
RFC_6455 = {
    (server, code): {code, 1006} if server == "wsproto" else {code}
    for server in ("uvicorn", "fast", "wsproto")
    for code in (1002, 1007)
}
CODECS = {
    "json": (lambda value: json.dumps(value), json.loads),
    "msgpack": (msgspec.msgpack.encode, msgspec.msgpack.decode),
}


@pytest.fixture(scope="module")
def shared():
    with contextlib.ExitStack() as stack:
        yield Shared(stack)


@pytest.fixture(autouse=True)
def nothing_is_an_error_to_the_server(caplog):
    yield
    # uvicorn's default class logs a traceback for a client that breaks RFC 6455 itself.
    known = "Invalid UTF-8 sequence received from client."
    errors = [r for r in caplog.get_records("call") if r.levelno >= logging.ERROR and r.msg != known]
    assert not errors, [r.getMessage() for r in errors]


class Speaker:
    """A client that says anything, and reads what it is answered."""

    def __init__(self, ws: ClientConnection, codec: str) -> None:
        self.ws = ws
        self.encode, self._decode = CODECS[codec]

    def say(self, payload: str | bytes) -> None:
        """Send a message as it is: text in a text frame, bytes in a binary one."""
        self.ws.send(payload)

    def hear(self) -> Any:
        return self._decode(self.ws.recv(timeout=DEADLINE))

    def answers(self) -> list[Any]:
        """Return what has been answered by now, which is not an event: all before the answer to a ping."""
        self.say(self.encode({"type": "ping", "ref": "settle"}))
        messages = []
        while (message := self.hear()) != {"type": "pong", "ref": "settle"}:
            messages += [message] if message["type"] not in {"event", "ping"} else []
        return messages

    def closed(self) -> tuple[int, str]:
        """Read until the close frame, and return what it says."""
        with pytest.raises(ConnectionClosed):
            while True:
                self.ws.recv(timeout=DEADLINE)
        return self.ws.protocol.close_code, self.ws.protocol.close_reason


@contextlib.contextmanager
def speaker(
    served: Served, codec: str = "json", path: str = "/ws/stream", joins: int = 1
) -> Iterator[Speaker]:
    options = {"compression": None, "max_size": None, "ping_interval": None, "proxy": None}
    with connect(served.ws + path, subprotocols=[f"asgi-ws.v1.{codec}"], **options) as ws:
        speaker = Speaker(ws, codec)
        for expected in ["welcome", *["subscribed"] * joins]:
            assert speaker.hear()["type"] == expected
        yield speaker


@contextlib.contextmanager
def witness(hub: Hub, served: Served) -> Iterator[None]:
    """A session beside the hostile one: it hears what is published, and nothing else."""
    with speaker(served, path="/ws/stream?channel=room:1", joins=2) as someone:
        yield
        hub.from_thread.publish("room:1", "said", "still here")
        hub.from_thread.broadcast("tick", "and here")
        heard = [someone.hear() for _ in range(2)]
        assert sorted(message.get("data", message) for message in heard) == ["and here", "still here"]
        assert someone.answers() == []
    with urllib.request.urlopen(f"{served.http}/ws/health", timeout=DEADLINE) as response:
        assert json.load(response)["status"] == "healthy"


class Raw:
    """A client made of bytes: it sends any frame, and reads only when it is told to."""

    def __init__(self, served: Served, path: str = "/ws/stream", receive_buffer: int | None = None) -> None:
        self.messages: list[Any] = []
        self.protocol = ClientProtocol(parse_uri(served.ws + path), max_size=None)
        self.socket = socket.socket()
        self.socket.settimeout(DEADLINE)
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.connect(("127.0.0.1", served.port))
        self.protocol.send_request(self.protocol.connect())
        self.request = b"".join(self.protocol.data_to_send())

    def __enter__(self) -> Self:
        """Shake hands; nothing beyond the server's answer and what came with it is read."""
        self.socket.sendall(self.request)
        while self.protocol.handshake_exc is None and self.protocol.state.name == "CONNECTING":
            self._read()
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def frame(self, opcode: Opcode, data: bytes, *, fin: bool = True) -> None:
        self.socket.sendall(Frame(opcode, data, fin=fin).serialize(mask=True))

    def close_code(self) -> int:
        """Read until the connection ends, and return what the close frame said; 1006 without one."""
        with contextlib.suppress(ConnectionError):
            while self._read():
                pass
        return 1006 if self.protocol.close_rcvd is None else self.protocol.close_rcvd.code

    def abort(self) -> None:
        """Vanish: the server sees a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def _read(self) -> bool:
        data = self.socket.recv(65536)
        if data:
            self.protocol.receive_data(data)
            frames = [event for event in self.protocol.events_received() if isinstance(event, Frame)]
            self.messages += [json.loads(frame.data) for frame in frames if frame.opcode is Opcode.TEXT]
            self.socket.sendall(b"".join(self.protocol.data_to_send()))  # the answer to a close frame
        return bool(data)


def resident() -> int:
    return psutil.Process().memory_info().rss


# Requests that are none.

BAD_JSON = {
    "nothing": "",
    "only space": " \n",
    "no JSON": "hello",
    "half a request": '{"type":"ping"',
    "two requests": '{"type":"ping"}{"type":"ping"}',
    "a byte order mark": '\ufeff{"type":"ping"}',
    "a NUL": "\x00",
    "a number": "1",
    "null": "null",
    "a text": '"ping"',
    "NaN": "NaN",
    "NaN in a field": '{"type":"ping","ref":NaN}',
    "Infinity in a field": '{"type":"ping","later":Infinity}',
    "1e999 as a ref": '{"type":"ping","ref":1e999}',
    "1e999 as an offset": '{"type":"subscribe","channel":"room:2","epoch":"x","offset":1e999}',
    "an integer without end": '{"type":"ping","ref":' + "9" * 5000 + "}",
    "half a surrogate pair": '{"type":"subscribe","channel":"\\ud800"}',
    "no type": '{"channel":"room:2"}',
    "a type that is unknown": '{"type":"nonsense"}',
    "a type of the server's": '{"type":"welcome"}',
    "a type that is no text": '{"type":["ping"]}',
    "two types": '{"type":"ping","type":"pong"}',
    "no channel": '{"type":"subscribe"}',
    "a channel that is a number": '{"type":"subscribe","channel":5}',
    "a channel that is null": '{"type":"unsubscribe","channel":null}',
    "a negative offset": '{"type":"subscribe","channel":"room:2","epoch":"x","offset":-1}',
    "half an offset": '{"type":"subscribe","channel":"room:2","epoch":"x","offset":0.5}',
    "an epoch that is a number": '{"type":"subscribe","channel":"room:2","epoch":1,"offset":0}',
    "arrays 10,000 deep": "[" * DEEP + "]" * DEEP,
    "half of arrays 10,000 deep": "[" * DEEP,
    "objects 10,000 deep": '{"a":' * DEEP + "1" + "}" * DEEP,
    "a type 10,000 deep": '{"type":' + "[" * DEEP + "]" * DEEP + "}",
    "a field 10,000 deep": '{"type":"ping","later":' + "[" * DEEP + "]" * DEEP + "}",
    "an array of 129": json.dumps([{"type": "ping"}] * 129),
    "an array of 10,000": json.dumps([0] * 10_000),
    "an array in an array": '[[{"type":"ping"}]]',
}


def mapping(*items: bytes) -> bytes:
    """A MessagePack map of encoded keys and values."""
    return bytes([0x80 | len(items) // 2]) + b"".join(items)


def packed(value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


BAD_MSGPACK = {
    "nothing": b"",
    "a byte that means nothing": b"\xc1",
    "half a request": packed({"type": "ping"})[:-1],
    "two requests": packed({"type": "ping"}) * 2,
    "null": packed(None),
    "NaN as a ref": packed({"type": "ping", "ref": float("nan")}),
    "infinity as an offset": packed(
        {"type": "subscribe", "channel": "a", "epoch": "x", "offset": float("inf")}
    ),
    "a ref beyond 64 bits": mapping(
        packed("type"), packed("ping"), packed("ref"), b"\xcf" + b"\xff" * 8
    ),
    "an array that says it has 2³²": b"\xdd\xff\xff\xff\xff",
    "a map that says it has 2³²": b"\xdf\xff\xff\xff\xff",
    "a text that says it has 2³² bytes": mapping(packed("type"), b"\xdb\xff\xff\xff\xff"),
    "a text that is no UTF-8": mapping(packed("type"), b"\xa2\xff\xfe"),
    "a channel that is no UTF-8": mapping(
        packed("type"), packed("subscribe"), packed("channel"), b"\xa2\xff\xfe"
    ),
    "a key that is a map": mapping(b"\x80", packed(1)),
    "a type that is bytes": packed({"type": b"ping"}),
    "a type that is an extension": mapping(packed("type"), b"\xd4\x05\x01"),
    "a time that is none": mapping(packed("type"), b"\xc7\x0c\xff" + b"\xff" * 12),
    "arrays 10,000 deep": b"\x91" * DEEP + b"\xc0",
    "a type 10,000 deep": mapping(packed("type"), b"\x91" * DEEP + b"\xc0"),
    "maps 10,000 deep": b"\x81\xa1a" * DEEP + b"\xc0",
    "a field 10,000 deep": mapping(packed("type"), packed("ping"), packed("x"), b"\x91" * DEEP + b"\xc0"),
    "an array of 129": packed([{"type": "ping"}] * 129),
    "an array of 10,000": packed([0] * 10_000),
}  # fmt: skip


def check_refused(hub: Hub, served: Served, codec: str, payload: str | bytes) -> None:
    """A message is answered with one `bad_request` that says why, and the session goes on."""
    with witness(hub, served), speaker(served, codec) as hostile:
        hostile.say(payload)
        error, *more = hostile.answers()
        assert more == []
        assert error == {"type": "error", "code": "bad_request", "message": error["message"]}
        assert error["message"].startswith("expected ")
        assert ", got" in error["message"]
        assert len(error["message"]) < 300
        assert not [word for word in (".py", "Traceback", "msgspec", "asgi_ws/") if word in error["message"]]


@pytest.mark.parametrize("server", ["uvicorn", "fast"])
@pytest.mark.parametrize("name", BAD_JSON)
def test_a_json_message_that_is_no_request_is_a_bad_request(shared, server, name):
    check_refused(*shared(server), "json", BAD_JSON[name])


@pytest.mark.parametrize("name", BAD_MSGPACK)
def test_a_msgpack_message_that_is_no_request_is_a_bad_request(shared, name):
    check_refused(*shared(), "msgpack", BAD_MSGPACK[name])


@on_uvicorn
@pytest.mark.parametrize(
    ("codec", "payload", "expected"),
    [("json", b'{"type":"ping"}', "text"), ("msgpack", '{"type":"ping"}', "binary"), ("json", b"", "text")],
)
def test_a_frame_of_the_wrong_kind_is_a_bad_request(shared, server, codec, payload, expected):
    hub, served = shared(server)
    with witness(hub, served), speaker(served, codec) as hostile:
        hostile.say(payload)
        (error,) = hostile.answers()
        assert error["code"] == "bad_request"
        assert f"expected {expected} messages" in error["message"]


NO_CHANNELS = {
    "empty": "",
    "a NUL": "room:\x00",
    "a newline": "room:1\n",
    "an escape": "\x1b[31mroom",
    "DEL": "room\x7f",
    "C1 control": "room\x85",
    "256 bytes": "x" * 256,
    "256 bytes in 128 characters": "é" * 128,
    "60,000 bytes": "x" * 60_000,
}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", NO_CHANNELS)
def test_a_channel_name_that_is_none_is_a_bad_request(shared, codec, name):
    hub, served = shared()
    with witness(hub, served), speaker(served, codec) as hostile:
        hostile.say(hostile.encode({"type": "subscribe", "ref": 1, "channel": NO_CHANNELS[name]}))
        (error,) = hostile.answers()
        assert (error["type"], error["code"], error["ref"]) == ("error", "bad_request", 1)
        assert len(error["message"]) < 300


@pytest.mark.parametrize("name", ["", "room:%00", "room:1%0a", "x" * 256, "%ff%fe", quote("é" * 128)])
def test_a_channel_name_that_is_none_in_the_url_is_an_error_and_the_connection_stays(shared, name):
    hub, served = shared()
    with witness(hub, served), speaker(served, path=f"/ws/stream?channel={name}", joins=0) as hostile:
        messages = [hostile.hear(), hostile.hear()]
        assert sorted(message["type"] for message in messages) == ["error", "subscribed"]
        codes = {message.get("code") for message in messages} - {None}
        # U+FFFD is what becomes of bytes that are no UTF-8: a name, but nobody's.
        assert codes == ({"not_found"} if name == "%ff%fe" else {"bad_request"})
        assert hostile.answers() == []


# Too much.


@on_uvicorn
@pytest.mark.parametrize("unit", ["x", "é"])
def test_a_message_over_max_message_bytes_closes_with_1009_and_not_one_byte_before(shared, server, unit):
    hub, served = shared(server)
    head, tail = '{"type":"ping","ref":1,"later":"', '"}'
    room = 65536 - len(head) - len(tail)
    with witness(hub, served), speaker(served) as hostile:
        fits = head + unit * (room // len(unit.encode())) + tail
        hostile.say(fits)
        assert hostile.hear() == {"type": "pong", "ref": 1}
        hostile.say(fits + " " * (65537 - len(fits.encode())))
        assert hostile.hear() == {
            "type": "disconnect", "code": 1009, "reason": "message too big", "reconnect": True,
            "delay": [0.2, 8.0],
        }  # fmt: skip
        assert hostile.closed()[0] == 1009


@on_uvicorn
@pytest.mark.parametrize("megabytes", [10, 20], ids=["10 MB: ours", "20 MB: the server's limit"])
@pytest.mark.parametrize("fragments", [1, 100])
def test_a_message_of_many_megabytes_closes_with_1009_and_leaves_no_trace(
    shared, server, megabytes, fragments
):
    hub, served = shared(server)
    before = hub.stats()["active_connections"]
    memory = resident()
    with witness(hub, served), Raw(served) as hostile:
        part = b"x" * (megabytes * 1_000_000 // fragments)
        with contextlib.suppress(ConnectionError):  # it may be closed before all is sent
            for number in range(fragments):
                opcode = Opcode.CONT if number else Opcode.TEXT
                hostile.frame(opcode, part, fin=number == fragments - 1)
        assert hostile.close_code() in {1009, 1006}  # a reset may overtake the close frame
    until(lambda: hub.stats()["active_connections"] == before)
    assert resident() - memory < 100e6


@on_uvicorn
def test_text_that_is_no_utf8_closes_with_1007(shared, server):
    hub, served = shared(server)
    before = hub.stats()["active_connections"]
    for data in (b'{"type":"\xff\xfe"}', b"\xed\xa0\x80", b"\xc3"):
        with witness(hub, served), Raw(served) as hostile:
            hostile.frame(Opcode.TEXT, data)
            assert hostile.close_code() in RFC_6455[server, 1007]
    until(lambda: hub.stats()["active_connections"] == before)


@on_uvicorn
def test_a_frame_that_breaks_the_websocket_protocol_closes_the_connection_alone(shared, server):
    hub, served = shared(server)
    before = hub.stats()["active_connections"]
    unmasked, reserved, endless_ping = b"\x81\x01x", b"\xf1\x80\0\0\0\0", b"\x09\x80\0\0\0\0"
    for frame in (unmasked, reserved, endless_ping):
        with witness(hub, served), Raw(served) as hostile:
            hostile.socket.sendall(frame)
            assert hostile.close_code() in RFC_6455[server, 1002]
    until(lambda: hub.stats()["active_connections"] == before)


@on_uvicorn
def test_ten_thousand_subscribes_get_as_many_answers_and_no_more_channels_than_allowed(server):
    hub = Hub()
    hub.channel("{name:path}", public=True)
    hub.channel("room:1", public=True)
    with serve(app_of(hub), server) as served, witness(hub, served), speaker(served) as hostile:
        memory = resident()
        codes: Counter[str] = Counter()
        for first in range(0, 10_000, 100):
            for number in range(first, first + 100):
                hostile.say(f'{{"type":"subscribe","channel":"free:{number}"}}')
            for _ in range(100):
                message = hostile.hear()
                codes[message.get("code", message["type"])] += 1
        assert codes == {"subscribed": 127, "limit_exceeded": 9873}
        assert hub.stats()["errors"] == {"limit_exceeded": 9873}
        assert resident() - memory < 20e6
        status = served.get("/ws/status").json()
        assert status["subscriptions"] == 128 + 2


@on_uvicorn
def test_a_client_that_sends_a_lot_at_once_and_reads_the_answers_is_not_too_slow(server):
    """The writer has its turn though the reader always has more to read."""
    hub = hub_with_rooms()
    request = Frame(Opcode.TEXT, b'{"type":"ping"}').serialize(mask=True)
    array = Frame(Opcode.TEXT, json.dumps([{"type": "ping"}] * 128).encode()).serialize(mask=True)
    with serve(app_of(hub), server) as served:
        for burst, answers in ((request * 10_000, 10_000), (array * 100, 12_800)):
            with witness(hub, served), Raw(served) as busy:
                sending = threading.Thread(target=busy.socket.sendall, args=(burst,))
                sending.start()
                pongs, rest = 0, b""
                while pongs < answers:
                    data = busy.socket.recv(65536)
                    assert data, f"closed after {pongs} answers: {hub.stats()['disconnects']}"
                    pongs += (rest + data).count(b'"pong"')
                    rest = data[-5:]  # one may be cut in two
                sending.join(DEADLINE)
        assert hub.stats()["slow_clients"] == 0


@on_uvicorn
def test_a_client_that_floods_and_never_reads_is_too_slow_and_bounded(server):
    hub = hub_with_rooms(send_timeout=0.5)
    garbage = Frame(Opcode.TEXT, b'{"type":"' + b"x" * 60_000 + b'"}').serialize(mask=True)
    echoed = Frame(Opcode.TEXT, b'{"type":"subscribe","channel":"' + b"x" * 60_000 + b'"}').serialize(
        mask=True
    )
    with serve(app_of(hub), server) as served, witness(hub, served):
        memory = resident()
        with Raw(served, receive_buffer=4096) as hostile:
            hostile.socket.settimeout(0.1)
            with contextlib.suppress(ConnectionError):
                deadline = time.monotonic() + DEADLINE
                while not hub.stats()["disconnects"]:
                    assert time.monotonic() < deadline, "it was not closed"
                    with contextlib.suppress(TimeoutError):
                        hostile.socket.sendall(garbage + echoed)
            until(lambda: hub.stats()["disconnects"] == {"4102": 1})
        assert hub.stats()["slow_clients"] == 1
        assert resident() - memory < 60e6


# Those who vanish.


@on_uvicorn
@pytest.mark.parametrize(
    "moment", ["before a byte", "in mid-handshake", "in mid-accept", "after the welcome"]
)
def test_clients_that_vanish_leave_nothing_behind(shared, server, moment):
    hub, served = shared(server)
    before = served.get("/ws/status").json()
    with witness(hub, served):
        for _ in range(20):
            hostile = Raw(served)
            if moment == "in mid-handshake":
                hostile.socket.sendall(hostile.request[:60])
            elif moment == "in mid-accept":
                hostile.socket.sendall(hostile.request)
            elif moment == "after the welcome":
                hostile.__enter__()
            hostile.abort()
    until(lambda: hub.stats()["active_connections"] == before["active_connections"])
    after = served.get("/ws/status").json()
    for name in ("active_connections", "channels", "subscriptions"):
        assert after[name] == before[name]


@on_uvicorn
@pytest.mark.parametrize("refuse", ["accepted", "close", "http"])
def test_a_client_may_vanish_while_the_application_decides_about_it(server, refuse):
    from asgi_ws import Unauthorized

    hub = hub_with_rooms(refuse="http" if refuse == "http" else "close")
    asked, decide = threading.Event(), threading.Event()

    @hub.authenticate
    async def who(connection, token):
        if token == "hostile":
            asked.set()
            while not decide.is_set():
                await _tick()
            if refuse != "accepted":
                raise Unauthorized

    with serve(app_of(hub), server) as served, witness(hub, served):
        hostile = Raw(served)
        key = b"Authorization: Bearer hostile\r\n"
        hostile.socket.sendall(hostile.request.replace(b"\r\n\r\n", b"\r\n" + key + b"\r\n"))
        assert asked.wait(DEADLINE)
        hostile.abort()
        time.sleep(0.05)  # the reset is on its way; nothing of ours can tell when it has come
        decide.set()
        until(lambda: hub.stats()["active_connections"] == 1)


async def _tick() -> None:
    import asyncio

    await asyncio.sleep(0.001)


@on_uvicorn
def test_clients_that_vanish_while_events_are_written_to_them_leave_nothing_behind(server):
    hub = hub_with_rooms()
    with serve(app_of(hub), server) as served, witness(hub, served):
        stop = threading.Event()

        def chatter() -> None:
            while not stop.is_set():
                hub.from_thread.publish("room:2", "said", "x" * 1000)

        talking = threading.Thread(target=chatter)
        talking.start()
        try:
            for number in range(60):
                hostile = Raw(served, "/ws/stream?channel=room:2").__enter__()
                if number % 2:
                    hostile._read()
                hostile.abort()
        finally:
            stop.set()
            talking.join(DEADLINE)
        until(lambda: hub.stats()["active_connections"] == 1)
        stats = hub.stats()
        assert sum(stats["disconnects"].values()) == stats["connections_total"] - 1
        assert stats["slow_clients"] == 0


def test_clients_that_connect_and_say_nothing_keep_nobody_out(shared):
    hub, served = shared()
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(socket.create_connection(("127.0.0.1", served.port)))
        silent = [stack.enter_context(Raw(served)) for _ in range(20)]
        with witness(hub, served):
            pass
        assert len(silent) == 20


# Anything.

CHANNELS = st.sampled_from(["room:1", "room:2", "room:x", "plain", "broadcast", "user:7", "$x", "nowhere"])
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
REFS = st.none() | st.integers(-(2**53), 2**53) | TEXTS
REQUESTS = st.fixed_dictionaries(
    {
        "type": st.sampled_from(
            ["subscribe", "unsubscribe", "ping", "pong", "publish", "call", "event", "welcome"]
        )
    },
    optional={
        "channel": CHANNELS | TEXTS,
        "ref": REFS,
        "epoch": TEXTS,
        "offset": st.integers(0, 2**53),
        "data": VALUES,
    },
)
MUTATED = st.builds(
    lambda request, name, value: {**request, name: value},
    REQUESTS,
    st.sampled_from(["type", "channel", "ref", "epoch", "offset", "later"]),
    VALUES,
)
MESSAGES = REQUESTS | MUTATED | VALUES | st.lists(REQUESTS | MUTATED | VALUES, max_size=130)


@st.composite
def payloads(draw: st.DrawFn, codec: str) -> str | bytes:
    """A request or nearly one, whole or damaged, in a frame of the right kind or the wrong one."""
    whole = CODECS[codec][0](draw(MESSAGES))
    match draw(st.sampled_from(["whole", "whole", "whole", "cut", "cross", "random", "wrong kind"])):
        case "cut":
            return whole[: draw(st.integers(0, len(whole)))]
        case "cross":
            other = CODECS[codec][0](draw(MESSAGES))
            return whole[: draw(st.integers(0, len(whole)))] + other[draw(st.integers(0, len(other))) :]
        case "random":
            return draw(TEXTS if codec == "json" else st.binary(max_size=40))
        case "wrong kind":
            return draw(st.binary(max_size=40) if codec == "json" else TEXTS)
    return whole


def answers_due(payload: str | bytes, codec: str) -> int:
    """How many answers a message is due: one for each request and for each that is none, but none for a pong."""
    if isinstance(payload, str) is not (codec == "json"):
        return 1
    module = msgspec.json if codec == "json" else msgspec.msgpack
    try:
        items = module.decode(payload, type=list[msgspec.Raw])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        items = [payload]
    return sum(not _is_pong(item, module) for item in items) if len(items) <= 128 else 1


def _is_pong(item: Any, module: Any) -> bool:
    try:
        value = module.decode(item)
        if module is msgspec.json:  # of a type that is there twice the server takes the first
            value = json.loads(
                item if isinstance(item, str) else bytes(item),
                object_pairs_hook=lambda pairs: dict(reversed(pairs)),
            )
    except (msgspec.MsgspecError, ValueError, RecursionError, TypeError):
        return False
    if not isinstance(value, dict) or value.get("type") != "pong":
        return False
    match value.get("ref"):
        case None:
            return True
        case bool():
            return False
        case int(ref):
            return abs(ref) < 2**53
        case str(ref):
            return len(ref.encode()) <= 64
    return False


@on_uvicorn_in_both_codecs
def test_whatever_a_client_sends_is_answered_and_nobody_else_hears_of_it(shared, server, codec):
    hub, served = shared(server)
    numbers = itertools.count()

    def throw(hostile: Speaker, said: list[str | bytes]) -> None:
        last = f"sentinel {next(numbers)}"
        for payload in said:
            hostile.say(payload)
        hostile.say(hostile.encode({"type": "ping", "ref": last}))
        due = sum(answers_due(payload, codec) for payload in said) + 1
        answers: list[Any] = []
        while len(answers) < due:
            message = hostile.hear()
            if message["type"] not in {"ping", "event", "position"}:
                answers.append(message)
        assert {"type": "pong", "ref": last} in answers
        assert {answer["type"] for answer in answers} <= {"error", "pong", "subscribed", "unsubscribed"}
        codes = {answer["code"] for answer in answers if answer["type"] == "error"}
        assert codes <= {"bad_request", "not_found", "already_subscribed", "limit_exceeded"}

    with witness(hub, served), contextlib.ExitStack() as stack:
        session: list[Speaker] = []  # one for all examples, until one fails

        @settings(deadline=None, max_examples=150, database=None)
        @given(said=st.lists(payloads(codec), min_size=1, max_size=4))
        def throw_anything(said: list[str | bytes]) -> None:
            hostile = session.pop() if session else stack.enter_context(speaker(served, codec))
            throw(hostile, said)
            session.append(hostile)

        throw_anything()
        assert session[0].answers() == []
