"""An app that has been started as a server starts it: by its lifespan."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

TIMEOUT = 10.0


class Running:
    """An app whose lifespan has started, as an ASGI app: its requests have the lifespan's state."""

    def __init__(self, app: ASGIApp, state: dict[str, Any]) -> None:
        self.app = app
        self.state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request as a server does."""
        await self.app({**scope, "state": {**self.state, **scope.get("state", {})}}, receive, send)


@contextlib.asynccontextmanager
async def running(app: ASGIApp, *, seconds: float = TIMEOUT) -> AsyncIterator[Running]:
    """Start an app, and stop it when the block ends; an app without a lifespan needs neither.

    Args:
        app: Any ASGI app.
        seconds: What its start, and its stop, may take.

    Raises:
        AssertionError: It did not start or stop in time, or has said that it cannot.
    """
    lifespan = _Lifespan(app, seconds)
    await lifespan.step("startup")
    try:
        yield Running(app, lifespan.state)
    finally:
        await lifespan.step("shutdown")


class _Lifespan:
    def __init__(self, app: ASGIApp, timeout: float) -> None:
        self.state: dict[str, Any] = {}
        self._timeout = timeout
        self._incoming: asyncio.Queue[Message] = asyncio.Queue()
        self._outgoing: asyncio.Queue[Message] = asyncio.Queue()
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        self._task = asyncio.ensure_future(app(scope, self._incoming.get, self._outgoing.put))

    async def step(self, name: str) -> None:
        self._incoming.put_nowait({"type": f"lifespan.{name}"})
        answer = asyncio.ensure_future(self._outgoing.get())
        either: set[asyncio.Future[Any]] = {answer, self._task}
        try:
            done, _ = await asyncio.wait(either, timeout=self._timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            answer.cancel()
        if not done:
            self._task.cancel()
            raise AssertionError(f"expected the app's {name} within {self._timeout:g} s, got none")
        if answer in done:
            self._check(name, answer.result())
        if name == "shutdown":
            await asyncio.wait([self._task], timeout=self._timeout)
        # An app that knows no lifespan says so by raising, as Django does: that is no failure.
        _ = self._failure

    def _check(self, name: str, answer: Message) -> None:
        if answer["type"] != f"lifespan.{name}.complete":
            said = answer.get("message") or answer["type"]
            raise AssertionError(f"expected the app's {name}, got: {said}") from self._failure

    @property
    def _failure(self) -> BaseException | None:
        return self._task.exception() if self._task.done() and not self._task.cancelled() else None
