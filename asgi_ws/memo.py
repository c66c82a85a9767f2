"""What is kept of a connection's handshake, so that `authenticate` can be asked again."""

from typing import Any

import msgspec
from starlette.requests import HTTPConnection
from starlette.types import Scope

# Small objects by the dozen, packed into one.
_PACKED = (
    "scheme", "http_version", "path", "raw_path", "root_path", "query_string", "headers", "client", "server",
    "subprotocols",
)  # fmt: skip
_HEADERS = _PACKED.index("headers")
# Objects of the application's, its framework's and its middleware's.
_KEPT = ("app", "state", "user", "auth", "session", "path_params")

_encode = msgspec.msgpack.Encoder(enc_hook=str).encode
_decode = msgspec.msgpack.Decoder().decode


class Memo:
    """A handshake's scope in a fraction of its memory, and nothing of what belongs to its server."""

    __slots__ = ("_kept", "_packed")

    def __init__(self, scope: Scope) -> None:
        packed = [scope.get(key) for key in _PACKED]
        packed[_HEADERS] = [tuple(header) for header in scope["headers"]]  # any iterables, says ASGI
        self._packed = _encode(packed)
        self._kept = tuple(scope.get(key) for key in _KEPT)

    def __repr__(self) -> str:
        return f"<Memo {len(self._packed)} bytes>"  # what it has may be a secret

    @property
    def connection(self) -> HTTPConnection:
        """The handshake's connection, made anew."""
        packed = dict(zip(_PACKED, _decode(self._packed), strict=True))
        packed["headers"] = [(name, value) for name, value in packed["headers"]]
        for key in ("client", "server"):
            packed[key] = None if packed[key] is None else tuple(packed[key])
        kept = dict(zip(_KEPT, self._kept, strict=True))
        scope: dict[str, Any] = {"type": "websocket", **packed, **kept}
        return HTTPConnection({key: value for key, value in scope.items() if value is not None})
