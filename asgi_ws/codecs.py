"""Messages to what travels in a WebSocket message, and back; one object a subprotocol.

Data is defined by its JSON form, made once at the publisher by `encode_data`; a codec wraps that text
into an event without parsing it, or translates it once for everyone who speaks MessagePack.
"""

import base64
import math
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, NamedTuple

import msgspec
from msgspec import UNSET, Raw, Struct

from asgi_ws.errors import BadRequest, TooLarge
from asgi_ws.messages import (
    MAX_REF,
    MAX_REF_BYTES,
    MAX_REQUESTS,
    NOTHING,
    REQUEST_TYPES,
    Event,
    Message,
    Present,
    Request,
)
from asgi_ws.publication import Binary, Publication

Payload = str | bytes
MAX_DEPTH = 64  # of what a request carries for the application
_JSON_SPACE = " \t\r\n"


class Invalid(NamedTuple):
    """A request that is none: the `ref` to answer to, where one could be read, and why."""

    ref: int | str | None
    message: str


class _Envelope(Struct):
    """As much of a request as can be read when the whole cannot."""

    type: Raw = NOTHING
    ref: Raw = NOTHING


class Codec:
    """One subprotocol. Stateless: the two at the end of this module serve every session."""

    subprotocol: ClassVar[str]
    kind: ClassVar[Literal["text", "bytes"]]
    _kind_name: ClassVar[str]
    _null: ClassVar[bytes]

    def encode(self, message: Message | Present) -> bytes:
        """Return a message as it travels, or a part of one; a text one as UTF-8."""
        raise NotImplementedError

    def event(self, publication: Publication) -> bytes:
        """Return a publication as the event that its channel's sessions receive."""
        raise NotImplementedError

    def carry(self, data: bytes, *, binary: bool) -> Raw | str:
        """Return what `encode_data` has made, to be the `data` of a message."""
        raise NotImplementedError

    def value(self, raw: Raw, what: str) -> Any:
        """Decode what a request carries for the application; `what` it is called in errors.

        Raises:
            BadRequest: It is no value.
        """
        try:
            return self._value(bytes(raw))
        except _BAD as error:
            raise BadRequest(
                f"expected {what} that can be read, got something else: {_why(error)}"
            ) from error

    def requests(self, payload: Payload) -> Iterator[Request | Invalid]:
        """Read what a client sent: one request, or an array of up to 128; never raises."""
        if isinstance(payload, str) is not (self.kind == "text"):
            got = "text" if isinstance(payload, str) else "binary"
            yield Invalid(None, f"expected {self._kind_name} messages ({self.subprotocol}), got a {got} one")
        elif self._is_array(payload):
            yield from self._array(payload)
        else:
            yield self._one(payload)

    def _array(self, payload: Payload) -> Iterator[Request | Invalid]:
        try:
            items = self._decode(payload, list[Raw])
        except _BAD as error:
            yield Invalid(None, _reason(error))
            return
        if len(items) > MAX_REQUESTS:
            yield Invalid(None, f"expected at most {MAX_REQUESTS} requests in an array, got {len(items)}")
            return
        for item in items:
            yield self._one(item)

    def _one(self, payload: Payload | Raw) -> Request | Invalid:
        try:
            request: Request = self._decode(payload, Request)
        except _BAD as error:
            return self._invalid(payload, error)
        if isinstance(request.ref, str) and len(request.ref.encode()) > MAX_REF_BYTES:
            return Invalid(
                None, f"expected a ref of at most {MAX_REF_BYTES} bytes, got {len(request.ref.encode())}"
            )
        return request

    def _invalid(self, payload: Payload | Raw, error: Exception) -> Invalid:
        try:
            envelope: _Envelope = self._decode(payload, _Envelope)
            type_, ref = (self._value(bytes(raw) or self._null) for raw in (envelope.type, envelope.ref))
        except _BAD:
            return Invalid(None, _reason(error))
        ref = ref if _is_ref(ref) else None
        if isinstance(type_, str) and type_ in REQUEST_TYPES:
            return Invalid(ref, _reason(error))
        return Invalid(ref, f"expected type to be one of {', '.join(REQUEST_TYPES)}, got {brief(type_)}")

    def _value(self, raw: bytes) -> Any:
        return self._decode(raw, Any)

    def _is_array(self, payload: Payload) -> bool:
        raise NotImplementedError

    def _decode(self, payload: Payload | Raw, type_: Any) -> Any:
        raise NotImplementedError


class JsonCodec(Codec):
    """`asgi-ws.v1.json`: one JSON object a text message."""

    subprotocol = "asgi-ws.v1.json"
    kind = "text"
    _kind_name = "text"
    _null = b"null"

    def __init__(self) -> None:
        self._encode = msgspec.json.Encoder().encode
        self._decoders: dict[Any, Any] = {
            t: msgspec.json.Decoder(t).decode for t in (Request, _Envelope, list[Raw], Any)
        }

    def encode(self, message: Message | Present) -> bytes:
        return self._encode(message)

    def event(self, publication: Publication) -> bytes:
        return self._encode(_event(publication, self.carry(publication.data, binary=publication.binary)))

    def carry(self, data: bytes, *, binary: bool) -> Raw | str:
        return base64.b64encode(data).decode() if binary else Raw(data)

    def _is_array(self, payload: Payload) -> bool:
        assert isinstance(payload, str)
        return payload[:1] == "[" or (payload[:1] in _JSON_SPACE and payload.lstrip(_JSON_SPACE)[:1] == "[")

    def _decode(self, payload: Payload | Raw, type_: Any) -> Any:
        return self._decoders[type_](payload)


class MsgpackCodec(Codec):
    """`asgi-ws.v1.msgpack`: the same objects as binary messages."""

    subprotocol = "asgi-ws.v1.msgpack"
    kind = "bytes"
    _kind_name = "binary"
    _null = b"\xc0"

    def __init__(self) -> None:
        self._encode = msgspec.msgpack.Encoder().encode
        self._decoders: dict[Any, Any] = {
            t: msgspec.msgpack.Decoder(t).decode for t in (Request, _Envelope, list[Raw], dict[str, Raw], Any)
        }

    def encode(self, message: Message | Present) -> bytes:
        return self._encode(message)

    def event(self, publication: Publication) -> bytes:
        data = publication.data
        value = data if publication.binary else msgspec.json.decode(data)
        try:
            return self._encode(_event(publication, value))
        except OverflowError:
            return self._encode(_event(publication, _within_64_bits(value)))

    def carry(self, data: bytes, *, binary: bool) -> Raw | str:
        value = data if binary else msgspec.json.decode(data)
        try:
            return Raw(self._encode(value))
        except OverflowError:
            return Raw(self._encode(_within_64_bits(value)))

    def _value(self, raw: bytes, depth: int = 0) -> Any:
        # Thousands of keys that are no text may all have one hash, and a dict of them takes long to make.
        # So maps of more than 15 (map 16, map 32) are read as what they may be, and only what is around them.
        if b"\xde" not in raw and b"\xdf" not in raw:
            return self._decode(raw, Any)
        if depth > MAX_DEPTH:
            raise RecursionError
        if self._is_array(raw):
            return [self._value(bytes(item), depth + 1) for item in self._decode(raw, list[Raw])]
        if 0x80 <= raw[0] <= 0x8F or raw[0] in {0xDE, 0xDF}:
            items = self._decode(raw, dict[str, Raw]).items()
            return {key: self._value(bytes(item), depth + 1) for key, item in items}
        return self._decode(raw, Any)

    def _is_array(self, payload: Payload) -> bool:
        # https://github.com/msgpack/msgpack/blob/master/spec.md#array-format-family
        assert isinstance(payload, bytes)
        first = payload[0] if payload else 0
        return 0x90 <= first <= 0x9F or first in {0xDC, 0xDD}

    def _decode(self, payload: Payload | Raw, type_: Any) -> Any:
        return self._decoders[type_](payload)


def encode_data(data: Any, max_bytes: int) -> tuple[bytes, bool]:
    """Return an event's data in the form that defines it, and whether that is raw bytes.

    Args:
        data: `Binary`, a Pydantic model, or anything that msgspec can encode.
        max_bytes: `MAX_EVENT_BYTES`.

    Raises:
        TypeError: JSON cannot carry it.
        TooLarge: It is over the limit.
    """
    encoded = data.value if isinstance(data, Binary) else _to_json(data)
    if len(encoded) > max_bytes:
        raise TooLarge(f"expected data of at most {max_bytes} bytes (MAX_EVENT_BYTES), got {len(encoded)}")
    return encoded, isinstance(data, Binary)


def size_of(payload: Payload) -> int:
    """Return how many bytes a message has on its way."""
    return len(payload) if isinstance(payload, bytes) or payload.isascii() else len(payload.encode())


def brief(value: object) -> str:
    """Return a value for an error text, short however long it is."""
    text = repr(value[:80]) if isinstance(value, str | bytes) else type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."


def _to_json(data: Any) -> bytes:
    try:
        return _encoder.encode(data)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise TypeError(f"expected data that JSON can carry, got {type(data).__name__}: {error}") from error


def dump_model(value: Any) -> Any:
    """Return a Pydantic model as msgspec can encode it; `TypeError` for anything else."""
    # Pydantic is not a dependency: its models are known by their method.
    dump = getattr(type(value), "model_dump", None)
    if dump is None:
        raise TypeError(f"{type(value).__name__} is not supported")
    return dump(value, mode="json")


def _event(publication: Publication, data: Any) -> Event:
    return Event(
        channel=publication.channel or UNSET,
        event=publication.event,
        data=data,
        offset=publication.offset or UNSET,
        time=int(publication.time * 1000),
        sender=UNSET if publication.sender is None else publication.sender,
        id=UNSET if publication.key is None else publication.key,
        binary=publication.binary or UNSET,
    )


def _within_64_bits(value: Any) -> Any:
    """MessagePack's integers end at 64 bits; a larger one becomes the float that JavaScript would read."""
    match value:
        case dict():
            return {key: _within_64_bits(item) for key, item in value.items()}
        case list():
            return [_within_64_bits(item) for item in value]
        case int() if not -(2**63) <= value < 2**64:
            try:
                return float(value)
            except OverflowError:
                return math.inf if value > 0 else -math.inf
    return value


def _is_ref(value: object) -> bool:
    if isinstance(value, str):
        return len(value.encode()) <= MAX_REF_BYTES
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_REF


def _why(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "expected a request, got one nested too deeply"
    if isinstance(error, msgspec.ValidationError):
        return f"expected a valid request, got: {error}"
    return f"expected a request, got something else: {error}"


_BAD = (msgspec.MsgspecError, RecursionError, ValueError)
_encoder = msgspec.json.Encoder(enc_hook=dump_model)

JSON = JsonCodec()
MSGPACK = MsgpackCodec()
CODECS = {codec.subprotocol: codec for codec in (JSON, MSGPACK)}
