"""What can go wrong, and how a session can end.

The tree (a handler may raise any of the first group; a client reads its `code`):

HubError
├── RequestError
│   ├── BadRequest          bad_request
│   ├── Unauthorized        unauthorized
│   ├── Forbidden           forbidden
│   ├── NotFound            not_found
│   ├── AlreadySubscribed   already_subscribed
│   ├── LimitExceeded       limit_exceeded
│   ├── RateLimited         rate_limited      (has `retry_after`, seconds)
│   ├── TooLarge            too_large
│   ├── Unavailable         unavailable       (has `maybe_published`)
│   └── Timeout             timeout
├── Undeclared              also a LookupError: the server's own typo
├── NotRunning              used before its start or after its stop
├── WrongLoop               used from another event loop than the one it runs in
└── SettingsError           also a ValueError: a setting that cannot be
"""

from typing import ClassVar


class HubError(Exception):
    """Every exception that this package raises on its own account."""


class RequestError(HubError):
    """A request failed; the message is written for the client, so nothing from inside belongs in it."""

    code: ClassVar[str] = "internal"


class BadRequest(RequestError):
    """The request is not what was expected."""

    code = "bad_request"


class Unauthorized(RequestError):
    """It is not known who asks."""

    code = "unauthorized"


class Forbidden(RequestError):
    """Who asks may not have it."""

    code = "forbidden"


class NotFound(RequestError):
    """There is no such thing, or none for who asks."""

    code = "not_found"


class AlreadySubscribed(RequestError):
    """The session has this channel already."""

    code = "already_subscribed"


class LimitExceeded(RequestError):
    """A bound of the settings is reached."""

    code = "limit_exceeded"


class RateLimited(RequestError):
    """Too many requests; `retry_after` (seconds) says when to try again."""

    code = "rate_limited"

    def __init__(self, message: str = "", *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TooLarge(RequestError):
    """More bytes than the settings allow."""

    code = "too_large"


class Unavailable(RequestError):
    """What is needed is away; `maybe_published` where the outcome of a publish is unknown."""

    code = "unavailable"

    def __init__(self, message: str = "", *, maybe_published: bool = False) -> None:
        super().__init__(message)
        self.maybe_published = maybe_published


class Timeout(RequestError):
    """It took longer than it may."""

    code = "timeout"


class Undeclared(HubError, LookupError):
    """A channel that nothing declares, or an event that its channel does not list."""


class NotRunning(HubError):
    """The hub has not started yet, or has stopped."""


class WrongLoop(HubError):
    """The hub runs in another event loop, which is still open."""


class SettingsError(HubError, ValueError):
    """A setting that cannot be; the message names the variable and what was expected."""
