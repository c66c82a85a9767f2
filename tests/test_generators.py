"""Sources that run: one generator for each name, started by the first who watches, stopped after the last."""

import asyncio
import contextvars
import logging
import random
from collections import Counter
from contextlib import AsyncExitStack
from typing import Literal

import pytest

from asgi_ws import Forbidden, Hub, Router, Session, generators
from tests.fakes import DEADLINE, Client, FakeBroker, turns, until
from tests.servers import eventually, receive, send, serve, welcomed
from tests.servers import until as until_in_thread

pytestmark = pytest.mark.anyio


class Rig:
    """A hub with sources whose generators do as they are told, and are counted."""

    def __init__(self, **settings):
        self.hub = Hub(**settings)
        self.started = Counter()
        self.stopped = Counter()
        self.running = Counter()
        self.most = 0
        self.closing = asyncio.Event()  # what a `finally` waits for
        self.closing.set()
        self.queue = asyncio.Queue()

        @self.hub.source("power", max_instances=2)
        async def power(module: int, interval: float = 0.1):
            async with self.counted(module):
                while True:
                    item = await self.queue.get()
                    if isinstance(item, BaseException):
                        raise item
                    if item is StopAsyncIteration:
                        return
                    yield item

        self.power = power

    def counted(self, module):
        return _Counted(self, module)

    async def __aenter__(self):
        await self.hub.__aenter__()
        return self

    async def __aexit__(self, *_):
        self.closing.set()
        await self.hub.__aexit__()

    async def active(self):
        return (await self.hub.status())["active_sources"]

    async def until_active(self, count):
        async with asyncio.timeout(DEADLINE):
            while await self.active() != count:
                await asyncio.sleep(0)


class _Counted:
    """Counts how often a generator is started, stopped, and runs beside itself."""

    def __init__(self, rig, module):
        self.rig, self.module = rig, module

    async def __aenter__(self):
        self.rig.started[self.module] += 1
        self.rig.running[self.module] += 1
        self.rig.most = max(self.rig.most, self.rig.running[self.module])

    async def __aexit__(self, *_):
        try:
            await self.rig.closing.wait()
        finally:
            self.rig.running[self.module] -= 1
            self.rig.stopped[self.module] += 1


@pytest.fixture
async def rig():
    async with Rig(command_timeout=2.0) as made:
        yield made


async def until_told(topics):
    """Wait, turn by turn, until the first of a hundred watchers is told that it is over."""
    while len(topics[FULL]) == 100:
        await asyncio.sleep(0)


FULL = "power?interval=0.1&module=4"


async def next_of(client, *types):
    message = await client.receive(*types)
    message.pop("time", None)
    return message


class TestWatching:
    async def test_a_shorter_name_is_completed_and_events_follow_without_positions(self, rig):
        async with Client(rig.hub) as client:
            client.send(type="subscribe", ref=1, channel="power?module=4")
            while (answer := await next_of(client, "subscribed", "error"))["channel"] == "broadcast":
                pass
            assert answer == {"type": "subscribed", "ref": 1, "channel": FULL}
            rig.queue.put_nowait({"watts": 1.5})
            assert await next_of(client) == {
                "type": "event",
                "channel": FULL,
                "event": "power",
                "data": {"watts": 1.5},
            }
            client.send(type="unsubscribe", ref=2, channel="power?module=04")
            assert await next_of(client, "unsubscribed") == {
                "type": "unsubscribed",
                "ref": 2,
                "channel": FULL,
                "code": "client",
                "resubscribe": False,
            }
            await rig.until_active(0)
        assert (rig.started, rig.stopped) == (Counter({4: 1}), Counter({4: 1}))

    async def test_however_many_watch_there_is_one_generator(self, rig):
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(Client(rig.hub)) for _ in range(20)]
            names = [
                "power?module=4",
                "power?interval=0.1&module=4",
                "power?module=4&interval=1e-1",
                "power?module=04",
            ]
            for number, client in enumerate(clients):
                assert (await client.subscribe(names[number % 4]))["channel"] == FULL
            rig.queue.put_nowait(1)
            assert [await client.events(1) for client in clients] == [[1]] * 20
            assert rig.started == Counter({4: 1})
            for client in clients[1:]:
                client.leave()
                await client.ended()
            rig.queue.put_nowait(2)
            assert await clients[0].events(1) == [2]
            assert await rig.active() == 1
        await rig.until_active(0)
        assert rig.stopped == Counter({4: 1})

    async def test_different_parameters_are_different_generators(self, rig):
        async with Client(rig.hub) as client:
            await client.subscribe("power?module=4")
            await client.subscribe("power?module=5")
            await until(lambda: rig.started == Counter({4: 1, 5: 1}))
            assert await rig.active() == 2
            status = await rig.hub.status()
            assert status["channels"] == status["subscriptions"] == 3
        await rig.until_active(0)

    async def test_the_url_may_ask_for_one(self, rig):
        async with Client(rig.hub, channels=["power?module=4", FULL]) as client:
            answers = [await next_of(client, "subscribed", "error") for _ in range(3)]
            by_type = {(one["type"], one["channel"]) for one in answers}
            assert by_type == {("subscribed", "broadcast"), ("subscribed", FULL), ("error", FULL)}
            error = next(one for one in answers if one["type"] == "error")
            assert error["code"] == "already_subscribed"

    async def test_an_event_may_be_called_otherwise_and_be_binary(self, rig):
        from asgi_ws import Binary

        @rig.hub.source("camera", event="frame")
        async def camera():
            yield Binary(b"\x89PNG")

        async with Client(rig.hub) as client:
            await client.subscribe("camera")
            event = await next_of(client, "event")
            assert (event["event"], event["data"], event["binary"]) == ("frame", "iVBORw==", True)

    async def test_a_resume_is_not_recovered_and_the_rest_is_as_without_one(self, rig):
        async with Client(rig.hub) as client:
            answer = await client.subscribe("power?module=4", epoch="e", offset=5)
            assert answer["recovered"] is False
            answer = await client.subscribe("power?module=5", offset=0)
            assert "recovered" not in answer
            assert "offset" not in answer

    @pytest.mark.parametrize(
        ("channel", "words"),
        [
            ("power", "expected parameter 'module' of source 'power' to be an integer, got none"),
            ("power?module=x", "expected parameter 'module' of source 'power' to be an integer, got 'x'"),
            (
                "power?module=4&modul=5",
                "expected a parameter of source 'power' (interval, module), got 'modul'",
            ),
            ("power?module=4\0", "expected a channel name of 1 to 255 bytes"),
        ],
    )
    async def test_wrong_parameters_are_a_bad_request_with_the_name_as_it_was_asked(
        self, rig, channel, words
    ):
        async with Client(rig.hub) as client:
            for request in ("subscribe", "unsubscribe"):
                client.send(type=request, ref=9, channel=channel)
                error = await client.receive("error")
                assert (error["code"], error["ref"], error["channel"]) == ("bad_request", 9, channel)
                assert words in error["message"]
        assert rig.started == Counter()

    async def test_what_is_not_watched_cannot_be_left(self, rig):
        async with Client(rig.hub) as client:
            client.send(type="unsubscribe", ref=9, channel="power?module=4")
            assert (await client.receive("error"))["code"] == "not_found"

    @pytest.mark.parametrize(
        "request_", [{"type": "publish", "event": "power", "data": 1}, {"type": "history"}]
    )
    async def test_who_watches_can_neither_publish_nor_look_back(self, rig, request_):
        async with Client(rig.hub) as client:
            await client.subscribe("power?module=4")
            client.send(ref=9, channel=FULL, **request_)
            error = await client.receive("error", "event")
            assert (error["ref"], error["code"]) == (9, "not_found")

    async def test_twice_is_already_subscribed_whatever_the_spelling(self, rig):
        async with Client(rig.hub) as client:
            await client.subscribe("power?module=4")
            assert (await client.subscribe("power?module=04"))["code"] == "already_subscribed"
            assert await rig.active() == 1

    async def test_it_counts_for_max_subscriptions(self):
        async with Rig(max_subscriptions=2) as rig, Client(rig.hub) as client:
            await client.subscribe("power?module=4")
            assert (await client.subscribe("power?module=5"))["code"] == "limit_exceeded"
            assert rig.started[5] == 0

    async def test_a_source_of_a_router_that_is_declared_while_it_runs(self, rig):
        router = Router()
        rig.hub.include_router(router)

        @router.source("late")
        async def late():
            yield 1

        async with Client(rig.hub) as client:
            assert (await client.subscribe("late"))["type"] == "subscribed"
            assert await client.events(1) == [1]

    async def test_with_a_broadcaster_between_nodes_nothing_of_it_leaves_the_node(self):
        broker = FakeBroker()
        async with Rig(broadcaster=broker) as rig:
            async with Client(rig.hub) as client:
                await client.subscribe("power?module=4")
                rig.queue.put_nowait(1)
                assert await client.events(1) == [1]
            await rig.until_active(0)
            async with Client(rig.hub) as client:  # and again, on what is left of its topic
                await client.subscribe("power?module=4")
                rig.queue.put_nowait(2)
                assert await client.events(1) == [2]
            await rig.until_active(0)
        assert {channel for _, channel in broker.calls} <= {"", "broadcast"}
        assert rig.hub._lifecycle.run is None

    async def test_what_it_yields_is_counted(self, rig):
        async with Client(rig.hub) as client:
            await client.subscribe("power?module=4")
            before = rig.hub.stats()["events_emitted"]
            rig.queue.put_nowait(1)
            await client.events(1)
            stats = rig.hub.stats()
            assert stats["events_emitted"] == before + 1
            assert stats["broadcaster"] == {"published": 0, "received": 0, "gaps": 0}

    async def test_it_works_on_nobodys_behalf(self, rig):
        who = contextvars.ContextVar("who", default="nobody")
        heard = []

        @rig.hub.source("context")
        async def context():
            heard.append(who.get())
            yield 1

        who.set("the first")
        async with Client(rig.hub) as client:
            await client.subscribe("context")
            await client.events(1)
        assert heard == ["nobody"]


class TestLimit:
    async def test_over_max_instances_is_limit_exceeded_and_room_is_made_by_the_last_who_goes(self, rig):
        async with Client(rig.hub) as client:
            for module in (1, 2):
                await client.subscribe(f"power?module={module}")
            error = await client.subscribe("power?module=3")
            assert error["code"] == "limit_exceeded"
            assert error["message"] == (
                "expected at most 2 of source 'power' to run (max_instances), got one more"
            )
            assert (await client.subscribe("power?module=3"))[
                "code"
            ] == "limit_exceeded"  # nothing is left of it
            async with Client(rig.hub) as other:  # to join one that runs there is no limit
                assert (await other.subscribe("power?module=1"))["type"] == "subscribed"
            # One request right behind the other: the generator that makes room has not stopped yet.
            client.send(type="unsubscribe", channel="power?module=2")
            assert (await client.subscribe("power?module=3"))["type"] == "subscribed"
        assert rig.started == Counter({1: 1, 2: 1, 3: 1})
        await rig.until_active(0)

    async def test_one_that_is_stopping_still_counts(self, rig):
        rig.closing.clear()
        async with Client(rig.hub) as client:
            for module in (1, 2):
                await client.subscribe(f"power?module={module}")
            await until(lambda: rig.started.total() == 2)
            client.send(type="unsubscribe", channel="power?module=2")
            await client.receive("unsubscribed")
            client.send(type="subscribe", ref=3, channel="power?module=3")
            await turns()
            assert rig.started[3] == 0
            assert await rig.active() == 2
            rig.closing.set()
            assert (await client.receive("subscribed"))["channel"] == "power?interval=0.1&module=3"

    async def test_two_who_wait_for_one_place_share_it_or_one_is_refused(self, rig):
        rig.closing.clear()
        async with Client(rig.hub) as client, Client(rig.hub) as same, Client(rig.hub) as other:
            for module in (1, 2):
                await client.subscribe(f"power?module={module}")
            await until(lambda: rig.started.total() == 2)
            client.send(type="unsubscribe", channel="power?module=2")
            await client.receive("unsubscribed")
            for one, module in ((client, 3), (same, 3), (other, 4)):
                one.send(type="subscribe", ref=module, channel=f"power?module={module}")
            await turns(10)
            rig.closing.set()
            assert (await client.receive("subscribed"))["ref"] == 3
            while (await same.receive("subscribed")).get("ref") != 3:
                pass
            assert (await other.receive("error"))["code"] == "limit_exceeded"
        assert rig.started[3] == 1


class TestRight:
    async def test_it_is_asked_for_each_session_before_the_generator_is_started_or_joined(self, rig):
        asked = []

        @rig.power.subscribe_right
        async def may(session: Session, module: int):
            asked.append((session.id, module, rig.started[module]))
            if module == 5:
                raise Forbidden("expected module 4, got another")

        async with Client(rig.hub) as one, Client(rig.hub) as two:
            ids = [(await client.receive("welcome"))["session"] for client in (one, two)]
            await one.subscribe("power?module=4")
            rig.queue.put_nowait(1)
            await one.events(1)
            await two.subscribe("power?module=4")
            error = await two.subscribe("power?module=5")
            assert (error["code"], error["message"]) == ("forbidden", "expected module 4, got another")
        assert asked == [(ids[0], 4, 0), (ids[1], 4, 1), (ids[1], 5, 0)]
        assert rig.started == Counter({4: 1})

    async def test_what_it_raises_else_is_internal(self, rig, caplog):
        @rig.power.subscribe_right
        async def may():
            raise KeyError("secret")

        async with Client(rig.hub) as client:
            error = await client.subscribe("power?module=4")
        assert error["code"] == "internal"
        assert "secret" not in error["message"]
        assert "secret" in caplog.text

    async def test_what_takes_longer_than_it_may_is_a_timeout(self):
        async with Rig(command_timeout=0.01) as rig:

            @rig.power.subscribe_right
            async def may():
                await asyncio.Event().wait()

            async with Client(rig.hub) as client:
                assert (await client.subscribe("power?module=4"))["code"] == "timeout"
        assert rig.started == Counter()

    @pytest.mark.parametrize("swallows", [False, True])
    async def test_a_session_that_goes_meanwhile_starts_nothing(self, rig, swallows):
        asked, gone = asyncio.Event(), asyncio.Event()

        @rig.power.subscribe_right
        async def may():
            asked.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                gone.set()
                if not swallows:
                    raise

        async with Client(rig.hub) as client:
            client.send(type="subscribe", channel="power?module=4")
            await asked.wait()
        await gone.wait()
        await turns()
        assert rig.started == Counter()
        assert await rig.active() == 0
        assert not (await rig.hub.status())["channels"]

    async def test_a_session_that_goes_while_it_waits_for_the_one_before_starts_nothing(self, rig):
        rig.closing.clear()
        async with Client(rig.hub) as client:
            await client.subscribe("power?module=4")
            await until(lambda: rig.started[4])
        async with Client(rig.hub) as client:
            client.send(type="subscribe", channel="power?module=4")
            await client.receive("subscribed")
            await turns()
        rig.closing.set()
        await rig.until_active(0)
        await turns()
        assert rig.started == Counter({4: 1})

    async def test_an_unsubscribe_that_overtakes_is_answered_after_the_subscribe(self, rig):
        go = asyncio.Event()

        @rig.power.subscribe_right
        async def may():
            await go.wait()

        async with Client(rig.hub) as client:
            await client.receive("subscribed")
            client.send(type="subscribe", ref=1, channel="power?module=4")
            client.send(type="unsubscribe", ref=2, channel=FULL)
            client.send(type="subscribe", ref=3, channel="power?module=04")
            await turns()
            go.set()
            answers = [await next_of(client) for _ in range(3)]
            assert [(answer["type"], answer["ref"], answer["channel"]) for answer in answers] == [
                ("subscribed", 1, FULL),
                ("unsubscribed", 2, FULL),
                ("subscribed", 3, FULL),
            ]
            rig.queue.put_nowait("here")
            assert await client.events(1) == ["here"]
        await rig.until_active(0)


class TestEnds:
    async def test_a_normal_end_is_said_after_the_last_event_and_the_next_subscribe_starts_anew(self, rig):
        async with Client(rig.hub) as one, Client(rig.hub) as two:
            for client in (one, two):
                await client.subscribe("power?module=4")
            rig.queue.put_nowait("last")
            rig.queue.put_nowait(StopAsyncIteration)
            for client in (one, two):
                assert (await next_of(client))["data"] == "last"
                assert await next_of(client) == {
                    "type": "unsubscribed",
                    "channel": FULL,
                    "code": "ended",
                    "message": "the source has ended",
                    "resubscribe": False,
                }
            await rig.until_active(0)
            assert (await one.subscribe("power?module=4"))["type"] == "subscribed"
            rig.queue.put_nowait("anew")
            assert await one.events(1) == ["anew"]
        assert rig.started == Counter({4: 2})
        assert rig.most == 1

    @pytest.mark.parametrize(
        "error", [ValueError("secret"), asyncio.CancelledError(), TimeoutError(), StopIteration(7)]
    )
    async def test_an_exception_is_failed_and_logged_once_and_nothing_of_it_is_told(self, rig, caplog, error):
        async with Client(rig.hub) as one, Client(rig.hub) as two:
            for client in (one, two):
                await client.subscribe("power?module=4")
            rig.queue.put_nowait(error)
            for client in (one, two):
                message = await next_of(client)
                assert (message["type"], message["code"], message["resubscribe"]) == (
                    "unsubscribed",
                    "failed",
                    True,
                )
                assert "secret" not in message["message"]
            await rig.until_active(0)
            assert (await two.subscribe("power?module=4"))["type"] == "subscribed"
            await rig.until_active(1)
        records = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert [record.getMessage() for record in records] == [f"source {FULL!r} failed"]
        assert records[0].exc_info is not None
        assert rig.stopped == Counter({4: 2})

    @pytest.mark.parametrize("item", [object(), "x" * 300, {1: object()}])
    async def test_what_cannot_be_encoded_or_is_too_large_fails_it_too(self, caplog, item):
        async with Rig(max_event_bytes=100) as rig, Client(rig.hub) as client:
            await client.subscribe("power?module=4")
            rig.queue.put_nowait(item)
            assert (await client.receive("unsubscribed"))["code"] == "failed"
            await rig.until_active(0)
            assert rig.stopped == Counter({4: 1})
        assert caplog.text.count(f"source {FULL!r} failed") == 1

    async def test_who_leaves_while_the_others_are_told_and_who_comes_back_at_once(self, rig, monkeypatch):
        monkeypatch.setattr(generators, "_SHARE", 1)  # the loop has its turn after each who is told
        async with AsyncExitStack() as stack:
            *others, last = [await stack.enter_async_context(Client(rig.hub)) for _ in range(100)]
            for client in (*others, last):
                await client.subscribe("power?module=4")
            topics = rig.hub._lifecycle.run.node.fanout.topics
            rig.queue.put_nowait(StopAsyncIteration)
            await until_told(topics)
            # The last leaves before it is told, and asks again: that is for the next generator.
            last.send(type="unsubscribe", ref="u", channel=FULL)
            last.send(type="subscribe", ref="s", channel=FULL)
            answers = [await next_of(last), await next_of(last)]
            assert [(one["type"], one["ref"]) for one in answers] == [
                ("unsubscribed", "u"),
                ("subscribed", "s"),
            ]
            for client in others:
                assert (await next_of(client))["code"] == "ended"
            rig.queue.put_nowait("anew")
            assert await last.events(1) == ["anew"]
        assert rig.started == Counter({4: 2})
        assert rig.most == 1

    async def test_a_session_that_is_gone_before_it_is_told(self, rig, monkeypatch):
        monkeypatch.setattr(generators, "_SHARE", 1)
        async with Client(rig.hub) as one, Client(rig.hub) as two:
            for client in (one, two):
                await client.subscribe("power?module=4")
            rig.queue.put_nowait(StopAsyncIteration)
            two.leave()
            assert (await one.receive("unsubscribed"))["code"] == "ended"
            await two.ended()
        await rig.until_active(0)
        assert await rig.active() == 0


class TestStopping:
    async def test_its_finally_runs_and_none_runs_beside_it(self, rig):
        rig.closing.clear()
        async with Client(rig.hub) as client:
            await client.subscribe("power?module=4")
            await until(lambda: rig.started[4])
            client.send(type="unsubscribe", channel=FULL)
            await client.receive("unsubscribed")
            client.send(type="subscribe", ref=2, channel=FULL)  # it waits for the one before
            assert (await client.subscribe("power?module=5"))["type"] == "subscribed"  # and nobody else does
            assert rig.started[4] == 1
            assert rig.stopped[4] == 0
            rig.closing.set()
            assert (await client.receive("subscribed"))["ref"] == 2
            await until(lambda: rig.started[4] == 2)
        assert rig.most == 1

    async def test_one_that_is_left_before_its_first_step_never_starts(self, rig):
        async with Client(rig.hub) as client:
            client.send(type="subscribe", channel=FULL)
            client.send(type="unsubscribe", channel=FULL)
            await client.receive("unsubscribed")
            await rig.until_active(0)
        assert rig.started == rig.stopped

    async def test_who_comes_while_it_stops_for_too_long_has_a_timeout(self):
        async with Rig(command_timeout=0.05) as rig:
            rig.closing.clear()
            async with Client(rig.hub) as client:
                await client.subscribe("power?module=4")
                await until(lambda: rig.started[4])
                client.send(type="unsubscribe", channel=FULL)
                assert (await client.subscribe("power?module=4"))["code"] == "timeout"
                assert await rig.active() == 1
                rig.closing.set()
                await rig.until_active(0)
                assert (await client.subscribe("power?module=4"))["type"] == "subscribed"

    async def test_one_that_swallows_its_cancellation_is_stopped_at_its_next_item(self, rig):
        stopped = asyncio.Event()

        @rig.hub.source("stubborn")
        async def stubborn():
            try:
                while True:
                    try:
                        await asyncio.sleep(3600)
                    except asyncio.CancelledError:
                        pass
                    yield 1
            finally:
                stopped.set()

        async with Client(rig.hub) as client:
            await client.subscribe("stubborn")
            await turns()
        await stopped.wait()
        await rig.until_active(0)

    async def test_one_that_ends_when_it_is_cancelled_is_no_failure(self, rig, caplog):
        @rig.hub.source("polite")
        async def polite():
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                return
            yield 1

        async with Client(rig.hub) as client:
            await client.subscribe("polite")
            await turns()
        await rig.until_active(0)
        assert not caplog.records

    async def test_one_that_does_not_stop_is_logged_once_and_keeps_its_place(self, rig, caplog, monkeypatch):
        monkeypatch.setattr(generators, "STOP_WAIT", 0.01)
        go = asyncio.Event()

        @rig.hub.source("deaf", max_instances=1)
        async def deaf(n: int = 0):
            while not go.is_set():
                try:
                    await go.wait()
                except asyncio.CancelledError:
                    pass
            yield 1

        async with Client(rig.hub) as client:
            await client.subscribe("deaf")
            await turns()
        await until(lambda: "source 'deaf?n=0' has not stopped after 0.01 s" in caplog.text)
        assert await rig.active() == 1
        go.set()
        await rig.until_active(0)
        assert len(caplog.records) == 1

    @pytest.mark.parametrize("where", ["finally", "yields again"])
    async def test_one_whose_end_fails_is_logged(self, rig, caplog, where):
        @rig.hub.source("bad")
        async def bad():
            try:
                yield 1
                await asyncio.sleep(3600)
            finally:
                if where == "finally":
                    raise ValueError("in its finally")
                try:
                    yield 2
                finally:
                    yield 3

        async with Client(rig.hub) as client:
            await client.subscribe("bad")
            await client.events(1)
            await turns()
        await rig.until_active(0)
        assert "source 'bad' failed" in caplog.text
        assert await rig.active() == 0

    async def test_a_stop_of_the_hub_stops_all_and_waits_for_their_finally(self):
        async with Rig() as rig:
            async with Client(rig.hub) as client:
                for module in (1, 2):
                    await client.subscribe(f"power?module={module}")
                await until(lambda: rig.started.total() == 2)
                run = rig.hub._lifecycle.run
                rig.closing.clear()
                stop = asyncio.get_running_loop().create_task(rig.hub.__aexit__())
                assert (await client.receive("disconnect"))["code"] == 1012
                await until(lambda: not run.sessions)
                await turns(10)
                assert not stop.done()
                assert len(run.generators) == 2
                rig.closing.set()
                await stop
            assert len(run.generators) == 0
            assert rig.stopped == Counter({1: 1, 2: 1})
            await rig.hub.__aenter__()  # and what comes after finds nothing of it
            assert await rig.active() == 0

    async def test_a_stop_of_the_hub_does_not_wait_for_ever(self, caplog, monkeypatch):
        monkeypatch.setattr(generators, "STOP_WAIT", 0.01)
        async with Rig() as rig:
            async with Client(rig.hub) as client:
                await client.subscribe("power?module=4")
                await until(lambda: rig.started[4])
                rig.closing.clear()
            await rig.hub.__aexit__()
            await rig.hub.__aenter__()
        assert f"source {FULL!r} is left behind" in caplog.text
        assert f"source {FULL!r} has not stopped" in caplog.text

    async def test_a_subscribe_that_is_late_finds_the_hub_stopping(self, rig):
        async with Client(rig.hub) as client:
            await client.receive("subscribed")
            run = rig.hub._lifecycle.run
            await run.generators.stop()
            assert (await client.subscribe("power?module=4"))["code"] == "unavailable"
            assert repr(run.generators) == "<Generators 0 running>"

    async def test_its_repr_says_what_it_does(self, rig):
        async with Client(rig.hub) as client:
            await client.subscribe("power?module=4")
            run = rig.hub._lifecycle.run
            generator = run.generators._running[FULL]
            assert repr(generator) == f"<Generator {FULL!r} running>"
            rig.closing.clear()
            await until(lambda: rig.started[4])
            client.send(type="unsubscribe", channel=FULL)
            await client.receive("unsubscribed")
            assert repr(generator) == f"<Generator {FULL!r} leaving>"

    async def test_one_whose_task_somebody_cancels_says_so(self, rig, caplog):
        async with Client(rig.hub) as client:
            await client.subscribe("power?module=4")
            await until(lambda: rig.started[4])
            (task,) = [task for task in asyncio.all_tasks() if task.get_name() == f"source {FULL}"]
            task.cancel()
            assert (await client.receive("unsubscribed"))["code"] == "failed"
            await rig.until_active(0)


class TestLoad:
    async def test_one_that_never_waits_does_not_starve_the_loop(self, rig):
        @rig.hub.source("busy", slow="disconnect")
        async def busy():
            n = 0
            while True:
                n += 1
                yield n

        async with Client(rig.hub) as client, Client(rig.hub) as other:
            await client.subscribe("busy")
            heard = await client.events(2000)
            assert heard == list(range(1, 2001))
            assert (await other.subscribe("power?module=4"))["type"] == "subscribed"
            rig.queue.put_nowait("through")
            assert await other.events(1) == ["through"]
        await rig.until_active(0)

    async def test_a_slow_watcher_does_not_slow_the_source(self, rig):
        async with Client(rig.hub) as slow, Client(rig.hub) as quick:
            for client in (slow, quick):
                await client.subscribe("power?module=4")
            slow.pause()
            for n in range(3000):
                rig.queue.put_nowait([n, "x" * 2000])
            assert [n for n, _ in await quick.events(3000)] == list(range(3000))
            assert rig.started == Counter({4: 1})

    async def test_a_slow_watcher_has_the_newest_when_it_reads_again(self, rig):
        async with Client(rig.hub) as slow, Client(rig.hub) as quick:
            for client in (slow, quick):
                await client.subscribe("power?module=4")
            slow.pause()
            for n in range(200):
                rig.queue.put_nowait(n)
                assert await quick.events(1) == [n]
            slow.resume()
            heard = await slow.events(1)
            while heard[-1] != 199:
                heard += await slow.events(1)
            assert heard == sorted(set(heard))
            assert len(heard) < 10
            assert rig.hub.stats()["slow_clients"] == 1

    @pytest.mark.parametrize(("policy", "then"), [("latest", ["event"]), ("drop_newest", ["gap"])])
    async def test_who_lags_when_it_ends_is_told_what_it_missed_first(self, rig, policy, then):
        go = asyncio.Event()

        @rig.hub.source("brief", slow=policy)
        async def brief():
            await go.wait()
            for n in range(2000):
                yield n
                await asyncio.sleep(0)

        async with Client(rig.hub) as client:
            await client.subscribe("brief")
            client.pause()
            go.set()
            await rig.until_active(0)
            client.resume()
            messages = [await client.receive("event", "gap", "unsubscribed")]
            while messages[-1]["type"] != "unsubscribed":
                messages.append(await client.receive("event", "gap", "unsubscribed"))
            assert [message["type"] for message in messages[-1 - len(then) : -1]] == then
            assert messages[-1]["code"] == "ended"
            if policy == "latest":
                assert messages[-2]["data"] == 1999
            else:
                assert messages[-2]["dropped"] == 2000 - (len(messages) - 2)

    async def test_a_client_too_slow_for_one_that_must_be_heard_whole_is_disconnected(self, rig):
        @rig.hub.source("log", slow="resync")
        async def log():
            for n in range(5000):
                yield n
                await asyncio.sleep(0)

        async with Client(rig.hub) as client:
            await client.subscribe("log")
            client.pause()
            await rig.until_active(0)
            client.resume()
            assert (await client.receive("disconnect"))["code"] == 4102

    async def test_two_hundred_sources_and_ten_thousand_watchers_come_and_go(self, caplog):
        """Sessions come and go at random; no generator is left running, none ran beside itself."""
        sources, watchers, rounds = 200, 10_000, 25
        chance = random.Random(4)
        rig = Rig(max_subscriptions=1000)

        @rig.hub.source("noise", max_instances=sources)
        async def noise(module: int):
            async with rig.counted(module):
                await asyncio.sleep(0)
                for n in range(chance.choice([1, 5, 1_000_000])):
                    yield n
                    await asyncio.sleep(0.05)
                if chance.random() < 0.1:
                    raise ValueError("now and then")

        caplog.set_level(logging.CRITICAL, "asgi_ws")
        async with rig:
            answered = Counter()
            for _ in range(rounds):
                async with AsyncExitStack() as stack:
                    clients = [
                        await stack.enter_async_context(Client(rig.hub)) for _ in range(watchers // rounds)
                    ]
                    for client in clients:
                        client.send(
                            type="subscribe", ref=1, channel=f"noise?module={chance.randrange(sources)}"
                        )
                        if chance.random() < 0.2:
                            client.leave()  # before the answer, as it happens
                            answered["gone"] += 1
                        elif chance.random() < 0.3:
                            answered[await self.answer(client)] += 1
                            client.send(
                                type="unsubscribe", channel=f"noise?module={chance.randrange(sources)}"
                            )
                        else:
                            answered[await self.answer(client)] += 1
            await rig.until_active(0)
            status = await rig.hub.status()
        assert rig.started == rig.stopped
        assert rig.most == 1
        assert rig.running.total() == 0
        assert len(rig.started) == sources
        assert set(answered) == {"subscribed", "gone"}
        assert answered.total() == watchers
        assert (status["active_connections"], status["channels"], status["subscriptions"]) == (0, 0, 0)

    async def answer(self, client):
        """The type of the answer to the subscribe."""
        while (answer := await client.receive()).get("ref") != 1:
            pass
        return answer["type"]


class TestRealServers:
    """As the power meter of the EXFO bench has it: `?module=4&interval=0.1`, and several pages at once."""

    def app(self):
        rig = Rig()

        @rig.hub.source("meter", event="data")
        async def meter(module: int, interval: float = 0.1, unit: Literal["dBm", "W"] = "dBm"):
            async with rig.counted(module):
                n = 0
                while True:
                    yield {"module": module, "power": n, "unit": unit}
                    n += 1
                    await asyncio.sleep(interval)

        from starlette.applications import Starlette

        app = Starlette(lifespan=rig.hub.lifespan)
        app.mount("/ws", rig.hub)
        return rig, app

    @pytest.mark.parametrize("server", ["uvicorn", "fast", "hypercorn"])
    async def test_two_pages_that_watch_one_module_share_its_generator(self, server):
        rig, app = self.app()
        with serve(app, server) as served:
            async with (
                served.connect() as one,
                served.connect("/ws/stream?channel=meter%3Fmodule%3D4%26interval%3D0.01") as two,
            ):
                await welcomed(one)
                await send(one, type="subscribe", ref=1, channel="meter?module=4&interval=0.01")
                answers = [await receive(one, "subscribed"), await self.subscribed_to_meter(two)]
                full = "meter?interval=0.01&module=4&unit=dBm"
                assert [answer["channel"] for answer in answers] == [full, full]
                assert answers[0]["ref"] == 1
                for ws in (one, two):
                    event = await receive(ws, "event")
                    assert (event["channel"], event["event"]) == (full, "data")
                    assert event["data"]["module"] == 4
                    assert "offset" not in event
                assert served.get("/ws/status").json()["active_sources"] == 1
            until_in_thread(lambda: served.get("/ws/status").json()["active_sources"] == 0)
        assert (rig.started, rig.stopped) == (Counter({4: 1}), Counter({4: 1}))

    async def subscribed_to_meter(self, ws):
        while (message := await receive(ws, "subscribed"))["channel"] == "broadcast":
            pass
        return message

    @pytest.mark.parametrize("server", ["uvicorn", "fast"])
    async def test_some_hundred_pages_come_and_are_cut_off(self, server):
        rig, app = self.app()
        chance = random.Random(7)
        with serve(app, server) as served:

            async def page(number):
                async with served.connect() as ws:
                    await welcomed(ws)
                    await send(ws, type="subscribe", channel=f"meter?module={number % 10}&interval=0.01")
                    await receive(ws, "event")
                    if chance.random() < 0.5:
                        ws.transport.abort()

            for _ in range(3):
                await asyncio.gather(*(page(number) for number in range(100)))
            await eventually(lambda: served.get("/ws/status").json()["active_sources"] == 0)
            assert served.get("/ws/status").json()["active_connections"] == 0
        assert rig.started == rig.stopped
        assert rig.most == 1
        assert set(rig.started) == set(range(10))

    @pytest.mark.parametrize("server", ["uvicorn", "fast"])
    async def test_a_server_that_stops_runs_every_finally(self, server):
        rig, app = self.app()
        with serve(app, server) as served:
            ws = await served.connect()
            await welcomed(ws)
            for module in range(5):
                await send(ws, type="subscribe", channel=f"meter?module={module}")
            await eventually(lambda: rig.started.total() == 5)
        assert rig.stopped == rig.started
        await ws.close()
