"""How a session can end: every close code, what it means, and what a client is to do then.

The range says whether to reconnect, so that an old client obeys a code that it has never seen:
4000–4099 no · 4100–4199 with backoff · 4200–4299 at once, with jitter.
The last fifty codes of each hundred are the application's own.
"""

from typing import NamedTuple

from asgi_ws.errors import RequestError

NEVER = None
AT_ONCE = (0.0, 1.0)
BACKOFF = (0.2, 8.0)

# https://www.rfc-editor.org/rfc/rfc6455#section-5.5: a control frame has 125 bytes, two are the code's.
MAX_REASON_BYTES = 123


class Ending(NamedTuple):
    """A close code with its reason (at most 123 bytes of UTF-8) and the HTTP status of a refusal."""

    code: int
    reason: str
    status: int = 503

    @property
    def delay(self) -> tuple[float, float] | None:
        """Seconds within which to reconnect, `None` for never."""
        return delay_of(self.code)

    def because(self, reason: str) -> "Ending":
        """Return the same ending with a reason of its own, cut to what a close frame can carry."""
        return self._replace(
            reason=reason.encode(errors="replace")[:MAX_REASON_BYTES].decode(errors="ignore")
        )


def delay_of(code: int) -> tuple[float, float] | None:
    """Return within how many seconds a client is to reconnect after `code`; `None` is never."""
    if code in {1000, 1008} or 4000 <= code <= 4099:
        return NEVER
    return AT_ONCE if 4200 <= code <= 4299 else BACKOFF


NORMAL = Ending(1000, "")
ABNORMAL = Ending(1006, "")
BAD_HANDSHAKE = Ending(1008, "bad handshake", 400)
TOO_BIG = Ending(1009, "message too big")
INTERNAL = Ending(1011, "internal error")
RESTART = Ending(1012, "restart")
TRY_LATER = Ending(1013, "try again later")
UNAUTHORIZED = Ending(4001, "unauthorized", 401)
FORBIDDEN = Ending(4003, "forbidden", 403)
NO_SUCH = Ending(4004, "no such endpoint", 404)
DISCONNECTED = Ending(4010, "disconnected by the application")
AUTH_TIMED_OUT = Ending(4012, "authentication timed out", 401)
OVER_CAPACITY = Ending(4100, "over capacity")
TOO_SLOW = Ending(4102, "too slow")
EXPIRED = Ending(4103, "token expired")
NO_SIGN_OF_LIFE = Ending(4105, "no sign of life")


def of_application(code: int, reason: str) -> Ending:
    """Return an ending that the application has chosen.

    Raises:
        ValueError: The code is neither 1000 nor of 4000–4299.
    """
    if code != NORMAL.code and not 4000 <= code <= 4299:
        raise ValueError(f"expected a close code of 4000–4299, or 1000, got {code!r}")
    return Ending(code, "").because(reason)


_OF_ERRORS = {
    "bad_request": BAD_HANDSHAKE,
    "unauthorized": UNAUTHORIZED,
    "forbidden": FORBIDDEN,
    "not_found": NO_SUCH,
    "limit_exceeded": OVER_CAPACITY,
}


def of_error(error: BaseException) -> Ending:
    """Return how a session ends that an error leaves nothing of; one of the server's own gives no reason."""
    if not isinstance(error, RequestError) or error.code == RequestError.code:
        return INTERNAL
    ending = _OF_ERRORS.get(error.code, TRY_LATER)
    return ending.because(str(error) or ending.reason)
