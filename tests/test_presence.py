"""Who is in a channel: told as it changes, once, to those who are in it; bounded however many come and go."""

import itertools
import math
import sys

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from asgi_ws import Identity, presence, room
from asgi_ws.broadcasters import Change, Member, Presence, PresenceKeeper
from asgi_ws.broadcasters.members import Members
from asgi_ws.broadcasters.memory import MemoryBroadcaster
from asgi_ws.codecs import JSON, MSGPACK, JsonCodec
from asgi_ws.metrics import Metrics
from asgi_ws.node import Join, Node
from asgi_ws.presence import GRACE
from asgi_ws.room import MAX_MEMBERS
from asgi_ws.settings import Settings
from asgi_ws.topic import Subscription
from tests.fakes import Alarms, FakeReceiver, FakeSubscriber, done

ALLOW = "memory://?workers=allow"
SOON = 0.2  # seconds within which everything that is due has been told


class House:
    """A node over the memory broadcaster, by a clock that is moved by hand."""

    def __init__(self, broadcaster=None):
        self.clock = Alarms()
        self.broadcaster = broadcaster or MemoryBroadcaster(Settings(broadcaster=ALLOW))
        self.node = Node(self.broadcaster, Metrics(), self.clock)
        done(self.broadcaster.start(self.node))

    @property
    def presence(self):
        return self.node.presence

    def enter(self, user=None, channel="room", *, info=None, counted=False, codec=JSON, subscriber=None):
        subscription = Subscription(subscriber or FakeSubscriber(codec), channel)
        self.node.fanout.topic(channel).joining.add(subscription)
        self.node.admit(subscription, Join(None, [], None))
        identity = None if user is None else Identity(user, info=info)
        self.presence.enter(subscription, identity, counted=counted)
        return subscription

    def leave(self, *subscriptions):
        for subscription in subscriptions:
            self.node.leave(subscription)

    def find(self, channel="room", *, counted=False):
        return done(self.presence.find(channel, counted=counted))

    def users(self, channel="room"):
        return [member.user for member in self.find(channel).members]


def told(subscription):
    """What a session was told, short, and from now on no more."""
    messages = [
        (message["type"], message["member"]["user"])
        if "member" in message
        else (message["type"], message["users"], message["sessions"])
        for message in subscription.subscriber.messages
    ]
    subscription.subscriber._payloads.clear()
    return messages


@pytest.fixture(autouse=True)
def unhurried(monkeypatch):
    """How fast this machine is must not say where a round is cut."""
    monkeypatch.setattr(presence, "SLICE", math.inf)


@pytest.fixture
def house():
    return House()


class TestJoinAndLeave:
    def test_the_first_session_of_a_user_joins_and_hears_it_as_the_others_do(self, house):
        ann = house.enter("ann")
        house.clock.advance(SOON)
        bob = house.enter("bob", info={"name": "Bob"})
        house.clock.advance()
        assert told(ann) == [("join", "ann"), ("join", "bob")]
        assert bob.subscriber.messages == [
            {
                "type": "join",
                "channel": "room",
                "member": {
                    "user": "bob",
                    "sessions": 1,
                    "info": {"name": "Bob"},
                    "since": int(house.clock.time() * 1000),
                },
            }
        ]

    def test_the_last_session_leaves_after_five_seconds(self, house):
        ann, bob = house.enter("ann"), house.enter("bob", info=7)
        house.clock.advance(SOON)
        told(ann)
        since = int((house.clock.time() - SOON) * 1000)
        house.leave(bob)
        house.clock.advance(GRACE - 0.001)
        assert told(ann) == []
        house.clock.advance(0.001)
        (message,) = ann.subscriber.messages
        member = {"user": "bob", "sessions": 0, "info": 7, "since": since}
        assert message == {"type": "leave", "channel": "room", "member": member}

    def test_who_is_back_within_five_seconds_has_neither_left_nor_joined(self, house):
        ann, bob = house.enter("ann"), house.enter("bob")
        house.clock.advance(SOON)
        told(ann)
        (before,) = [member for member in house.find().members if member.user == "bob"]
        for _ in range(5):
            house.leave(bob)
            house.clock.advance(GRACE - 0.1)
            bob = house.enter("bob")
        house.clock.advance(2 * GRACE)
        assert told(ann) == []
        (after,) = [member for member in house.find().members if member.user == "bob"]
        assert after == before  # since, too

    def test_each_return_begins_the_five_seconds_anew(self, house):
        ann, bob = house.enter("ann"), house.enter("bob")
        house.clock.advance(SOON)
        told(ann)
        house.leave(bob)
        house.clock.advance(4.0)
        house.leave(house.enter("bob"))
        house.clock.advance(4.0)
        assert told(ann) == []
        house.clock.advance(1.0)
        assert told(ann) == [("leave", "bob")]

    def test_many_tabs_are_one_member(self, house):
        ann = house.enter("ann")
        tabs = [house.enter("bob") for _ in range(3)]
        house.clock.advance(SOON)
        assert told(ann) == [("join", "ann"), ("join", "bob")]
        assert [(m.user, m.sessions) for m in house.find().members] == [("ann", 1), ("bob", 3)]
        house.leave(*tabs[:2])
        house.clock.advance(2 * GRACE)
        assert told(ann) == []
        assert [(m.user, m.sessions) for m in house.find().members] == [("ann", 1), ("bob", 1)]
        house.leave(tabs[2])
        house.clock.advance(2 * GRACE)
        assert told(ann) == [("leave", "bob")]

    def test_a_tab_that_opens_while_another_closes_is_nothing_to_tell(self, house):
        ann, bob = house.enter("ann"), house.enter("bob")
        house.clock.advance(SOON)
        told(ann)
        other = house.enter("bob")
        house.leave(bob)
        house.clock.advance(2 * GRACE)
        assert told(ann) == told(other) == []

    def test_the_info_is_that_of_the_newest_session(self, house):
        house.enter("ann", info="old")
        house.enter("ann", info="new")
        assert [member.info for member in house.find().members] == [b'"new"']

    def test_nobody_known_counts_and_is_no_member(self, house):
        ann = house.enter("ann")
        ghost = house.enter()
        house.clock.advance(SOON)
        assert told(ghost) == [("join", "ann")]
        assert house.find() == Presence(house.find().members, 1, 2)
        assert house.users() == ["ann"]
        house.leave(ghost)
        house.clock.advance(2 * GRACE)
        assert told(ann) == [("join", "ann")]
        assert house.find().sessions == 1

    def test_who_becomes_somebody_joins(self, house):
        ann, ghost = house.enter("ann"), house.enter()
        house.presence.renew(ghost, Identity("bob"))
        house.presence.renew(Subscription(FakeSubscriber(), "elsewhere"), Identity("bob"))
        house.clock.advance(SOON)
        assert told(ann) == [("join", "ann"), ("join", "bob")]
        assert (house.find().users, house.find().sessions) == (2, 2)

    def test_who_is_counted_in_twice_is_one_session_with_its_newest_info(self, house):
        ann = house.enter("ann", info=1)
        house.presence.enter(ann, Identity("ann", info=2), counted=False)
        ghost = house.enter()
        house.presence.enter(ghost, None, counted=False)
        house.clock.advance(SOON)
        assert told(ann) == [("join", "ann")]
        found = house.find()
        assert [(m.user, m.sessions, m.info) for m in found.members] == [("ann", 1, b"2")]
        assert found.sessions == 2

    def test_channels_are_apart(self, house):
        here, there = house.enter("ann", "here"), house.enter("ann", "there")
        house.clock.advance(SOON)
        house.leave(house.enter("bob", "there"))
        house.clock.advance(2 * GRACE)
        assert told(here) == [("join", "ann")]
        assert told(there) == [("join", "ann"), ("join", "bob"), ("leave", "bob")]

    def test_who_has_left_hears_nothing_more(self, house):
        ann, bob = house.enter("ann"), house.enter("bob")
        house.leave(bob)
        house.enter("cid")
        house.clock.advance(2 * GRACE)
        assert told(bob) == []
        assert told(ann) == [("join", "ann"), ("join", "bob"), ("join", "cid"), ("leave", "bob")]

    def test_leaving_twice_is_leaving_once(self, house):
        house.enter("ann")
        bob = house.enter("bob")
        house.leave(bob, bob)
        assert house.find().sessions == 1

    def test_a_session_that_has_left_before_it_was_live_is_not_counted(self, house):
        gone = Subscription(FakeSubscriber(), "room")
        house.presence.enter(gone, Identity("ann"), counted=False)
        assert house.find() == Presence([], 0, 0)

    def test_who_comes_and_goes_at_once_is_told_in_order(self, house):
        ann = house.enter("ann")
        house.clock.advance(SOON)
        told(ann)
        house.leave(house.enter("bob"))
        house.clock.advance(GRACE + SOON)
        house.enter("bob")
        house.clock.advance(SOON)
        assert told(ann) == [("join", "bob"), ("leave", "bob"), ("join", "bob")]

    def test_a_message_is_encoded_once_per_codec(self, house):
        codec = CountingCodec()
        subscribers = [house.enter(codec=codec) for _ in range(10)]
        house.enter(codec=MSGPACK)
        codec.encoded = 0
        house.enter("ann", info={"name": "Ann"}, codec=MSGPACK)
        house.clock.advance(SOON)
        assert codec.encoded == 1
        assert len({id(one.subscriber.batches[-1]) for one in subscribers}) == 1

    @pytest.mark.parametrize(
        ("info", "shown"),
        [
            (None, None),
            ({"name": "Ánn", "tags": [1, None, 2.5]}, {"name": "Ánn", "tags": [1, None, 2.5]}),
            (2**70, float(2**70)),
        ],
    )
    def test_the_info_is_the_same_in_messagepack(self, house, info, shown):
        ann = house.enter("ann", info=info, codec=MSGPACK)
        house.clock.advance(SOON)
        (message,) = ann.subscriber.messages
        assert message["member"]["info"] == shown

    def test_an_info_that_the_application_has_spoilt_is_logged_and_not_shown(self, house, caplog):
        info = {"name": "Ann"}
        identity = Identity("ann", info=info)
        ann = house.enter()
        info["name"] = object()
        house.presence.enter(ann, identity, counted=False)
        house.clock.advance(SOON)
        assert "the info of user 'ann' cannot be shown" in caplog.text
        assert [m["member"]["info"] for m in ann.subscriber.messages] == [None]

    def test_what_another_node_says_of_a_user_may_be_anything(self, house, caplog):
        ann = house.enter(codec=MSGPACK)
        house.presence.changed(Change("room", True, Member("bob", 1, b"{no json", 5.0), 1, 2))
        house.presence.changed(Change("room", True, Member("cid", 1, b"1", 5.0), 2, 3))
        house.clock.advance(SOON)
        assert told(ann) == [("join", "bob"), ("join", "cid")]
        assert "the info of user 'bob' cannot be told" in caplog.text


class CountingCodec(JsonCodec):
    """Counts what it encodes."""

    def __init__(self):
        super().__init__()
        self.encoded = 0

    def encode(self, message):
        self.encoded += 1
        return super().encode(message)


class TestCounts:
    def test_are_told_once_a_second_at_most(self, house):
        first = house.enter("ann", counted=True)
        house.clock.advance()
        assert told(first) == [("presence", 1, 1)]
        for number in range(9):
            house.enter(f"user{number}", counted=True)
            house.enter(counted=True)
            house.clock.advance(0.1)
        assert told(first) == []
        house.clock.advance(0.1)
        assert told(first) == [("presence", 10, 19)]
        house.clock.advance(10.0)
        assert told(first) == []

    def test_go_down_at_once(self, house):
        ann, bob = house.enter("ann", counted=True), house.enter("bob", counted=True)
        house.clock.advance(10.0)
        told(ann)
        house.leave(bob)
        house.clock.advance()
        assert told(ann) == [("presence", 1, 1)]

    def test_count_a_second_tab(self, house):
        ann = house.enter("ann", counted=True)
        house.clock.advance(10.0)
        house.enter("ann", counted=True)
        house.clock.advance()
        assert told(ann) == [("presence", 1, 1), ("presence", 1, 2)]

    def test_have_no_members_and_keep_no_info(self, house):
        house.enter("ann", info="secret", counted=True)
        assert house.find(counted=True) == Presence([], 1, 1)
        assert [m.info for m in done(house.broadcaster.members("room", 9)).members] == [b"null"]

    def test_of_all_channels_are_told_in_one_round(self, house):
        subscribers = [house.enter("ann", f"room{n}", counted=True) for n in range(50)]
        house.clock.advance(10.0)
        before = house.clock.set
        for number in range(50):
            house.enter("bob", f"room{number}", counted=True)
        house.clock.advance(10.0)
        assert house.clock.set - before == 1
        assert [told(one)[-1] for one in subscribers] == [("presence", 2, 2)] * 50


class TestACrowd:
    """Beyond 1,000 members: the same with smaller numbers."""

    @pytest.fixture(autouse=True)
    def small(self, monkeypatch):
        monkeypatch.setattr(room, "MAX_MEMBERS", 10)
        monkeypatch.setattr(room, "CALM", 9)

    def fill(self, house, count):
        entered = [house.enter(f"u{number}") for number in range(count)]
        house.clock.advance(2.0)
        return entered

    def test_is_told_how_many_there_are(self, house):
        everybody = self.fill(house, 10)
        told(everybody[0])
        house.enter("eleventh")
        house.enter("twelfth")
        house.clock.advance(2.0)
        assert told(everybody[0]) == [("presence", 12, 12)]
        house.leave(everybody.pop())
        house.clock.advance(GRACE * 2)
        assert told(everybody[0]) == [("presence", 11, 11)]

    def test_hears_of_nobody_known_too(self, house):
        everybody = self.fill(house, 11)
        told(everybody[0])
        house.enter()
        house.clock.advance(2.0)
        assert told(everybody[0]) == [("presence", 11, 12)]

    def test_that_becomes_smaller_is_told_so_and_then_of_each_again(self, house):
        everybody = self.fill(house, 11)
        told(everybody[0])
        house.leave(everybody.pop())
        house.clock.advance(2.0)
        assert told(everybody[0]) == [("presence", 10, 10)]  # not clearly smaller
        house.leave(everybody.pop())
        house.clock.advance(2.0)
        assert told(everybody[0]) == [("presence", 9, 9)]
        house.enter("new")
        house.leave(everybody.pop())
        house.clock.advance(2 * GRACE)
        assert told(everybody[0]) == [("join", "new"), ("leave", "u8")]

    def test_that_was_one_for_a_moment_says_so_before_the_next_join(self, house):
        everybody = self.fill(house, 10)
        house.enter(None, "counted", counted=True)
        house.clock.advance()  # the counts of this second have been told
        told(everybody[0])
        house.leave(house.enter("eleventh"), *(everybody.pop() for _ in range(3)))
        house.enter("new")
        house.clock.advance(0.9)
        assert told(everybody[0]) == []
        house.clock.advance(1.0)
        assert told(everybody[0]) == [("presence", 10, 8), ("join", "new")]  # two of them are away

    def test_those_who_are_away_are_part_of_it(self, house):
        everybody = self.fill(house, 10)
        told(everybody[0])
        house.leave(*(everybody.pop() for _ in range(3)))
        assert house.find().users == 10
        house.enter("new")  # ten and one, three of them away
        house.clock.advance(2 * GRACE)
        assert told(everybody[0]) == [("presence", 8, 8)]
        assert house.find().users == 8

    def test_of_leaves_that_cannot_be_told_in_time_is_one_too(self, house):
        watcher = house.enter()
        for number in range(9):
            house.leave(house.enter(f"a{number}"))
        house.clock.advance(1.0)
        told(watcher)
        house.presence._told = house.clock.now + 100.0  # the rounds are late
        house.clock.advance(GRACE)
        house.enter("b1")
        house.enter("b2")
        assert len(house.presence._rooms["room"].news) == 0
        house.clock.advance(2.0)
        assert told(watcher) == [("presence", 2, 3)]

    def test_shows_those_who_have_been_there_longest(self, house, monkeypatch):
        self.fill(house, 12)
        assert house.users() == [f"u{number}" for number in range(10)]
        assert house.find().users == 12


def test_the_memory_broadcaster_keeps_presence():
    assert isinstance(House().broadcaster, PresenceKeeper)
    assert "presence" in MemoryBroadcaster.features


def test_a_start_of_the_memory_broadcaster_is_empty():
    house = House()
    house.enter("ann")
    done(house.broadcaster.stop())
    assert done(house.broadcaster.members("room", 10)) == Presence([], 0, 0)


def test_the_memory_broadcaster_tells_each_change_when_it_is_made():
    receiver = FakeReceiver()
    broadcaster = MemoryBroadcaster(Settings(broadcaster=ALLOW))
    done(broadcaster.start(receiver))
    broadcaster.join("room", "s1", None, b"null", 1.0)
    broadcaster.join("room", "s1", "ann", b"1", 2.0)
    broadcaster.join("room", "s2", "ann", b"2", 3.0)
    broadcaster.join("room", "s2", "ann", b"3", 4.0)
    broadcaster.leave("room", "s1")
    broadcaster.leave("room", "s1")
    broadcaster.leave("room", "s2")
    broadcaster.leave("elsewhere", "s2")
    assert receiver.changes == [
        Change("room", True, None, 0, 1),
        Change("room", False, None, 0, 0),
        Change("room", True, Member("ann", 1, b"1", 2.0), 1, 1),
        Change("room", True, Member("ann", 2, b"2", 2.0), 1, 2),
        Change("room", False, Member("ann", 1, b"3", 2.0), 1, 1),
        Change("room", False, Member("ann", 0, b"3", 2.0), 0, 0),
    ]


class TestTheSlow:
    def test_are_told_how_many_there_are_when_they_read_again(self, house):
        ann, bob = house.enter("ann"), house.enter("bob")
        house.clock.advance(2.0)
        told(ann), told(bob)
        bob.subscriber.room = 0
        house.enter("cid")
        house.clock.advance(5.0)
        assert (told(ann), told(bob)) == ([("join", "cid")], [])
        bob.subscriber.room = None
        house.clock.advance(1.0)
        assert (told(ann), told(bob)) == ([], [("presence", 3, 3)])
        assert house.clock.timers == 0
        house.enter("dot")
        house.clock.advance(SOON)
        assert told(ann) == told(bob) == [("join", "dot")]

    def test_who_lag_behind_in_events_too(self, house):
        ann, bob = house.enter("ann"), house.enter("bob")
        house.clock.advance(2.0)
        told(ann), told(bob)
        topic = house.node.fanout.topics["room"]
        topic.lag(bob, None)
        house.enter("cid")
        house.clock.advance(5.0)
        assert (told(ann), told(bob)) == ([("join", "cid")], [])
        assert house.clock.timers == 1
        topic.release(bob)
        bob.subscriber._payloads.clear()
        house.clock.advance(1.0)
        assert told(bob) == [("presence", 3, 3)]
        assert house.clock.timers == 0

    def test_who_fall_behind_in_the_middle_of_a_round(self, house, monkeypatch):
        monkeypatch.setattr(presence, "SLICE", -math.inf)
        subscribers = [house.enter() for _ in range(300)]
        house.enter("ann")
        house.clock.step()
        topic = house.node.fanout.topics["room"]
        topic.lag(subscribers[250], None)
        house.clock.advance(SOON)
        topic.release(subscribers[250])
        subscribers[250].subscriber._payloads.clear()
        house.clock.advance(2.0)
        assert told(subscribers[250]) == [("presence", 1, 301)]
        assert told(subscribers[251]) == [("join", "ann")]

    def test_who_leave_are_forgotten(self, house):
        house.enter("ann")
        bob = house.enter("bob")
        house.clock.advance(2.0)
        bob.subscriber.room = 0
        house.enter("cid")
        house.clock.advance(SOON)
        assert house.presence._rooms["room"].behind == {bob.subscriber}
        house.leave(bob)
        house.clock.advance(2.0)
        assert house.presence._rooms["room"].behind == set()
        assert house.clock.timers == 1  # the leave

    def test_of_a_channel_that_is_empty_are_forgotten(self, house):
        house.enter("ann", "other")
        bob = house.enter("bob")
        house.clock.advance(2.0)
        bob.subscriber.room = 0
        ann = house.enter("ann")
        house.clock.advance(SOON)
        house.leave(ann, bob)
        house.clock.advance(10.0)
        assert house.clock.timers == 0

    def test_of_counts_too(self, house):
        bob = house.enter("bob", counted=True)
        bob.subscriber.room = 0
        house.clock.advance(5.0)
        bob.subscriber.room = None
        house.clock.advance(1.0)
        assert told(bob) == [("presence", 1, 1)]
        assert house.clock.timers == 0


class TestTheList:
    def test_has_those_who_have_just_gone_with_no_sessions(self, house):
        house.enter("ann")
        house.leave(house.enter("bob"))
        found = house.find()
        assert [(member.user, member.sessions) for member in found.members] == [("ann", 1), ("bob", 0)]
        assert (found.users, found.sessions) == (2, 1)
        house.clock.advance(GRACE)
        assert house.users() == ["ann"]

    def test_is_empty_where_nobody_is(self, house):
        assert house.find() == Presence([], 0, 0)
        house.leave(house.enter("ann"))
        assert house.find() == Presence([], 0, 0)

    def test_with_those_away_is_no_longer_than_it_may_be(self, house, monkeypatch):
        monkeypatch.setattr(room, "MAX_MEMBERS", 3)
        entered = [house.enter(f"u{number}") for number in range(3)]
        house.leave(entered[0])
        assert house.users() == ["u1", "u2", "u0"]


def test_everything_that_lives_long_says_what_it_holds(house):
    house.enter("ann")
    house.leave(house.enter("bob"))
    assert repr(house.presence) == "<Presences of 1 channels, 1 away>"
    assert repr(house.presence._rooms["room"]) == "<Room 'room' 1 users, 2 news>"
    assert repr(house.broadcaster._members) == "<Members of 1 channels>"


class TestTheTimer:
    def test_is_not_there_without_sessions(self, house):
        assert house.clock.timers == 0
        house.leave(house.enter("ann"), house.enter("bob"), house.enter("cid", "other", counted=True))
        assert house.clock.timers == 0
        assert not house.presence._away

    def test_is_not_there_with_nothing_to_tell(self, house):
        house.enter("ann")
        house.enter("bob", counted=True)
        house.enter(channel="other")
        house.clock.advance(2.0)
        assert house.clock.timers == 0

    def test_is_one_for_all(self, house):
        house.enter("ann")
        house.leave(*[house.enter(f"u{number}") for number in range(100)])
        house.enter("ann", "counted", counted=True)
        assert house.clock.timers == 1
        house.clock.advance(0.05)
        assert house.clock.timers == 1

    def test_a_stop_tells_nothing_more_and_counts_nobody_in(self, house):
        ann, bob = house.enter("ann"), house.enter("bob")
        house.clock.advance(SOON)
        told(ann)
        late = house.enter("cid")
        house.presence.stop()
        house.leave(bob, late)
        house.enter("dot")
        assert house.clock.timers == 0
        house.clock.advance(100.0)
        assert told(ann) == []

    def test_joins_are_told_in_rounds_that_take_a_share_of_the_time(self, house, monkeypatch):
        monkeypatch.setattr(room, "WRITES", 100)
        watchers = [house.enter() for _ in range(20)]
        for number in range(10):
            house.enter(f"u{number}")
        sizes = []
        for _ in range(5):
            sizes.append(len(told(watchers[0])))
            house.clock.advance(0.1)
        assert sizes == [0, 6, 3, 1, 0]  # the first was due at once; 30 sessions, a hundred writes

    def test_of_more_sessions_than_writes_are_told_one_by_one(self, house, monkeypatch):
        monkeypatch.setattr(room, "WRITES", 2)
        watchers = [house.enter() for _ in range(3)]
        for number in range(3):
            house.enter(f"u{number}")
        house.clock.advance(2.0)
        assert told(watchers[0]) == [("join", "u0"), ("join", "u1"), ("join", "u2")]

    def test_joins_are_told_in_rounds_that_fit(self, house, monkeypatch):
        monkeypatch.setattr(room, "WRITES", 10**9)
        ann = house.enter("ann")
        house.clock.advance(SOON)
        told(ann)
        for number in range(250):
            house.enter(f"u{number}")
        sizes = []
        for _ in range(6):
            house.clock.advance(0.1)
            sizes.append(len(told(ann)))
        assert sizes == [100, 50, 50, 50, 0, 0]  # the first was due at once

    def test_a_long_round_is_cut_into_slices_and_nobody_hears_anything_twice(self, house, monkeypatch):
        monkeypatch.setattr(presence, "SLICE", -math.inf)
        subscribers = [house.enter() for _ in range(500)]
        house.clock.advance(SOON)
        house.enter("ann")
        alarms = house.clock.set
        house.clock.advance()
        assert house.clock.set - alarms >= 4
        assert all(told(one) == [("join", "ann")] for one in subscribers)

    def test_the_writers_have_their_turn_after_each_channel(self, house):
        subscriber = FakeSubscriber()
        for number in range(20):
            house.enter(None, f"room{number}", subscriber=subscriber)
            house.enter("ann", f"room{number}")
        for number in range(20):
            house.clock.step()
            assert len(subscriber.messages) == number + 1

    def test_a_round_that_fails_is_not_the_last_one(self, house, caplog):
        ann = house.enter()
        house.presence.changed(Change("room", True, Member("\ud800", 1, b"1", 5.0), 1, 2))
        house.clock.advance(SOON)
        assert "a round of presence ended early" in caplog.text
        house.enter("bob")
        house.clock.advance(SOON)
        assert told(ann) == [("join", "bob")]

    def test_who_leaves_in_the_middle_of_a_round_hears_nothing_after(self, house, monkeypatch):
        monkeypatch.setattr(presence, "SLICE", -math.inf)
        subscribers = [house.enter() for _ in range(500)]
        house.enter("ann")
        house.clock.step()
        assert told(subscribers[0]) == [("join", "ann")]
        house.leave(subscribers[-1])
        late = house.enter()
        house.clock.advance(SOON)
        assert told(subscribers[-1]) == []
        assert told(subscribers[-2]) == [("join", "ann")]
        assert told(late) == []

    def test_what_comes_up_in_the_middle_of_a_round_is_told_after_it(self, house, monkeypatch):
        monkeypatch.setattr(presence, "SLICE", -math.inf)
        subscribers = [house.enter() for _ in range(300)]
        house.enter("ann")
        house.clock.step()
        house.enter("bob")
        house.enter("cid", "counted", counted=True)
        assert house.clock.timers == 1
        house.clock.advance(SOON)
        assert all(told(one) == [("join", "ann"), ("join", "bob")] for one in subscribers)
        assert house.clock.timers == 0

    def test_a_channel_that_empties_in_the_middle_of_a_round_ends_it(self, house, monkeypatch):
        monkeypatch.setattr(presence, "SLICE", -math.inf)
        subscribers = [house.enter() for _ in range(300)]
        house.leave(house.enter("ann"))
        house.clock.step()
        assert house.presence._work is not None
        house.leave(*subscribers)
        assert house.clock.timers == 0
        house.clock.advance(10.0)
        assert told(subscribers[-1]) == []

    def test_a_channel_that_empties_and_fills_in_the_middle_of_a_round_hears_nothing_of_the_old_one(
        self, house, monkeypatch
    ):
        monkeypatch.setattr(presence, "SLICE", -math.inf)
        first = house.enter("ann", "first", counted=True)
        old = [house.enter(None, "second", counted=True) for _ in range(3)]
        house.clock.step()
        assert told(first)
        house.leave(*old)
        new = house.enter("bob", "second", counted=True)
        house.clock.advance(SOON)
        assert told(new) == []
        house.clock.advance(1.0)
        assert told(new) == [("presence", 1, 1)]

    def test_a_channel_that_is_new_again_has_nothing_of_the_old_one(self, house):
        other = house.enter(channel="other")  # so that the timer stays
        ann = house.enter("ann")
        house.leave(house.enter("bob"))
        house.leave(ann)
        again = house.enter("cid")
        house.clock.advance(2 * GRACE)
        assert told(again) == [("join", "cid")]
        assert told(other) == []


# Several nodes.


class Broker:
    """What nodes have in common: it counts, and tells each node of its channels' changes, later."""

    def __init__(self):
        self.members = Members()
        self.nodes = []
        self.sent = []

    def apply(self, changes):
        self.sent.extend(changes)

    def carry(self):
        sent, self.sent = self.sent, []
        for change in sent:
            for node in self.nodes:
                if change.channel in {channel for channel, _ in node.claims}:
                    node.receiver.changed(change)


class OfACluster(MemoryBroadcaster):
    """A broadcaster of one node, by the words of `PresenceKeeper`."""

    def __init__(self, broker):
        super().__init__(Settings(broadcaster=ALLOW))
        self.broker = broker
        self.claims = set()
        broker.nodes.append(self)

    async def start(self, receiver):
        self.receiver = receiver

    def join(self, channel, session, user, info, since):
        self.claims.add((channel, session))
        self.broker.apply(self.broker.members.join(channel, session, user, info, since))

    def leave(self, channel, session):
        self.claims.discard((channel, session))
        self.broker.apply(self.broker.members.leave(channel, session))

    def die(self):
        for channel, session in self.claims:
            self.broker.apply(self.broker.members.leave(channel, session))
        self.broker.nodes.remove(self)

    async def members(self, channel, limit):
        return self.broker.members.presence(channel, limit)


class TestSeveralNodes:
    @pytest.fixture
    def broker(self):
        return Broker()

    @pytest.fixture
    def houses(self, broker):
        return [House(OfACluster(broker)) for _ in range(2)]

    def let_pass(self, broker, houses, seconds=SOON):
        broker.carry()
        for house in houses:
            house.clock.advance(seconds)

    def test_tell_the_same(self, broker, houses):
        here, there = (house.enter() for house in houses)
        ann = houses[0].enter("ann")
        self.let_pass(broker, houses)
        other = houses[1].enter("ann")
        self.let_pass(broker, houses)
        assert houses[0].find() == houses[1].find()
        houses[0].leave(ann)
        self.let_pass(broker, houses, 2 * GRACE)
        assert told(here) == told(there) == [("join", "ann")]
        houses[1].leave(other)
        self.let_pass(broker, houses, 2 * GRACE)
        assert told(here) == told(there) == [("leave", "ann")]

    def test_who_goes_to_another_one_has_not_left(self, broker, houses):
        here, there = (house.enter() for house in houses)
        ann = houses[0].enter("ann")
        self.let_pass(broker, houses)
        houses[0].leave(ann)
        self.let_pass(broker, houses, 4.0)
        assert houses[0].users() == houses[1].users() == ["ann"]
        houses[1].enter("ann")
        self.let_pass(broker, houses, 2 * GRACE)
        assert told(here) == told(there) == [("join", "ann")]

    def test_whose_node_is_gone_has_left(self, broker, houses):
        there = houses[1].enter()
        houses[0].enter("ann")
        self.let_pass(broker, houses)
        houses[0].broadcaster.die()
        self.let_pass(broker, houses[1:], 2 * GRACE)
        assert told(there) == [("join", "ann"), ("leave", "ann")]

    def test_that_have_nobody_in_a_channel_keep_nothing_of_it(self, broker, houses):
        houses[0].leave(houses[0].enter("ann"))
        houses[0].enter("bob")
        self.let_pass(broker, houses)
        assert houses[1].clock.set == 0
        assert not houses[1].presence._rooms

    def test_what_comes_late_for_a_channel_that_is_empty_here_is_not_kept(self, broker, houses):
        ann = houses[0].enter("ann")
        houses[0].leave(ann)
        houses[0].presence.changed(broker.sent[-1])
        assert houses[0].clock.timers == 0


# Ten thousand.


def calls(function):
    """How many functions are called within one, which says what it costs without a clock."""
    count = 0

    def profile(_frame, event, _arg):
        nonlocal count
        count += event in {"call", "c_call"}

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


class Deaf:
    """A subscriber that costs nothing, and counts what it is given."""

    given = 0

    def __init__(self, codec):
        self.id = f"deaf{next(_numbers)}"
        self.codec = codec
        self.direct = None

    def deliver(self, batch):
        Deaf.given += 1
        return True

    def tell(self, message):
        raise AssertionError("expected batches")


_numbers = itertools.count()


class TestTenThousand:
    def come_and_go(self, count, pause):
        """Let so many come, a hundred in a pause, and go; return what each cost, and what was encoded."""
        house, codec = House(), CountingCodec()
        entered, Deaf.given = [], 0

        def come():
            for number in range(count):
                subscriber = Deaf(codec)
                entered.append(house.enter(f"u{number}", subscriber=subscriber))
                if not number % 100:
                    house.clock.advance(pause)

        def go():
            house.leave(*entered)

        costs = calls(come) / count, calls(go) / count
        assert house.clock.timers == 0
        return costs, codec.encoded, Deaf.given

    def test_who_come_and_go_at_once_cost_each_the_same(self):
        few, few_encoded, _ = self.come_and_go(1000, 0.0)
        many, encoded, given = self.come_and_go(10_000, 0.0)
        assert many[0] < few[0] * 1.2
        assert many[1] < few[1] * 1.2
        # In no time there is one round of joins, with the first of them, and one of counts, of a crowd.
        assert (few_encoded, encoded, given) == (1, 2, 1 + 1001)

    def test_who_come_in_ten_seconds_are_no_more_than_a_thousand_joins_and_ten_counts(self):
        _, encoded, given = self.come_and_go(10_000, 0.1)
        assert 100 <= encoded <= MAX_MEMBERS + 12
        # Some rounds while there are up to a thousand of them, then one a second for all.
        assert given < 11 * room.WRITES + 12 * 10_000

    def test_who_leave_a_channel_one_after_the_other_set_no_timer_each(self):
        house = House()
        house.enter()
        entered = [house.enter(f"u{number}", subscriber=Deaf(JSON)) for number in range(900)]
        house.clock.advance(60.0)
        before = house.clock.set
        house.leave(*entered)
        assert house.clock.set - before <= 1
        house.clock.advance(2 * GRACE)
        assert house.clock.set - before <= 1 + 2 * 900 / 50


# The model: what a session knows from the list and from what it is told is who is there.


class PresenceModel(RuleBasedStateMachine):
    """A client takes the list when it comes. Joins and leaves change it; counts say that it is no longer kept,
    and the first join or leave after them that it is again, so the client asks for it."""

    @initialize(most=st.sampled_from([1000, 3]))
    def begin(self, most):
        room.MAX_MEMBERS, room.CALM = most, most - 1
        self.house = House()
        self.sessions = {}  # subscription -> (user, channel)
        self.gone = {}  # (channel, user) -> when the last session left
        self.views = {}  # subscription -> users

    def here(self, channel):
        return {user for user, where in self.sessions.values() if where == channel} - {None}

    @rule(
        user=st.sampled_from([None, "ann", "bob", "cid", "dot", "eve"]),
        channel=st.sampled_from(["one", "two"]),
        codec=st.sampled_from([JSON, MSGPACK]),
    )
    def enter(self, user, channel, codec):
        subscription = self.house.enter(user, channel, codec=codec)
        self.sessions[subscription] = user, channel
        self.gone.pop((channel, user), None)
        self.views[subscription] = set(self.house.users(channel))

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def leave(self, data):
        subscription = data.draw(st.sampled_from(list(self.sessions)))
        user, channel = self.sessions.pop(subscription)
        self.house.leave(subscription)
        self.hear(subscription)
        del self.views[subscription]
        if user is not None and user not in self.here(channel):
            self.gone[channel, user] = self.house.clock.now

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def reconnect(self, data):
        subscription = data.draw(st.sampled_from(list(self.sessions)))
        user, channel = self.sessions[subscription]
        self.house.leave(subscription)
        self.hear(subscription)
        del self.sessions[subscription], self.views[subscription]
        if user is not None and user not in self.here(channel):
            self.gone[channel, user] = self.house.clock.now
        self.house.clock.advance(data.draw(st.sampled_from([0.0, 1.0, 4.9, 5.5])))
        self.enter(user, channel, subscription.subscriber.codec)

    @rule(seconds=st.sampled_from([0.0, 0.05, 0.3, 1.0, 4.9, 5.0, 7.0]))
    def pass_time(self, seconds):
        self.house.clock.advance(seconds)

    @rule()
    def compare(self):
        seconds = SOON if room.MAX_MEMBERS == 1000 else 1.0 + SOON
        self.house.clock.advance(seconds)
        now = self.house.clock.now
        for subscription, (_, channel) in self.sessions.items():
            self.hear(subscription)
            view, here = self.views[subscription], self.here(channel)
            lately = {
                u for (c, u), when in self.gone.items() if c == channel and now - when < GRACE + seconds
            }
            if isinstance(view, int):
                assert len(here) <= view <= len(here | lately)
            elif not self.house.presence._rooms[channel].crowded:
                assert here <= view <= here | lately

    @rule()
    def ask(self):
        for channel in ("one", "two"):
            found = self.house.find(channel)
            present = {member.user for member in found.members if member.sessions}
            if room.MAX_MEMBERS == 1000:
                assert present == self.here(channel)
                assert found.users == len(found.members)
            assert present <= self.here(channel)
            assert found.users >= len(self.here(channel))
            assert len(found.members) == min(found.users, room.MAX_MEMBERS)
            assert found.sessions == sum(where == channel for _, where in self.sessions.values())
            counts = {m.user: m.sessions for m in found.members if m.sessions}
            for user, sessions in counts.items():
                assert sessions == sum(pair == (user, channel) for pair in self.sessions.values())

    def hear(self, subscription):
        view = self.views[subscription]
        channel = subscription.channel
        for message in subscription.subscriber.messages:
            assert message["channel"] == channel
            if message["type"] == "presence":
                assert room.MAX_MEMBERS == 3
                view = message["users"]
                continue
            user = message["member"]["user"]
            assert (message["member"]["sessions"] == 1) is (message["type"] == "join")
            if isinstance(view, int):
                view = set(self.house.users(channel))
            (view.add if message["type"] == "join" else view.discard)(user)
        subscription.subscriber._payloads.clear()
        self.views[subscription] = view

    def teardown(self):
        if not hasattr(self, "house"):
            return
        try:
            self.end()
        finally:
            room.MAX_MEMBERS, room.CALM = 1000, 900

    def end(self):
        self.house.clock.advance(2 * GRACE)
        for subscription, (_, channel) in self.sessions.items():
            self.hear(subscription)
            view, here = self.views[subscription], self.here(channel)
            if isinstance(view, int):
                assert view == len(here)
            elif not self.house.presence._rooms[channel].crowded:
                assert view == here
        self.house.leave(*self.sessions)
        assert self.house.clock.timers == 0


TestPresenceModel = PresenceModel.TestCase
TestPresenceModel.settings = hypothesis_settings(max_examples=150, stateful_step_count=40, deadline=None)
