"""Presence between real servers and real clients, in both codecs: whole messages, and their order.

Where time matters the hub's presence goes by a clock that the test moves.
"""

import asyncio
import contextlib
import time

import pytest
from starlette.requests import HTTPConnection

from asgi_ws import Forbidden, Hub, Identity, Session, presence, room
from asgi_ws.presence import GRACE
from tests.fakes import Alarms
from tests.servers import eventually, serve
from tests.test_protocol import CODECS, app_of, client

pytestmark = pytest.mark.anyio

everywhere = pytest.mark.parametrize(
    ("server", "codec"), [(server, codec) for server in ("uvicorn", "fast", "wsproto") for codec in CODECS]
)


def hub_with_presence():
    hub = Hub()
    hub.channel("room", public=True, presence=True)
    hub.channel("counted", public=True, presence="count")

    @hub.channel("private:{name}", presence=True)
    async def private(session: Session, name: str) -> None:
        if session.user != name:
            raise Forbidden("not yours")

    @hub.authenticate
    async def who(connection: HTTPConnection, _token: str | None) -> Identity | None:
        user = connection.query_params.get("user")
        return None if user is None else Identity(user, info={"name": user.title()})

    return hub


class Place:
    """A served hub whose presence goes by a clock of the test's."""

    def __init__(self, hub, served, codec):
        self.hub, self.served, self.codec = hub, served, codec
        self.clock = Alarms()
        self.hub._lifecycle.run.node.presence._clock = self.clock

    @property
    def presence(self):
        return self.hub._lifecycle.run.node.presence

    def connect(self, user=None, channel="room"):
        query = f"?channel={channel}" if user is None else f"?user={user}&channel={channel}"
        joins = 2 if user is None else 3
        return client(self.served, self.codec, f"/ws/stream{query}", joins=joins)

    async def call(self, function, *args):
        """Call something in the hub's loop."""

        async def do():
            return function(*args)

        loop = self.hub._lifecycle.loop
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(do(), loop))

    async def advance(self, seconds=1.0):
        await self.call(self.clock.advance, seconds)

    async def sessions(self, count):
        """Wait until the server has so many sessions."""
        await eventually(lambda: len(self.hub._lifecycle.run.sessions) == count, f"{count} sessions")

    async def heard(self, one):
        """What a client has heard until now, short."""
        await self.advance()
        return [
            (message["type"], message["member"]["user"])
            if "member" in message
            else (message["type"], message["users"], message["sessions"])
            for message in await one.settle()
            if message["type"] in {"join", "leave", "presence"}
        ]


@pytest.fixture
def place(server, codec):
    hub = hub_with_presence()
    with serve(app_of(hub), server) as served:
        yield Place(hub, served, codec)


@everywhere
async def test_who_comes_and_goes_is_told(place):
    async with place.connect("ann") as ann:
        assert await place.heard(ann) == [("join", "ann")]
        async with place.connect("bob") as bob:
            await place.advance()
            (message,) = await ann.settle()
            since = message["member"].pop("since")
            assert abs(since - place.clock.time() * 1000) < 5000
            assert message == {
                "type": "join",
                "channel": "room",
                "member": {"user": "bob", "sessions": 1, "info": {"name": "Bob"}},
            }
            assert (await bob.settle())[0]["member"]["user"] == "bob"
        await place.sessions(1)
        assert await place.heard(ann) == []
        await place.advance(GRACE)
        (message,) = await ann.settle()
        assert message == {
            "type": "leave",
            "channel": "room",
            "member": {"user": "bob", "sessions": 0, "info": {"name": "Bob"}, "since": since},
        }


@everywhere
async def test_a_reload_is_neither_a_leave_nor_a_join(place):
    async with place.connect("ann") as ann:
        for _ in range(3):
            async with place.connect("bob"):
                await place.advance()
            await place.sessions(1)
            await place.advance(3.0)
        async with place.connect("bob"):
            assert await place.heard(ann) == [("join", "ann"), ("join", "bob")]
            await place.advance(2 * GRACE)
            assert await place.heard(ann) == []


@everywhere
async def test_a_connection_that_is_cut_off_leaves_like_any_other(place):
    async with place.connect("ann") as ann:
        async with contextlib.AsyncExitStack() as stack:
            bob = await stack.enter_async_context(place.connect("bob"))
            await place.heard(ann)
            bob.ws.transport.abort()
            await place.sessions(1)
        await place.advance(GRACE)
        assert await place.heard(ann) == [("leave", "bob")]


@everywhere
async def test_a_session_that_the_server_ends_leaves_like_any_other(place):
    async with place.connect("ann") as ann, place.connect("bob") as bob:
        await place.heard(ann)
        run = place.hub._lifecycle.run
        (session,) = [session for session in run.sessions.values() if session.user == "bob"]
        future = asyncio.run_coroutine_threadsafe(session.close(), place.hub._lifecycle.loop)
        await asyncio.wrap_future(future)
        assert await bob.closed() == (4010, "")
        await place.sessions(1)
        await place.advance(GRACE)
        assert await place.heard(ann) == [("leave", "bob")]


@everywhere
async def test_subscribed_is_first_and_nothing_follows_unsubscribed(place):
    async with place.connect("ann") as ann, place.connect("bob") as bob:
        await place.heard(ann)
        await place.heard(bob)
        await bob.send([{"type": "unsubscribe", "channel": "room"}, {"type": "subscribe", "channel": "room"}])
        await place.advance()
        kinds = [message["type"] for message in await bob.settle()]
        assert kinds == ["unsubscribed", "subscribed"]
        await bob.ask(type="unsubscribe", channel="room")
        async with place.connect("cid"):
            assert await place.heard(ann) == [("join", "cid")]
            assert await place.heard(bob) == []
        await place.sessions(2)
        await place.advance(2 * GRACE)
        assert await place.heard(bob) == []
        assert await place.heard(ann) == [("leave", "bob"), ("leave", "cid")]


@everywhere
async def test_counts_are_told_and_have_no_members(place):
    async with place.connect("ann", "counted") as ann, place.connect(None, "counted") as ghost:
        await place.advance()
        expected = {"type": "presence", "channel": "counted", "users": 1, "sessions": 2}
        assert (await ann.settle())[-1] == expected
        assert (await ghost.settle())[-1] == expected
        answer = await ann.ask(type="presence", channel="counted", ref=1)
        assert answer == {
            "type": "reply",
            "ref": 1,
            "data": {"members": [], "users": 1, "sessions": 2},
        }


@everywhere
async def test_the_list_has_everybody_once(place):
    async with place.connect("ann"), place.connect("bob"), place.connect("bob"), place.connect() as ghost:
        await place.heard(ghost)
        answer = await ghost.ask(type="presence", channel="room", ref="x")
        members = answer["data"].pop("members")
        assert answer == {"type": "reply", "ref": "x", "data": {"users": 2, "sessions": 4}}
        assert [member.keys() for member in members] == [{"user", "sessions", "info", "since"}] * 2
        assert [(m["user"], m["sessions"], m["info"]) for m in members] == [
            ("ann", 1, {"name": "Ann"}),
            ("bob", 2, {"name": "Bob"}),
        ]


@everywhere
async def test_who_may_not_subscribe_is_no_member_and_may_not_ask(place):
    async with client(place.served, place.codec, "/ws/stream?user=ann", joins=2) as ann:
        refused = await ann.ask(type="subscribe", channel="private:bob")
        assert refused["code"] == "forbidden"
        answer = await ann.ask(type="presence", channel="private:bob", ref=1)
        assert (answer["type"], answer["code"], answer["ref"]) == ("error", "forbidden", 1)
        assert not place.presence._rooms


@everywhere
async def test_a_crowd_is_counted(place, monkeypatch):
    monkeypatch.setattr(room, "MAX_MEMBERS", 3)
    monkeypatch.setattr(room, "CALM", 2)
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(place.connect("u0"))
        for number in range(1, 5):
            await stack.enter_async_context(place.connect(f"u{number}"))
        joins = [("join", f"u{number}") for number in range(3)]
        assert await place.heard(first) in ([("presence", 5, 5)], [*joins[:1], ("presence", 5, 5)])
        data = (await first.ask(type="presence", channel="room"))["data"]
        assert ([member["user"] for member in data["members"]], data["users"]) == (["u0", "u1", "u2"], 5)


async def test_presence_has_no_offset_and_is_in_no_history():
    hub = hub_with_presence()
    with serve(app_of(hub)) as served:
        place = Place(hub, served, "json")
        async with place.connect("ann") as ann:
            async with place.connect("bob") as bob:
                await place.advance()
                assert all("offset" not in message for message in await bob.settle())
            await place.sessions(1)
            await place.advance(2 * GRACE)
            await ann.settle()
            await ann.ask(type="unsubscribe", channel="room")
            answer = await ann.ask(type="subscribe", channel="room", offset=0)
            assert answer["offset"] == 0
            assert await ann.settle() == []


@pytest.mark.parametrize("server", ["uvicorn", "fast"])
async def test_a_stop_of_the_server_tells_no_leaves(server):
    hub = hub_with_presence()
    async with contextlib.AsyncExitStack() as stack:
        with serve(app_of(hub), server) as served:
            place = Place(hub, served, "json")
            clients = [await stack.enter_async_context(place.connect(f"u{n}")) for n in range(20)]
            run = hub._lifecycle.run
            await place.advance()
            for one in clients:
                await one.settle()
        assert place.clock.timers == 0
        assert not run.node.presence._rooms
        for one in clients:
            with contextlib.suppress(Exception):
                while True:
                    assert (await one.receive())["type"] == "disconnect"


@pytest.mark.parametrize("server", ["uvicorn", "fast"])
async def test_by_the_machines_own_clock(server, monkeypatch):
    monkeypatch.setattr(presence, "GRACE", 0.05)
    hub = hub_with_presence()
    with serve(app_of(hub), server) as served:
        async with client(served, "json", "/ws/stream?user=ann&channel=room", joins=3) as ann:
            assert (await ann.receive())["member"]["user"] == "ann"
            before = time.time() * 1000
            async with client(served, "msgpack", "/ws/stream?user=bob&channel=room", joins=3):
                (joined,) = await ann.until(type="join")
                assert before - 1000 < joined["member"]["since"] < time.time() * 1000 + 1000
            (left,) = await ann.until(type="leave")
            assert left["member"] == {**joined["member"], "sessions": 0}
            node = hub._lifecycle.run.node
            await eventually(lambda: node.presence._timer is None, "the timer to rest")


@pytest.mark.parametrize("server", ["uvicorn", "fast"])
async def test_a_hundred_who_come_at_once_are_all_told_of_each(server):
    hub = hub_with_presence()
    with serve(app_of(hub), server) as served:
        async with contextlib.AsyncExitStack() as stack:

            async def come(number):
                codec = CODECS[number % 2]
                path = f"/ws/stream?user=u{number}&channel=room"
                return await stack.enter_async_context(client(served, codec, path, joins=3))

            clients = await asyncio.gather(*(come(number) for number in range(100)))
            for one in clients:
                data = await list_of(one)
                view = {member["user"] for member in data["members"]}
                assert data["users"] == len(view) == data["sessions"] == 100
            for one in clients[50:]:
                await one.ws.close()
            await eventually(lambda: len(hub._lifecycle.run.sessions) == 50)
            data = await list_of(clients[0])
            assert (data["users"], data["sessions"]) == (100, 50)
            assert sum(not member["sessions"] for member in data["members"]) == 50


async def list_of(one):
    await one.send({"type": "presence", "channel": "room", "ref": "list"})
    return (await one.until(type="reply", ref="list"))[-1]["data"]
