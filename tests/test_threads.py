"""Publishing from any thread: in order, bounded, never blocking, and what fails is counted and said once."""

import asyncio
import concurrent.futures
import logging
import threading
import time

import anyio.to_thread
import pytest

from asgi_ws import Hub, NotRunning, Timeout, TooLarge, Unavailable, WrongLoop, threads
from asgi_ws.threads import MAX_WAITING, Backlog, wait_for
from tests.fakes import DEADLINE, Client, FakeBroker, turns, until

pytestmark = pytest.mark.anyio


class Published:
    """A backlog's publishes, by what was published; `failed` counts."""

    def __init__(self):
        self.done = []
        self.failed = 0
        self.error = None
        self.gate = None
        self.backlog = Backlog(self.fail)

    def fail(self):
        self.failed += 1

    def put(self, *names):
        for name in names:
            self.backlog.put(lambda name=name: self.publish(name))

    async def publish(self, name):
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.done.append(name)

    def open(self):
        self.backlog.open(asyncio.get_running_loop())


@pytest.fixture
def published():
    return Published()


def in_thread(function, *args):
    """Run in a thread that works for no event loop."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *args).result(DEADLINE)


class TestBacklog:
    async def test_what_waits_before_the_start_is_published_first_and_in_order(self, published):
        published.put(1, 2, 3)
        assert len(published.backlog) == 3
        assert repr(published.backlog) == "<Backlog 3 waiting>"
        await turns()
        assert published.done == []
        published.open()
        published.put(4)
        await until(lambda: len(published.done) == 4)
        assert published.done == [1, 2, 3, 4]
        assert len(published.backlog) == 0

    async def test_nothing_waits_for_a_turn_that_never_comes(self, published):
        published.open()
        for n in range(3):
            published.put(n)
            await until(lambda n=n: published.done[-1:] == [n])

    async def test_from_many_threads_and_the_loops_own_at_once_everything_arrives(self, published):
        published.open()

        def work(thread):
            published.put(*[(thread, n) for n in range(200)])

        workers = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for worker in workers:
            worker.start()
        for n in range(200):
            published.put(("loop", n))
            await asyncio.sleep(0)
        await until(lambda: len(published.done) == 9 * 200)
        for thread in (*range(8), "loop"):
            assert [n for who, n in published.done if who == thread] == list(range(200))
        for worker in workers:
            worker.join()

    async def test_while_one_publishes_another_waits_its_turn(self, published):
        published.gate = asyncio.Event()
        published.open()
        published.put(1)
        await turns()
        published.put(2)
        await turns()
        published.gate.set()
        await until(lambda: published.done == [1, 2])

    async def test_ten_thousand_may_wait_and_one_more_is_dropped_counted_and_said_once(
        self, published, caplog
    ):
        published.put(*range(MAX_WAITING))
        assert (published.failed, MAX_WAITING) == (0, 10_000)
        published.put("over", "over")
        assert published.failed == 2
        assert len(published.backlog) == MAX_WAITING
        assert [r.message for r in caplog.records] == [
            "publish_nowait failed: expected at most 10000 publishes to wait, got one more"
        ]
        published.open()
        await until(lambda: len(published.done) == MAX_WAITING)
        published.put("fits")
        await until(lambda: published.done[-1] == "fits")
        assert "over" not in published.done

    async def test_what_fails_is_counted_each_time_and_logged_once_an_episode(self, published, caplog):
        published.open()
        for episode in (1, 2):
            published.error = Unavailable("the broker is away")
            published.put(1, 2, 3)
            await until(lambda episode=episode: published.failed == 3 * episode)
            published.error = None
            published.put("ok")
            await until(lambda episode=episode: len(published.done) == episode)
        assert published.failed == 6
        assert [r.message for r in caplog.records] == ["publish_nowait failed: the broker is away"] * 2
        assert caplog.records[0].exc_info[1].args == ("the broker is away",)
        assert caplog.records[0].levelno == logging.ERROR

    async def test_closing_publishes_what_waits_and_what_comes_later_waits_for_the_next_start(
        self, published
    ):
        published.open()
        published.put(1, 2)
        await published.backlog.close()
        assert published.done == [1, 2]
        published.put(3)
        await turns()
        assert published.done == [1, 2]
        published.open()
        await until(lambda: published.done == [1, 2, 3])
        await published.backlog.close()

    async def test_closing_what_is_empty_or_was_never_open_is_nothing(self, published):
        await published.backlog.close()
        published.open()
        await published.backlog.close()
        await published.backlog.close()

    async def test_closing_waits_for_so_long_and_no_longer(self, published, monkeypatch):
        monkeypatch.setattr(threads, "CLOSE_WAIT", 0.01)
        published.gate = asyncio.Event()
        published.open()
        published.put(1)
        await turns()
        async with asyncio.timeout(DEADLINE):
            await published.backlog.close()
        assert published.done == []
        published.gate.set()
        await turns()

    async def test_closing_leaves_no_task(self, published, monkeypatch):
        monkeypatch.setattr(threads, "CLOSE_WAIT", 0.01)
        before = asyncio.all_tasks()
        published.gate = asyncio.Event()
        published.open()
        published.put(1, 2)
        await turns()
        await published.backlog.close()
        left = asyncio.all_tasks() - before
        published.gate.set()
        await turns()
        assert left == set()

    async def test_what_is_cut_off_then_has_failed_and_the_rest_waits_for_the_next_start(
        self, published, monkeypatch
    ):
        monkeypatch.setattr(threads, "CLOSE_WAIT", 0.01)
        published.gate = asyncio.Event()
        published.open()
        published.put(1, 2)
        await turns()
        await published.backlog.close()
        assert (published.failed, len(published.backlog)) == (1, 1)
        published.gate.set()
        published.open()
        await until(lambda: published.done == [2])

    async def test_a_loop_that_was_closed_is_no_trouble_and_the_next_takes_over(self, published):
        def first():
            async def main():
                published.open()
                published.put(1)
                await until(lambda: published.done == [1])

            asyncio.run(main())

        in_thread(first)
        published.put(2)
        published.put(3)
        published.open()
        await until(lambda: published.done == [1, 2, 3])

    async def test_also_where_it_was_closed_in_the_midst_of_a_publish(self, published):
        published.gate = asyncio.Event()

        def first():
            async def main():
                published.open()
                published.put(1)
                await turns()

            loop = asyncio.new_event_loop()
            loop.run_until_complete(main())
            loop.close()

        in_thread(first)
        published.gate = None
        published.put(2)
        published.open()
        await turns(20)
        assert published.done == [2]

    async def test_a_publish_that_is_cancelled_is_not_the_end(self, published):
        published.open()
        published.error = asyncio.CancelledError()
        published.put(1)
        await turns()
        published.error = None
        published.put(2)
        await turns(20)
        assert published.done == [2]


@pytest.fixture
def broker():
    return FakeBroker()


@pytest.fixture
async def hub(broker):
    async with Hub(broadcaster=broker) as made:
        yield made


class TestNowait:
    async def test_before_the_start_in_order_from_every_thread(self):
        hub = Hub()
        hub.channel("room", public=True)
        hub.publish_nowait("room", "said", 1)
        in_thread(hub.publish_nowait, "room", "said", 2)
        async with hub:
            hub.publish_nowait("room", "said", 3)
            async with Client(hub) as client:
                answer = await client.subscribe("room", offset=0)
                assert answer["offset"] == 0
                assert await client.events(3) == [1, 2, 3]

    async def test_what_cannot_be_sent_raises_where_it_is_published(self, hub):
        for verb in (hub.publish_nowait, hub.broadcast_nowait, hub.publish_to_user_nowait):
            channel = (
                ["broadcast"] if verb == hub.publish_nowait else ["7"] if "user" in verb.__name__ else []
            )
            with pytest.raises(TypeError):
                verb(*channel, "tick", object())
            with pytest.raises(TooLarge):
                verb(*channel, "tick", "x" * hub.settings.max_event_bytes)
        assert hub.stats()["publish_failed"] == 0

    async def test_every_verb_arrives(self, hub):
        async with Client(hub, user="ann", state={}) as client:
            await client.receive("subscribed")
            hub.broadcast_nowait("tick", 1)
            in_thread(hub.broadcast_nowait, "tick", 2)
            assert await client.events(2) == [1, 2]

    async def test_what_is_published_last_is_sent_before_the_stop(self):
        broker = FakeBroker()
        async with Hub(broadcaster=broker) as hub:
            for n in range(10):
                hub.broadcast_nowait("tick", n)
        assert [p.data for p in broker.logs["broadcast"]] == [b"%d" % n for n in range(10)]

    async def test_after_the_stop_it_waits_for_the_next_start(self):
        broker = FakeBroker()
        hub = Hub(broadcaster=broker)
        async with hub:
            pass
        hub.broadcast_nowait("tick", 1)
        await turns()
        assert broker.logs["broadcast"] == []
        async with hub:
            await until(lambda: broker.logs["broadcast"])

    async def test_what_found_no_place_before_the_start_is_counted_from_it_on(self, monkeypatch):
        monkeypatch.setattr(threads, "MAX_WAITING", 2)
        hub = Hub()
        for _ in range(5):
            hub.broadcast_nowait("tick", 1)
        async with hub:
            assert hub.stats()["publish_failed"] == 3
            monkeypatch.undo()
            await until(lambda: hub.stats()["events_emitted"] == 2)

    async def test_what_fails_is_counted_once(self, hub, broker):
        broker.errors["publish"] = Unavailable("away")
        hub.broadcast_nowait("tick", 1)
        await until(lambda: hub.stats()["publish_failed"])
        await turns()
        assert hub.stats()["publish_failed"] == 1

    async def test_a_disabled_hub_takes_nothing(self):
        hub = Hub(enabled=False)
        hub.publish_nowait("anything", "at all", object())
        assert len(hub._backlog) == 0


class TestFromThread:
    async def test_waits_for_the_result(self, hub):
        async with Client(hub) as client:
            await client.receive("subscribed")
            position = await asyncio.to_thread(hub.from_thread.broadcast, "tick", 1, key="k")
            assert (
                await asyncio.to_thread(hub.from_thread.publish, "broadcast", "tick", 2, key="k") == position
            )
            assert (await asyncio.to_thread(hub.from_thread.publish_to_user, "7", "letter", 3)).offset == 2
            assert await client.events(1) == [1]

    async def test_what_it_raises_is_raised_in_the_thread(self, hub, broker):
        with pytest.raises(TooLarge):
            await asyncio.to_thread(hub.from_thread.broadcast, "tick", "x" * hub.settings.max_event_bytes)
        broker.errors["publish"] = Unavailable("away", maybe_published=True)
        with pytest.raises(Unavailable) as caught:
            await asyncio.to_thread(hub.from_thread.broadcast, "tick", 1)
        assert caught.value.maybe_published

    async def test_fifty_at_once_and_nowait_beside_them(self, hub):
        async with Client(hub) as client:
            await client.receive("subscribed")

            def work(n):
                hub.from_thread.broadcast("tick", n)
                hub.broadcast_nowait("tick", 1000 + n)

            await asyncio.gather(*[anyio.to_thread.run_sync(work, n) for n in range(50)])
            heard = await client.events(100)
            assert sorted(heard) == [*range(50), *range(1000, 1050)]

    async def test_from_the_loops_own_thread_it_would_wait_for_itself(self, hub, broker):
        for verb, args in (("publish", ("broadcast",)), ("broadcast", ()), ("publish_to_user", ("7",))):
            with pytest.raises(WrongLoop, match="from a worker thread, got an event loop's: await instead"):
                getattr(hub.from_thread, verb)(*args, "tick", 1)
        assert broker.called("publish") == []

    async def test_before_the_start_from_a_thread_that_works_for_no_loop(self):
        with pytest.raises(
            NotRunning, match="expected the hub to be running, got from_thread before its start"
        ):
            in_thread(Hub().from_thread.broadcast, "tick", 1)

    async def test_before_the_start_from_a_thread_that_works_for_a_loop_it_starts(self):
        broker = FakeBroker()
        hub = Hub(broadcaster=broker)
        position = await anyio.to_thread.run_sync(lambda: hub.from_thread.broadcast("tick", 1))
        assert position.offset == 2
        assert broker.starts == 1
        async with hub:
            pass

    async def test_after_the_stop_it_does_not_run(self):
        hub = Hub()
        async with hub:
            pass
        with pytest.raises(NotRunning):
            in_thread(hub.from_thread.broadcast, "tick", 1)
        with pytest.raises(NotRunning, match="after its stop"):
            await anyio.to_thread.run_sync(lambda: hub.from_thread.broadcast("tick", 1))

    async def test_a_hub_of_another_loop_is_found_from_a_thread_of_this_one(self, broker):
        hub, ready, stop = Hub(broadcaster=broker), threading.Event(), threading.Event()

        def serve():
            async def main():
                async with hub:
                    ready.set()
                    await until(stop.is_set)

            asyncio.run(main())

        server = threading.Thread(target=serve)
        server.start()
        try:
            assert ready.wait(DEADLINE)
            position = await asyncio.to_thread(hub.from_thread.broadcast, "tick", 1)
            assert position.offset == 2
        finally:
            stop.set()
            server.join(DEADLINE)

    async def test_without_a_result_in_time_there_is_a_timeout(self, hub, broker, monkeypatch):
        monkeypatch.setattr(threads, "WAIT", 0.05)
        gate = broker.gate("publish")
        with pytest.raises(Timeout, match=r"expected a result within 0\.05 s, got none"):
            await asyncio.to_thread(hub.from_thread.broadcast, "tick", 1)
        gate.set()
        await turns()
        assert broker.logs["broadcast"] == []  # given up

    async def test_also_where_the_hub_has_not_started(self, broker, monkeypatch):
        monkeypatch.setattr(threads, "WAIT", 0.05)
        gate = broker.gate("publish")
        hub = Hub(broadcaster=broker)
        asyncio.get_running_loop().call_later(1.0, gate.set)
        with pytest.raises(Timeout):
            await anyio.to_thread.run_sync(lambda: hub.from_thread.broadcast("tick", 1))

    async def test_a_timeout_of_the_first_publish_itself_too(self, broker):
        broker.errors["publish"] = TimeoutError("the broker's own")
        hub = Hub(broadcaster=broker)
        with pytest.raises(TimeoutError, match="the broker's own"):
            await anyio.to_thread.run_sync(lambda: hub.from_thread.broadcast("tick", 1))

    async def test_a_timeout_of_the_publish_itself_is_raised_as_it_is(self, hub, broker):
        broker.errors["publish"] = TimeoutError("the broker's own")
        with pytest.raises(TimeoutError, match="the broker's own"):
            await asyncio.to_thread(hub.from_thread.broadcast, "tick", 1)

    async def test_a_disabled_hub_takes_nothing_and_needs_no_start(self):
        assert in_thread(Hub(enabled=False).from_thread.broadcast, "tick", 1) is None

    async def test_a_loop_that_does_not_run_is_none(self):
        loop = asyncio.new_event_loop()
        loop.close()

        async def nothing(): ...

        with pytest.raises(NotRunning):
            in_thread(wait_for, nothing, loop)


async def test_a_blocked_loop_blocks_no_thread(hub):
    """`publish_nowait` returns while the loop is busy with something else."""
    took = []

    def work():
        begin = time.monotonic()
        for n in range(100):
            hub.broadcast_nowait("tick", n)
        took.append(time.monotonic() - begin)

    worker = threading.Thread(target=work)
    worker.start()
    worker.join(DEADLINE)  # the loop stands still here
    assert not worker.is_alive()
    assert took[0] < DEADLINE / 2
    await until(lambda: hub.stats()["events_emitted"] == 100)
