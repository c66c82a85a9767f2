"""From a publication to the sessions of its channel: in order, once, in one write a turn, and nothing for the rest."""

import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from asgi_ws import fanout as room
from asgi_ws.codecs import JSON, MSGPACK
from asgi_ws.fanout import Fanout
from asgi_ws.metrics import Metrics
from asgi_ws.publication import Position
from asgi_ws.topic import HOLD_LIMIT, Subscription
from tests.fakes import FakeSubscriber, publication, turns, until

pytestmark = pytest.mark.anyio


def join(fanout, subscriber, channel="room"):
    """Begin to subscribe: what is published from now on is held back."""
    subscription = Subscription(subscriber, channel)
    fanout.topic(channel).joining.add(subscription)
    return subscription


def admit(fanout, subscription, after=0, missed=()):
    position = Position("", after) if after else None
    fanout.topic(subscription.channel).admit(subscription, position, missed)


def listen(fanout, channel="room", codec=JSON):
    """A subscriber of a channel that is live."""
    subscriber = FakeSubscriber(codec)
    admit(fanout, join(fanout, subscriber, channel))
    return subscriber


@pytest.fixture
def fanout():
    return Fanout(Metrics())


class TestOneTurn:
    async def test_what_is_published_in_a_turn_is_heard_in_the_next_in_order(self, fanout):
        subscriber = listen(fanout)
        for n in range(10):
            fanout.deliver(publication(data=n, offset=n + 1))
        assert subscriber.messages == []
        await turns(2)
        assert subscriber.heard() == list(range(10))
        assert subscriber.heard("offset") == list(range(1, 11))

    async def test_it_is_one_write_and_one_batch_for_all_who_speak_the_same(self, fanout):
        json = [listen(fanout) for _ in range(3)]
        msgpack = [listen(fanout, codec=MSGPACK) for _ in range(2)]
        for n in range(5):
            fanout.deliver(publication(data={"n": n}))
        await turns(2)
        for subscriber in (*json, *msgpack):
            assert subscriber.heard() == [{"n": n} for n in range(5)]
            assert subscriber.writes == 1
        assert len({id(batch) for s in json for batch in s.batches}) == 1
        assert len({id(batch) for s in msgpack for batch in s.batches}) == 1

    async def test_a_subscriber_of_several_channels_gets_one_write(self, fanout):
        subscriber = FakeSubscriber()
        for channel in "abc":
            admit(fanout, join(fanout, subscriber, channel))
        for n in range(9):
            fanout.deliver(publication("abc"[n % 3], data=n))
        await turns(2)
        assert subscriber.writes == 1
        for first, channel in enumerate("abc"):
            heard = [m["data"] for m in subscriber.messages if m["channel"] == channel]
            assert heard == [first, first + 3, first + 6]

    async def test_only_the_channel_concerned_is_touched(self, fanout):
        here, elsewhere = listen(fanout, "a"), listen(fanout, "b")
        fanout.deliver(publication("a"))
        fanout.deliver(publication("nobody listens"))
        await turns(2)
        assert len(here.heard()) == 1
        assert elsewhere.messages == []
        assert set(fanout.topics) == {"a", "b"}

    async def test_turn_after_turn(self, fanout):
        subscriber = listen(fanout)
        for n in range(5):
            fanout.deliver(publication(data=n))
            await turns(2)
        assert subscriber.heard() == list(range(5))
        assert subscriber.writes == 5

    async def test_a_flush_delivers_at_once_and_the_turn_brings_it_no_second_time(self, fanout):
        subscriber = listen(fanout)
        fanout.deliver(publication(data=1))
        fanout.flush()
        assert subscriber.heard() == [1]
        fanout.deliver(publication(data=2))
        await turns(3)
        assert subscriber.heard() == [1, 2]

    async def test_latency_is_observed_once_for_each_publication(self):
        metrics = Metrics()
        fanout = Fanout(metrics)
        listen(fanout)
        listen(fanout, codec=MSGPACK)
        for _ in range(3):
            fanout.deliver(publication(time=time.time() - 0.5))
        await turns(2)
        assert metrics.delivery_latency.count == 3
        assert 0.5 <= metrics.delivery_latency.percentile(0.5) < 5.0


class TestFull:
    async def test_by_messages(self, fanout):
        listen(fanout)
        for _ in range(room.TURN_MESSAGES):
            assert not fanout.full
            fanout.deliver(publication())
        assert fanout.full
        fanout.flush()
        assert not fanout.full

    async def test_by_bytes(self, fanout):
        listen(fanout)
        fanout.deliver(publication(data="x" * (room.TURN_BYTES // 2)))
        assert not fanout.full
        fanout.deliver(publication(data="x" * (room.TURN_BYTES // 2)))
        assert fanout.full

    async def test_its_repr_counts(self, fanout):
        listen(fanout)
        fanout.deliver(publication())
        assert repr(fanout) == "<Fanout 1 topics, 1 messages this turn>"
        assert repr(fanout.topic("room")) == "<Topic 'room' 1 live, 0 joining>"


class TestJoining:
    async def test_what_is_published_meanwhile_comes_when_it_is_admitted(self, fanout):
        subscriber = FakeSubscriber()
        subscription = join(fanout, subscriber)
        for n in (1, 2, 3):
            fanout.deliver(publication(data=n, offset=n))
        await turns(3)
        assert subscriber.messages == []
        admit(fanout, subscription, after=1)
        fanout.deliver(publication(data=4, offset=4))
        await turns(3)
        assert subscriber.heard() == [2, 3, 4]

    async def test_also_what_is_of_this_turn_once(self, fanout):
        other, subscriber = listen(fanout), FakeSubscriber()
        subscription = join(fanout, subscriber)
        fanout.deliver(publication(data=1, offset=1))
        admit(fanout, subscription)
        fanout.deliver(publication(data=2, offset=2))
        await turns(3)
        assert other.heard() == subscriber.heard() == [1, 2]

    async def test_what_it_missed_comes_first_then_what_was_held_back_then_the_turns(self, fanout):
        subscriber = FakeSubscriber()
        subscription = join(fanout, subscriber)
        for n in (3, 4, 5):
            fanout.deliver(publication(data=n, offset=n))
        admit(fanout, subscription, after=1, missed=[publication(data=n, offset=n) for n in (2, 3, 4)])
        fanout.deliver(publication(data=6, offset=6))
        await turns(3)
        assert subscriber.heard() == [2, 3, 4, 5, 6]

    async def test_without_positions_all_that_was_held_back_comes(self, fanout):
        subscriber = FakeSubscriber()
        subscription = join(fanout, subscriber)
        for n in range(3):
            fanout.deliver(publication(data=n))
        admit(fanout, subscription)
        await turns(3)
        assert subscriber.heard() == [0, 1, 2]

    async def test_more_than_can_be_held_back_is_an_overrun_and_bounded(self, fanout):
        subscription = join(fanout, FakeSubscriber())
        for n in range(HOLD_LIMIT):
            fanout.deliver(publication(data=n, offset=n + 1))
        assert not subscription.overrun
        for n in range(10):
            fanout.deliver(publication(data=n, offset=n + 1))
        assert subscription.overrun
        assert len(subscription.held) == HOLD_LIMIT

    async def test_a_topic_knows_whether_anybody_is_there(self, fanout):
        topic = fanout.topic("room")
        assert topic.empty
        subscription = join(fanout, FakeSubscriber())
        assert not topic.empty
        assert fanout.subscriptions == 0  # not yet
        admit(fanout, subscription)
        assert not topic.empty
        assert fanout.subscriptions == 1
        topic.remove(subscription)
        assert topic.empty
        fanout.forget(topic)
        assert fanout.topics == {}


class TestLeaving:
    async def test_what_was_published_before_is_heard_and_nothing_after(self, fanout):
        subscriber = FakeSubscriber()
        subscription = join(fanout, subscriber)
        admit(fanout, subscription)
        fanout.deliver(publication(data=1))
        fanout.topic("room").remove(subscription)
        assert subscriber.heard() == [1]
        fanout.deliver(publication(data=2))
        await turns(3)
        assert subscriber.heard() == [1]

    async def test_twice_is_once(self, fanout):
        stays = listen(fanout)
        subscription = join(fanout, FakeSubscriber())
        fanout.topic("room").remove(subscription)
        fanout.topic("room").remove(subscription)
        fanout.deliver(publication(data=1))
        await turns(3)
        assert stays.heard() == [1]


class TestExclude:
    async def test_the_one_excluded_learns_the_position_and_the_others_the_event(self, fanout):
        one, other = listen(fanout), listen(fanout)
        for n in (1, 2, 3):
            fanout.deliver(publication(data=n, offset=n, exclude=one.id if n == 2 else None))
        await turns(3)
        assert other.heard() == [1, 2, 3]
        assert [(m["type"], m["offset"]) for m in one.messages] == [
            ("event", 1),
            ("position", 2),
            ("event", 3),
        ]

    async def test_where_there_are_no_positions_it_learns_nothing(self, fanout):
        one, other = listen(fanout), listen(fanout)
        fanout.deliver(publication(data=1, exclude=one.id))
        await turns(3)
        assert one.messages == []
        assert other.heard() == [1]

    async def test_who_is_excluded_and_not_here_changes_nothing(self, fanout):
        subscriber = listen(fanout)
        fanout.deliver(publication(data=1, offset=1, exclude="elsewhere"))
        await turns(3)
        assert subscriber.heard() == [1]

    async def test_a_replay_leaves_it_out_too(self, fanout):
        subscriber = FakeSubscriber()
        subscription = join(fanout, subscriber)
        missed = [publication(data=n, offset=n, exclude=subscriber.id if n == 1 else None) for n in (1, 2)]
        admit(fanout, subscription, after=2, missed=missed)
        assert [(m["type"], m["offset"]) for m in subscriber.messages] == [("position", 1), ("event", 2)]

    async def test_on_several_channels_the_order_stays(self, fanout):
        subscriber = FakeSubscriber()
        for channel in "ab":
            admit(fanout, join(fanout, subscriber, channel))
        for n in range(1, 7):
            exclude = subscriber.id if n in {3, 4} else None
            fanout.deliver(publication("ab"[n % 2], data=n, offset=n, exclude=exclude))
        await turns(3)
        for channel, offsets in (("a", [2, 4, 6]), ("b", [1, 3, 5])):
            assert [m["offset"] for m in subscriber.messages if m["channel"] == channel] == offsets


class TestGap:
    async def test_comes_after_what_was_published_before_it(self, fanout):
        subscriber = listen(fanout)
        fanout.deliver(publication(data=1, offset=1))
        fanout.topic("room").gap(Position("e", 9))
        fanout.deliver(publication(data=10, epoch="e", offset=10, previous=9))
        await turns(3)
        assert [m["type"] for m in subscriber.messages] == ["event", "gap", "event"]
        assert subscriber.messages[1] == {"type": "gap", "channel": "room", "epoch": "e", "offset": 9}

    async def test_without_a_position_has_none(self, fanout):
        subscriber = listen(fanout)
        fanout.topic("room").gap(None)
        assert subscriber.messages == [{"type": "gap", "channel": "room"}]


class TestBrokenOff:
    """Where a publication does not follow the one before it, something is lost, and that is said there."""

    def deliver(self, fanout, *offsets, epoch="e"):
        for previous, offset in offsets:
            fanout.deliver(publication(data=offset, epoch=epoch, offset=offset, previous=previous))

    def told(self, subscriber):
        return [(m["type"], m.get("epoch"), m["offset"]) for m in subscriber.messages]

    async def test_offsets_need_not_be_consecutive(self, fanout):
        subscriber = listen(fanout)
        self.deliver(fanout, (0, 3), (3, 10), (10, 11))
        await turns(3)
        self.deliver(fanout, (11, 20))
        await turns(3)
        assert subscriber.heard() == [3, 10, 11, 20]
        assert len(subscriber.messages) == 4

    @pytest.mark.parametrize("at_once", [True, False])
    async def test_a_hole_is_a_gap_before_what_comes_after_it(self, fanout, at_once):
        subscriber = listen(fanout)
        self.deliver(fanout, (0, 1), (1, 2))
        if not at_once:
            await turns(3)
        self.deliver(fanout, (4, 5), (5, 6))
        await turns(3)
        events = [("event", None, n) for n in (1, 2, 5, 6)]
        assert self.told(subscriber) == [*events[:2], ("gap", "e", 4), *events[2:]]

    @pytest.mark.parametrize("at_once", [True, False])
    async def test_a_new_epoch_is_a_gap(self, fanout, at_once):
        json, msgpack = listen(fanout), listen(fanout, codec=MSGPACK)
        self.deliver(fanout, (0, 1))
        if not at_once:
            await turns(3)
        self.deliver(fanout, (0, 1), (1, 2), epoch="f")
        await turns(3)
        for subscriber in (json, msgpack):
            assert [m[:2] for m in self.told(subscriber)] == [
                ("event", None), ("gap", "f"), ("event", None), ("event", None)
            ]  # fmt: skip

    async def test_where_the_one_before_is_not_known_nothing_is_missing(self, fanout):
        subscriber = listen(fanout)
        self.deliver(fanout, (0, 1), (0, 5))
        await turns(3)
        assert subscriber.heard() == [1, 5]
        assert len(subscriber.messages) == 2

    async def test_what_has_no_position_breaks_nothing_off(self, fanout):
        subscriber = listen(fanout)
        self.deliver(fanout, (0, 1))
        fanout.deliver(publication(data="between"))
        self.deliver(fanout, (1, 2))
        await turns(3)
        assert subscriber.heard() == [1, "between", 2]
        assert len(subscriber.messages) == 3

    async def test_after_a_gap_that_was_told_it_goes_on_from_there(self, fanout):
        subscriber = listen(fanout)
        self.deliver(fanout, (0, 1))
        fanout.topic("room").gap(Position("e", 7))
        self.deliver(fanout, (7, 8))
        await turns(3)
        fanout.topic("room").gap(None)
        self.deliver(fanout, (50, 51))
        await turns(3)
        assert [m["type"] for m in subscriber.messages] == ["event", "gap", "event", "gap", "event"]

    async def test_who_begins_at_a_position_hears_of_a_hole_right_after_it(self, fanout):
        subscriber = FakeSubscriber()
        fanout.topic("room").admit(join(fanout, subscriber), Position("e", 5))
        self.deliver(fanout, (6, 7))
        await turns(3)
        assert self.told(subscriber) == [("gap", "e", 6), ("event", None, 7)]

    async def test_with_slices_it_is_the_same(self, fanout, monkeypatch):
        monkeypatch.setattr(room, "SLICE", 0.0)
        subscribers = [listen(fanout) for _ in range(300)]
        elsewhere = listen(fanout, "elsewhere")
        fanout.deliver(publication("elsewhere"))
        self.deliver(fanout, (0, 1), (4, 5))
        await until(lambda: not fanout.busy and subscribers[0].messages)
        for subscriber in subscribers:
            assert self.told(subscriber) == [("event", None, 1), ("gap", "e", 4), ("event", None, 5)]
        assert len(elsewhere.heard()) == 1


class TestGapWhileJoining:
    async def test_is_told_in_its_place_among_what_was_held_back(self, fanout):
        subscriber = FakeSubscriber()
        subscription = join(fanout, subscriber)
        fanout.deliver(publication(data=1, epoch="e", offset=1))
        fanout.topic("room").gap(Position("e", 4))
        fanout.deliver(publication(data=5, epoch="e", offset=5, previous=4))
        fanout.topic("room").admit(subscription, Position("e", 0))
        await turns(3)
        assert [(m["type"], m["offset"]) for m in subscriber.messages] == [
            ("event", 1),
            ("gap", 4),
            ("event", 5),
        ]

    async def test_one_before_the_position_that_it_begins_at_is_none(self, fanout):
        subscriber = FakeSubscriber()
        subscription = join(fanout, subscriber)
        fanout.topic("room").gap(Position("e", 4))
        fanout.topic("room").admit(subscription, Position("e", 4))
        assert subscriber.messages == []

    async def test_who_has_left_is_not_let_in(self, fanout):
        subscriber = FakeSubscriber()
        subscription = join(fanout, subscriber)
        fanout.topic("room").remove(subscription)
        admit(fanout, subscription)
        fanout.deliver(publication(data=1))
        await turns(3)
        assert subscriber.messages == []
        assert fanout.topic("room").empty


class TestSlices:
    """A fan-out to very many is cut, so that the loop runs in between: and is the same in the end."""

    @pytest.fixture(autouse=True)
    def no_time(self, monkeypatch):
        monkeypatch.setattr(room, "SLICE", 0.0)

    async def test_the_loop_runs_in_between_and_all_hear_all_in_order(self, fanout):
        subscribers = [listen(fanout) for _ in range(1000)]
        fanout.deliver(publication(data=1))
        await asyncio.sleep(0)
        assert fanout.busy
        assert subscribers[0].heard() == [1]
        assert subscribers[-1].heard() == []
        fanout.deliver(publication(data=2))
        await until(lambda: not fanout.busy)
        assert all(s.heard() == [1, 2] for s in subscribers)

    async def test_who_joins_and_who_leaves_in_between_has_what_is_right(self, fanout):
        subscribers = [listen(fanout) for _ in range(500)]
        last = FakeSubscriber()
        leaving = join(fanout, last)
        admit(fanout, leaving)
        fanout.deliver(publication(data=1, offset=1))
        await asyncio.sleep(0)
        assert last.heard() == []
        fanout.topic("room").remove(leaving)
        late = FakeSubscriber()
        admit(fanout, join(fanout, late), after=1)
        fanout.deliver(publication(data=2, offset=2))
        await until(lambda: not fanout.busy)
        assert last.heard() == [1]
        assert late.heard() == [2]
        assert all(s.heard() == [1, 2] for s in subscribers)

    async def test_several_channels_at_once(self, fanout):
        subscribers = []
        for _ in range(300):
            subscribers.append(FakeSubscriber())
            for channel in "abc":
                admit(fanout, join(fanout, subscribers[-1], channel))
        for n in range(6):
            fanout.deliver(publication("abc"[n % 3], data=n))
        await asyncio.sleep(0)
        assert fanout.busy
        assert subscribers[0].heard() == [0, 3]  # written, though the others have nothing yet
        for n in range(6, 12):
            fanout.deliver(publication("abc"[n % 3], data=n))
        await until(lambda: not fanout.busy)
        for subscriber in subscribers:
            for first, channel in enumerate("abc"):
                heard = [m["data"] for m in subscriber.messages if m["channel"] == channel]
                assert heard == list(range(first, 12, 3))

    async def test_with_time_enough_there_is_no_cut(self, fanout, monkeypatch):
        monkeypatch.setattr(room, "SLICE", 60.0)
        subscribers = [listen(fanout) for _ in range(1000)]
        fanout.deliver(publication(data=1))
        fanout.flush()
        assert not fanout.busy
        assert all(s.heard() == [1] for s in subscribers)


class TestTrouble:
    """What cannot be encoded came from another node; it is its channel's trouble, and it is said."""

    poison = staticmethod(lambda channel="a", **fields: publication(channel, time=float("nan"), **fields))

    async def test_one_channels_is_not_the_others(self, caplog):
        metrics = Metrics()
        fanout = Fanout(metrics)
        poisoned, fine = listen(fanout, "a"), listen(fanout, "b")
        fanout.deliver(self.poison())
        fanout.deliver(publication("b", data=1))
        await turns(3)
        assert fine.heard() == [1]
        assert [m["type"] for m in poisoned.messages] == ["gap"]
        assert "'a'" in caplog.text
        fanout.deliver(publication("a", data=2))
        await turns(3)
        assert poisoned.heard() == [2]

    async def test_leaving_then_is_no_trouble(self, fanout):
        subscriber = FakeSubscriber()
        subscription = join(fanout, subscriber, "a")
        admit(fanout, subscription)
        fanout.deliver(self.poison())
        fanout.topic("a").remove(subscription)
        assert fanout.topic("a").empty

    @pytest.mark.parametrize("offset", [0, 7])
    async def test_what_history_has_of_it_is_a_gap_too(self, fanout, offset):
        subscriber = FakeSubscriber()
        missed = [self.poison("room", offset=offset, epoch="e")]
        fanout.topic("room").admit(join(fanout, subscriber), Position("e", 0), missed)
        gap = {"type": "gap", "channel": "room"}
        assert subscriber.messages == [gap | {"epoch": "e", "offset": 7} if offset else gap]

    async def test_who_is_excluded_hears_the_others_and_is_told_of_what_cannot_be_read(self, fanout):
        subscriber = listen(fanout)
        fanout.deliver(publication(data=1, exclude=subscriber.id))
        fanout.deliver(publication(data=2))
        await turns(3)
        assert subscriber.heard() == [2]
        begun = FakeSubscriber()
        missed = [publication(data=1, exclude=begun.id), self.poison("room"), publication(data=3)]
        admit(fanout, join(fanout, begun), missed=missed)
        assert [m["type"] for m in begun.messages] == ["gap"]
        fanout.deliver(publication(data=4))
        await turns(3)
        assert begun.heard() == [4]

    async def test_two_in_a_row_silence_no_other_channel(self, fanout, monkeypatch):
        monkeypatch.setattr(room, "SLICE", 0.0)
        poisoned = [listen(fanout, "a") for _ in range(200)] + [listen(fanout, "a", MSGPACK)]
        fine = listen(fanout, "b")
        unreadable = {"data": b"no JSON"}  # MSGPACK must read it, JSON hands it on
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        fanout.deliver(replace(publication("a"), **unreadable))
        fanout.deliver(publication("b", data=1))
        await asyncio.sleep(0)
        assert fanout.busy
        fanout.deliver(replace(publication("a"), **unreadable))
        await turns(20)
        fanout.deliver(publication("b", data=2))
        await turns(20)
        assert fine.heard() == [1, 2]
        assert poisoned[-1].messages[-1]["type"] == "gap"


# ------------------------------------------------------------------------------------------------------------------
# Whatever happens in whatever order: each subscriber hears what was published between its join and its leave, once.

steps = st.lists(
    st.tuples(st.sampled_from(["publish", "publish", "join", "admit", "leave", "turn"]), st.integers(0, 3)),
    max_size=60,
)


@settings(deadline=None, max_examples=150)
@given(steps, st.integers(1, 2))
async def test_each_hears_its_stretch_of_the_channel_once_and_in_order(script, codecs):
    fanout, offset = Fanout(Metrics()), 0
    seats = {}  # who sits there: subscription, where its stretch begins, whether it is live
    stretches = []
    for step, seat in script:
        if step == "publish":
            offset += 1
            fanout.deliver(publication(data=offset, offset=offset))
        elif step == "join" and seat not in seats:
            subscriber = FakeSubscriber((JSON, MSGPACK)[seat % codecs])
            seats[seat] = [join(fanout, subscriber), offset, False]
        elif step == "admit" and seat in seats and not seats[seat][2]:
            admit(fanout, seats[seat][0], after=seats[seat][1])
            seats[seat][2] = True
        elif step == "leave" and seat in seats:
            subscription, begin, live = seats.pop(seat)
            fanout.topic("room").remove(subscription)
            stretches.append((subscription.subscriber, begin, offset if live else begin))
        elif step == "turn":
            await asyncio.sleep(0)
    for subscription, begin, live in seats.values():
        stretches.append((subscription.subscriber, begin, offset if live else begin))
    await turns(3)
    for subscriber, begin, end in stretches:
        assert subscriber.heard() == list(range(begin + 1, end + 1))


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.sampled_from(["publish", "publish", "lose", "epoch", "turn", "slice"]), max_size=40),
    st.sampled_from([JSON, MSGPACK]),
)
async def test_whatever_is_lost_is_said_where_it_was_lost_and_nothing_else(script, codec):
    fanout, subscriber = Fanout(Metrics()), FakeSubscriber(codec)
    crowd = [listen(fanout) for _ in range(150)]  # so that a slice may end in between
    epoch, offset = "e0", 0
    fanout.topic("room").admit(join(fanout, subscriber), Position(epoch, offset))
    expected, whole = [], True
    for number, step in enumerate(script):
        if step in {"publish", "lose"}:
            previous, offset = offset, offset + 1
            if step == "lose":
                whole = False
                continue
            fanout.deliver(publication(data=number, epoch=epoch, offset=offset, previous=previous))
            expected += [] if whole else [("gap", previous)]
            expected.append(("event", offset))
            whole = True
        elif step == "epoch":
            epoch, offset, whole = f"e{number + 1}", 0, False
        elif step == "turn":
            await asyncio.sleep(0)
        else:
            fanout.topic("room").step()
    await turns(3)
    assert [(m["type"], m["offset"]) for m in subscriber.messages] == expected
    assert all(other.heard() == subscriber.heard() for other in crowd)
