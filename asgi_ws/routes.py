"""The hub's own URLs, relative to where it is mounted."""

import asyncio
import hmac
import importlib.resources
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Match, Route, Router, WebSocketRoute
from starlette.types import Receive, Scope, Send

from asgi_ws import endings
from asgi_ws.auth import bearer_token
from asgi_ws.endings import Ending
from asgi_ws.endpoints import Endpoint, Endpoints
from asgi_ws.errors import HubError
from asgi_ws.run import HEALTH_WAIT, Run
from asgi_ws.settings import Settings
from asgi_ws.transports import websocket
from asgi_ws.transports.handshake import denial
from asgi_ws.version import __version__

logger = logging.getLogger("asgi_ws")

NO_LIBRARY = 'the server has no WebSocket library: pip install "asgi-ws-hub[server]"'


class Served(Protocol):
    """What is served: the hub."""

    settings: Settings
    stream: Endpoint
    endpoints: Endpoints

    async def current(self) -> Run:
        """Return the run in hand, started if need be."""


class Routes:
    """The sub-app. A trailing slash makes no difference, for WebSockets neither."""

    def __init__(self, hub: Served) -> None:
        self._hub = hub
        self._warned = False
        self._plain = Route("/stream", self._no_upgrade)  # what an endpoint answers without an upgrade, too
        self._stream = _Stream(hub, hub.stream)
        routes = [
            WebSocketRoute("/stream", self._stream),
            self._plain,
            Route("/status", self._with_run(self._status)),
            Route("/stats", self._with_run(self._stats)),
            Route("/health", self._health),
        ]
        if hub.settings.live:
            routes.append(Route("/live", live_page))
        self._router = Router(routes, redirect_slashes=False, default=self._not_found)

    def serve(self, scope: Scope) -> bool:
        """Whether there is a route for a request."""
        local = _local(scope)
        own = any(route.matches(local)[0] is not Match.NONE for route in self._router.routes)
        return own or self._hub.endpoints.find(_below(local)) is not None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, wherever the hub is mounted."""
        local = _local(scope)
        path = _below(local)
        if path == "/stream" and scope["type"] == "websocket":  # what most of them are for
            await self._stream(local, receive, send)
            return
        found = self._hub.endpoints.find(path)
        if found is None:
            await self._router(local, receive, send)
            return
        endpoint, params = found
        local["path_params"] = {**local.get("path_params", {}), **params}
        if scope["type"] == "websocket":
            await _Stream(self._hub, endpoint)(local, receive, send)
        else:
            await self._plain.handle(local, receive, send)

    async def _not_found(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await _refuse(self._hub, scope, receive, send, endings.NO_SUCH)
        else:
            await denial(endings.NO_SUCH)(scope, receive, send)

    # HTTP.

    async def _no_upgrade(self, request: Request) -> Response:
        if request.headers.get("upgrade", "").lower() != "websocket":
            message = "expected a WebSocket, got a plain GET"
            return _error(426, "bad_request", message, {"upgrade": "websocket"})
        if not self._warned:
            self._warned = True
            logger.error(NO_LIBRARY)
        return _error(426, "unavailable", NO_LIBRARY)

    def _with_run(
        self, endpoint: Callable[[Request, Run], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            try:
                run = await self._hub.current()
            except HubError as error:
                return _error(503, "unavailable", str(error))
            return await endpoint(request, run)

        return handle

    async def _status(self, request: Request, run: Run) -> Response:
        status = run.status()
        if not self._may_see(request):
            del status["nodes"]
        return JSONResponse(status)

    async def _stats(self, request: Request, run: Run) -> Response:
        if not self._may_see(request):
            message = "expected Authorization: Bearer <ASGI_WS_API_KEY>, got another or none"
            return _error(401, "unauthorized", message)
        return JSONResponse(run.stats())

    async def _health(self, request: Request) -> Response:
        if request.query_params.get("probe") == "live":
            return JSONResponse({"status": "live", "version": __version__})
        try:
            async with asyncio.timeout(HEALTH_WAIT):
                run = await self._hub.current()
            health = await run.health()
        except HubError as error:
            health = {"status": "unhealthy", "reason": str(error)}
        except TimeoutError:
            health = {"status": "unhealthy", "reason": "the hub is still starting"}
        status = 503 if health["status"] == "unhealthy" else 200
        return JSONResponse({**health, "version": __version__}, status)

    def _may_see(self, connection: HTTPConnection) -> bool:
        settings = self._hub.settings
        if settings.api_key is None or settings.public_stats:
            return True
        token = bearer_token(connection) or ""
        return hmac.compare_digest(token.encode(), settings.api_key.encode())


class _Stream:
    """An endpoint as an ASGI app: an object, since Starlette takes a function for an endpoint of its own."""

    def __init__(self, hub: Served, endpoint: Endpoint) -> None:
        self._hub = hub
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            run = await self._hub.current()
        except HubError as error:
            ending = endings.TRY_LATER.because(str(error))
            await _refuse(self._hub, scope, receive, send, ending)
            return
        await websocket.serve(scope, receive, send, run, self._endpoint)


async def live_page(_: Request) -> Response:
    """Answer with the page that shows what a hub sends; it has no part that differs, and no CDN."""
    page = importlib.resources.files("asgi_ws").joinpath("static/live.html").read_text("utf-8")
    return HTMLResponse(page, headers={"cache-control": "no-cache"})  # after an upgrade, the new one


async def _refuse(hub: Served, scope: Scope, receive: Receive, send: Send, ending: Ending) -> None:
    await receive()  # websocket.connect
    await websocket.refuse(scope, receive, send, ending, http=hub.settings.refuse == "http")


def _local(scope: Scope) -> Scope:
    """Put right what Starlette's router takes for the path below the mount.

    A proxy may strip the prefix that `FastAPI(root_path=...)` names: then `path` lacks what `root_path`
    has. And a trailing slash is redirected for HTTP only, so it is taken off here for both. Litestar takes
    off the leading one, where it mounts at `/`.
    """
    path, root = "/" + scope["path"].removeprefix("/"), scope.get("root_path", "")
    if not path.startswith(root):
        path = scope.get("app_root_path", "") + path
    if path != root + "/":
        path = path.rstrip("/") or "/"
    return {**scope, "path": path}


def _below(local: Scope) -> str:
    """Return the path below the mount, as Starlette's router sees it."""
    path: str = local["path"]
    below = path.removeprefix(local.get("root_path", ""))
    return below if below.startswith("/") or not below else path


def _error(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Response:
    body: dict[str, Any] = {"code": code, "message": message}
    return JSONResponse(body, status, headers=headers)
