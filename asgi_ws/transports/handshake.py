"""Who may connect, decided before a session exists."""

import asyncio
import logging
from typing import NamedTuple

from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, Response

from asgi_ws import endings, origins
from asgi_ws.auth import Authenticate, Identity, identify
from asgi_ws.codecs import CODECS, JSON, Codec
from asgi_ws.endings import Ending
from asgi_ws.errors import Forbidden, HubError, Unauthorized
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
    """What a handshake has agreed on."""

    codec: Codec
    identity: Identity | None
    asked: list[Subscribe]


_ERROR_CODES = {400: "bad_request", 401: "unauthorized", 403: "forbidden", 404: "not_found"}


def denial(ending: Ending) -> Response:
    """Return a refusal as an HTTP response."""
    code = _ERROR_CODES.get(ending.status, "unavailable")
    return JSONResponse({"code": code, "message": ending.reason}, ending.status)


async def shake(connection: HTTPConnection, run: Run, authenticate: Authenticate | None) -> Handshake:
    """Agree on a session.

    Raises:
        Refused: With the ending to close with, or its HTTP status.
    """
    settings = run.settings
    if not settings.enabled:
        raise Refused(endings.TRY_LATER.because("disabled (ASGI_WS_ENABLED)"), "disabled")
    _check_capacity(run)
    _check_origin(connection, settings)
    codec = _negotiate(connection)
    asked = _asked(connection)
    identity = await _identify(connection, authenticate, settings.command_timeout)
    _check_capacity(run)  # others have connected meanwhile
    return Handshake(codec, identity, asked)


def _check_capacity(run: Run) -> None:
    most = run.settings.max_connections
    if most is not None and len(run.sessions) >= most:
        raise Refused(endings.OVER_CAPACITY, "capacity")


def _check_origin(connection: HTTPConnection, settings: Settings) -> None:
    origin = connection.headers.get("origin")
    if origins.allowed(origin, connection.headers.get("host", ""), settings.allowed_origins):
        return
    reason = f"origin {origin!r} is not in ASGI_WS_ALLOWED_ORIGINS"
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


async def _identify(
    connection: HTTPConnection, authenticate: Authenticate | None, seconds: float
) -> Identity | None:
    try:
        if authenticate is None:
            return await identify(connection, None)  # nothing in it waits
        async with asyncio.timeout(seconds):
            return await identify(connection, authenticate)
    except TimeoutError as error:
        raise Refused(endings.TRY_LATER.because("authenticate took too long"), "timeout") from error
    except Unauthorized as error:
        ending = endings.UNAUTHORIZED
        raise Refused(ending.because(str(error) or ending.reason), "unauthorized") from error
    except Forbidden as error:
        ending = endings.FORBIDDEN
        raise Refused(ending.because(str(error) or ending.reason), "forbidden") from error
    except Exception as error:
        logger.exception("authenticate failed")
        raise Refused(endings.INTERNAL, "internal") from error
