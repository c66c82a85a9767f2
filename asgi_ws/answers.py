"""What every request is answered with when it fails."""

import logging
from typing import Any

from msgspec import UNSET

from asgi_ws.errors import RequestError
from asgi_ws.messages import Error
from asgi_ws.metrics import Metrics
from asgi_ws.patterns import MAX_BYTES
from asgi_ws.session import Session

logger = logging.getLogger("asgi_ws")

Ref = int | str | None


def refuse(
    session: Session, metrics: Metrics, error: BaseException, ref: Ref, channel: str | None = None
) -> None:
    """Answer that a request failed; the connection stays."""
    error = told(error, session)
    metrics.errors[error.code] += 1
    message = Error(
        code=error.code,
        message=str(error) or error.code,
        ref=present(ref),
        channel=UNSET if channel is None or len(channel) > MAX_BYTES else channel,
        retry_after=getattr(error, "retry_after", None) or UNSET,
    )
    session.tell(message)


def told(error: BaseException, session: Session, what: str = "a request") -> RequestError:
    """Return an error as its client may read it.

    What is no `RequestError` is the server's own: it is logged whole, and the client reads nothing of it.
    """
    if isinstance(error, RequestError):
        return error
    logger.error("%s of session %s failed", what, session.id, exc_info=error)
    return RequestError("expected this to work, got an error of the server's; its log has the details")


def present(ref: Ref) -> Any:
    """Return a `ref` as messages have it: absent where the request had none."""
    return UNSET if ref is None else ref
