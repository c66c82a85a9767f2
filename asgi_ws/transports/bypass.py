"""What an adopted connection bypasses: middleware of the application that would see a WebSocket's messages.

Said once in the log, so that nobody has to find out.
"""

import logging
from collections.abc import Iterator
from typing import Any

from starlette.middleware.base import BaseHTTPMiddleware
from starlette.types import Scope

from asgi_ws.run import Run

logger = logging.getLogger("asgi_ws")

# These look at a handshake at most, or at HTTP alone.
_HARMLESS = ("asgi_ws", "fastapi", "starlette")


def tell(scope: Scope, run: Run) -> None:
    """Log which middleware of an application does not see what its sessions send and receive, once a run."""
    if run.told_bypassed:
        return
    run.told_bypassed = True
    names = ", ".join(bypassed(scope.get("app")))
    if names:
        logger.info(
            "sessions are handed over to the hub after the handshake, so %s will not see their messages, nor "
            "their end; ASGI_WS_FAST=false makes every message pass through, see docs/deploying.md",
            names,
        )


def bypassed(app: Any) -> Iterator[str]:
    """The names of a Starlette application's own middleware that may care for a WebSocket's messages."""
    for middleware in getattr(app, "user_middleware", ()):
        kind = getattr(middleware, "cls", middleware)
        if getattr(kind, "__module__", "") == "asgi_ws.middleware":
            return  # what comes after it in the list is behind the hub, and never around a session
        if not _is_harmless(kind):
            yield getattr(kind, "__name__", repr(kind))


def _is_harmless(kind: Any) -> bool:
    of_http_alone = isinstance(kind, type) and issubclass(kind, BaseHTTPMiddleware)
    return of_http_alone or getattr(kind, "__module__", "").partition(".")[0] in _HARMLESS
