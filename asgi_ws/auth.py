"""Who a session is."""

import inspect
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.requests import HTTPConnection

from asgi_ws.codecs import brief, encode_data
from asgi_ws.errors import BadRequest, Unauthorized
from asgi_ws.patterns import MAX_BYTES, check_channel

# It is kept for every member of a channel, and a thousand of them may be in one answer.
MAX_INFO_BYTES = 4096
MAX_USER_BYTES = MAX_BYTES - len("user:")


class Identity(msgspec.Struct, frozen=True):
    """A user, as the application knows it.

    Attributes:
        user: The id; the session has the channel `user:<id>`.
        expires_at: Seconds since 1970; the session is closed (4103) at its first heartbeat after that.
        info: What others may see of the user; anything that JSON can carry, at most 4 KiB of it.
    """

    user: str
    expires_at: float | None = None
    info: Any = None


Authenticate = Callable[[HTTPConnection, str | None], Awaitable[Identity | None]]


def check_authenticate(function: Authenticate) -> Authenticate:
    """Return the application's function, if it is async; else `TypeError`."""
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
        return function
    raise TypeError(f"expected authenticate to be async, got {function!r}")


async def identify(
    connection: HTTPConnection, authenticate: Authenticate | None, token: str | None
) -> Identity | None:
    """Return who is connecting, `None` for anonymous.

    The application's own function is asked; without one, Starlette's or Django's `scope["user"]`.

    Raises:
        Unauthorized: The application refuses.
        TypeError: Its function returned something else than an `Identity`, or one that cannot be.
        ValueError: The identity's user can name no channel, or its `info` is over 4 KiB.
    """
    if authenticate is None:
        return _authenticated_user(connection)
    identity = await authenticate(connection, token)
    if identity is None:
        return None
    if not isinstance(identity, Identity):
        raise TypeError(f"expected authenticate to return an Identity or None, got {type(identity).__name__}")
    if not isinstance(identity.user, str):
        raise TypeError(f"expected the user of an Identity to be a str, got {type(identity.user).__name__}")
    if not _names_a_channel(identity.user):
        raise ValueError(
            f"expected the user of an Identity to be 1 to {MAX_USER_BYTES} bytes of UTF-8 without control "
            f"characters, got {brief(identity.user)}"
        )
    if not isinstance(identity.expires_at, float | int | None):
        got = type(identity.expires_at).__name__
        raise TypeError(f"expected the expires_at of an Identity in seconds since 1970, got {got}")
    encode_info(identity)  # now, where the log names who made it, and not when somebody asks who is there
    return identity


def find_token(connection: HTTPConnection, cookie: str | None, *, in_query: bool) -> str | None:
    """Return the token of a handshake: the bearer header's, else the cookie's, else that of `?token=`.

    Args:
        connection: The handshake.
        cookie: `TOKEN_COOKIE`.
        in_query: `TOKEN_IN_QUERY`.
    """
    token = bearer_token(connection)
    if token is None and cookie is not None:
        token = connection.cookies.get(cookie) or None
    if token is None and in_query:
        token = connection.query_params.get("token") or None
    return token


def _names_a_channel(user: str) -> bool:
    """Whether there can be a channel `user:<id>`, which every session of a user has."""
    try:
        check_channel(f"user:{user}")
    except BadRequest:
        return False
    return bool(user)


def encode_info(identity: Identity) -> bytes:
    """Return what others may see of a user as JSON text.

    Raises:
        TypeError: JSON cannot carry it.
        ValueError: It is over 4 KiB.
    """
    if identity.info is None:
        return b"null"
    text, binary = encode_data(identity.info, sys.maxsize)
    if binary:
        raise TypeError("expected the info of an Identity to be what JSON can carry, got Binary")
    if len(text) > MAX_INFO_BYTES:
        raise ValueError(
            f"expected the info of an Identity to have at most {MAX_INFO_BYTES} bytes, got {len(text)}"
        )
    return text


def bearer_token(connection: HTTPConnection) -> str | None:
    """Return the token of the Authorization header, `None` without one."""
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def _authenticated_user(connection: HTTPConnection) -> Identity | None:
    user = connection.scope.get("user")
    if user is None or not getattr(user, "is_authenticated", False):
        return None
    # Starlette's BaseUser has identity (which may raise) and display_name, Django's has pk.
    for name in ("identity", "pk", "id", "display_name", "username"):
        try:
            value = getattr(user, name, None)
        except NotImplementedError:
            continue
        if value not in {None, ""}:
            return Identity(str(value))
    raise Unauthorized(f"expected scope['user'] to have an identity, got {type(user).__name__} without one")
