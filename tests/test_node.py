"""A node subscribes where somebody listens, lets go where nobody does, and loses nothing in between."""

import asyncio
import contextlib
import functools
import importlib
import importlib.metadata
import logging
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_ws import Broadcaster, Hub, SettingsError, Unavailable, broadcasters
from asgi_ws.broadcasters import ENTRY_POINTS, Member, from_url
from asgi_ws.broadcasters.memory import MemoryBroadcaster
from asgi_ws.fanout import TURN_MESSAGES
from asgi_ws.metrics import Metrics
from asgi_ws.node import Join, Node, Resume
from asgi_ws.outbox import Pace
from asgi_ws.publication import Position, Retention
from asgi_ws.settings import Settings
from asgi_ws.topic import HOLD_LIMIT, Subscription
from tests.fakes import DEADLINE, Client, FakeBroker, FakeReceiver, FakeSubscriber, publication, turns, until

pytestmark = pytest.mark.anyio

KEEP = Retention(100, 300.0)
NOTHING = Retention(0, 300.0)


def within_deadline(function):
    @functools.wraps(function)
    async def bounded(*args, **kwargs):
        async with asyncio.timeout(3 * DEADLINE):
            await function(*args, **kwargs)

    return bounded


@pytest.fixture
def broker():
    return FakeBroker()


@pytest.fixture
async def node(broker):
    made = Node(broker, Metrics())
    await broker.start(made)
    return made


@pytest.fixture
async def hub(broker):
    made = Hub(broadcaster=broker)
    made.channel("room:{n:int}", public=True)
    made.channel("plain", public=True, history=0)
    async with made:
        yield made


async def listen(node, channel="room", *, retention=KEEP, resume=None):
    """A new subscriber, joined and admitted."""
    subscription = Subscription(FakeSubscriber(), channel)
    node.admit(subscription, await node.join(subscription, retention, resume))
    return subscription


def heard(subscription):
    return subscription.subscriber.heard()


async def publish(node, data, channel="room", retention=KEEP):
    return await node.publish(publication(channel, data=data), retention)


class TestFirstAndLast:
    async def test_the_first_subscriber_subscribes_and_the_last_unsubscribes(self, node, broker):
        one, two = await listen(node), await listen(node)
        assert broker.called("subscribe") == ["room"]
        node.leave(one)
        await node.settle()
        assert broker.called("unsubscribe") == []
        node.leave(two)
        await node.settle()
        assert broker.called("unsubscribe") == ["room"]
        assert node.fanout.topics == {}

    async def test_each_channel_by_itself(self, node, broker):
        one, _ = await listen(node, "a"), await listen(node, "b")
        node.leave(one)
        await node.settle()
        assert broker.channels == {"b"}

    async def test_two_at_once_subscribe_once(self, node, broker):
        gate = broker.gate("subscribe")
        joins = [asyncio.get_running_loop().create_task(listen(node)) for _ in range(5)]
        await turns()
        gate.set()
        subscriptions = await asyncio.gather(*joins)
        assert broker.called("subscribe") == ["room"]
        await publish(node, 1)
        await until(lambda: all(heard(s) == [1] for s in subscriptions))

    async def test_a_last_unsubscribe_on_its_way_does_not_silence_a_first_subscribe_behind_it(
        self, node, broker
    ):
        gate = broker.gate("unsubscribe")
        node.leave(await listen(node))
        await until(lambda: broker.called("unsubscribe"))
        joining = asyncio.get_running_loop().create_task(listen(node))
        await turns()
        gate.set()
        subscription = await joining
        assert broker.channels == {"room"}
        await publish(node, 1)
        await until(lambda: heard(subscription) == [1])

    async def test_and_what_was_published_in_between_is_no_gap_for_who_begins_after_it(self, node, broker):
        gate = broker.gate("unsubscribe answered")
        subscription = await listen(node)
        await publish(node, 1)
        await turns()
        node.leave(subscription)
        await until(lambda: "room" not in broker.channels)
        joining = asyncio.get_running_loop().create_task(listen(node))
        await publish(node, 2)
        gate.set()
        subscription = await joining
        await publish(node, 3)
        await until(lambda: heard(subscription))
        assert [m["type"] for m in subscription.subscriber.messages] == ["event"]

    async def test_nor_one_whose_answer_is_on_its_way(self, node, broker):
        gate = broker.gate("unsubscribe answered")
        node.leave(await listen(node))
        await until(lambda: broker.called("unsubscribe"))
        joining = asyncio.get_running_loop().create_task(listen(node))
        await turns()
        gate.set()
        subscription = await joining
        assert [call for call, _ in broker.calls if "subscribe" in call] == [
            "subscribe",
            "unsubscribe",
            "subscribe",
        ]
        await publish(node, 1)
        await until(lambda: heard(subscription) == [1])

    async def test_who_is_just_joining_counts_as_a_subscriber(self, node, broker):
        one = await listen(node)
        gate = broker.gate("position")
        joining = asyncio.get_running_loop().create_task(listen(node))
        await until(lambda: len(broker.called("position")) == 2)
        node.leave(one)
        await node.settle()
        gate.set()
        await joining
        assert broker.called("unsubscribe") == []

    async def test_who_leaves_while_the_subscribe_is_on_its_way_leaves_nothing_behind(self, node, broker):
        gate = broker.gate("subscribe")
        subscription = Subscription(FakeSubscriber(), "room")
        joining = asyncio.get_running_loop().create_task(node.join(subscription, KEEP, None))
        await until(lambda: broker.called("subscribe"))
        node.leave(subscription)
        gate.set()
        await joining
        await node.settle()
        assert broker.channels == set()
        assert node.fanout.topics == {}

    async def test_leaving_twice_is_leaving_once(self, node, broker):
        subscription = await listen(node)
        node.leave(subscription)
        node.leave(subscription)
        await node.settle()
        node.leave(subscription)
        await node.settle()
        assert broker.called("unsubscribe") == ["room"]

    async def test_an_embedded_broadcaster_is_not_asked(self):
        node = Node(MemoryBroadcaster(Settings(broadcaster="memory://?workers=allow")), Metrics())
        await node.broadcaster.start(node)
        subscription = await listen(node)
        await publish(node, 1)
        await until(lambda: heard(subscription) == [1])
        node.leave(subscription)
        assert node.fanout.topics == {}

    async def test_who_left_while_waiting_for_its_turn_does_not_subscribe(self, node, broker):
        gate, answered = broker.gate("unsubscribe"), broker.gate("subscribe answered")
        answered.set()
        node.leave(await listen(node))
        await until(lambda: broker.called("unsubscribe"))
        left = Subscription(FakeSubscriber(), "room")
        joining = asyncio.get_running_loop().create_task(node.join(left, KEEP, None))
        await turns()
        node.leave(left)
        answered = broker.gate("subscribe answered")
        gate.set()
        await turns()
        stays = asyncio.get_running_loop().create_task(listen(node))
        await turns()
        answered.set()
        await joining
        subscription = await stays
        await node.settle()
        assert broker.channels == {"room"}
        await publish(node, 1)
        await until(lambda: heard(subscription) == [1])

    @settings(deadline=None, max_examples=60)
    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6)), max_size=40))
    @within_deadline
    async def test_whatever_comes_and_goes_who_is_live_hears(self, script):
        broker = FakeBroker()
        node = Node(broker, Metrics())
        await broker.start(node)
        tasks, seats = [], {}
        for seat, wait in script:
            if seat in seats:
                subscription, joining = seats.pop(seat)
                joining.cancel()  # as a session does that is gone
                node.leave(subscription)
            else:
                subscription = Subscription(FakeSubscriber(), "room")
                joining = asyncio.get_running_loop().create_task(self.join(node, subscription))
                seats[seat] = subscription, joining
                tasks.append(joining)
            await turns(wait)
        await asyncio.gather(*tasks, return_exceptions=True)
        await node.settle()
        await node.settle()
        if seats:
            assert broker.channels == {"room"}
        assert set(node.fanout.topics) == ({"room"} if seats else set())
        await publish(node, "last")
        await turns()
        assert all(heard(subscription)[-1:] == ["last"] for subscription, _ in seats.values())

    async def join(self, node, subscription):
        try:
            node.admit(subscription, await node.join(subscription, KEEP, None))
        except asyncio.CancelledError:
            node.leave(subscription)
            raise


class TestJoining:
    async def test_what_is_published_while_joining_comes_after_it_once(self, hub, broker):
        gate = broker.gate("position answered")
        async with Client(hub) as client:
            client.send(type="subscribe", channel="room:1")
            await until(lambda: "room:1" in broker.called("position"))
            for n in range(5):
                await hub.publish("room:1", "said", n)
            gate.set()
            joined = await client.receive("subscribed", "event")
            while joined["channel"] != "room:1":
                joined = await client.receive("subscribed", "event")
            assert joined["type"] == "subscribed"
            await hub.publish("room:1", "said", 5)
            assert await client.events(6) == list(range(6))

    @pytest.mark.parametrize("stage", ["subscribe", "subscribe answered", "position", "position answered"])
    async def test_at_whatever_stage(self, node, broker, stage):
        gate = broker.gate(stage)
        joining = asyncio.get_running_loop().create_task(listen(node))
        await turns()
        await publish(node, 1)
        gate.set()
        subscription = await joining
        top = broker.tops["room"]
        await publish(node, 2)
        await turns()
        # What it does not hear is at or before the position that it was given.
        assert heard(subscription) in ([1, 2], [2])
        assert subscription.subscriber.heard("offset")[-1] == top + 2

    async def test_without_history_too(self, hub, broker):
        gate = broker.gate("subscribe answered")
        async with Client(hub) as client:
            client.send(type="subscribe", channel="plain")
            await until(lambda: "plain" in broker.channels)
            await hub.publish("plain", "said", 1)
            gate.set()
            await hub.publish("plain", "said", 2)
            assert await client.events(2) == [1, 2]

    async def test_a_position_begins_where_the_events_do(self, node):
        for n in range(3):
            await publish(node, n)
        subscription = Subscription(FakeSubscriber(), "room")
        assert await node.join(subscription, KEEP, None) == Join(Position("e1", 6), [], None)

    @pytest.mark.parametrize(("retention", "features"), [(NOTHING, ()), (KEEP, ("total_order",))])
    async def test_without_history_there_is_none(self, retention, features):
        broker = FakeBroker(*features)
        node = Node(broker, Metrics())
        await broker.start(node)
        await publish(node, 1, retention=retention)
        subscription = Subscription(FakeSubscriber(), "room")
        assert await node.join(subscription, retention, None) == Join(None, [], None)
        assert (await node.join(subscription, retention, Resume("e1", 2))).recovered is False
        assert (await node.join(subscription, retention, Resume(None, 0))).recovered is None
        assert broker.called("position") == broker.called("history") == []

    async def test_more_than_can_be_held_back_is_unavailable(self, hub, broker):
        gate = broker.gate("position answered")
        async with Client(hub) as client:
            client.send(type="subscribe", channel="room:1", ref=7)
            await until(lambda: "room:1" in broker.called("position"))
            for n in range(HOLD_LIMIT + 1):
                broker.emit(publication("room:1", data=n, epoch="e1", offset=n + 1))
            gate.set()
            error = await client.receive("error")
            assert (error["ref"], error["channel"], error["code"]) == (7, "room:1", "unavailable")
            assert "1000" in error["message"]
            del broker.gates["position answered"]
            assert (await client.subscribe("room:1"))["type"] == "subscribed"

    async def test_a_failing_subscribe_is_an_error_and_leaves_nothing_behind(self, hub, broker):
        async with Client(hub) as client:
            await client.receive("subscribed")
            broker.errors["subscribe"] = Unavailable("the broker is away")
            error = await client.subscribe("room:1")
            assert (error["code"], error["message"]) == ("unavailable", "the broker is away")
            await self.forgotten(hub)
            del broker.errors["subscribe"]
            assert (await client.subscribe("room:1"))["type"] == "subscribed"
            await hub.publish("room:1", "said", 1)
            assert await client.events(1) == [1]

    async def test_what_else_it_raises_is_internal_and_in_the_log(self, hub, broker, caplog):
        async with Client(hub) as client:
            await client.receive("subscribed")
            broker.errors["subscribe"] = RuntimeError("password of the broker")
            error = await client.subscribe("room:1")
            assert error["code"] == "internal"
            assert "password" not in str(error)
            assert caplog.text.count("RuntimeError: password of the broker") == 1
            await self.forgotten(hub)

    async def forgotten(self, hub):
        """Wait until only `broadcast` is left."""
        async with asyncio.timeout(DEADLINE):
            while (await hub.status())["channels"] > 1:
                await asyncio.sleep(0)

    @pytest.mark.parametrize("call", ["position", "history"])
    async def test_a_failing_question_lets_go_of_the_channel(self, hub, broker, call):
        async with Client(hub) as client:
            await client.receive("subscribed")
            broker.errors[call] = Unavailable("the broker is away")
            error = await client.subscribe("room:1", epoch="e1", offset=2)
            if call == "history":
                assert error["code"] == "unavailable"
                await until(lambda: "room:1" not in broker.channels)

    async def test_of_several_that_wait_the_next_one_tries_after_a_failure(self, node, broker):
        gate = broker.gate("subscribe")
        broker.errors["subscribe"] = Unavailable("away")
        failing = asyncio.get_running_loop().create_task(listen(node))
        await until(lambda: broker.called("subscribe"))
        waiting = asyncio.get_running_loop().create_task(listen(node))
        await turns()
        second = broker.gate("subscribe")
        gate.set()
        with pytest.raises(Unavailable):
            await failing
        broker.errors.clear()
        second.set()
        subscription = await waiting
        await publish(node, 1)
        await until(lambda: heard(subscription) == [1])

    async def test_a_subscribe_that_is_given_up_is_undone(self, node, broker):
        gate = broker.gate("subscribe answered")
        subscription = Subscription(FakeSubscriber(), "room")
        joining = asyncio.get_running_loop().create_task(node.join(subscription, KEEP, None))
        await until(lambda: "room" in broker.channels)
        joining.cancel()
        await asyncio.wait([joining])
        node.leave(subscription)
        gate.set()
        await node.settle()
        assert broker.channels == set()


class TestResume:
    async def test_what_was_missed_then_what_is_held_then_live(self, node, broker):
        for n in range(3):
            await publish(node, n)
        gate = broker.gate("history answered")
        joining = asyncio.get_running_loop().create_task(listen(node, resume=Resume("e1", 2)))
        await until(lambda: broker.called("history"))
        await turns()
        await publish(node, 3)
        gate.set()
        subscription = await joining
        await publish(node, 4)
        await turns()
        assert heard(subscription) == [1, 2, 3, 4]

    @pytest.mark.parametrize("resume", [Resume("e0", 2), Resume("e1", 100)])
    async def test_what_cannot_be_kept_is_said_with_the_current_position(self, node, resume):
        await publish(node, 1)
        subscription = Subscription(FakeSubscriber(), "room")
        assert await node.join(subscription, KEEP, resume) == Join(Position("e1", 2), [], recovered=False)

    async def test_the_clients_own_position_is_the_answer_to_one_that_can_be(self, node):
        for n in range(3):
            await publish(node, n)
        join = await node.join(Subscription(FakeSubscriber(), "room"), KEEP, Resume("e1", 2))
        assert (join.position, join.recovered) == (Position("e1", 2), True)
        assert [p.offset for p in join.missed] == [4, 6]

    async def test_all_that_is_kept_begins_before_the_oldest(self, node, broker):
        for n in range(4):
            await publish(node, n)
        del broker.logs["room"][:2]
        join = await node.join(Subscription(FakeSubscriber(), "room"), KEEP, Resume(None, 0))
        assert (join.position, join.recovered) == (Position("e1", 4), None)
        assert [p.offset for p in join.missed] == [6, 8]

    async def test_all_of_nothing_is_the_current_position(self, node):
        join = await node.join(Subscription(FakeSubscriber(), "room"), KEEP, Resume(None, 0))
        assert join == Join(Position("e1", 0), [], None)

    @pytest.mark.parametrize("resume", [Resume("e1", 0), Resume(None, 0)])
    async def test_a_broker_that_keeps_more_than_it_must_is_no_reason_for_a_hole(self, node, resume):
        few = Retention(3, 300.0)  # Redis trims about, not exactly
        for n in range(10):
            await publish(node, n, retention=few)
        subscription = await listen(node, retention=few, resume=resume)
        await publish(node, 10, retention=few)
        await turns()
        replayed = heard(subscription)
        assert replayed in ([10], list(range(11 - len(replayed), 11)))

    async def test_an_epoch_that_changes_while_joining_hides_nothing(self, node, broker):
        for n in range(3):
            await publish(node, n)
        gate = broker.gate("position answered")
        subscription = Subscription(FakeSubscriber(), "room")
        joining = asyncio.get_running_loop().create_task(node.join(subscription, KEEP, None))
        await until(lambda: broker.called("position"))
        await turns()
        broker.epochs["room"], broker.tops["room"] = "e2", 0
        top = await publish(node, "new")
        gate.set()
        join = await joining
        node.admit(subscription, join)
        await turns()
        assert heard(subscription) == (["new"] if join.position.epoch == "e1" else [])
        assert join.position in {Position("e1", 6), top}


class TestGaps:
    async def test_what_is_missed_is_told_to_everyone_who_is_live(self, hub, broker):
        async with Client(hub, channels=["room:1"]) as client:
            while (await client.receive("subscribed"))["channel"] != "room:1":
                pass
            broker.receiver.missed("room:1", Position("e2", 90))
            assert await client.receive("gap") == {
                "type": "gap",
                "channel": "room:1",
                "epoch": "e2",
                "offset": 90,
            }
            broker.receiver.missed("room:1", None)
            assert await client.receive("gap") == {"type": "gap", "channel": "room:1"}
            assert hub.stats()["broadcaster"]["gaps"] == 2

    async def test_a_channel_that_nobody_listens_to_has_nobody_to_tell(self, node):
        node.missed("nobody", None)
        assert node.metrics.broadcaster_gaps == 1
        assert node.fanout.topics == {}

    async def test_who_is_just_joining_is_told_too(self, node, broker):
        for n in range(2):
            await publish(node, n)
        gate = broker.gate("history answered")
        joining = asyncio.get_running_loop().create_task(listen(node, resume=Resume("e1", 2)))
        await until(lambda: broker.called("history"))
        await turns()
        node.missed("room", Position("e1", 90))  # after the history was read
        gate.set()
        subscription = await joining
        await turns()
        assert [m["type"] for m in subscription.subscriber.messages] == ["event", "gap"]

    async def test_a_new_epoch_under_those_who_are_live_is_a_gap(self, node, broker):
        await publish(node, 1)
        subscription = await listen(node)
        broker.epochs["room"], broker.tops["room"] = "e2", 0  # the broker's data is gone
        await publish(node, 2)
        await turns()
        assert [m["type"] for m in subscription.subscriber.messages] == ["gap", "event"]
        assert subscription.subscriber.messages[0]["epoch"] == "e2"

    async def test_nor_does_memory_that_is_short_change_an_epoch_in_silence(self):
        hub = Hub(broadcaster="memory://", history_bytes=0)
        async with hub, Client(hub) as client:
            offset = (await client.receive("subscribed"))["offset"]
            for n in range(3):
                await hub.broadcast("tick", n)
                message = await client.receive("event", "gap")
                if message["type"] == "gap":
                    offset = message["offset"]
                    message = await client.receive("event")
                assert message["offset"] > offset
                offset = message["offset"]


class TestLeaving:
    async def test_a_failing_unsubscribe_is_logged_and_harms_no_one(self, node, broker, caplog):
        broker.errors["unsubscribe"] = Unavailable("the broker is away")
        node.leave(await listen(node))
        await node.settle()
        assert "unsubscribing 'room' failed" in caplog.text
        assert node.fanout.topics == {}
        subscription = await listen(node)
        assert broker.called("subscribe") == ["room", "room"]
        await publish(node, 1)
        await until(lambda: heard(subscription) == [1])

    async def test_what_comes_late_finds_nobody(self, node, broker):
        subscription = await listen(node)
        node.leave(subscription)
        await node.settle()
        broker.receiver.deliver(publication("room"))
        await turns()
        assert heard(subscription) == []

    async def test_a_hub_that_stops_lets_go_of_every_channel_and_leaves_no_task(self, broker):
        hub = Hub(broadcaster=broker)
        before = asyncio.all_tasks()
        async with hub, Client(hub) as client:
            await client.receive("subscribed")
        assert (broker.starts, broker.stops) == (1, 1)
        assert broker.called("unsubscribe") == ["broadcast"]
        assert asyncio.all_tasks() == before


class TestPublishing:
    async def test_is_counted_where_it_happens(self, hub, broker):
        async with Client(hub) as client:
            await client.receive("subscribed")
            await hub.broadcast("tick", 1)
            await client.events(1)
            broker.errors["publish"] = Unavailable("the broker is away")
            with pytest.raises(Unavailable):
                await hub.broadcast("tick", 2)
        stats = hub.stats()
        assert (stats["events_emitted"], stats["publish_failed"]) == (1, 1)
        assert (stats["broadcaster"]["published"], stats["broadcaster"]["received"]) == (1, 1)

    async def test_the_publishing_node_delivers_what_comes_back(self, node, broker):
        subscription = await listen(node)
        await publish(node, 1, retention=NOTHING)
        await turns()
        assert heard(subscription) == [1]

    async def test_its_repr_names_what_is_in_it(self, node):
        await listen(node)
        assert repr(node).startswith(f"<Node {node.id} <")
        assert "1 topics" in repr(node)


class TestPace:
    @pytest.fixture
    async def memory(self):
        """A hub whose publish awaits nothing by itself."""
        hub = Hub()
        hub.channel("plain", public=True, history=0)
        async with hub:
            yield hub

    async def test_a_publisher_waits_for_those_who_keep_up(self, memory):
        """It awaits nothing else, and nobody who reads is too slow or loses anything."""
        count = 20_000
        async with Client(memory, channels=["plain"]) as client:
            for _ in range(2):
                await client.receive("subscribed")
            for n in range(count):
                await memory.publish("plain", "said", n)
            assert await client.events(count) == list(range(count))
        assert memory.stats()["slow_clients"] == 0

    async def test_and_not_for_those_who_lag(self, memory):
        async with Client(memory, channels=["plain"]) as brisk, Client(memory, channels=["plain"]) as stuck:
            for client in (brisk, stuck):
                for _ in range(2):
                    await client.receive("subscribed")
            stuck.pause()
            begin = time.monotonic()
            for n in range(10_000):
                await memory.publish("plain", "said", n)
            took = time.monotonic() - begin
            assert await brisk.events(10_000) == list(range(10_000))
            assert memory.stats()["slow_clients"] == 1
        assert took < DEADLINE

    async def test_while_a_full_turn_is_written_the_others_who_publish_wait_too(self, memory, monkeypatch):
        monkeypatch.setattr(Pace, "patience", DEADLINE)
        monkeypatch.setattr(Pace, "limit", DEADLINE)
        async with Client(memory, channels=["plain"]) as client:
            for _ in range(2):
                await client.receive("subscribed")
            client.pause()

            async def fill():
                for n in range(TURN_MESSAGES):
                    await memory.publish("plain", "said", n)

            filling = asyncio.get_running_loop().create_task(fill())
            await turns(20)
            other = asyncio.get_running_loop().create_task(memory.broadcast("tick", "other"))
            await turns(20)
            assert not filling.done()
            assert not other.done()
            client.resume()
            async with asyncio.timeout(DEADLINE / 2):
                await asyncio.gather(filling, other)
            assert await client.events(TURN_MESSAGES + 1) == [*range(TURN_MESSAGES), "other"]

    async def test_a_crowd_that_keeps_up_keeps_up(self, memory):
        """A loop that is busy with their writes is no fault of theirs."""
        async with contextlib.AsyncExitStack() as stack:
            crowd = [await stack.enter_async_context(Client(memory, channels=["plain"])) for _ in range(30)]
            for client in crowd:
                for _ in range(2):
                    await client.receive("subscribed")
            for n in range(4000):
                await memory.publish("plain", "said", n)
            assert memory.stats()["slow_clients"] == 0
            for client in crowd:
                assert await client.events(4000) == list(range(4000))

    async def test_a_fan_out_to_very_many_is_waited_for_too(self, node, broker, monkeypatch):
        monkeypatch.setattr("asgi_ws.fanout.SLICE", 0.0)
        monkeypatch.setattr("asgi_ws.fanout.TURN_MESSAGES", 1)
        subscriptions = [await listen(node) for _ in range(300)]
        await publish(node, 1)
        assert all(heard(subscription) == [1] for subscription in subscriptions)

    async def test_others_run_while_one_publishes(self, memory):
        ticks = []

        async def tick():
            while True:
                ticks.append(time.monotonic())
                await asyncio.sleep(0)

        ticking = asyncio.get_running_loop().create_task(tick())
        for n in range(5000):
            await memory.publish("plain", "said", n)
        ticking.cancel()
        assert len(ticks) >= 4  # after each thousand, at least


class TestWhichBroadcaster:
    async def test_any_object_that_implements_it(self, broker):
        hub = Hub(broadcaster=broker)
        async with hub:
            assert (await hub.health())["broadcaster"]["kind"] == "fake"
            await hub.broadcast("tick", 1)
        assert broker.called("publish") == ["broadcast"]

    @pytest.mark.parametrize("wrong", [FakeBroker, object(), FakeReceiver()])
    async def test_what_is_none_is_refused(self, wrong):
        with pytest.raises((TypeError, SettingsError), match="expected .*Broadcaster"):
            Hub(broadcaster=wrong)

    async def test_a_third_partys_by_its_entry_point(self, monkeypatch, tmp_path, broker):
        # A distribution as pip installs it.
        (tmp_path / "third_party_broker.py").write_text(
            "made = []\n\ndef make(settings):\n    return made[0]\n"
        )
        info = tmp_path / "third_party-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\nstrange+tls = third_party_broker:make\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        importlib.invalidate_caches()
        try:
            import third_party_broker

            third_party_broker.made.append(broker)
            hub = Hub(broadcaster="strange+tls://host:1")
            async with hub:
                assert (await hub.health())["broadcaster"]["kind"] == "fake"
            with pytest.raises(SettingsError, match="expected memory:// or strange\\+tls://, got other://"):
                Hub(broadcaster="other://")
        finally:
            sys.modules.pop("third_party_broker", None)

    async def test_it_has_the_settings(self, monkeypatch, broker):
        asked = []
        entry = importlib.metadata.EntryPoint("mine", "tests.fakes:FakeBroker", ENTRY_POINTS)
        monkeypatch.setattr(
            importlib.metadata.EntryPoint, "load", lambda _: lambda s: asked.append(s) or broker
        )
        found = importlib.metadata.EntryPoints([entry])
        monkeypatch.setattr(broadcasters, "entry_points", lambda group: found.select(group=group))
        settings = Settings(broadcaster="mine://host", namespace="shop")
        assert from_url(settings) is broker
        assert asked == [settings]

    async def test_a_scheme_of_ours_cannot_be_taken_over(self, monkeypatch):
        entry = importlib.metadata.EntryPoint("memory", "nowhere:nothing", ENTRY_POINTS)
        found = importlib.metadata.EntryPoints([entry])
        monkeypatch.setattr(broadcasters, "entry_points", lambda group: found.select(group=group))
        assert isinstance(from_url(Settings()), MemoryBroadcaster)

    async def test_one_that_lacks_what_is_declared_is_refused_at_start_by_name(self):
        hub = Hub(broadcaster=FakeBroker("total_order"))
        hub.channel("room", public=True, history=200)
        with pytest.raises(SettingsError, match="history"):
            await hub.__aenter__()

    async def test_an_unknown_scheme_is_refused_by_name(self):
        with pytest.raises(SettingsError, match="ASGI_WS_BROADCASTER: expected memory://, got kafka://"):
            Hub(broadcaster="kafka://host")


class TestInterface:
    """What a broadcaster need not have says so when it is asked for."""

    class Least(Broadcaster):
        kind = "least"
        features = frozenset()

        async def start(self, receiver): ...
        async def stop(self): ...
        async def ping(self): ...
        async def publish(self, publication, retention): ...
        async def position(self, channel): ...

    async def test_history_and_subscribing(self):
        least = self.Least()
        for question in (least.subscribe("a"), least.unsubscribe("a")):
            with pytest.raises(NotImplementedError, match="least subscribes to nothing"):
                await question
        with pytest.raises(NotImplementedError, match="least keeps no history"):
            await least.history("a", None, KEEP, 1)
        assert not least.embedded

    async def test_the_rest_it_must_have(self):
        class Nothing(Broadcaster):
            pass

        with pytest.raises(TypeError, match="abstract"):
            Nothing()

    async def test_a_member_is_a_user_over_all_sessions(self):
        assert Member("7", 2, None, 0.0).sessions == 2


async def test_a_hub_whose_broker_is_away_starts_and_is_not_ready(broker):
    hub = Hub(broadcaster=broker)
    async with hub:
        broker.errors["ping"] = Unavailable("away")
        health = await hub.health()
        assert (health["status"], health["broadcaster"]["connected"]) == ("unhealthy", False)
        assert health["broadcaster"]["round_trip_ms"] is None
        broker.errors["ping"] = OSError("refused")
        assert (await hub.health())["status"] == "unhealthy"
        del broker.errors["ping"]
        health = await hub.health()
        assert (health["status"], health["broadcaster"]["round_trip_ms"]) == ("healthy", 1.0)


async def test_a_broker_that_does_not_answer_is_asked_for_a_second(broker, monkeypatch):
    monkeypatch.setattr("asgi_ws.run.HEALTH_WAIT", 0.01)
    hub = Hub(broadcaster=broker)
    async with hub:
        gate = broker.gate("ping")
        assert (await hub.health())["status"] == "unhealthy"
        gate.set()
        assert (await hub.health())["status"] == "healthy"


async def test_the_log_of_a_broker_in_trouble_is_under_the_name_of_the_package(node, broker, caplog):
    caplog.set_level(logging.WARNING, "asgi_ws")
    broker.errors["unsubscribe"] = Unavailable("away")
    node.leave(await listen(node))
    await node.settle()
    assert {record.name.split(".")[0] for record in caplog.records} == {"asgi_ws"}
