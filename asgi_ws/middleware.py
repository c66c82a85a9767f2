"""The hub in front of any ASGI application."""

from starlette.types import ASGIApp, Receive, Scope, Send

from asgi_ws import lifespan
from asgi_ws.hub import Hub


class HubMiddleware:
    """Serves the hub's routes under a prefix, passes everything else through, and lives with the app.

    Args:
        app: Any ASGI application.
        hub: The hub to serve; it starts before the app and stops after it.
        prefix: As in `/ws`; `None`: the setting `PREFIX`.
    """

    def __init__(self, app: ASGIApp, hub: Hub, prefix: str | None = None) -> None:
        self.app = app
        self.hub = hub
        self.prefix = hub.settings.prefix if prefix is None else prefix.rstrip("/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, or the application's lifespan."""
        self.hub.put_into(scope)
        if scope["type"] == "lifespan":
            await lifespan.wrap(self.hub, self.app, scope, receive, send)
        elif (mounted := self._mounted(scope)) is not None:
            await self.hub(mounted, receive, send)
        else:
            await self.app(scope, receive, send)

    def _mounted(self, scope: Scope) -> Scope | None:
        if scope["type"] not in {"http", "websocket"}:
            return None
        root, path = scope.get("root_path", ""), scope["path"]
        # A server's path has the root path in front; behind a proxy that strips it, it may have not.
        local = path.removeprefix(root) if path.startswith(root + "/") else path
        if local != self.prefix and not local.startswith(self.prefix + "/"):
            return None
        mounted = {**scope, "root_path": root + self.prefix, "path": root + local}
        return mounted if self.hub.serves(mounted) else None
