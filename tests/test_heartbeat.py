"""One timer for all: each session beats once an interval, stuck writes end, and an empty hub has no timer."""

import asyncio

import pytest

from asgi_ws.clock import MACHINE
from asgi_ws.heartbeat import Heartbeat
from asgi_ws.metrics import Metrics
from tests.fakes import travel


class Session:
    """Notes when it beats, by the loop's clock."""

    def __init__(self):
        self.beats = []
        self.aborts = 0
        self.progress = 0.0
        self.on_beat = lambda: None

    def beat(self):
        self.beats.append(asyncio.get_running_loop().time())
        self.on_beat()

    def abort(self):
        self.aborts += 1


class Pace:
    """In the place of the real one: who is stuck is what the test says."""

    def __init__(self):
        self.clock = MACHINE
        self.writers = []
        self.asked = []

    def stuck(self, seconds):
        self.asked.append(seconds)
        return self.writers


def wheel(interval=25.0, send_timeout=10.0):
    pace, metrics = Pace(), Metrics()
    heartbeat = Heartbeat(interval, send_timeout, pace, metrics)
    heartbeat.pace, heartbeat.metrics = pace, metrics  # for the test
    return heartbeat


def now():
    return asyncio.get_running_loop().time()


@pytest.mark.parametrize("interval", [0.02, 0.5, 1.0, 2.0, 25.0, 60.0, 3600.0])
@pytest.mark.parametrize("send_timeout", [0.5, 10.0])
def test_each_beats_once_an_interval_first_after_one(interval, send_timeout):
    async def main():
        heartbeat, session = wheel(interval, send_timeout), Session()
        begin = now()
        heartbeat.add(session)
        await asyncio.sleep(interval * 4.5)
        heartbeat.remove(session)
        return [round((beat - begin) / interval, 1) for beat in session.beats]

    assert travel(main()) == [1, 2, 3, 4]


@pytest.mark.parametrize("interval", [1.4, 1.5, 2.5])
def test_also_where_the_interval_is_no_whole_number_of_seconds(interval):
    async def main():
        heartbeat, session = wheel(interval), Session()
        begin = now()
        heartbeat.add(session)
        await asyncio.sleep(interval * 10.5)
        heartbeat.remove(session)
        return (session.beats[-1] - begin) / len(session.beats)

    assert travel(main()) == pytest.approx(interval, rel=0.05)


def test_those_that_came_at_different_times_beat_at_different_times():
    async def main():
        heartbeat, sessions = wheel(10.0), []
        begin = now()
        for _ in range(20):
            sessions.append(Session())
            heartbeat.add(sessions[-1])
            await asyncio.sleep(0.5)
        await asyncio.sleep(20)
        first = [session.beats[0] - begin for session in sessions]
        for session in sessions:
            heartbeat.remove(session)
        return first

    first = travel(main())
    assert len(set(first)) == 10  # a tick is a second
    assert first == sorted(first)
    assert all(10 + n // 2 <= beat <= 11 + n // 2 for n, beat in enumerate(first))


def test_who_is_removed_beats_no_more_and_the_others_do():
    async def main():
        heartbeat, gone, stays = wheel(5.0), Session(), Session()
        heartbeat.add(gone)
        heartbeat.add(stays)
        await asyncio.sleep(5.5)
        heartbeat.remove(gone)
        await asyncio.sleep(10)
        heartbeat.remove(stays)
        return len(gone.beats), len(stays.beats)

    assert travel(main()) == (1, 3)


def test_without_a_session_there_is_no_timer_and_the_next_one_sets_it_again():
    async def main():
        loop = asyncio.get_running_loop()
        heartbeat = wheel(5.0)
        assert loop.timers() == 0
        for _ in range(3):
            session = Session()
            heartbeat.add(session)
            assert loop.timers() == 1
            await asyncio.sleep(5.5)
            assert len(session.beats) == 1
            heartbeat.remove(session)
            assert loop.timers() == 0

    travel(main())


def test_one_timer_serves_many():
    async def main():
        heartbeat, sessions = wheel(5.0), [Session() for _ in range(100)]
        for session in sessions:
            heartbeat.add(session)
        assert asyncio.get_running_loop().timers() == 1
        await asyncio.sleep(5.5)
        assert all(len(session.beats) == 1 for session in sessions)
        for session in sessions:
            heartbeat.remove(session)

    travel(main())


def test_a_session_that_ends_while_it_beats_harms_no_other():
    async def main():
        heartbeat, sessions = wheel(5.0), [Session() for _ in range(10)]
        for session in sessions:
            heartbeat.add(session)
        for ending in sessions[::2]:
            ending.on_beat = lambda ending=ending: heartbeat.remove(ending)
        await asyncio.sleep(10.5)
        beats = [len(session.beats) for session in sessions]
        for session in sessions[1::2]:
            heartbeat.remove(session)
        return beats

    assert travel(main()) == [1, 2] * 5


def test_who_is_stuck_is_aborted_at_the_next_tick():
    async def main():
        heartbeat, session, stuck = wheel(25.0, 10.0), Session(), Session()
        heartbeat.add(session)
        await asyncio.sleep(3.5)
        assert stuck.aborts == 0
        heartbeat.pace.writers = [stuck]
        await asyncio.sleep(1)
        assert stuck.aborts == 1
        assert set(heartbeat.pace.asked) == {10.0}
        heartbeat.remove(session)

    travel(main())


def test_the_loops_lag_is_how_late_a_tick_is():
    async def main():
        heartbeat, session = wheel(5.0), Session()

        def block():
            asyncio.get_running_loop().now += 0.7  # what takes a turn of the loop for itself

        heartbeat.add(session)
        asyncio.get_running_loop().call_later(1.9, block)
        await asyncio.sleep(4.9)
        heartbeat.remove(session)
        return [round(lag, 6) for lag in heartbeat.metrics.loop_lag]

    assert travel(main()) == [0.0, 0.6, 0.0, 0.0]
