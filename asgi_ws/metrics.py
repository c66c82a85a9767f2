"""What happened since the start, each number counted in one place."""

import math
from collections import Counter, deque

# A bucket's upper bound is 1.1 times the one before it, so a percentile is right within 10 %.
_GROWTH = math.log(1.1)
_LEAST = 1e-6


class Histogram:
    """Durations in seconds, in buckets that grow by a tenth: constant memory, any range."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self.count = 0

    def observe(self, seconds: float, times: int = 1) -> None:
        """Count a duration, as often as it occurred; what is no number is not counted."""
        if not math.isfinite(seconds):
            return
        self._buckets[math.ceil(math.log(max(seconds, _LEAST) / _LEAST) / _GROWTH)] += times
        self.count += times

    def percentile(self, fraction: float) -> float | None:
        """Return the seconds within which `fraction` of what was observed lies; `None` before the first."""
        rank = fraction * self.count
        for bucket in sorted(self._buckets):
            rank -= self._buckets[bucket]
            if rank <= 0:
                return _LEAST * math.exp(bucket * _GROWTH)
        return None

    def milliseconds(self) -> dict[str, float | None]:
        """Return p50, p95 and p99 in milliseconds."""
        return {f"p{n}": _milliseconds(self.percentile(n / 100)) for n in (50, 95, 99)}


class Metrics:
    """Counters of one node since its start.

    `delivery_latency` is from `publish` to handing over to the sessions' connections on this node.
    """

    def __init__(self) -> None:
        self.connections_total = 0
        self.peak_connections = 0
        self.turns = 0
        self.events_emitted = 0
        self.events_delivered = 0
        self.bytes_sent = 0
        self.messages_received = 0
        self.publish_failed = 0
        self.slow_clients = 0
        self.events_dropped = 0
        self.broadcaster_published = 0
        self.broadcaster_received = 0
        self.broadcaster_gaps = 0
        self.errors: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.disconnects: Counter[int] = Counter()
        self.delivery_latency = Histogram()
        # The last minute or so of the heartbeat's ticks, in seconds.
        self.loop_lag: deque[float] = deque(maxlen=64)

    def stats(self, active: int) -> dict[str, object]:
        """Return what `/stats` answers, `active` being the sessions there are now."""
        return {
            "active_connections": active,
            "peak_connections": self.peak_connections,
            "connections_total": self.connections_total,
            "events_emitted": self.events_emitted,
            "events_delivered": self.events_delivered,
            "bytes_sent": self.bytes_sent,
            "messages_received": self.messages_received,
            "publish_failed": self.publish_failed,
            "errors": dict(self.errors),
            "rejected": dict(self.rejected),
            "disconnects": {str(code): count for code, count in sorted(self.disconnects.items())},
            "slow_clients": self.slow_clients,
            "events_dropped": self.events_dropped,
            "broadcaster": {
                "published": self.broadcaster_published,
                "received": self.broadcaster_received,
                "gaps": self.broadcaster_gaps,
            },
            "delivery_latency_ms": self.delivery_latency.milliseconds(),
            "loop_lag_ms": _milliseconds(max(self.loop_lag, default=None)),
        }


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
