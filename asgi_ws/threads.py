"""Publishing from where nothing can be awaited: any thread, the loop's own included."""

import asyncio
import concurrent.futures
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import anyio.from_thread

from asgi_ws.errors import NotRunning, Timeout, WrongLoop

T = TypeVar("T")
Publish = Callable[[], Awaitable[object]]

logger = logging.getLogger("asgi_ws")

MAX_WAITING = 10_000
CLOSE_WAIT = 2.0
WAIT = 10.0  # seconds that from_thread waits for a result


class Backlog:
    """Publishes that wait for the loop, in order; taken from any thread, also before the start.

    Args:
        failed: Is called for each publish that fails or finds the backlog full.
    """

    def __init__(self, failed: Callable[[], None]) -> None:
        self._waiting: deque[Publish] = deque()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = False
        self._failing = False
        self._failed = failed
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Backlog {len(self._waiting)} waiting>"

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, publish: Publish) -> None:
        """Take a publish. Never blocks; beyond 10,000 it is dropped, counted and said."""
        with self._lock:
            full = len(self._waiting) >= MAX_WAITING
            if not full:
                self._waiting.append(publish)
                self._wake()
        if full:
            self._fail(f"expected at most {MAX_WAITING} publishes to wait, got one more")

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to publish in a loop, with what waits already."""
        with self._lock:
            self._loop = loop
            self._woken = False
            self._task = None  # one of a loop that was closed never ends
            if self._waiting:
                self._wake()

    async def close(self) -> None:
        """Publish what waits, for at most 2 s, and stop; what comes later waits for the next `open`."""
        with self._lock:
            self._loop = None
        self._drain()
        if self._task is not None:
            await self._end(self._task)

    async def _end(self, task: asyncio.Task[None]) -> None:
        _, unfinished = await asyncio.wait([task], timeout=CLOSE_WAIT)
        if unfinished:
            task.cancel()
            await asyncio.wait([task])

    def _wake(self) -> None:
        if self._loop is None or self._woken:
            return
        try:
            self._loop.call_soon_threadsafe(self._drain)
            self._woken = True
        except RuntimeError:  # the loop was closed; the next one takes over
            self._loop = None

    def _drain(self) -> None:
        if self._task is None and self._waiting:
            self._task = asyncio.get_running_loop().create_task(self._publish_all())

    async def _publish_all(self) -> None:
        try:
            while True:
                with self._lock:
                    if not self._waiting:
                        self._woken = False
                        return
                    publish = self._waiting.popleft()
                await self._publish(publish)
        finally:
            self._task = None

    async def _publish(self, publish: Publish) -> None:
        try:
            await publish()
        except asyncio.CancelledError:
            self._fail("it was cancelled")
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise  # not the publish alone, but this task: there is no more time
        except Exception as error:
            self._fail(str(error), error)
        else:
            self._failing = False

    def _fail(self, reason: str, error: Exception | None = None) -> None:
        self._failed()
        if not self._failing:  # once per episode
            self._failing = True
            logger.error("publish_nowait failed: %s", reason, exc_info=error)


def wait_for(make: Callable[[], Coroutine[Any, Any, T]], loop: asyncio.AbstractEventLoop | None) -> T:
    """Run a coroutine in the hub's loop from another thread and return its result, within 10 s.

    Where the hub has not started, the loop that this thread works for (FastAPI's `def` endpoints,
    `anyio.to_thread`) starts it.

    Raises:
        WrongLoop: This is the loop's own thread, which would wait for itself.
        NotRunning: The hub has not started, and this thread works for no loop.
        Timeout: There was no result in time; it may still come.
    """
    if _in_event_loop():
        raise WrongLoop(
            "expected from_thread to be called from a worker thread, got an event loop's: await instead"
        )
    if loop is None or not loop.is_running():
        return _wait_in_anyio(make)
    future = asyncio.run_coroutine_threadsafe(make(), loop)
    try:
        return future.result(WAIT)
    except concurrent.futures.TimeoutError as error:
        if future.done():
            raise
        future.cancel()
        raise _late() from error


def _wait_in_anyio(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    try:
        anyio.from_thread.check_cancelled()
    except RuntimeError as error:
        raise NotRunning("expected the hub to be running, got from_thread before its start") from error
    return anyio.from_thread.run(_within, make)


async def _within(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    try:
        async with asyncio.timeout(WAIT) as deadline:
            return await make()
    except TimeoutError as error:
        if not deadline.expired():
            raise
        raise _late() from error


def _late() -> Timeout:
    return Timeout(f"expected a result within {WAIT:g} s, got none")


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
