"""What is declared about a channel: who may subscribe, what it carries, how it is published to."""

import asyncio
import dataclasses
import datetime as dt
import functools
import typing
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import pydantic
import pytest

import asgi_ws
from asgi_ws import BadRequest, Binary, Channel, Forbidden, Hub, Session, Undeclared
from tests.fakes import Client, turns

pytestmark = pytest.mark.anyio

if typing.TYPE_CHECKING:
    from nowhere import Unknown


class Message(msgspec.Struct):
    text: str
    at: dt.datetime | None = None


@dataclasses.dataclass
class Typing:
    who: str


class Moved(TypedDict):
    x: int
    y: int


class Order(pydantic.BaseModel):
    id: int
    total: float = 0.0


@pytest.fixture
async def hub():
    async with Hub() as made:
        yield made


class TestNames:
    def test_a_channel_without_parameters_is_called_by_its_pattern(self):
        assert str(Channel("orders")()) == "orders"

    def test_a_pattern_renders_with_its_parameters_escaped_or_refused(self):
        dialog = Channel("dialog:{dialog_id:int}")
        assert dialog(dialog_id=5).name == "dialog:5"
        assert repr(dialog(dialog_id=5)) == "<BoundChannel 'dialog:5'>"
        with pytest.raises(TypeError, match="expected \\['dialog_id'\\]"):
            dialog()
        with pytest.raises(TypeError, match="got \\['other'\\]"):
            dialog(other=5)
        with pytest.raises(ValueError, match="reads back"):
            dialog(dialog_id="5:6")

    def test_its_repr_says_what_and_where(self):
        assert repr(Channel("orders", place="app.py:12")) == "<Channel 'orders' declared at app.py:12>"


class TestPublishing:
    async def test_through_the_declared_channel(self, hub):
        room = hub.channel("room:{n:int}", public=True)
        async with Client(hub, channels=["room:5"]) as client:
            for _ in range(2):
                await client.receive("subscribed")
            position = await room(n=5).publish("said", 1, key="k")
            room(n=5).publish_nowait("said", 2)
            assert await client.events(2) == [1, 2]
            assert position.offset == 1
            assert await room(n=5).publish("said", 3, key="k") == position

    async def test_without_parameters_the_channel_itself_publishes(self, hub):
        orders = hub.channel("orders", public=True)
        async with Client(hub, channels=["orders"]) as client:
            for _ in range(2):
                await client.receive("subscribed")
            position = await orders.publish("created", 1, key="k")
            orders.publish_nowait("created", 2, key="l")
            assert await client.events(2) == [1, 2]
            assert await orders.publish("created", 3, key="k") == position

    @pytest.mark.parametrize("bound", [False, True])
    async def test_one_session_can_be_left_out(self, hub, bound):
        orders = hub.channel("orders", public=True)
        async with Client(hub, channels=["orders"]) as one, Client(hub, channels=["orders"]) as other:
            welcome = await one.receive("welcome")
            for client in (one, other):
                for _ in range(2):
                    await client.receive("subscribed")
            through = orders() if bound else orders
            await through.publish("created", 1, exclude=welcome["session"])
            through.publish_nowait("created", 2, exclude=welcome["session"])
            assert await other.events(2) == [1, 2]
            assert [(await one.receive())["type"] for _ in range(2)] == ["position", "position"]

    async def test_the_channel_itself_needs_a_pattern_without_parameters(self, hub):
        room = hub.channel("room:{n:int}", public=True)
        with pytest.raises(TypeError, match="expected \\['n'\\]"):
            await room.publish("said", 1)
        with pytest.raises(TypeError, match="expected \\['n'\\]"):
            room.publish_nowait("said", 1)


class TestReadingEvents:
    async def test_without_declared_events_any_data_is_taken(self):
        assert Channel("room").read_event("any", {"a": 1}) == {"a": 1}
        with pytest.raises(BadRequest, match="expected an event name"):
            Channel("room").read_event("a b", 1)

    async def test_an_event_that_is_declared_without_data_takes_none(self):
        room = Channel("room", events={"done": None, "said": Message})

        @room.publish_right
        async def anyone(): ...

        assert room.read_event("done", None) is None
        assert room.read_event("said", {"text": "a"}) == Message("a")
        with pytest.raises(BadRequest, match="expected `null`, got `int` - at `data`"):
            room.read_event("done", 1)


class TestSignature:
    def declare(self, function, pattern="room:{n:int}/{name}"):
        channel = Channel(pattern)
        assert channel(function) is channel
        return channel

    def test_the_session_anywhere_by_its_annotation_and_parameters_by_name(self):
        async def one(session: Session, n: int, name: str): ...
        async def two(n, name, who: Session): ...
        async def three(name, n): ...
        async def four(*, n, name, session: Session): ...
        async def five(n, name, session: "Session"): ...
        async def six(n: "Unknown", name, session: "Session"): ...
        async def seven(n, name, session: Annotated[Session, "who asks"]): ...

        for function in (one, two, three, four, five, six, seven):
            self.declare(function)

    def refused(self, function, match, error=TypeError):
        with pytest.raises(error, match=match):
            self.declare(function)

    def test_what_is_not_async_is_refused(self):
        def may(session: Session, n, name): ...

        self.refused(
            may, r"expected the function of channel 'room:\{n:int\}/\{name\}' to be async, got .*may$"
        )
        self.refused(functools.partial(may), "to be async, got functools.partial")
        self.refused(5, "to be async, got 5")

    def test_a_parameter_that_nothing_gives_is_refused(self):
        async def may(session: Session, n, name, other: int = 5): ...

        self.refused(may, r"expected the parameters of .*may to be a Session, n, name, got other: int = 5")

    def test_a_parameter_that_is_missing_is_refused(self):
        async def may(session: Session): ...

        self.refused(may, r"expected .*may to take n, name, got none")

    def test_what_cannot_be_given_by_name_is_refused(self):
        async def may(n, name, /): ...
        async def splat(*args, n, name): ...
        async def splat_all(n, name, **kwargs): ...

        self.refused(may, "got n$")
        self.refused(splat, r"got \*args")
        self.refused(splat_all, r"got \*\*kwargs")

    def test_a_session_that_cannot_be_given_by_name_is_refused_too(self):
        async def may(session: Session, /, n, name): ...

        self.refused(may, "got session")

    def test_two_sessions_are_refused(self):
        async def may(one: Session, two: Session, n, name): ...

        self.refused(may, "Session")


class TestRight:
    async def test_is_asked_with_session_and_typed_parameters(self, hub):
        asked = []

        @hub.channel("room:{n:int}")
        async def room(session: Session, n: int) -> None:
            asked.append((session.kind, session.transport, n))

        assert room.asks
        async with Client(hub) as client:
            assert (await client.subscribe("room:5"))["type"] == "subscribed"
            assert (await client.subscribe("room:05"))["code"] == "not_found"
        assert asked == [("stream", "websocket", 5)]

    async def test_without_a_session_parameter(self, hub):
        asked = []

        @hub.channel("room:{n:int}")
        async def room(n):
            asked.append(n)

        async with Client(hub) as client:
            await client.subscribe("room:5")
        assert asked == [5]

    async def test_what_it_raises_is_the_answer(self, hub):
        @hub.channel("room:{n:int}")
        async def room(n):
            raise Forbidden("members only") if n == 1 else RuntimeError("secret")

        async with Client(hub) as client:
            answer = await client.subscribe("room:1")
            assert (answer["code"], answer["message"]) == ("forbidden", "members only")
            answer = await client.subscribe("room:2")
            assert answer["code"] == "internal"
            assert "secret" not in answer["message"]
            assert (await client.subscribe("room:1"))["code"] == "forbidden"  # not already_subscribed
            assert (await hub.status())["subscriptions"] == 1

    async def test_an_undeclared_of_the_functions_own_is_internal_and_never_an_answer(self, hub):
        @hub.channel("room")
        async def room():
            await hub.publish("rom", "said", 1)

        async with Client(hub) as client:
            answer = await client.subscribe("room")
            assert answer["code"] == "internal"
            assert "rom" not in answer["message"]

    async def test_is_asked_for_as_long_as_a_command_may_take(self):
        hub = Hub(command_timeout=0.05)

        @hub.channel("room")
        async def room():
            await asyncio.Event().wait()

        async with hub, Client(hub) as client:
            assert (await client.subscribe("room"))["code"] == "timeout"

    async def test_a_timeout_of_its_own_is_its_own_failure(self, hub):
        @hub.channel("room")
        async def room():
            raise TimeoutError

        async with Client(hub) as client:
            assert (await client.subscribe("room"))["code"] == "internal"

    async def test_a_partial_function_is_asked_like_any_other(self):
        async def may(kind: str, who: Session, n: int) -> None:
            if kind != "open":
                raise Forbidden("closed")

        hub = Hub()
        hub.channel("open:{n:int}")(functools.partial(may, "open"))
        hub.channel("closed:{n:int}")(functools.partial(may, "closed"))
        async with hub, Client(hub) as client:
            assert (await client.subscribe("open:1"))["type"] == "subscribed"
            assert (await client.subscribe("closed:1"))["code"] == "forbidden"

    async def test_public_asks_nobody(self, hub):
        assert not hub.channel("orders", public=True).asks
        async with Client(hub) as client:
            assert (await client.subscribe("orders"))["type"] == "subscribed"

    async def test_is_given_up_when_the_session_is_gone(self, hub):
        began, gone = asyncio.Event(), asyncio.Event()

        @hub.channel("room")
        async def room():
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                gone.set()

        async with Client(hub) as client:
            client.send(type="subscribe", channel="room")
            await began.wait()
        await gone.wait()
        await turns()
        assert (await hub.status())["subscriptions"] == 0


class TestEvents:
    def channel(self, **events):
        return Channel("room", events=events, place="app.py:12")

    def test_without_events_any_will_do(self):
        Channel("room").check_event("anything", object())

    def test_a_list_names_them_and_leaves_their_data_open(self):
        channel = Channel("room", events=["message", "typing"])
        channel.check_event("typing", object())
        with pytest.raises(Undeclared):
            channel.check_event("typin", 1)

    def test_one_that_is_not_listed_names_those_that_are_and_where_to_add_it(self):
        with pytest.raises(Undeclared) as caught:
            self.channel(message=Any, typing=Any).check_event("mesage", 1)
        assert str(caught.value) == (
            "expected an event of channel 'room' ('message', 'typing'), got 'mesage'; add it to events= at app.py:12"
        )
        assert isinstance(caught.value, LookupError)
        assert not isinstance(caught.value, asgi_ws.RequestError)

    @pytest.mark.parametrize("name", ["a b", "", "é"])
    def test_what_is_no_name_is_refused_where_it_is_declared_and_where_it_is_published(self, name):
        with pytest.raises(BadRequest, match="event name"):
            Channel("room", events=[name])
        with pytest.raises(BadRequest, match="event name"):
            Channel("room").check_event(name, 1)

    # Each kind of type, with data that is right and data that is not.
    KINDS = {
        "struct": (
            Message,
            [Message("hi"), {"text": "hi"}, {"text": "hi", "at": "2026-01-01T00:00:00Z"}],
            [{"txt": 1}, 5],
        ),
        "dataclass": (Typing, [Typing("ann"), {"who": "ann"}], [{"who": 5}, {}, "ann", Message("hi")]),
        "pydantic": (
            Order,
            [Order(id=1), {"id": 1, "total": 2.5}],
            [{"total": 1}, 5, Typing("ann")],
        ),
        "int": (int, [5], ["5", None, 5.5]),
        "str": (str, ["5"], [5, None]),
        "dict": (dict, [{}, {"a": 1}], [[], 5]),
        "list": (list[int], [[], [1, 2]], [["1"], 5]),
        "union": (int | None, [5, None], ["5"]),
        "literal": (Literal["on", "off"], ["on"], ["On", 1]),
        "datetime": (
            dt.datetime,
            [dt.datetime(2026, 1, 1, tzinfo=dt.UTC), "2026-01-01T00:00:00Z"],
            ["today", 5],
        ),
        "none": (None, [None], [0, "x"]),
        "binary": (Binary, [Binary(b"x")], [b"x", "x"]),
        "any": (Any, [object(), 5, None], []),
        "constrained": (Annotated[int, msgspec.Meta(gt=0)], [5], [0, "5"]),
    }

    @pytest.mark.parametrize("kind", KINDS)
    def test_data_is_checked_against_its_type(self, kind):
        type_, good, bad = self.KINDS[kind]
        channel = self.channel(said=type_)
        for data in good:
            channel.check_event("said", data)
        for data in bad:
            with pytest.raises(TypeError, match="expected the data of event 'said' to be .*, got "):
                channel.check_event("said", data)

    def test_a_typed_dict_is_a_type_too(self):
        channel = self.channel(moved=Moved)
        channel.check_event("moved", {"x": 1, "y": 2})
        with pytest.raises(TypeError, match="expected the data of event 'moved' to be Moved, got dict"):
            channel.check_event("moved", {"x": "1"})

    def test_one_of_two_structs_is_one_of_them(self):
        self.channel(said=Message | Typing).check_event("said", Message("hi"))

    def test_a_list_of_models_is_a_list(self):
        self.channel(said=list[Order]).check_event("said", [Order(id=1)])

    async def test_what_passes_is_sent_as_its_type_says(self, hub):
        room = hub.channel("room", public=True, events={"ordered": Order})
        async with Client(hub, channels=["room"]) as client:
            for _ in range(2):
                await client.receive("subscribed")
            try:
                await room.publish("ordered", {"id": "1"})
            except TypeError:
                return
            (order,) = await client.events(1)
            assert order["id"] == 1

    def test_the_message_says_what_was_expected_and_what_was_wrong_with_it(self):
        with pytest.raises(TypeError) as caught:
            self.channel(said=Message).check_event("said", {"text": 5})
        assert str(caught.value) == (
            "expected the data of event 'said' to be Message, got dict: Expected `str`, got `int` - at `$.text`"
        )

    async def test_nothing_is_sent_of_what_is_refused(self, hub):
        room = hub.channel("room", public=True, events={"said": Message})
        for verb in (room.publish, room().publish):
            with pytest.raises(TypeError):
                await verb("said", {"text": 5})
            with pytest.raises(Undeclared):
                await verb("sayd", {"text": "hi"})
        for verb in (room.publish_nowait, room().publish_nowait):
            with pytest.raises(TypeError):
                verb("said", {"text": 5})
        assert (await room.publish("said", Message("hi"))).offset == 1

    @pytest.mark.parametrize("events", [["said"], {"said": Message}, {}])
    async def test_own_channels_and_patterns_check_alike(self, hub, events):
        room = hub.channel("room:{n:int}", public=True, events=events)
        with pytest.raises(Undeclared, match="room:\\{n:int\\}"):
            await room(n=5).publish("other", 1)
