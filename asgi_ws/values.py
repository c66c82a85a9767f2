"""Data and declared types: what clients send, read as a type; what the application gives, held against one.

What comes from outside is decoded whole, at most 64 deep, its numbers finite. Both codecs carry the values
of JSON, so a type reads the JSON form, whatever the client spoke.
"""

import datetime as dt
import math
import re
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from msgspec import Raw, inspect

from asgi_ws.codecs import MAX_DEPTH, Codec, dump_model
from asgi_ws.errors import BadRequest
from asgi_ws.publication import Binary

MAX_REASON = 400  # characters of an error that may quote what a client sent

# A whole number that floats cannot hold, and browsers therefore neither, has at least so many digits.
_has_long_number = re.compile(rb"[0-9]{309}").search
_place = re.compile(r"(?: - in `(?P<inner>[^`]*)`)?(?: - at `\$(?P<outer>[^`]*)`)?$").search


def receive(codec: Codec, raw: Raw, what: str) -> Any:
    """Decode what a client sent; `what` it is called in errors.

    Raises:
        BadRequest: It is nested too deeply, has a number that is not finite, or what JSON does not have.
    """
    value = codec.value(raw, what)
    if codec.kind == "text":
        if _is_suspect(bytes(raw)):
            _check(value, what)
        return value
    _check(value, what)
    # What MessagePack has besides becomes what it is in JSON; but bytes that are the whole stay bytes.
    return value if isinstance(value, bytes) else msgspec.json.decode(msgspec.json.encode(value))


class Reader:
    """Reads what a client sent as one type.

    Args:
        kind: What msgspec reads, a Pydantic model, or a union of these; `Any` and `Binary` take the whole
            data of a MessagePack client as bytes.

    Raises:
        TypeError: It cannot be read from JSON.
    """

    def __init__(self, kind: Any) -> None:
        self._kind = kind
        self._decoders = [] if kind is Any or kind is Binary else _decoders(kind)

    def __repr__(self) -> str:
        return f"<Reader of {_called(self._kind)}>"

    def __call__(self, value: Any, what: str) -> Any:
        """Return a value from `receive` as the type; `what` it is called in errors.

        Raises:
            BadRequest: It does not fit; the message has the path of the field.
        """
        if not self._decoders:
            return self._any_or_binary(value, what)
        text = msgspec.json.encode(value)
        reasons = []
        for decoder in self._decoders:
            try:
                return decoder.decode(text)
            except msgspec.ValidationError as error:
                reasons.append(_explain(str(error), what))
        raise BadRequest("; or ".join(reasons))

    def _any_or_binary(self, value: Any, what: str) -> Any:
        if isinstance(value, bytes):
            return Binary(value)
        if self._kind is Binary:
            raise BadRequest(f"expected {what} to be bytes, got {type(value).__name__}")
        return value


def conform(data: Any, kind: Any) -> None:
    """Hold what the application gives against a declared type.

    Raises:
        ValueError, TypeError: It is not of that type.
    """
    if kind is Any or _is_instance(data, kind):
        return
    if is_union(kind):
        _conform_to_one(data, typing.get_args(kind))
    else:
        msgspec.convert(msgspec.to_builtins(data, enc_hook=dump_model), kind, dec_hook=_check_model)


def is_union(kind: Any) -> bool:
    """Whether a type is one of several."""
    return typing.get_origin(kind) in {typing.Union, types.UnionType}


def is_model(kind: object) -> bool:
    """Whether a type is a Pydantic model; Pydantic is not a dependency, so it is known by its method."""
    return hasattr(kind, "model_validate_json")


# What comes from outside.


def _is_suspect(text: bytes) -> bool:
    """Whether JSON text may be too deep or have a number too large; never `False` where it is."""
    return text.count(b"[") + text.count(b"{") > MAX_DEPTH or _has_long_number(text) is not None


def _check(value: Any, what: str) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        inner: list[Any] = []
        nested = False
        for one in level:
            if isinstance(one, dict):
                _check_keys(one, what)
                inner += one.values()
                nested = True
            elif isinstance(one, list):
                inner += one
                nested = True
            else:
                _check_plain(one, what)
        if not nested:
            return
        level = inner
    raise BadRequest(f"expected {what} nested at most {MAX_DEPTH} deep, got it deeper")


def _check_keys(value: dict[Any, Any], what: str) -> None:
    for key in value:
        if not isinstance(key, str):
            raise BadRequest(f"expected the keys of {what} to be text, got {type(key).__name__}")


def _check_plain(value: Any, what: str) -> None:
    if isinstance(value, int | float):
        if not _is_finite(value):
            raise BadRequest(f"expected the numbers of {what} to be finite, got one that is not")
    elif value is not None and not isinstance(value, str | bytes | dt.datetime):
        raise BadRequest(f"expected {what} to have values of JSON, got {type(value).__name__}")


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


# Reading as a type.


def _decoders(kind: Any) -> list[msgspec.json.Decoder[Any]]:
    """Return who reads a type: one, or one for each of a union that msgspec cannot tell apart."""
    for unreadable in _custom_types(kind):
        if not is_model(unreadable):
            raise TypeError(f"expected a type that is read from JSON, got {_called(unreadable)}")
    try:
        return [_decoder(kind)]
    except TypeError:
        if len(_alternatives(kind)) == 1:
            raise
    return [_decoder(one) for one in _alternatives(kind)]


def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind, dec_hook=_read_model)


def _custom_types(kind: Any) -> Iterator[Any]:
    """Yield the types within a type that msgspec leaves to a hook."""
    seen: dict[int, Any] = {}
    waiting: list[Any] = [inspect.type_info(one) for one in _alternatives(kind)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, tuple):
            waiting += node
        elif isinstance(node, inspect.Type | inspect.Field) and id(node) not in seen:
            seen[id(node)] = node
            waiting += (getattr(node, name) for name in node.__struct_fields__)
            if isinstance(node, inspect.CustomType):
                yield node.cls


def _alternatives(kind: Any) -> Sequence[Any]:
    return typing.get_args(kind) if is_union(kind) else (kind,)


def _read_model(kind: Any, value: Any) -> Any:
    try:
        return kind.model_validate_json(msgspec.json.encode(value))
    except ValueError as error:
        errors = getattr(error, "errors", None)
        if errors is None:
            raise
        first = errors()[0]
        raise ValueError(f"{first['msg']} - in `{_path(first['loc'])}`") from error


def _path(steps: Sequence[int | str]) -> str:
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return path.replace("`", "'")[:MAX_REASON]


def _explain(error: str, what: str) -> str:
    """Return msgspec's error, or a model's, as *expected … got …*, with the path of the field."""
    found = _place(error)
    assert found is not None  # it matches at the end at least
    reason = error[: found.start()][:MAX_REASON]
    path = what + (found["outer"] or "") + (found["inner"] or "")
    reason = reason[:1].lower() + reason[1:]
    if not reason.startswith("expected"):
        reason = f"expected valid {what}, got: {reason}"
    return f"{reason} - at `{path}`"


# What the application gives.


def _conform_to_one(data: Any, kinds: Sequence[Any]) -> None:
    errors = []
    for kind in kinds:
        try:
            return conform(data, kind)
        except (ValueError, TypeError) as error:
            errors.append(str(error))
    raise TypeError("; ".join(errors))


def _is_instance(data: Any, kind: Any) -> bool:
    try:
        return isinstance(data, kind)
    except TypeError:  # a TypedDict, or a generic
        return False


def _check_model(kind: Any, value: Any) -> Any:
    if not is_model(kind):
        raise TypeError(f"expected {kind.__name__}, got {type(value).__name__}")
    # strict: it is sent as it is, not as it is read
    return kind.model_validate_json(msgspec.json.encode(value), strict=True)


def _called(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and typing.get_origin(kind) is None else str(kind)
