"""What waits to be written to a session, bounded in messages and in bytes."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from asgi_ws.clock import MACHINE, Clock
from asgi_ws.codecs import Codec, Payload
from asgi_ws.frames import BINARY, TEXT, header
from asgi_ws.publication import Position

# A quarter is kept for replies and control, so that a session full of events can still be told so.
_RESERVED = 4
_MOMENT = 0.005  # seconds


class Batch:
    """Messages in one codec, made once and shared by every session that receives them.

    Args:
        codec: The codec they are in.
        payloads: The messages, in order; text as UTF-8.
        events: How many of them are a channel's events: all or none.
        channel: Whose they are.
        position: That of the last of them, where the channel has positions.
        dropped: Of a `gap`: for how many events it stands.
        alone: It never waits behind another: newer ones will come, and stand for it.
        modest: It leaves free what is kept for replies and control, as events do.
    """

    __slots__ = (
        "_frames", "_messages", "alone", "channel", "codec", "dropped", "events", "modest", "payloads",
        "position", "size",
    )  # fmt: skip

    def __init__(
        self,
        codec: Codec,
        payloads: Sequence[bytes],
        events: int = 0,
        *,
        channel: str | None = None,
        position: Position | None = None,
        dropped: int = 0,
        alone: bool = False,
        modest: bool = False,
    ) -> None:
        self.codec = codec
        self.payloads = payloads
        self.events = events
        self.channel = channel
        self.position = position
        self.dropped = dropped
        self.alone = alone
        self.modest = modest or events > 0
        self.size = sum(map(len, payloads))
        self._messages: Sequence[Payload] | None = None
        self._frames: bytes | None = None

    def __repr__(self) -> str:
        return f"<Batch of {len(self)} {self.codec.subprotocol}, {self.size} bytes>"

    def __len__(self) -> int:
        return len(self.payloads)

    @property
    def messages(self) -> Sequence[Payload]:
        """The messages as ASGI has them: `str` for a codec of text."""
        if self._messages is None:
            text = self.codec.kind == "text"
            self._messages = [payload.decode() for payload in self.payloads] if text else self.payloads
        return self._messages

    @property
    def frames(self) -> bytes:
        """The messages as WebSocket frames, joined."""
        if self._frames is None:
            opcode = TEXT if self.codec.kind == "text" else BINARY
            self._frames = b"".join(
                [part for payload in self.payloads for part in (header(opcode, len(payload)), payload)]
            )
        return self._frames


class Outbox:
    """A session's bounded queue of batches. It holds references, never copies.

    Args:
        max_messages, max_bytes: The bounds; events have three quarters of each.
    """

    __slots__ = ("_max_bytes", "_max_messages", "_messages", "_size", "batches", "turn")

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        # A list, though it is a queue: it is short, and empty it takes a tenth of a deque's memory.
        self.batches: list[Batch] = []
        self._messages = 0
        self._size = 0
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self.turn = -1  # in which it was empty

    def __bool__(self) -> bool:
        return bool(self.batches)

    def __repr__(self) -> str:
        return f"<Outbox {self._messages} messages, {self._size} bytes>"

    @property
    def over(self) -> bool:
        """Whether it holds more than its bounds, as a long replay may."""
        return self._messages > self._max_messages or self._size > self._max_bytes

    def put(self, batch: Batch, turn: int | None = None) -> bool:
        """Take a batch, or return that the client is too slow for it: `False`.

        An empty outbox takes any batch, and all others of that turn: what is published in one turn, in
        however many channels, must not depend on the bounds.
        """
        whole = turn == self.turn and batch.events and not (batch.alone and self._has(batch))
        if not whole and not self.fits(batch):
            return False
        self.force(batch)
        return True

    def _has(self, batch: Batch) -> bool:
        return any(other.channel == batch.channel for other in self.batches)

    def force(self, batch: Batch) -> None:
        """Take a batch whatever the bounds."""
        self.batches.append(batch)
        self._messages += len(batch)
        self._size += batch.size

    def drop_oldest(self, batch: Batch) -> list[Batch]:
        """Drop what waits longest of a batch's channel until the batch fits, and return it.

        The first batch stays: it may be half written.
        """
        dropped: list[Batch] = []
        for old in self.batches[1:]:
            if self.fits(batch):
                break
            if old.channel == batch.channel:
                self._remove(self.batches.index(old))
                dropped.append(old)
        return dropped

    def put_before_channel(self, batch: Batch) -> None:
        """Take a batch, whatever the bounds, before all but the first of its channel's."""
        channels = [other.channel for other in self.batches]
        place = channels.index(batch.channel, 1) if batch.channel in channels[1:] else len(channels)
        self.batches.insert(place, batch)
        self._messages += len(batch)
        self._size += batch.size

    def first(self) -> Batch | None:
        """Return the batch to write next. It stays, and counts, until it is `done`."""
        return self.batches[0] if self.batches else None

    def share(self, max_bytes: int) -> list[Batch]:
        """Return the batches to write next, as many as fit into one write; one at least, if there is any."""
        share: list[Batch] = []
        for batch in self.batches:
            max_bytes -= batch.size
            if share and max_bytes < 0:
                break
            share.append(batch)
        return share

    def done(self, batch: Batch) -> bool:
        """Drop the first batch, or return that `clear` has dropped it already: `False`."""
        if not self.batches or self.batches[0] is not batch:
            return False
        self._remove(0)
        return True

    def clear(self) -> int:
        """Drop everything and return how many events that were."""
        dropped = sum(batch.events for batch in self.batches)
        self.batches.clear()
        self._messages = self._size = 0
        return dropped

    def _remove(self, place: int) -> None:
        batch = self.batches.pop(place)
        self._messages -= len(batch)
        self._size -= batch.size

    def fits(self, batch: Batch) -> bool:
        """Whether `put` would take a batch."""
        if not self.batches:
            return True
        if batch.alone:
            return False
        if batch.modest:
            return self._bears(len(batch), batch.size)
        return (
            self._messages + len(batch) <= self._max_messages and self._size + batch.size <= self._max_bytes
        )

    def has_room(self, messages: int, size: int) -> bool:
        """Whether events that come from history find room."""
        return not self.batches or self._bears(messages, size)

    def _bears(self, messages: int, size: int) -> bool:
        """Whether it holds no more than it may, with so much in events."""
        messages += self._messages + self._max_messages // _RESERVED
        size += self._size + self._max_bytes // _RESERVED
        return messages <= self._max_messages and size <= self._max_bytes


class Writer(Protocol):
    """Who empties an outbox: a session."""

    progress: float
    """When it last finished a write, by the monotonic time of the hub's clock."""


class Pace:
    """Keeps publishers in step with the sessions that keep up, and never with those that do not.

    A publisher that awaits nothing else would fill every outbox before one writer had its turn. So after
    a full turn it waits until the outboxes are empty, and whoever else publishes waits with it. Sessions
    of which none has taken anything for `patience` seconds, though the loop had nothing else to do, are
    lagging, and so is whoever is not done after `limit` seconds: no publisher waits for them until they
    have caught up.
    """

    patience = 0.25
    limit = 2.0

    def __init__(self, clock: Clock = MACHINE) -> None:
        self.clock = clock
        self._behind: set[Writer] = set()
        self._lagging: set[Writer] = set()
        self._quiet = asyncio.Event()
        self._keeping = 0
        self._opened = asyncio.Event()

    def behind(self, writer: Writer) -> None:
        """Note that a writer has something to write."""
        if writer not in self._lagging:
            self._behind.add(writer)

    def caught_up(self, writer: Writer) -> None:
        """Note that a writer has written all it had, or never will."""
        self._behind.discard(writer)
        self._lagging.discard(writer)
        if not self._behind:
            self._quiet.set()

    @property
    def closed(self) -> bool:
        """Whether a full turn is being written: the next one would find the outboxes full."""
        return self._keeping > 0

    async def admit(self) -> None:
        """Wait until no full turn is being written."""
        while self._keeping:
            self._opened.clear()
            await self._opened.wait()

    async def keep(self, flushing: Callable[[], bool] = lambda: False) -> None:
        """Give way to the writers after a full turn, once at least; `flushing` while it is handed over."""
        self._keeping += 1
        try:
            await asyncio.sleep(0)
            while flushing():  # noqa: ASYNC110 - for some milliseconds
                await asyncio.sleep(0)
            await self._until_quiet()
        finally:
            self._keeping -= 1
            if not self._keeping:
                self._opened.set()
        await asyncio.sleep(0)  # who has waited goes first: the caller's next turn may be full at once

    async def _until_quiet(self) -> None:
        began, idle, rest = self.clock.monotonic(), 0.0, 0.0
        # A loop that is never idle is no reason to wait for ever.
        end = began + 2 * self.limit
        while self._behind:
            idled = await self._moment()
            idle, rest = idle + idled, rest + idled
            if any(writer.progress > began for writer in self._behind):
                began, rest = self.clock.monotonic(), 0.0
            if rest >= self.patience or idle >= self.limit or self.clock.monotonic() >= end:
                self._lagging |= self._behind
                self._behind.clear()

    async def _moment(self) -> float:
        """Wait for a moment; return how long the loop had nothing else to do: a late timer had to wait."""
        self._quiet.clear()
        due = time.monotonic() + 2 * _MOMENT
        try:
            async with asyncio.timeout(_MOMENT):
                await self._quiet.wait()
        except TimeoutError:
            return _MOMENT if time.monotonic() < due else 0.0
        return 0.0

    def stuck(self, seconds: float) -> list[Writer]:
        """Return who has something to write and has not finished a write for `seconds`."""
        since = self.clock.monotonic() - seconds
        return [writer for writer in (*self._behind, *self._lagging) if writer.progress < since]
