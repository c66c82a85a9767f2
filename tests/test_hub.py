"""What a developer holds: what can be refused is refused before anything is sent, and what is sent arrives."""

import asyncio
import dataclasses
import datetime as dt
import decimal
import enum
import uuid

import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import HTTPConnection

from asgi_ws import (
    BadRequest,
    Binary,
    Hub,
    NotRunning,
    Position,
    Router,
    SettingsError,
    TooLarge,
    Undeclared,
    get_hub,
)
from tests.fakes import DEADLINE, Client, FakeBroker, turns

pytestmark = pytest.mark.anyio


@pytest.fixture
async def hub():
    made = Hub()
    made.channel("room:{n:int}", public=True)
    made.channel("plain", public=True, history=0)
    async with made:
        yield made


class TestPublishing:
    async def test_broadcast_reaches_every_session(self, hub):
        async with Client(hub) as one, Client(hub) as two:
            for client in (one, two):
                await client.receive("subscribed")
            positions = [await hub.broadcast("tick", n) for n in range(3)]
            assert await one.events(3) == await two.events(3) == [0, 1, 2]
        assert [position.offset for position in positions] == [1, 2, 3]

    async def test_an_event_on_the_wire(self, hub):
        async with Client(hub, channels=["room:5"]) as client:
            while (await client.receive("subscribed"))["channel"] != "room:5":
                pass
            await hub.publish("room:5", "said", {"text": "hi"}, key="k1")
            message = await client.receive("event")
            assert message.pop("time") > 1_700_000_000_000
            assert message == {
                "type": "event", "channel": "room:5", "event": "said", "data": {"text": "hi"}, "offset": 1, "id": "k1"
            }  # fmt: skip

    async def test_without_history_there_is_no_position(self, hub):
        async with Client(hub) as client:
            await client.receive("subscribed")
            joined = await client.subscribe("plain")
            assert "offset" not in joined
            assert "epoch" not in joined
            assert await hub.publish("plain", "said", 1) is None
            assert "offset" not in await client.receive("event")

    async def test_a_key_makes_it_idempotent(self, hub):
        first = await hub.broadcast("tick", 1, key="k")
        assert isinstance(first, Position)
        assert await hub.broadcast("tick", 2, key="k") == first
        assert await hub.broadcast("tick", 3, key="l") != first

    async def test_who_is_excluded_learns_the_position(self, hub):
        async with Client(hub) as one, Client(hub) as two:
            session = (await one.receive("welcome"))["session"]
            for client in (one, two):
                await client.receive("subscribed")
            await hub.broadcast("tick", 1, exclude=session)
            assert await one.receive() == {"type": "position", "channel": "broadcast", "offset": 1}
            assert await two.events(1) == [1]

    async def test_to_a_user_is_to_their_channel(self, hub):
        assert (await hub.publish_to_user("7", "letter", 1)).offset == 1
        assert (await hub.publish("user:7", "letter", 2)).offset == 2
        assert (await hub.publish_to_user("8", "letter", 3)).offset == 1

    async def test_nobody_there_is_no_trouble(self, hub):
        assert (await hub.publish("room:1", "said", 1)).offset == 1


class Color(enum.Enum):
    RED = "red"


class Struct(msgspec.Struct):
    n: int
    at: dt.date


@dataclasses.dataclass
class Data:
    items: list[int]


class Model(pydantic.BaseModel):
    id: uuid.UUID
    when: dt.datetime | None = None


UUID = uuid.UUID("0f0e0d0c-0b0a-0908-0706-050403020100")


class TestData:
    @pytest.mark.parametrize(
        ("data", "json"),
        [
            (None, None),
            ("é\u2028😀", "é\u2028😀"),
            (1.5, 1.5),
            (2**60, 2**60),
            ((1, 2), [1, 2]),
            ({3}, [3]),
            (Struct(1, dt.date(2026, 1, 2)), {"n": 1, "at": "2026-01-02"}),
            (Data([1]), {"items": [1]}),
            (Model(id=UUID), {"id": str(UUID), "when": None}),
            ([Model(id=UUID)], [{"id": str(UUID), "when": None}]),
            (Color.RED, "red"),
            (decimal.Decimal("1.10"), "1.10"),
            (UUID, str(UUID)),
            (dt.timedelta(seconds=90), "PT90S"),
            (b"\x00\xff", "AP8="),
            ({1: "a"}, {"1": "a"}),
            (msgspec.Raw(b'{"a": 1}'), {"a": 1}),
            (float("nan"), None),
        ],
    )
    async def test_is_its_json_form(self, hub, data, json):
        async with Client(hub) as client:
            await client.receive("subscribed")
            await hub.broadcast("tick", data)
            assert await client.events(1) == [json]

    async def test_binary_is_base64_and_says_so(self, hub):
        async with Client(hub) as client:
            await client.receive("subscribed")
            await hub.broadcast("tick", Binary(b"\x00\xff"))
            message = await client.receive("event")
            assert (message["data"], message["binary"]) == ("AP8=", True)

    @pytest.mark.parametrize(
        "data", [object(), {"a": object()}, Hub, {("a", "b"): 1}, 1j, Model, "\ud800", iter([])]
    )
    async def test_what_json_cannot_carry_is_a_type_error_before_anything_is_sent(self, hub, data):
        with pytest.raises(TypeError, match="expected data that JSON can carry, got "):
            await hub.broadcast("tick", data)
        assert hub.stats()["events_emitted"] == 0

    async def test_what_contains_itself_is_one_too(self, hub):
        loop = []
        loop.append(loop)
        with pytest.raises(TypeError, match="JSON can carry"):
            await hub.broadcast("tick", loop)

    async def test_the_limit_is_of_the_encoded_bytes(self):
        async with Hub(max_event_bytes=10) as hub:
            await hub.broadcast("tick", "x" * 8)
            for data in ("x" * 9, "é" * 5, Binary(b"x" * 11)):
                with pytest.raises(TooLarge, match=r"at most 10 bytes \(MAX_EVENT_BYTES\), got 1"):
                    await hub.broadcast("tick", data)
            await hub.broadcast("tick", Binary(b"x" * 10))
            assert hub.stats()["events_emitted"] == 2


class TestRefused:
    @pytest.mark.parametrize("channel", ["", "a\n", "x" * 256, None, 5, b"room:1"])
    async def test_what_is_no_channel(self, hub, channel):
        with pytest.raises(BadRequest, match="expected a channel name"):
            await hub.publish(channel, "said", 1)

    @pytest.mark.parametrize("event", ["", "a b", "é", "x" * 65, None])
    async def test_what_is_no_event(self, hub, event):
        with pytest.raises(BadRequest, match="expected an event name"):
            await hub.broadcast(event, 1)

    @pytest.mark.parametrize("key", ["", "x" * 129, "é" * 65])
    async def test_what_is_no_key(self, hub, key):
        with pytest.raises(BadRequest, match="expected a key of 1 to 128 bytes"):
            await hub.broadcast("tick", 1, key=key)
        await hub.broadcast("tick", 1, key="é" * 64)

    @pytest.mark.parametrize("key", ["\ud800", 5, b"k"])
    async def test_what_is_no_key_and_no_text(self, hub, key):
        with pytest.raises(BadRequest, match="expected a key"):
            await hub.broadcast("tick", 1, key=key)

    @pytest.mark.parametrize(
        ("name", "nearest"),
        [
            ("rom:5", "room:{n:int}"),
            ("room:five", "room:{n:int}"),
            ("plan", "plain"),
            ("broadcst", "broadcast"),
        ],
    )
    async def test_a_typo_names_the_nearest_and_how_to_declare_it(self, hub, name, nearest):
        with pytest.raises(Undeclared) as caught:
            await hub.publish(name, "said", 1)
        message = str(caught.value)
        assert message.startswith(f"expected a declared channel, got {name!r}; did you mean {nearest!r}?")
        assert f"hub.channel({name!r}, public=True)" in message

    async def test_what_is_like_nothing_names_nothing(self, hub):
        with pytest.raises(Undeclared) as caught:
            await hub.publish("qqqqqqqqqqqqqqq", "said", 1)
        assert "did you mean" not in str(caught.value)

    async def test_and_the_message_is_still_well_put(self, hub):
        with pytest.raises(Undeclared, match=r"got 'qqqqqqqqqqqqqqq'[.;] "):
            await hub.publish("qqqqqqqqqqqqqqq", "said", 1)

    @pytest.mark.parametrize("user", ["", 7, None])
    async def test_what_is_no_user(self, hub, user):
        with pytest.raises(BadRequest, match="expected a user"):
            await hub.publish_to_user(user, "letter", 1)

    async def test_the_hubs_own_internal_names(self, hub):
        hub.channel("{name:path}", public=True)
        await hub.publish("anything at all", "said", 1)
        with pytest.raises(Undeclared):
            await hub.publish("$internal", "said", 1)

    async def test_nothing_of_it_was_counted_or_sent(self, hub):
        for wrong in (("nowhere", "said", 1), ("room:1", "a b", 1), ("room:1", "said", object())):
            with pytest.raises((BadRequest, Undeclared, TypeError)):
                await hub.publish(*wrong)
            with pytest.raises((BadRequest, Undeclared, TypeError)):
                hub.publish_nowait(*wrong)
        await turns()
        assert hub.stats()["events_emitted"] == hub.stats()["publish_failed"] == 0

    async def test_data_after_it_was_published_is_the_applications_again(self, hub):
        async with Client(hub) as client:
            await client.receive("subscribed")
            data = {"n": 1}
            hub.broadcast_nowait("tick", data)
            data["n"] = 2
            assert await client.events(1) == [{"n": 1}]


class TestDisabled:
    async def test_publishing_does_nothing_and_checks_nothing(self):
        hub = Hub(enabled=False)
        for _ in range(2):
            assert await hub.publish("undeclared", "no event", object(), key="") is None
            assert await hub.broadcast("no event", object()) is None
            assert await hub.publish_to_user("7", "no event", object()) is None
            hub.broadcast_nowait("no event", object())
            hub.publish_to_user_nowait("7", "no event", object())
            assert await asyncio.to_thread(hub.from_thread.broadcast, "no event", object()) is None

    async def test_a_session_is_refused(self):
        hub = Hub(enabled=False)
        async with hub, Client(hub) as client:
            await client.ended()
            assert client.closed["code"] == 1013
            assert "ASGI_WS_ENABLED" in client.closed["reason"]


class TestSettings:
    async def test_a_keyword_wins_over_the_environment(self, monkeypatch):
        monkeypatch.setenv("ASGI_WS_HEARTBEAT", "5s")
        assert Hub().settings.heartbeat == 5.0
        assert Hub(heartbeat=7).settings.heartbeat == 7.0

    async def test_a_broadcaster_by_url(self):
        hub = Hub(broadcaster="memory://?workers=allow")
        assert hub.settings.broadcaster == "memory://?workers=allow"

    @pytest.mark.parametrize("wrong", [{"heartbeat": "soon"}, {"hartbeat": 5}, {"broadcaster": "no url"}])
    async def test_what_is_wrong_is_refused(self, wrong):
        with pytest.raises(SettingsError):
            Hub(**wrong)


class TestLivingInAnApp:
    async def test_a_lifespan_starts_it_and_puts_it_into_the_state(self):
        broker = FakeBroker()
        hub = Hub(broadcaster=broker)
        async with hub.lifespan(object()) as state:
            assert state == {"hub": hub}
            assert broker.running
        assert not broker.running

    async def test_only_the_default_one_is_put_there(self):
        other = Hub(namespace="other")
        assert not other.is_default
        async with other.lifespan(object()) as state:
            assert state == {}
        scope = {"type": "http"}
        other.put_into(scope)
        assert "state" not in scope
        hub = Hub()
        hub.put_into(scope)
        assert scope["state"] == {"hub": hub}

    async def test_get_hub_finds_it(self):
        hub = Hub()
        assert await get_hub(HTTPConnection({"type": "http", "state": {"hub": hub}})) is hub

    @pytest.mark.parametrize("state", [{}, {"hub": None}, {"hub": "another's"}])
    async def test_get_hub_says_where_it_looked_and_what_to_do(self, state):
        with pytest.raises(NotRunning) as caught:
            await get_hub(HTTPConnection({"type": "http", "state": state}))
        for word in ("FastAPI(lifespan=hub.lifespan)", "HubMiddleware", 'yield {"hub": hub}', "import it"):
            assert word in str(caught.value)

    async def test_as_an_app_it_speaks_the_lifespan_protocol(self):
        broker, sent, events = FakeBroker(), [], asyncio.Queue()
        hub = Hub(broadcaster=broker)

        async def send(message):
            sent.append((message["type"], broker.running))

        serving = asyncio.get_running_loop().create_task(hub({"type": "lifespan"}, events.get, send))
        events.put_nowait({"type": "lifespan.startup"})
        events.put_nowait({"type": "lifespan.shutdown"})
        async with asyncio.timeout(DEADLINE):
            await serving
        assert sent == [("lifespan.startup.complete", True), ("lifespan.shutdown.complete", False)]

    @pytest.mark.parametrize(
        ("kind", "path", "served"),
        [
            ("websocket", "/stream", True),
            ("http", "/status", True),
            ("http", "/status/", True),
            ("http", "/nothing", False),
            ("websocket", "/status", False),
        ],
    )
    async def test_it_knows_its_own_routes(self, kind, path, served):
        assert Hub().serves({"type": kind, "path": path, "method": "GET", "root_path": ""}) is served

    async def test_two_live_side_by_side(self):
        one, two = Hub(), Hub(namespace="two")
        async with one, two, Client(one) as first, Client(two) as second:
            for client in (first, second):
                await client.receive("subscribed")
            await one.broadcast("tick", 1)
            await two.broadcast("tick", 2)
            assert await first.events(1) == [1]
            assert await second.events(1) == [2]

    async def test_its_repr_is_its_namespace(self):
        assert repr(Hub(namespace="shop")) == "<Hub 'shop'>"

    async def test_it_is_a_router_and_includes_others(self, hub):
        router = Router()
        hub.include_router(router)
        router.channel("more", public=True)
        assert (await hub.publish("more", "said", 1)).offset == 1


class TestTelling:
    async def test_status_health_and_stats_are_true(self, hub):
        async with Client(hub, channels=["room:1"]) as client, Client(hub):
            for _ in range(2):
                await client.receive("subscribed")
            status = await hub.status()
            assert (status["active_connections"], status["subscriptions"], status["channels"]) == (2, 3, 2)
            assert status["connections"] == {"stream": 2}
            assert status["nodes"][0]["active_connections"] == 2
            await hub.publish("room:1", "said", 1)
            await client.events(1)
            health = await hub.health()
            assert (health["status"], health["broadcaster"]["kind"]) == ("healthy", "memory")
            stats = hub.stats()
            assert (stats["events_emitted"], stats["events_delivered"]) == (1, 1)
            assert (stats["peak_connections"], stats["connections_total"]) == (2, 2)
        assert (await hub.status())["active_connections"] == 0
        assert hub.stats()["peak_connections"] == 2

    async def test_stats_need_a_start_to_count_from(self):
        with pytest.raises(NotRunning, match="<Hub 'asgi_ws'> to be running, got stats before its start"):
            Hub().stats()


texts = st.text(st.characters(exclude_categories=["Cs"]))
plain = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
nested = st.deferred(
    lambda: plain | st.lists(nested, max_size=3) | st.dictionaries(texts, nested, max_size=3)
)


@settings(deadline=None, max_examples=40)
@given(nested)
async def test_whatever_json_can_carry_arrives_as_it_is(data):
    async with Hub() as hub, Client(hub) as client:
        await client.receive("subscribed")
        await hub.broadcast("tick", data)
        assert await client.events(1) == [data]
