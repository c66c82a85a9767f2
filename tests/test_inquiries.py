"""Asking who is in a channel: by a client, by the application; for those who are in it, and never without an answer."""

import asyncio
import contextlib

import pytest

from asgi_ws import (
    Binary,
    Forbidden,
    Hub,
    Identity,
    Member,
    NotRunning,
    Presence,
    SettingsError,
    Unavailable,
    Undeclared,
    inquiries,
)
from asgi_ws.auth import MAX_INFO_BYTES, encode_info, identify
from asgi_ws.broadcasters.members import Members
from tests.fakes import Client, FakeBroker, turns, until
from tests.test_auth import connection

pytestmark = pytest.mark.anyio


async def who(_connection, token):
    return None if token is None else Identity(token, info={"name": token.title()})


def as_user(hub, user=None, channels=()):
    headers = {} if user is None else {"authorization": f"Bearer {user}"}
    client = Client(hub, channels=channels, headers=headers)
    client.own = {"broadcast"} if user is None else {"broadcast", f"user:{user}"}
    return client


async def joined(client, *channels):
    waiting = {*client.own, *channels}
    while waiting:
        waiting.discard((await client.receive("subscribed"))["channel"])


async def ask(client, channel, ref=1):
    client.send(type="presence", channel=channel, ref=ref)
    return await client.receive("reply", "error")


class Brokered(FakeBroker):
    """A broker with presence, whose answers can be held back or fail."""

    def __init__(self):
        super().__init__("history", "presence", "total_order")
        self.present = Members()

    def join(self, channel, session, user, info, since):
        for change in self.present.join(channel, session, user, info, since):
            asyncio.get_running_loop().call_soon(self.receiver.changed, change)

    def leave(self, channel, session):
        for change in self.present.leave(channel, session):
            asyncio.get_running_loop().call_soon(self.receiver.changed, change)

    async def members(self, channel, limit):
        await self._begin("members", channel)
        found = self.present.presence(channel, limit)
        await self._answer("members")  # and with it what has changed until then
        return found

    async def stop(self):
        await super().stop()
        self.present = Members()


@pytest.fixture(params=["memory", "broker"])
async def hub(request):
    hub = Hub(broadcaster=None if request.param == "memory" else Brokered())
    hub.authenticate(who)
    hub.channel("room", public=True, presence=True)
    hub.channel("counted", public=True, presence="count")
    hub.channel("plain", public=True)
    async with hub:
        yield hub


class TestAClient:
    async def test_has_the_members_the_users_and_the_sessions(self, hub):
        async with (
            as_user(hub, "ann", ["room"]) as ann,
            as_user(hub, "ann", ["room"]) as tab,
            as_user(hub, None, ["room"]) as ghost,
        ):
            for client in (ann, tab, ghost):
                await joined(client, "room")
            answer = await ask(ghost, "room", "r")
            since = answer["data"]["members"][0].pop("since")
            assert abs(since / 1000 - ann_connected(hub)) < 10
            assert answer == {
                "type": "reply",
                "ref": "r",
                "data": {
                    "members": [{"user": "ann", "sessions": 2, "info": {"name": "Ann"}}],
                    "users": 1,
                    "sessions": 3,
                },
            }

    async def test_has_no_members_of_a_channel_of_counts(self, hub):
        async with as_user(hub, "ann", ["counted"]) as ann:
            await joined(ann, "counted")
            assert (await ask(ann, "counted"))["data"] == {"members": [], "users": 1, "sessions": 1}

    @pytest.mark.parametrize(
        ("channel", "code"),
        [
            ("room", "forbidden"),
            ("counted", "forbidden"),
            ("plain", "forbidden"),
            ("no such", "not_found"),
            ("user:bob", "not_found"),
            ("broadcast", "bad_request"),
            ("", "bad_request"),
            ("x" * 300, "bad_request"),
        ],
    )
    async def test_is_told_why_not(self, hub, channel, code):
        async with as_user(hub, "ann") as ann:
            await joined(ann)
            answer = await ask(ann, channel, 7)
            assert (answer["code"], answer["ref"]) == (code, 7)
            assert answer.get("channel", "x" * 300) == channel

    async def test_is_told_that_a_channel_has_none(self, hub):
        async with as_user(hub, "ann", ["plain"]) as ann:
            await joined(ann, "plain")
            answer = await ask(ann, "plain")
            assert answer["code"] == "bad_request"
            assert answer["message"] == "expected a channel with presence, got 'plain'"

    async def test_may_ask_in_one_go_with_the_subscribe(self, hub):
        asked = asyncio.Event()
        may = True

        @hub.channel("slow", presence=True)
        async def slow():
            await asked.wait()
            if not may:
                raise Forbidden("no")

        async with as_user(hub, "ann") as ann:
            await joined(ann)
            for _ in range(2):
                ann.send(type="subscribe", channel="slow", ref=1)
                ann.send(type="presence", channel="slow", ref=2)
                ann.send(type="unsubscribe", channel="slow", ref=3)
                await turns()
                asked.set()
                answers = [
                    await ann.receive("subscribed", "reply", "unsubscribed", "error") for _ in range(3)
                ]
                found = [(answer["ref"], answer.get("code", answer["type"])) for answer in answers]
                if may:
                    # It has left before it could be answered.
                    assert found == [(1, "subscribed"), (3, "client"), (2, "forbidden")]
                else:
                    assert found == [(1, "forbidden"), (2, "forbidden"), (3, "not_found")]
                may = False
                asked.clear()

    async def test_that_asks_in_one_go_is_answered_after_subscribed(self, hub):
        @hub.channel("asking", presence=True)
        async def asking():
            await asyncio.sleep(0)

        async with as_user(hub, "ann") as ann:
            await joined(ann)
            ann.send(type="subscribe", channel="asking", ref=1)
            ann.send(type="presence", channel="asking", ref=2)
            kinds = [(await ann.receive("subscribed", "reply", "join"))["type"] for _ in range(3)]
            assert kinds[0] == "subscribed"
            assert sorted(kinds[1:]) == ["join", "reply"]

    async def test_that_becomes_somebody_joins(self, hub):
        async with as_user(hub, "ann", ["room"]) as ann, as_user(hub, None, ["room"]) as bob:
            await joined(ann, "room")
            await joined(bob, "room")
            bob.send(type="auth", token="bob", ref=1)
            assert (await bob.receive("reply"))["data"]["user"] == "bob"
            while (await ann.receive("join"))["member"]["user"] != "bob":
                pass
            data = (await ask(ann, "room"))["data"]
            assert [(m["user"], m["info"]) for m in data["members"]] == [
                ("ann", {"name": "Ann"}),
                ("bob", {"name": "Bob"}),
            ]
            assert data["sessions"] == 2

    async def test_without_ref_is_answered_without(self, hub):
        async with as_user(hub, "ann", ["room"]) as ann:
            await joined(ann, "room")
            ann.send(type="presence", channel="room")
            assert (await ann.receive("reply")).keys() == {"type", "data"}

    async def test_hears_its_own_join_after_subscribed(self, hub):
        async with as_user(hub, "ann", ["room"]) as ann:
            heard = [await ann.receive("subscribed", "join") for _ in range(4)]
            assert ("subscribed", "room") in [(message["type"], message["channel"]) for message in heard[:-1]]
            assert (heard[-1]["type"], heard[-1]["channel"]) == ("join", "room")

    async def test_that_goes_while_an_answer_is_made_harms_nobody(self, hub):
        async with as_user(hub, "ann", ["room"]) as ann, as_user(hub, "bob", ["room"]) as bob:
            await joined(ann, "room")
            await joined(bob, "room")
            ann.send(type="presence", channel="room")
            ann.leave()
            assert (await ask(bob, "room"))["data"]["users"] == 2  # one of them is away


def ann_connected(hub):
    return min(session.connected_at for session in hub._lifecycle.run.sessions.values())


class TestAskingABroker:
    @pytest.fixture
    async def hub(self):
        hub = Hub(broadcaster=Brokered())
        hub.authenticate(who)
        hub.channel("room", public=True, presence=True)
        async with hub:
            yield hub

    async def test_is_done_once_for_all_who_wait(self, hub):
        broker = hub._broadcaster
        async with as_user(hub, "ann", ["room"]) as ann, as_user(hub, "bob", ["room"]) as bob:
            await joined(ann, "room")
            await joined(bob, "room")
            gate = broker.gate("members")
            ann.send(type="presence", channel="room", ref=1)
            await until(lambda: broker.called("members"))
            for ref in range(2, 6):
                ann.send(type="presence", channel="room", ref=ref)
                bob.send(type="presence", channel="room", ref=ref)
            ann.send(type="ping")
            await ann.receive("pong")  # nothing else is held up
            gate.set()
            assert [(await ann.receive("reply"))["ref"] for _ in range(5)] == [1, 2, 3, 4, 5]
            assert [(await bob.receive("reply"))["ref"] for _ in range(4)] == [2, 3, 4, 5]
            assert len(broker.called("members")) == 2

    async def test_that_is_away_is_answered_unavailable(self, hub):
        hub._broadcaster.errors["members"] = Unavailable("expected the broker, got silence")
        async with as_user(hub, "ann", ["room"]) as ann:
            await joined(ann, "room")
            assert (await ask(ann, "room"))["code"] == "unavailable"
            del hub._broadcaster.errors["members"]
            assert (await ask(ann, "room"))["data"]["users"] == 1

    async def test_gives_what_has_changed_while_the_answer_was_on_its_way(self, hub):
        broker = hub._broadcaster
        async with as_user(hub, "ann", ["room"]) as ann, as_user(hub, "bob", ["room"]) as bob:
            await joined(ann, "room")
            await joined(bob, "room")
            gate = broker.gate("members answered")
            ann.send(type="presence", channel="room", ref=1)
            await until(lambda: broker.called("members"))
            await turns()
            async with as_user(hub, "cid", ["room"]) as cid, as_user(hub, "ann", ["room"]) as tab:
                await joined(cid, "room")
                await joined(tab, "room")
                bob.leave()
                await bob.ended()
                await turns()
                gate.set()
                data = (await ann.receive("reply"))["data"]
        assert {member["user"]: member["sessions"] for member in data["members"]} == {
            "ann": 2,
            "bob": 0,
            "cid": 1,
        }
        assert (data["users"], data["sessions"]) == (3, 3)

    async def test_where_everybody_has_gone_meanwhile_is_what_the_broker_says(self, hub):
        broker = hub._broadcaster
        async with as_user(hub, "ann", ["room"]) as ann:
            await joined(ann, "room")
            gate = broker.gate("members answered")
            asking = asyncio.create_task(hub.presence("room"))
            await until(lambda: broker.called("members"))
            await turns()
            ann.send(type="presence", channel="room")
            await until(lambda: repr(hub._lifecycle.run.inquiries) == "<Inquiries about 1 channels>")
        gate.set()
        assert [member.user for member in (await asking).members] == ["ann"]

    async def test_that_fails_is_answered_internal_and_logged(self, hub, caplog):
        hub._broadcaster.errors["members"] = OSError("secret")
        async with as_user(hub, "ann", ["room"]) as ann:
            await joined(ann, "room")
            answer = await ask(ann, "room")
            assert answer["code"] == "internal"
            assert "secret" not in answer["message"]
            assert "secret" in caplog.text

    async def test_is_bounded_for_each_session(self, hub):
        broker = hub._broadcaster
        async with as_user(hub, "ann", ["room"]) as ann:
            await joined(ann, "room")
            gate = broker.gate("members")
            ann.send(type="presence", channel="room", ref="first")
            await until(lambda: broker.called("members"))
            for ref in range(129):
                ann.send(type="presence", channel="room", ref=ref)
            error = await ann.receive("error")
            assert (error["code"], error["ref"]) == ("limit_exceeded", 128)
            gate.set()
            assert [(await ann.receive("reply"))["ref"] for _ in range(129)] == ["first", *range(128)]

    async def test_ends_with_the_hub(self, hub):
        broker = hub._broadcaster
        async with as_user(hub, "ann", ["room"]) as ann:
            await joined(ann, "room")
            broker.gate("members")
            ann.send(type="presence", channel="room")
            await until(lambda: broker.called("members"))
            tasks = hub._lifecycle.run.inquiries._tasks
            assert tasks
            await hub.__aexit__()
            await until(lambda: not tasks)
            await hub.__aenter__()  # for the fixture


class TestTheHub:
    async def test_has_who_is_there(self, hub):
        assert await hub.presence("room") == Presence([], 0, 0)
        async with as_user(hub, "ann", ["room"]) as ann, as_user(hub, None, ["room"]) as ghost:
            await joined(ann, "room")
            await joined(ghost, "room")
            found = await hub.presence("room")
            since = found.members[0].since
            assert found == Presence([Member("ann", 1, {"name": "Ann"}, since)], 1, 2)
            assert abs(since - ann_connected(hub)) < 10

    async def test_has_counts_where_there_are_only_counts(self, hub):
        async with as_user(hub, "ann", ["counted"]) as ann:
            await joined(ann, "counted")
            assert await hub.presence("counted") == Presence([], 1, 1)

    @pytest.mark.parametrize(
        ("channel", "hint"),
        [
            ("rom", "did you mean 'room'"),
            ("plain", "add presence=True at .*test_inquiries.py:"),
            ("broadcast", "with presence"),
        ],
    )
    async def test_names_a_channel_that_has_none(self, hub, channel, hint):
        with pytest.raises(Undeclared, match=hint):
            await hub.presence(channel)

    async def test_that_is_disabled_has_nobody(self):
        hub = Hub(enabled=False)
        hub.channel("room", public=True, presence=True)
        async with hub:
            assert await hub.presence("room") == Presence([], 0, 0)

    async def test_that_was_stopped_says_so(self):
        hub = Hub()
        hub.channel("room", public=True, presence=True)
        async with hub:
            pass
        with pytest.raises(NotRunning):
            await hub.presence("room")

    async def test_whose_broadcaster_has_no_presence_does_not_start(self):
        hub = Hub(broadcaster=FakeBroker())
        hub.channel("room", public=True, presence="count")
        with pytest.raises(
            SettingsError, match=r"test_inquiries.py:\d+: expected a broadcaster with presence"
        ):
            await hub.__aenter__()

    @pytest.mark.parametrize("presence", ["counts", None, 2, [], "True"])
    async def test_knows_presence_from_nonsense(self, presence):
        with pytest.raises(
            ValueError, match=r'test_inquiries.py:\d+: expected presence=True, False or "count"'
        ):
            Hub().channel("room", public=True, presence=presence)

    async def test_that_stops_tells_no_leaves_and_has_no_timer(self, hub):
        async with as_user(hub, "ann", ["room"]) as ann, as_user(hub, "bob", ["room"]) as bob:
            await joined(ann, "room")
            await joined(bob, "room")
            presence = hub._lifecycle.run.node.presence
            bob.leave()
            await until(lambda: presence._away)
            await hub.__aexit__()
            assert presence._timer is None
            assert not presence._away
            await ann.receive("disconnect")
            assert await hub_is_empty(hub)
            await hub.__aenter__()


async def hub_is_empty(hub):
    await hub.__aenter__()
    try:
        return await hub.presence("room") == Presence([], 0, 0)
    finally:
        await hub.__aexit__()


class TestASlowClient:
    async def test_of_joins_is_told_so_when_it_reads_again_and_holds_up_nobody(self):
        hub = Hub(outbox_messages=100)
        hub.authenticate(who)
        hub.channel("room", public=True, presence=True)
        async with hub, as_user(hub, "slow", ["room"]) as slow, as_user(hub, "ann", ["room"]) as ann:
            await joined(slow, "room")
            await joined(ann, "room")
            slow.pause()
            async with contextlib.AsyncExitStack() as stack:
                for number in range(120):
                    await stack.enter_async_context(as_user(hub, f"u{number}", ["room"]))
                heard = set()
                while len(heard) < 120:
                    heard.add((await ann.receive("join"))["member"]["user"])
                    heard -= {"ann", "slow"}
                slow.send(type="ping", ref="still here")  # there is room for answers
                await turns()
                slow.resume()
                told = []
                while not {"presence", "pong"} <= {message["type"] for message in told}:
                    told.append(await slow.receive())
                assert len(told) < 120
                (counts,) = [message for message in told if message["type"] == "presence"]
                assert counts == {"type": "presence", "channel": "room", "users": 122, "sessions": 122}
                data = (await ask(slow, "room"))["data"]
                assert len(data["members"]) == 122
                async with as_user(hub, "last", ["room"]):
                    assert (await slow.receive("join", "presence"))["member"]["user"] == "last"


class TestTheAnswer:
    async def test_is_cut_to_what_an_event_may_have(self):
        hub = Hub(max_event_bytes=1000)
        hub.channel("room", public=True, presence=True)

        @hub.authenticate
        async def who(_connection, token):
            return Identity(token, info="x" * 300)

        async with hub, contextlib.AsyncExitStack() as stack:
            for number in range(5):
                client = await stack.enter_async_context(as_user(hub, f"u{number}", ["room"]))
                await joined(client, "room")
            data = (await ask(client, "room"))["data"]
            assert [member["user"] for member in data["members"]] == ["u0", "u1"]
            assert (data["users"], data["sessions"]) == (5, 5)

    async def test_gives_the_loop_its_turn(self, monkeypatch):
        monkeypatch.setattr(inquiries, "_SHARE", 1)
        hub = Hub()
        hub.authenticate(who)
        hub.channel("room", public=True, presence=True)
        async with hub, as_user(hub, "ann", ["room"]) as ann, as_user(hub, "bob", ["room"]) as bob:
            await joined(ann, "room")
            await joined(bob, "room")
            ann.send(type="presence", channel="room", ref=1)
            bob.send(type="presence", channel="room", ref=1)
            assert (await ann.receive("reply"))["data"] == (await bob.receive("reply"))["data"]


class TestWhatOthersMaySee:
    @pytest.mark.parametrize(
        ("info", "text"),
        [(None, b"null"), ({"a": 1}, b'{"a":1}'), ("x" * (MAX_INFO_BYTES - 2), b'"%s"' % (b"x" * 4094))],
    )
    def test_is_what_json_can_carry(self, info, text):
        assert encode_info(Identity("7", info=info)) == text

    @pytest.mark.parametrize(
        ("info", "error", "match"),
        [
            (object(), TypeError, "JSON can carry"),
            (Binary(b"x"), TypeError, "got Binary"),
            ("x" * 4095, ValueError, "info of an Identity to have at most 4096 bytes, got 4097"),
            ("é" * 2048, ValueError, "got 4098"),
        ],
    )
    async def test_is_refused_else_when_the_session_is_identified(self, info, error, match):
        async def who(_connection, _token):
            return Identity("7", info=info)

        with pytest.raises(error, match=match):
            await identify(connection(), who, None)

    async def test_that_is_too_large_is_a_refused_handshake_and_says_why_in_the_log(self, caplog):
        hub = Hub()

        @hub.authenticate
        async def who(_connection, _token):
            return Identity("7", info="x" * 5000)

        async with hub, Client(hub) as client:
            await client.ended()
            assert client.closed["code"] == 1011
            assert "at most 4096 bytes, got 5002" in caplog.text


class TestJoining:
    async def test_a_subscribe_that_fails_counts_nobody(self, hub, monkeypatch):
        @hub.channel("mine", presence=True)
        async def mine():
            raise Forbidden("no")

        async with as_user(hub, "ann", ["mine"]) as ann:
            assert (await ann.receive("error"))["code"] == "forbidden"
            assert await hub.presence("mine") == Presence([], 0, 0)

    async def test_a_session_that_is_gone_before_its_answer_counts_nobody(self, hub):
        began, go_on = asyncio.Event(), asyncio.Event()

        @hub.channel("mine", presence=True)
        async def mine():
            began.set()
            await go_on.wait()

        async with as_user(hub, "ann", ["mine"]) as ann:
            await began.wait()
            ann.leave()
            await ann.ended()
            go_on.set()
            await turns()
            assert await hub.presence("mine") == Presence([], 0, 0)
            assert not hub._lifecycle.run.node.presence._rooms

    async def test_a_session_that_leaves_all_its_channels_is_out_of_all(self, hub):
        async with as_user(hub, "ann", ["room", "counted"]) as ann:
            await joined(ann, "room", "counted")
            for channel in ("room", "counted"):
                ann.send(type="unsubscribe", channel=channel)
                await ann.receive("unsubscribed")
                assert (await hub.presence(channel)).sessions == 0
            assert not hub._lifecycle.run.node.presence._rooms
