"""Starting and stopping, and in which event loop.

Whoever enters (a lifespan, a middleware, `async with`) holds the hub up; the last to leave stops it. Where
nobody entered, the first use starts it. A hub whose loop was closed under it begins anew in the next one.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from asgi_ws.errors import NotRunning, WrongLoop
from asgi_ws.run import Run

logger = logging.getLogger("asgi_ws")


class Lifecycle:
    """Makes a run at each start and ends it at the stop.

    Args:
        name: What the hub is called in logs and errors.
        make: Returns a new run, not yet started.
        started: Is called as soon as a run has started, in its loop.
        stopping: Is awaited before a run is stopped, while it still publishes.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], Run],
        started: Callable[[], None],
        stopping: Callable[[], Awaitable[None]],
    ) -> None:
        self._name = name
        self._make = make
        self._started = started
        self._stopping = stopping
        self._holders = 0
        self._start: asyncio.Task[Run] | None = None
        self._end: asyncio.Future[None] | None = None
        self._stopped = False
        self.loop: asyncio.AbstractEventLoop | None = None
        self.run: Run | None = None

    async def enter(self) -> None:
        """Hold the hub up, starting it if it is not.

        Raises:
            WrongLoop: It runs in another loop, which is still open.
            SettingsError: It cannot start as it is configured.
        """
        self._claim_loop()
        self._stopped = False
        self._holders += 1
        try:
            await self._begin()
        except BaseException:
            self._holders -= 1
            raise

    async def leave(self) -> None:
        """Let go; the last one stops the hub. Without an `enter` before it, nothing happens."""
        if self._holders:
            self._holders -= 1
            if not self._holders and self.run is not None:
                await self._finish(self.run)

    async def current(self) -> Run:
        """Return the run in hand; where nobody has entered, start.

        Raises:
            NotRunning: The hub was stopped.
            WrongLoop: It runs in another loop, which is still open.
            SettingsError: It cannot start as it is configured.
        """
        if self.run is not None and self.loop is _running_loop():
            return self.run
        self._claim_loop()
        if self._stopped:
            raise NotRunning(
                f"expected {self._name} to be running, got a publish or a request after its stop"
            )
        return await self._begin()

    def _claim_loop(self) -> None:
        loop = _running_loop()
        if loop is self.loop:
            return
        if self.loop is not None and not self.loop.is_closed() and self._lives:
            raise WrongLoop(
                f"expected {self._name} to be used from the event loop that it runs in, got another one; in "
                "tests enter the client first (with TestClient(app) as client:), from a thread use "
                "hub.from_thread, from anywhere hub.publish_nowait"
            )
        if self.loop is not None and self.loop.is_closed():
            self._forget()
        self.loop = loop

    @property
    def _lives(self) -> bool:
        return self.run is not None or (self._start is not None and not self._start.done())

    def _forget(self) -> None:
        # The loop was closed under it: what ran in it is no more.
        self.run = self._start = self._end = None
        self._holders = 0
        self._stopped = False

    async def _begin(self) -> Run:
        if self._end is not None and (self.run is None or self.run.closed):
            await asyncio.shield(self._end)  # a start begins after the stop before it
        if self._start is None or (self._holders and not self._lives):  # an earlier one may have failed
            if not self._holders:
                logger.info("%s starts on its first use: no lifespan has started it", self._name)
            self._start = asyncio.get_running_loop().create_task(self._make_and_start())
        # One start for all who wait; it goes on if the first of them gives up.
        return await asyncio.shield(self._start)

    async def _finish(self, run: Run) -> None:
        if self._end is not None:  # somebody has come and gone while it was ending
            await asyncio.shield(self._end)
            return
        end = self._end = asyncio.get_running_loop().create_future()
        try:
            await self._stopping()
            if self._holders:  # somebody has come meanwhile
                self._started()
                return
            self._stopped = True
            try:
                await run.close()  # its last words may still be published
            finally:
                self.run = self._start = None
            await run.stop()
        finally:
            self._end = None
            end.set_result(None)

    async def _make_and_start(self) -> Run:
        run = self._make()
        await run.start()
        self.run = run
        self._started()
        return run


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError as error:
        raise WrongLoop(
            "expected asyncio or uvloop to run this, got another library's loop (trio?)"
        ) from error
