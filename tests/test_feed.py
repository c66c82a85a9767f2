"""`hub.feed`: an async iterable in a channel with history, whole for a page that reloads."""

import asyncio
import logging

import anyio
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asgi_ws import BadRequest, Binary, Hub, NotRunning, Router, TooLarge, Unavailable, Undeclared, feed
from tests.fakes import DEADLINE, Client, FakeBroker, turns, until
from tests.servers import receive, send, serve, welcomed

pytestmark = pytest.mark.anyio


@pytest.fixture
async def hub():
    async with answering() as made:
        yield made


def answering(**options):
    made = Hub(**options)
    made.channel("answer:{n:int}", public=True, history=1000)
    made.channel("plain", public=True, history=0)
    made.channel("strict", public=True, events={"start": None, "token": str, "end": None, "failed": None})
    return made


async def tokens(*items):
    for item in items:
        yield item


class Stream:
    """An async iterable by hand: what is put is read, an exception is raised, `None` ends it."""

    def __init__(self):
        self.queue = asyncio.Queue()
        self.read = 0
        self.closed = False

    async def __call__(self):
        try:
            while (item := await self.queue.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                self.read += 1
                yield item
        finally:
            self.closed = True


async def kept(hub, channel="answer:1"):
    """Every event of a channel as one who subscribes with `"offset":0` has it: names and data."""
    async with Client(hub) as client:
        answer = await client.subscribe(channel, offset=0)
        assert answer["type"] == "subscribed"
        await hub.publish(channel, "fence", None)
        found = []
        while (event := await client.receive("event"))["event"] != "fence":
            found.append((event["event"], event["data"]))
        return found


def names(events):
    return [name for name, _ in events]


def text_of(events):
    return "".join(data for name, data in events if name == "token")


def items_of(events):
    return [item for name, data in events if name == "token" for item in data]


class TestWhole:
    async def test_start_the_text_and_end(self, hub):
        await hub.feed("answer:1", tokens("Hel", "lo", " world"))
        assert await kept(hub) == [("start", None), ("token", "Hello world"), ("end", None)]

    async def test_items_that_are_no_text_are_a_list_also_one(self, hub):
        await hub.feed("answer:1", tokens({"n": 1}, 2, None, [3]), event="item")
        await hub.feed("answer:2", tokens(1))
        assert await kept(hub) == [("start", None), ("item", [{"n": 1}, 2, None, [3]]), ("end", None)]
        assert await kept(hub, "answer:2") == [("start", None), ("token", [1]), ("end", None)]

    async def test_text_and_other_items_stay_in_order(self, hub):
        await hub.feed("answer:1", tokens("a", "b", 1, 2, "c", "", 3, ""))
        assert [data for _, data in (await kept(hub))[1:-1]] == ["ab", [1, 2], "c", [3]]

    async def test_nothing_at_all(self, hub):
        await hub.feed("answer:1", tokens())
        await hub.feed("answer:2", tokens("", ""))
        assert await kept(hub) == await kept(hub, "answer:2") == [("start", None), ("end", None)]

    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.tuples(st.text(max_size=5) | st.integers(0, 9), st.booleans())))
    async def test_whatever_comes_is_there_in_order_once(self, pieces):
        async def paced():
            for item, waits in pieces:
                if waits:
                    await asyncio.sleep(0)
                yield item

        async with answering() as hub:
            await hub.feed("answer:1", paced())
            events = await kept(hub)
        assert names(events)[0] == "start"
        assert names(events)[-1] == "end"
        read = []
        for _, data in events[1:-1]:
            read += data if isinstance(data, list) else list(data)
        put = []
        for item, _ in pieces:
            put += [item] if isinstance(item, int) else list(item)
        assert read == put

    async def test_a_million_characters_without_a_pause(self, hub):
        async with Client(hub, channels=["answer:1"]) as client:
            await client.subscribe("answer:2")
            await hub.feed("answer:1", tokens(*(f"{n:09} " for n in range(100_000))))
            heard = []
            while (event := await client.receive("event"))["event"] != "end":
                heard.append(event["data"])
        assert "".join(heard[1:]) == "".join(f"{n:09} " for n in range(100_000))

    async def test_a_page_that_reloads_has_what_was_and_what_follows(self, hub):
        stream = Stream()
        task = asyncio.get_running_loop().create_task(hub.feed("answer:1", stream()))
        async with Client(hub) as page:
            await page.subscribe("answer:1", offset=0)
            stream.queue.put_nowait("The ")
            assert (await page.receive("event"))["event"] == "start"
            assert (await page.receive("event"))["data"] == "The "
        stream.queue.put_nowait("answer ")
        async with Client(hub) as page:
            await page.subscribe("answer:1", offset=0)
            text = ""
            while text != "The answer ":
                event = await page.receive("event")
                text += event["data"] or ""
            stream.queue.put_nowait("is 42.")
            stream.queue.put_nowait(None)
            assert (await page.receive("event"))["data"] == "is 42."
            assert (await page.receive("event"))["event"] == "end"
        await task

    async def test_through_the_declared_channel(self, hub):
        one = hub.channel("one", public=True)
        many = hub.channel("many:{n:int}", public=True)
        await one.feed(tokens("a"), event="word")
        await many(n=5).feed(tokens("b"))
        assert await kept(hub, "one") == [("start", None), ("word", "a"), ("end", None)]
        assert text_of(await kept(hub, "many:5")) == "b"

    async def test_events_that_are_declared_with_types(self, hub):
        await hub.feed("strict", tokens("a", "b"))
        async with Client(hub) as client:
            await client.subscribe("strict", offset=0)
            assert await client.events(3) == [None, "ab", None]

    async def test_several_into_one_channel_each_have_all_of_theirs(self, hub):
        await asyncio.gather(*(hub.feed("answer:1", tokens(*"abc"), event=f"t{n}") for n in range(5)))
        events = await kept(hub)
        assert names(events).count("start") == names(events).count("end") == 5
        assert {(f"t{n}", "abc") for n in range(5)} <= {(name, data) for name, data in events if data}


class TestJoining:
    async def test_what_comes_within_twenty_milliseconds_is_one_event(self, hub, monkeypatch):
        stream = Stream()
        task = asyncio.get_running_loop().create_task(hub.feed("answer:1", stream()))
        async with Client(hub) as client:
            await client.subscribe("answer:1", offset=0)
            await client.receive("event")
            for letter in "abc":
                stream.queue.put_nowait(letter)
            assert (await client.receive("event"))["data"] == "abc"
            for letter in "de":
                stream.queue.put_nowait(letter)
            assert (await client.receive("event"))["data"] == "de"
            stream.queue.put_nowait(None)
            await task
        assert feed.JOIN == 0.02

    async def test_an_item_does_not_wait_for_the_next_one(self, hub):
        stream = Stream()
        task = asyncio.get_running_loop().create_task(hub.feed("answer:1", stream()))
        async with Client(hub) as client:
            await client.subscribe("answer:1", offset=0)
            stream.queue.put_nowait("alone")
            assert await client.events(2) == [None, "alone"]
            stream.queue.put_nowait(None)
        await task

    async def test_what_is_too_large_for_one_event_is_several(self):
        async with answering(max_event_bytes=100) as hub:
            await hub.feed("answer:1", tokens(*["x" * 30] * 20))
            await hub.feed("answer:2", tokens(*[["y" * 30]] * 20))
            events = await kept(hub)
            assert text_of(events) == "x" * 600
            assert len(events) > 6
            assert items_of(await kept(hub, "answer:2")) == [["y" * 30]] * 20

    async def test_an_iterable_that_is_faster_than_its_publisher_waits(self):
        broker = FakeBroker()
        async with answering(broadcaster=broker) as hub:
            stream = Stream()
            for n in range(10_000):
                stream.queue.put_nowait(n)
            stream.queue.put_nowait(None)
            gate = broker.gate("publish")
            task = asyncio.get_running_loop().create_task(hub.feed("answer:1", stream()))
            await until(lambda: broker.called("publish"))
            await turns(50)
            assert stream.read == 0  # nothing is read before `start` is published
            del broker.gates["publish"]
            gate.set()
            await until(lambda: stream.read)
            gate = broker.gate("publish")
            await turns(2000)
            assert stream.read <= 10_000
            waiting = stream.read - sum(len(msgspec.json.decode(p.data)) for p in broker.logs["answer:1"][1:])
            assert waiting <= 3 * feed.MAX_ITEMS
            del broker.gates["publish"]
            gate.set()
            await task
            published = [item for p in broker.logs["answer:1"][1:-1] for item in msgspec.json.decode(p.data)]
            assert published == list(range(10_000))


class TestRefused:
    @pytest.mark.parametrize("channel", ["plain", "elsewhere", "strict", "answer:1"])
    async def test_nothing_is_read_or_published(self, hub, channel):
        error = {"plain": ValueError, "answer:1": BadRequest}.get(channel, Undeclared)
        stream = Stream()
        stream.queue.put_nowait(None)
        made = stream()
        with pytest.raises(error):
            await hub.feed(channel, made, event="start" if channel == "answer:1" else "word")
        assert hub.stats()["events_emitted"] == 0
        assert stream.queue.qsize() == 1

    async def test_a_channel_without_history_names_its_place(self, hub):
        with pytest.raises(
            ValueError, match=rf"with history to feed into, got 'plain' \(declared at {__file__}:\d+\)"
        ):
            await hub.feed("plain", tokens())

    async def test_a_broadcaster_without_history(self):
        hub = Hub(broadcaster=FakeBroker("idempotency"))
        hub.channel("answer", public=True)
        async with hub:
            with pytest.raises(ValueError, match="expected a channel with history"):
                await hub.feed("answer", tokens())

    @pytest.mark.parametrize("missing", ["start", "token", "end", "failed"])
    async def test_each_of_its_events_has_to_be_declared(self, hub, missing):
        events = {"start", "token", "end", "failed"} - {missing}
        hub.channel("some", public=True, events=sorted(events))
        with pytest.raises(Undeclared, match=f"got '{missing}'; add it to events="):
            await hub.feed("some", tokens("a"))
        assert hub.stats()["events_emitted"] == 0

    async def test_its_own_events_have_no_data_and_a_type_that_needs_some_is_refused(self, hub):
        hub.channel("typed", public=True, events={"start": int, "token": str, "end": None, "failed": None})
        with pytest.raises(TypeError, match="expected the data of event 'start' to be int"):
            await hub.feed("typed", tokens("a"))
        assert hub.stats()["events_emitted"] == 0

    @pytest.mark.parametrize("event", ["start", "end", "failed", "a b", ""])
    async def test_an_event_that_cannot_be(self, hub, event):
        with pytest.raises(BadRequest, match="expected an event"):
            await hub.feed("answer:1", tokens("a"), event=event)

    @pytest.mark.parametrize("items", [["a"], "text", None, iter("abc"), tokens])
    async def test_what_is_no_async_iterable(self, hub, items):
        with pytest.raises(TypeError, match="expected an async iterable, got "):
            await hub.feed("answer:1", items)

    async def test_a_router_in_no_hub(self):
        orphan = Router().channel("orders", public=True)
        with pytest.raises(NotRunning, match="to be in a hub"):
            await orphan.feed(tokens())

    async def test_a_hub_that_was_stopped(self):
        async with answering() as hub:
            pass
        stream = Stream()
        with pytest.raises(NotRunning):
            await hub.feed("answer:1", stream())
        assert stream.read == 0

    async def test_where_it_is_disabled_the_iterable_is_read_and_nothing_is_published(self):
        async with answering(enabled=False) as hub:
            stream = Stream()
            for item in ("a", "b", None):
                stream.queue.put_nowait(item)
            await hub.feed("answer:1", stream())
            assert stream.read == 2


class TestFailing:
    async def test_what_the_iterable_raises_is_raised_after_failed(self, hub):
        stream = Stream()
        for item in ("a", "b", KeyError("secret")):
            stream.queue.put_nowait(item)
        with pytest.raises(KeyError, match="secret"):
            await hub.feed("answer:1", stream())
        assert await kept(hub) == [("start", None), ("token", "ab"), ("failed", None)]

    async def test_an_item_that_cannot_be_encoded(self, hub):
        stream = Stream()
        for item in (1, object(), None):
            stream.queue.put_nowait(item)
        with pytest.raises(TypeError, match="expected data that JSON can carry"):
            await hub.feed("answer:1", stream())
        assert names(await kept(hub)) == ["start", "failed"]

    async def test_an_item_of_another_type_than_is_declared(self, hub):
        with pytest.raises(TypeError, match="expected the data of event 'token' to be str"):
            await hub.feed("strict", tokens(1))

    async def test_binary_is_no_item(self, hub):
        with pytest.raises(TypeError, match="Binary"):
            await hub.feed("answer:1", tokens(Binary(b"x")))

    async def test_an_item_that_is_too_large_by_itself(self):
        async with answering(max_event_bytes=100) as hub:
            with pytest.raises(TooLarge):
                await hub.feed("answer:1", tokens("a", "x" * 200, "b"))
            assert await kept(hub) == [("start", None), ("token", "a"), ("failed", None)]

    async def test_an_iterable_that_falls_silent_does_not_hold_up_the_failure_and_is_closed(self, hub):
        stream = Stream()
        stream.queue.put_nowait(object())
        with pytest.raises(TypeError):
            await hub.feed("answer:1", stream())
        assert stream.closed
        assert asyncio.current_task().cancelling() == 0
        await asyncio.sleep(0)  # and nothing of it is left

    @pytest.mark.parametrize("then", ["more", "end", "raise"])
    async def test_an_iterable_that_swallows_its_cancellation(self, hub, then):
        closed = []

        async def stubborn():
            try:
                yield object()
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    if then == "raise":
                        raise KeyError("its own") from None
                if then == "more":
                    yield "more"
            finally:
                closed.append(True)

        with pytest.raises(KeyError if then == "raise" else TypeError):
            await hub.feed("answer:1", stubborn())
        assert closed
        assert asyncio.current_task().cancelling() == 0
        assert names(await kept(hub)) == ["start", "failed"]

    async def test_who_cancels_while_it_fails_is_obeyed(self, hub):
        entered = asyncio.Event()

        async def slow_to_close():
            try:
                yield object()
                await asyncio.Event().wait()
            finally:
                entered.set()
                await asyncio.sleep(0.01)

        task = asyncio.get_running_loop().create_task(hub.feed("answer:1", slow_to_close()))
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    async def test_an_iterable_that_is_no_generator_needs_no_closing(self, hub):
        class Items:
            def __init__(self):
                self.items = [1, 2]

            def __aiter__(self):
                return self

            async def __anext__(self):
                if not self.items:
                    raise StopAsyncIteration
                return self.items.pop(0)

        await hub.feed("answer:1", Items())
        assert items_of(await kept(hub)) == [1, 2]

    async def test_a_broker_that_is_away_raises_before_anything_is_read(self):
        broker = FakeBroker()
        async with answering(broadcaster=broker) as hub:
            broker.errors["publish"] = Unavailable("away")
            stream = Stream()
            with pytest.raises(Unavailable, match="away"):
                await hub.feed("answer:1", stream())
            assert stream.read == 0
            assert len(broker.called("publish")) == 1

    async def test_a_broker_that_goes_away_and_comes_back(self):
        broker = FakeBroker()
        async with answering(broadcaster=broker) as hub:
            stream = Stream()
            task = asyncio.get_running_loop().create_task(hub.feed("answer:1", stream()))
            await until(lambda: broker.logs["answer:1"])
            broker.errors["publish"] = Unavailable("away")
            stream.queue.put_nowait("a")
            with pytest.raises(Unavailable):
                await task
            assert hub.stats()["publish_failed"] == 2

    async def test_a_failure_that_cannot_be_said_is_logged_and_the_first_one_raised(self, caplog):
        broker = FakeBroker()
        async with answering(broadcaster=broker) as hub:
            stream = Stream()
            task = asyncio.get_running_loop().create_task(hub.feed("answer:1", stream()))
            await until(lambda: broker.logs["answer:1"])
            broker.errors["publish"] = Unavailable("away")
            stream.queue.put_nowait(KeyError("the first"))
            with pytest.raises(KeyError, match="the first"):
                await task
        assert "a feed into channel 'answer:1' could not say that it failed" in caplog.text


class TestCancelling:
    async def test_failed_is_published_and_the_generator_closed(self, hub):
        stream = Stream()
        stream.queue.put_nowait("a")
        task = asyncio.get_running_loop().create_task(hub.feed("answer:1", stream()))
        await until(lambda: stream.read)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await kept(hub) == [("start", None), ("token", "a"), ("failed", None)]
        assert stream.closed
        assert not hub._feeds

    async def test_within_a_scope_that_cancels_again_and_again(self, hub):
        stream = Stream()
        stream.queue.put_nowait("a")
        with anyio.CancelScope() as scope:
            asyncio.get_running_loop().call_later(0.01, scope.cancel)
            await hub.feed("answer:1", stream())
        await until(lambda: not hub._feeds)
        assert await kept(hub) == [("start", None), ("token", "a"), ("failed", None)]

    async def test_before_start_is_published_it_is_failed_too(self):
        broker = FakeBroker()
        async with answering(broadcaster=broker) as hub:
            gate = broker.gate("publish")
            task = asyncio.get_running_loop().create_task(hub.feed("answer:1", tokens("a")))
            await until(lambda: broker.called("publish"))
            task.cancel()
            await turns()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            gate.set()
            await until(lambda: not hub._feeds)
            assert [p.event for p in broker.logs["answer:1"]] == ["start", "failed"]

    async def test_after_the_last_item_it_is_an_end(self):
        broker = FakeBroker()
        async with answering(broadcaster=broker) as hub:
            stream = Stream()
            task = asyncio.get_running_loop().create_task(hub.feed("answer:1", stream()))
            await until(lambda: broker.logs["answer:1"])
            gate = broker.gate("publish")
            stream.queue.put_nowait(None)
            await until(lambda: len(broker.called("publish")) == 2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            gate.set()
            await until(lambda: not hub._feeds)
            assert [p.event for p in broker.logs["answer:1"]] == ["start", "end"]

    async def test_what_the_iterable_awaited_being_cancelled_is_failed(self, hub):
        stream = Stream()
        stream.queue.put_nowait(asyncio.CancelledError())
        with pytest.raises(asyncio.CancelledError):
            await hub.feed("answer:1", stream())
        assert names(await kept(hub)) == ["start", "failed"]


class TestOutgrowing:
    def warnings(self, caplog):
        return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]

    async def spread(self, count):
        """Items with so long between them that each is an event."""
        for n in range(count):
            yield str(n)
            await asyncio.sleep(2 * feed.JOIN)

    @pytest.mark.parametrize(
        ("options", "settings", "setting"),
        [
            ({"history": 4}, {}, r"raise history= of the channel, or ASGI_WS_HISTORY (4)"),
            ({"history_ttl": 0.1}, {}, "raise history_ttl= of the channel, or ASGI_WS_HISTORY_TTL (0.1 s)"),
            ({}, {"history_channel_bytes": 1500}, "raise ASGI_WS_HISTORY_CHANNEL_BYTES (1500)"),
        ],
    )
    async def test_it_goes_on_and_is_logged_once_with_the_setting(self, caplog, options, settings, setting):
        hub = Hub(**settings)
        hub.channel("small", public=True, **options)
        async with hub, Client(hub) as client:
            await client.subscribe("small")
            await hub.feed("small", self.spread(6))
            assert await client.events(8) == [None, *"012345", None]
            events = await kept(hub, "small")
        assert "start" not in names(events)
        assert names(events)[-1] == "end"
        assert len(self.warnings(caplog)) == 1
        assert self.warnings(caplog)[0].endswith(setting)
        assert "into channel 'small' (declared at" in self.warnings(caplog)[0]

    async def test_one_that_just_fits_is_not_logged(self, caplog):
        hub = Hub()
        hub.channel("small", public=True, history=4)
        async with hub:
            await hub.feed("small", self.spread(2))
            async with Client(hub) as client:
                await client.subscribe("small", offset=0)
                assert await client.events(4) == [None, "0", "1", None]
        assert self.warnings(caplog) == []


async def test_its_repr_says_where_and_how_much(hub):
    async def publish(event, data):
        return 1

    made = feed.Feed("answer:1", hub.find("answer:1")[0], "token", publish, 1000)
    await made.run(tokens("a"), lambda _: None)
    assert repr(made) == "<Feed into 'answer:1', 3 events, 0 items waiting>"


@pytest.mark.parametrize("server", ["uvicorn", "fast"])
async def test_over_real_sockets_a_page_that_reloads_has_the_whole_answer(server):
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Mount, Route

    hub = answering()

    async def ask(_):
        async def answer():
            for n in range(50):
                yield f"{n} "
                await asyncio.sleep(0.002)

        await hub.feed("answer:1", answer())
        return JSONResponse("done")

    app = Starlette(routes=[Route("/ask", ask, methods=["POST"]), Mount("/ws", hub)], lifespan=hub.lifespan)
    whole = "".join(f"{n} " for n in range(50))
    with serve(app, server) as served:
        asking = asyncio.get_running_loop().run_in_executor(None, lambda: served.post("/ask"))
        texts = []
        for reads in (3, 5, 1000):  # three times it loads the page, each time for longer
            async with served.connect() as ws:
                await welcomed(ws)
                await send(ws, type="subscribe", channel="answer:1", offset=0)
                text = ""
                for _ in range(reads):
                    async with asyncio.timeout(DEADLINE):
                        event = await receive(ws, "event")
                    text += event["data"] or ""
                    if event["event"] == "end":
                        break
                texts.append(text)
        assert (await asking).json() == "done"
    assert texts[2] == whole
    assert all(whole.startswith(text) for text in texts)
