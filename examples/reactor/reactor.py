"""An event bus: what is emitted reaches the handlers here and, through the hub, every browser."""

import asyncio
import inspect
import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import Any, Self

from asgi_ws import Hub

logger = logging.getLogger("reactor")

Handler = Callable[[Any], object]  # sync or async; it is called with the event's data
Call = Callable[[], Coroutine[Any, Any, None]]

MAX_WAITING = 10_000  # calls of async handlers, before the start
STOP_WAIT = 5.0  # seconds that async handlers have to finish


class Reactor:
    """Events by name, such as `task.completed`; data is anything that JSON can carry.

    Whatever fails, a handler or the way to the browsers, is logged and counted. No emit raises for it, and
    nobody else misses the event.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._handlers: dict[str, tuple[Handler, ...]] = {}
        self._counts = Counter(emitted=0, handlers_failed=0, broadcasts_failed=0)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: deque[Call] = deque()
        self._running: set[Future[None]] = set()
        self._lock = threading.Lock()

    async def __aenter__(self) -> Self:
        """Start: from now on the async handlers of `emit_nowait` run in this loop."""
        with self._lock:
            self._loop = asyncio.get_running_loop()
            while self._waiting:
                self._run(self._waiting.popleft(), self._loop)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop, once the async handlers are done."""
        try:
            async with asyncio.timeout(STOP_WAIT):
                while running := tuple(self._running):
                    await asyncio.wait(map(asyncio.wrap_future, running))
        except TimeoutError:
            for future in tuple(self._running):
                future.cancel()
        with self._lock:
            self._loop = None

    def on(self, event: str, handler: Handler) -> None:
        """Call a handler with the data of each such event."""
        with self._lock:  # a tuple is replaced, never changed: an emit may be walking through it
            self._handlers[event] = (*self._handlers.get(event, ()), handler)

    def off(self, event: str, handler: Handler) -> None:
        """Call it no more."""
        with self._lock:
            self._handlers[event] = tuple(h for h in self._handlers.get(event, ()) if h != handler)

    async def emit(self, event: str, data: Any = None) -> None:
        """Tell the browsers and every handler, all at once, and return when all are done."""
        self._count("emitted")
        calls = [self._call(handler, event, data) for handler in self._handlers.get(event, ())]
        # Each in a task of its own: a handler that awaits something cancelled does not cancel the emit.
        await asyncio.gather(self._broadcast(event, data), *calls, return_exceptions=True)

    def emit_nowait(self, event: str, data: Any = None) -> None:
        """Emit from any thread, the loop's own included, and before the start too.

        A sync handler is called here and now; an async one runs in the loop, and nobody waits for it.
        """
        self._count("emitted")
        with self._guard("broadcast", event):
            self._hub.broadcast_nowait(event, data)
        for handler in self._handlers.get(event, ()):
            with self._guard("handler", event):
                if _is_async(handler):
                    self._run_later(partial(self._call, handler, event, data))
                else:
                    handler(data)

    def stats(self) -> dict[str, int]:
        """Return what was counted: `emitted`, `handlers_failed`, `broadcasts_failed`."""
        with self._lock:
            return dict(self._counts)

    async def _broadcast(self, event: str, data: Any) -> None:
        with self._guard("broadcast", event):
            await self._hub.broadcast(event, data)

    async def _call(self, handler: Handler, event: str, data: Any) -> None:
        with self._guard("handler", event):
            result = handler(data)
            if inspect.isawaitable(result):
                await result

    def _run_later(self, call: Call) -> None:
        with self._lock:
            if self._loop is not None:
                self._run(call, self._loop)
            elif len(self._waiting) < MAX_WAITING:
                self._waiting.append(call)
            else:
                raise OverflowError(f"expected at most {MAX_WAITING} calls to wait for the start")

    def _run(self, call: Call, loop: asyncio.AbstractEventLoop) -> None:
        future = asyncio.run_coroutine_threadsafe(call(), loop)
        self._running.add(future)
        future.add_done_callback(self._running.discard)

    def _count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1

    @contextmanager
    def _guard(self, what: str, event: str) -> Iterator[None]:
        try:
            yield
        except Exception:
            self._count(f"{what}s_failed")
            logger.exception("a %s of %r failed", what, event)


def _is_async(handler: Handler) -> bool:
    """Whether it is an `async def`, or an object whose call is one."""
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(type(handler).__call__)
