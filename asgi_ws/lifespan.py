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
    lifespan = Lifespan(hub, receive, send)
    await lifespan.receive()
    await lifespan.send({"type": "lifespan.startup.complete"})
    await lifespan.receive()
    await lifespan.send({"type": "lifespan.shutdown.complete"})


async def wrap(hub: Held, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Let an application speak the protocol, or speak it in its place if it cannot (Django)."""
    lifespan = Lifespan(hub, receive, send)
    try:
        await app(scope, lifespan.receive, lifespan.send)
    except Exception:
        if lifespan.began:
            raise
        await serve(hub, receive, send)
    finally:
        await lifespan.stop()


class Lifespan:
    """The protocol's two callables, with the hub's start and stop at their places in it."""

    def __init__(self, hub: Held, receive: Receive, send: Send) -> None:
        self._hub = hub
        self._receive = receive
        self._send = send
        self._holds = False
        self.began = False

    async def receive(self) -> Message:
        """Start the hub when the server says so, before the application hears of it."""
        message = await self._receive()
        self.began = True
        if message["type"] == "lifespan.startup":
            await self._start()
        return message

    async def send(self, message: Message) -> None:
        """Stop the hub when the application is done, before the server hears of it."""
        if message["type"] != "lifespan.startup.complete":
            await self.stop()
        await self._send(message)

    async def stop(self) -> None:
        """Let go of the hub, once."""
        if self._holds:
            self._holds = False
            await self._hub.__aexit__(None, None, None)

    async def _start(self) -> None:
        try:
            await self._hub.__aenter__()
        except Exception as error:
            logger.exception("the hub did not start")
            await self._send({"type": "lifespan.startup.failed", "message": str(error)})
            raise  # the application must not start either, and a test is to see why
        self._holds = True
