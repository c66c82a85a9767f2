"""Clients that are too slow, by the policy of each channel: what they miss, what they are told, what it costs."""

import asyncio
import contextlib
import gc
import logging
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest

from asgi_ws import Hub, Session, SettingsError, Snapshot
from asgi_ws import topic as topics
from asgi_ws.codecs import JSON
from asgi_ws.node import STRETCH
from asgi_ws.outbox import Batch, Outbox
from asgi_ws.publication import Position
from tests.fakes import Client, turns, until
from tests.servers import DEADLINE, eventually, serve
from tests.test_hostile import Raw
from tests.test_protocol import app_of

pytestmark = pytest.mark.anyio

LONG = {"history": 10_000, "history_channel_bytes": "64MiB", "heartbeat": 1000}


@contextlib.asynccontextmanager
async def running(channel: dict[str, Any], **settings: Any) -> AsyncIterator[Hub]:
    hub = Hub(broadcaster="memory://?workers=allow", **{**LONG, **settings})
    hub.channel("room", public=True, **channel)
    hub.channel("other", public=True, **channel)
    async with hub:
        yield hub


async def publish(hub: Hub, *numbers: int, event: str = "tick", channel: str = "room") -> None:
    """Each in a turn of its own."""
    for number in numbers:
        await hub.publish(channel, event, number)
        await turns(3)


async def begun(client: Client) -> None:
    await client.receive("welcome")
    for _ in range(2):
        await client.receive("subscribed")


async def heard_until(client: Client, last: Any) -> list[dict[str, Any]]:
    """Every message up to the event with this data."""
    messages = []
    while not messages or messages[-1].get("data") != last:
        messages.append(await client.receive("event", "gap", "position"))
    return messages


def numbers(messages: list[dict[str, Any]]) -> list[int]:
    return [message["data"] for message in messages if message["type"] == "event"]


class TestResync:
    async def test_a_client_that_reads_again_has_every_event_once_and_in_order(self):
        async with running({}, outbox_messages=20) as hub, Client(hub, channels=["room"]) as client:
            await begun(client)
            client.pause()
            await publish(hub, *range(1000))
            session = next(iter(hub._lifecycle.run.sessions.values()))
            assert [lagging.channel for lagging in session.lagging] == ["room"]
            client.resume()
            messages = await heard_until(client, 999)
            assert numbers(messages) == list(range(1000))
            assert [message["offset"] for message in messages] == list(range(1, 1001))
            await publish(hub, 1000, 1001)
            assert await client.events(2) == [1000, 1001]
            stats = hub.stats()
            assert (stats["slow_clients"], stats["events_dropped"]) == (1, 0)

    async def test_what_is_published_while_it_catches_up_follows_without_a_seam(self):
        async with running({}, outbox_messages=20) as hub, Client(hub, channels=["room"]) as client:
            await begun(client)
            client.pause()
            await publish(hub, *range(500))
            client.resume()
            publishing = asyncio.get_running_loop().create_task(publish(hub, *range(500, 1500)))
            assert numbers(await heard_until(client, 1499)) == list(range(1500))
            await publishing

    async def test_what_history_no_longer_has_is_one_gap(self):
        async with running({"history": 50}, outbox_messages=20) as hub:
            async with Client(hub, channels=["room"]) as client:
                await begun(client)
                client.pause()
                await publish(hub, *range(300))
                client.resume()
                await until(lambda: not hub._lifecycle.run.sessions or client._outgoing.qsize() > 15)
                await turns(50)
                await publish(hub, 300)
                messages = await heard_until(client, 300)
                assert [m["type"] for m in messages].count("gap") == 1
                before = numbers(messages)[:-1]
                assert before == list(range(len(before)))
                gap = next(m for m in messages if m["type"] == "gap")
                assert (gap["offset"], messages.index(gap)) == (300, len(before))

    @pytest.mark.parametrize("exact", [False, True])
    async def test_a_gap_has_the_channels_state_where_it_has_one(self, exact):
        async with running({"history": 50}, outbox_messages=20) as hub:
            stock = hub.channel("stock", public=True, history=50)
            sold = 0

            @stock.snapshot
            async def state(session: Session) -> Any:
                position = Position(epoch, sold)
                await asyncio.sleep(0)
                await publish_one()  # meanwhile
                return Snapshot({"sold": sold - 1}, position) if exact else {"sold": sold}

            async def publish_one() -> None:
                nonlocal sold
                sold += 1
                await hub.publish("stock", "sale", sold)

            epoch = (await hub.publish("stock", "sale", 0, key="first")).epoch
            sold = 1
            async with Client(hub) as client:
                await client.receive("welcome")
                answer = await client.subscribe("stock")
                assert answer["data"] == {"sold": answer["offset"] if exact else answer["offset"] + 1}
                client.pause()
                for _ in range(300):
                    await publish_one()
                    await turns(3)
                client.resume()
                while (gap := await client.receive("event", "gap"))["type"] == "event":
                    pass
                assert gap["data"]["sold"] == gap["offset"] + (0 if exact else 1)
                # What was published meanwhile follows; with an exact position nothing twice.
                assert (await client.receive("event"))["offset"] == gap["offset"] + 1

    async def test_a_snapshot_that_fails_leaves_the_gap_without_one(self, caplog):
        async with running({"history": 50}, outbox_messages=20) as hub:
            stock = hub.channel("stock", public=True, history=50)
            fine = True

            @stock.snapshot
            async def state(session: Session) -> Any:
                if not fine:
                    raise ValueError("no")
                return 1

            async with Client(hub) as client:
                await client.receive("welcome")
                await client.subscribe("stock")
                fine = False
                client.pause()
                await publish(hub, *range(300), channel="stock")
                client.resume()
                gap = await client.receive("gap")
                assert (gap["offset"], "data" in gap) == (300, False)
                await publish(hub, 300, channel="stock")
                assert numbers(await heard_until(client, 300))[-1] == 300
        assert "the snapshot of channel 'stock' failed" in caplog.text

    async def test_without_history_the_session_ends(self):
        async with running({"history": 0}, outbox_messages=20) as hub:
            async with Client(hub, channels=["room"]) as client:
                await begun(client)
                client.pause()
                await publish(hub, *range(50))
                client.resume()
                assert (await client.receive("disconnect"))["code"] == 4102
                assert hub.stats()["disconnects"] in ({}, {"4102": 1})

    async def test_several_channels_each_find_their_own_place(self):
        async with running({}, outbox_messages=20) as hub:
            async with Client(hub, channels=["room", "other"]) as client:
                await client.receive("welcome")
                client.pause()
                for number in range(400):
                    await publish(hub, number)
                    await publish(hub, number, channel="other")
                client.resume()
                found: dict[str, list[int]] = {"room": [], "other": []}
                while len(found["room"]) + len(found["other"]) < 800:
                    message = await client.receive("event", "gap")
                    found[message["channel"]].append(message["data"])
                assert found == {"room": list(range(400)), "other": list(range(400))}
                assert hub.stats()["slow_clients"] == 1

    async def test_replies_get_through_while_it_lags(self):
        async with running({}, outbox_messages=20) as hub, Client(hub, channels=["room"]) as client:
            await begun(client)
            client.pause()
            await publish(hub, *range(200))
            client.send(type="ping", ref=7)
            await turns(20)
            client.resume()
            while (message := await client.receive())["type"] != "pong":
                pass
            assert message["ref"] == 7
            assert numbers(await heard_until(client, 199))[-1] == 199

    async def test_who_leaves_the_channel_meanwhile_hears_no_more_of_it(self):
        async with running({}, outbox_messages=20) as hub, Client(hub, channels=["room"]) as client:
            await begun(client)
            client.pause()
            await publish(hub, *range(200))
            client.send(type="unsubscribe", channel="room", ref=1)
            await turns(20)
            client.resume()
            while (message := await client.receive())["type"] != "unsubscribed":
                assert message["type"] == "event"
            await publish(hub, 200)
            await hub.broadcast("tick", "last")
            assert (await client.receive("event"))["data"] == "last"
            topic = hub._lifecycle.run.node.fanout.topics
            assert "room" not in topic

    async def test_who_goes_meanwhile_leaves_nothing_behind(self):
        async with running({}, outbox_messages=20) as hub:
            async with Client(hub, channels=["room"]) as client:
                await begun(client)
                client.pause()
                await publish(hub, *range(200))
            run = hub._lifecycle.run
            await until(lambda: not run.sessions)
            assert run.node.fanout.topics == {}
            assert repr(run.catch_up) == "<CatchUp 0 ready, 0 being fed>"

    async def test_an_excluded_event_among_those_missed_moves_the_position(self):
        async with running({}, outbox_messages=20) as hub, Client(hub, channels=["room"]) as client:
            session = (await client.receive("welcome"))["session"]
            client.pause()
            await publish(hub, *range(100))
            await hub.publish("room", "tick", "own", exclude=session)
            await publish(hub, 100)
            client.resume()
            messages = await heard_until(client, 100)
            assert numbers(messages) == list(range(101))
            assert [m["offset"] for m in messages if m["type"] == "position"] == [101]

    @pytest.mark.parametrize("extra", [-1, 0, 1])
    async def test_a_replay_is_fed_as_the_client_reads(self, extra):
        count = 3 * STRETCH + extra
        async with running({}) as hub:
            await publish(hub, *range(count))
            async with Client(hub) as client:
                await client.receive("welcome")
                answer = await client.subscribe("room", offset=0)
                assert answer["offset"] == 0
                client.pause()
                await turns(50)
                session = next(iter(hub._lifecycle.run.sessions.values()))
                assert len(session.next or ()) <= STRETCH
                client.resume()
                publishing = asyncio.get_running_loop().create_task(publish(hub, count, count + 1))
                assert numbers(await heard_until(client, count + 1)) == list(range(count + 2))
                await publishing

    async def test_large_events_are_fed_a_few_at_a_time(self):
        async with running({}, history_bytes="64MiB") as hub:
            for number in range(40):
                await hub.publish("room", "tick", [number, "x" * 60_000])
            async with Client(hub) as client:
                await client.receive("welcome")
                await client.subscribe("room", offset=0)
                session = next(iter(hub._lifecycle.run.sessions.values()))
                client.pause()
                await turns(20)
                assert session._outbox._size < 300_000
                client.resume()
                assert [n for n, _ in await client.events(40)] == list(range(40))


class TestPoliciesWithoutHistory:
    async def test_drop_newest_is_one_gap_with_the_number_of_events(self):
        async with running({"slow": "drop_newest"}, outbox_messages=20) as hub:
            async with Client(hub, channels=["room"]) as client:
                await begun(client)
                client.pause()
                await publish(hub, *range(100))
                client.resume()
                await client_is_through(hub)
                await publish(hub, 100)
                messages = await heard_until(client, 100)
                gap = next(m for m in messages if m["type"] == "gap")
                kept = numbers(messages)[:-1]
                assert kept == list(range(len(kept)))
                assert (gap["dropped"], gap["offset"]) == (100 - len(kept), 100)
                assert [m["type"] for m in messages].count("gap") == 1
                stats = hub.stats()
                assert (stats["slow_clients"], stats["events_dropped"]) == (1, 100 - len(kept))

    @pytest.mark.parametrize("history", [0, 1000])
    async def test_drop_oldest_keeps_the_newest_and_says_what_went(self, history):
        async with running({"slow": "drop_oldest", "history": history}, outbox_messages=20) as hub:
            async with Client(hub, channels=["room"]) as client:
                await begun(client)
                client.pause()
                await publish(hub, *range(100))
                client.resume()
                messages = await heard_until(client, 99)
                assert [m["type"] for m in messages].count("gap") == 1
                at = next(i for i, m in enumerate(messages) if m["type"] == "gap")
                after = numbers(messages[at:])
                assert after == list(range(100 - len(after), 100))
                assert messages[at]["dropped"] == 100 - at - len(after)
                if history:
                    assert messages[at]["offset"] == messages[at + 1]["offset"] - 1
                else:
                    assert "offset" not in messages[at]
                await publish(hub, 100)
                assert await client.events(1) == [100]
                stats = hub.stats()
                assert (stats["slow_clients"], stats["events_dropped"]) == (1, messages[at]["dropped"])

    async def test_drop_oldest_that_finds_nothing_of_its_own_drops_the_newest(self):
        async with running({"slow": "drop_oldest"}, outbox_messages=20) as hub:
            async with Client(hub, channels=["room", "other"]) as client:
                await client.receive("welcome")
                client.pause()
                await publish(hub, *range(16), channel="other")
                await publish(hub, *range(5))
                client.resume()
                await client_is_through(hub)
                await publish(hub, 5)
                messages = await heard_until(client, 5)
                while messages[-1].get("channel") != "room":
                    messages += await heard_until(client, 5)
                room = [m for m in messages if m["channel"] == "room"]
                assert [m["type"] for m in room] == ["gap", "event"]
                assert room[0]["dropped"] == 5

    async def test_latest_has_the_newest_of_each_name_and_no_gap(self):
        async with running({"slow": "latest", "history": 0}) as hub:
            async with Client(hub, channels=["room"]) as client:
                await begun(client)
                await publish(hub, 0)
                assert await client.events(1) == [0]
                client.pause()
                await publish(hub, 1)
                for number in range(2, 50):
                    await publish(hub, number, event="tick")
                    await publish(hub, -number, event="tock")
                client.resume()
                assert await client.events(3) == [1, 49, -49]
                await publish(hub, 50)
                assert await client.events(1) == [50]
                assert hub.stats()["events_dropped"] == 47 * 2

    async def test_latest_of_more_names_than_it_can_tell_apart_is_a_gap(self, monkeypatch):
        monkeypatch.setattr(topics, "MAX_NEWEST", 10)
        async with running({"slow": "latest", "history": 0}) as hub:
            async with Client(hub, channels=["room"]) as client:
                await begun(client)
                client.pause()
                await publish(hub, 0)
                for number in range(1, 30):
                    await publish(hub, number, event=f"e{number}")
                client.resume()
                messages = await heard_until(client, 29)
                assert [m["type"] for m in messages] == ["event", "gap", *["event"] * 10]
                assert numbers(messages) == [0, *range(20, 30)]

    async def test_disconnect_ends_the_session(self):
        async with running({"slow": "disconnect"}, outbox_messages=20) as hub:
            async with Client(hub, channels=["room"]) as client:
                await begun(client)
                client.pause()
                await publish(hub, *range(50))
                client.resume()
                assert (await client.receive("disconnect"))["code"] == 4102

    @pytest.mark.parametrize("slow", ["resync", "drop_newest", "latest", "drop_oldest", "disconnect"])
    async def test_who_reads_notices_nothing_of_those_who_do_not(self, slow):
        async with running({"slow": slow}, outbox_messages=20) as hub:
            async with Client(hub, channels=["room"]) as stuck, Client(hub, channels=["room"]) as reader:
                await begun(stuck)
                await begun(reader)
                stuck.pause()
                for number in range(300):
                    await publish(hub, number)
                    assert await reader.events(1) == [number]

    async def test_an_episode_is_logged_once(self, caplog):
        caplog.set_level(logging.WARNING, "asgi_ws")
        async with running({"slow": "drop_oldest"}, outbox_messages=20) as hub:
            async with Client(hub, channels=["room"]) as client:
                await begun(client)
                for _ in range(2):
                    client.pause()
                    await publish(hub, *range(100))
                    client.resume()
                    await heard_until(client, 99)
                    await client_is_through(hub)
        messages = [record.getMessage() for record in caplog.records]
        assert len(messages) == 2
        assert all("is too slow for channel 'room': drop_oldest" in message for message in messages)

    async def test_the_setting_is_for_those_that_say_nothing(self):
        async with running({}, slow="disconnect", outbox_messages=20) as hub:
            async with Client(hub, channels=["room"]) as client:
                await begun(client)
                client.pause()
                await publish(hub, *range(50))
                client.resume()
                assert (await client.receive("disconnect"))["code"] == 4102

    def test_any_other_policy_is_refused(self):
        hub = Hub()
        with pytest.raises(ValueError, match="expected slow to be resync, .*, got 'never'"):
            hub.channel("room", public=True, slow="never")
        with pytest.raises(SettingsError, match="slow: expected resync or .*, got 'never'"):
            Hub(slow="never")


async def client_is_through(hub: Hub) -> None:
    """Until all sessions have written all they had, and lag no more."""
    sessions = hub._lifecycle.run.sessions.values()
    await until(lambda: all(s.idle and not s.lagging for s in sessions))
    topics = hub._lifecycle.run.node.fanout.topics.values()
    await until(lambda: not any(topic.lagging for topic in topics))


class TestOutbox:
    def batch(self, channel: str, count: int = 1, offset: int = 0, dropped: int = 0) -> Batch:
        position = Position("e", offset) if offset else None
        return Batch(JSON, [b"x"] * count, count, channel=channel, position=position, dropped=dropped)

    def test_the_oldest_of_one_channel_go_until_the_batch_fits(self):
        outbox = Outbox(12, 10**6)
        for offset, channel in enumerate("aabab", 1):
            assert outbox.put(self.batch(channel, offset=offset))
        dropped = outbox.drop_oldest(self.batch("a", 5))
        assert [(old.channel, old.position.offset) for old in dropped] == [("a", 2)]
        outbox.put_before_channel(self.batch("a", 0, offset=2, dropped=1))
        assert [(b.channel, b.dropped) for b in outbox.batches] == [
            ("a", 0), ("b", 0), ("a", 1), ("a", 0), ("b", 0),
        ]  # fmt: skip

    def test_the_first_stays_for_it_may_be_half_written(self):
        outbox = Outbox(4, 10**6)
        outbox.put(self.batch("a", 3))
        assert outbox.drop_oldest(self.batch("a", 3)) == []

    def test_one_that_is_alone_waits_behind_no_other(self):
        outbox = Outbox(100, 10**6)
        alone = Batch(JSON, [b"x"], 1, channel="a", alone=True)
        assert outbox.put(alone)
        assert not outbox.put(alone)


STUCK = {"outbox_bytes": "256KiB", "outbox_messages": 100, "send_timeout": 60}


class Stuck(Raw):
    """A client with a small receive buffer, that reads message by message, and only when it is told to."""

    def __init__(self, served: Any) -> None:
        super().__init__(served, "/ws/stream?channel=room", receive_buffer=4096)

    def read(self) -> dict[str, Any]:
        while not self.messages:
            assert self._read(), "the connection has ended"
        return self.messages.pop(0)


@pytest.mark.parametrize("server", ["fast", "uvicorn"])
@pytest.mark.parametrize("history", [100_000, 500])
async def test_over_a_socket_that_nobody_reads_for_a_while(server, history):
    """Real sockets: the transport pauses, the outbox fills, memory stays flat, and nothing is lost in silence."""
    hub = Hub(**{**LONG, **STUCK, "history_bytes": "256MiB", "history_channel_bytes": "256MiB"})
    hub.channel("room", public=True, history=history)
    count, pad = 5000, "x" * 8192

    async def flood() -> None:
        for number in range(count):
            await hub.publish("room", "tick", [number, pad])
            if number % 20 == 0:
                await asyncio.sleep(0)

    with serve(app_of(hub), server) as served, Stuck(served) as raw:
        assert [raw.read()["type"] for _ in range(3)] == ["welcome", "subscribed", "subscribed"]
        run = hub._lifecycle.run
        loop = hub._lifecycle.loop
        process = psutil.Process()
        await asyncio.to_thread(asyncio.run_coroutine_threadsafe(flood(), loop).result, DEADLINE)
        session = next(iter(run.sessions.values()))
        await eventually(lambda: session.lagging)
        assert session.next is not None  # it waits for the client, and holds no more than its bound
        assert session._outbox._size <= 2 * 256 * 1024
        stats = hub.stats()
        assert (stats["slow_clients"], stats["events_dropped"]) == (1, 0)
        gc.collect()
        before = process.memory_info().rss

        def read_all() -> list[dict[str, Any]]:
            messages: list[dict[str, Any]] = []
            while not messages or messages[-1]["type"] != "end":
                message = raw.read()
                if message["type"] == "event":
                    message = {"type": message["event"], "n": message["data"][0]}
                messages.append(message)
                if message.get("n") == count - 1 or message["type"] == "gap":
                    asyncio.run_coroutine_threadsafe(hub.publish("room", "end", [-1]), loop).result(DEADLINE)
            return messages

        messages = await asyncio.to_thread(read_all)
        heard = [m["n"] for m in messages if m["type"] == "tick"]
        gaps = [m for m in messages if m["type"] == "gap"]
        assert heard == list(range(len(heard)))
        if history > count:
            assert (len(heard), gaps) == (count, [])
        else:
            assert len(gaps) == 1
            assert gaps[0]["offset"] == count
        assert process.memory_info().rss - before < 16e6
