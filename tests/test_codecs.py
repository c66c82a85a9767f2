"""The two subprotocols say the same: whatever JSON carries, a MessagePack session reads as the same values."""

import base64
import dataclasses
import datetime as dt
import decimal
import enum
import itertools
import json
import math
import uuid
from typing import Any

import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_ws import Binary, TooLarge
from asgi_ws.codecs import CODECS, JSON, MSGPACK, Invalid, brief, encode_data, size_of
from asgi_ws.messages import Error, Ping, Pong, Subscribe, Unsubscribe
from asgi_ws.publication import Publication

MEBIBYTE = 1 << 20


def published(data: Any, **fields: Any) -> Publication:
    encoded, binary = encode_data(data, MEBIBYTE)
    fields = {"channel": "room", "event": "said", "time": 1_700_000_000.25, **fields}
    return Publication(data=encoded, binary=binary, **fields)


def in_json(data: Any) -> Any:
    """The data of an event as a JSON session reads it."""
    return json.loads(JSON.event(published(data)))["data"]


def in_msgpack(data: Any) -> Any:
    """The data of an event as a MessagePack session reads it."""
    return msgspec.msgpack.decode(MSGPACK.event(published(data)))["data"]


# Data, defined by its JSON form.


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int
    y: float


class Line(msgspec.Struct):
    ends: list[Point]
    colour: Colour = Colour.RED


class Author(pydantic.BaseModel):
    name: str
    born: dt.date


class Book(pydantic.BaseModel):
    title: str = pydantic.Field(serialization_alias="heading")
    author: Author
    id: uuid.UUID


class Shelf(pydantic.RootModel[list[Book]]):
    pass


WHEN = dt.datetime(2026, 11, 21, 12, 0, 0, 500_000, tzinfo=dt.UTC)
ID = uuid.UUID("12345678-1234-5678-1234-567812345678")
BOOK = Book(title="Momo", author=Author(name="Ende", born=dt.date(1929, 11, 12)), id=ID)
BOOK_IN_JSON = {"title": "Momo", "author": {"name": "Ende", "born": "1929-11-12"}, "id": str(ID)}

CARRIED = {
    "null": (None, None),
    "a switch": (True, True),
    "text": ("grüß 👋 \u2028 \x00", "grüß 👋 \u2028 \x00"),
    "a number": (-0.5, -0.5),
    "the largest float": (1.7976931348623157e308, 1.7976931348623157e308),
    "not a number": ([math.nan, math.inf, -math.inf], [None, None, None]),
    "a dict": ({"a": {"b": []}}, {"a": {"b": []}}),
    "keys that are no texts": ({1: "a", ID: "b"}, {"1": "a", str(ID): "b"}),
    "a tuple": ((1, (2,)), [1, [2]]),
    "a set": (frozenset({1}), [1]),
    "an enum": (Colour.RED, "red"),
    "a dataclass": (Point(1, 2.5), {"x": 1, "y": 2.5}),
    "a Struct": (Line([Point(1, 2.0)]), {"ends": [{"x": 1, "y": 2.0}], "colour": "red"}),
    "a moment": (WHEN, "2026-11-21T12:00:00.500000Z"),
    "a date": (WHEN.date(), "2026-11-21"),
    "a UUID": (ID, str(ID)),
    "a decimal": (decimal.Decimal("1.10"), "1.10"),
    "bytes within": ({"raw": b"\x00\xff"}, {"raw": "AP8="}),
    "what is JSON already": (msgspec.Raw(b'{"a":[1]}'), {"a": [1]}),
    "a Pydantic model": (BOOK, BOOK_IN_JSON),
    "a Pydantic model within": ({"books": [BOOK]}, {"books": [BOOK_IN_JSON]}),
    "a Pydantic model in a dataclass": (Point(BOOK, 0), {"x": BOOK_IN_JSON, "y": 0}),
    "a Pydantic root model": (Shelf([BOOK]), [BOOK_IN_JSON]),
}


@pytest.mark.parametrize("name", CARRIED)
def test_what_json_carries_arrives_as_the_same_values_in_both(name):
    data, expected = CARRIED[name]
    assert in_json(data) == in_msgpack(data) == expected


@pytest.mark.parametrize("integer", [2**53, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)])
def test_an_integer_within_64_bits_is_exact_in_both(integer):
    assert in_json({"n": [integer]}) == in_msgpack({"n": [integer]}) == {"n": [integer]}
    assert isinstance(in_msgpack(integer), int)


@pytest.mark.parametrize("integer", [2**64, -(2**63) - 1, 10**30, 10**300])
def test_an_integer_beyond_64_bits_is_the_float_that_javascript_reads(integer):
    assert in_json({"n": [integer]}) == {"n": [integer]}
    assert in_msgpack({"n": [integer]}) == {"n": [float(integer)]}


@pytest.mark.parametrize("integer", [10**309, -(10**400)], ids=["above", "below"])
def test_an_integer_beyond_every_float_is_infinite_to_those_who_cannot_read_it(integer):
    """As `JSON.parse` reads it; what must not be is that a codec fails for an event that was accepted."""
    assert in_json([integer]) == [integer]
    assert in_msgpack([integer]) == [math.inf if integer > 0 else -math.inf]


@settings(max_examples=150, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8")),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    )
)
def test_anything_that_json_carries_is_the_same_in_both(data):
    assert in_msgpack(data) == within_64_bits(in_json(data))


def within_64_bits(value: Any) -> Any:
    match value:
        case dict():
            return {key: within_64_bits(item) for key, item in value.items()}
        case list():
            return [within_64_bits(item) for item in value]
        case int() if not -(2**63) <= value < 2**64:
            return float(value)
    return value


@settings(deadline=None)
@given(st.binary())
def test_binary_data_is_bytes_in_msgpack_and_base64_in_json(raw):
    event = json.loads(JSON.event(published(Binary(raw))))
    assert (event["data"], event["binary"]) == (base64.b64encode(raw).decode(), True)
    event = msgspec.msgpack.decode(MSGPACK.event(published(Binary(raw))))
    assert (event["data"], event["binary"]) == (raw, True)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_binary_takes_any_bytes_and_keeps_its_own(kind):
    source = bytearray(b"abc")
    binary = Binary(kind(source))
    source[:] = b"xyz"
    assert binary.value == b"abc"


def test_events_differ_only_in_their_encoding():
    publication = published({"n": 1}, epoch="e", offset=7, previous=6, key="k", sender="7", exclude="nobody")
    assert json.loads(JSON.event(publication)) == msgspec.msgpack.decode(MSGPACK.event(publication)) == {
        "type": "event", "channel": "room", "event": "said", "data": {"n": 1}, "offset": 7,
        "time": 1_700_000_000_250, "from": "7", "id": "k",
    }  # fmt: skip


def test_json_travels_compact_and_as_it_was_encoded():
    assert b'"data":{"b":1,"a":[1,2]},' in JSON.event(published({"b": 1, "a": [1, 2]}))


# What cannot be carried.


class Stranger:
    pass


class Broken(pydantic.BaseModel):
    value: Any


def endless() -> list[Any]:
    data: list[Any] = []
    data.append(data)
    return data


UNCARRIED = {
    "an object": (Stranger(), "Stranger"),
    "an object within": ({"a": [Stranger()]}, "Stranger"),
    "a class": (Point, "type"),
    "a model's class": (Book, "ModelMetaclass"),
    "a generator": ((n for n in ()), "generator"),
    "a lock within a model": (Broken(value=object()), "Broken"),
    "what contains itself": (endless(), "list"),
    "a number that is complex": (1j, "complex"),
    "half a surrogate pair": ("\ud800", "str"),
    "keys of a kind that has no text": ({(1, 2): 3}, "dict"),
    "binary within": ([Binary(b"")], "Binary"),
}


@pytest.mark.parametrize("name", UNCARRIED)
def test_what_json_cannot_carry_is_a_type_error_that_says_what_was_expected_and_got(name):
    data, words = UNCARRIED[name]
    with pytest.raises(TypeError, match="expected .*, got ") as raised:
        encode_data(data, MEBIBYTE)
    assert words in str(raised.value)


@pytest.mark.parametrize("data", ["x" * 98, "é" * 49, Binary(bytes(100)), [1] * 49])
def test_data_may_have_as_many_bytes_as_is_set_and_not_one_more(data):
    encoded, _ = encode_data(data, 100)
    assert len(encoded) in {99, 100}
    with pytest.raises(TooLarge, match=rf"expected .* {len(encoded) - 1} bytes .*, got {len(encoded)}"):
        encode_data(data, len(encoded) - 1)


# Requests.


REQUESTS = {
    "subscribe": ({"type": "subscribe", "channel": "a"}, Subscribe("a")),
    "resume": (
        {"type": "subscribe", "ref": 1, "channel": "a", "epoch": "k3f9", "offset": 41},
        Subscribe("a", 1, "k3f9", 41),
    ),
    "unsubscribe": ({"type": "unsubscribe", "ref": "r", "channel": "a"}, Unsubscribe("a", "r")),
    "ping": ({"type": "ping"}, Ping()),
    "pong": ({"type": "pong"}, Pong()),
}
ENCODE = {JSON: lambda value: json.dumps(value), MSGPACK: msgspec.msgpack.encode}
in_each_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=["json", "msgpack"])


@in_each_codec
@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_is_read(codec, name):
    sent, expected = REQUESTS[name]
    assert list(codec.requests(ENCODE[codec](sent))) == [expected]
    assert list(codec.requests(ENCODE[codec]([sent] * 128))) == [expected] * 128


@in_each_codec
def test_one_bad_request_in_an_array_does_not_spoil_the_others(codec):
    sent = [{"type": "ping"}, {"type": "nonsense", "ref": 5}, 7, {"type": "ping"}]
    first, second, third, fourth = codec.requests(ENCODE[codec](sent))
    assert (first, fourth) == (Ping(), Ping())
    assert (second.ref, third.ref) == (5, None)


@pytest.mark.parametrize("text", [' [{"type":"ping"}]', '\r\n\t[{"type":"ping"} ] '])
def test_an_array_may_have_space_around_it(text):
    assert list(JSON.requests(text)) == [Ping()]


@pytest.mark.parametrize("first", [b"\x93", b"\xdc\x00\x03", b"\xdd\x00\x00\x00\x03"])
def test_an_array_is_known_by_each_of_its_three_forms(first):
    assert list(MSGPACK.requests(first + msgspec.msgpack.encode({"type": "ping"}) * 3)) == [Ping()] * 3


@in_each_codec
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_reading_never_raises_and_never_yields_nothing_for_what_is_no_array(codec, data):
    text = st.text(st.characters(codec="utf-8"))
    payload = data.draw(text | st.binary())
    requests = list(codec.requests(payload))
    assert all(isinstance(request, Invalid | Subscribe | Unsubscribe | Ping | Pong) for request in requests)
    assert all(
        request.message.startswith("expected ") for request in requests if isinstance(request, Invalid)
    )
    assert requests or payload[:1] in ("[", b"\x90", b"\xdc", b"\xdd") or payload.lstrip()[:1] == "["


def test_bytes_are_counted_not_characters():
    assert [size_of(payload) for payload in ("abc", "é", "👋", b"\xff", "")] == [3, 2, 4, 1, 0]


@pytest.mark.parametrize("value", ["x" * 10_000, b"x" * 10_000, ["x"] * 10_000, "\x00" * 100, {"a": 1}, None])
def test_a_value_in_an_error_text_is_short(value):
    assert 0 < len(brief(value)) <= 60


def test_an_answer_says_nothing_that_is_not_set():
    assert json.loads(JSON.encode(Error(code="not_found", message="no"))) == {
        "type": "error", "code": "not_found", "message": "no"
    }  # fmt: skip
    assert msgspec.msgpack.decode(MSGPACK.encode(Pong())) == {"type": "pong"}
    assert msgspec.msgpack.decode(MSGPACK.encode(Pong(ref=1))) == {"type": "pong", "ref": 1}


def test_what_is_no_request_is_told_without_making_much_of_it():
    """Thousands of keys with one hash would take a fifth of a second to be a dict."""
    keys = itertools.islice(itertools.product((-1, -2), repeat=13), 4000)
    many = b"\xde\x0f\xa0" + b"".join(msgspec.msgpack.encode(key) + b"\x01" for key in keys)
    for field in (b"\xa4type", b"\xa3ref"):
        (invalid,) = MSGPACK.requests(b"\x81" + field + many)
        assert invalid.ref is None
        assert invalid.message.startswith("expected a valid request, got: ")  # else it says what it has read
