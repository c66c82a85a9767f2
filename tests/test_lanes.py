"""A lane: what one session asks is done in order, one at a time, and answered in time whatever a function does."""

import asyncio
import logging

import pytest

from asgi_ws import Forbidden, Hub
from asgi_ws.clock import MACHINE
from asgi_ws.lanes import MAX_JOB_BYTES, MAX_JOBS, Job, Lane
from asgi_ws.messages import Pong
from asgi_ws.metrics import Metrics
from asgi_ws.session import State
from tests.fakes import travel, turns, until

pytestmark = pytest.mark.anyio


class FakeSession:
    """As much of a session as a lane sees."""

    id = "s1"

    def __init__(self):
        self.phase = State.OPEN
        self.told = []

    def tell(self, message):
        self.told.append(message)

    @property
    def codes(self):
        return [getattr(message, "code", "pong") for message in self.told]


class FakeRun:
    def __init__(self, seconds=10.0):
        self.metrics = Metrics()
        self.settings = Hub(command_timeout=seconds).settings
        self.clock = MACHINE


def make(seconds=10.0):
    session = FakeSession()
    return Lane(session, FakeRun(seconds)), session


def job(do, ref=None, size=0):
    return Job(do, "command 'c'", size, ref)


async def pong():
    return Pong(ref=1)


async def quiet():
    return None


async def test_jobs_are_done_in_order_one_at_a_time():
    lane, session = make()
    log, gates = [], [asyncio.Event() for _ in range(3)]

    def do(number):
        async def run():
            log.append(f"begin {number}")
            await gates[number].wait()
            log.append(f"end {number}")
            return Pong(ref=number)

        return run

    for number in range(3):
        lane.put(job(do(number)))
    assert repr(lane) == "<Lane 3 waiting, 0 bytes>"
    gates[2].set()
    gates[1].set()
    await turns(20)
    assert log == ["begin 0"]
    gates[0].set()
    await until(lambda: len(session.told) == 3)
    assert log == [f"{what} {number}" for number in range(3) for what in ("begin", "end")]
    assert [message.ref for message in session.told] == [0, 1, 2]


async def test_a_lane_that_came_to_its_end_goes_on_with_the_next_job():
    lane, session = make()
    for count in range(1, 4):
        lane.put(job(pong))
        await until(lambda count=count: len(session.told) == count)
        await turns()


async def test_what_has_no_answer_is_not_answered():
    lane, session = make()
    lane.put(job(quiet))
    lane.put(job(pong))
    await until(lambda: session.told)
    assert session.codes == ["pong"]


async def test_errors_are_answered_and_the_next_job_is_done(caplog):
    lane, session = make()

    async def forbid():
        raise Forbidden("not you")

    async def fail():
        raise KeyError("hunter2")

    async def cancelled():
        raise asyncio.CancelledError

    async def times_out():
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    for do in (forbid, fail, cancelled, times_out, pong):
        lane.put(job(do))
    await until(lambda: len(session.told) == 5)
    assert session.codes == ["forbidden", "internal", "internal", "internal", "pong"]
    assert not any("hunter2" in message.message for message in session.told[:4])
    assert "hunter2" in caplog.text


async def test_too_many_that_wait_are_refused_and_those_that_wait_are_done():
    lane, session = make()
    gate = asyncio.Event()

    async def wait():
        await gate.wait()

    lane.put(job(wait))
    await turns()
    for _ in range(MAX_JOBS + 3):
        lane.put(job(pong))
    assert session.codes == ["limit_exceeded"] * 3
    gate.set()
    await until(lambda: len(session.told) == MAX_JOBS + 3)
    assert session.codes[3:] == ["pong"] * MAX_JOBS


async def test_what_waits_is_bounded_in_bytes_but_one_may_always_wait():
    lane, session = make()
    lane.put(job(pong, size=MAX_JOB_BYTES * 2))
    lane.put(job(pong, size=1))
    assert session.codes == ["limit_exceeded"]
    await until(lambda: len(session.told) == 2)
    assert repr(lane) == "<Lane 0 waiting, 0 bytes>"
    for _ in range(3):
        lane.put(job(pong, size=MAX_JOB_BYTES // 2))
    assert session.codes == ["limit_exceeded", "pong", "limit_exceeded"]


async def test_stopping_cancels_what_is_done_and_forgets_what_waits():
    lane, session = make()
    ended = []

    async def wait():
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    lane.put(job(wait))
    lane.put(job(pong))
    await turns()
    lane.stop()
    await until(lambda: ended)
    await turns()
    assert session.told == []


async def test_what_the_application_cancels_by_itself_is_not_the_end_of_its_lane():
    lane, session = make()

    async def cancel_itself():
        asyncio.current_task().cancel()
        await asyncio.sleep(0)

    lane.put(job(cancel_itself))
    await until(lambda: lane._task is None)
    lane.put(job(pong))
    await until(lambda: session.told)


async def test_stopping_before_anything_was_begun_or_asked_does_nothing():
    lane, session = make()
    lane.stop()
    lane.put(job(pong))
    lane.stop()
    await turns()
    assert session.told == []


async def test_a_function_that_swallows_the_end_of_its_session_is_followed_by_nothing():
    lane, session = make()
    begun, swallowed = [], []

    async def swallow():
        begun.append(True)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            swallowed.append(True)

    lane.put(job(swallow))
    lane.put(job(pong))
    await until(lambda: begun)
    session.phase = State.CLOSED
    lane.stop()
    await until(lambda: swallowed)
    await turns()
    assert session.told == []


async def test_an_error_on_the_way_out_is_logged(caplog):
    lane, session = make()
    begun = []

    async def fail():
        begun.append(True)
        try:
            await asyncio.Event().wait()
        finally:
            raise KeyError("on the way out")

    lane.put(job(fail))
    await until(lambda: begun)
    lane.stop()
    await until(lambda: "on the way out" in caplog.text)


async def test_a_session_that_is_ending_begins_nothing_more():
    lane, session = make()
    gate = asyncio.Event()

    async def wait():
        await gate.wait()

    lane.put(job(wait))
    lane.put(job(pong))
    await turns()
    session.phase = State.CLOSING
    gate.set()
    await turns()
    assert session.told == []


class TestTime:
    def test_what_takes_too_long_is_cancelled_and_answered_and_the_next_is_done(self):
        async def main():
            lane, session = make(10.0)
            cleaned = []

            async def slow():
                try:
                    await asyncio.sleep(100)
                finally:
                    cleaned.append(True)

            for do in (slow, slow, pong):
                lane.put(job(do, ref=7))
            await until(lambda: len(session.told) == 3)
            assert session.codes == ["timeout", "timeout", "pong"]
            assert session.told[0].message == "expected an answer within 10 s, got none"
            assert session.told[0].ref == 7
            assert len(cleaned) == 2
            assert asyncio.get_running_loop().timers() <= 1  # this loop's own `until`
            assert lane._task is None

        travel(main())

    def test_a_function_that_swallows_its_cancellation_is_answered_in_time_and_held_against_its_own_session(
        self, caplog
    ):
        async def main():
            lane, session = make(10.0)
            gate = asyncio.Event()
            loop = asyncio.get_running_loop()

            async def stubborn():
                while not gate.is_set():
                    try:
                        await gate.wait()
                    except asyncio.CancelledError:
                        pass
                return Pong(ref="too late")

            began = loop.time()
            lane.put(job(stubborn))
            lane.put(job(pong))
            await until(lambda: session.told)
            assert session.codes == ["timeout"]
            assert loop.time() - began < 11
            await until(lambda: "command 'c' of session s1 was cancelled and goes on" in caplog.text)
            await asyncio.sleep(1000)
            assert session.codes == ["timeout"]  # one at a time
            gate.set()
            await until(lambda: len(session.told) == 2)
            assert session.told[1].ref == 1
            assert caplog.text.count("goes on") == 1

        with caplog.at_level(logging.ERROR):
            travel(main())

    def test_an_error_after_the_time_is_over_is_not_answered_again(self):
        async def main():
            lane, session = make(10.0)

            async def fail():
                try:
                    await asyncio.sleep(100)
                finally:
                    raise Forbidden("late")

            lane.put(job(fail))
            lane.put(job(pong))
            await until(lambda: len(session.told) == 2)
            assert session.codes == ["timeout", "pong"]

        travel(main())

    def test_the_end_of_the_session_ends_one_that_has_run_out_of_time(self):
        async def main():
            lane, session = make(10.0)
            ends = []

            async def twice():
                try:
                    await asyncio.sleep(100)
                except asyncio.CancelledError:
                    await asyncio.sleep(5)
                    ends.append("it was allowed to end")

            async def gone():
                try:
                    await asyncio.sleep(100)
                except asyncio.CancelledError:
                    try:
                        await asyncio.sleep(100)
                    finally:
                        ends.append("gone")

            lane.put(job(twice))
            lane.put(job(gone))
            await until(lambda: session.codes == ["timeout", "timeout"])
            assert ends == ["it was allowed to end"]
            lane.stop()
            await until(lambda: len(ends) == 2)
            await turns()
            assert session.codes == ["timeout", "timeout"]
            assert lane._timer is None

        travel(main())
