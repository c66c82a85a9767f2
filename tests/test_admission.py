"""Coming in: a token in the handshake or in the first message, refreshed later, with rights asked anew."""

import asyncio
import contextvars
import gc
import logging
import threading
import time
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.routing import Mount
from websockets.exceptions import ConnectionClosed

from asgi_ws import Forbidden, Hub, HubMiddleware, Identity, NotFound, Router, Session, Unauthorized
from asgi_ws.admission import MAX_AUTHS
from asgi_ws.auth import find_token
from asgi_ws.memo import Memo
from asgi_ws.messages import MAX_REQUESTS
from asgi_ws.session import MOVES, Move, State
from asgi_ws.settings import Settings
from asgi_ws.transports.bypass import bypassed
from tests.fakes import Client, FakeBroker, turns, until
from tests.servers import SERVERS, eventually, receive, send, serve
from tests.test_auth import connection

pytestmark = pytest.mark.anyio

BEARER = {"authorization": "Bearer ann"}


def asking(**settings):
    """A hub that has to be told who it is: the token is the user's name, `bad` is nobody's."""
    hub = Hub(**settings)
    hub.channel("orders", public=True)
    hub.asked = []

    @hub.authenticate
    async def who(connection, token):
        hub.asked.append(token)
        if token is None or token == "bad":
            raise Unauthorized(f"expected a good token, got {'none' if token is None else 'a bad one'}")
        user, _, seconds = token.partition(" for ")
        return Identity(user, expires_at=time.time() + float(seconds) if seconds else None)

    return hub


async def auth(client, token, ref=7):
    """Say who one is; return the answer."""
    client.send(type="auth", ref=ref, token=token)
    while (answer := await client.receive("reply", "error")).get("ref") != ref:
        pass
    return answer


class TestTheToken:
    @pytest.mark.parametrize(
        ("headers", "query", "cookie", "in_query", "token"),
        [
            ({"authorization": "Bearer a", "cookie": "t=b"}, b"token=c", "t", True, "a"),
            ({"authorization": "Basic a", "cookie": "t=b"}, b"token=c", "t", True, "b"),
            ({"cookie": "u=b"}, b"token=c", "t", True, "c"),
            ({"cookie": "t=b"}, b"token=c", None, True, "c"),
            ({"cookie": "t="}, b"token=", "t", True, None),
            ({"cookie": "t=b"}, b"token=c", None, False, None),
        ],
    )
    def test_is_the_headers_else_the_cookies_else_the_querys(self, headers, query, cookie, in_query, token):
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        given = connection(None, query_string=query)
        given.scope["headers"] = raw
        assert find_token(given, cookie, in_query=in_query) == token

    async def test_settings_say_where_it_is(self):
        hub = asking(token_cookie="session", token_in_query=True)
        async with hub:
            for options in ({"headers": {"cookie": "session=ann"}}, {"query_string": b"token=ann"}):
                async with Client(hub, **options) as client:
                    assert (await client.receive("welcome"))["user"] == "ann"

    async def test_is_in_no_log(self, caplog):
        caplog.set_level(logging.DEBUG)
        hub = asking(token_in_query=True)
        async with hub:
            async with Client(hub, query_string=b"token=s3cret-q") as client:
                await client.receive("subscribed")
                await auth(client, "s3cret-a")
                client.send(type="auth", token=["s3cret-b"])
                await client.receive("error")
            async with Client(hub) as client:
                await client.receive("welcome")
                await auth(client, "s3cret-c for nothing")
        assert "s3cret" not in caplog.text.replace("s3cret-c for nothing", "")
        assert "could not convert string to float" in caplog.text  # the application's own is whole
        assert "s3cret" not in repr(Memo({"headers": [(b"authorization", b"s3cret")]}))


class TestPending:
    async def test_is_asked_for_a_token_and_has_nothing_until_then(self):
        hub = asking()
        async with hub, Client(hub, channels=["orders"]) as client:
            welcome = await client.receive()
            assert (welcome["type"], welcome["auth"], welcome["user"]) == ("welcome", "required", None)
            await hub.broadcast("tick", 1)
            await hub.publish("orders", "created", 2)
            for request in (
                {"type": "subscribe", "channel": "orders"}, {"type": "unsubscribe", "channel": "broadcast"},
            ):  # fmt: skip
                client.send(**request, ref=1)
                answer = await client.receive()
                assert (answer["code"], answer["ref"], answer["channel"]) == (
                    "unauthorized",
                    1,
                    request["channel"],
                )
            client.send(type="ping", ref=2)
            assert await client.receive() == {"type": "pong", "ref": 2}
            client.send(type="pong")
            client.send(type="shout")
            assert (await client.receive())["code"] == "bad_request"
            status = await hub.status()
            assert (status["active_connections"], status["subscriptions"], status["users"]) == (1, 0, 0)

            assert await auth(client, "ann") == {
                "type": "reply", "ref": 7, "data": {"user": "ann", "expires_in": None},
            }  # fmt: skip
            joined = {(await client.receive("subscribed"))["channel"] for _ in range(3)}
            assert joined == {"broadcast", "user:ann", "orders"}
            assert (await hub.status())["users"] == 1
            await hub.publish_to_user("ann", "letter", 3)
            assert await client.events(1) == [3]
        assert hub.asked == [None, "ann"]

    async def test_resumes_when_it_has_said_who_it_is(self):
        hub = asking()
        async with hub:
            first = await hub.publish_to_user("ann", "letter", 1)
            await hub.publish_to_user("ann", "letter", 2)
            query = f"resume={first.epoch}.1.user:ann".encode()
            async with Client(hub, query_string=query) as client:
                await client.receive("welcome")
                await auth(client, "ann")
                joined = [await client.receive("subscribed") for _ in range(2)]
                assert {one["channel"]: one.get("recovered") for one in joined} == {
                    "broadcast": None, "user:ann": True,
                }  # fmt: skip
                assert await client.events(1) == [2]

    async def test_a_bad_token_in_the_handshake_is_4001_and_one_in_a_message_an_error(self):
        hub = asking()
        async with hub:
            async with Client(hub, headers={"authorization": "Bearer bad"}) as client:
                await client.ended()
                assert (client.closed["code"], client.closed["reason"]) == (
                    4001,
                    "expected a good token, got a bad one",
                )
            async with Client(hub) as client:
                await client.receive("welcome")
                answer = await auth(client, "bad")
                assert (answer["code"], answer["message"]) == (
                    "unauthorized",
                    "expected a good token, got a bad one",
                )
                assert (await client.subscribe("orders"))["code"] == "unauthorized"
                assert (await auth(client, "ann"))["type"] == "reply"

    async def test_is_what_anonymous_means_where_auth_is_required(self):
        hub = Hub(require_auth=True)

        @hub.authenticate
        async def who(connection, token):
            return Identity(token) if token and token != "nobody" else None

        async with hub:
            async with Client(hub) as client:
                assert (await client.receive("welcome"))["auth"] == "required"
                assert (await auth(client, "nobody"))["code"] == "unauthorized"
                assert (await auth(client, "ann"))["type"] == "reply"
            async with Client(hub, headers={"authorization": "Bearer nobody"}) as client:
                await client.ended()
                assert client.closed["code"] == 4001

    async def test_where_nothing_takes_a_token_who_has_to_have_one_is_refused_at_once(self):
        hub = Hub(require_auth=True)
        async with hub, Client(hub) as client:
            await client.ended()
            assert (client.closed["code"], client.closed["reason"]) == (4001, "expected a token, got none")

    async def test_may_turn_out_to_be_anonymous(self):
        hub = Hub()

        @hub.authenticate
        async def who(connection, token):
            if token is None:
                raise Unauthorized

        async with hub, Client(hub) as client:
            await client.receive("welcome")
            assert (await auth(client, "guest"))["data"] == {"user": None, "expires_in": None}
            assert (await client.receive())["channel"] == "broadcast"

    async def test_ends_after_the_time_that_it_has(self):
        hub = asking(auth_timeout=0.05)
        async with hub:
            clients = [Client(hub) for _ in range(100)]
            for client in clients:
                await client.__aenter__()
            for client in clients:
                await client.ended()
                assert (client.closed["code"], client.closed["reason"]) == (4012, "authentication timed out")
            assert (await hub.status())["active_connections"] == 0
            assert hub.stats()["disconnects"] == {"4012": 100}

    async def test_ends_in_time_though_it_is_being_asked(self):
        hub, never = Hub(auth_timeout=0.05), asyncio.Event()

        @hub.authenticate
        async def who(connection, token):
            if token is None:
                raise Unauthorized
            await never.wait()

        async with hub, Client(hub) as client:
            await client.receive("welcome")
            client.send(type="auth", token="ann")
            await client.ended()
            assert client.closed["code"] == 4012
        assert not hub._lifecycle._holders

    async def test_that_has_ended_is_not_listened_to_any_more(self):
        hub, asked = asking(auth_timeout=0.05), []

        @hub.channel("room")
        async def room():
            asked.append("room")

        async with hub, Client(hub) as client:
            await client.receive("welcome")
            (session,) = hub._lifecycle.run.sessions.values()
            client.pause()  # its last words wait, so that it goes on sending
            await until(lambda: session.phase is State.CLOSING)
            client.send(type="auth", token="ann")
            client.send(type="subscribe", channel="room")
            await turns(20)
            client.resume()
            await client.ended()
        assert asked == []
        assert hub.asked == [None]

    async def test_who_has_been_admitted_in_time_stays(self):
        hub = asking(auth_timeout=0.05)
        async with hub, Client(hub) as client:
            await client.receive("welcome")
            await auth(client, "ann")
            await asyncio.sleep(0.1)
            assert (await client.subscribe("orders"))["type"] == "subscribed"

    async def test_a_slow_authenticate_in_the_handshake_is_4012(self):
        hub = Hub(auth_timeout=0.05)

        @hub.authenticate
        async def who(connection, token):
            await asyncio.Event().wait()

        async with hub, Client(hub) as client:
            await client.ended()
            assert client.closed["code"] == 4012
            assert hub.stats()["rejected"] == {"timeout": 1}

    async def test_is_ended_by_the_stop_of_the_hub(self):
        hub = asking()
        async with Client(hub) as client:
            async with hub:
                await client.receive("welcome")
            await client.ended()
            assert client.closed["code"] == 1012

    async def test_counts_where_capacity_is_counted(self):
        hub = asking(max_connections=1)
        async with hub, Client(hub) as one, Client(hub) as two:
            await one.receive("welcome")
            await two.ended()
            assert two.closed["code"] == 4100


class TestAuth:
    async def test_anonymous_becomes_a_user_once_and_has_their_channel(self):
        hub = Hub()

        @hub.authenticate
        async def who(connection, token):
            return None if token is None else Identity(token)

        async with hub, Client(hub) as client:
            welcome = await client.receive("welcome")
            assert "auth" not in welcome
            await client.receive("subscribed")
            assert (await auth(client, "ann"))["data"]["user"] == "ann"
            assert (await client.receive())["channel"] == "user:ann"
            answer = await auth(client, "bob")
            assert (answer["code"], answer["message"]) == (
                "forbidden", "expected a token of the session's user, got another user's",
            )  # fmt: skip
            await hub.publish_to_user("ann", "letter", 1)
            await hub.publish_to_user("bob", "letter", 2)
            await hub.broadcast("tick", 3)
            assert sorted(await client.events(2)) == [1, 3]

    async def test_what_it_has_left_is_not_joined_again(self):
        hub = Hub()

        @hub.authenticate
        async def who(connection, token):
            return None if token is None else Identity(token)

        async with hub, Client(hub) as client:
            await client.receive("subscribed")
            client.send(type="unsubscribe", channel="broadcast")
            await auth(client, "ann")
            assert (await client.receive("subscribed"))["channel"] == "user:ann"
            assert (await hub.status())["subscriptions"] == 1

    async def test_extends_what_would_have_expired(self):
        hub = asking(heartbeat=0.05)
        async with hub, Client(hub, headers={"authorization": "Bearer ann for 0.5"}) as client:
            await client.receive("subscribed")
            data = (await auth(client, "ann for 900"))["data"]
            assert data["user"] == "ann"
            assert 800 < data["expires_in"] <= 900
            await asyncio.sleep(0.6)
            await client.receive("ping")
            assert client.closed is None

    async def test_what_expires_while_it_is_being_extended_is_over(self):
        hub, asked, go = Hub(heartbeat=0.05), asyncio.Event(), asyncio.Event()

        @hub.authenticate
        async def who(connection, token):
            if token == "first":
                return Identity("ann", expires_at=time.time() + 0.1)
            asked.set()
            try:
                await go.wait()
            except asyncio.CancelledError:
                return Identity("ann")  # it does not care
            return Identity("ann")

        async with hub, Client(hub, headers={"authorization": "Bearer first"}) as client:
            await client.receive("subscribed")
            client.send(type="auth", token="second")
            await asked.wait()
            await client.ended()
            assert client.closed["code"] == 4103
            await turns()
            assert (await hub.status())["subscriptions"] == 0

    async def test_a_token_that_has_expired_is_none(self):
        hub = asking()
        async with hub, Client(hub) as client:
            await client.receive("welcome")
            assert (await auth(client, "ann for -1"))["code"] == "unauthorized"

    async def test_a_user_does_not_become_nobody(self):
        hub = Hub()

        @hub.authenticate
        async def who(connection, token):
            return Identity("ann") if token == "ann" else None

        async with hub, Client(hub, headers=BEARER) as client:
            await client.receive("subscribed")
            assert (await auth(client, "x"))["code"] == "unauthorized"
            (session,) = hub._lifecycle.run.sessions.values()
            assert session.user == "ann"

    async def test_where_nothing_takes_a_token_it_is_a_bad_request(self):
        for hooked in (False, True):
            hub = Hub()
            if hooked:
                hub.on_connect(nothing)
            async with hub, Client(hub) as client:
                await client.receive("subscribed")
                answer = await auth(client, "ann")
                assert (answer["code"], answer["message"]) == (
                    "bad_request", "expected no auth, for nothing here takes a token; got one",
                )  # fmt: skip

    @pytest.mark.parametrize("wrong", [5, "ann", Identity(5), Identity("ann", expires_at="tomorrow")])
    async def test_a_function_that_returns_something_else_fails_and_says_so_in_the_log(self, wrong, caplog):
        hub = Hub()

        @hub.authenticate
        async def who(connection, token):
            if token is None:
                raise Unauthorized
            return wrong

        async with hub, Client(hub) as client:
            await client.receive("welcome")
            assert (await auth(client, "ann"))["code"] == "internal"
        assert "expected" in caplog.text

    async def test_a_cancelled_error_of_the_functions_own_is_a_failure_and_the_next_one_is_asked(self):
        hub = Hub()

        @hub.authenticate
        async def who(connection, token):
            if token is None:
                raise Unauthorized
            if token == "cancelled":
                task = asyncio.ensure_future(asyncio.Event().wait())
                task.cancel()
                await task
            return Identity(token)

        async with hub, Client(hub) as client:
            await client.receive("welcome")
            assert (await auth(client, "cancelled"))["code"] == "internal"
            assert (await auth(client, "ann"))["type"] == "reply"

    async def test_it_is_asked_with_the_handshakes_connection(self):
        hub, seen = Hub(), []

        @hub.authenticate
        async def who(connection, token):
            seen.append((
                connection.url.path, dict(connection.headers), dict(connection.query_params), connection.cookies,
                tuple(connection.client or ()), connection.scope["subprotocols"], connection.app, connection.state.hub,
            ))  # fmt: skip
            return None if token is None else Identity(token)

        scope = {"client": ("10.0.0.1", 5), "server": ("h", 80), "query_string": b"a=1"}
        client = Client(hub, headers={"cookie": "c=1", "host": "h"}, **scope)
        client.scope["app"] = hub
        async with hub, client:
            await client.receive("subscribed")
            await auth(client, "ann")
        first, second = seen
        assert first == second
        assert first[-1] is hub

    async def test_they_are_asked_one_at_a_time_and_nothing_waits_for_them(self):
        hub, running, go = Hub(), [], asyncio.Event()
        hub.channel("orders", public=True)

        @hub.authenticate
        async def who(connection, token):
            if token is None:
                return None
            running.append(token)
            assert len(running) == 1
            await go.wait()
            running.remove(token)
            return Identity("ann")

        async with hub, Client(hub) as client:
            await client.receive("subscribed")
            client.send(type="auth", token="1", ref=1)
            client.send(type="auth", token="2", ref=2)
            await until(lambda: running)
            await hub.broadcast("tick", 1)
            assert await client.events(1) == [1]
            assert (await client.subscribe("orders"))["type"] == "subscribed"
            go.set()
            assert [(await client.receive("reply"))["ref"] for _ in range(2)] == [1, 2]

    async def test_a_flood_of_them_is_bounded(self):
        hub, go, count = Hub(), asyncio.Event(), [0]

        @hub.authenticate
        async def who(connection, token):
            if token is not None:
                count[0] += 1
                await go.wait()

        async with hub, Client(hub) as client:
            await client.receive("subscribed")
            for ref in range(1000):
                client.send(type="auth", token="x", ref=ref)
            errors = [await client.receive("error") for _ in range(1000 - MAX_AUTHS - 1)]
            assert {error["code"] for error in errors} == {"limit_exceeded"}
            go.set()
            for _ in range(MAX_AUTHS + 1):
                await client.receive("reply")
            assert count[0] == MAX_AUTHS + 1

    async def test_a_stop_in_the_middle_of_it_leaves_no_session(self):
        hub, asked = Hub(), asyncio.Event()

        @hub.authenticate
        async def who(connection, token):
            if token is None:
                raise Unauthorized
            asked.set()
            await asyncio.Event().wait()

        async with Client(hub) as client:
            async with hub:
                await client.receive("welcome")
                client.send(type="auth", token="ann")
                await asked.wait()
                run = hub._lifecycle.run
            await client.ended()
            assert client.closed["code"] == 1012
            assert not run.sessions

    async def test_a_client_that_is_gone_while_it_is_asked_leaves_nothing(self):
        hub, asked, gone = Hub(), asyncio.Event(), asyncio.Event()

        @hub.authenticate
        async def who(connection, token):
            if token is None:
                raise Unauthorized
            asked.set()
            try:
                await asyncio.Event().wait()
            finally:
                gone.set()

        async with hub:
            async with Client(hub) as client:
                await client.receive("welcome")
                client.send(type="auth", token="ann")
                await asked.wait()
            await gone.wait()
            await turns()
            assert (await hub.status())["active_connections"] == 0
            assert (await hub.status())["subscriptions"] == 0


class TestAuthorizedAgain:
    def hub(self, broker=None):
        hub = Hub(broadcaster=broker) if broker else Hub()
        hub.may = {}

        @hub.authenticate
        async def who(connection, token):
            return None if token is None else Identity(token)

        @hub.channel("room:{name}")
        async def room(session: Session, name):
            may = hub.may.get(name)
            if isinstance(may, asyncio.Event):
                await may.wait()
            elif may is not None:
                raise may

        hub.channel("open", public=True)
        return hub

    async def test_who_becomes_somebody_is_a_member_from_then_on(self):
        hub = self.hub()
        hub.channel("table", public=True, presence=True)
        async with hub, Client(hub, channels=["table"]) as client, Client(hub, channels=["table"]) as other:
            for one in (client, other):
                await one.receive("welcome")
                while (await one.receive("subscribed"))["channel"] != "table":
                    pass
            before = await hub.presence("table")
            assert (before.users, before.sessions) == (0, 2)
            assert (await auth(client, "ann"))["type"] == "reply"
            assert (await other.receive("join"))["member"]["user"] == "ann"
            after = await hub.presence("table")
            assert (after.users, after.sessions) == (1, 2)
            await auth(client, "ann")  # a refresh is no second one
            assert (await hub.presence("table")).sessions == 2

    async def test_each_held_subscription_is_asked_for_and_a_refused_one_ends(self, caplog):
        hub = self.hub()
        rooms = ["kept", "gone", "sign", "missing", "broken"]
        async with hub, Client(hub, channels=[*(f"room:{name}" for name in rooms), "open"]) as client:
            for _ in range(7):
                await client.receive("subscribed")
            hub.may = {
                "gone": Forbidden("members only"), "sign": Unauthorized(), "missing": NotFound("no room"),
                "broken": RuntimeError("secret"),
            }  # fmt: skip
            await auth(client, "ann")
            ended = {}
            for _ in range(4):
                message = await client.receive("unsubscribed")
                ended[message.pop("channel")] = message
            assert ended["room:gone"] == {
                "type": "unsubscribed", "code": "forbidden", "message": "members only", "resubscribe": False,
            }  # fmt: skip
            assert {name: (m["code"], m["resubscribe"]) for name, m in ended.items()} == {
                "room:gone": ("forbidden", False), "room:sign": ("unauthorized", False),
                "room:missing": ("forbidden", False), "room:broken": ("failed", True),
            }  # fmt: skip
            assert "secret" not in ended["room:broken"]["message"]
            for name in (*rooms, "kept"):
                await hub.publish(f"room:{name}", "said", name)
            assert await client.events(2) == ["kept", "kept"]
            hub.may = {}
            assert (await client.subscribe("room:gone"))["type"] == "subscribed"

    async def test_the_channel_of_an_endpoint_ends_the_session(self):
        hub = self.hub()
        hub.endpoint("/rooms/{name}", channel="room:{name}")
        async with hub, Client(hub, "/rooms/a") as client:
            await client.receive("subscribed")
            hub.may["a"] = Forbidden("members only")
            client.send(type="auth", token="ann")
            await client.ended()
            assert (client.closed["code"], client.closed["reason"]) == (4003, "members only")

    async def test_what_is_being_joined_meanwhile_is_asked_for_again_when_it_is(self):
        hub = self.hub()
        users = []

        @hub.channel("slow")
        async def slow(session: Session):
            users.append(session.user)
            if len(users) == 1:
                await hub.may["go"].wait()
            elif session.user == "ann":
                raise Forbidden("not ann")

        hub.may["go"] = asyncio.Event()
        async with hub, Client(hub) as client:
            await client.receive("subscribed")
            client.send(type="subscribe", channel="slow")
            await until(lambda: users)
            await auth(client, "ann")
            hub.may["go"].set()
            assert (await client.receive("subscribed"))["channel"] == "user:ann"
            assert (await client.receive("subscribed"))["channel"] == "slow"
            assert (await client.receive("unsubscribed"))["code"] == "forbidden"
        assert users == [None, "ann"]

    async def test_what_is_left_meanwhile_is_left_once(self):
        hub = self.hub()
        async with hub, Client(hub, channels=["room:a"]) as client:
            for _ in range(2):
                await client.receive("subscribed")
            go = hub.may["a"] = asyncio.Event()
            await auth(client, "ann")
            client.send(type="unsubscribe", channel="room:a", ref=1)
            assert (await client.receive("unsubscribed"))["code"] == "client"
            hub.may["a"] = Forbidden()
            go.set()
            client.send(type="ping", ref=2)
            assert (await client.receive("unsubscribed", "pong"))["type"] == "pong"

    async def test_a_hundred_channels_are_asked_for_a_few_at_a_time(self):
        hub, running, most = Hub(), set(), [0]

        @hub.authenticate
        async def who(connection, token):
            return None if token is None else Identity(token)

        @hub.channel("room:{n:int}")
        async def room(session: Session, n):
            running.add(n)
            most[0] = max(most[0], len(running))
            await asyncio.sleep(0)
            running.discard(n)

        async with hub, Client(hub, channels=[f"room:{n}" for n in range(100)]) as client:
            for _ in range(101):
                await client.receive("subscribed")
            most[0] = 0
            await auth(client, "ann")
            await client.receive("subscribed")
            await until(lambda: most[0] and not running)
        assert 1 < most[0] <= 8

    async def test_hub_unsubscribe_ends_a_users_subscriptions_and_says_so(self):
        hub = self.hub()
        async with (
            hub,
            Client(hub, headers=BEARER, channels=["open"]) as ann,
            Client(hub, channels=["open"]) as nobody,
        ):
            for client, count in ((ann, 3), (nobody, 2)):
                for _ in range(count):
                    await client.receive("subscribed")
            assert await hub.unsubscribe("open", user="ann") == 1
            assert await hub.unsubscribe("open", user="ann") == 0
            message = await ann.receive("unsubscribed")
            assert (message["channel"], message["code"], message["resubscribe"]) == ("open", "server", False)
            await hub.publish("open", "said", 1)
            await hub.broadcast("tick", 2)
            assert await ann.events(1) == [2]
            assert await nobody.events(2) == [1, 2]

    async def test_hub_unsubscribe_refuses_who_is_still_joining(self):
        hub = self.hub(FakeBroker())
        async with hub, Client(hub, headers=BEARER) as client:
            for _ in range(2):
                await client.receive("subscribed")
            go = hub.may["a"] = asyncio.Event()
            client.send(type="subscribe", channel="room:a", ref=1)
            (session,) = hub._lifecycle.run.sessions.values()
            await until(lambda: "room:a" in session.subscriptions)
            assert await hub.unsubscribe("room:a", user="ann") == 1
            go.set()
            answer = await client.receive("error", "subscribed")
            assert (answer["code"], answer["ref"]) == ("forbidden", 1)
            hub.may.clear()
            assert (await client.subscribe("room:a"))["type"] == "subscribed"
            await hub.publish("room:a", "said", 1)
            assert await client.events(1) == [1]


class TestDisconnect:
    async def test_of_a_user_ends_all_their_sessions(self):
        hub = asking()
        async with (
            hub,
            Client(hub, headers=BEARER) as one,
            Client(hub, headers=BEARER) as two,
            Client(hub) as other,
        ):
            for client in (one, two, other):
                await client.receive("welcome")
            assert await hub.disconnect(user="bob") == 0
            assert await hub.disconnect(user="ann", code=4050, reason="bye") == 2
            assert await hub.disconnect(user="ann") == 0
            for client in (one, two):
                assert (await client.receive("disconnect"))["reconnect"] is False
                await client.ended()
                assert (client.closed["code"], client.closed["reason"]) == (4050, "bye")
            assert other.closed is None

    async def test_of_a_session_by_its_id_pending_ones_too(self):
        hub = asking()
        async with hub, Client(hub) as client:
            session = (await client.receive("welcome"))["session"]
            assert await hub.disconnect(session="nothing") == 0
            assert await hub.disconnect(session=session) == 1
            await client.ended()
            assert client.closed["code"] == 4010

    async def test_names_one_thing_and_a_code_of_the_applications(self):
        async with Hub() as hub:
            for wrong in ({}, {"user": "a", "session": "b"}):
                with pytest.raises(TypeError, match="expected a user or a session, got "):
                    await hub.disconnect(**wrong)
            for code in (1001, 3999, 4300):
                with pytest.raises(ValueError, match="expected a close code"):
                    await hub.disconnect(user="a", code=code)


async def nothing(session, connection):
    """An `on_connect` that does nothing."""


class TestHooks:
    def hub(self, **settings):
        """A hub that notes who comes and goes."""
        hub = Hub(**settings)
        hub.log = []

        @hub.on_connect
        async def come(session, connection):
            session.state["name"] = connection.query_params.get("name")
            hub.log.append(("come", session.state["name"]))

        @hub.on_disconnect
        async def go(session, code, reason):
            hub.log.append(("go", session.state["name"], code, reason))

        return hub

    async def test_on_connect_is_before_any_channel_and_on_disconnect_after_the_end(self):
        hub, seen = self.hub(), []

        @hub.channel("orders")
        async def orders(session: Session):
            seen.append(session.state["name"])

        async with hub:
            async with Client(hub, query_string=b"name=ann&channel=orders") as client:
                assert (await client.receive())["type"] == "welcome"
                for _ in range(2):
                    await client.receive("subscribed")
                client.leave(1001)
            await until(lambda: len(hub.log) == 2)
        assert seen == ["ann"]
        assert hub.log == [("come", "ann"), ("go", "ann", 1001, "")]

    async def test_the_channels_that_a_session_had_are_still_known(self):
        hub, channels = Hub(), []
        hub.channel("orders", public=True)

        @hub.on_disconnect
        async def go(session, code, reason):
            channels.extend(session.channels)

        async with hub:
            async with Client(hub, channels=["orders"]) as client:
                for _ in range(2):
                    await client.receive("subscribed")
            await until(lambda: channels)
            assert (await hub.status())["subscriptions"] == 0
        assert sorted(channels) == ["broadcast", "orders"]

    async def test_a_channels_function_that_cannot_be_stopped_leaves_nothing(self):
        hub, began, ended = Hub(), asyncio.Event(), asyncio.Event()

        @hub.channel("room")
        async def room():
            began.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                ended.set()

        async with hub:
            async with Client(hub, channels=["room"]) as client:
                await began.wait()
                client.leave()
            await ended.wait()
            await turns()
            status = await hub.status()
            assert (status["subscriptions"], status["channels"]) == (0, 0)

    async def test_the_ending_of_the_servers_is_told(self):
        hub = self.hub()
        async with hub, Client(hub, query_string=b"name=ann") as client:
            session = (await client.receive("welcome"))["session"]
            await client.receive("subscribed")
            await hub.disconnect(session=session, code=4051, reason="enough")
            await client.ended()
            await until(lambda: len(hub.log) == 2)
        assert hub.log[1] == ("go", "ann", 4051, "enough")

    @pytest.mark.parametrize(
        ("error", "code", "reason"),
        [
            (Forbidden("banned"), 4003, "banned"),
            (Unauthorized(), 4001, "unauthorized"),
            (RuntimeError("secret"), 1011, "internal error"),
            (asyncio.CancelledError(), 1011, "internal error"),
        ],
    )
    async def test_what_on_connect_raises_ends_the_session_and_nobody_says_goodbye(
        self, error, code, reason, caplog
    ):
        hub, gone = Hub(), []

        @hub.on_connect
        async def refuse(session, connection):
            raise error

        @hub.on_disconnect
        async def go(session, code, reason):
            gone.append(code)

        async with hub, Client(hub) as client:
            await client.ended()
            assert (client.closed["code"], client.closed["reason"]) == (code, reason)
            await turns()
            assert (await hub.status())["subscriptions"] == 0
        assert gone == []
        assert ("on_connect of session" in caplog.text) is (code == 1011)

    async def test_there_may_be_several_and_a_crash_of_one_goodbye_is_no_end_of_the_others(self, caplog):
        hub, router, log = Hub(), Router(), []
        for name, where in (("a", hub), ("b", router)):
            where.on_connect(self.note(log, name))
            where.on_disconnect(self.note(log, name, crash=True))
        hub.include_router(router)
        router.on_disconnect(self.note(log, "later"))
        async with hub:
            async with Client(hub) as client:
                await client.receive("subscribed")
            await until(lambda: len(log) == 5)
        assert log == ["a", "b", "a", "b", "later"]
        assert caplog.text.count("RuntimeError: boom") == 2

    def note(self, log, name, crash=False):
        async def come(session, connection):
            log.append(name)

        async def go(session, code, reason):
            log.append(name)
            if crash:
                raise RuntimeError("boom")

        return go if crash or name == "later" else come

    async def test_of_two_on_connect_the_second_fails_and_the_first_hears_of_the_end(self):
        hub = self.hub()

        @hub.on_connect
        async def refuse(session, connection):
            raise Forbidden("banned")

        async with hub, Client(hub) as client:
            await client.ended()
            await until(lambda: len(hub.log) == 2)
        assert hub.log == [("come", None), ("go", None, 4003, "banned")]

    async def test_a_router_brings_its_authenticate_and_two_are_refused(self):
        async def ann(connection, token):
            return Identity("ann")

        async def bob(connection, token):
            return Identity("bob")

        hub, router, inner = Hub(), Router(), Router()
        router.include_router(inner)
        hub.include_router(router)
        assert inner.authenticate(ann) is ann
        assert hub.authenticator is ann
        another = Router()
        another.authenticate(bob)
        with pytest.raises(ValueError, match="expected one authenticate function, got .*ann and .*bob"):
            hub.include_router(another)
        with pytest.raises(TypeError, match="expected authenticate to be async"):
            hub.authenticate(lambda connection, token: None)
        late = Hub()
        late.include_router(another)
        async with late, Client(late) as client:
            assert (await client.receive("welcome"))["user"] == "bob"

    def test_their_repr_says_how_many(self):
        assert repr(self.hub().hooks) == "<Hooks 1 on_connect, 1 on_disconnect>"

    async def test_a_stop_while_the_handshake_is_answered_leaves_no_session(self):
        hub, answering, go = Hub(), asyncio.Event(), asyncio.Event()

        async def app(scope, receive, send):
            async def slowly(message):
                if message["type"] == "websocket.accept":
                    answering.set()
                    await go.wait()
                await send(message)

            await hub(scope, receive, slowly)

        async with hub:
            client = Client(app)
            await client.__aenter__()
            await answering.wait()
            run = hub._lifecycle.run
        go.set()
        await client.ended()
        assert client.closed["code"] == 1012
        assert not run.sessions

    @pytest.mark.parametrize("which", ["on_connect", "on_disconnect"])
    def test_what_is_no_hook_is_refused(self, which):
        def sync(session, connection): ...
        async def too_few(session): ...
        async def too_many(session, a, b, c): ...
        async def by_name(*, session, connection): ...

        register = getattr(Router(), which)
        with pytest.raises(TypeError, match=f"expected {which} to be async, got .*sync"):
            register(sync)
        with pytest.raises(TypeError, match="to be async, got 5"):
            register(5)
        for function in (too_few, too_many, by_name):
            with pytest.raises(TypeError, match=f"expected {which} to take session, "):
                register(function)

    async def test_what_is_sent_in_on_connect_comes_after_the_welcome_and_before_the_channels(self):
        hub = Hub()

        @hub.on_connect
        async def greet(session, connection):
            await session.send("hello", session.id)

        async with hub, Client(hub) as client:
            session = (await client.receive())["session"]
            assert (await client.receive())["data"] == session
            assert (await client.receive())["channel"] == "broadcast"

    async def test_requests_wait_for_on_connect_but_not_pings_and_only_so_many(self):
        hub, go = Hub(), asyncio.Event()
        hub.channel("orders", public=True)

        @hub.on_connect
        async def slow(session, connection):
            await go.wait()

        async with hub, Client(hub) as client:
            await client.receive("welcome")
            client.send(type="subscribe", channel="orders", ref=0)
            for ref in range(1, MAX_REQUESTS + 1):
                client.send(type="subscribe", channel="orders", ref=ref)
            answer = await client.receive()
            assert (answer["code"], answer["ref"]) == ("limit_exceeded", MAX_REQUESTS)
            client.send(type="ping", ref="p")
            assert await client.receive() == {"type": "pong", "ref": "p"}
            go.set()
            assert {(await client.receive("subscribed"))["channel"] for _ in range(2)} == {
                "broadcast",
                "orders",
            }
            codes = {(await client.receive("error"))["code"] for _ in range(MAX_REQUESTS - 1)}
            assert codes == {"already_subscribed"}

    async def test_on_connect_may_end_the_session(self):
        hub = self.hub()

        @hub.on_connect
        async def end(session, connection):
            await session.close(4050, "no")

        async with hub, Client(hub) as client:
            await client.ended()
            assert client.closed["code"] == 4050
            await until(lambda: len(hub.log) == 2)
            assert (await hub.status())["subscriptions"] == 0

    async def test_an_on_connect_that_takes_too_long_is_given_up(self):
        hub = Hub(command_timeout=0.05)

        @hub.on_connect
        async def slow(session, connection):
            await asyncio.Event().wait()

        async with hub, Client(hub) as client:
            await client.ended()
            assert client.closed["code"] == 1013

    @pytest.mark.parametrize("stubborn", [False, True])
    async def test_a_client_that_is_gone_within_on_connect(self, stubborn):
        hub, began, log = Hub(), asyncio.Event(), []

        @hub.on_connect
        async def slow(session, connection):
            began.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                log.append("cancelled")
                if not stubborn:
                    raise

        @hub.on_disconnect
        async def go(session, code, reason):
            log.append(code)

        async with hub:
            async with Client(hub) as client:
                await began.wait()
                client.leave(1001)
            await until(lambda: len(log) == 1 + stubborn)
            await turns()
            assert (await hub.status())["subscriptions"] == 0
        assert log == ["cancelled", 1001][: 1 + stubborn]  # finished is finished, however

    async def test_pending_sessions_come_when_they_have_said_who_they_are(self):
        hub = asking()
        log = []

        @hub.on_connect
        async def come(session, connection):
            log.append((session.user, connection.url.path))

        @hub.on_disconnect
        async def go(session, code, reason):
            log.append((session.user, code))

        async with hub:
            async with Client(hub) as client:
                await client.receive("welcome")
                await auth(client, "bad")
            async with Client(hub) as client:
                await client.receive("welcome")
                client.send(type="auth", token="ann", ref=1)
                await client.receive("reply")
                for _ in range(2):
                    await client.receive("subscribed")
                client.leave(1001)
            await until(lambda: len(log) == 2)
        assert log == [("ann", "/stream"), ("ann", 1001)]

    async def test_at_the_hubs_stop_every_goodbye_is_said_and_may_still_publish(self, caplog):
        hub = self.hub()
        published = []

        @hub.on_disconnect
        async def tell(session, code, reason):
            published.append(await hub.broadcast("left", session.id))

        clients = [Client(hub) for _ in range(50)]
        async with hub:
            for client in clients:
                await client.__aenter__()
                await client.receive("subscribed")
        assert len([entry for entry in hub.log if entry[0] == "go"]) == 50
        assert {entry[2] for entry in hub.log if entry[0] == "go"} == {1012}
        assert len(published) == 50
        assert "failed" not in caplog.text
        for client in clients:
            await client.ended()

    async def test_a_goodbye_that_does_not_end_does_not_hold_up_the_stop(self, monkeypatch, caplog):
        monkeypatch.setattr("asgi_ws.run.CLOSE_WAIT", 0.05)
        hub, cancelled = Hub(), []

        @hub.on_disconnect
        async def forever(session, code, reason):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(session.id)
                raise

        async with hub, Client(hub) as client:
            await client.receive("subscribed")
        assert len(cancelled) == 1
        assert "an on_disconnect did not end" in caplog.text

    async def test_a_goodbye_after_the_stop_that_publishes_is_one_line_in_the_log(self, monkeypatch, caplog):
        monkeypatch.setattr("asgi_ws.run.CLOSE_WAIT", 0.02)
        hub, go = Hub(), asyncio.Event()

        @hub.on_disconnect
        async def late(session, code, reason):
            try:
                await go.wait()
            except asyncio.CancelledError:
                await asyncio.sleep(0.1)
            await hub.broadcast("left", 1)

        async with hub, Client(hub) as client:
            await client.receive("subscribed")
        await until(lambda: "expected <Hub 'asgi_ws'> to be running" in caplog.text)
        assert "Traceback" not in caplog.text

    async def test_a_stop_in_the_middle_of_authenticate_leaves_no_session(self):
        hub, began, go = Hub(), asyncio.Event(), asyncio.Event()

        @hub.authenticate
        async def who(connection, token):
            began.set()
            await go.wait()

        async with hub:
            client = Client(hub)
            await client.__aenter__()
            await began.wait()
            run = hub._lifecycle.run
        go.set()
        await client.ended()
        assert client.closed["code"] == 1012
        assert not run.sessions

    async def test_a_stop_in_the_middle_of_on_connect_leaves_no_session(self):
        hub, began, cancelled = Hub(), asyncio.Event(), []

        @hub.on_connect
        async def slow(session, connection):
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.append(session)

        async with hub:
            client = Client(hub)
            await client.__aenter__()
            await began.wait()
        await client.ended()
        assert client.closed["code"] == 1012
        await turns()
        assert len(cancelled) == 1

    async def test_they_run_in_no_context_of_the_request(self):
        secret = contextvars.ContextVar("secret", default="nothing")
        hub, seen = Hub(), []

        @hub.on_connect
        async def come(session, connection):
            seen.append(secret.get())

        @hub.on_disconnect
        async def go(session, code, reason):
            seen.append(secret.get())

        async def app(scope, receive, send):
            secret.set("the request's")
            await hub(scope, receive, send)

        async with hub:
            async with Client(app) as client:
                await client.receive("subscribed")
            await until(lambda: len(seen) == 2)
        assert seen == ["nothing", "nothing"]

    async def test_start_and_stop_again_and_again_tells_each_session_once(self):
        hub = self.hub()
        for _ in range(3):
            async with hub, Client(hub) as client:
                await client.receive("subscribed")
        assert [entry[0] for entry in hub.log] == ["come", "go"] * 3


class TestWhateverAClientSends:
    REQUESTS = st.lists(
        st.sampled_from(["ping", "subscribe", "unsubscribe", "auth ann", "auth bob", "auth bad", "wait"]),
        max_size=30,
    )

    @given(requests=REQUESTS, hooked=st.booleans(), slow=st.booleans())
    @settings(max_examples=100, deadline=None)
    def test_each_request_has_one_answer_and_nothing_comes_before_it_is_known_who_asks(
        self, requests, hooked, slow
    ):
        asyncio.run(self.exchange(requests, hooked, slow))

    async def exchange(self, requests, hooked, slow):
        hub, told = asking(), []

        async def pause(*_):
            for _ in range(3 * slow):
                await asyncio.sleep(0)

        @hub.channel("room")
        async def room():
            await pause()

        if hooked:
            hub.on_connect(self.hook(pause))
        async with hub, Client(hub, channels=["room"]) as client:
            for ref, request in enumerate(requests):
                if request == "wait":
                    await asyncio.sleep(0)
                    continue
                kind, _, token = request.partition(" ")
                client.send(type=kind, ref=ref, **({"token": token} if token else {"channel": "room"}))
            client.send(type="ping", ref="end")
            await hub.publish("room", "said", 1)
            answered = {ref for ref, request in enumerate(requests) if request != "wait"} | {"end"}
            while answered - {message.get("ref") for message in told}:
                told.append(await client.receive())
            refs = [message["ref"] for message in told if "ref" in message]
            assert len(refs) == len(set(refs))
            self.check(told, dict(enumerate(requests)))

    def hook(self, pause):
        async def come(session, connection):
            assert session.user in {"ann", "bob"}
            assert not session.channels
            await pause()

        return come

    def check(self, told, requests):
        users = {m["data"]["user"] for m in told if m["type"] == "reply"}
        assert len(users) <= 1
        known = False
        for message in told:
            known = known or message["type"] == "reply"
            if not known:
                assert message["type"] in {"welcome", "pong", "error"}
            if message["type"] == "error" and requests[message["ref"]].startswith("auth"):
                bad = requests[message["ref"]] == "auth bad"
                # Too many at once are refused before anybody looks at them.
                expected = {"limit_exceeded", "unauthorized"} if bad else {"limit_exceeded", "forbidden"}
                assert message["code"] in expected


class TestTheTable:
    def test_a_pending_session_opens_when_it_is_admitted_and_ends_like_any_other(self):
        assert {move: state for (at, move), state in MOVES.items() if at is State.PENDING} == {
            Move.ADMIT: State.OPEN, Move.END: State.CLOSING, Move.GONE: State.CLOSED,
        }  # fmt: skip
        assert [at for (at, move) in MOVES if move is Move.ADMIT] == [State.PENDING]
        assert [at for (at, move) in MOVES if move is Move.ASK] == [State.CONNECTING]


# On real servers.


def served_app(hub, server):
    return Starlette(routes=[Mount("/ws", hub)], lifespan=hub.lifespan)


class TestOnAServer:
    @pytest.mark.parametrize("server", SERVERS)
    async def test_the_exchange_of_a_pending_session(self, server):
        hub = asking()
        log = []

        @hub.on_connect
        async def come(session, connection):
            log.append((session.user, connection.headers["user-agent"]))

        @hub.on_disconnect
        async def go(session, code, reason):
            log.append(code)

        with serve(served_app(hub, server), server) as served:
            async with served.connect("/ws/stream?channel=orders", user_agent_header="me") as ws:
                assert (await receive(ws))["auth"] == "required"
                await send(ws, type="subscribe", channel="orders", ref=1)
                assert (await receive(ws))["code"] == "unauthorized"
                await send(ws, type="auth", token="bad", ref=2)
                assert (await receive(ws))["code"] == "unauthorized"
                await send(ws, type="auth", token="ann for 900", ref=3)
                reply = await receive(ws)
                assert (reply["type"], reply["ref"], reply["data"]["user"]) == ("reply", 3, "ann")
                joined = {(await receive(ws, "subscribed"))["channel"] for _ in range(3)}
                assert joined == {"broadcast", "user:ann", "orders"}
                hub.publish_to_user_nowait("ann", "letter", 1)
                assert (await receive(ws, "event"))["data"] == 1
            await eventually(lambda: len(log) == 2)
            assert log[0] == ("ann", "me")
            assert log[1] in {1000, 1005, 1006}  # hypercorn does not say what the client said

    @pytest.mark.parametrize("server", SERVERS)
    async def test_time_runs_out_for_a_hundred_pending_sessions(self, server, monkeypatch):
        if server == "granian":  # it does not close while somebody reads, so it takes so long
            monkeypatch.setattr("asgi_ws.transports.websocket.CLOSE_TIMEOUT", 0.2)
        hub = asking(auth_timeout=0.5)
        with serve(served_app(hub, server), server) as served:

            async def one():
                async with served.connect() as ws:
                    with pytest.raises(ConnectionClosed):
                        while True:
                            await ws.recv()
                    return ws.close_code

            assert await asyncio.gather(*(one() for _ in range(100))) == [4012] * 100
            assert served.get("/ws/status").json()["active_connections"] == 0

    @pytest.mark.parametrize("server", SERVERS)
    async def test_a_client_that_drops_in_the_middle_of_each_step(self, server):
        hub, steps = Hub(), {name: asyncio.Event() for name in ("authenticate", "auth", "on_connect")}
        counts = dict.fromkeys([*steps, "disconnect"], 0)

        async def wait(step):
            counts[step] += 1
            await asyncio.wait_for(asyncio.Event().wait(), 0.2)

        @hub.authenticate
        async def who(connection, token):
            step = connection.query_params["step"]
            if step == "authenticate":
                await wait(step)
            if token is None and step == "auth":
                raise Unauthorized
            if step == "auth":
                await wait(step)

        @hub.on_connect
        async def come(session, connection):
            await wait("on_connect")

        @hub.on_disconnect
        async def go(session, code, reason):
            counts["disconnect"] += 1

        with serve(served_app(hub, server), server) as served:
            for step in steps:
                opening = served.connect(f"/ws/stream?step={step}", open_timeout=None)
                if step == "authenticate":
                    task = asyncio.ensure_future(opening.__aenter__())
                    await eventually(lambda step=step: counts[step])
                    task.cancel()
                else:
                    async with opening as ws:
                        await receive(ws, "welcome")
                        if step == "auth":
                            await send(ws, type="auth", token="x")
                        await eventually(lambda step=step: counts[step])
                        ws.transport.abort()
            await eventually(lambda: served.get("/ws/status").json()["active_connections"] == 0)
            assert served.get("/ws/status").json()["subscriptions"] == 0
        assert counts["disconnect"] == 0


@pytest.mark.parametrize("server", ["uvicorn", "fast", "wsproto", "hypercorn"])
@pytest.mark.parametrize("step", ["authenticate", "auth", "on_connect"])
async def test_a_server_that_stops_in_the_middle_of_a_step_is_not_held_up(server, step):
    hub, began, ended = Hub(), threading.Event(), []

    async def forever(at):
        if at == step:
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(at)

    @hub.authenticate
    async def who(connection, token):
        if token is not None:
            await forever("auth")
        elif step == "auth":
            raise Unauthorized
        await forever("authenticate")

    @hub.on_connect
    async def come(session, connection):
        await forever("on_connect")

    with serve(served_app(hub, server), server, timeout_graceful_shutdown=1) as served:
        opening = asyncio.ensure_future(served.connect(open_timeout=None).__aenter__())
        if step == "auth":
            ws = await opening
            await receive(ws, "welcome")
            await send(ws, type="auth", token="ann")
        await eventually(began.is_set)
    assert ended == [step]
    opening.cancel()
    await asyncio.wait([opening])


class Ours:
    """Middleware that sees WebSockets."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        await self.app(scope, receive, send)


async def test_an_adopted_session_keeps_nothing_of_its_request(monkeypatch):
    variable = contextvars.ContextVar("request")
    kept = []

    class Request:
        """What a middleware puts into the context."""

    class Binds(Ours):
        async def __call__(self, scope, receive, send):
            if scope["type"] == "websocket":
                request = Request()
                kept.append(weakref.ref(request))
                variable.set(request)
                scope["of the request"] = request
                del request
            await self.app(scope, receive, send)

    hub = asking()
    hub.on_connect(nothing)
    app = served_app(hub, "fast")
    app.add_middleware(Binds)
    with serve(app, "fast") as served:
        async with served.connect() as pending, served.connect(additional_headers=BEARER) as ann:
            await receive(pending, "welcome")
            await receive(ann, "subscribed")
            await eventually(lambda: gc.collect() + 1 and not any(ref() for ref in kept))
            assert len(kept) == 2


async def test_on_connect_is_over_before_the_middleware_around_it_cleans_up():
    """An adopted connection's ASGI call ends at once, but not before `on_connect` has used what it was given."""
    states = []

    class Database(Ours):
        async def __call__(self, scope, receive, send):
            if scope["type"] == "websocket":
                scope.setdefault("state", {})["database"] = database = {"open": True}
                try:
                    await self.app(scope, receive, send)
                finally:
                    database["open"] = False
            else:
                await self.app(scope, receive, send)

    hub = Hub()

    @hub.on_connect
    async def come(session, connection):
        await asyncio.sleep(0.05)
        states.append(dict(connection.state.database))

    app = served_app(hub, "fast")
    app.add_middleware(Database)
    with serve(app, "fast") as served:
        async with served.connect() as ws:
            await receive(ws, "subscribed")
    assert states == [{"open": True}]


class TestWhatIsBypassed:
    async def lines(self, caplog, *middleware, **settings):
        from starlette.middleware.base import BaseHTTPMiddleware
        from starlette.middleware.cors import CORSMiddleware
        from starlette.middleware.gzip import GZipMiddleware

        class OfHTTP(BaseHTTPMiddleware):
            pass

        caplog.set_level(logging.INFO, "asgi_ws")
        hub = Hub(**settings)
        app = served_app(hub, "fast")
        for kind in (OfHTTP, CORSMiddleware, GZipMiddleware, *middleware):
            app.add_middleware(kind)
        with serve(app, "fast") as served:
            for _ in range(3):
                async with served.connect() as ws:
                    await receive(ws, "subscribed")
        return [record for record in caplog.records if "handed over" in record.message]

    async def test_is_said_once_with_the_middlewares_names(self, caplog):
        (line,) = await self.lines(caplog, Ours)
        assert line.levelname == "INFO"
        assert "so Ours will not see" in line.message
        assert "ASGI_WS_FAST=false" in line.message

    def test_what_is_behind_the_hubs_own_middleware_is_not_around_it(self):
        class Behind(Ours):
            pass

        hub, app = Hub(), Starlette()
        app.add_middleware(Behind)
        app.add_middleware(HubMiddleware, hub=hub)
        app.add_middleware(Ours)
        assert list(bypassed(app)) == ["Ours"]

    @pytest.mark.parametrize("app", [None, object()])
    def test_of_an_app_that_says_nothing_nothing_is_known(self, app):
        assert list(bypassed(app)) == []

    async def test_nothing_is_said_where_nothing_is(self, caplog):
        assert not await self.lines(caplog)

    async def test_nothing_is_said_where_nothing_is_bypassed(self, caplog):
        assert not await self.lines(caplog, Ours, fast=False)


@pytest.mark.parametrize("interval", [None, 20.0])
async def test_an_adopted_session_is_asked_for_pongs_where_the_server_does_not_ping(interval):
    hub = Hub()
    with serve(served_app(hub, "fast"), "fast", ws_ping_interval=interval) as served:
        async with served.connect() as ws:
            welcome = await receive(ws)
            assert welcome.get("pong", False) is (interval is None)


async def test_a_memo_of_a_scope_with_little_in_it():
    again = Memo({"headers": [], "path": "/stream", "query_string": b""}).connection
    assert dict(again.headers) == {}
    assert dict(again.query_params) == {}
    assert again.client is None
    assert "state" not in again.scope


def test_the_settings_are_there():
    assert Settings().auth_timeout == 10.0
