"""The delivery promise as a simple model: what was published, and what each session may make of it.

A session's view of a channel is a subsequence of what was published, in order, complete between its
positions; or the loss was said: by `gap`, by `recovered:false`, or by the end of the connection.
"""

from collections import defaultdict
from typing import Any, NamedTuple

from asgi_ws import Position


class Broken(AssertionError):
    """The promise."""


def expect(condition: object, what: str, *got: object) -> None:
    if not condition:
        raise Broken(f"{what}: {' '.join(map(str, got))}")


class Entry(NamedTuple):
    """A publication with history: its place, the number that is its data, who is not to have it."""

    offset: int
    number: int
    exclude: str | None
    time: float


class Ledger:
    """What was published, in the broadcaster's order, channel by channel."""

    def __init__(self) -> None:
        self.logs: dict[tuple[str, str], list[Entry]] = defaultdict(list)
        self.plain: dict[str, list[tuple[int, str | None]]] = defaultdict(list)
        self.tops: dict[str, Position] = {}
        self.lost: set[tuple[str, str, int]] = (
            set()
        )  # on the way to the node, so not the node's to tell at once
        self.certain = True  # whether nothing but size and age takes anything out of history

    def record(
        self, channel: str, position: Position | None, number: int, exclude: str | None, time: float
    ) -> None:
        if position is None:
            self.plain[channel].append((number, exclude))
            return
        log = self.logs[channel, position.epoch]
        log.append(Entry(position.offset, number, exclude, time))
        self.tops[channel] = position

    def after(self, channel: str, position: Position, until: int | None = None) -> list[Entry]:
        """What lies after a position, before an offset."""
        found: list[Entry] = []
        for entry in reversed(self.logs[channel, position.epoch]):
            if entry.offset <= position.offset:
                break
            if until is None or entry.offset < until:
                found.append(entry)
        return found[::-1]

    def at(self, channel: str, epoch: str, offset: int) -> Entry:
        for entry in reversed(self.logs[channel, epoch]):
            if entry.offset == offset:
                return entry
        raise Broken(f"nothing was published at {epoch}.{offset} of {channel}")

    def exists(self, channel: str, position: Position) -> bool:
        """Whether a position may be one that the server gave: where nothing was published yet, who knows."""
        log = self.logs.get((channel, position.epoch))
        return position.offset == 0 if not log else position.offset <= log[-1].offset

    def must_recover(self, channel: str, position: Position, size: int, oldest: float) -> bool:
        """Whether all that lies after a position is certainly kept."""
        top = self.tops.get(channel)
        if not self.certain or top is None or position.epoch != top.epoch or position.offset > top.offset:
            return False
        missed = self.after(channel, position)
        return len(missed) <= size and all(entry.time >= oldest for entry in missed)


class View:
    """One subscription of one session: where it is, and whether the next message may follow."""

    def __init__(
        self,
        ledger: Ledger,
        channel: str,
        session: str,
        position: Position | None,
        index: int,
        *,
        conflates: bool = False,
    ) -> None:
        self.ledger = ledger
        self.channel = channel
        self.session = session
        self.position = position
        self.index = index  # where there are no positions: how many of the channel are behind it, at least
        self.exact = position is not None
        self.conflates = conflates  # skips what is no longer the newest: that is no loss
        self.began = ledger.tops.get(channel)  # which may be of a life that is over

    def __repr__(self) -> str:
        return f"<view of {self.channel} by {self.session} at {self.position or self.index}>"

    def event(self, message: dict[str, Any]) -> None:
        number = message["data"]["n"]
        if self.position is None:
            expect("offset" not in message, "expected no offset without history", self, message)
            self._plain_event(number)
            return
        entry = self._move(message["offset"])
        expect(entry.number == number, "expected what was published at this offset", self, entry, message)
        expect(entry.exclude != self.session, "expected not to hear what excludes it", self, entry)

    def moved(self, message: dict[str, Any]) -> None:
        entry = self._move(message["offset"])
        expect(entry.exclude == self.session, "expected the event, not its position", self, entry)

    def gap(self, message: dict[str, Any]) -> None:
        if "offset" not in message:
            self.exact = False
            return
        told = Position(message["epoch"], message["offset"])
        expect(self.ledger.exists(self.channel, told), "expected a gap up to what was published", self, told)
        if self.position is not None and told.epoch == self.position.epoch:
            expect(told.offset >= self.position.offset, "expected a gap not to go back", self, told)
            lost = self.ledger.after(self.channel, self.position, told.offset + 1)
            expect(
                lost or self.ledger.lost or not self.ledger.certain,
                "expected a gap where something is lost",
                self,
                told,
            )
            if "dropped" in message:
                expect(
                    message["dropped"] == len(lost),
                    "expected the number that was dropped",
                    self,
                    lost,
                    message,
                )
        self.position = told

    def at_rest(self) -> None:
        """Everything has arrived."""
        if self.position is None:
            rest = [
                number
                for number, exclude in self.ledger.plain[self.channel][self.index :]
                if exclude != self.session
            ]
            expect(not (self.exact and rest), "expected to have heard", self, rest)
            return
        top = self.ledger.tops.get(self.channel)
        missing = [
            entry
            for entry in self.ledger.after(self.channel, self.position)
            if (self.channel, self.position.epoch, entry.offset) not in self.ledger.lost
        ]
        expect(not missing, "expected to have heard", self, missing)
        if top is not None and top.epoch not in {self.position.epoch, self.began and self.began.epoch}:
            log = self.ledger.logs[self.channel, top.epoch]
            left = [e for e in log if (self.channel, top.epoch, e.offset) not in self.ledger.lost]
            expect(not left, "expected a gap for the new epoch", self, top)

    def _move(self, offset: int) -> Entry:
        assert self.position is not None
        before = self.position
        expect(offset > before.offset, "expected what follows its position", self, offset)
        entry = self.ledger.at(self.channel, before.epoch, offset)
        between = self.ledger.after(self.channel, before, offset)
        expect(self.conflates or not between, "expected nothing to be missing", self, offset, between)
        self.position = Position(before.epoch, offset)
        return entry

    def _plain_event(self, number: int) -> None:
        log = self.ledger.plain[self.channel]
        while self.index < len(log):
            found, exclude = log[self.index]
            self.index += 1
            if found == number:
                expect(exclude != self.session, "expected not to hear what excludes it", self, number)
                self.exact = True
                return
            expect(
                not self.exact or exclude == self.session,
                "expected nothing to be missing",
                self,
                found,
                number,
            )
        raise Broken(f"expected what was published later: {self} {number}")
