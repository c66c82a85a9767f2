"""What an application declares about a source: a live generator that clients can watch.

The channel of a source is its name with all of its parameters, `power?interval=0.1&module=4`; `queries` has
the grammar. What runs of it on a node is in `generators`.
"""

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar, cast, get_args

from starlette import convertors

from asgi_ws.errors import BadRequest
from asgi_ws.handlers import Handler, is_session, name_of
from asgi_ws.patterns import Parameter, Pattern, check_channel, check_event
from asgi_ws.publication import Retention, Slow
from asgi_ws.queries import Query, hint_of
from asgi_ws.session import Session

WatchRight = Callable[..., Awaitable[None]]
Right = TypeVar("Right", bound=WatchRight)
# An async generator function; who writes one says that it returns an AsyncIterator.
Generate = Callable[..., AsyncIterator[Any]]

_NEVER_QUERIES = {convertors.IntegerConvertor, convertors.FloatConvertor, convertors.UUIDConvertor}


class Source:
    """A declared source: one generator per node and parameter set, however many watch.

    Args:
        name: What stands before the `?`.
        function: An async generator function. Its parameters are annotated as bool, int, float, str, UUID,
            an enum or a Literal of int or str, or one of these or None; none of them is a `Session`.
        max_instances: How many of its generators may run at once on a node, 1 at least.
        event: What its events are called; `None`: like the source.
        slow: What is done with a client that is too slow for it, as for a `Channel`; there is no history to
            feed it from, so `resync` disconnects.
        place: Where it was declared, as in `app.py:12`.

    Raises:
        TypeError: The function is no async generator function, or takes what a name cannot spell.
        ValueError: A name is none, or another argument cannot be.
    """

    own = False
    asks = True
    has_snapshot = False
    presence = False
    retention = Retention(0, 0.0)

    def __init__(
        self,
        name: str,
        function: Generate,
        *,
        max_instances: int = 64,
        event: str | None = None,
        slow: Slow = "latest",
        place: str = "?",
    ) -> None:
        self.name = _check_name(name, place)
        self.function = cast("Callable[..., AsyncGenerator[Any, None]]", _check_function(name, function))
        self.max_instances = _check_instances(max_instances)
        self.event = _check_event(name, event)
        self.slow: Slow = _check_slow(slow)
        self.place = place
        self.query = Query(function, f"source {name!r}")
        self._right: Handler | None = None

    def __repr__(self) -> str:
        return f"<Source {self.name!r} declared at {self.place}>"

    def subscribe_right(self, right: Right) -> Right:
        """Decorate the function that is asked whether a session may watch.

        It takes a `Session` and any of the source's parameters, and raises `Forbidden` to refuse. It is asked
        for each session, before the generator is started or joined.

        Raises:
            TypeError: It is not async, or takes what cannot be given.
            ValueError: There is one already.
        """
        what = f"the subscribe_right of source {self.name!r}"
        if self._right is not None:
            raise ValueError(f"expected {what} to be one function, got {name_of(right)} besides")
        self._right = Handler(right, what, optional=self.query.names)
        return right

    def name_for(self, params: Mapping[str, str]) -> str:
        """Return the full name for parameters as text, such as a URL's; what is missing has its default.

        Raises:
            BadRequest: A parameter is missing, is of another type, or is none of the source's.
        """
        return self._name(self.query.read(params))

    def render(self, /, **params: Any) -> str:
        """Return the full name for parameters as values; what is missing has its default.

        Raises:
            TypeError: A parameter is missing, or is none of the source's.
            ValueError: A value is not of its parameter's type, or the name is too long.
        """
        try:
            return self.complete(self._name(self.query.fill(params)))
        except BadRequest as error:
            raise ValueError(str(error)) from error

    def read(self, name: str) -> dict[str, Any]:
        """Return the values of all parameters in a name, full or shorter.

        Raises:
            BadRequest: It is no name, or a parameter is missing, is of another type, or is none of the
                source's.
        """
        return self.query.read(self.query.split(check_channel(name).partition("?")[2]))

    def complete(self, name: str) -> str:
        """Return the full name for a shorter one; see `read`."""
        return self._name(self.read(name))

    async def authorize(self, session: Session, params: Mapping[str, Any]) -> None:
        """Ask whether a session may watch; whatever the application's function raises says no."""
        if self._right is not None:
            await self._right(session, params)

    def rivals(self, pattern: Pattern) -> bool:
        """Whether a channel's pattern could answer for a name of this source, full or shorter."""
        *heads, last = Pattern(self.name).pieces
        for piece, text in zip(pattern.pieces, heads, strict=False):
            if isinstance(piece, Parameter) and piece.rest:
                return True
            if piece != text and not (isinstance(piece, Parameter) and piece.fits(str(text))):
                return False
        beyond = pattern.pieces[len(heads) :]
        return pattern.match(self.name) is not None or bool(beyond and _may_query(beyond[0], f"{last}?"))

    def _name(self, params: Mapping[str, Any]) -> str:
        query = self.query.write(params)
        return check_channel(f"{self.name}?{query}" if query else self.name)


def _may_query(piece: str | Parameter, begin: str) -> bool:
    """Whether a piece of a pattern could stand for a source's last segment and the `?` behind it."""
    if isinstance(piece, str):
        return piece.startswith(begin)
    return piece.kind not in _NEVER_QUERIES


def _check_name(name: str, place: str) -> str:
    try:
        check_channel(name)
    except BadRequest as error:
        raise ValueError(f"{place}: {error}") from None
    if set(name) & set("?{}"):
        raise ValueError(f"{place}: expected the name of a source to be without ? {{ }}, got {name!r}")
    return name


def _check_function(name: str, function: Generate) -> Generate:
    if not inspect.isasyncgenfunction(function):
        raise TypeError(
            f"expected source {name!r} to be an async generator function (async def with a yield), "
            f"got {name_of(function)}"
        )
    for parameter in inspect.signature(function).parameters.values():
        if is_session(hint_of(function, parameter)):
            raise TypeError(
                f"expected the generator of source {name!r} to take no Session, got {parameter}: all who "
                f"watch share it; @{name_of(function)}.subscribe_right is asked for each"
            )
    return function


def _check_instances(max_instances: int) -> int:
    if type(max_instances) is not int or max_instances < 1:
        raise ValueError(f"expected max_instances to be an integer of 1 or more, got {max_instances!r}")
    return max_instances


def _check_event(name: str, event: str | None) -> str:
    try:
        return check_event(name if event is None else event)
    except BadRequest as error:
        hint = "; event= gives its events another name than the source's" if event is None else ""
        raise ValueError(f"{error}{hint}") from None


def _check_slow(slow: Slow) -> Slow:
    if slow not in get_args(Slow):
        raise ValueError(f"expected slow to be {', '.join(get_args(Slow))}, got {slow!r}")
    return slow
