"""What waits for a session is bounded, and a publisher keeps step with those who keep up."""

import asyncio
import time
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_ws.codecs import JSON, MSGPACK
from asgi_ws.outbox import Batch, Outbox, Pace
from tests.fakes import DEADLINE, turns, until


def events(count=1, size=10):
    """A batch of a channel's events."""
    return Batch(JSON, [b"x" * size] * count, count)


def control(size=10):
    """One message that is no event."""
    return Batch(JSON, [b"x" * size])


class TestBatch:
    def test_has_its_messages_as_asgi_sends_them(self):
        assert list(Batch(JSON, ['{"é":1}'.encode()]).messages) == ['{"é":1}']
        assert list(Batch(MSGPACK, [b"\xc0"]).messages) == [b"\xc0"]

    def test_knows_its_count_and_its_bytes(self):
        batch = Batch(JSON, ["é".encode(), b"12345"], 2)
        assert (len(batch), batch.size, batch.events) == (2, 7, 2)
        assert "2" in repr(batch)
        assert "7 bytes" in repr(batch)

    @pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536])
    @pytest.mark.parametrize(("codec", "opcode"), [(JSON, 0x81), (MSGPACK, 0x82)])
    def test_frames_are_those_of_rfc_6455_joined(self, codec, opcode, size):
        if size < 126:
            head = bytes([opcode, size])
        elif size < 65_536:
            head = bytes([opcode, 126]) + size.to_bytes(2, "big")
        else:
            head = bytes([opcode, 127]) + size.to_bytes(8, "big")
        payload = b"x" * size
        assert Batch(codec, [payload, b"y"], 2).frames == head + payload + bytes([opcode, 1]) + b"y"

    def test_is_read_and_framed_once_for_everyone(self):
        batch = Batch(JSON, [b"1"])
        assert batch.messages is batch.messages
        assert batch.frames is batch.frames


class TestOutbox:
    def test_is_first_in_first_out_and_a_batch_counts_until_it_is_done(self):
        outbox = Outbox(1000, 10**6)
        batches = [events(), control(), events(3)]
        assert not outbox
        assert outbox.first() is None
        assert all(outbox.put(batch) for batch in batches)
        for batch in batches:
            assert outbox
            assert outbox.first() is batch
            assert outbox.first() is batch
            assert outbox.done(batch)
        assert not outbox
        assert repr(outbox) == "<Outbox 0 messages, 0 bytes>"

    def test_empty_it_takes_any_batch(self):
        assert Outbox(4, 100).put(events(50, 1000))

    def test_what_is_empty_again_takes_any_batch_again(self):
        outbox = Outbox(4, 100)
        for _ in range(3):
            batch = events(50, 1000)
            assert outbox.put(batch)
            assert outbox.done(batch)

    def test_a_modest_batch_leaves_the_rest_to_control_as_events_do(self):
        outbox = Outbox(8, 10**6)
        for _ in range(6):
            assert outbox.put(Batch(JSON, [b"join"], modest=True))
        assert not outbox.put(Batch(JSON, [b"join"], modest=True))
        assert outbox.put(control())
        assert outbox.clear() == 0  # they are no events

    def test_events_have_three_quarters_of_the_messages_and_control_has_the_rest(self):
        outbox = Outbox(100, 10**6)
        assert [outbox.put(events()) for _ in range(80)] == [True] * 75 + [False] * 5
        assert [outbox.put(control()) for _ in range(30)] == [True] * 25 + [False] * 5
        assert not outbox.put(events())

    def test_the_same_for_bytes(self):
        outbox = Outbox(10**6, 10_000)
        assert [outbox.put(events(size=100)) for _ in range(80)] == [True] * 75 + [False] * 5
        assert [outbox.put(control(size=100)) for _ in range(30)] == [True] * 25 + [False] * 5

    def test_a_batch_fits_as_a_whole_or_not_at_all(self):
        outbox = Outbox(100, 10**6)
        outbox.put(events(70))
        assert not outbox.put(events(6))
        assert outbox.put(events(5))
        assert repr(outbox) == "<Outbox 75 messages, 750 bytes>"

    def test_what_is_forced_in_is_taken_whatever_the_bounds_and_shows(self):
        outbox = Outbox(4, 100)
        outbox.put(events(4))
        assert not outbox.over
        outbox.force(control())
        assert outbox.over
        assert not outbox.put(control())

    def test_too_many_bytes_show_too(self):
        outbox = Outbox(4, 100)
        outbox.force(events(1, 101))
        assert outbox.over

    def test_clear_drops_all_and_counts_the_events_and_a_write_in_hand_learns_of_it(self):
        outbox = Outbox(100, 10**6)
        writing = events(3)
        for batch in (writing, control(), events(2)):
            outbox.put(batch)
        assert outbox.clear() == 5
        assert not outbox
        assert not outbox.done(writing)
        outbox.put(events())
        assert not outbox.done(writing)
        assert repr(outbox) == "<Outbox 1 messages, 10 bytes>"

    @settings(deadline=None)
    @given(
        st.lists(
            st.tuples(st.sampled_from("pppfdc"), st.integers(1, 30), st.integers(0, 40), st.booleans()),
            max_size=60,
        )
    )
    def test_the_bounds_hold_whatever_happens(self, steps):
        outbox, model = Outbox(40, 1000), deque()
        for step, count, size, is_event in steps:
            batch = Batch(JSON, [b"x" * size] * count, count if is_event else 0)
            share = 3 / 4 if is_event else 1
            fits = not model or (
                sum(map(len, model)) + count <= 40 * share
                and sum(b.size for b in model) + batch.size <= 1000 * share
            )
            if step == "p":
                assert outbox.put(batch) is fits
                if fits:
                    model.append(batch)
            elif step == "f":
                outbox.force(batch)
                model.append(batch)
            elif step == "c":
                assert outbox.clear() == sum(b.events for b in model)
                model.clear()
            elif model:
                assert outbox.done(model.popleft())
            assert outbox.first() is (model[0] if model else None)
            assert bool(outbox) is bool(model)
            assert (
                repr(outbox)
                == f"<Outbox {sum(map(len, model))} messages, {sum(b.size for b in model)} bytes>"
            )


class Writer:
    def __init__(self, progress=0.0):
        self.progress = progress


@pytest.mark.anyio
class TestPace:
    async def kept(self, pace, patience):
        """Whether the pace is kept without the patience being used up."""
        pace.patience = patience
        begin = time.monotonic()
        async with asyncio.timeout(DEADLINE):
            await pace.keep()
        return time.monotonic() - begin < patience

    async def test_with_nobody_behind_it_gives_way_and_no_more(self):
        ran = []
        asyncio.get_running_loop().call_soon(ran.append, 1)
        assert await self.kept(Pace(), DEADLINE)
        assert ran

    async def test_it_waits_for_those_who_keep_up(self):
        pace, writers = Pace(), [Writer(), Writer()]
        pace.patience = DEADLINE
        for writer in writers:
            pace.behind(writer)
        waiting = asyncio.get_running_loop().create_task(pace.keep())
        await turns()
        pace.caught_up(writers[0])
        await turns()
        assert not waiting.done()
        pace.caught_up(writers[1])
        async with asyncio.timeout(DEADLINE / 2):
            await waiting

    async def test_all_publishers_wait_for_the_same(self):
        pace, writer = Pace(), Writer()
        pace.patience = DEADLINE
        pace.behind(writer)
        waiting = [asyncio.get_running_loop().create_task(pace.keep()) for _ in range(3)]
        await turns()
        assert not any(task.done() for task in waiting)
        pace.caught_up(writer)
        async with asyncio.timeout(DEADLINE / 2):
            await asyncio.gather(*waiting)

    async def test_who_is_not_done_in_time_is_not_waited_for_until_it_has_caught_up(self):
        pace, lagging = Pace(), Writer()
        pace.behind(lagging)
        assert not await self.kept(pace, 0.01)
        assert await self.kept(pace, DEADLINE)
        pace.behind(lagging)
        assert await self.kept(pace, DEADLINE)
        pace.caught_up(lagging)
        pace.behind(lagging)
        assert not await self.kept(pace, 0.01)

    async def test_one_who_lags_is_no_reason_not_to_wait_for_another(self):
        pace, lagging, brisk = Pace(), Writer(), Writer()
        pace.behind(lagging)
        assert not await self.kept(pace, 0.01)
        pace.behind(brisk)
        pace.patience = DEADLINE
        waiting = asyncio.get_running_loop().create_task(pace.keep())
        await turns()
        assert not waiting.done()
        pace.caught_up(brisk)
        async with asyncio.timeout(DEADLINE / 2):
            await waiting

    async def test_while_a_full_turn_is_written_all_who_publish_wait(self):
        pace, writer = Pace(), Writer()
        pace.patience = DEADLINE
        assert not pace.closed
        await pace.admit()
        pace.behind(writer)
        keeping = [asyncio.get_running_loop().create_task(pace.keep()) for _ in range(2)]
        await turns()
        assert pace.closed
        admitted = [asyncio.get_running_loop().create_task(pace.admit()) for _ in range(3)]
        await turns()
        assert not any(task.done() for task in admitted)
        pace.caught_up(writer)
        async with asyncio.timeout(DEADLINE / 2):
            await asyncio.gather(*keeping, *admitted)
        assert not pace.closed

    async def test_a_publisher_that_gives_up_holds_up_nobody(self):
        pace = Pace()
        pace.patience = DEADLINE
        pace.behind(Writer())
        keeping = asyncio.get_running_loop().create_task(pace.keep())
        await turns()
        admitted = asyncio.get_running_loop().create_task(pace.admit())
        await turns()
        keeping.cancel()
        async with asyncio.timeout(DEADLINE / 2):
            await admitted

    async def test_the_handing_over_comes_first(self):
        pace, left = Pace(), [3]

        def flushing():
            left[0] -= 1
            return left[0] > 0

        await pace.keep(flushing)
        assert left == [0]

    async def test_a_busy_loop_is_nobodys_fault(self, monkeypatch):
        monkeypatch.setattr(time, "thread_time", time.monotonic)  # it has no moment of rest
        pace, writer = Pace(), Writer()
        pace.patience = 0.02
        pace.behind(writer)
        keeping = asyncio.get_running_loop().create_task(pace.keep())
        end = time.monotonic() + 10 * pace.patience
        while time.monotonic() < end:
            moment = time.monotonic() + 0.02
            while time.monotonic() < moment:
                pass
            await asyncio.sleep(0)
        assert not keeping.done()
        pace.caught_up(writer)
        async with asyncio.timeout(DEADLINE / 2):
            await keeping

    async def test_who_gets_on_but_is_not_done_in_the_end_lags_too(self):
        pace, writer = Pace(), Writer()
        pace.patience, pace.limit = 0.01, 0.1
        pace.behind(writer)
        keeping = asyncio.get_running_loop().create_task(pace.keep())

        async def get_on():
            while not keeping.done():
                writer.progress = time.monotonic()
                await asyncio.sleep(0.002)

        async with asyncio.timeout(DEADLINE):
            await get_on()
        assert await self.kept(pace, DEADLINE)

    async def test_who_has_something_to_write_and_gets_nowhere_is_stuck(self):
        pace, now = Pace(), time.monotonic()
        fresh, old, lagging, done = Writer(now + 100), Writer(now - 100), Writer(now - 100), Writer(now - 100)
        pace.behind(lagging)
        assert not await self.kept(pace, 0.001)
        for writer in (fresh, old, done):
            pace.behind(writer)
        pace.caught_up(done)
        assert set(pace.stuck(50)) == {old, lagging}
        assert pace.stuck(200) == []

    async def test_catching_up_without_having_been_behind_is_nothing(self):
        pace = Pace()
        pace.caught_up(Writer())
        assert await self.kept(pace, DEADLINE)

    async def test_who_is_gone_while_waited_for_lets_the_publisher_go(self):
        pace, writer = Pace(), Writer()
        pace.patience = DEADLINE
        pace.behind(writer)
        waiting = asyncio.get_running_loop().create_task(pace.keep())
        asyncio.get_running_loop().call_soon(pace.caught_up, writer)
        await until(waiting.done)
