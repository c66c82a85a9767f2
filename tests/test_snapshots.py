"""A channel's state for those who start or could not resume, and that its events go on exactly from there."""

import asyncio
import json
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

import asgi_ws
from asgi_ws import Binary, Forbidden, Hub, Position, Session, Snapshot
from asgi_ws.node import STRETCH
from asgi_ws.snapshots import Carried, take
from asgi_ws.topic import HOLD_LIMIT
from tests.fakes import Client, FakeBroker, publication, travel, turns, until
from tests.servers import receive, serve, welcomed

pytestmark = pytest.mark.anyio


def room_of(hub, **options):
    """A channel whose state is every number published to it through `publish`."""
    room = hub.channel("room", public=True, **options)
    room.state = []
    room.asked = []

    @room.snapshot
    async def state(session: Session) -> list[int]:
        room.asked.append(session.id)
        return list(room.state)

    return room


async def publish(room, number):
    room.state.append(number)
    return await room.publish("n", number)


@pytest.fixture
async def hub():
    async with Hub() as made:
        yield made


class TestWho:
    async def test_who_starts_is_given_the_state_of_the_position(self, hub):
        room = room_of(hub)
        position = await publish(room, 1)
        async with Client(hub) as client:
            answer = await client.subscribe("room")
            assert answer["data"] == [1]
            assert answer["offset"] == 1
            assert "recovered" not in answer
            await publish(room, 2)
            assert await client.events(1) == [2]
        async with Client(hub, channels=["room"]) as client:
            await client.receive("subscribed")
            assert (await client.receive("subscribed"))["data"] == [1, 2]
        assert position.offset == 1

    async def test_who_resumes_has_no_need_of_it(self, hub):
        room = room_of(hub)
        position = await publish(room, 1)
        await publish(room, 2)
        async with Client(hub) as client:
            answer = await client.subscribe("room", epoch=position.epoch, offset=1)
            assert answer["recovered"] is True
            assert "data" not in answer
            assert await client.events(1) == [2]
        assert room.asked == []

    async def test_who_could_not_resume_is_given_it(self, hub):
        room = room_of(hub)
        await publish(room, 1)
        async with Client(hub) as client:
            answer = await client.subscribe("room", epoch="another", offset=5)
            assert (answer["recovered"], answer["data"], answer["offset"]) == (False, [1], 1)

    async def test_who_asks_for_all_that_is_kept_is_not(self, hub):
        room = room_of(hub)
        await publish(room, 1)
        async with Client(hub) as client:
            assert "data" not in await client.subscribe("room", offset=0)
            assert await client.events(1) == [1]
        assert room.asked == []

    async def test_a_channel_without_history_has_a_state_but_no_position(self, hub):
        room_of(hub, history=0)
        async with Client(hub) as client:
            answer = await client.subscribe("room")
            assert answer["data"] == []
            assert answer.keys() == {"type", "ref", "channel", "data"}
            client.send(type="unsubscribe", channel="room")
            answer = await client.subscribe("room", epoch="e", offset=4)
            assert (answer["recovered"], answer["data"]) == (False, [])

    async def test_the_channel_s_own_function_is_asked_first(self, hub):
        asked = []

        @hub.channel("private:{n:int}")
        async def private(session: Session, n: int) -> None:
            asked.append("right")
            if n != 1:
                raise Forbidden("no")

        @private.snapshot
        async def state(n: int, session: Session) -> dict[str, Any]:
            asked.append("state")
            return {"n": n, "channels": session.channels}

        async with Client(hub) as client:
            await client.receive("subscribed")
            assert (await client.subscribe("private:2"))["code"] == "forbidden"
            assert asked == ["right"]
            answer = await client.subscribe("private:1")
            assert answer["data"] == {"n": 1, "channels": ["broadcast", "private:1"]}
            assert asked == ["right", "right", "state"]

    @pytest.mark.parametrize("data", [None, False, 0, "", [], {}])
    async def test_a_state_that_is_empty_is_a_state(self, hub, data):
        room = hub.channel("room", public=True)

        @room.snapshot
        async def state() -> Any:
            return data

        async with Client(hub) as client:
            assert (await client.subscribe("room"))["data"] == data

    def test_it_is_taken_by_whoever_else_has_to_tell_it(self):
        async def main():
            hub = Hub()
            room = room_of(hub)
            plain = hub.channel("plain", public=True)

            class Someone:
                id = "s1"

            assert await plain.state_for(Someone(), {}) is None
            assert await take(Someone(), plain, {}, 1000) == Carried()
            assert await room.state_for(Someone(), {}) == Snapshot([], None)
            assert room.asked == ["s1"]

        travel(main())


class TestDeclaring:
    async def test_it_takes_what_the_channel_s_function_takes(self, hub):
        channel = hub.channel("room:{n:int}", public=True)

        async def other(n, m): ...
        async def fine(n): ...

        with pytest.raises(TypeError, match="expected the parameters of .*other to be a Session, n, got m"):
            channel.snapshot(other)
        with pytest.raises(TypeError, match="expected the snapshot of channel 'room:{n:int}' to be async"):
            channel.snapshot(lambda n: None)
        assert not channel.has_snapshot
        assert channel.snapshot(fine) is fine
        assert channel.has_snapshot
        with pytest.raises(TypeError, match="got a second beside <Handler .*fine>"):
            channel.snapshot(fine)

    async def test_a_channel_that_nobody_may_subscribe_to_is_refused_all_the_same(self):
        hub = Hub()

        @hub.channel("room").snapshot
        async def state(): ...

        with pytest.raises(asgi_ws.SettingsError, match="a function or public=True"):
            await hub.__aenter__()


class TestNothingIsMissing:
    async def test_what_is_published_meanwhile_follows(self, hub):
        gate, begun = asyncio.Event(), asyncio.Event()
        room = hub.channel("room", public=True)

        @room.snapshot
        async def state():
            begun.set()
            await gate.wait()
            return "state"

        await room.publish("n", 1)
        async with Client(hub) as client:
            client.send(type="subscribe", channel="room")
            await begun.wait()
            await room.publish("n", 2)
            await room.publish("n", 3)
            client.send(type="ping", ref="p")
            assert (await client.receive("pong", "event"))["type"] == "pong"
            gate.set()
            answer = await client.receive("subscribed")
            while answer["channel"] != "room":
                answer = await client.receive("subscribed")
            assert (answer["data"], answer["offset"]) == ("state", 1)
            await room.publish("n", 4)
            assert await client.events(3) == [2, 3, 4]

    async def test_with_its_position_exactly_what_is_not_in_it_follows(self, hub):
        room = hub.channel("room", public=True)
        numbers: list[int] = []

        @room.snapshot
        async def state():
            # It has what was published after the position was read, and more comes before it is told.
            numbers.append(2)
            position = await room.publish("n", 2)
            taken = list(numbers)
            await room.publish("n", 3)
            return Snapshot(taken, position)

        numbers.append(1)
        await room.publish("n", 1)
        async with Client(hub) as client:
            answer = await client.subscribe("room")
            assert (answer["data"], answer["offset"]) == ([1, 2], 2)
            await room.publish("n", 4)
            assert await client.events(2) == [3, 4]

    async def test_a_position_of_the_past_brings_what_came_after_it(self, hub):
        room = hub.channel("room", public=True)
        positions = [await room.publish("n", number) for number in range(5)]

        @room.snapshot
        async def state():
            await room.publish("n", 5)
            return Snapshot("old", positions[1])

        async with Client(hub) as client:
            answer = await client.subscribe("room")
            assert answer["offset"] == positions[1].offset
            await room.publish("n", 6)
            assert await client.events(5) == [2, 3, 4, 5, 6]

    async def test_a_position_long_past_brings_all_of_it_stretch_by_stretch(self, hub):
        room = hub.channel("room", public=True, history=1000)
        positions = [await room.publish("n", number) for number in range(3 * STRETCH)]

        @room.snapshot
        async def state():
            await room.publish("n", 3 * STRETCH)
            return Snapshot("old", positions[9])

        async with Client(hub) as client:
            answer = await client.subscribe("room")
            assert answer["offset"] == positions[9].offset
            await room.publish("n", 3 * STRETCH + 1)
            assert await client.events(3 * STRETCH - 8) == list(range(10, 3 * STRETCH + 2))

    @pytest.mark.parametrize("there", ["too old", "another epoch"])
    async def test_a_position_that_is_no_longer_kept_is_no_beginning(self, hub, there):
        room = hub.channel("room", public=True, history=2)
        positions = [await room.publish("n", number) for number in range(5)]
        position = positions[0] if there == "too old" else Position("another", positions[-1].offset)

        @room.snapshot
        async def state():
            return Snapshot("old", position)

        async with Client(hub) as client:
            assert (await client.subscribe("room"))["code"] == "unavailable"
            assert len(hub._lifecycle.run.node.fanout.topics) == 1  # broadcast

    async def test_a_position_on_a_channel_without_positions_is_none(self, hub):
        room = hub.channel("room", public=True, history=0)

        @room.snapshot
        async def state():
            return Snapshot(1, Position("e", 5))

        async with Client(hub) as client:
            answer = await client.subscribe("room")
            assert answer["data"] == 1
            assert "offset" not in answer

    async def test_more_than_can_be_held_back_is_said(self, hub):
        room = hub.channel("room", public=True)

        @room.snapshot
        async def state():
            for number in range(HOLD_LIMIT + 1):
                await room.publish("n", number)
            return "state"

        async with Client(hub) as client:
            answer = await client.subscribe("room")
            assert (answer["code"], answer["message"]) == (
                "unavailable", f"expected at most {HOLD_LIMIT} events while subscribing; try again",
            )  # fmt: skip

    @given(
        st.lists(st.sampled_from(["publish", "position", "other channel"]), max_size=12), st.integers(0, 12)
    )
    @hypothesis(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
    def test_state_and_events_together_are_everything_once(self, steps, before):
        async def main():
            async with Hub() as hub:
                room, other = hub.channel("room", public=True), hub.channel("other", public=True)
                numbers: list[int] = []

                async def say():
                    numbers.append(len(numbers))
                    return await room.publish("n", numbers[-1])

                @room.snapshot
                async def state():
                    taken, position = list(numbers), None
                    for step in steps:
                        if step == "publish":
                            await say()
                        elif step == "other channel":
                            await other.publish("n", 0)
                        else:
                            position = await say()
                            taken = list(numbers)
                    return Snapshot(taken, position) if position else Snapshot(taken)

                for _ in range(before):
                    await say()
                async with Client(hub) as client:
                    answer = await client.subscribe("room")
                    await say()
                    heard = []
                    while not heard or heard[-1] != numbers[-1]:
                        heard += await client.events(1)
                    assert answer["data"] + heard == numbers
                    assert answer["offset"] == len(answer["data"])

        asyncio.run(main())


class TestBehindABroker:
    """Where a position may be ahead of what has come to this node."""

    def make(self, **settings):
        broker = FakeBroker()
        hub = Hub(broadcaster=broker, **settings)
        room = hub.channel("room", public=True)
        room.ahead = None

        @room.snapshot
        async def state():
            return Snapshot("state", room.ahead)

        return broker, hub, room

    def keep(self, broker, number):
        """The broker has it, but has not delivered it here."""
        kept = publication("room", "n", number)
        broker.keep(kept)
        return kept

    async def test_the_subscribe_waits_until_the_node_has_come_there(self):
        broker, hub, room = self.make()
        async with hub, Client(hub) as client:
            await client.receive("subscribed")
            first = broker.gate("position answered")
            client.send(type="subscribe", channel="room")
            await until(lambda: broker.called("position") == ["broadcast", "room"])
            one, two, three = (self.keep(broker, number) for number in (1, 2, 3))
            room.ahead = two.position
            first.set()
            await turns(50)
            broker.emit(one)
            await turns(20)
            client.send(type="ping", ref="p")
            assert (await client.receive("subscribed", "pong"))["type"] == "pong"
            broker.emit(two)
            answer = await client.receive("subscribed")
            assert (answer["data"], answer["offset"]) == ("state", two.offset)
            broker.emit(three)
            assert await client.events(1) == [3]

    async def test_what_has_come_already_is_not_waited_for_and_what_follows_is_held(self):
        broker, hub, room = self.make()
        async with hub, Client(hub) as client:
            await client.receive("subscribed")
            first = broker.gate("position answered")
            client.send(type="subscribe", channel="room")
            await until(lambda: broker.called("position") == ["broadcast", "room"])
            one, two, three = (self.keep(broker, number) for number in (1, 2, 3))
            for kept in (one, two, three):
                broker.emit(kept)
            room.ahead = two.position
            first.set()
            assert (await client.receive("subscribed"))["offset"] == two.offset
            assert await client.events(1) == [3]

    async def test_what_history_brings_before_the_node_has_it_comes_once(self):
        broker, hub, room = self.make()
        old, older = self.keep(broker, 1), self.keep(broker, 2)
        room.ahead = old.position
        async with hub, Client(hub) as client:
            await client.receive("subscribed")
            history = broker.gate("history")
            client.send(type="subscribe", channel="room")
            await until(lambda: broker.called("history") == ["room"])
            new = self.keep(broker, 3)
            history.set()
            await turns(50)
            client.send(type="ping", ref="p")
            assert (await client.receive("subscribed", "pong"))["type"] == "pong"
            broker.emit(new)
            assert (await client.receive("subscribed"))["offset"] == old.offset
            last = self.keep(broker, 4)
            broker.emit(last)
            assert await client.events(3) == [2, 3, 4]
        assert older.offset > old.offset

    async def test_another_epoch_on_the_way_there_is_a_break(self):
        broker, hub, room = self.make()
        async with hub, Client(hub) as client:
            await client.receive("subscribed")
            room.ahead = Position("e1", 10)
            client.send(type="subscribe", channel="room")
            await until(lambda: broker.called("position") == ["broadcast", "room"])
            await turns(50)
            broker.epochs["room"] = "e2"
            broker.emit(self.keep(broker, 1))
            assert (await client.receive("error"))["code"] == "unavailable"

    async def test_more_than_can_be_held_on_the_way_there_is_a_break(self):
        broker, hub, room = self.make()
        async with hub, Client(hub) as client:
            await client.receive("subscribed")
            room.ahead = Position("e1", 10_000_000)
            client.send(type="subscribe", channel="room")
            await until(lambda: broker.called("position") == ["broadcast", "room"])
            await turns(50)
            for number in range(HOLD_LIMIT + 1):
                broker.emit(self.keep(broker, number))
            assert (await client.receive("error"))["code"] == "unavailable"

    def test_a_position_that_never_comes_is_a_timeout(self):
        async def main():
            _, hub, room = self.make(command_timeout=5)
            async with hub, Client(hub) as client:
                room.ahead = Position("e1", 10)
                answer = await client.subscribe("room")
                assert answer["code"] == "timeout"

        travel(main())

    async def test_who_leaves_on_the_way_there_leaves_nothing_behind(self):
        broker, hub, room = self.make()
        async with hub:
            async with Client(hub) as client:
                await client.receive("subscribed")
                room.ahead = Position("e1", 10)
                client.send(type="subscribe", channel="room")
                await until(lambda: broker.called("position") == ["broadcast", "room"])
                await turns(50)
            await until(lambda: not broker.channels)
            assert hub._lifecycle.run.node.fanout.topics == {}


class TestFailing:
    @pytest.mark.parametrize(
        ("error", "code"), [(Forbidden("no state for you"), "forbidden"), (KeyError("inside"), "internal")]
    )
    async def test_a_state_that_cannot_be_had_fails_the_subscribe(self, hub, error, code, caplog):
        room = hub.channel("room", public=True)

        @room.snapshot
        async def state():
            raise error

        async with Client(hub) as client:
            answer = await client.subscribe("room")
            assert (answer["code"], answer["channel"]) == (code, "room")
            assert "inside" not in answer["message"]
            await room.publish("n", 1)
            client.send(type="ping")
            assert (await client.receive("event", "pong"))["type"] == "pong"
            assert "room" not in hub._lifecycle.run.node.fanout.topics

    async def test_what_json_cannot_carry_or_is_too_large(self, hub):
        room = hub.channel("room:{n:int}", public=True)

        @room.snapshot
        async def state(n: int):
            return object() if n else "x" * hub.settings.max_event_bytes

        async with Client(hub) as client:
            assert (await client.subscribe("room:0"))["code"] == "too_large"
            assert (await client.subscribe("room:1"))["code"] == "internal"

    def test_one_that_takes_too_long(self):
        async def main():
            hub = Hub(command_timeout=3)
            room = hub.channel("room", public=True)
            ended = []

            @room.snapshot
            async def state():
                try:
                    await asyncio.sleep(100)
                finally:
                    ended.append(True)

            async with hub, Client(hub) as client:
                assert (await client.subscribe("room"))["code"] == "timeout"
                assert ended == [True]

        travel(main())

    async def test_a_client_that_is_gone_ends_it(self, hub):
        begun, ended = [], []
        room = hub.channel("room", public=True)

        @room.snapshot
        async def state():
            begun.append(True)
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(True)

        async with Client(hub, channels=["room"]):
            await until(lambda: begun)
        await until(lambda: ended)
        assert hub._lifecycle.run.node.fanout.topics == {}


@pytest.mark.parametrize("server", ["uvicorn", "fast"])
async def test_with_a_real_server_in_both_codecs(server):
    from starlette.applications import Starlette

    hub = Hub()
    room = hub.channel("room:{kind}", public=True)

    @room.snapshot
    async def state(kind: str):
        return Binary(b"ab") if kind == "binary" else {"kind": kind, "large": 2**70}

    app = Starlette(lifespan=hub.lifespan)
    app.mount("/ws", hub)
    with serve(app, server) as served:
        path = "/ws/stream?channel=room:binary&channel=room:plain"
        async with served.connect(path) as ws:
            await welcomed(ws)
            answers = [await receive(ws, "subscribed") for _ in range(2)]
            states = {answer["channel"]: answer for answer in answers}
            assert (states["room:binary"]["data"], states["room:binary"]["binary"]) == ("YWI=", True)
            assert states["room:plain"]["data"] == {"kind": "plain", "large": 2**70}
            assert "binary" not in states["room:plain"]
        async with served.connect(path, subprotocols=["asgi-ws.v1.msgpack"]) as ws:
            messages = [msgspec.msgpack.decode(await ws.recv()) for _ in range(4)]
            states = {message.get("channel"): message for message in messages}
            assert (states["room:binary"]["data"], states["room:binary"]["binary"]) == (b"ab", True)
            assert states["room:plain"]["data"] == {"kind": "plain", "large": float(2**70)}
    assert json.dumps(states["room:plain"]["data"])
