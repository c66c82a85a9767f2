"""The messages of `/ws/stream` as the contract has them, between real servers and real clients.

Whole objects are compared: a field too many on the wire is as wrong as one too few.
"""

import asyncio
import base64
import contextlib
import itertools
import json
import logging
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import websockets
from starlette.applications import Starlette
from starlette.routing import Mount

from asgi_ws import Binary, Forbidden, Hub, Identity, NotFound, Position, Session
from tests.servers import DEADLINE, Served, eventually, serve

pytestmark = pytest.mark.anyio

CODECS = ("json", "msgpack")
FEATURES = ["history", "idempotency", "presence", "total_order"]
# On uvicorn, with its default WebSocket class, ours, and wsproto: each reads and writes differently.
on_uvicorn = pytest.mark.parametrize("server", ["uvicorn", "fast", "wsproto"])
in_both_codecs = pytest.mark.parametrize("codec", CODECS)
on_uvicorn_in_both_codecs = pytest.mark.parametrize(
    ("server", "codec"),
    [("uvicorn", "json"), ("uvicorn", "msgpack"), ("fast", "json"), ("fast", "msgpack"), ("wsproto", "json")],
)


class Client:
    """A client that speaks one of the two subprotocols."""

    def __init__(self, ws: Any, codec: str) -> None:
        self.ws = ws
        self._encode = json.dumps if codec == "json" else msgspec.msgpack.encode
        self._decode = json.loads if codec == "json" else msgspec.msgpack.decode
        self._kind = str if codec == "json" else bytes
        self.received: list[Any] = []

    async def send(self, message: Any) -> None:
        await self.ws.send(self._encode(message))

    async def receive(self) -> Any:
        async with asyncio.timeout(DEADLINE):
            raw = await self.ws.recv()
        assert isinstance(raw, self._kind)
        self.received.append(raw)
        return self._decode(raw)

    async def ask(self, **request: Any) -> Any:
        """Send a request and return the next message."""
        await self.send(request)
        return await self.receive()

    async def until(self, **fields: Any) -> list[Any]:
        """Return all messages up to the one that has these fields, which is the last."""
        messages = [await self.receive()]
        while not fields.items() <= messages[-1].items():
            messages.append(await self.receive())
        return messages

    async def settle(self) -> list[Any]:
        """Return what has come before the answer to a ping: all that the server has sent until now."""
        await self.send({"type": "ping", "ref": "settle"})
        return (await self.until(type="pong", ref="settle"))[:-1]

    async def closed(self) -> tuple[int, str]:
        """Wait for the close frame."""
        async with asyncio.timeout(DEADLINE):
            await self.ws.wait_closed()
        return self.ws.close_code, self.ws.close_reason


@contextlib.asynccontextmanager
async def client(
    served: Served, codec: str = "json", path: str = "/ws/stream", joins: int = 1, **options: Any
) -> AsyncIterator[Client]:
    """Connect, and read the welcome and what follows it; `joins=-1` reads nothing."""
    # Without a bound: a client that has stopped reading cannot see the answer to its close frame.
    options = {"max_queue": None, **options}
    async with served.connect(path, subprotocols=[f"asgi-ws.v1.{codec}"], **options) as ws:
        assert ws.subprotocol == f"asgi-ws.v1.{codec}"
        client = Client(ws, codec)
        for expected in ["welcome", *["subscribed"] * joins][: joins + 1]:
            assert (await client.receive())["type"] == expected
        yield client


def app_of(hub: Hub) -> Starlette:
    return Starlette(routes=[Mount("/ws", hub)], lifespan=hub.lifespan)


def hub_with_rooms(**settings: Any) -> Hub:
    hub = Hub(**settings)
    hub.channel("room:{number:int}", public=True)
    hub.channel("plain", public=True, history=0)
    hub.channel("short:{number:int}", public=True, history=2)

    @hub.channel("door:{code:int}")
    async def door(session: Session, code: int) -> None:
        await session.close(code, "that is all")

    return hub


class Shared:
    """Servers for the tests that need no settings and no channel of their own, started at first use."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._running: dict[str, tuple[Hub, Served]] = {}

    def __call__(self, server: str = "uvicorn") -> tuple[Hub, Served]:
        if server not in self._running:
            hub = hub_with_rooms()
            self._running[server] = hub, self._stack.enter_context(serve(app_of(hub), server))
        return self._running[server]


@pytest.fixture(scope="module")
def shared():
    with contextlib.ExitStack() as stack:
        yield Shared(stack)


@pytest.fixture
def room():
    """A channel that no other test has used."""
    return f"room:{next(_numbers)}"


@pytest.fixture
def short():
    """One that keeps two events."""
    return f"short:{next(_numbers)}"


_numbers = itertools.count(1000)


async def publish(hub: Hub, channel: str, event: str, data: Any, **options: Any) -> Position | None:
    return await asyncio.to_thread(hub.from_thread.publish, channel, event, data, **options)


def event(channel: str, name: str, data: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "event", "channel": channel, "event": name, "data": data, **fields}


def without_time(message: dict[str, Any]) -> dict[str, Any]:
    """The message less its `time`, which must be now."""
    assert abs(message["time"] / 1000 - time.time()) < DEADLINE
    return {name: value for name, value in message.items() if name != "time"}


async def refusal(served: Served, path: str = "/ws/stream", **options: Any) -> tuple[int, str]:
    """Connect, expect no message, and return what the close frame says."""
    async with served.connect(path, **options) as ws:
        with pytest.raises(websockets.ConnectionClosed):
            async with asyncio.timeout(DEADLINE):
                raise AssertionError(f"expected a close frame, got {await ws.recv()!r}")
        return ws.close_code, ws.close_reason


async def http_refusal(served: Served, path: str = "/ws/stream", **options: Any) -> tuple[int, Any]:
    """Connect, expect an HTTP answer, and return its status and its body."""
    with pytest.raises(websockets.InvalidStatus) as raised:
        async with served.connect(path, **options):
            raise AssertionError("expected the handshake to be refused")
    response = raised.value.response
    return response.status_code, json.loads(response.body)


# The first message.


@on_uvicorn_in_both_codecs
async def test_the_welcome_comes_first_then_the_channels_that_a_session_has_by_itself(server, codec):
    hub = Hub()

    @hub.authenticate
    async def who(connection, token):
        return Identity("7")

    with serve(app_of(hub), server) as served:
        async with client(served, codec, joins=-1) as someone:
            welcome = without_time(await someone.receive())
            assert len(welcome["session"]) >= 16
            assert welcome == {
                "type": "welcome",
                "session": welcome["session"],
                "protocol": 1,
                "features": FEATURES,
                "heartbeat": 25.0,
                "user": "7",
            }
            for channel in ("broadcast", "user:7"):
                message = await someone.receive()
                assert message == {
                    "type": "subscribed", "channel": channel, "epoch": message["epoch"], "offset": 0
                }  # fmt: skip
                assert isinstance(message["epoch"], str)


@pytest.mark.parametrize("server", ["hypercorn", "granian"])
async def test_clients_are_asked_for_pongs_where_the_server_is_not_known_to_ping(shared, server):
    _, served = shared(server)
    async with client(served, joins=-1) as someone:
        assert (await someone.receive())["pong"] is True


async def test_an_anonymous_session_has_no_user_and_every_session_has_an_id_of_its_own(shared):
    _, served = shared()
    async with client(served, joins=-1) as one, client(served, joins=-1) as two:
        welcomes = [await one.receive(), await two.receive()]
        assert [welcome["user"] for welcome in welcomes] == [None, None]
        assert welcomes[0]["session"] != welcomes[1]["session"]


# Which subprotocol.


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (None, None),
        (["asgi-ws.v1.json"], "asgi-ws.v1.json"),
        (["asgi-ws.v1.msgpack", "asgi-ws.v1.json"], "asgi-ws.v1.msgpack"),
        (["graphql-ws", "asgi-ws.v1.json"], "asgi-ws.v1.json"),
    ],
)
@on_uvicorn
async def test_the_first_known_subprotocol_is_chosen_and_json_without_an_offer(
    shared, server, offered, chosen
):
    _, served = shared(server)
    async with served.connect(subprotocols=offered) as ws:
        assert ws.subprotocol == chosen
        message = await ws.recv()
        assert isinstance(message, bytes if chosen == "asgi-ws.v1.msgpack" else str)


@on_uvicorn
async def test_subprotocols_of_which_none_is_known_are_refused_with_the_list(server):
    hub = Hub()
    with serve(app_of(hub), server) as served:
        code, reason = await refusal(served, subprotocols=["graphql-ws", "mqtt"])
    assert code == 1008
    assert "asgi-ws.v1.json" in reason
    assert "asgi-ws.v1.msgpack" in reason
    with serve(app_of(Hub(refuse="http")), server) as served:
        status, body = await http_refusal(served, subprotocols=["graphql-ws"])
    assert (status, body["code"]) == (400, "bad_request")
    assert "asgi-ws.v1.json or asgi-ws.v1.msgpack, got graphql-ws" in body["message"]


# Subscribe, event, unsubscribe.


@on_uvicorn_in_both_codecs
async def test_a_channel_is_subscribed_to_heard_and_left(shared, room, server, codec):
    hub, served = shared(server)
    async with client(served, codec) as someone:
        subscribed = await someone.ask(type="subscribe", ref=1, channel=room)
        epoch = subscribed["epoch"]
        assert subscribed == {
            "type": "subscribed", "ref": 1, "channel": room, "epoch": epoch, "offset": 0
        }  # fmt: skip
        data = {"text": "grüß 👋", "n": [1, 2.5, None, True], "deep": {"": {}}}
        position = await publish(hub, room, "said", data)
        assert position == Position(epoch, 1)
        heard = without_time(await someone.receive())
        assert heard == event(room, "said", data, offset=1)
        assert await someone.ask(type="unsubscribe", ref=2, channel=room) == {
            "type": "unsubscribed", "ref": 2, "channel": room, "code": "client", "resubscribe": False
        }  # fmt: skip
        await publish(hub, room, "said", "to nobody")
        assert await someone.settle() == []


@in_both_codecs
async def test_a_channel_without_history_has_no_positions(shared, codec):
    hub, served = shared()
    async with client(served, codec) as someone:
        assert await someone.ask(type="subscribe", channel="plain") == {
            "type": "subscribed", "channel": "plain"
        }  # fmt: skip
        assert await publish(hub, "plain", "said", 1) is None
        assert without_time(await someone.receive()) == event("plain", "said", 1)


@in_both_codecs
async def test_binary_data_travels_raw_or_as_base64(shared, codec):
    raw = bytes(range(256))
    hub, served = shared()
    async with client(served, codec, "/ws/stream?channel=plain", joins=2) as someone:
        await publish(hub, "plain", "blob", Binary(raw))
        data = base64.b64encode(raw).decode() if codec == "json" else raw
        assert without_time(await someone.receive()) == event("plain", "blob", data, binary=True)


async def test_the_key_of_a_publish_is_the_events_id_and_a_second_publish_with_it_sends_nothing(shared, room):
    hub, served = shared()
    async with client(served, path=f"/ws/stream?channel={room}", joins=2) as someone:
        first = await publish(hub, room, "said", "once", key="a1")
        assert without_time(await someone.receive()) == event(room, "said", "once", offset=1, id="a1")
        assert await publish(hub, room, "said", "twice", key="a1") == first
        assert await someone.settle() == []


@on_uvicorn
async def test_an_excluded_session_has_the_position_instead_of_the_event(shared, room, server):
    hub, served = shared(server)
    async with client(served, joins=-1) as author, client(served) as reader:
        session = (await author.receive())["session"]
        await author.receive()
        for someone in (author, reader):
            await someone.ask(type="subscribe", channel=room)
        await publish(hub, room, "said", 1, exclude=session)
        await publish(hub, room, "said", 2)
        assert await author.receive() == {"type": "position", "channel": room, "offset": 1}
        assert without_time(await author.receive()) == event(room, "said", 2, offset=2)
        assert [(await reader.receive())["data"] for _ in range(2)] == [1, 2]


@in_both_codecs
async def test_what_a_handler_sends_to_one_session_has_no_channel_and_no_position(codec):
    hub = Hub()

    @hub.channel("greeter")
    async def greeter(session: Session) -> None:
        await session.send("hello", {"n": 1})

    with serve(app_of(hub)) as served:
        async with client(served, codec) as someone:
            hello = without_time(await someone.ask(type="subscribe", channel="greeter"))
            assert hello == {"type": "event", "event": "hello", "data": {"n": 1}}
            assert (await someone.receive())["type"] == "subscribed"


async def test_the_channels_of_the_url_are_joined_once_each_and_one_that_is_refused_is_an_error():
    hub = hub_with_rooms()
    query = "channel=room:1&channel=room:2&channel=broadcast&channel=room:1&channel=nowhere"
    with serve(app_of(hub)) as served:
        async with client(served, path=f"/ws/stream?{query}", joins=0) as someone:
            messages = [*[await someone.receive() for _ in range(4)], *await someone.settle()]
            answers = {message["channel"]: message["type"] for message in messages}
            assert len(messages) == len(answers) == 4
            assert answers == {
                "broadcast": "subscribed", "room:1": "subscribed", "room:2": "subscribed", "nowhere": "error"
            }  # fmt: skip
            await publish(hub, "broadcast", "tick", 1)
            assert [message["data"] for message in [await someone.receive(), *await someone.settle()]] == [1]


# Ping, pong, ref.


@on_uvicorn_in_both_codecs
async def test_a_ping_is_answered_and_a_pong_is_not(shared, server, codec):
    _, served = shared(server)
    async with client(served, codec) as someone:
        await someone.send({"type": "pong"})
        assert await someone.ask(type="ping") == {"type": "pong"}
        assert await someone.ask(type="ping", ref=9) == {"type": "pong", "ref": 9}


@pytest.mark.parametrize("ref", [0, -1, 2**53 - 1, -(2**53) + 1, "", "a1", "é" * 32, "\x00\n"])
@in_both_codecs
async def test_every_answer_carries_the_ref_of_its_request(shared, codec, ref):
    _, served = shared()
    async with client(served, codec) as someone:
        for request in (
            {"type": "ping"},
            {"type": "subscribe", "channel": "plain"},
            {"type": "subscribe", "channel": "plain"},
            {"type": "subscribe", "channel": "nowhere"},
            {"type": "subscribe", "channel": 5},
            {"type": "unsubscribe", "channel": "plain"},
            {"type": "nonsense"},
            {},
        ):
            assert (await someone.ask(**request, ref=ref))["ref"] == ref
            assert "ref" not in await someone.ask(**request)


@pytest.mark.parametrize("ref", [2**53, -(2**53), "x" * 65, "é" * 33, 1.5, True, [], {}])
@in_both_codecs
async def test_a_ref_that_is_none_is_refused_and_not_echoed(shared, codec, ref):
    _, served = shared()
    async with client(served, codec) as someone:
        answer = await someone.ask(type="ping", ref=ref)
        assert answer == {"type": "error", "code": "bad_request", "message": answer["message"]}
        assert "expected" in answer["message"]


@pytest.mark.parametrize("request_type", ["ping", "subscribe", "unsubscribe"])
async def test_a_ref_that_is_null_is_no_ref(shared, request_type):
    """As an optional field comes out of many a client's encoder."""
    _, served = shared()
    async with client(served, path="/ws/stream?channel=plain", joins=2) as someone:
        channel = "room:1" if request_type == "subscribe" else "plain"
        answer = await someone.ask(type=request_type, channel=channel, ref=None)
        assert answer["type"] in {"pong", "subscribed", "unsubscribed"}
        assert "ref" not in answer


@in_both_codecs
async def test_an_array_of_requests_is_handled_in_order(shared, codec):
    requests = [
        {"type": "ping", "ref": 1},
        {"type": "nonsense", "ref": 2},
        {"type": "unsubscribe", "ref": 3, "channel": "room:1"},
        {"type": "subscribe", "ref": 4, "channel": "nowhere"},
        ["ping"],
        {"type": "ping", "ref": 6},
    ]
    _, served = shared()
    async with client(served, codec) as someone:
        await someone.send(requests)
        answers = [await someone.receive() for _ in requests]
        assert [answer.get("ref") for answer in answers] == [1, 2, 3, 4, None, 6]
        codes = ["pong", "bad_request", "not_found", "not_found", "bad_request", "pong"]
        assert [answer.get("code", answer["type"]) for answer in answers] == codes
        await someone.send([])
        assert await someone.settle() == []


@in_both_codecs
async def test_fields_that_are_not_known_are_ignored(shared, codec):
    _, served = shared()
    async with client(served, codec) as someone:
        assert await someone.ask(type="ping", ref=1, later={"version": [2]}) == {"type": "pong", "ref": 1}


# Errors.


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        ({"type": "subscribe", "channel": "nowhere"}, "not_found", "nowhere"),
        ({"type": "subscribe", "channel": "room:x"}, "not_found", "room:x"),
        ({"type": "subscribe", "channel": "room:007"}, "not_found", "room:007"),
        ({"type": "subscribe", "channel": "user:8"}, "not_found", "user:8"),
        ({"type": "subscribe", "channel": "$self"}, "not_found", "$self"),
        ({"type": "subscribe", "channel": "plain"}, "already_subscribed", "plain"),
        ({"type": "subscribe", "channel": "broadcast"}, "already_subscribed", "broadcast"),
        ({"type": "unsubscribe", "channel": "room:1"}, "not_found", "room:1"),
        ({"type": "subscribe", "channel": "room:1", "epoch": "k3f9"}, "bad_request", "offset"),
        ({"type": "subscribe", "channel": "room:1", "offset": 41}, "bad_request", "epoch"),
    ],
)
@in_both_codecs
async def test_what_cannot_be_is_an_error_that_names_its_channel(shared, codec, request_, code, words):
    _, served = shared()
    async with client(served, codec, "/ws/stream?channel=plain", joins=2) as someone:
        error = await someone.ask(**request_, ref=3)
        message = error["message"]
        assert error == {
            "type": "error", "ref": 3, "channel": request_["channel"], "code": code, "message": message
        }  # fmt: skip
        assert message.startswith("expected ")
        assert ", got " in message
        assert words in message
        assert await someone.settle() == []


async def test_a_session_has_at_most_max_subscriptions_channels():
    with serve(app_of(hub_with_rooms(max_subscriptions=3))) as served:
        async with client(served) as someone:
            for number, answer in enumerate(["subscribed", "subscribed", "error"]):
                last = await someone.ask(type="subscribe", channel=f"room:{number}")
                assert last["type"] == answer
            assert last["code"] == "limit_exceeded"
            await someone.ask(type="unsubscribe", channel="room:0")
            assert (await someone.ask(type="subscribe", channel="room:2"))["type"] == "subscribed"


# What a channel's function says.


async def test_a_channels_function_may_refuse_and_only_what_it_says_is_passed_on():
    hub = Hub()

    @hub.channel("secret:{number:int}")
    async def secret(session: Session, number: int) -> None:
        if number == 1:
            raise Forbidden("expected a member of the board")
        if number == 2:
            raise NotFound

    with serve(app_of(hub)) as served:
        async with client(served) as someone:
            assert (await someone.ask(type="subscribe", channel="secret:0"))["type"] == "subscribed"
            assert await someone.ask(type="subscribe", channel="secret:1") == {
                "type": "error",
                "channel": "secret:1",
                "code": "forbidden",
                "message": "expected a member of the board",
            }
            assert (await someone.ask(type="subscribe", channel="secret:2"))["code"] == "not_found"
            await publish(hub, "secret:1", "said", "not for you")
            assert await someone.settle() == []


@on_uvicorn
async def test_a_function_that_fails_is_internal_and_its_traceback_is_logged_once(server, caplog):
    hub = Hub()

    @hub.channel("broken")
    async def broken(session: Session) -> None:
        raise ValueError("password=hunter2")

    with serve(app_of(hub), server) as served:
        async with client(served) as someone:
            error = await someone.ask(type="subscribe", ref=1, channel="broken")
            assert error["code"] == "internal"
            assert set(error) == {"type", "ref", "channel", "code", "message"}
            assert not [word for word in ("hunter2", "ValueError", ".py") if word in str(error)]
            assert await someone.ask(type="ping") == {"type": "pong"}
            assert hub.stats()["errors"] == {"internal": 1}
    logged = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(logged) == 1
    assert "hunter2" in (logged[0].exc_text or str(logged[0].exc_info))


async def test_a_function_that_awaits_something_cancelled_is_answered_too():
    """Someone else's task was cancelled, not the session's."""
    hub = Hub()

    @hub.channel("cancelled")
    async def cancelled(session: Session) -> None:
        task = asyncio.get_running_loop().create_task(asyncio.sleep(DEADLINE))
        task.cancel()
        await task

    with serve(app_of(hub)) as served:
        async with client(served) as someone:
            await someone.send({"type": "subscribe", "ref": 1, "channel": "cancelled"})
            messages = [message async for message in _within(someone, seconds=0.3)]
            assert [message.get("code") for message in messages] == ["internal"]
            assert hub._lifecycle.run.status()["subscriptions"] == 1  # its broadcast


async def _within(someone: Client, seconds: float) -> AsyncIterator[Any]:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while True:
                yield await someone.receive()


async def test_a_function_that_takes_longer_than_it_may_is_a_timeout():
    hub = Hub(command_timeout=0.2)
    ended = threading.Event()

    @hub.channel("slow")
    async def slow(session: Session) -> None:
        try:
            await asyncio.sleep(DEADLINE)
        finally:
            ended.set()

    with serve(app_of(hub)) as served:
        async with client(served) as someone:
            error = await someone.ask(type="subscribe", ref=1, channel="slow")
            assert (error["code"], error["ref"], error["channel"]) == ("timeout", 1, "slow")
            assert ended.is_set()
            assert (await someone.ask(type="unsubscribe", channel="slow"))["code"] == "not_found"


@on_uvicorn
async def test_eight_subscribes_wait_at_once_and_hold_up_nothing_else(server):
    hub = Hub(heartbeat=0.1)
    gate = threading.Event()
    running = most = 0

    @hub.channel("slow:{number:int}")
    async def slow(session: Session, number: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        while not gate.is_set():
            await asyncio.sleep(0.001)
        running -= 1

    with serve(app_of(hub), server) as served:
        async with client(served) as someone:
            await someone.send([{"type": "subscribe", "channel": f"slow:{n}"} for n in range(12)])
            await eventually(lambda: running == 8)
            await publish(hub, "broadcast", "tick", 1)
            await someone.until(type="event", data=1)
            await someone.until(type="ping")
            assert all(message["type"] == "ping" for message in await someone.settle())
            gate.set()
            joined = set()
            while len(joined) < 12:
                message = await someone.receive()
                joined |= {message["channel"]} if message["type"] == "subscribed" else set()
            assert most == 8


async def test_a_channel_that_is_left_while_it_is_joined_is_first_joined_then_left():
    hub = Hub()
    gate = threading.Event()

    @hub.channel("slow")
    async def slow(session: Session) -> None:
        while not gate.is_set():
            await asyncio.sleep(0.001)

    with serve(app_of(hub)) as served:
        async with client(served) as someone:
            await someone.send({"type": "subscribe", "ref": 1, "channel": "slow"})
            await someone.send({"type": "unsubscribe", "ref": 2, "channel": "slow"})
            assert await someone.settle() == []
            gate.set()
            answers = [await someone.receive(), await someone.receive()]
            assert [(a["type"], a["ref"]) for a in answers] == [("subscribed", 1), ("unsubscribed", 2)]
            await publish(hub, "slow", "said", "to nobody")
            assert await someone.settle() == []
            assert (await someone.ask(type="subscribe", channel="slow"))["type"] == "subscribed"


@on_uvicorn
async def test_no_event_comes_before_subscribed_or_after_unsubscribed(server):
    """Under load: someone publishes in nearly every turn of the loop."""
    hub = hub_with_rooms()

    async def chatter():
        for number in itertools.count():
            await hub.publish("room:1", "said", "x")
            await asyncio.sleep(0 if number % 10 else 0.001)

    @contextlib.asynccontextmanager
    async def lifespan(app):
        async with hub:
            task = asyncio.get_running_loop().create_task(chatter())
            yield
            task.cancel()

    with serve(Starlette(routes=[Mount("/ws", hub)], lifespan=lifespan), server) as served:
        async with client(served) as someone:
            for _ in range(20):
                subscribed = await someone.ask(type="subscribe", channel="room:1")
                assert subscribed["type"] == "subscribed"
                heard = [await someone.receive() for _ in range(5)]
                await someone.send({"type": "unsubscribe", "channel": "room:1"})
                heard += (await someone.until(type="unsubscribed"))[:-1]
                offsets = [message["offset"] for message in heard]
                first = subscribed["offset"] + 1
                assert offsets == list(range(first, first + len(heard)))
                assert await someone.settle() == []


# Resuming.


@on_uvicorn_in_both_codecs
@pytest.mark.parametrize("how", ["request", "url"])
async def test_a_resume_replays_exactly_what_was_missed(shared, room, server, codec, how):
    hub, served = shared(server)
    await publish(hub, room, "said", "before")
    async with client(served, codec, f"/ws/stream?channel={room}", joins=1) as someone:
        epoch = (await someone.receive())["epoch"]
        await publish(hub, room, "said", "heard")
        assert (await someone.receive())["offset"] == 2
    missed = ["m0", "m1", "m2"]
    for text in missed:
        await publish(hub, room, "said", text)
    query = f"?resume={epoch}.2.{room}" if how == "url" else ""
    async with client(served, codec, f"/ws/stream{query}") as someone:
        ref = {} if how == "url" else {"ref": 1}
        if how == "request":
            resume = {"type": "subscribe", "ref": 1, "channel": room, "epoch": epoch, "offset": 2}
            await someone.send(resume)
        assert await someone.receive() == {
            "type": "subscribed", **ref, "channel": room, "epoch": epoch, "offset": 2,
            "recovered": True,
        }  # fmt: skip
        await publish(hub, room, "said", "live")
        heard = [without_time(await someone.receive()) for _ in range(4)]
        expected = enumerate([*missed, "live"], 3)
        assert heard == [event(room, "said", text, offset=offset) for offset, text in expected]
        assert await someone.settle() == []


@pytest.mark.parametrize("lost", ["another epoch", "above the top", "below what is kept"])
async def test_a_resume_that_cannot_be_kept_says_so_and_brings_nothing_of_the_past(shared, short, lost):
    hub, served = shared()
    for number in range(1, 6):
        position = await publish(hub, short, "said", number)
    epoch, offset = {
        "another epoch": ("k3f9", 4),
        "above the top": (position.epoch, 6),
        "below what is kept": (position.epoch, 2),
    }[lost]
    async with client(served) as someone:
        answer = await someone.ask(type="subscribe", channel=short, epoch=epoch, offset=offset)
        assert answer == {
            "type": "subscribed", "channel": short, "epoch": position.epoch, "offset": 5,
            "recovered": False,
        }  # fmt: skip
        await publish(hub, short, "said", 6)
        assert [message["data"] for message in [await someone.receive(), *await someone.settle()]] == [6]


async def test_a_resume_at_the_top_or_at_the_oldest_that_is_kept_is_recovered(shared, short):
    hub, served = shared()
    for number in range(1, 6):
        position = await publish(hub, short, "said", number)
    for offset, replayed in ((5, []), (4, [5]), (3, [4, 5])):
        async with client(served) as someone:
            request = {"type": "subscribe", "channel": short, "epoch": position.epoch}
            answer = await someone.ask(**request, offset=offset)
            assert (answer["recovered"], answer["offset"]) == (True, offset)
            assert [message["data"] for message in await someone.settle()] == replayed


@pytest.mark.parametrize("how", ["request", "url"])
async def test_offset_0_without_an_epoch_brings_all_that_is_kept(shared, short, how):
    hub, served = shared()
    for number in range(1, 6):
        position = await publish(hub, short, "said", number)
    async with client(served, path="/ws/stream" + (f"?resume=.0.{short}" if how == "url" else "")) as someone:
        if how == "request":
            await someone.send({"type": "subscribe", "channel": short, "offset": 0})
        assert await someone.receive() == {
            "type": "subscribed", "channel": short, "epoch": position.epoch, "offset": 3
        }  # fmt: skip
        heard = [await someone.receive(), await someone.receive()]
        assert [(message["offset"], message["data"]) for message in heard] == [(4, 4), (5, 5)]
        assert await someone.settle() == []


async def test_a_channel_that_a_session_has_by_itself_is_resumed_by_the_url_and_joined_once():
    hub = Hub()
    with serve(app_of(hub)) as served:
        position = await publish(hub, "broadcast", "tick", 1)
        await publish(hub, "broadcast", "tick", 2)
        query = f"?channel=broadcast&resume={position.epoch}.1.broadcast"
        async with client(served, path=f"/ws/stream{query}", joins=0) as someone:
            answer = await someone.receive()
            assert (answer["type"], answer["recovered"], answer["offset"]) == ("subscribed", True, 1)
            assert [message["data"] for message in [await someone.receive(), *await someone.settle()]] == [2]


async def test_a_resume_without_history_is_not_recovered(shared):
    _, served = shared()
    async with client(served) as someone:
        answer = await someone.ask(type="subscribe", channel="plain", epoch="k3f9", offset=4)
        assert answer == {"type": "subscribed", "channel": "plain", "recovered": False}


@pytest.mark.parametrize("resume", ["room:1", "k.x.room:1", "k.1", "k.99999999999999999.room:1", "k.-1.a"])
async def test_a_resume_that_is_none_is_refused(shared, resume):
    _, served = shared()
    code, reason = await refusal(served, f"/ws/stream?resume={resume}")
    assert (code, "expected resume=" in reason) == (1008, True)


@on_uvicorn
async def test_reconnecting_again_and_again_under_load_neither_loses_nor_repeats(server):
    hub = hub_with_rooms(history=10_000)

    async def chatter():
        for number in range(1, 2001):
            await hub.publish("room:1", "said", number)
            await asyncio.sleep(0 if number % 10 else 0.001)

    @contextlib.asynccontextmanager
    async def lifespan(app):
        async with hub:
            task = asyncio.get_running_loop().create_task(chatter())
            yield
            await task

    heard: list[int] = []
    with serve(Starlette(routes=[Mount("/ws", hub)], lifespan=lifespan), server) as served:
        query = "resume=.0.room:1"
        while len(heard) < 2000:
            async with client(served, path=f"/ws/stream?{query}", joins=1) as someone:
                subscribed = await someone.receive()
                assert subscribed.get("recovered", True)
                for _ in range(min(200, 2000 - len(heard))):
                    message = await someone.receive()
                    heard.append(message["data"])
                query = f"resume={subscribed['epoch']}.{message['offset']}.room:1"
    assert heard == list(range(1, 2001))


# Liveness.


@on_uvicorn_in_both_codecs
async def test_the_heartbeat_comes_every_so_often_and_is_in_the_welcome(server, codec):
    with serve(app_of(Hub(heartbeat=0.2)), server) as served:
        async with client(served, codec, joins=-1) as someone:
            assert (await someone.receive())["heartbeat"] == 0.2
            await someone.receive()
            assert [await someone.receive() for _ in range(3)] == [{"type": "ping"}] * 3


@on_uvicorn
async def test_a_client_that_has_ponged_and_then_falls_silent_is_closed(server):
    hub = Hub(heartbeat=0.1)
    with serve(app_of(hub), server) as served:
        async with client(served) as someone:
            await someone.send({"type": "pong"})
            goodbye = (await someone.until(type="disconnect"))[-1]
            assert goodbye == {
                "type": "disconnect", "code": 4105, "reason": "no sign of life", "reconnect": True,
                "delay": [0.2, 8.0],
            }  # fmt: skip
            assert await someone.closed() == (4105, "no sign of life")
        await eventually(lambda: hub.stats()["disconnects"] == {"4105": 1})


@pytest.mark.parametrize("ponging", [True, False], ids=["answers each ping", "never ponged, like wscat"])
async def test_a_client_that_answers_or_never_did_is_not_closed_for_silence(ponging):
    hub = Hub(heartbeat=0.1)
    with serve(app_of(hub)) as served:
        async with client(served) as someone:
            for _ in range(10):
                assert (await someone.receive()) == {"type": "ping"}
                if ponging:
                    await someone.send({"type": "pong"})
            assert hub.stats()["active_connections"] == 1


# How it ends.


@on_uvicorn
@pytest.mark.parametrize(
    ("code", "fields"),
    [
        (4010, {"reconnect": False}),
        (4150, {"reconnect": True, "delay": [0.2, 8.0]}),
        (4250, {"reconnect": True, "delay": [0.0, 1.0]}),
        (1000, {"reconnect": False}),
    ],
)
async def test_the_application_may_close_and_the_code_says_whether_to_reconnect(shared, server, code, fields):
    hub, served = shared(server)
    before = hub.stats()["disconnects"].get(str(code), 0)
    async with client(served) as someone:
        goodbye = await someone.ask(type="subscribe", channel=f"door:{code}")
        assert goodbye == {"type": "disconnect", "code": code, "reason": "that is all", **fields}
        assert await someone.closed() == (code, "that is all")
    await eventually(lambda: hub.stats()["disconnects"].get(str(code)) == before + 1)


async def test_a_server_that_stops_says_so_and_when_to_come_back():
    """With our WebSocket class: uvicorn closes the others itself, before anyone is told."""
    with serve(app_of(Hub()), "fast") as served:
        async with client(served) as someone:
            served.server.should_exit = True
            assert await someone.receive() == {
                "type": "disconnect", "code": 1012, "reason": "restart", "reconnect": True,
                "delay": [0.2, 8.0],
            }  # fmt: skip
            assert (await someone.closed())[0] == 1012


# Who may connect.


@pytest.mark.parametrize("server", ["uvicorn", "wsproto"])
@pytest.mark.parametrize(
    ("origin", "host", "settings", "allowed"),
    [
        (None, None, {}, True),
        ("http://localhost:5173", None, {}, True),
        ("http://[::1]:3000", None, {}, True),
        ("https://shop.example", "shop.example", {}, True),
        ("https://shop.example", "shop.example:443", {}, True),
        ("http://shop.example", "shop.example:443", {}, False),
        ("https://evil.example", None, {}, False),
        ("https://evil.example", "shop.example", {}, False),
        ("http://localhost:5173", "shop.example", {}, False),
        ("null", None, {}, False),
        ("null", None, {"allowed_origins": "*"}, False),
        ("https://evil.example", None, {"allowed_origins": "*"}, True),
        ("https://app.example", None, {"allowed_origins": "https://app.example"}, True),
        ("https://a.app.example", None, {"allowed_origins": "https://*.app.example"}, True),
        ("https://app.example.evil.example", None, {"allowed_origins": "https://*.app.example"}, False),
    ],
)
async def test_a_page_may_connect_if_its_origin_may(shared, server, origin, host, settings, allowed):
    with contextlib.ExitStack() as stack:
        if settings:
            served = stack.enter_context(serve(app_of(Hub(**settings)), server))
        else:
            _, served = shared(server)
        url = f"ws://{host or '127.0.0.1'}/ws/stream"  # what Host says, whatever we connect to
        where = {"host": "127.0.0.1", "port": served.port}
        async with websockets.connect(url, origin=origin, proxy=None, compression=None, **where) as ws:
            if allowed:
                assert json.loads(await ws.recv())["type"] == "welcome"
                return
            with pytest.raises(websockets.ConnectionClosed):
                await ws.recv()
            assert ws.close_code == 4003
            assert origin in ws.close_reason
            assert "ASGI_WS_ALLOWED_ORIGINS" in ws.close_reason


@on_uvicorn
async def test_a_refusal_is_an_http_answer_where_that_is_set(server, caplog):
    hub = Hub(refuse="http")
    with serve(app_of(hub), server) as served:
        status, body = await http_refusal(served, origin="https://evil.example")
        assert (status, body["code"]) == (403, "forbidden")
        assert "https://evil.example" in body["message"]
        assert (await http_refusal(served, "/ws/nowhere"))[0] == 404
        assert hub.stats()["rejected"]["origin"] == 1
        async with client(served):
            assert hub.stats()["active_connections"] == 1
    assert len([r for r in caplog.records if "https://evil.example" in r.getMessage()]) == 1


@on_uvicorn
async def test_beyond_max_connections_a_connection_is_refused_until_another_leaves(server):
    hub = Hub(max_connections=2)
    with serve(app_of(hub), server) as served:
        async with client(served):
            async with client(served):
                assert (await refusal(served))[0] == 4100
                assert hub.stats()["rejected"] == {"capacity": 1}
            await eventually(lambda: hub.stats()["active_connections"] == 1)
            async with client(served):
                pass
    with serve(app_of(Hub(max_connections=1, refuse="http")), server) as served:
        async with client(served):
            assert (await http_refusal(served))[0] == 503


@on_uvicorn
async def test_a_websocket_path_that_does_not_exist_is_4004_and_a_trailing_slash_makes_no_difference(
    shared, server
):
    _, served = shared(server)
    for path in ("/ws/nowhere", "/ws/", "/ws/stream/more"):
        assert (await refusal(served, path))[0] == 4004
    async with client(served, path="/ws/stream/") as someone:
        assert await someone.settle() == []


@on_uvicorn
async def test_a_hub_that_is_disabled_refuses_and_says_so(server):
    with serve(app_of(Hub(enabled=False)), server) as served:
        code, reason = await refusal(served)
        assert (code, "ASGI_WS_ENABLED" in reason) == (1013, True)
        assert served.get("/ws/status").json()["status"] == "disabled"
        assert served.get("/ws/health").json()["status"] == "disabled"
    with serve(app_of(Hub(enabled=False, refuse="http")), server) as served:
        status, body = await http_refusal(served)
        assert (status, body["code"]) == (503, "unavailable")


async def test_more_channels_in_the_url_than_an_array_may_have_are_refused(shared):
    _, served = shared()
    query = "&".join(f"channel=room:{number}" for number in range(129))
    assert (await refusal(served, f"/ws/stream?{query}"))[0] == 1008


# Numbers.


@on_uvicorn
async def test_the_numbers_are_true(server):
    hub = hub_with_rooms()
    with serve(app_of(hub), server) as served:
        async with client(served) as one, client(served) as two:
            async with client(served) as three:
                for someone in (one, two, three):
                    await someone.ask(type="subscribe", channel="room:1")
                for _ in range(5):
                    await publish(hub, "room:1", "said", "grüß 👋")
                for someone in (one, two, three):
                    for _ in range(5):
                        assert (await someone.receive())["type"] == "event"
                await three.ws.close(4999)
            await one.ask(type="nonsense")
            await one.ask(type="subscribe", channel="nowhere")
            await one.ask(type="subscribe", channel="room:1")
            await two.settle()
            await refusal(served, origin="https://evil.example")
            await refusal(served, subprotocols=["mqtt"])
            await eventually(lambda: hub.stats()["active_connections"] == 2)
            stats = served.get("/ws/stats").json()
            expected = {
                "active_connections": 2,
                "peak_connections": 3,
                "connections_total": 3,
                "events_emitted": 5,
                "events_delivered": 15,
                "bytes_sent": sum(len(raw.encode()) for c in (one, two, three) for raw in c.received),
                "messages_received": 7,
                "publish_failed": 0,
                "errors": {"bad_request": 1, "not_found": 1, "already_subscribed": 1},
                "rejected": {"origin": 1, "subprotocol": 1},
                "disconnects": {"4999": 1},
                "slow_clients": 0,
                "events_dropped": 0,
                "broadcaster": {"published": 5, "received": 5, "gaps": 0},
            }
            assert {name: stats[name] for name in expected} == expected
            assert set(stats) - set(expected) == {"delivery_latency_ms", "loop_lag_ms"}
            latency = stats["delivery_latency_ms"]
            assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"] < DEADLINE * 1000


async def test_an_event_that_cannot_be_written_for_some_harms_no_other_channel(shared, room, short, caplog):
    """`msgspec.Raw` is the application's word that it is JSON; here it is not."""
    hub, served = shared()
    query = f"channel={room}&channel={short}&channel=plain"
    async with client(served, "msgpack", f"/ws/stream?{query}", joins=4) as someone:
        hub.publish_nowait(room, "said", 1)  # all in one turn
        hub.publish_nowait(room, "said", msgspec.Raw(b"nonsense"))
        hub.publish_nowait(short, "said", 2)
        hub.publish_nowait("plain", "said", 3)
        heard = await someone.until(type="event", channel="plain")
        assert [message["data"] for message in heard if message.get("channel") != room] == [2, 3]
        await publish(hub, room, "said", 4)
        assert (await someone.until(type="event", channel=room))[-1]["data"] == 4
    assert "DecodeError" in caplog.text


async def test_what_is_published_to_nobody_is_emitted_but_not_delivered():
    hub = hub_with_rooms()
    with serve(app_of(hub)) as served:
        async with client(served):
            await publish(hub, "room:1", "said", 1)
            await publish(hub, "plain", "said", 1)
            stats = hub.stats()
            assert (stats["events_emitted"], stats["events_delivered"]) == (2, 0)


async def test_the_status_says_who_is_connected():
    hub = hub_with_rooms()

    @hub.authenticate
    async def who(connection, token):
        return Identity(token) if token else None

    def as_user(name):
        return {"additional_headers": {"Authorization": f"Bearer {name}"}, "joins": 2}

    with serve(app_of(hub)) as served:
        async with client(served) as one, client(served, **as_user("7")), client(served, **as_user("7")):
            await one.ask(type="subscribe", channel="room:1")
            status = served.get("/ws/status").json()
            node = status["nodes"][0]
            assert status == {
                "status": "ok",
                "node": node["node"],
                "uptime": status["uptime"],
                "active_connections": 3,
                "connections": {"stream": 3},
                "transports": {"websocket": 3},
                "users": 1,
                "channels": 3,
                "subscriptions": 6,
                "active_sources": 0,
                "nodes": [node],
            }
            assert node == {
                "node": node["node"], "pid": node["pid"], "active_connections": 3, "uptime": node["uptime"]
            }  # fmt: skip
        await eventually(lambda: hub.stats()["active_connections"] == 0)
        status = served.get("/ws/status").json()
        assert (status["channels"], status["subscriptions"], status["users"]) == (0, 0, 0)
        assert status["connections"] == {"stream": 0}


@pytest.mark.parametrize("public", [False, True])
async def test_with_an_api_key_the_numbers_need_it_unless_they_are_public(public):
    with serve(app_of(Hub(api_key="k3y", public_stats=public))) as served:
        right = {"headers": {"Authorization": "Bearer k3y"}}
        for wrong in (
            {},
            {"headers": {"Authorization": "Bearer wrong"}},
            {"headers": {"Authorization": "k3y"}},
        ):
            response = served.get("/ws/stats", **wrong)
            assert response.status_code == (200 if public else 401)
            assert public or response.json()["code"] == "unauthorized"
            assert ("nodes" in served.get("/ws/status", **wrong).json()) is public
        assert served.get("/ws/stats", **right).status_code == 200
        assert "nodes" in served.get("/ws/status", **right).json()
        assert served.get("/ws/health").status_code == 200
        async with client(served) as someone:  # a session has its own rights
            assert await someone.settle() == []
