"""Who may connect, decided before a session exists."""

import logging
from typing import NamedTuple

from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, Response

from asgi_ws import endings, origins
from asgi_ws.auth import Identity, find_token, identify
from asgi_ws.codecs import CODECS, JSON, Codec
from asgi_ws.endings import Ending
from asgi_ws.endpoints import Endpoint
from asgi_ws.errors import HubError, RequestError, Timeout, Unauthorized
from asgi_ws.handlers import within
from asgi_ws.messages import MAX_REQUESTS, Subscribe
from asgi_ws.run import Run
from asgi_ws.settings import Settings

logger = logging.getLogger("asgi_ws")


class Refused(HubError):
    """The handshake is refused; never leaves the transports."""

    def __init__(self, ending: Ending, why: str) -> None:
        super().__init__(ending.reason)
        self.ending = ending
        self.why = why


class Handshake(NamedTuple):
    """What a handshake has agreed on; `home` is the channel that the URL names."""

    connection: HTTPConnection
    endpoint: Endpoint
    home: str | None
    codec: Codec
    identity: Identity | None
    pending: bool
    asked: list[Subscribe]


_ERROR_CODES = {400: "bad_request", 401: "unauthorized", 403: "forbidden", 404: "not_found"}


def denial(ending: Ending) -> Response:
    """Return a refusal as an HTTP response."""
    code = _ERROR_CODES.get(ending.status, "unavailable")
    return JSONResponse({"code": code, "message": ending.reason}, ending.status)


async def shake(connection: HTTPConnection, run: Run, endpoint: Endpoint) -> Handshake:
    """Agree on a session.

    Raises:
        Refused: With the ending to close with, or its HTTP status.
    """
    settings = run.settings
    if not settings.enabled:
        raise Refused(endings.TRY_LATER.because("disabled (ASGI_WS_ENABLED)"), "disabled")
    _check_capacity(run)
    _check_origin(connection, endpoint, settings)
    codec = _negotiate(connection)
    asked = _asked(connection)
    home = _home(connection, endpoint)
    identity, pending = await _identify(connection, run, endpoint)
    _check_capacity(run)  # others have connected meanwhile
    return Handshake(connection, endpoint, home, codec, identity, pending, asked)


def _check_capacity(run: Run) -> None:
    if run.closed:
        raise Refused(endings.RESTART, "stopping")
    most = run.settings.max_connections
    if most is not None and len(run.sessions) >= most:
        raise Refused(endings.OVER_CAPACITY, "capacity")


def _check_origin(connection: HTTPConnection, endpoint: Endpoint, settings: Settings) -> None:
    origin = connection.headers.get("origin")
    if endpoint.origins is None:
        where = "ASGI_WS_ALLOWED_ORIGINS"
        allowed = origins.allowed(origin, connection.headers.get("host", ""), settings.allowed_origins)
    else:
        where = f"the origins= of {endpoint.path.text}"
        allowed = origins.listed(origin, endpoint.origins)
    if allowed:
        return
    reason = f"origin {origin!r} is not in {where}"
    logger.warning("a connection was refused: %s", reason)
    raise Refused(endings.FORBIDDEN.because(reason), "origin")


def _negotiate(connection: HTTPConnection) -> Codec:
    offered = connection.scope.get("subprotocols") or []
    for subprotocol in offered:
        if subprotocol in CODECS:
            return CODECS[subprotocol]
    if not offered:
        return JSON
    expected = " or ".join(CODECS)
    reason = f"expected subprotocol {expected}, got {', '.join(offered)}"
    raise Refused(endings.BAD_HANDSHAKE.because(reason), "subprotocol")


def _asked(connection: HTTPConnection) -> list[Subscribe]:
    query = connection.query_params
    asked = [Subscribe(channel=channel) for channel in query.getlist("channel")]
    asked += [_resume(text) for text in query.getlist("resume")]
    if len(asked) > MAX_REQUESTS:
        reason = f"expected at most {MAX_REQUESTS} channels in the URL, got {len(asked)}"
        raise Refused(endings.BAD_HANDSHAKE.because(reason), "query")
    return asked


def _resume(text: str) -> Subscribe:
    epoch, _, rest = text.partition(".")
    offset, dot, channel = rest.partition(".")
    if not dot or not (offset.isascii() and offset.isdecimal()) or len(offset) > 16:
        reason = f"expected resume=<epoch>.<offset>.<channel>, got {text[:40]!r}"
        raise Refused(endings.BAD_HANDSHAKE.because(reason), "query")
    return Subscribe(channel=channel, epoch=epoch or None, offset=int(offset))


def _home(connection: HTTPConnection, endpoint: Endpoint) -> str | None:
    try:
        return endpoint.home(connection.path_params, connection.query_params)
    except RequestError as error:
        why = "query" if error.code == "bad_request" else "channel"
        raise Refused(endings.of_error(error), why) from error


def _check_identity(identity: Identity | None, settings: Settings, token: str | None) -> None:
    if identity is None and settings.require_auth:
        raise Unauthorized("expected a token, got none" if token is None else "expected a user's token")


def _check_expiry(identity: Identity | None, run: Run) -> None:
    expires_at = None if identity is None else identity.expires_at
    if expires_at is not None and expires_at <= run.clock.time():
        raise Unauthorized("expected a token that has not expired")


async def _identify(connection: HTTPConnection, run: Run, endpoint: Endpoint) -> tuple[Identity | None, bool]:
    """Return who is connecting, and whether that is still to be said."""
    settings, authenticate = run.settings, run.authenticator(endpoint)
    token = None
    try:
        if authenticate is None:
            identity = await identify(connection, None, None)  # nothing in it waits
        else:
            token = find_token(connection, settings.token_cookie, in_query=settings.token_in_query)
            identity = await within(
                settings.auth_timeout, identify(connection, authenticate, token), run.clock
            )
        _check_identity(identity, settings, token)
        _check_expiry(identity, run)
    except Timeout as error:
        raise Refused(endings.AUTH_TIMED_OUT, "timeout") from error
    except Unauthorized as error:
        # Only who can be asked again is: where nothing takes a token, no token will do.
        if token is None and authenticate is not None:
            return None, True
        raise Refused(endings.of_error(error), "unauthorized") from error
    except RequestError as error:
        raise Refused(endings.of_error(error), error.code) from error
    except Exception as error:
        logger.exception("authenticate failed")
        raise Refused(endings.INTERNAL, "internal") from error
    return identity, False
