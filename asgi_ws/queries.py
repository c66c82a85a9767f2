"""The parameters behind a source's name, as `interval=0.1&module=4`: their values, and how these are spelt.

A value has one spelling, the one that its type writes, percent-escaped; parameters stand in the order of
their names, defaults included. What is read may be spelt otherwise (`module=04`, `+` for a space), and
leave out what has a default: the values are what counts. `None` has no spelling: only a parameter whose
default it is may be `None`, and then it is left out.
"""

import functools
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import quote, unquote_plus
from uuid import UUID

import msgspec

from asgi_ws.codecs import brief
from asgi_ws.errors import BadRequest

_is_integer = re.compile(r"[+-]?[0-9]+").fullmatch
_is_number = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?").fullmatch


class Kind(NamedTuple):
    """A type of parameter: what it expects, and both ways between text and value.

    `read` raises `ValueError` for text that is none of it, `write` for a value that is none of it.
    """

    expected: str
    read: Callable[[str], Any]
    write: Callable[[Any], str]


class _Parameter(NamedTuple):
    name: str
    kind: Kind
    default: Any  # inspect.Parameter.empty: it must be given


class Query:
    """The parameters of a function, each of a type that can be written into a name and read back.

    Args:
        function: Whose parameters they are.
        what: What these belong to in errors, as in "source 'power'".

    Raises:
        TypeError: A parameter is of a type that cannot be spelt, or has a default that is not of its type.
    """

    def __init__(self, function: Callable[..., Any], what: str) -> None:
        self._what = what
        signature = inspect.signature(function)
        found = (_parameter(function, parameter) for parameter in signature.parameters.values())
        self._parameters = {one.name: one for one in sorted(found, key=lambda one: one.name)}

    def __repr__(self) -> str:
        return f"<Query {', '.join(self.names) or 'without parameters'}>"

    @property
    def names(self) -> list[str]:
        """The parameters' names, sorted."""
        return list(self._parameters)

    def split(self, text: str) -> dict[str, str]:
        """Return the parts of a query, by name.

        Raises:
            BadRequest: One stands there twice, or is no UTF-8.
        """
        parts: dict[str, str] = {}
        for part in filter(None, text.split("&")):
            name, value = self._unescape(part)
            if name in parts:
                raise BadRequest(f"expected each parameter of {self._what} once, got {brief(name)} twice")
            parts[name] = value
        return parts

    def read(self, parts: Mapping[str, str]) -> dict[str, Any]:
        """Return the values of all parameters, defaults included.

        Raises:
            BadRequest: One is missing, is of another type, or is none of these; the message names it.
        """
        for name in parts:
            if name not in self._parameters:
                expected = f"a parameter of {self._what} ({', '.join(self.names) or 'it has none'})"
                raise BadRequest(f"expected {expected}, got {brief(name)}")
        return {name: self._read(one, parts.get(name)) for name, one in self._parameters.items()}

    def write(self, params: Mapping[str, Any]) -> str:
        """Return the one spelling of these values.

        Raises:
            ValueError: One is not of its parameter's type.
        """
        given = [(one, params[one.name]) for one in self._parameters.values()]
        return "&".join(self._write(one, value) for one, value in given if value is not None)

    def fill(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return all parameters, the defaults of those that are not given included.

        Raises:
            TypeError: One is missing, or there is none of this name.
        """
        filled = {one.name: params.get(one.name, one.default) for one in self._parameters.values()}
        if params.keys() - filled.keys() or inspect.Parameter.empty in filled.values():
            raise TypeError(f"expected {', '.join(self.names)} for {self._what}, got {', '.join(params)}")
        return filled

    def _unescape(self, part: str) -> tuple[str, str]:
        name, _, value = part.partition("=")
        try:
            return unquote_plus(name, errors="strict"), unquote_plus(value, errors="strict")
        except UnicodeDecodeError as error:
            raise BadRequest(
                f"expected UTF-8 in the parameters of {self._what}, got {brief(part)}"
            ) from error

    def _read(self, one: _Parameter, text: str | None) -> Any:
        if text is None:
            if one.default is inspect.Parameter.empty:
                raise BadRequest(self._unfit(one, "none"))
            return one.default
        try:
            return one.kind.read(text)
        except ValueError as error:
            raise BadRequest(self._unfit(one, brief(text))) from error

    def _write(self, one: _Parameter, value: Any) -> str:
        try:
            return f"{quote(one.name, safe='')}={quote(one.kind.write(value), safe='')}"
        except ValueError as error:
            raise ValueError(self._unfit(one, repr(value))) from error

    def _unfit(self, one: _Parameter, got: str) -> str:
        return f"expected parameter {one.name!r} of {self._what} to be {one.kind.expected}, got {got}"


def _parameter(function: Callable[..., Any], parameter: inspect.Parameter) -> _Parameter:
    where = f"parameter {parameter.name!r} of {getattr(function, '__qualname__', function)}"
    if parameter.kind not in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}:
        raise TypeError(f"expected {where} to be one that is given by its name, got {parameter}")
    hint, optional = _without_none(hint_of(function, parameter))
    kind = _kind_of(hint)
    if kind is None:
        raise TypeError(
            f"expected {where} to be annotated as bool, int, float, str, UUID, an enum or a Literal of int "
            f"or str, or one of these or None, got {parameter}: a name has to spell it"
        )
    if optional and parameter.default is not None:
        raise TypeError(f"expected {where} to have the default None, got {parameter}: no text is None")
    return _Parameter(parameter.name, kind, _default(where, kind, parameter.default, optional))


def _default(where: str, kind: Kind, default: Any, optional: bool) -> Any:
    if default is inspect.Parameter.empty or (optional and default is None):
        return default
    try:
        value = kind.read(kind.write(default))
    except ValueError as error:
        raise TypeError(f"expected the default of {where} to be {kind.expected}, got {default!r}") from error
    return value


def hint_of(function: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    """Return one parameter's type, whether or not the other annotations mean anything at run time."""
    holder = types.SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    while isinstance(function, functools.partial):
        function = function.func
    try:
        hints = typing.get_type_hints(holder, getattr(function, "__globals__", {}), include_extras=True)
    except NameError:  # an annotation that only a type checker can see
        return parameter.annotation
    return hints[parameter.name]


def _without_none(hint: Any) -> tuple[Any, bool]:
    if typing.get_origin(hint) not in {typing.Union, types.UnionType}:
        return hint, False
    kinds = typing.get_args(hint)
    others = [kind for kind in kinds if kind is not types.NoneType]
    return (others[0], True) if len(others) == 1 and len(kinds) == 2 else (hint, False)


def _kind_of(hint: Any) -> Kind | None:
    if typing.get_origin(hint) is Annotated:
        return _annotated(hint)
    if typing.get_origin(hint) is Literal:
        return _choice(typing.get_args(hint))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _choice(tuple(hint))
    return _KINDS.get(hint) if isinstance(hint, type) else None


def _annotated(hint: Any) -> Kind | None:
    """Return the kind of an `Annotated`; msgspec's constraints (`Meta(ge=1)`) are checked."""
    kind = _kind_of(hint.__origin__)
    metas = tuple(extra for extra in hint.__metadata__ if isinstance(extra, msgspec.Meta))
    if kind is None or not metas:
        return kind
    constrained = Annotated[(hint.__origin__, *metas)]
    msgspec.json.Decoder(constrained)  # raises TypeError for a constraint that cannot be
    expected = f"{kind.expected} ({', '.join(map(_constraints, metas))})"

    def read(text: str) -> Any:
        value = kind.read(text)
        msgspec.convert(value, constrained)
        return value

    return Kind(expected, read, kind.write)


def _constraints(meta: msgspec.Meta) -> str:
    names = ("gt", "ge", "lt", "le", "multiple_of", "pattern", "min_length", "max_length")
    given = {name: getattr(meta, name) for name in names}
    return ", ".join(f"{name} {value}" for name, value in given.items() if value is not None)


def _choice(values: tuple[Any, ...]) -> Kind | None:
    """Return the kind of an enum or a Literal: each of its values has a text of its own."""
    texts = [_text_of(value) for value in values]
    if not texts or None in texts or len(set(texts)) < len(texts):
        return None
    by_text = dict(zip(texts, values, strict=True))

    def read(text: str) -> Any:
        try:
            return by_text[text]
        except KeyError as error:
            raise ValueError(text) from error

    def write(value: Any) -> str:
        for text, known in by_text.items():
            if type(known) is type(value) and known == value and text is not None:
                return text
        raise ValueError(value)

    return Kind(f"one of {', '.join(map(str, texts))}", read, write)


def _text_of(value: Any) -> str | None:
    value = value.value if isinstance(value, Enum) else value
    return str(value) if type(value) in {int, str} else None


def _read_bool(text: str) -> bool:
    if text not in {"true", "false"}:
        raise ValueError(text)
    return text == "true"


def _write_bool(value: bool) -> str:
    return "true" if value else "false"


def _read_int(text: str) -> int:
    if not _is_integer(text):
        raise ValueError(text)
    return int(text)


def _read_float(text: str) -> float:
    if not _is_number(text):
        raise ValueError(text)
    return _finite(float(text))


def _write_float(value: float) -> str:
    """`0.1`, `1.0`, `1e16`: the `+` of an exponent would have to be escaped."""
    try:
        return repr(_finite(float(value))).replace("e+", "e")
    except OverflowError as error:
        raise ValueError(value) from error


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(value)
    return value + 0.0  # there is one zero: -0.0 and 0.0 are equal, and would have two names


def _read_str(text: str) -> str:
    text.encode()  # a lone surrogate can be in no name
    return text


def _writer(kind: Any, write: Callable[[Any], str]) -> Callable[[Any], str]:
    """Return what writes values of a type, and of no other: a bool is no number here."""

    def check_and_write(value: Any) -> str:
        if not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool):
            raise ValueError(value)
        return write(value)

    return check_and_write


_KINDS = {
    bool: Kind("true or false", _read_bool, _writer(bool, _write_bool)),
    int: Kind("an integer", _read_int, _writer(int, int.__repr__)),
    float: Kind("a finite number", _read_float, _writer(float | int, _write_float)),
    str: Kind("text", _read_str, _writer(str, str.__str__)),
    UUID: Kind("a UUID", UUID, _writer(UUID, str)),
}
