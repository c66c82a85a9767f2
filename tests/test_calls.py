"""What a client asks: commands, publishes and looks into history, in both codecs, and by those who mean harm."""

import asyncio
import dataclasses
import gc
import itertools
import json
import math
from typing import Any, TypedDict

import msgspec
import pydantic
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from asgi_ws import (
    BadRequest,
    Binary,
    Forbidden,
    Hub,
    Identity,
    LimitExceeded,
    NotFound,
    RateLimited,
    Session,
    TooLarge,
    Unavailable,
)
from asgi_ws.lanes import MAX_JOBS
from asgi_ws.requests import Requests
from tests.fakes import Client, FakeBroker, travel, turns, until
from tests.servers import DEADLINE, eventually, receive, serve, welcomed

pytestmark = pytest.mark.anyio

_refs = itertools.count(1)


async def ask(client, type, **fields):
    """Send a request and return its answer."""
    ref = next(_refs)
    client.send(type=type, ref=ref, **fields)
    while (answer := await client.receive("reply", "error")).get("ref") != ref:
        pass
    return answer


async def asked(client, type, **fields):
    """Send a request that succeeds and return what it brought."""
    answer = await ask(client, type, **fields)
    assert answer["type"] == "reply", answer
    return answer["data"]


async def refused(client, type, **fields):
    """Send a request that fails and return the code and the message."""
    answer = await ask(client, type, **fields)
    assert answer["type"] == "error", answer
    return answer["code"], answer["message"]


class Said(msgspec.Struct):
    text: str
    loud: bool = False


@dataclasses.dataclass
class Moved:
    x: float
    y: float


class Order(pydantic.BaseModel):
    id: int


class Typed(TypedDict):
    who: str


def declare(hub: Hub) -> dict[str, Any]:
    """Everything that these tests ask for; what was asked is in the dict."""
    asked: dict[str, Any] = {"publishes": []}

    @hub.command("add")
    async def add(a: int, b: int = 1) -> int:
        return a + b

    @hub.command("who")
    async def who(session: Session) -> dict[str, Any]:
        return {"id": session.id, "user": session.user}

    @hub.command("echo")
    async def echo(value):
        return value

    @hub.command("order")
    async def order(params: Order) -> Order:
        return params

    @hub.command("photo")
    async def photo():
        return Binary(b"\x89PNG")

    room = hub.channel("room:{n:int}", public=True, events={"said": Said, "moved": Moved, "any": Any, "typed": Typed,
                                                             "order": Order, "photo": Binary, "two": Said | Moved})  # fmt: skip

    @room.publish_right
    async def may_say(session: Session, event: str, data: Any, n: int) -> None:
        asked["publishes"].append((session.user, event, data, n))
        if n == 13:
            raise Forbidden("not in this room")

    cursor = hub.channel("cursor", public=True, history=0)

    @cursor.publish_right
    async def anyone() -> None: ...

    hub.channel("orders", public=True)
    return asked


@pytest.fixture
async def hub():
    async with Hub() as made:
        made.asked = declare(made)
        yield made


@pytest.fixture
async def client(hub):
    async with Client(hub) as made:
        yield made


class Peer:
    """A client over a real connection, in either codec."""

    def __init__(self, ws, codec):
        self.ws, self.codec = ws, codec

    async def send(self, *requests):
        messages = requests[0] if len(requests) == 1 else list(requests)
        await self.ws.send(json.dumps(messages) if self.codec == "json" else msgspec.msgpack.encode(messages))

    async def receive(self, *types):
        async with asyncio.timeout(DEADLINE):
            while True:
                payload = await self.ws.recv()
                message = json.loads(payload) if self.codec == "json" else msgspec.msgpack.decode(payload)
                if not types or message["type"] in types:
                    return message

    async def ask(self, type, **fields):
        ref = next(_refs)
        await self.send({"type": type, "ref": ref, **fields})
        while (answer := await self.receive()).get("ref") != ref:
            pass
        return answer


@pytest.fixture(params=["json", "msgpack"])
def codec(request):
    return request.param


@pytest.fixture(params=["uvicorn", "fast"])
def served(request):
    hub = Hub(max_event_bytes=2048)
    declare(hub)

    @hub.authenticate
    async def who(connection, token):
        name = connection.query_params.get("name")
        return Identity(name) if name else None

    with serve(_app(hub), request.param) as running:
        running.hub = hub
        yield running


def _app(hub):
    from starlette.applications import Starlette

    app = Starlette(lifespan=hub.lifespan)
    app.mount("/ws", hub)
    return app


@pytest.fixture
async def peer(served, codec):
    async with served.connect("/ws/stream?name=7", subprotocols=[f"asgi-ws.v1.{codec}"]) as ws:
        yield Peer(ws, codec)


class TestExchanges:
    """Each exchange with a real server, in both codecs."""

    async def test_a_call(self, peer):
        answer = await peer.ask("call", command="add", params={"a": 2, "b": 3})
        assert answer.keys() == {"type", "ref", "data"}
        assert answer["data"] == 5
        assert (await peer.ask("call", command="add", params={"a": 2}))["data"] == 3
        assert (await peer.ask("call", command="order", params={"id": "5"}))["data"] == {"id": 5}
        assert (await peer.ask("call", command="who"))["data"]["user"] == "7"
        error = await peer.ask("call", command="add", params={"a": "two"})
        assert (error["code"], error["message"]) == (
            "bad_request",
            "expected `int`, got `str` - at `params.a`",
        )
        error = await peer.ask("call", command="subtract")
        assert (error["code"], error["message"]) == (
            "not_found",
            "expected a command of this server, got 'subtract'",
        )

    async def test_a_value_comes_back_as_it_went(self, peer):
        for value in (None, 1.5, "é👋", [], {}, {"a": [1, {"__proto__": {"b": False}}]}, 2**63, -(2**63)):
            assert (await peer.ask("call", command="echo", params={"value": value}))["data"] == value

    async def test_a_binary_result(self, peer):
        answer = await peer.ask("call", command="photo")
        assert answer["binary"] is True
        assert answer["data"] == (b"\x89PNG" if peer.codec == "msgpack" else "iVBORw==")

    async def test_a_publish_and_the_history_of_it(self, peer, served):
        position = (await peer.ask("subscribe", channel="room:1"))["offset"]
        reply = await peer.ask(
            "publish", channel="room:1", event="said", data={"text": "hi", "admin": True}, key="k"
        )
        event = {
            "type": "event", "channel": "room:1", "event": "said", "data": {"text": "hi", "loud": False},
            "offset": position + 1, "from": "7", "id": "k",
        }  # fmt: skip
        # The event has come before the reply, or comes after it: both are said in one turn.
        again = await peer.ask("publish", channel="room:1", event="said", data={"text": "again"}, key="k")
        assert again["data"] == reply["data"]
        page = (await peer.ask("history", channel="room:1"))["data"]
        assert {name: page[name] for name in ("epoch", "offset")} == reply["data"]
        (kept,) = page["events"]
        assert isinstance(kept.pop("time"), int)
        assert kept == event
        page = (await peer.ask("history", channel="room:1", after=reply["data"], limit=5))["data"]
        assert page == {**reply["data"], "recovered": True, "events": []}

    async def test_everyone_hears_what_a_client_publishes(self, peer, served):
        async with served.connect("/ws/stream?channel=room:1&channel=cursor") as ws:
            await welcomed(ws, 3)
            await peer.send(
                {"type": "publish", "channel": "room:1", "event": "any", "data": {"a": [1, None]}},
                {"type": "publish", "channel": "cursor", "event": "at"},
                {"type": "ping", "ref": "p"},
            )
            heard = {}
            for _ in range(2):
                event = await receive(ws, "event")
                heard[event["channel"]] = event["data"]
            assert heard == {"room:1": {"a": [1, None]}, "cursor": None}
            # Neither is answered: what the peer hears next is the pong.
            await peer.receive("subscribed")
            assert (await peer.receive("reply", "error", "pong"))["type"] == "pong"

    async def test_bytes_that_a_client_publishes_travel_as_bytes(self, served):
        path = "/ws/stream?channel=room:1"
        async with (
            served.connect(path, subprotocols=["asgi-ws.v1.msgpack"]) as ws,
            served.connect(path) as text,
        ):
            await welcomed(text, 2)
            peer = Peer(ws, "msgpack")
            for event in ("photo", "any"):
                reply = await peer.ask("publish", channel="room:1", event=event, data=b"\x00\xff")
                assert reply["type"] == "reply"
                said = await receive(text, "event")
                assert (said["data"], said["binary"]) == ("AP8=", True)
            error = await peer.ask("publish", channel="room:1", event="photo", data="AP8=")
            assert error["message"] == "expected data to be bytes, got str"
            error = await peer.ask("publish", channel="room:1", event="said", data=b"ab")
            assert error["message"] == "expected `object`, got `str` - at `data`"

    async def test_refusals(self, peer):
        async def why(**fields):
            error = await peer.ask(
                "publish", **{"channel": "room:1", "event": "said", "data": {"text": ""}} | fields
            )
            assert error["type"] == "error"
            assert error["channel"] == fields.get("channel", "room:1")
            return error["code"], error["message"]

        assert await why(channel="nowhere") == (
            "not_found",
            "expected a channel of this server, got 'nowhere'",
        )
        assert await why(channel="user:8") == ("not_found", "expected a channel of this server, got 'user:8'")
        for name in ("orders", "broadcast", "user:7"):
            assert await why(channel=name) == (
                "forbidden", f"expected a channel that takes events from clients, got {name!r}",
            )  # fmt: skip
        assert await why(channel="room:13") == ("forbidden", "not in this room")
        assert (await why(channel="room:013"))[0] == "not_found"
        assert (await why(event="shout")) == (
            "bad_request",
            "expected an event of this channel ('said', 'moved', 'any', 'typed', 'order', 'photo', 'two'), got 'shout'",
        )
        assert (await why(event="a b"))[0] == "bad_request"
        assert await why(data={"text": 5}) == ("bad_request", "expected `str`, got `int` - at `data.text`")
        assert await why(event="order", data={"id": "x"}) == (
            "bad_request",
            "expected valid data, got: input should be a valid integer, unable to parse string as an integer - at `data.id`",
        )
        assert await why(key="") == ("bad_request", "expected a key of 1 to 128 bytes, got ''")
        assert (await why(key="é" * 65))[0] == "bad_request"
        assert (await why(event="any", data="x" * 2047))[0] == "too_large"
        assert await why(event="any", data=nested(65)) == (
            "bad_request",
            "expected data nested at most 64 deep, got it deeper",
        )
        assert (await peer.ask("publish", channel="room:1", event="any", data=nested(64)))["type"] == "reply"

    async def test_a_history_is_for_subscribers(self, peer):
        async def why(**fields):
            error = await peer.ask("history", **fields)
            return error["code"], error["message"]

        assert await why(channel="nowhere") == (
            "not_found",
            "expected a channel of this server, got 'nowhere'",
        )
        assert await why(channel="user:8") == ("not_found", "expected a channel of this server, got 'user:8'")
        assert await why(channel="orders") == (
            "forbidden", "expected a channel that is subscribed to, got 'orders'",
        )  # fmt: skip
        await peer.ask("subscribe", channel="cursor")
        assert await why(channel="cursor") == ("bad_request", "expected a channel with history, got 'cursor'")
        assert (await peer.ask("history", channel="broadcast"))["data"]["events"] == []
        assert (await peer.ask("history", channel="user:7"))["data"]["events"] == []
        assert (await why(channel="broadcast", limit=1001))[0] == "bad_request"

    @pytest.mark.parametrize("politely", [True, False])
    async def test_a_client_that_goes_in_the_middle_of_a_call_ends_it(self, served, codec, politely):
        begun, ended = [], []

        @served.hub.command("wait")
        async def wait():
            begun.append(True)
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(True)

        ws = await served.connect(subprotocols=[f"asgi-ws.v1.{codec}"])
        await Peer(ws, codec).send(*({"type": "call", "command": "wait"} for _ in range(3)))
        await eventually(lambda: begun)
        if politely:
            await ws.close()
        else:
            ws.transport.abort()
        await eventually(lambda: ended)
        await eventually(lambda: served.get("/ws/status").json()["active_connections"] == 0)
        assert (len(begun), len(ended)) == (1, 1)

    async def test_two_hundred_calls_in_two_arrays(self, peer):
        # Both may be read before the first call is begun.
        for begin, end in ((0, 128), (128, 200)):
            await peer.send(
                *({"type": "call", "ref": n, "command": "add", "params": {"a": n}} for n in range(begin, end))
            )
        answers = {}
        while len(answers) < 200:
            answer = await peer.receive("reply", "error")
            answers[answer["ref"]] = answer
        done = [ref for ref, answer in answers.items() if answer["type"] == "reply"]
        assert done == sorted(done)
        assert done[:128] == list(range(128))
        assert all(answers[n]["data"] == n + 1 for n in done)
        assert {answers[n]["code"] for n in set(answers) - set(done)} <= {"limit_exceeded"}


def nested(depth):
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


class TestCalls:
    async def test_without_a_ref_a_call_is_answered_too(self, client):
        client.send(type="call", command="add", params={"a": 1})
        assert await client.receive("reply") == {"type": "reply", "data": 2}

    async def test_errors_have_their_codes_and_nothing_from_inside_leaks(self, hub, client, caplog):
        errors = {
            "bad_request": BadRequest("a"), "forbidden": Forbidden("b"), "not_found": NotFound("c"),
            "limit_exceeded": LimitExceeded("d"), "too_large": TooLarge("e"), "unavailable": Unavailable("f"),
            "rate_limited": RateLimited("g", retry_after=1.5),
        }  # fmt: skip

        @hub.command("fail")
        async def fail(code: str):
            raise errors[code]

        for code, error in errors.items():
            answer = await ask(client, "call", command="fail", params={"code": code})
            assert (answer["code"], answer["message"]) == (code, str(error))
            assert answer.get("retry_after") == getattr(error, "retry_after", None)
        code, message = await refused(client, "call", command="fail", params={"code": "KeyError"})
        assert code == "internal"
        assert "KeyError" not in message
        assert "KeyError" in caplog.text

    async def test_a_typo_of_the_server_s_own_is_internal(self, hub, client, caplog):
        @hub.command("typo")
        async def typo():
            await hub.publish("ordesr", "created", 1)

        code, message = await refused(client, "call", command="typo")
        assert code == "internal"
        assert "orders" not in message
        assert "did you mean 'orders'" in caplog.text

    async def test_what_json_cannot_carry_is_internal(self, hub, client):
        cycle: list[Any] = []
        cycle.append(cycle)
        results = {
            "cycle": cycle,
            "object": object(),
            "complex": 1j,
            "deep": nested(5000),
        }

        @hub.command("give")
        async def give(what: str):
            return results[what]

        for what in results:
            code, _ = await refused(client, "call", command="give", params={"what": what})
            assert code == "internal"
        assert await asked(client, "call", command="add", params={"a": 1}) == 2

    async def test_a_result_of_another_type_is_internal(self, hub, client, caplog):
        @hub.command("wrong")
        async def wrong() -> Said:
            return {"text": 5}

        code, message = await refused(client, "call", command="wrong")
        assert code == "internal"
        assert "Said" not in message
        assert "expected the result of command 'wrong' to be Said" in caplog.text

    async def test_a_result_that_is_too_large(self, client, hub):
        @hub.command("large")
        async def large(size: int):
            return "x" * size

        most = hub.settings.max_event_bytes
        assert len(await asked(client, "call", command="large", params={"size": most - 2})) == most - 2
        code, message = await refused(client, "call", command="large", params={"size": most - 1})
        assert code == "too_large"
        assert "MAX_EVENT_BYTES" in message

    async def test_numbers_that_are_not_finite_become_null_as_in_events(self, client, hub):
        @hub.command("nan")
        async def nan():
            return [math.nan, math.inf]

        assert await asked(client, "call", command="nan") == [None, None]

    async def test_calls_run_one_at_a_time_while_subscribes_publishes_and_events_go_on(self, hub, client):
        gate, log = asyncio.Event(), []

        @hub.command("slow")
        async def slow(n: int):
            log.append(n)
            await gate.wait()
            return n

        for n in range(3):
            client.send(type="call", ref=f"c{n}", command="slow", params={"n": n})
        assert (await client.subscribe("room:1"))["type"] == "subscribed"
        client.send(type="ping", ref="p")
        assert (await client.receive("pong"))["ref"] == "p"
        await asked(client, "publish", channel="room:1", event="any", data=1)
        assert (await asked(client, "history", channel="room:1"))["events"]
        await hub.broadcast("tick", 2)
        assert (await client.events(1)) == [2]
        assert log == [0]
        gate.set()
        assert [(await client.receive("reply"))["ref"] for _ in range(3)] == ["c0", "c1", "c2"]
        assert log == [0, 1, 2]

    async def test_the_calls_of_different_sessions_do_not_wait_for_each_other(self, hub, client):
        gate = asyncio.Event()

        @hub.command("wait")
        async def wait():
            await gate.wait()

        @hub.command("open")
        async def release():
            gate.set()

        client.send(type="call", ref="w", command="wait")
        await turns()
        async with Client(hub) as other:
            await asked(other, "call", command="open")
        assert (await client.receive("reply"))["ref"] == "w"

    async def test_a_client_that_is_gone_ends_its_call_and_those_that_wait(self, hub):
        begun, ended = [], []

        @hub.command("wait")
        async def wait(n: int):
            begun.append(n)
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(n)

        async with Client(hub) as client:
            for n in range(3):
                client.send(type="call", command="wait", params={"n": n})
            await until(lambda: begun)
        await until(lambda: ended)
        await turns()
        assert (begun, ended) == ([0], [0])
        assert hub.stats()["errors"] == {}

    async def test_the_stop_of_the_hub_ends_a_call(self):
        begun, ended = [], []
        hub = Hub()

        @hub.command("wait")
        async def wait():
            begun.append(True)
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(True)

        async with hub:
            client = await Client(hub).__aenter__()
            client.send(type="call", command="wait")
            await until(lambda: begun)
        await client.ended()
        await until(lambda: ended)

    async def test_a_session_that_was_shown_out_asks_nothing_more(self, hub):
        called = []

        @hub.command("leave")
        async def leave(session: Session):
            await session.close(4050, "out")

        @hub.command("more")
        async def more():
            called.append(True)

        async with Client(hub) as client:
            client.pause()  # so that the closing takes its time
            client.send(type="call", command="leave")
            client.send(type="call", command="more")
            await turns(30)
            client.send(type="call", command="more")
            client.send(type="subscribe", channel="orders")
            await turns(30)
            assert "orders" not in hub._lifecycle.run.node.fanout.topics
        assert called == []

    async def test_a_handler_may_close_subscribe_and_call_back(self, hub, client):
        @hub.command("tell")
        async def tell(session: Session):
            await session.send("first", 1)
            await hub.publish("room:1", "any", session.channels)
            return "last"

        await client.subscribe("room:1")
        client.send(type="call", ref=1, command="tell")
        heard = [await client.receive("event", "reply") for _ in range(3)]
        assert sorted(str(message.get("event") or message["data"]) for message in heard) == [
            "any",
            "first",
            "last",
        ]

    def test_a_call_that_takes_too_long(self):
        async def main():
            hub = Hub(command_timeout=3)
            ended = []

            @hub.command("slow")
            async def slow():
                try:
                    await asyncio.sleep(1000)
                finally:
                    ended.append(True)

            @hub.command("fast")
            async def fast():
                return 1

            async with hub, Client(hub) as client:
                client.send(type="call", ref=1, command="slow")
                client.send(type="call", ref=2, command="fast")
                answer = await client.receive("error", "reply")
                assert (answer["ref"], answer["code"]) == (1, "timeout")
                assert (await client.receive("error", "reply"))["ref"] == 2
                assert ended == [True]

        travel(main())

    async def test_params_that_are_no_object_or_absent(self, client):
        for params in (None, [], 5, "x"):
            code, message = await refused(client, "call", command="add", params=params)
            assert code == "bad_request"
            assert message.endswith("at `params`")
        code, message = await refused(client, "call", command="add")
        assert message == "expected valid params, got: object missing required field `a` - at `params`"

    async def test_names_that_mean_something_elsewhere_mean_nothing_here(self, client):
        for name in ("__proto__", "constructor", "__class__", "", "x" * 5000, "\u0000", "$"):
            code, message = await refused(client, "call", command=name)
            assert code == "not_found"
            assert len(message) < 120

    async def test_requests_that_are_none_keep_their_ref(self, client):
        for fields in ({"command": 5}, {}):
            code, _ = await refused(client, "call", **fields)
            assert code == "bad_request"


class TestPublishing:
    async def test_the_right_is_asked_with_the_typed_data(self, hub, client):
        await asked(client, "publish", channel="room:5", event="said", data={"text": "a"})
        await asked(client, "publish", channel="room:5", event="moved", data={"x": 1, "y": 2.5})
        await asked(client, "publish", channel="room:5", event="order", data={"id": "7"})
        await asked(client, "publish", channel="room:5", event="two", data={"x": 1, "y": 2})
        await asked(client, "publish", channel="room:5", event="any")
        assert hub.asked["publishes"] == [
            (None, "said", Said("a"), 5), (None, "moved", Moved(1.0, 2.5), 5), (None, "order", Order(id=7), 5),
            (None, "two", Moved(1.0, 2.0), 5), (None, "any", None, 5),
        ]  # fmt: skip

    async def test_what_is_sent_on_is_what_was_read(self, hub, client):
        await client.subscribe("room:5")
        await asked(client, "publish", channel="room:5", event="order", data={"id": "7", "admin": True})
        await asked(client, "publish", channel="room:5", event="typed", data={"who": "me", "admin": True})
        page = await asked(client, "history", channel="room:5")
        assert [event["data"] for event in page["events"]] == [{"id": 7}, {"who": "me"}]

    async def test_the_text_is_encoded_anew_and_compact(self, hub, client):
        client._incoming.put_nowait({
            "type": "websocket.receive",
            "text": '{"type":"publish","ref":1,"channel":"room:1","event":"any","data": {"b" : 1.0e0, "a":"\\u0041</script>", "b":2} }',
        })  # fmt: skip
        await client.receive("reply")
        log = hub._broadcaster._logs["room:1"]
        assert log.kept[0].data == b'{"b":2,"a":"A</script>"}'

    async def test_nobody_s_name_is_on_what_the_server_or_an_anonymous_client_publishes(self, hub, client):
        await client.subscribe("room:1")
        await asked(client, "publish", channel="room:1", event="any", data=1, **{"from": "7", "sender": "7"})
        await hub.publish("room:1", "any", 2)
        page = await asked(client, "history", channel="room:1")
        assert not any("from" in event for event in page["events"])

    async def test_a_channel_without_positions_has_an_empty_one(self, client):
        assert await asked(client, "publish", channel="cursor", event="at", data=1) == {}

    async def test_a_channel_that_declares_no_events_takes_any(self, client):
        assert await asked(client, "publish", channel="cursor", event="a.b:c-d_e") == {}
        code, message = await refused(client, "publish", channel="cursor", event="\u00e9")
        assert (code, message[:28]) == ("bad_request", "expected an event name of 1 ")

    async def test_publishes_keep_their_order_however_slow_the_right_is(self, hub):
        gates = [asyncio.Event() for _ in range(10)]
        slow = hub.channel("slow", public=True)

        @slow.publish_right
        async def wait(data):
            await gates[data].wait()

        async with Client(hub, channels=["slow"]) as client:
            for n in range(10):
                client.send(type="publish", channel="slow", event="n", data=n)
            for gate in reversed(gates):
                gate.set()
                await turns()
            assert await client.events(10) == list(range(10))

    async def test_a_flood_behind_a_slow_right_is_bounded_and_holds_up_nothing_else(self, hub):
        gate = asyncio.Event()
        slow = hub.channel("slow", public=True, history=1000)

        @slow.publish_right
        async def wait():
            await gate.wait()

        async with Client(hub, channels=["slow"]) as client:
            await client.receive("subscribed")
            for n in range(MAX_JOBS * 2):
                client.send(type="publish", ref=n, channel="slow", event="n", data=n)
            for _ in range(MAX_JOBS - 1):
                assert (await client.receive("error"))["code"] == "limit_exceeded"
            assert await asked(client, "call", command="add", params={"a": 1}) == 2
            gate.set()
            refs = [(await client.receive("reply"))["ref"] for _ in range(MAX_JOBS + 1)]
            assert refs == list(range(MAX_JOBS + 1))

    async def test_what_the_right_does_to_the_data_is_not_sent(self, hub):
        room = hub.channel("mutable", public=True)

        @room.publish_right
        async def change(data):
            data["text"] = "changed"

        async with Client(hub, channels=["mutable"]) as client:
            await asked(client, "publish", channel="mutable", event="a", data={"text": "x"})
            assert (await hub.history("mutable"))["events"][0]["data"] == {"text": "x"}

    async def test_an_error_of_the_right_is_internal(self, hub, client, caplog):
        broken = hub.channel("broken", public=True)

        @broken.publish_right
        async def fail():
            raise KeyError("inside")

        code, message = await refused(client, "publish", channel="broken", event="a")
        assert code == "internal"
        assert "inside" not in message

    async def test_a_broker_that_is_away(self):
        broker = FakeBroker()
        hub = Hub(broadcaster=broker)
        declare(hub)
        async with hub, Client(hub) as client:
            broker.errors["publish"] = Unavailable("the broker is away")
            code, message = await refused(client, "publish", channel="room:1", event="any")
            assert (code, message) == ("unavailable", "the broker is away")
            assert hub.stats()["publish_failed"] == 1
            del broker.errors["publish"]
            assert (await asked(client, "publish", channel="room:1", event="any"))["offset"] == 2

    async def test_a_client_that_is_gone_publishes_nothing_more(self, hub):
        gate = asyncio.Event()
        slow = hub.channel("slow", public=True)

        @slow.publish_right
        async def wait():
            await gate.wait()

        async with Client(hub) as client:
            client.send(type="publish", channel="slow", event="n", data=1)
            await turns()
        gate.set()
        await turns()
        assert (await hub.history("slow"))["events"] == []

    def test_a_right_that_takes_too_long(self):
        async def main():
            hub = Hub(command_timeout=3)
            slow = hub.channel("slow", public=True)

            @slow.publish_right
            async def wait():
                await asyncio.sleep(100)

            async with hub, Client(hub) as client:
                code, message = await refused(client, "publish", channel="slow", event="n")
                assert (code, message) == ("timeout", "expected an answer within 3 s, got none")
                assert (await hub.history("slow"))["events"] == []

        travel(main())


class TestPublishRight:
    def refused(self, function, match, pattern="room:{n:int}", events=None):
        channel = Hub().channel(pattern, public=True, events=events)
        with pytest.raises(TypeError, match=match):
            channel.publish_right(function)

    async def test_it_takes_the_session_the_pattern_s_parameters_event_and_data(self):
        async def all_of_it(who: Session, data, n, event): ...
        async def least(n): ...

        for function in (all_of_it, least):
            channel = Hub().channel("room:{n:int}", public=True)
            assert channel.publish_right(function) is function
            assert channel.has_publish_right

    async def test_what_it_cannot_be_given_is_refused(self):
        async def other(n, key): ...
        async def lacking(event): ...
        async def fine(event, n): ...
        async def event(event): ...

        self.refused(other, "expected the parameters of .*other to be a Session, n, event, data, got key")
        self.refused(lacking, "expected .*lacking to take n, got none")
        self.refused(lambda n: None, "expected the publish right of channel .* to be async")
        self.refused(event, "to have no parameter 'event' in its pattern", "room:{event}")
        self.refused(fine, "expected a type that is read from JSON, got object", events={"a": object})

    async def test_there_is_one(self):
        async def may(): ...

        channel = Hub().channel("room", public=True)
        channel.publish_right(may)
        with pytest.raises(
            TypeError,
            match=r"test_calls.py:\d+: expected one function for the publish right of channel 'room', got a second",
        ):
            channel.publish_right(may)


class TestHistory:
    async def test_one_that_comes_with_its_subscribe_waits_for_it(self, hub, client):
        gate = asyncio.Event()

        @hub.channel("private")
        async def private(session: Session):
            await gate.wait()

        await hub.publish("private", "a", 1)
        client.send(type="subscribe", ref="s", channel="private")
        client.send(type="history", ref="h", channel="private")
        client.send(type="unsubscribe", ref="u", channel="private")
        client.send(type="subscribe", ref="s2", channel="private")
        client.send(type="history", ref="h2", channel="private")
        await turns()
        gate.set()
        answers = {}
        while len(answers) < 5:
            answer = await client.receive("subscribed", "unsubscribed", "reply", "error")
            answers[answer.get("ref")] = answer
            answers.pop(None, None)
        assert {ref: answer["type"] for ref, answer in answers.items() if ref != "h"} == {
            "s": "subscribed", "u": "unsubscribed", "s2": "subscribed", "h2": "reply",
        }  # fmt: skip
        assert [event["data"] for event in answers["h2"]["data"]["events"]] == [1]

    async def test_one_whose_subscribe_is_refused_is_refused(self, hub, client):
        gate = asyncio.Event()

        @hub.channel("private")
        async def private(session: Session):
            await gate.wait()
            raise Forbidden("no")

        client.send(type="subscribe", ref="s", channel="private")
        client.send(type="history", ref="h", channel="private")
        await turns()
        gate.set()
        assert [(await client.receive("error"))["code"] for _ in range(2)] == ["forbidden"] * 2

    async def test_it_comes_after_what_was_published_before_it(self, hub, client):
        await client.subscribe("room:1")
        for n in range(20):
            client.send(type="publish", channel="room:1", event="any", data=n)
        page = await asked(client, "history", channel="room:1")
        assert [event["data"] for event in page["events"]] == list(range(20))

    async def test_an_event_that_a_session_was_not_to_have_is_not_in_it(self, hub, client):
        welcome = await client.receive("welcome")
        await client.subscribe("room:1")
        await hub.publish("room:1", "any", 1)
        await hub.publish("room:1", "any", 2, exclude=welcome["session"])
        page = await asked(client, "history", channel="room:1")
        assert [event["data"] for event in page["events"]] == [1]
        assert page["offset"] == 2

    async def test_an_answer_is_bounded_in_bytes_and_the_pages_after_a_position_are_whole(self):
        async with Hub(max_event_bytes=1000) as hub, Client(hub) as client:
            hub.channel("room", public=True)
            first = await hub.publish("room", "n", 0)
            for n in range(1, 10):
                await hub.publish("room", "n", [n, "x" * 400])
            await client.subscribe("room")
            page = await asked(client, "history", channel="room")
            assert [event["data"][0] for event in page["events"]] == [8, 9]
            after, found = {"epoch": first.epoch, "offset": 1}, []
            while events := (page := await asked(client, "history", channel="room", after=after))["events"]:
                assert len(events) <= 2
                found += [event["data"][0] for event in events]
                after = {"epoch": page["epoch"], "offset": page["offset"]}
            assert found == list(range(1, 10))
            assert page["recovered"] is True

    async def test_what_is_not_kept_is_said(self, hub, client):
        await hub.publish("room:1", "any", 1)
        await client.subscribe("room:1")
        page = await asked(client, "history", channel="room:1", after={"epoch": "another", "offset": 0})
        assert (page["recovered"], page["offset"], page["events"]) == (False, 1, [])

    async def test_one_subscription_more_or_less_is_what_counts(self, client):
        await client.subscribe("room:1")
        await asked(client, "history", channel="room:1")
        client.send(type="unsubscribe", channel="room:1")
        assert (await refused(client, "history", channel="room:1"))[0] == "forbidden"


async def test_an_idle_session_has_nothing_of_this(hub, client):
    welcome = await client.receive("welcome")
    await client.subscribe("room:1")
    every = [one for one in gc.get_objects() if type(one) is Requests]
    (requests,) = [one for one in every if one._session.id == welcome["session"]]
    assert requests._lazy_calls is None
    await asked(client, "call", command="add", params={"a": 1})
    assert requests._lazy_calls is not None


class TestHarm:
    """Whatever is asked is answered, once, with its ref, and the session goes on."""

    names = st.sampled_from(
        ["room:1", "room:13", "cursor", "orders", "broadcast", "user:7", "__proto__", "", "\ud7ff"]
    )
    junk = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(-1e9, 1e9) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=5,
    )
    requests = st.fixed_dictionaries(
        {"type": st.sampled_from(["call", "publish", "history"])},
        optional={
            "channel": names | junk,
            "command": st.sampled_from(["add", "echo", "who", "order", "photo", "fail"]) | junk,
            "event": st.sampled_from(["said", "moved", "any", "typed", "two", "photo"]) | junk,
            "params": st.fixed_dictionaries({}, optional={"a": junk, "b": junk, "id": junk, "value": junk})
            | junk,
            "data": st.fixed_dictionaries({}, optional={"text": junk, "x": junk, "y": junk, "who": junk})
            | junk,
            "key": st.text(max_size=3) | junk,
            "limit": st.integers(-1, 2000) | junk,
            "after": st.fixed_dictionaries({}, optional={"epoch": junk, "offset": junk}) | junk,
        },
    )

    @given(st.lists(requests, min_size=1, max_size=12), st.booleans())
    @hypothesis(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
    def test_whatever_is_asked_is_answered_once(self, requests, at_once):
        requests = [{**request, "ref": ref} for ref, request in enumerate(requests)]

        async def main():
            async with Hub() as hub:
                declare(hub)
                async with Client(hub, channels=["room:1"]) as client:
                    messages = [json.dumps(requests)] if at_once else map(json.dumps, requests)
                    for message in messages:
                        client._incoming.put_nowait({"type": "websocket.receive", "text": message})
                    answers = [await client.receive("reply", "error") for _ in requests]
                    assert {answer.get("ref") for answer in answers} == set(range(len(requests)))
                    assert "internal" not in {answer.get("code") for answer in answers}
                    assert await asked(client, "call", command="add", params={"a": 1}) == 2

        asyncio.run(main())
