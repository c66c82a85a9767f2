"""The ASGI lifespan protocol: the hub starts before the application and stops after it."""

import logging
from typing import Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("asgi_ws")


class Held(Protocol):
    """What is started and stopped: the hub."""

    async def __aenter__(self) -> object: ...
    async def __aexit__(self, *_: object) -> None: ...


async def serve(hub: Held, receive: Receive, send: Send) -> None:
    """Speak the protocol for an application that does not."""
    await Lifespan(hub, receive, send).finish()


async def wrap(hub: Held, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Let an application speak the protocol, and go on in its place where it cannot or ends early."""
    lifespan = Lifespan(hub, receive, send)
    try:
        await _run(app, scope, lifespan)
        await lifespan.finish()
    finally:
        await lifespan.stop()


async def _run(app: ASGIApp, scope: Scope, lifespan: "Lifespan") -> None:
    try:
        await app(scope, lifespan.receive, lifespan.send)
    except Exception as error:
        if lifespan.failed:  # the server has been told, and is to know why
            raise
        # Django does so at once. Others do it later, and a server goes on without their lifespan.
        level = logging.ERROR if lifespan.began else logging.DEBUG
        logger.log(level, "the application has left its lifespan: %r", error, exc_info=lifespan.began)


class Lifespan:
    """The protocol's two callables, with the hub's start and stop at their places in it."""

    def __init__(self, hub: Held, receive: Receive, send: Send) -> None:
        self._hub = hub
        self._receive = receive
        self._send = send
        self._holds = False
        self._received: set[str] = set()
        self._sent: set[str] = set()

    @property
    def began(self) -> bool:
        """Whether the application has asked for a message."""
        return bool(self._received)

    @property
    def failed(self) -> bool:
        """Whether the start or the stop has failed, the hub's or the application's."""
        return not self._sent.isdisjoint({"lifespan.startup.failed", "lifespan.shutdown.failed"})

    async def receive(self) -> Message:
        """Start the hub when the server says so, before the application hears of it."""
        message = await self._receive()
        self._received.add(message["type"])
        if message["type"] == "lifespan.startup":
            await self._start()
        return message

    async def send(self, message: Message) -> None:
        """Stop the hub when the application is done, before the server hears of it."""
        if message["type"] != "lifespan.startup.complete":
            await self.stop()
        self._sent.add(message["type"])
        await self._send(message)

    async def finish(self) -> None:
        """Speak what is left of the protocol."""
        if self.failed:
            return
        for step in ("startup", "shutdown"):
            if f"lifespan.{step}" not in self._received:
                await self.receive()
            if f"lifespan.{step}.complete" not in self._sent:
                await self.send({"type": f"lifespan.{step}.complete"})

    async def stop(self) -> None:
        """Let go of the hub, once."""
        if self._holds:
            self._holds = False
            await self._hub.__aexit__(None, None, None)

    async def _start(self) -> None:
        try:
            await self._hub.__aenter__()
        except Exception as error:
            await self.send({"type": "lifespan.startup.failed", "message": str(error)})
            raise
        self._holds = True
