"""What the clients of one server have in common: how much is still due, and what went wrong."""

import asyncio

from benchmarks.void import Void

STALL = 10.0  # seconds without any delivery after which a round is given up


class Tally:
    """Counts deliveries down.

    Attributes:
        frame, mark: How long the usual frame is, and where in it the message's number: what a client
            looks at first. As long as none is known, nothing has that length.
        size: How long the last frame was that was parsed.
        latencies: Where nanoseconds from publish to client are noted, if they are wanted.
    """

    def __init__(self) -> None:
        self.frame = 1 << 60
        self.mark = 0
        self.size = 0
        self.due = 0
        self.latencies: list[int] | None = None
        self._enough = 0
        self._trouble: Void | None = None
        self._done = asyncio.Event()

    def expect(self, deliveries: int) -> None:
        """Count on so many deliveries more."""
        self.check()
        self.due += deliveries

    def take(self, deliveries: int) -> None:
        """Count deliveries that came."""
        self.due -= deliveries
        if self.due <= self._enough:
            self._done.set()

    def fail(self, why: str) -> None:
        """Make the round void; the first reason is the one that is told."""
        self._trouble = self._trouble or Void(why)
        self._done.set()

    def check(self) -> None:
        """Raise what went wrong, if anything did.

        Raises:
            Void: With the reason.
        """
        if self.due < 0:
            self.fail(f"{-self.due} deliveries too many")
        if self._trouble is not None:
            raise self._trouble

    async def finish(self, ahead: int = 0) -> None:
        """Wait until all is there, or all but `ahead` deliveries.

        Raises:
            Void: Something went wrong, or nothing came any more.
        """
        self._enough = ahead
        if self.due > ahead and self._trouble is None:
            self._done.clear()
        while not self._done.is_set():
            before = self.due
            try:
                async with asyncio.timeout(STALL):
                    await self._done.wait()
            except TimeoutError:
                if self.due == before:
                    self.fail(f"{self.due} deliveries missing after {STALL:g} s without one")
        self.check()
