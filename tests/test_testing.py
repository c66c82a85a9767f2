"""`asgi_ws.testing`: every wait ends and says what came instead; links stall and break; time moves by hand."""

import asyncio
import json
import logging
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest
import uvloop
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from asgi_ws import Forbidden, Hub, HubMiddleware, Identity, Position, Session, Unauthorized, endings, testing
from asgi_ws.testing import Client, Closed, Denied, Failed, connect, hub_time, running, settle

pytestmark = pytest.mark.anyio

BOTH = pytest.mark.parametrize("subprotocol", [None, "asgi-ws.v1.json", "asgi-ws.v1.msgpack"])


def mounted(hub):
    hub.channel("orders", public=True)
    hub.channel("cursor", public=True, history=0)
    return Starlette(routes=[Mount("/ws", hub)])


@pytest.fixture
def hub():
    return Hub()


@pytest.fixture
def app(hub):
    return mounted(hub)


# Hearing.


@BOTH
async def test_it_hears_events_and_knows_its_position(hub, app, subprotocol):
    async with connect(app, "/ws/stream?channel=orders", subprotocol=subprotocol) as client:
        assert client.subprotocol == subprotocol
        assert list(client.joined) == ["broadcast", "orders"]
        assert client.welcome["session"] == client.session
        begin = client.position("orders")
        assert begin.offset == 0
        position = await hub.publish("orders", "created", {"n": 1})
        event = await client.assert_event("orders", "created", {"n": 1})
        assert event["offset"] == 1
        assert client.position("orders") == position == client.positions["orders"]
        await hub.publish("orders", "created", {"n": 2}, exclude=client.session)
        assert (await client.receive("position"))["offset"] == 2
        assert client.position("orders").offset == 2
        assert client.events == [event]
        await client.assert_nothing()


async def test_a_channel_without_history_has_no_position(hub, app):
    async with connect(app, "/ws/stream?channel=cursor") as client:
        await hub.publish("cursor", "moved", [1, 2])
        await client.assert_event("cursor", "moved", [1, 2])
        assert client.position("cursor") is None


async def test_what_the_session_alone_is_sent_has_no_channel(hub, app):
    @hub.channel("task:{n:int}")
    async def task(session: Session, n: int) -> None:
        await session.send("greeting", n)

    async with connect(app, "/ws/stream?channel=task:7") as client:
        await client.assert_event(None, "greeting", 7)


async def test_events_of_other_channels_wait_until_they_are_asked_for(hub, app):
    async with connect(app, "/ws/stream?channel=orders") as client:
        await hub.broadcast("first", 1)
        await hub.publish("orders", "second", 2)
        await client.assert_event("orders", "second", 2)
        with pytest.raises(AssertionError, match="expected nothing, got .*first"):
            await client.assert_nothing()
        await client.assert_nothing("orders")
        await client.assert_event("broadcast", "first")
        await client.assert_nothing()


async def test_another_event_is_shown_beside_the_one_that_was_expected(hub, app):
    async with connect(app) as client:
        await hub.broadcast("order.created", {"id": 1, "total": 5})
        with pytest.raises(AssertionError) as raised:
            await client.assert_event("broadcast", "order.created", {"id": 1, "total": 6})
        lines = str(raised.value).splitlines()
        assert "channel 'broadcast' has another event than expected:" in lines
        assert '-     "total": 6' in lines
        assert '+     "total": 5' in lines
        await hub.broadcast("order.paid", None)
        with pytest.raises(
            AssertionError, match=r'(?s)- +"event": "order.created".*\+ +"event": "order.paid"'
        ):
            await client.assert_event("broadcast", "order.created")


async def test_none_is_data_like_any_other(hub, app):
    async with connect(app) as client:
        await hub.broadcast("tick", 1)
        with pytest.raises(AssertionError, match="null"):
            await client.assert_event("broadcast", "tick", None)


@pytest.mark.parametrize(
    ("wait", "expected"),
    [
        (lambda c: c.receive(), "expected a message within 0.05 s, got nothing"),
        (lambda c: c.receive("gap", "error"), "expected gap or error within 0.05 s, got {"),
        (lambda c: c.receive("event", channel="x"), "expected event of channel 'x' within 0.05 s, got {"),
        (
            lambda c: c.assert_event("x", "tick"),
            "expected event 'tick' for channel 'x' within 0.05 s, got {",
        ),
        (lambda c: c.assert_event(None, "tick"), "expected event 'tick' for the session alone within"),
        (
            lambda c: c.request({"type": "pong"}),
            'expected the answer to {"type": "pong"} within 0.05 s, got {',
        ),
        (lambda c: c.closed(), "expected the connection to be closed within 0.05 s, got {"),
    ],
)
async def test_every_wait_ends_and_says_what_came_instead(hub, app, wait, expected):
    async with connect(app, timeout=0.05) as client:
        if "got nothing" not in expected:
            await hub.broadcast("noise", "x" * 500)
            await settle()
        with pytest.raises(AssertionError) as raised:
            await wait(client)
        assert str(raised.value).startswith(expected)
        assert len(str(raised.value)) < 400


async def test_an_error_shows_ten_messages_and_counts_the_rest(hub, app):
    async with connect(app, timeout=0.01) as client:
        for n in range(13):
            await hub.broadcast("noise", n)
        with pytest.raises(AssertionError, match="and 3 more$"):
            await client.receive("gap")


async def test_nothing_is_known_only_when_all_that_is_in_flight_has_come(hub, app):
    async def later() -> None:
        for _ in range(20):
            await asyncio.sleep(0)
        hub.broadcast_nowait("late", 1)

    async with connect(app) as client:
        task = asyncio.create_task(later())
        with pytest.raises(AssertionError, match="late"):
            await client.assert_nothing()
        await task


async def test_nothing_may_be_waited_for_where_threads_are_at_work(hub, app):
    async with connect(app) as client:
        asyncio.get_running_loop().run_in_executor(
            None, lambda: (time.sleep(0.02), hub.broadcast_nowait("late", 1))
        )
        with pytest.raises(AssertionError, match="late"):
            await client.assert_nothing(seconds=0.5)


async def test_a_loop_that_never_rests_does_not_hang_it(app):
    async def restless() -> None:
        while True:
            await asyncio.sleep(0)

    async with connect(app) as client:
        task = asyncio.create_task(restless())
        await client.assert_nothing()
        task.cancel()


# Asking.


@BOTH
async def test_requests_have_their_answers(hub, app, subprotocol):
    async with connect(app, subprotocol=subprotocol) as client:
        assert await client.request({"type": "ping"}) == {"type": "pong", "ref": "test-1"}
        assert (await client.request({"type": "ping", "ref": 5}))["ref"] == 5
        answer = await client.subscribe("orders")
        assert (answer["type"], answer["offset"]) == ("subscribed", 0)
        assert (await client.unsubscribe("orders"))["code"] == "client"
        position = await hub.publish("orders", "created", 1)
        await client.subscribe("orders", epoch=position.epoch, offset=0)
        await client.assert_event("orders", "created", 1)
        await client.unsubscribe("orders")
        assert "recovered" not in await client.subscribe("orders", offset=0)
        await client.assert_event("orders", "created", 1)


async def test_a_refusal_is_raised_or_read(app):
    async with connect(app) as client:
        with pytest.raises(Failed, match="subscribe was refused: not_found: expected a channel") as failed:
            await client.subscribe("nowhere")
        assert failed.value.code == "not_found"
        answer = await client.request({"type": "subscribe", "channel": "nowhere"})
        assert failed.value.answer | {"ref": 0} == answer | {"ref": 0}
        with pytest.raises(Failed, match="not_found"):
            await client.unsubscribe("nowhere")


@BOTH
async def test_commands_are_called_and_events_published(hub, app, subprotocol):
    @hub.command("double")
    async def double(n: int) -> int:
        return 2 * n

    @hub.command("now")
    async def now() -> str:
        return "now"

    @hub.channel("chat")
    async def chat(session: Session) -> None:
        pass

    @chat.publish_right
    async def may(session: Session, event: str) -> None:
        if event != "said":
            raise Forbidden("expected said")

    async with connect(app, "/ws/stream?channel=chat", subprotocol=subprotocol) as client:
        assert await client.call("double", {"n": 21}) == 42
        assert await client.call("now") == "now"
        with pytest.raises(Failed, match="bad_request"):
            await client.call("double", {"n": "x"})
        assert (await client.publish("chat", "said", "hi", key="a"))["offset"] == 1
        assert (await client.publish("chat", "said", "hi", key="a"))["offset"] == 1
        await client.assert_event("chat", "said", "hi")
        with pytest.raises(Failed, match="forbidden"):
            await client.publish("chat", "shouted", "hi")
        await client.assert_nothing()


async def test_a_command_that_takes_too_long_is_given_up_by_hand(hub, app):
    @hub.command("wait")
    async def wait() -> None:
        await asyncio.Event().wait()

    with hub_time(hub) as clock:
        async with connect(app) as client:
            asked = asyncio.create_task(client.call("wait"))
            await clock.advance(9)
            assert not asked.done()
            await clock.advance(2)
            with pytest.raises(Failed, match="timeout"):
                await asked


async def test_answers_find_their_requests_whatever_the_order(app):
    async with connect(app) as client:
        refs = [9, "eight", 7]
        asked = [asyncio.create_task(client.request({"type": "ping", "ref": ref})) for ref in refs]
        assert [(await task)["ref"] for task in reversed(asked)] == refs[::-1]


async def test_it_sends_what_is_no_request_too(app):
    async with connect(app) as client:
        await client.send([{"type": "ping", "ref": 1}, {"type": "ping", "ref": 2}])
        assert [(await client.receive())["ref"] for _ in range(2)] == [1, 2]
        await client.send_raw("{")
        assert (await client.receive("error"))["code"] == "bad_request"
        await client.send_raw(b"\x00")
        assert "binary" in (await client.receive("error"))["message"]


# Connecting.


async def test_headers_tokens_and_the_scope_are_the_tests(hub, app):
    seen = []

    @hub.authenticate
    async def who(connection, token):
        seen.append((connection.client.host, connection.headers["x-shop"], connection.query_params["a"]))
        return Identity(token)

    headers = {"Authorization": "Bearer ann", "X-Shop": "1"}
    path = "/ws/stream?a=b%20c&channel=orders"
    async with connect(app, path, headers=headers, client=("192.0.2.1", 1)) as client:
        assert client.welcome["user"] == "ann"
        assert set(client.joined) == {"broadcast", "user:ann", "orders"}
        await hub.publish_to_user("ann", "hello", None)
        await client.assert_event("user:ann", "hello", None)
    assert seen == [("192.0.2.1", "1", "b c")]


async def test_a_refused_channel_is_among_the_joined(app):
    async with connect(app, "/ws/stream?channel=nowhere") as client:
        assert client.joined["nowhere"]["code"] == "not_found"
        assert client.position("nowhere") is None


async def test_a_path_may_be_written_as_it_is(hub, app):
    hub.channel("größe", public=True)
    async with connect(app, "/ws/stream?channel=größe") as client:
        assert "größe" in client.joined


async def test_connecting_waits_for_channels_that_take_their_time(hub, app):
    @hub.channel("slow")
    async def slow(session: Session) -> None:
        await asyncio.sleep(0.01)

    async with connect(app, "/ws/stream?channel=slow") as client:
        assert client.joined["slow"]["type"] == "subscribed"


async def test_a_refused_handshake_raises_its_code(hub, app):
    @hub.authenticate
    async def who(connection, token):
        if token is not None:
            raise Unauthorized("expected another token")

    headers = {"authorization": "Bearer bad"}
    with pytest.raises(Closed, match="the connection is closed: 4001 expected another token") as closed:
        async with connect(app, headers=headers):
            pass
    assert (closed.value.code, closed.value.reason) == (4001, "expected another token")
    with pytest.raises(Closed, match="4004"):
        async with connect(app, "/ws/elsewhere"):
            pass
    with pytest.raises(Closed, match="1008"):
        async with connect(app, subprotocol="chat"):
            pass


async def test_a_handshake_that_is_answered_with_http_raises_the_status():
    app = mounted(Hub(refuse="http", enabled=False))
    with pytest.raises(Denied, match="the handshake was denied: 503 .*disabled") as denied:
        async with connect(app):
            pass
    assert denied.value.status == 503
    assert json.loads(denied.value.body)["code"] == "unavailable"
    with pytest.raises(Denied, match="403"):  # where the server cannot say more
        async with connect(app, extensions={}):
            pass


@pytest.mark.parametrize("accepts", [True, False])
async def test_what_the_app_raises_is_raised_in_the_test(accepts):
    async def app(scope, receive, send):
        await receive()
        if accepts:
            await send({"type": "websocket.accept"})
        raise ZeroDivisionError("the app's")

    with pytest.raises(ZeroDivisionError, match="the app's"):
        async with connect(app):
            pass


async def test_what_the_app_raises_at_its_end_is_raised_too():
    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": '{"type":"welcome"}'})
        await receive()
        raise ZeroDivisionError("the app's")

    with pytest.raises(ZeroDivisionError, match="the app's"):
        async with connect(app):
            pass
    with pytest.raises(LookupError, match="the test's"):
        async with connect(app):
            raise LookupError("the test's")


async def test_an_app_that_says_nothing_or_does_not_end_is_told_of():
    async def silent(scope, receive, send):
        await asyncio.sleep(60)

    with pytest.raises(AssertionError, match="done with the connection within 0.02 s") as raised:
        async with connect(silent, timeout=0.02):
            pass
    assert "expected welcome within 0.02 s, got nothing" in str(raised.value.__context__)

    async def returns(scope, receive, send):
        return

    with pytest.raises(Closed, match="1006"):
        async with connect(returns):
            pass


# Ending.


async def test_when_the_app_closes_it_is_known_how(hub, app):
    @hub.channel("door")
    async def door(session: Session) -> None:
        await session.close(4050, "out")

    async with connect(app) as client:
        await client.send({"type": "subscribe", "channel": "door"})
        closed = await client.closed()
        assert (closed.code, closed.reason) == (4050, "out")
        assert (await client.receive("disconnect"))["reconnect"] is False
        with pytest.raises(Closed) as raised:
            await client.receive("event")
        assert (raised.value.code, str(raised.value)) == (4050, "the connection is closed: 4050 out")
        assert raised.value.__notes__ == ["expected event, got nothing, and then the end"]
        with pytest.raises(Closed):
            await client.send({"type": "ping"})


async def test_after_the_block_the_app_is_done_with_it(hub, app):
    async with connect(app):
        assert (await hub.status())["active_connections"] == 1
    assert (await hub.status())["active_connections"] == 0
    assert hub.stats()["disconnects"] == {"1001": 1}


async def test_a_dropped_client_resumes_where_it_was(hub, app):
    async with connect(app, "/ws/stream?channel=orders") as client:
        await hub.publish("orders", "created", 1)
        await client.assert_event("orders", "created", 1)
        await client.drop()
        assert hub.stats()["disconnects"] == {"1006": 1}
        await client.drop()
        with pytest.raises(Closed, match="1006"):
            await client.receive()
        await hub.publish("orders", "created", 2)
    async with connect(app, resume=client.positions) as client:
        assert client.joined["orders"]["recovered"] is True
        assert client.joined["broadcast"]["recovered"] is True
        await client.assert_event("orders", "created", 2)
        await client.assert_nothing()


async def test_a_stalled_link_holds_back_what_the_app_sends(hub, app):
    async with connect(app) as client:
        client.stall(after=2)
        for n in range(4):
            await hub.broadcast("tick", n)
        await settle()
        assert [event["data"] for event in client.events] == [0, 1]
        client.resume_reading()
        await settle()
        assert [event["data"] for event in client.events] == [0, 1, 2, 3]


async def test_what_was_not_read_before_a_drop_is_lost(hub, app):
    async with connect(app) as client:
        client.stall()
        await hub.broadcast("tick", 1)
        await settle()
        await client.drop()
        assert client.events == []
    async with connect(app, resume=client.positions) as client:
        await client.assert_event("broadcast", "tick", 1)


async def test_who_reads_nothing_is_too_slow(app):
    hub = Hub(outbox_messages=8)
    app = mounted(hub)
    hub.channel("strict", public=True, slow="disconnect")
    async with connect(app, "/ws/stream?channel=strict") as client:
        client.stall()
        for n in range(20):
            await hub.publish("strict", "tick", n)
            await settle()
        client.resume_reading()
        assert (await client.closed()).code == 4102


# Time.


async def test_time_stands_still_until_it_is_moved(hub, app):
    with hub_time(hub) as clock:
        before = clock.time(), clock.monotonic()
        async with connect(app) as client:
            await hub.broadcast("tick", 1)
            first = (await client.assert_event("broadcast", "tick", 1))["time"]
            await clock.advance(1.5)
            await hub.broadcast("tick", 2)
            assert (await client.assert_event("broadcast", "tick", 2))["time"] == first + 1500
        assert (clock.time(), clock.monotonic()) == pytest.approx((before[0] + 1.5, before[1] + 1.5))
        assert abs(before[0] - time.time()) < 60
        with pytest.raises(ValueError, match="expected seconds to let pass, got -1"):
            await clock.advance(-1)
        assert repr(clock).startswith("<Clock moved by 1.5 s")


async def test_history_expires_by_hand(app):
    hub = Hub(history_ttl=300)
    app = mounted(hub)
    with hub_time(hub) as clock:
        async with connect(app) as client:
            begin = client.positions
            await hub.broadcast("tick", 1)
        await clock.advance(299)
        async with connect(app, resume=begin) as client:
            await client.assert_event("broadcast", "tick", 1)
        await clock.advance(2)
        async with connect(app, resume=begin) as client:
            assert client.joined["broadcast"]["recovered"] is False
            await client.assert_nothing()


async def test_hearts_beat_by_hand(hub, app):
    with hub_time(hub) as clock:
        async with connect(app) as client:
            await clock.advance(24)
            assert client.pings == 0
            await clock.advance(1)
            assert client.pings == 1
            await clock.advance(250)
            assert client.pings == 11
            await client.assert_nothing()
            assert client.messages[-1]["type"] == "subscribed"


async def test_who_no_longer_answers_pings_shows_no_sign_of_life(hub, app):
    with hub_time(hub) as clock:
        async with connect(app) as client:
            await clock.advance(100)
            client.answers_pings = False
            await clock.advance(100)
            assert (await client.closed()).code == 4105


async def test_a_write_that_does_not_end_is_aborted_by_hand(hub, app):
    with hub_time(hub) as clock:
        async with connect(app) as client:
            client.stall()
            await hub.broadcast("tick", 1)
            await clock.advance(9)
            assert (await hub.status())["active_connections"] == 1
            await clock.advance(3)
            assert (await hub.status())["active_connections"] == 0
            with pytest.raises(Closed, match="1006"):
                await client.receive()


async def test_a_function_that_takes_too_long_is_given_up_by_hand(hub, app):
    @hub.channel("slow")
    async def slow(session: Session) -> None:
        await asyncio.Event().wait()

    with hub_time(hub) as clock:
        async with connect(app) as client:
            asked = asyncio.create_task(client.subscribe("slow"))
            await clock.advance(9.9)
            assert not asked.done()
            await clock.advance(0.2)
            with pytest.raises(Failed, match="timeout"):
                await asked
            assert (await client.subscribe("orders"))["type"] == "subscribed"
            await clock.advance(60)  # its deadline falls due, and nobody minds


async def test_authenticate_that_takes_too_long_is_given_up_by_hand(hub, app):
    @hub.authenticate
    async def who(connection, token):
        await asyncio.Event().wait()

    with hub_time(hub) as clock:

        async def connecting() -> None:
            async with connect(app):
                pass

        task = asyncio.create_task(connecting())
        await clock.advance(11)
        with pytest.raises(Closed, match=str(endings.AUTH_TIMED_OUT.code)):
            await task


async def test_identities_expire_by_hand(hub, app):
    with hub_time(hub) as clock:

        @hub.authenticate
        async def who(connection, token):
            return Identity("ann", expires_at=clock.time() + 60)

        async with connect(app) as client:
            await clock.advance(50)
            await client.assert_nothing()
            await clock.advance(50)
            assert (await client.closed()).code == 4103


async def test_keys_are_forgotten_by_hand(hub, app):
    with hub_time(hub) as clock:
        first = await hub.broadcast("tick", 1, key="a")
        assert await hub.broadcast("tick", 1, key="a") == first
        await clock.advance(301)
        assert (await hub.broadcast("tick", 1, key="a")).offset == first.offset + 1


async def test_a_publisher_does_not_wait_for_who_is_stalled_though_time_stands_still():
    hub = Hub(max_event_bytes=300_000, outbox_bytes=10_000_000)
    app = mounted(hub)
    with hub_time(hub):
        async with connect(app) as client, connect(app) as other:
            client.stall()
            for _ in range(4):
                await hub.broadcast("tick", "x" * 290_000)
                await other.assert_event("broadcast", "tick")


async def test_the_machines_time_is_back_after_the_block(hub, app):
    with hub_time(hub):
        pass
    async with connect(app) as client:
        await hub.broadcast("tick", 1)
        assert abs((await client.assert_event("broadcast", "tick"))["time"] / 1000 - time.time()) < 60
    with pytest.raises(RuntimeError, match="expected hub_time before the start of <Hub 'asgi_ws'>"):
        with hub_time(hub):
            pass


# Around it.


async def test_an_app_is_started_as_a_server_starts_it(caplog):
    caplog.set_level(logging.INFO, "asgi_ws")
    hub = Hub()
    app = FastAPI(lifespan=hub.lifespan)
    app.mount("/ws", hub)

    @app.post("/say/{text}")
    async def say(text: str):
        return await hub.broadcast("said", text)

    async with running(app) as started:
        assert started.state == {"hub": hub}
        async with connect(started) as client:
            transport = httpx2.ASGITransport(started)
            async with httpx2.AsyncClient(transport=transport, base_url="http://test") as http:
                assert (await http.post("/say/hi")).json()["offset"] == 1
            await client.assert_event("broadcast", "said", "hi")
    assert not [record for record in caplog.records if "first use" in record.getMessage()]


async def test_the_hubs_middleware_is_served_too():
    hub = Hub()
    app = HubMiddleware(Starlette(routes=[Route("/", PlainTextResponse("hi"))]), hub=hub)
    async with running(app) as started, connect(started, "/ws/stream") as client:
        await hub.broadcast("tick", 1)
        await client.assert_event("broadcast", "tick", 1)


async def test_an_app_that_knows_no_lifespan_runs_anyway():
    async def app(scope, receive, send):
        assert scope["type"] == "websocket"

    async with running(app) as started:
        with pytest.raises(Closed):
            async with connect(started):
                pass


async def test_an_app_that_cannot_start_says_why():
    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    with pytest.raises(AssertionError, match="expected the app's startup, got: no database"):
        async with running(app):
            pass

    async def hangs(scope, receive, send):
        await asyncio.sleep(60)

    with pytest.raises(AssertionError, match="expected the app's startup within 0.02 s"):
        async with running(hangs, seconds=0.02):
            pass


async def test_an_app_that_fails_at_its_stop_is_told_of():
    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.failed"})
        raise ZeroDivisionError

    with pytest.raises(AssertionError, match=r"expected the app's shutdown, got: lifespan.shutdown.failed"):
        async with running(app):
            pass


def test_it_needs_no_pytest_and_runs_on_uvloop():
    async def main() -> None:
        hub = Hub()
        app = mounted(hub)
        with hub_time(hub) as clock:
            async with connect(app, "/ws/stream?channel=orders") as client:
                await clock.advance(25)
                assert client.pings == 1
                await hub.publish("orders", "created", 1)
                await client.assert_event("orders", "created", 1)
                await client.assert_nothing()

    asyncio.run(main())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def test_it_works_beside_starlettes_testclient():
    hub = Hub()
    app = FastAPI(lifespan=hub.lifespan)
    app.mount("/ws", hub)

    @app.post("/say/{text}")
    def say(text: str):
        return hub.from_thread.broadcast("said", text)

    async def listen(posted: list[int]) -> None:
        async with connect(app) as client:
            status = await asyncio.to_thread(http.post, "/say/hi")
            posted.append(status.status_code)
            await client.assert_event("broadcast", "said", "hi")

    with TestClient(app) as http:
        posted: list[int] = []
        http.portal.call(listen, posted)
        assert posted == [200]


def test_nothing_imports_it_but_who_asks_for_it():
    code = "import sys, asgi_ws, asgi_ws.cli; print([name for name in sys.modules if 'testing' in name])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [name for name in eval(done.stdout) if name.startswith("asgi_ws")] == []


async def test_a_forbidden_channel_is_an_error_that_names_it(hub, app):
    @hub.channel("secret")
    async def secret(session: Session) -> None:
        raise Forbidden("expected an admin")

    async with connect(app) as client:
        with pytest.raises(Failed, match="forbidden: expected an admin"):
            await client.subscribe("secret")
        assert "0 of" in repr(client) or "1 of" in repr(client)


async def test_a_position_that_is_forged_is_not_recovered(app):
    async with connect(app, resume={"orders": Position("forged", 5)}) as client:
        assert client.joined["orders"]["recovered"] is False


# Its page.

TESTING = Path(__file__).parent.parent / "docs/testing.md"


def blocks():
    return re.findall(r"^```python\n(.*?)^```$", TESTING.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_the_tests_of_the_page_pass(loop):
    names = [
        name for block in blocks() for name in re.findall(r"^(?:async )?def (test_\w+)", block, re.MULTILINE)
    ]
    assert len(names) >= 7
    for name in names:
        namespace = {"__name__": "app"}  # each begins with an app of its own, as it does in a module
        for block in blocks():
            exec(compile(block, "docs/testing.md", "exec", dont_inherit=True), namespace)
        test = namespace[name]
        if asyncio.iscoroutinefunction(test):
            with asyncio.Runner(loop_factory=loop) as runner:
                runner.run(test())
        else:
            test()


def test_every_name_of_it_is_on_the_page():
    page = TESTING.read_text()
    public = {name for name in vars(Client) if not name.startswith("_")}
    attributes = ["welcome", "joined", "messages", "pings", "answers_pings"]
    assert {"drop", "stall", "assert_nothing"} <= public
    missing = [name for name in [*sorted(public), *attributes] if f"client.{name}" not in page]
    assert missing == ["session", "subprotocol"]  # which say themselves
    assert [name for name in testing.__all__ if name not in page] == ["Clock", "Running", "settle"]
