"""The embedded broadcaster: one process, nothing to run, history in memory.

Every start is empty, with new epochs. What is kept is bounded per channel (size, seconds, bytes) and
altogether (`HISTORY_BYTES`: the oldest of any channel goes first). A channel's position outlives its
history by `POSITION_TTL`; a channel that has been forgotten comes back with a new epoch.
"""

import heapq
import itertools
import secrets
import time
from collections import OrderedDict, deque
from urllib.parse import parse_qs, urlsplit

from asgi_ws.broadcasters import Broadcaster, History, Presence, Receiver
from asgi_ws.broadcasters.members import Members
from asgi_ws.broadcasters.workers import SoleWorker
from asgi_ws.errors import SettingsError
from asgi_ws.publication import Position, Publication, Retention
from asgi_ws.settings import Settings

# What Python's objects cost besides the text, measured with tracemalloc on CPython 3.11.
PUBLICATION_BYTES = 400
LOG_BYTES = 900

# So that two logs of one age are never compared.
_tickets = itertools.count()

KEY_TTL = 300.0
MAX_KEYS = 100_000


class Log:
    """One channel's position and what is kept of it."""

    __slots__ = ("channel", "epoch", "kept", "offset", "size", "touched", "waiting")

    def __init__(self, channel: str, epoch: str) -> None:
        self.channel = channel
        self.epoch = epoch
        self.offset = 0
        self.kept: deque[Publication] = deque()
        self.size = 0
        self.touched = 0.0
        self.waiting = False  # whether it has its place in the order of eviction

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.offset)

    @property
    def floor(self) -> int:
        """The offset after which everything is kept."""
        return self.kept[0].previous if self.kept else self.offset

    def append(self, publication: Publication) -> None:
        publication.epoch = self.epoch
        publication.previous = self.offset
        self.offset += 1
        publication.offset = self.offset
        self.touched = publication.time
        self.kept.append(publication)
        self.size += publication.size + PUBLICATION_BYTES

    def drop(self) -> int:
        """Drop the oldest publication and return its bytes."""
        freed = self.kept.popleft().size + PUBLICATION_BYTES
        self.size -= freed
        return freed


class MemoryBroadcaster(Broadcaster):
    """`memory://`, or `memory://?workers=allow` where several workers are meant to be islands."""

    kind = "memory"
    embedded = True
    features = frozenset({"history", "idempotency", "presence", "total_order"})

    def __init__(self, settings: Settings) -> None:
        self._channel_bytes = settings.history_channel_bytes
        self._max_bytes = settings.history_bytes
        self._position_ttl = settings.position_ttl
        self._sole = None if _workers_allowed(settings.broadcaster) else SoleWorker(settings.namespace)
        self.clock = time.time
        self._size = 0
        self._forget_all()

    def __repr__(self) -> str:
        return f"<MemoryBroadcaster {len(self._logs)} channels, {self._size} bytes>"

    async def start(self, receiver: Receiver) -> None:
        if self._sole is not None:
            await self._sole.acquire()
        self._receiver = receiver
        self._forget_all()

    async def stop(self) -> None:
        if self._sole is not None:
            self._sole.release()
        self._forget_all()

    async def ping(self) -> float:
        return 0.0

    async def publish(self, publication: Publication, retention: Retention) -> Position | None:
        if publication.key is None:
            return self._publish(publication, retention)
        self._expire_keys()
        place = (publication.channel, publication.sender, publication.key)
        if place in self._keys:
            return self._keys[place][1]
        position = self._publish(publication, retention)
        self._keys[place] = (self.clock() + KEY_TTL, position)
        if len(self._keys) > MAX_KEYS:
            self._keys.popitem(last=False)
        return position

    async def position(self, channel: str) -> Position | None:
        log = self._logs.get(channel)
        return Position(self._epoch_of(channel), 0) if log is None else log.position

    async def history(
        self, channel: str, after: Position | None, retention: Retention, limit: int | None
    ) -> History:
        log = self._logs.get(channel)
        if log is None:
            top = Position(self._epoch_of(channel), 0)
            return History(top, (), complete=after is None or after == top)
        self._expire(log, retention)
        if after is not None and not (after.epoch == log.epoch and log.floor <= after.offset <= log.offset):
            return History(log.position, (), complete=False)
        begin = 0 if after is None else after.offset - log.floor  # its offsets have no holes
        end = len(log.kept) if limit is None else min(begin + limit, len(log.kept))
        found = list(itertools.islice(log.kept, begin, end))
        top = log.position if end == len(log.kept) else Position(log.epoch, log.floor + end)
        return History(top, found, complete=True)

    def join(self, channel: str, session: str, user: str | None, info: bytes, since: float) -> None:
        for change in self._members.join(channel, session, user, info, since):
            self._receiver.changed(change)

    def leave(self, channel: str, session: str) -> None:
        for change in self._members.leave(channel, session):
            self._receiver.changed(change)

    async def members(self, channel: str, limit: int) -> Presence:
        return self._members.presence(channel, limit)

    def _publish(self, publication: Publication, retention: Retention) -> Position | None:
        if not retention.size:
            self._receiver.deliver(publication)
            return None
        log = self._touch(publication.channel)
        before = log.size
        log.append(publication)
        self._size += log.size - before
        self._expire(log, retention)
        while len(log.kept) > retention.size or log.size > self._channel_bytes:
            self._size -= log.drop()
        self._queue(log)
        self._bound(log)
        position = log.position
        self._receiver.deliver(publication)
        return position

    def _touch(self, channel: str) -> Log:
        log = self._logs.get(channel)
        if log is None:
            log = self._logs[channel] = Log(channel, self._epoch_of(channel))
            self._size += LOG_BYTES
        self._logs.move_to_end(channel)
        return log

    def _expire(self, log: Log, retention: Retention) -> None:
        oldest = self.clock() - retention.ttl
        while log.kept and log.kept[0].time < oldest:
            self._size -= log.drop()

    def _queue(self, log: Log) -> None:
        # One entry a channel, keyed by its oldest publication; a key that is too old is put right when
        # its turn comes.
        if log.kept and not log.waiting:
            log.waiting = True
            heapq.heappush(self._oldest, (log.kept[0].time, next(_tickets), log))

    def _bound(self, current: Log) -> None:
        horizon = self.clock() - self._position_ttl
        while self._oldest and (self._size > self._max_bytes or self._oldest[0][0] < horizon):
            self._evict()
        while self._logs:
            log = next(iter(self._logs.values()))
            over = self._size > self._max_bytes and not log.kept
            if log is current or not (over or log.touched < horizon):
                break
            self._forget(log)

    def _evict(self) -> None:
        queued, _, log = heapq.heappop(self._oldest)
        log.waiting = False
        if log.kept and log.kept[0].time <= queued:
            self._size -= log.drop()
        self._queue(log)

    def _forget(self, log: Log) -> None:
        del self._logs[log.channel]
        self._size -= log.size + LOG_BYTES
        log.kept.clear()
        log.size = 0
        # Whoever comes back with this channel's old position must not find it valid again.
        self._epochs[hash(log.channel) % len(self._epochs)] = _new_epoch()

    def _epoch_of(self, channel: str) -> str:
        """That of a channel of which nothing is known: only a 4096th of them shares it with one forgotten."""
        return self._epochs[hash(channel) % len(self._epochs)]

    def _expire_keys(self) -> None:
        now = self.clock()
        while self._keys and next(iter(self._keys.values()))[0] <= now:
            self._keys.popitem(last=False)

    def _forget_all(self) -> None:
        self._epochs = [_new_epoch()] * 4096
        self._logs: OrderedDict[str, Log] = OrderedDict()
        self._oldest: list[tuple[float, int, Log]] = []
        self._keys: OrderedDict[tuple[str, str | None, str], tuple[float, Position | None]] = OrderedDict()
        self._members = Members()
        self._size = 0


def _new_epoch() -> str:
    return secrets.token_urlsafe(6)


def _workers_allowed(url: str) -> bool:
    query = parse_qs(urlsplit(url).query, keep_blank_values=True)
    if query not in ({}, {"workers": ["allow"]}):
        raise SettingsError(f"ASGI_WS_BROADCASTER: expected memory:// or memory://?workers=allow, got {url}")
    return bool(query)
