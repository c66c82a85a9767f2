"""Where two parts meet: what held in each alone, and has to hold in both together."""

import asyncio
import json
import time
from typing import Any, Literal

import pytest

from asgi_ws import Hub, Identity, Router, Session, Unauthorized
from asgi_ws import fanout as fanouts
from asgi_ws.fanout import Fanout
from asgi_ws.metrics import Metrics
from asgi_ws.outbox import Pace
from asgi_ws.testing import Closed, connect
from asgi_ws.testing.cable import scope_for
from tests.adopted import AdoptedCable
from tests.fakes import Client, FakeBroker, publication, turns, until
from tests.test_catchup import begun, publish, running
from tests.test_fanout import listen

pytestmark = pytest.mark.anyio

ISLAND: dict[str, Any] = {"broadcaster": "memory://?workers=allow", "heartbeat": 1000}


class Adopted:
    """A client whose connection the hub has taken over."""

    def __init__(self, hub: Hub, path: str) -> None:
        self.messages: list[dict[str, Any]] = []
        scope = scope_for(path, (), ())
        self.cable = AdoptedCable(hub, scope, lambda payload: self.messages.append(json.loads(payload)))

    async def joined(self, count: int) -> None:
        await until(lambda: sum(m["type"] == "subscribed" for m in self.messages) == count)
        await turns()

    async def leave(self) -> None:
        self.cable.cut(1001)
        await turns(5)


def signed_in(hub: Hub, user: str = "ann") -> None:
    @hub.authenticate
    async def who(connection: Any, token: str | None) -> Identity:
        return Identity(user)


class TestABusyChannel:
    async def test_does_not_keep_others_from_their_turn(self, monkeypatch):
        monkeypatch.setattr(fanouts, "SLICE", 0.0)
        fanout = Fanout(Metrics())
        listen(fanout, "busy")
        quiet = listen(fanout, "quiet")
        fanout.deliver(publication("busy"))
        fanout.deliver(publication("quiet", data="here"))
        for _ in range(300):
            await asyncio.sleep(0)
            fanout.deliver(publication("busy"))
        assert quiet.heard() == ["here"]

    async def test_does_not_lift_the_bound_of_an_outbox(self, monkeypatch):
        monkeypatch.setattr(fanouts, "SLICE", 0.0)
        async with running({"slow": "drop_newest"}, outbox_messages=20) as hub:
            async with Client(hub, channels=["room"]) as client:
                await begun(client)
                client.pause()
                for number in range(2000):
                    await hub.publish("room", "tick", number)
                    await asyncio.sleep(0)
                session = next(iter(hub._lifecycle.run.sessions.values()))
                assert session._outbox._messages <= 40
                client.resume()

    async def test_holds_up_no_publisher_for_ever(self, monkeypatch):
        monkeypatch.setattr(fanouts, "SLICE", 0.0)
        async with running({}) as hub:
            node = hub._lifecycle.run.node
            listen(node.fanout, "busy")
            over = False

            async def emit() -> None:
                while not over:
                    node.emit(publication("busy"))
                    await asyncio.sleep(0)

            emitting = asyncio.get_running_loop().create_task(emit())
            try:
                async with asyncio.timeout(20):
                    for _ in range(1500):
                        await hub.publish("room", "tick", "x" * 1000)
            finally:
                over = True
                await emitting

    @pytest.mark.parametrize("how", ["source", "publisher"])
    async def test_nor_does_one_that_never_waits(self, how):
        hub = Hub(**ISLAND)
        hub.channel("orders", public=True)
        hub.channel("bulk", public=True)
        over = False

        @hub.source("busy")
        async def busy():
            while not over:
                yield 1

        async def publish_all() -> None:
            while not over:
                await hub.publish("bulk", "x", 1)

        async with hub, Client(hub) as client:
            if how == "source":
                await client.subscribe("busy")
            publishing = asyncio.get_running_loop().create_task(publish_all()) if how == "publisher" else None
            await turns(5)
            try:
                async with asyncio.timeout(20):
                    await hub.publish("orders", "x", 1)
            finally:
                over = True
                if publishing is not None:
                    await publishing

    async def test_publishers_wait_for_nobody_for_ever_on_a_loop_that_is_never_idle(self, monkeypatch):
        class Stuck:
            progress = 0.0

        monkeypatch.setattr(Pace, "limit", 0.2)
        pace = Pace()
        stuck = Stuck()
        stuck.progress = time.monotonic()
        pace.behind(stuck)
        over = False

        async def hog() -> None:
            while not over:
                time.sleep(0.02)
                await asyncio.sleep(0)

        hogging = asyncio.get_running_loop().create_task(hog())
        try:
            async with asyncio.timeout(20):
                await pace.keep()
        finally:
            over = True
            await hogging


class TestCatchingUp:
    async def test_more_than_can_be_held_while_a_snapshot_is_made_is_fed_from_history(self):
        hub = Hub(**ISLAND)
        stock = hub.channel("stock", public=True, history=50)
        gate = asyncio.Event()
        gate.set()
        asked = 0

        @stock.snapshot
        async def state(session: Session) -> Any:
            nonlocal asked
            asked += 1
            await gate.wait()
            return {}

        async with hub:
            client = Adopted(hub, "/stream?channel=stock")
            await client.joined(2)
            gate.clear()
            client.cable.stall(0)
            await publish(hub, *range(3000), channel="stock")
            client.cable.resume()
            await until(lambda: asked == 2)
            await publish(hub, *range(3000, 4500), channel="stock")
            gate.set()
            await turns(50)
            await publish(hub, 4500, channel="stock")
            await until(lambda: client.messages[-1].get("data") == 4500)
            told = [m for m in client.messages if m.get("channel") == "stock"]
            position = told[0]["offset"]
            for message in told[1:]:
                assert message["type"] == "gap" or message["offset"] == position + 1
                position = message["offset"]
            await client.leave()

    async def test_a_snapshot_that_awaits_what_is_cancelled_makes_nobody_deaf(self):
        hub = Hub(**ISLAND, outbox_messages=100)
        stock = hub.channel("stock", public=True, history=50)
        fine, asked = True, 0

        @stock.snapshot
        async def state(session: Session) -> Any:
            nonlocal asked
            asked += 1
            if not fine:
                sleeping = asyncio.ensure_future(asyncio.sleep(100))
                sleeping.cancel()
                await sleeping
            return {}

        async with hub:
            client = Adopted(hub, "/stream?channel=stock")
            await client.joined(2)
            fine = False
            client.cable.stall(0)
            await publish(hub, *range(1000), channel="stock")
            client.cable.resume()
            await until(lambda: asked == 2)
            await publish(hub, 1000, channel="stock")
            await until(lambda: client.messages[-1].get("data") == 1000)
            await client.leave()

    async def test_who_leaves_before_feeding_begins_is_not_held(self):
        broker = FakeBroker()
        hub = Hub(broadcaster=broker, heartbeat=1000, outbox_messages=20)
        hub.channel("room", public=True, history=10_000)
        async with hub, Client(hub, channels=["room"]) as client:
            for _ in range(2):
                await client.receive("subscribed")
            client.pause()
            await publish(hub, *range(100))
            run = hub._lifecycle.run
            topic = run.node.fanout.topics["room"]
            assert topic.lagging
            serve = run.catch_up._serve

            def serve_and_leave(session: Any) -> None:
                serve(session)
                if session in run.catch_up._tasks and "room" in session.subscriptions:
                    run.node.leave(session.subscriptions.pop("room"))

            run.catch_up._serve = serve_and_leave
            client.resume()
            await until(lambda: not topic.lagging)
            await turns(50)
            assert not topic.joining

    async def test_who_reads_all_is_not_too_slow_for_two_channels_that_keep_the_latest(self):
        hub = Hub(**ISLAND)
        for name in "ab":
            hub.channel(name, public=True, slow="latest", history=0)
        async with hub:
            client = Adopted(hub, "/stream?channel=a&channel=b")
            await client.joined(3)
            for number in range(0, 200, 2):
                for name in "ab":
                    await hub.publish(name, "tick", number)
                    await hub.publish(name, "tick", number + 1)
                await turns(5)
            for name in "ab":
                heard = [m["data"] for m in client.messages if m["type"] == "event" and m["channel"] == name]
                assert heard == list(range(200))
            assert hub.stats()["slow_clients"] == 0
            await client.leave()

    async def test_what_is_sent_to_one_session_is_not_lost_in_silence(self):
        sessions: list[Session] = []
        hub = Hub(**ISLAND, outbox_messages=50)

        @hub.on_connect
        async def come(session: Session, connection: Any) -> None:
            sessions.append(session)

        async with hub, Client(hub) as client:
            await client.receive("subscribed")
            client.pause()
            for number in range(200):
                await sessions[0].send("mine", number)
                await turns(2)
            client.resume()
            assert (await client.receive("disconnect"))["code"] == 4102

    async def test_a_send_that_raises_before_it_can_be_awaited_harms_no_other(self):
        hub = Hub(**ISLAND)
        hub.channel("a", public=True)
        failing = False

        async def wrapping(scope: Any, receive: Any, send: Any) -> None:
            def wrapped(message: Any) -> Any:
                if failing:
                    raise RuntimeError("the middleware's own")
                return send(message)

            await hub(scope, receive, wrapped)

        async with hub, Client(wrapping, channels=["a"]) as one, Client(hub, channels=["a"]) as two:
            for client in (one, two):
                for _ in range(2):
                    await client.receive("subscribed")
            await turns(5)
            failing = True
            await publish(hub, 1, channel="a")
            failing = False
            await publish(hub, 2, channel="a")
            assert await two.events(2) == [1, 2]


class TestSubscriptions:
    @pytest.mark.parametrize("embedded", [True, False])
    async def test_an_old_subscribe_that_ends_leaves_the_new_one_alone(self, embedded):
        hub = Hub(**ISLAND) if embedded else Hub(broadcaster=FakeBroker())
        signed_in(hub)
        gates: list[asyncio.Event] = []

        @hub.channel("room")
        async def room(session: Session) -> None:
            if not gates:
                gates.append(asyncio.Event())
                await gates[0].wait()

        async with hub, Client(hub) as client:
            for _ in range(2):
                await client.receive("subscribed")
            client.send(type="subscribe", channel="room", ref=1)
            await until(lambda: gates)
            assert await hub.unsubscribe("room", user="ann") == 1
            assert (await client.subscribe("room"))["type"] == "subscribed"
            gates[0].set()
            assert (await client.receive("error"))["ref"] == 1
            await hub.publish("room", "said", 2)
            assert await client.events(1) == [2]

    async def test_a_channel_that_was_not_published_to_keeps_its_epoch_when_another_is_forgotten(self):
        hub = Hub(**ISLAND, position_ttl=10)
        for name in ("old", "quiet", "other"):
            hub.channel(name, public=True)
        async with hub:
            broadcaster: Any = hub._lifecycle.run.node.broadcaster
            await hub.publish("old", "x", 1)
            before = await broadcaster.position("quiet")
            later = time.time() + 100
            broadcaster.clock = lambda: later
            await hub.publish("other", "x", 1)
            assert "old" not in broadcaster._logs
            if hash("old") % 4096 != hash("quiet") % 4096:
                assert await broadcaster.position("quiet") == before

    async def test_the_hub_takes_a_user_out_of_a_source_by_its_shorter_name_too(self):
        hub = Hub(**ISLAND)
        signed_in(hub)

        @hub.source("power")
        async def power(module: int, interval: float = 0.1):
            while True:
                yield 1
                await asyncio.sleep(interval)

        async with hub, connect(hub, "/stream") as client:
            await client.subscribe("power?module=4")
            assert await hub.unsubscribe("power?module=4", user="ann") == 1


class TestRights:
    async def test_a_channel_that_is_declared_in_mid_run_and_lets_nobody_in_lets_nobody_in(self):
        hub = Hub(**ISLAND)
        async with hub, connect(hub, "/stream") as client:
            hub.channel("audit")
            answer = await client.request({"type": "subscribe", "channel": "audit"})
            assert (answer["type"], answer["code"]) == ("error", "forbidden")

    @pytest.mark.parametrize("late", ["a router in a router", "a function in a router", "a second function"])
    async def test_there_is_one_authenticate_function(self, late):
        async def ours(connection: Any, token: str | None) -> Identity:
            return Identity("ours")

        async def theirs(connection: Any, token: str | None) -> Identity:
            return Identity("theirs")

        hub, outer, inner = Hub(), Router(), Router()
        hub.authenticate(ours)
        hub.include_router(outer)
        with pytest.raises(ValueError, match="expected one authenticate function, got"):
            if late == "a router in a router":
                inner.authenticate(theirs)
                outer.include_router(inner)
            elif late == "a function in a router":
                outer.authenticate(theirs)
            else:
                hub.authenticate(theirs)
        assert hub.authenticator is ours

    async def test_an_identity_that_has_expired_is_not_let_in(self):
        hub = Hub(**ISLAND)

        @hub.authenticate
        async def who(connection: Any, token: str | None) -> Identity:
            return Identity("ann", expires_at=time.time() - 3600)

        async with hub:
            with pytest.raises(Closed) as closed:
                async with connect(hub, "/stream", headers={"authorization": "Bearer old"}):
                    pass
            assert closed.value.code == 4001

    async def test_an_empty_session_of_the_frameworks_is_there_when_the_token_comes(self):
        hub = Hub(**ISLAND)

        @hub.authenticate
        async def who(connection: Any, token: str | None) -> Identity:
            user = connection.session.get("user") or token
            if user is None:
                raise Unauthorized("log in")
            return Identity(user)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await hub({**scope, "session": {}}, receive, send)

        async with hub, connect(app, "/stream") as client:
            assert client.welcome["auth"] == "required"
            assert (await client.request({"type": "auth", "token": "ann"}))["type"] == "reply"

    @pytest.mark.parametrize("kind", ["subscribe", "unsubscribe", "presence", "history", "publish"])
    async def test_an_endpoints_session_learns_nothing_of_sources_that_are_not_listed(self, kind):
        hub = Hub(**ISLAND)
        hub.channel("prices", public=True)

        @hub.source("audit")
        async def audit(tenant: Literal["acme", "globex"], number: int = 0):
            yield 1

        hub.endpoint("/shop", channel="prices")
        async with hub, connect(hub, "/shop") as client:
            event = {"event": "x"} if kind == "publish" else {}
            there = await client.request({"type": kind, "channel": "audit?tenant=zzz", **event})
            nowhere = await client.request({"type": kind, "channel": "nowhere?tenant=zzz", **event})
            assert there["code"] == nowhere["code"]
            assert "acme" not in there["message"]

    async def test_a_clients_key_is_its_users_own(self):
        hub = Hub(**ISLAND)
        signed_in(hub, "eve")
        room = hub.channel("room", public=True)

        @room.publish_right
        async def may(session: Session) -> None: ...

        async with hub, connect(hub, "/stream?channel=room") as client:
            await client.publish("room", "say", "hi", key="order-5-paid")
            await client.assert_event("room", "say", "hi")
            await hub.publish("room", "paid", 5, key="order-5-paid")
            await client.assert_event("room", "paid", 5)

    async def test_a_running_hub_takes_in_a_router_with_a_source_and_its_endpoint(self):
        hub, router = Hub(**ISLAND), Router()

        @router.source("power")
        async def power(module: int = 1):
            yield module

        router.endpoint("/power", source="power")
        async with hub:
            hub.include_router(router)
            async with connect(hub, "/power") as client:
                await client.receive("event")
