"""Many may hold a hub up; it starts once, stops once, and lives in one loop at a time."""

import asyncio
import gc
import importlib.util
import logging
import threading
import traceback

import pytest

from asgi_ws import Hub, NotRunning, SettingsError, Unavailable, WrongLoop
from tests.fakes import DEADLINE, Client, FakeBroker, turns, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def broker():
    return FakeBroker()


@pytest.fixture
def hub(broker):
    return Hub(broadcaster=broker)


def task(coroutine):
    return asyncio.get_running_loop().create_task(coroutine)


class TestStarting:
    async def test_concurrent_starts_are_one(self, hub, broker):
        gate = broker.gate("start")
        starts = [task(hub.__aenter__()) for _ in range(5)]
        await turns()
        gate.set()
        assert await asyncio.gather(*starts) == [hub] * 5
        assert broker.starts == 1
        for _ in range(4):
            await hub.__aexit__()
        assert broker.stops == 0
        await hub.__aexit__()
        assert broker.stops == 1

    async def test_first_uses_too(self, hub, broker):
        gate = broker.gate("start")
        uses = [task(hub.broadcast("tick", n)) for n in range(5)] + [task(hub.status())]
        await turns()
        gate.set()
        await asyncio.gather(*uses)
        assert broker.starts == 1
        async with hub:  # takes over
            assert broker.starts == 1
        assert broker.stops == 1

    async def test_the_first_who_waits_may_give_up_and_the_start_goes_on(self, hub, broker):
        gate = broker.gate("start")
        first, second = task(hub.__aenter__()), task(hub.__aenter__())
        await turns()
        first.cancel()
        await asyncio.wait([first])
        gate.set()
        await second
        assert broker.starts == 1
        await hub.__aexit__()
        assert broker.stops == 1  # the first holds nothing

    async def test_a_first_use_is_said_once(self, hub, caplog):
        caplog.set_level(logging.INFO, "asgi_ws")
        await asyncio.gather(*[hub.broadcast("tick", n) for n in range(3)])
        await hub.broadcast("tick", 4)
        assert [r.message for r in caplog.records] == [
            "<Hub 'asgi_ws'> starts on its first use: no lifespan has started it"
        ]
        async with hub:
            pass

    async def test_a_start_by_a_lifespan_is_not_worth_a_word(self, hub, caplog):
        caplog.set_level(logging.INFO, "asgi_ws")
        async with hub:
            pass
        assert caplog.records == []

    async def test_a_hub_that_started_itself_holds_no_task(self):
        before = asyncio.all_tasks()
        hub = Hub()
        await hub.broadcast("tick", 1)
        async with Client(hub) as client:
            await client.receive("subscribed")
        assert asyncio.all_tasks() == before
        async with hub:
            pass

    async def test_a_disabled_hub_asks_no_broker(self, broker):
        async with Hub(broadcaster=broker, enabled=False) as hub:
            assert (await hub.health())["status"] == "disabled"
            assert (await hub.status())["status"] == "disabled"
            assert await hub.broadcast("tick", 1) is None
        assert broker.calls == []


class TestFailing:
    async def test_a_start_that_fails_fails_for_all_who_wait_and_the_next_tries_again(self, hub, broker):
        gate = broker.gate("start")
        broker.errors["start"] = SettingsError("no such host")
        starts = [task(hub.__aenter__()) for _ in range(3)]
        await turns()
        gate.set()
        results = await asyncio.gather(*starts, return_exceptions=True)
        assert [str(error) for error in results] == ["no such host"] * 3
        broker.errors.clear()
        async with hub:
            assert broker.starts == 2
        assert broker.stops == 1

    async def test_what_fails_on_its_first_use_says_so_to_every_use(self, hub, broker):
        broker.errors["start"] = SettingsError("no such host")
        for _ in range(3):
            with pytest.raises(SettingsError, match="no such host"):
                await hub.broadcast("tick", 1)
        assert broker.starts == 1

    async def test_and_that_costs_nothing(self, hub, broker):
        broker.errors["start"] = SettingsError("no such host")
        lengths = []
        for _ in range(50):
            try:
                await hub.broadcast("tick", 1)
            except SettingsError as error:
                lengths.append(len(list(traceback.walk_tb(error.__traceback__))))
        assert lengths[-1] <= lengths[1] + 2

    async def test_a_later_start_by_a_holder_still_tries_again(self, hub, broker):
        broker.errors["start"] = SettingsError("no such host")
        with pytest.raises(SettingsError):
            await hub.broadcast("tick", 1)
        broker.errors.clear()
        async with hub:
            await hub.broadcast("tick", 1)

    async def test_a_stop_that_fails_is_a_stop(self, hub, broker):
        broker.errors["stop"] = Unavailable("away")
        with pytest.raises(Unavailable):
            async with hub:
                pass
        with pytest.raises(NotRunning):
            await hub.broadcast("tick", 1)
        broker.errors.clear()
        async with hub:
            assert (await hub.broadcast("tick", 1)).offset == 2


class TestStopping:
    async def test_the_last_to_leave_stops(self, hub, broker):
        async with hub:
            async with hub:
                pass
            assert broker.stops == 0
            await hub.broadcast("tick", 1)
        assert broker.stops == 1

    async def test_after_it_uses_are_refused_until_the_next_start(self, hub):
        async with hub:
            pass
        for use in (hub.broadcast("tick", 1), hub.status(), hub.health()):
            with pytest.raises(
                NotRunning, match="<Hub 'asgi_ws'> to be running, got a publish or a request after its stop"
            ):
                await use
        with pytest.raises(NotRunning):
            hub.stats()
        async with hub:
            await hub.broadcast("tick", 1)

    async def test_sessions_are_told_to_come_back(self, hub):
        async with hub:
            client = Client(hub)
            await client.__aenter__()
            await client.receive("subscribed")
        message = await client.receive("disconnect")
        assert (message["code"], message["reason"], message["reconnect"]) == (1012, "restart", True)
        await client.ended()
        assert client.closed["code"] == 1012

    async def test_one_that_does_not_answer_holds_up_nothing(self, hub, monkeypatch):
        monkeypatch.setattr("asgi_ws.run.CLOSE_WAIT", 0.01)
        async with asyncio.timeout(DEADLINE):
            async with hub:
                client = Client(hub)
                await client.__aenter__()
                await client.receive("subscribed")
                client.pause()
            await client.ended()

    async def test_every_start_counts_anew(self, hub):
        for _ in range(3):
            async with hub, Client(hub) as client:
                await client.receive("subscribed")
                await hub.broadcast("tick", 1)
                stats = hub.stats()
                assert (stats["events_emitted"], stats["connections_total"]) == (1, 1)

    async def test_nothing_is_left(self, hub):
        before = asyncio.all_tasks()
        for _ in range(3):
            async with hub:
                async with Client(hub) as client:
                    await client.receive("subscribed")
                    hub.broadcast_nowait("tick", 1)
                    await client.events(1)
        assert asyncio.all_tasks() == before

    async def test_leaving_without_having_entered_is_nothing(self, hub, broker):
        await hub.broadcast("tick", 1)
        await hub.__aexit__()
        assert broker.stops == 0
        await hub.broadcast("tick", 2)

    async def test_also_where_it_never_ran(self, hub, broker):
        await hub.__aexit__()
        assert broker.stops == 0
        async with hub:
            pass
        await hub.__aexit__()
        assert broker.stops == 1

    async def test_a_start_while_it_stops_begins_after_the_stop(self, hub, broker):
        await hub.__aenter__()
        gate = broker.gate("stop")
        stopping = task(hub.__aexit__())
        await until(lambda: broker.stops)
        starting = task(hub.__aenter__())
        await turns(10)
        gate.set()
        await asyncio.gather(stopping, starting)
        assert broker.running
        await hub.broadcast("tick", 1)

    async def test_who_enters_while_the_last_publishes_are_sent_keeps_it_up(self, hub, broker):
        await hub.__aenter__()
        gate = broker.gate("publish")
        hub.broadcast_nowait("tick", 1)
        stopping = task(hub.__aexit__())
        await until(lambda: broker.called("publish"))
        await hub.__aenter__()
        gate.set()
        await stopping
        assert broker.stops == 0
        await hub.__aexit__()
        assert broker.stops == 1

    async def test_who_enters_and_leaves_again_meanwhile_stops_it_no_second_time(self, hub, broker):
        await hub.__aenter__()
        gate = broker.gate("publish")
        hub.broadcast_nowait("tick", 1)
        first = task(hub.__aexit__())
        await until(lambda: broker.called("publish"))
        await hub.__aenter__()
        second = task(hub.__aexit__())
        await turns()
        gate.set()
        await asyncio.gather(first, second)
        assert broker.stops == 1

    async def test_and_publish_nowait_goes_on(self, hub, broker):
        await hub.__aenter__()
        gate = broker.gate("publish")
        hub.broadcast_nowait("tick", 1)
        stopping = task(hub.__aexit__())
        await until(lambda: broker.called("publish"))
        await hub.__aenter__()
        gate.set()
        await stopping
        hub.broadcast_nowait("tick", 2)
        await turns(20)
        count = len(broker.logs["broadcast"])
        await hub.__aexit__()
        assert count == 2


def in_thread(function, *args):
    """Run in a thread of its own, which has no loop."""
    results = []

    def run():
        try:
            results.append(function(*args))
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(DEADLINE)
    assert not thread.is_alive()
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]


def run_in_trio(use):
    """As trio runs it, by trio itself if there is one: no asyncio loop is in this thread."""
    if importlib.util.find_spec("trio") is not None:
        importlib.import_module("trio").run(use)
    else:
        use().send(None)


class TestLoops:
    async def test_where_its_loop_was_closed_it_moves_to_the_next(self, broker):
        hub = Hub(broadcaster=broker)

        async def use(n):
            return await hub.broadcast("tick", n)

        assert in_thread(asyncio.run, use(1)).offset == 2
        assert in_thread(asyncio.run, use(2)).offset == 4
        assert (await use(3)).offset == 6
        assert broker.starts == 3
        async with hub:
            pass

    async def test_also_one_that_was_held_and_never_left(self, broker):
        hub = Hub(broadcaster=broker)
        in_thread(asyncio.run, hub.__aenter__())
        async with hub:
            await hub.broadcast("tick", 1)
        assert (broker.starts, broker.stops) == (2, 1)

    async def test_also_one_that_was_stopped(self, broker):
        hub = Hub(broadcaster=broker)

        async def whole():
            async with hub:
                await hub.broadcast("tick", 1)

        for _ in range(3):
            in_thread(asyncio.run, whole())
        await whole()
        assert (broker.starts, broker.stops) == (4, 4)

    async def test_while_its_loop_is_open_another_is_refused_with_what_to_do(self, hub, broker):
        async with hub:
            for use in (hub.broadcast("tick", 1), hub.status(), hub.__aenter__()):
                with pytest.raises(WrongLoop) as caught:
                    in_thread(asyncio.run, use)
                message = str(caught.value)
                assert message.startswith(
                    "expected <Hub 'asgi_ws'> to be used from the event loop that it runs in"
                )
                for word in ("with TestClient(app)", "from_thread", "publish_nowait"):
                    assert word in message
            assert broker.starts == 1
            await hub.broadcast("tick", 1)

    async def test_a_hub_that_was_stopped_may_start_in_another(self, hub, broker):
        async with hub:
            pass

        async def whole():
            async with hub:
                await hub.broadcast("tick", 1)

        in_thread(asyncio.run, whole())
        assert (broker.starts, broker.stops) == (2, 2)

    async def test_a_start_that_failed_here_is_no_reason_not_to_start_there(self, hub, broker):
        broker.errors["start"] = SettingsError("no such host")
        with pytest.raises(SettingsError):
            await hub.__aenter__()
        broker.errors.clear()

        async def whole():
            async with hub:
                pass

        in_thread(asyncio.run, whole())

    @pytest.mark.parametrize("verb", ["broadcast", "__aenter__", "status"])
    def test_what_is_no_asyncio_is_refused_by_name(self, hub, verb):
        async def use():
            await getattr(hub, verb)(*(("tick", 1) if verb == "broadcast" else ()))

        expected = r"expected asyncio or uvloop to run this, got another library's loop \(trio\?\)"
        with pytest.raises(WrongLoop, match=expected):
            run_in_trio(use)

    async def test_also_while_it_runs_in_a_loop(self, hub):
        async with hub:
            with pytest.raises(WrongLoop, match="trio"):
                in_thread(hub.broadcast("tick", 1).send, None)

    async def test_nothing_is_made_for_a_loop_before_the_start(self):
        def make():
            return Hub()

        hub = in_thread(make)
        async with hub, Client(hub) as client:
            await client.receive("subscribed")


async def test_a_hub_that_is_gone_is_gone(broker):
    """No reference from the loop, the log or the process keeps a stopped hub."""
    import weakref

    hub = Hub(broadcaster=broker)
    async with hub, Client(hub) as client:
        await client.receive("subscribed")
    reference = weakref.ref(hub)
    broker.receiver = None
    del hub, client
    await turns()
    gc.collect()
    assert reference() is None
