"""Counters say what happened; a percentile is right within ten per cent, in constant memory."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_ws.metrics import Histogram, Metrics

DURATIONS = st.floats(1e-6, 1e4)


def filled(durations):
    histogram = Histogram()
    for seconds in durations:
        histogram.observe(seconds)
    return histogram


class TestHistogram:
    @settings(deadline=None)
    @given(
        st.lists(DURATIONS, min_size=1, max_size=200),
        st.sampled_from([0.01, 0.25, 0.5, 0.9, 0.95, 0.99, 1.0]),
    )
    def test_a_percentile_is_right_within_ten_per_cent(self, durations, fraction):
        durations.sort()
        rank = math.ceil(round(fraction * len(durations), 9))
        exact = durations[max(rank, 1) - 1]
        assert exact * (1 - 1e-9) <= filled(durations).percentile(fraction) <= exact * 1.1 * (1 + 1e-9)

    @settings(deadline=None)
    @given(st.lists(DURATIONS, min_size=1, max_size=50), st.floats(0, 1), st.floats(0, 1))
    def test_a_higher_one_is_no_smaller(self, durations, one, other):
        histogram = filled(durations)
        assert histogram.percentile(min(one, other)) <= histogram.percentile(max(one, other))

    @settings(deadline=None)
    @given(st.lists(st.tuples(DURATIONS, st.integers(1, 20)), min_size=1, max_size=20))
    def test_many_at_once_are_each_one(self, observed):
        one, many = Histogram(), Histogram()
        for seconds, times in observed:
            many.observe(seconds, times)
            for _ in range(times):
                one.observe(seconds)
        assert one.count == many.count
        assert one.milliseconds() == many.milliseconds()

    def test_without_any_there_is_none(self):
        histogram = Histogram()
        assert histogram.count == 0
        assert histogram.percentile(0.5) is None
        assert histogram.milliseconds() == {"p50": None, "p95": None, "p99": None}

    def test_milliseconds(self):
        told = filled([0.001] * 90 + [0.1] * 10).milliseconds()
        assert 1.0 <= told["p50"] <= 1.1
        assert 100 <= told["p95"] <= 110
        assert told["p99"] == told["p95"]

    @pytest.mark.parametrize("seconds", [0.0, -5.0, 1e-9, 1e-6])
    def test_a_clock_that_goes_back_is_the_least_there_is(self, seconds):
        assert filled([seconds]).percentile(1.0) == pytest.approx(1e-6)

    def test_memory_is_constant_over_any_range(self):
        histogram = Histogram()
        for exponent in range(-60, 60):
            for mantissa in range(10, 100):
                histogram.observe(mantissa / 10 * 10.0 ** (exponent / 10))
        assert histogram.count == 10_800
        assert len(histogram._buckets) < 400

    @pytest.mark.parametrize("seconds", [float("nan"), float("inf")])
    def test_what_is_no_number_raises_nothing(self, seconds):
        Histogram().observe(seconds)


class TestMetrics:
    def test_at_the_start_all_is_nothing(self):
        assert Metrics().stats(0) == {
            "active_connections": 0,
            "peak_connections": 0,
            "connections_total": 0,
            "events_emitted": 0,
            "events_delivered": 0,
            "bytes_sent": 0,
            "messages_received": 0,
            "publish_failed": 0,
            "errors": {},
            "rejected": {},
            "disconnects": {},
            "slow_clients": 0,
            "events_dropped": 0,
            "broadcaster": {"published": 0, "received": 0, "gaps": 0},
            "delivery_latency_ms": {"p50": None, "p95": None, "p99": None},
            "loop_lag_ms": None,
        }

    def test_what_was_counted_is_told(self):
        metrics = Metrics()
        metrics.errors["forbidden"] += 2
        metrics.rejected["origin"] += 1
        metrics.disconnects[4102] += 1
        metrics.disconnects[1001] += 3
        metrics.broadcaster_gaps += 4
        metrics.loop_lag.extend([0.001, 0.5, 0.002])
        stats = metrics.stats(active=7)
        assert stats["active_connections"] == 7
        assert stats["errors"] == {"forbidden": 2}
        assert stats["rejected"] == {"origin": 1}
        assert list(stats["disconnects"].items()) == [("1001", 3), ("4102", 1)]
        assert stats["broadcaster"]["gaps"] == 4
        assert stats["loop_lag_ms"] == 500.0

    def test_what_is_told_is_a_copy(self):
        metrics = Metrics()
        stats = metrics.stats(0)
        metrics.errors["x"] += 1
        assert stats["errors"] == {}

    def test_lag_is_that_of_the_last_ticks(self):
        metrics = Metrics()
        metrics.loop_lag.append(9.0)
        metrics.loop_lag.extend([0.001] * 100)
        assert metrics.stats(0)["loop_lag_ms"] == 1.0
