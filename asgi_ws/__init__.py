"""The realtime layer for any ASGI app: mount a `Hub`, publish, and every client hears every event."""

from asgi_ws.auth import Identity
from asgi_ws.broadcasters import Broadcaster, Member, Presence
from asgi_ws.channels import Channel, Snapshot
from asgi_ws.errors import (
    AlreadySubscribed,
    BadRequest,
    Forbidden,
    HubError,
    LimitExceeded,
    NotFound,
    NotRunning,
    RateLimited,
    RequestError,
    SettingsError,
    Timeout,
    TooLarge,
    Unauthorized,
    Unavailable,
    Undeclared,
    WrongLoop,
)
from asgi_ws.hub import Hub, get_hub
from asgi_ws.middleware import HubMiddleware
from asgi_ws.publication import Binary, Position
from asgi_ws.router import Router
from asgi_ws.session import Session
from asgi_ws.settings import Settings
from asgi_ws.sources import Source
from asgi_ws.version import __version__

__all__ = [
    "AlreadySubscribed",
    "BadRequest",
    "Binary",
    "Broadcaster",
    "Channel",
    "Forbidden",
    "Hub",
    "HubError",
    "HubMiddleware",
    "Identity",
    "LimitExceeded",
    "Member",
    "NotFound",
    "NotRunning",
    "Position",
    "Presence",
    "RateLimited",
    "RequestError",
    "Router",
    "Session",
    "Settings",
    "SettingsError",
    "Snapshot",
    "Source",
    "Timeout",
    "TooLarge",
    "Unauthorized",
    "Unavailable",
    "Undeclared",
    "WrongLoop",
    "__version__",
    "get_hub",
]
