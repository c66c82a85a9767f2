"""Commands: the application's functions that a client calls by name, typed by their annotations."""

import dataclasses
import inspect
import typing
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from msgspec import UNSET, Struct

from asgi_ws.errors import BadRequest
from asgi_ws.handlers import hints_of, is_session, name_of
from asgi_ws.patterns import check_event
from asgi_ws.session import Session
from asgi_ws.values import Reader, conform, is_model, is_union

Function = Callable[..., Awaitable[Any]]


class Command:
    """A function that a client calls.

    It has a `Session` by annotation, if it wants it, and either one struct, dataclass, TypedDict or Pydantic
    model, which is the whole `params`, or parameters each of which is a field of `params`.

    Args:
        name: 1–64 of `A–Z a–z 0–9 _ . : -`.
        function: The application's.
        place: Where it was declared, as in `app.py:12`.

    Raises:
        ValueError: The name is none.
        TypeError: The function is not async, or takes what a client cannot give.
    """

    def __init__(self, name: str, function: Function, place: str = "?") -> None:
        self.name = _check_name(name, place)
        self.place = place
        if not inspect.iscoroutinefunction(function):
            raise TypeError(f"{place}: expected command {name!r} to be async, got {name_of(function)}")
        self._function = function
        try:
            self._session, fields, self._returns = _parameters(function)
            self._whole = _whole(fields)
            self._names = list(fields)
            self._read = Reader(_struct(fields) if self._whole is None else self._whole.annotation)
        except TypeError as error:
            raise TypeError(f"{place}: command {name!r}: {error}") from error

    def __repr__(self) -> str:
        return f"<Command {self.name!r} declared at {self.place}>"

    async def __call__(self, session: Session, params: Any) -> Any:
        """Call it with what a client sent, as `values.receive` returns it.

        Raises:
            BadRequest: The parameters do not fit; the message names the field.
            TypeError: The result is not what the function's annotation says.
        """
        given = self._given(self._read(params, "params"))
        if self._session is not None:
            given[self._session] = session
        result = await self._function(**given)
        self._check(result)
        return result

    def _given(self, params: Any) -> dict[str, Any]:
        if self._whole is not None:
            return {self._whole.name: params}
        values = ((name, getattr(params, name)) for name in self._names)
        return {name: value for name, value in values if value is not UNSET}

    def _check(self, result: Any) -> None:
        try:
            conform(result, self._returns)
        except (ValueError, TypeError) as error:
            expected = getattr(self._returns, "__name__", self._returns)
            got = f"{type(result).__name__}: {error}"
            raise TypeError(
                f"{self.place}: expected the result of command {self.name!r} to be {expected}, got {got}"
            ) from error


Fields = dict[str, inspect.Parameter]


def _check_name(name: str, place: str) -> str:
    try:
        return check_event(name)
    except BadRequest as error:
        raise ValueError(f"{place}: {str(error).replace('an event', 'a command', 1)}") from error


def _parameters(function: Function) -> tuple[str | None, Fields, Any]:
    """Return which parameter is the session, those that a client gives, and what is returned."""
    plain, hints = hints_of(function), hints_of(function, extras=True)
    sessions: list[str] = []
    fields: Fields = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}:
            raise TypeError(f"expected parameters that can be given by name, got {parameter}")
        hint = hints.get(parameter.name, Any)
        if is_session(plain.get(parameter.name)):
            sessions.append(parameter.name)
        else:
            fields[parameter.name] = parameter.replace(annotation=_resolved(hint, str(parameter)))
    if len(sessions) > 1:
        raise TypeError(f"expected one Session at most, got {' and '.join(sessions)}")
    return (sessions[0] if sessions else None), fields, _resolved(hints.get("return", Any), "the result")


def _resolved(hint: Any, of: str) -> Any:
    if isinstance(hint, str | typing.ForwardRef):
        raise TypeError(f"expected types that exist when the program runs, got {hint!r} for {of}")
    return hint


def _whole(fields: Fields) -> inspect.Parameter | None:
    """Return the parameter that is the whole `params`, if there is one."""
    if len(fields) != 1:
        return None
    (parameter,) = fields.values()
    kind = parameter.annotation
    if _is_object(kind):
        if parameter.default is not parameter.empty:
            raise TypeError(f"expected the whole params to have no default, got {parameter}")
        return parameter
    if is_union(kind) and any(map(_is_object, typing.get_args(kind))):
        raise TypeError(f"expected the whole params as one type, or fields, got {parameter}")
    return None


def _is_object(kind: Any) -> bool:
    """Whether a type has named fields of its own."""
    if typing.get_origin(kind) is typing.Annotated:
        return _is_object(typing.get_args(kind)[0])
    kind = typing.get_origin(kind) or kind
    if not isinstance(kind, type):
        return False
    if hasattr(kind, "__pydantic_validator__") and not is_model(kind):
        raise TypeError(f"expected a Pydantic model (BaseModel), got {kind.__name__}, a Pydantic dataclass")
    return (
        issubclass(kind, Struct)
        or dataclasses.is_dataclass(kind)
        or typing.is_typeddict(kind)
        or is_model(kind)
    )


def _struct(fields: Fields) -> type[Struct]:
    """Return a struct with the parameters as its fields; one that is left out is UNSET."""
    required = [(name, one.annotation) for name, one in fields.items() if one.default is one.empty]
    optional = [(name, one.annotation, UNSET) for name, one in fields.items() if one.default is not one.empty]
    return msgspec.defstruct("params", [*required, *optional], kw_only=True)
