"""The memory broadcaster: positions that are never wrong, history that is complete or says it is not, bounded bytes."""

import gc
import time
import tracemalloc

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from asgi_ws.broadcasters import from_url
from asgi_ws.broadcasters import memory as room
from asgi_ws.broadcasters.memory import KEY_TTL, LOG_BYTES, PUBLICATION_BYTES, MemoryBroadcaster
from asgi_ws.errors import SettingsError
from asgi_ws.publication import Position, Publication, Retention
from asgi_ws.settings import Settings
from tests.fakes import Clock, FakeReceiver, done, publication

ALLOW = "memory://?workers=allow"
KEEP = Retention(size=100, ttl=300.0)
ALL = 10**9


class Memory:
    """A memory broadcaster under a clock moved by hand; it never waits, so no loop is needed."""

    def __init__(self, **settings):
        self.receiver = FakeReceiver()
        self.clock = Clock()
        self.broadcaster = MemoryBroadcaster(Settings(**{"broadcaster": ALLOW, **settings}))
        self.broadcaster.clock = self.clock
        self.start()

    def start(self):
        done(self.broadcaster.start(self.receiver))

    def stop(self):
        done(self.broadcaster.stop())

    def publish(self, channel="room", data=None, *, key=None, retention=KEEP):
        made = publication(channel, data=data, key=key, time=self.clock.now)
        return done(self.broadcaster.publish(made, retention))

    def position(self, channel="room"):
        return done(self.broadcaster.position(channel))

    def history(self, channel="room", after=None, *, retention=KEEP, limit=ALL):
        found = done(self.broadcaster.history(channel, after, retention, limit))
        return found._replace(publications=tuple(found.publications))

    def kept(self, channel="room", retention=KEEP):
        return [int(p.data) for p in self.history(channel, retention=retention).publications]


@pytest.fixture
def memory():
    return Memory()


class TestPositions:
    def test_a_channel_begins_at_0_and_each_publication_is_the_next(self, memory):
        start = memory.position()
        assert start.offset == 0
        positions = [memory.publish(data=n) for n in range(3)]
        assert positions == [Position(start.epoch, n) for n in (1, 2, 3)]
        assert memory.position() == positions[-1]

    def test_the_receiver_is_handed_each_with_its_position_and_the_one_before(self, memory):
        for n in range(3):
            memory.publish(data=n)
        heard = memory.receiver.heard
        assert [(p.offset, p.previous, p.data) for p in heard] == [(1, 0, b"0"), (2, 1, b"1"), (3, 2, b"2")]
        assert {p.epoch for p in heard} == {memory.position().epoch}

    def test_channels_have_their_own(self, memory):
        memory.publish("a")
        memory.publish("a")
        assert memory.publish("b").offset == 1
        assert memory.position("a").offset == 2

    def test_with_nothing_kept_there_is_none(self, memory):
        assert memory.publish(retention=Retention(0, 300.0)) is None
        (heard,) = memory.receiver.heard
        assert (heard.epoch, heard.offset) == ("", 0)
        assert memory.position().offset == 0

    def test_it_is_embedded_and_answers_a_ping_at_once(self, memory):
        assert memory.broadcaster.embedded
        assert memory.broadcaster.features == {"history", "idempotency", "presence", "total_order"}
        assert done(memory.broadcaster.ping()) >= 0.0

    def test_its_repr_has_the_counts(self, memory):
        memory.publish("a")
        assert repr(memory.broadcaster).startswith("<MemoryBroadcaster 1 channels, ")


class TestHistory:
    def test_all_that_is_kept(self, memory):
        for n in range(5):
            memory.publish(data=n)
        found = memory.history()
        assert found.complete
        assert found.position == memory.position()
        assert [p.data for p in found.publications] == [b"0", b"1", b"2", b"3", b"4"]

    def test_what_came_after_a_position(self, memory):
        positions = [memory.publish(data=n) for n in range(5)]
        for n, position in enumerate(positions):
            found = memory.history(after=position)
            assert found.complete
            assert [int(p.data) for p in found.publications] == list(range(n + 1, 5))

    def test_after_the_start_of_a_channel_comes_all(self, memory):
        start = memory.position()
        memory.publish(data=0)
        found = memory.history(after=start)
        assert found.complete
        assert len(found.publications) == 1

    def test_of_a_channel_without_a_publication(self, memory):
        start = memory.position()
        assert memory.history() == (start, (), True)
        assert memory.history(after=start) == (start, (), True)
        assert memory.history(after=Position(start.epoch, 1)) == (start, (), False)
        assert memory.history(after=Position("other", 0)) == (start, (), False)

    @pytest.mark.parametrize("limit", [1, 2, 4])
    def test_a_limit_leaves_out_what_comes_last_and_says_where_it_ends(self, memory, limit):
        positions = [memory.publish(data=n) for n in range(5)]
        found = memory.history(limit=limit)
        assert found.complete
        assert [int(p.data) for p in found.publications] == list(range(limit))
        assert found.position == positions[limit - 1]
        rest = memory.history(after=found.position)
        assert [int(p.data) for p in rest.publications] == list(range(limit, 5))

    def test_a_limit_that_all_fit_ends_at_the_top(self, memory):
        memory.publish()
        assert memory.history(limit=1).position == memory.position()

    def test_a_limit_of_0_gets_nothing_and_no_further(self, memory):
        start = memory.position()
        memory.publish()
        found = memory.history(after=start, limit=0)
        assert found.position == start or not found.complete

    def test_a_position_of_another_epoch_or_above_the_top_is_not_complete(self, memory):
        top = memory.publish()
        for after in (Position("other", 1), Position(top.epoch, 2), Position("", 0)):
            assert memory.history(after=after) == (top, (), False)

    def test_a_position_below_what_is_kept_is_not_complete(self, memory):
        two = Retention(2, 300.0)
        positions = [memory.publish(data=n, retention=two) for n in range(4)]
        assert memory.history(after=positions[0], retention=two) == (positions[-1], (), False)
        found = memory.history(after=positions[1], retention=two)
        assert found.complete
        assert [int(p.data) for p in found.publications] == [2, 3]

    def test_what_is_read_does_not_change_with_what_comes_later(self, memory):
        memory.publish(data=0)
        found = memory.history()
        memory.publish(data=1)
        assert [p.data for p in found.publications] == [b"0"]


class TestCaps:
    def test_size(self, memory):
        for n in range(10):
            memory.publish(data=n, retention=Retention(3, 300.0))
        assert memory.kept() == [7, 8, 9]

    def test_ttl(self, memory):
        retention = Retention(100, 10.0)
        for n in range(3):
            memory.publish(data=n, retention=retention)
            memory.clock.now += 5
        assert memory.kept(retention=retention) == [1, 2]  # 10 s and 5 s old
        memory.clock.now += 5.5
        assert memory.kept(retention=retention) == []

    def test_a_position_outlives_its_history(self, memory):
        top = memory.publish(retention=Retention(100, 10.0))
        memory.clock.now += 1000
        assert memory.position() == top
        assert memory.history(after=top) == (top, (), True)
        assert not memory.history(after=Position(top.epoch, 0)).complete
        assert memory.publish() == Position(top.epoch, 2)

    def test_bytes_of_one_channel(self):
        memory = Memory(history_channel_bytes=10_000)
        for _ in range(30):
            memory.publish(data="x" * 1000)
        kept = memory.history().publications
        assert sum(p.size + PUBLICATION_BYTES for p in kept) <= 10_000
        assert len(kept) == 7  # of 1,400 bytes and some each

    def test_one_that_is_larger_than_the_cap_is_delivered_and_not_kept(self):
        memory = Memory(history_channel_bytes=1000)
        before = memory.publish(data=1)
        top = memory.publish(data="x" * 2000)
        assert len(memory.receiver.heard) == 2
        assert top == memory.position() == Position(before.epoch, 2)
        assert memory.history() == (top, (), True)
        assert not memory.history(after=before).complete

    def test_bytes_of_all_channels_go_oldest_first_whatever_the_channel(self):
        memory = Memory(history_bytes=5 * LOG_BYTES + 10 * (1100 + PUBLICATION_BYTES))
        for n in range(25):
            memory.publish(f"c{n % 5}", {"n": n, "x": "x" * 1000})
            memory.clock.now += 1
        kept = [p for c in range(5) for p in memory.history(f"c{c}").publications]
        times = sorted(p.time for p in kept)
        assert 8 <= len(kept) <= 10
        assert times == [
            memory.clock.now - n for n in range(len(kept), 0, -1)
        ]  # the youngest, without a hole

    def test_a_quiet_channel_loses_its_old_ones_to_a_busy_one(self):
        memory = Memory(history_bytes=20_000)
        quiet = memory.publish("quiet", "x" * 1000)
        memory.clock.now += 1
        for _ in range(50):
            memory.publish("busy", "x" * 1000)
        assert not memory.history("quiet", after=Position(quiet.epoch, 0)).complete
        assert len(memory.history("busy").publications) >= 10

    def test_an_old_place_in_the_order_is_put_right_when_its_turn_comes(self):
        # "a" is queued with a publication that its own size cap dropped since: what it has now is the youngest.
        memory = Memory(history_bytes=2 * LOG_BYTES + 4 * (1100 + PUBLICATION_BYTES))
        one = Retention(1, 300.0)
        memory.publish("a", "x" * 1000, retention=one)
        memory.clock.now += 1
        for _ in range(3):
            memory.publish("b", "x" * 1000)
            memory.clock.now += 1
        memory.publish("a", "x" * 1000, retention=one)
        memory.clock.now += 1
        memory.publish("b", "x" * 1000)
        assert len(memory.history("a").publications) == 1
        assert len(memory.history("b").publications) == 3

    def test_channels_that_keep_nothing_go_too_the_longest_untouched_first(self):
        memory = Memory(history_bytes=10 * LOG_BYTES)
        short = Retention(100, 1.0)
        tops = []
        for n in range(30):
            tops.append(memory.publish(f"c{n}", retention=short))
            memory.clock.now += 2
        known = [memory.position(f"c{n}") == top for n, top in enumerate(tops)]
        assert known == sorted(known)  # first those that are forgotten
        assert 5 <= sum(known) <= 10

    def test_a_channel_that_was_touched_again_is_not_the_one_to_go(self):
        memory = Memory(history_bytes=10 * LOG_BYTES)
        short = Retention(100, 1.0)
        for n in range(30):
            memory.publish(f"c{n}", retention=short)
            top = memory.publish("busy", retention=short)
            memory.clock.now += 2
        assert top.offset == 30
        assert memory.position("busy") == top


class TestForgetting:
    def test_a_position_lives_for_position_ttl_after_the_last_publish(self):
        memory = Memory(position_ttl=100.0)
        top = memory.publish()
        for _ in range(5):
            memory.clock.now += 90
            assert memory.publish().epoch == top.epoch

    def test_after_that_the_channel_has_a_new_epoch(self):
        memory = Memory(position_ttl=100.0)
        old = memory.publish()
        memory.clock.now += 101
        memory.publish("another")  # whatever happens next
        fresh = memory.position()
        assert fresh.offset == 0
        assert fresh.epoch != old.epoch
        assert memory.publish() == Position(fresh.epoch, 1)
        assert not memory.history(after=old).complete
        assert not memory.history(after=Position(old.epoch, 0)).complete

    def test_a_position_of_what_was_forgotten_is_never_valid_again(self):
        memory = Memory(position_ttl=100.0)
        olds = []
        for _ in range(5):
            olds += [memory.position(), memory.publish(), memory.publish()]
            memory.clock.now += 101
            memory.publish("another")
        assert not any(memory.history(after=old).complete for old in olds)

    def test_no_history_at_all_is_no_reason_for_a_wrong_position(self):
        memory = Memory(history_bytes=0)
        seen = set()
        for _ in range(5):
            old = memory.publish()
            assert not memory.history(after=old).publications
            seen.add((old.epoch, old.offset))
        assert len(seen) == 5

    def test_every_start_is_empty_with_new_epochs(self, memory):
        old = memory.publish(key="k")
        memory.stop()
        memory.start()
        assert memory.position().offset == 0
        assert memory.position().epoch != old.epoch
        assert memory.history().publications == ()
        assert not memory.history(after=old).complete
        assert memory.publish(key="k").epoch != old.epoch  # keys are forgotten too
        assert len(memory.receiver.heard) == 2

    def test_also_where_its_loop_was_closed_and_nothing_stopped_it(self, memory):
        old = memory.publish()
        memory.start()
        assert memory.position().offset == 0
        assert not memory.history(after=old).complete

    def test_stopping_twice_is_stopping_once(self, memory):
        memory.stop()
        memory.stop()


class TestKeys:
    def test_a_second_publish_sends_nothing_and_returns_the_first_position(self, memory):
        first = memory.publish(data=1, key="k")
        memory.publish(data=2)
        assert memory.publish(data=3, key="k") == first
        assert [p.data for p in memory.receiver.heard] == [b"1", b"2"]
        assert memory.kept() == [1, 2]

    def test_a_key_belongs_to_its_channel(self, memory):
        memory.publish("a", key="k")
        memory.publish("b", key="k")
        assert [p.channel for p in memory.receiver.heard] == ["a", "b"]

    def test_a_key_lives_for_five_minutes(self, memory):
        assert KEY_TTL == 300.0
        first = memory.publish(key="k")
        memory.clock.now += 299
        assert memory.publish(key="k") == first
        memory.clock.now += 2  # from the first publish on, however often it was repeated
        assert memory.publish(key="k") == Position(first.epoch, 2)

    def test_where_nothing_is_kept_a_key_counts_too(self, memory):
        nothing = Retention(0, 300.0)
        assert memory.publish(key="k", retention=nothing) is None
        assert memory.publish(key="k", retention=nothing) is None
        assert len(memory.receiver.heard) == 1

    def test_there_is_a_bound_and_the_oldest_go_first(self, memory, monkeypatch):
        monkeypatch.setattr(room, "MAX_KEYS", 3)
        for key in "abcd":
            memory.publish(key=key)
        for key in "dc":  # the youngest are known
            memory.publish(key=key)
        assert len(memory.receiver.heard) == 4
        memory.publish(key="a")
        assert len(memory.receiver.heard) == 5

    def test_a_repeat_at_the_bound_costs_no_other_key_its_place(self, memory, monkeypatch):
        monkeypatch.setattr(room, "MAX_KEYS", 3)
        for key in "abc":
            memory.publish(key=key)
        for key in "cba":
            memory.publish(key=key)
        assert len(memory.receiver.heard) == 3

    def test_the_first_position_is_told_even_after_its_channel_was_forgotten(self):
        memory = Memory(position_ttl=100.0)
        first = memory.publish(key="k")
        memory.clock.now += 101
        memory.publish("another")
        assert memory.publish(key="k") == first


class TestUrl:
    @pytest.mark.parametrize("url", ["memory://", ALLOW])
    def test_is_found_by_its_scheme(self, url):
        assert isinstance(from_url(Settings(broadcaster=url)), MemoryBroadcaster)

    @pytest.mark.parametrize(
        "query",
        ["workers=deny", "workers", "worker=allow", "workers=allow&workers=allow", "workers=allow&x="],
    )
    def test_another_query_is_refused_with_what_is_expected(self, query):
        with pytest.raises(
            SettingsError, match=r"ASGI_WS_BROADCASTER: expected .*workers=allow, got memory://\?"
        ):
            from_url(Settings(broadcaster=f"memory://?{query}"))

    @pytest.mark.anyio
    async def test_without_workers_allow_the_claim_to_be_the_only_worker_is_made_and_given_back(
        self, monkeypatch
    ):
        said = []

        class Claim:
            def __init__(self, namespace):
                said.append(namespace)

            async def acquire(self):
                said.append("acquired")

            def release(self):
                said.append("released")

        monkeypatch.setattr(room, "SoleWorker", Claim)
        broadcaster = MemoryBroadcaster(Settings(broadcaster="memory://", namespace="shop"))
        await broadcaster.start(FakeReceiver())
        await broadcaster.stop()
        assert said == ["shop", "acquired", "released"]
        MemoryBroadcaster(Settings(broadcaster=ALLOW))
        assert len(said) == 3

    @pytest.mark.anyio
    async def test_a_worker_too_many_does_not_start(self, monkeypatch):
        class Claim:
            def __init__(self, namespace):
                pass

            async def acquire(self):
                raise SettingsError("ASGI_WS_BROADCASTER: expected one worker")

        monkeypatch.setattr(room, "SoleWorker", Claim)
        with pytest.raises(SettingsError, match="one worker"):
            await MemoryBroadcaster(Settings()).start(FakeReceiver())


class TestCost:
    """What is charged for is what Python takes, about: else HISTORY_BYTES would be another number."""

    def grown(self, work):
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            work()
            gc.collect()
            return tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()

    def fresh(self, channel, n, size):
        # No text is shared between publications, as where they come from a decoder.
        channel, event = channel.encode().decode(), b"order.created".decode()
        return Publication(channel=channel, event=event, data=bytes(size), time=n * 1.5)

    @pytest.mark.parametrize("size", [0, 100, 1000])
    def test_of_a_publication(self, size):
        memory, count = Memory(history_bytes=ALL, history_channel_bytes=ALL), 2000
        memory.clock.now = 0.0
        retention = Retention(ALL, float(ALL))

        def work():
            for n in range(count):
                done(memory.broadcaster.publish(self.fresh("room:1", 1000 + n, size), retention))
            memory.receiver.heard.clear()

        work()  # the channel, and what Python makes once
        measured = self.grown(work) / count
        charged = self.fresh("room:1", 1000, size).size + PUBLICATION_BYTES
        assert charged / 2 < measured < charged * 1.25

    def test_of_a_channel(self):
        memory, count = Memory(history_bytes=ALL), 2000

        def work():
            for n in range(count):
                done(memory.broadcaster.publish(self.fresh(f"room:{n}", memory.clock.now, 0), KEEP))
            memory.receiver.heard.clear()

        measured = self.grown(work) / count
        charged = LOG_BYTES + PUBLICATION_BYTES
        assert charged / 2 < measured < charged * 1.25

    def test_a_million_bytes_set_are_about_a_million_bytes_taken(self):
        memory = Memory(history_bytes=1_000_000)

        def work():
            for n in range(10_000):
                memory.clock.now += 1e-3
                done(
                    memory.broadcaster.publish(self.fresh(f"room:{n % 500}", memory.clock.now, n % 700), KEEP)
                )
                memory.receiver.heard.clear()

        assert 300_000 < self.grown(work) < 1_500_000


# ------------------------------------------------------------------------------------------------------------------
# The model: everything that was ever published. What history says must be true of it.

RETENTIONS = {"a": Retention(3, 20.0), "b": Retention(50, 60.0), "c": Retention(50, 5.0)}
CHANNELS = st.sampled_from(sorted(RETENTIONS))
POSITION_TTL = 100.0
CHANNEL_BYTES = 3000
TOTAL_BYTES = 3 * LOG_BYTES + 5000


class Model(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.memory = Memory(
            history_bytes=TOTAL_BYTES, history_channel_bytes=CHANNEL_BYTES, position_ttl=POSITION_TTL
        )
        self.count = 0
        self.published = {name: [] for name in RETENTIONS}  # every publication, as delivered
        self.given = {name: set() for name in RETENTIONS}  # every position that was ever told
        self.dead = {name: set() for name in RETENTIONS}  # those that history has called incomplete
        self.keys = {}

    @initialize()
    def begin(self):
        for name in RETENTIONS:
            self.given[name].add(self.memory.position(name))

    @rule(channel=CHANNELS, size=st.integers(0, 900), key=st.sampled_from([None, None, None, "k1", "k2"]))
    def publish(self, channel, size, key):
        before = len(self.memory.receiver.heard)
        seen, expires = self.keys.get((channel, key), (None, 0.0))
        position = self.memory.publish(
            channel, [self.count, "x" * size], key=key, retention=RETENTIONS[channel]
        )
        heard = self.memory.receiver.heard[before:]
        if key is not None and expires > self.memory.clock.now:
            assert (position, heard) == (seen, [])
            return
        (delivered,) = heard
        if key is not None:
            self.keys[channel, key] = position, self.memory.clock.now + KEY_TTL
        self.count += 1
        assert Position(delivered.epoch, delivered.offset) == position
        self.follows(channel, delivered)
        self.published[channel].append(delivered)
        self.given[channel].add(position)

    def follows(self, channel, delivered):
        last = self.published[channel][-1] if self.published[channel] else None
        if last is not None and delivered.epoch == last.epoch:
            assert delivered.previous == last.offset < delivered.offset
        else:
            assert delivered.epoch not in {p.epoch for p in self.published[channel]}
            assert delivered.previous == 0 < delivered.offset

    @rule(seconds=st.sampled_from([0.5, 3.0, 10.0, 30.0, 90.0, 150.0, 301.0]))
    def wait(self, seconds):
        self.memory.clock.now += seconds

    @rule(channel=CHANNELS)
    def ask_position(self, channel):
        position = self.memory.position(channel)
        self.given[channel].add(position)
        found = self.memory.history(channel, position, retention=RETENTIONS[channel])
        assert found == (position, (), True)

    @precondition(lambda self: any(self.given.values()))
    @rule(channel=CHANNELS, data=st.data(), limit=st.sampled_from([1, 2, 5, ALL]))
    def read_after(self, channel, data, limit):
        given = sorted(self.given[channel], key=lambda p: (p.epoch, p.offset))
        after = data.draw(st.sampled_from(given))
        found = self.memory.history(channel, after, retention=RETENTIONS[channel], limit=limit)
        if after in self.dead[channel]:
            assert not found.complete, f"{after} is valid again"
        if not found.complete:
            assert not found.publications
            self.dead[channel].add(after)
            return
        assert found.position.epoch == after.epoch
        expected = [p for p in self.published[channel] if p.epoch == after.epoch and p.offset > after.offset]
        self.is_right(channel, found, expected, limit)

    @rule(channel=CHANNELS, limit=st.sampled_from([1, 2, 5, ALL]))
    def read_all(self, channel, limit):
        found = self.memory.history(channel, None, retention=RETENTIONS[channel], limit=limit)
        assert found.complete
        first = found.publications[0].offset if found.publications else found.position.offset + 1
        expected = [
            p for p in self.published[channel] if p.epoch == found.position.epoch and p.offset >= first
        ]
        self.is_right(channel, found, expected, limit)

    def is_right(self, channel, found, expected, limit):
        """Exactly what was published between the two positions, in order, and none too old."""
        assert [p.data for p in found.publications] == [p.data for p in expected[:limit]]
        assert [p.offset for p in found.publications] == [p.offset for p in expected[:limit]]
        oldest = self.memory.clock.now - RETENTIONS[channel].ttl
        assert all(p.time >= oldest for p in found.publications)
        if len(expected) > limit:
            assert found.position.offset == expected[limit - 1].offset
        else:
            assert found.position == self.memory.position(channel)

    @rule(channel=CHANNELS, epoch=st.text(max_size=3), offset=st.integers(0, 1000))
    def read_after_what_was_never_told(self, channel, epoch, offset):
        assert not self.memory.history(channel, Position(epoch, offset), retention=KEEP).complete

    @rule()
    def restart(self):
        self.memory.stop()
        self.memory.start()
        self.keys.clear()
        for name, given in self.given.items():
            self.dead[name] |= given

    @invariant()
    def bytes_are_bounded(self):
        total = 0
        for name, (size, _) in RETENTIONS.items():
            kept = self.memory.history(name, retention=Retention(ALL, float(ALL))).publications
            taken = sum(p.size + PUBLICATION_BYTES for p in kept)
            assert taken <= CHANNEL_BYTES
            assert len(kept) <= size
            total += taken
        assert total <= TOTAL_BYTES


TestModel = Model.TestCase
TestModel.settings = hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_ten_thousand_channels_that_come_and_go_cost_no_more_each():
    """Forgetting is by the order of use, not by a search: a publish does not grow with the channels."""

    def seconds(channels):
        memory = Memory(history_bytes=ALL)
        for n in range(channels):
            memory.publish(f"c{n}")
        best = 9.9
        for _ in range(5):
            begin = time.perf_counter()
            for n in range(200):
                memory.publish(f"c{n}")
            best = min(best, time.perf_counter() - begin)
        return best

    assert seconds(20_000) < 8 * seconds(200)
