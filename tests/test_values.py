"""Data from outside: what is let in, how it is read as a type, and what is said where it does not fit."""

import dataclasses
import datetime as dt
import enum
import itertools
import math
import typing
import uuid
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_ws import BadRequest, Binary
from asgi_ws.codecs import JSON, MSGPACK
from asgi_ws.values import MAX_DEPTH, Reader, conform, receive

RAW = {JSON: msgspec.json.encode, MSGPACK: msgspec.msgpack.encode}
CODECS = pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=["json", "msgpack"])


def received(codec, value):
    return receive(codec, msgspec.Raw(RAW[codec](value)), "data")


def nested(depth, kind=list):
    value = 1
    for _ in range(depth):
        value = [value] if kind is list else {"a": value}
    return value


def depth_of(value):
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth_of, inner), default=0)


finite = st.none() | st.booleans() | st.text() | st.floats(allow_nan=False, allow_infinity=False)
plain = finite | st.integers(-(2**63), 2**64 - 1)
values = st.recursive(plain, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


class TestReceiving:
    @given(values)
    def test_both_codecs_bring_the_same_value(self, value):
        assert received(JSON, value) == received(MSGPACK, value) == value

    @CODECS
    @pytest.mark.parametrize("kind", [list, dict])
    def test_64_deep_is_taken_and_65_is_not(self, codec, kind):
        assert received(codec, nested(MAX_DEPTH, kind)) == nested(MAX_DEPTH, kind)
        for depth in (MAX_DEPTH + 1, 300):
            with pytest.raises(BadRequest, match="expected data nested at most 64 deep"):
                received(codec, nested(depth, kind))

    @CODECS
    def test_an_empty_container_has_a_depth_too(self, codec):
        def wrap(inner, times):
            for _ in range(times):
                inner = [inner]
            return inner

        assert received(codec, wrap([], MAX_DEPTH - 1)) == wrap([], MAX_DEPTH - 1)
        with pytest.raises(BadRequest, match="deep"):
            received(codec, wrap([], MAX_DEPTH))

    @given(st.recursive(plain, lambda inner: st.lists(inner, max_size=2), max_leaves=3), st.integers(55, 70))
    def test_the_depth_is_that_of_the_deepest_place(self, value, times):
        for _ in range(times):
            value = [0, value]
        for codec in (JSON, MSGPACK):
            if depth_of(value) <= MAX_DEPTH:
                assert received(codec, value) == value
            else:
                with pytest.raises(BadRequest, match="deep"):
                    received(codec, value)

    @CODECS
    def test_what_is_far_too_deep_for_any_decoder_is_a_bad_request(self, codec):
        text = b"[" * 20_000 + b"]" * 20_000 if codec is JSON else b"\x91" * 20_000 + b"\x01"
        if codec is MSGPACK:
            with pytest.raises(BadRequest, match="nested too deeply"):
                receive(codec, msgspec.Raw(b"\x91" * 300 + b"\xcc\xde"), "data")
        with pytest.raises(BadRequest, match="expected data that can be read.*nested too deeply"):
            receive(codec, msgspec.Raw(text), "data")

    def test_brackets_within_text_are_not_depth(self):
        assert received(JSON, "[{" * 1000) == "[{" * 1000

    @pytest.mark.parametrize("text", ["1e999", "-1e999", "9" * 309, "-" + "9" * 400, "[1, %s]" % ("9" * 350)])
    def test_a_number_that_is_not_finite_in_a_browser_is_refused_in_json(self, text):
        with pytest.raises(BadRequest, match="(finite|out of range)"):
            receive(JSON, msgspec.Raw(text.encode()), "data")

    def test_a_large_number_that_a_float_holds_is_taken(self):
        number = "1" + "0" * 308
        assert receive(JSON, msgspec.Raw(number.encode()), "data") == 10**308
        assert receive(JSON, msgspec.Raw(f'"{number}0"'.encode()), "data") == number + "0"

    @pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
    def test_a_number_that_is_not_finite_is_refused_in_msgpack(self, number):
        for value in (number, [number], {"a": {"b": [1, number]}}):
            with pytest.raises(BadRequest, match="expected the numbers of data to be finite"):
                received(MSGPACK, value)

    @pytest.mark.parametrize("key", [1, None, 1.5, b"a", (1, 2)])
    def test_keys_are_text(self, key):
        with pytest.raises(BadRequest, match="expected the keys of data to be text"):
            received(MSGPACK, {"a": {key: 1}})

    def test_keys_that_all_have_one_hash_are_not_made_a_dict_of(self):
        keys = itertools.islice(itertools.product((-1, -2), repeat=13), 4000)
        many = b"\xde\x0f\xa0" + b"".join(msgspec.msgpack.encode(key) + b"\x01" for key in keys)
        for payload in (many, b"\x91" + many, b"\x81\xa1a" + many):
            with pytest.raises(BadRequest, match="Expected `str`, got `array` - at `key`"):
                receive(MSGPACK, msgspec.Raw(payload), "data")

    @given(values | st.dictionaries(st.text(), st.lists(values), min_size=16))
    def test_large_maps_are_read_as_they_are(self, value):
        for around in (value, [value, {"ސ߀": value}], {str(n): value for n in range(20)}):
            assert received(MSGPACK, around) == around

    def test_bytes_and_times_become_what_they_are_in_json(self):
        now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
        assert received(MSGPACK, {"at": now, "raw": [b"ab"]}) == {
            "at": "2026-01-01T00:00:00Z",
            "raw": ["YWI="],
        }
        assert received(MSGPACK, now) == "2026-01-01T00:00:00Z"
        assert received(MSGPACK, b"ab") == b"ab"

    def test_what_json_does_not_have_is_refused(self):
        with pytest.raises(BadRequest, match="expected data to have values of JSON, got Ext"):
            received(MSGPACK, [msgspec.msgpack.Ext(5, b"x")])

    @pytest.mark.parametrize(
        "text", [b'"\\ud800"', b'"\\ud800\\u0041"', b"{", b"[1,]", b"nan", b'"\xff"', b"\x00"]
    )
    def test_text_that_is_no_json_is_refused(self, text):
        with pytest.raises(BadRequest, match="expected data that can be read, got something else"):
            receive(JSON, msgspec.Raw(text), "data")

    @pytest.mark.parametrize("text", [b"\xa1\xff", b"\xc1", b"\x92\x01"])
    def test_bytes_that_are_no_msgpack_are_refused(self, text):
        with pytest.raises(BadRequest, match="expected data"):
            receive(MSGPACK, msgspec.Raw(text), "data")

    def test_the_last_of_equal_keys_is_what_counts(self):
        assert receive(JSON, msgspec.Raw(b'{"a":1,"a":2,"__proto__":{"x":1}}'), "data") == {
            "a": 2,
            "__proto__": {"x": 1},
        }

    @given(st.binary(max_size=60))
    def test_whatever_comes_it_is_a_value_or_a_bad_request(self, payload):
        for codec in (JSON, MSGPACK):
            try:
                value = receive(codec, msgspec.Raw(payload), "data")
            except BadRequest as error:
                assert str(error).startswith("expected ")
            else:
                assert depth_of(value) <= MAX_DEPTH
                msgspec.json.encode(value)


class Colour(enum.Enum):
    RED = "red"


class Point(msgspec.Struct):
    x: int
    y: Annotated[int, msgspec.Meta(ge=0)] = 0


class Other(msgspec.Struct):
    name: str


@dataclasses.dataclass
class Line:
    points: list[Point]
    colour: Colour = Colour.RED


class Row(TypedDict):
    id: uuid.UUID
    at: dt.datetime


class Item(pydantic.BaseModel):
    id: int
    tags: list[int] = []

    @pydantic.field_validator("id")
    @classmethod
    def even(cls, value):
        if value % 2:
            raise ValueError("it must be even")
        return value


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)
    at: dt.datetime


class Basket(msgspec.Struct):
    items: list[Item]


class Broken(pydantic.BaseModel):
    id: int

    @pydantic.field_validator("id")
    @classmethod
    def fail(cls, value):
        raise RuntimeError("the database's password is hunter2")


class Picky(msgspec.Struct):
    n: int

    def __post_init__(self):
        if self.n == 13:
            raise ValueError("it must not be 13")


class TestReading:
    @pytest.mark.parametrize(
        ("kind", "value", "expected"),
        [
            (Any, [1, {"a": None}], [1, {"a": None}]),
            (int, 5, 5),
            (Point, {"x": 1, "z": 2}, Point(1)),
            (Line, {"points": [{"x": 1}], "colour": "red"}, Line([Point(1)])),
            (dt.timedelta, "PT5S", dt.timedelta(seconds=5)),
            (bytes, "YQ==", b"a"),
            (bytes, b"a", b"a"),
            (Item, {"id": 2, "tags": ["1"], "more": 1}, Item(id=2, tags=[1])),
            (Strict, {"at": "2026-01-01T00:00:00Z"}, Strict(at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC))),
            (Basket, {"items": [{"id": 2}]}, Basket([Item(id=2)])),
            (Item | None, None, None),
            (Point | Other, {"name": "n"}, Other("n")),
            (Point | Other | None, {"x": 1}, Point(1)),
            (Item | int, 5, 5),
            (Literal["a"], "a", "a"),
            (dict[str, Any], {"__proto__": {"a": 1}}, {"__proto__": {"a": 1}}),
        ],
    )
    def test_a_value_becomes_the_type(self, kind, value, expected):
        got = Reader(kind)(value, "data")
        assert got == expected
        assert type(got) is type(expected)

    def test_a_typed_dict_leaves_out_what_it_does_not_know(self):
        value = {"id": "00000000-0000-0000-0000-000000000001", "at": "2026-01-01T00:00:00Z", "admin": True}
        assert Reader(Row)(value, "data") == {
            "id": uuid.UUID(int=1),
            "at": dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        }

    @pytest.mark.parametrize(
        ("kind", "value", "message"),
        [
            (Point, {"x": "1"}, "expected `int`, got `str` - at `params.x`"),
            (Point, {}, "expected valid params, got: object missing required field `x` - at `params`"),
            (Point, [1], "expected `object`, got `array` - at `params`"),
            (Point, {"x": 1, "y": -1}, "expected `int` >= 0 - at `params.y`"),
            (Line, {"points": [{"x": 1}, {"x": None}]}, "expected `int`, got `null` - at `params.points[1].x`"),
            (Line, {"points": [], "colour": "blue"}, "expected valid params, got: invalid enum value 'blue' - at `params.colour`"),
            (Row, {"id": 5, "at": ""}, "expected `uuid`, got `int` - at `params.id`"),
            (Item, {}, "expected valid params, got: field required - at `params.id`"),
            (Item, {"id": 1}, "expected valid params, got: value error, it must be even - at `params.id`"),
            (
                Basket,
                {"items": [{"id": 2}, {"id": 2, "tags": [1, "x"]}]},
                "expected valid params, got: input should be a valid integer, unable to parse string as an integer - at `params.items[1].tags[1]`",
            ),
            (Picky, {"n": 13}, "expected valid params, got: it must not be 13 - at `params`"),
            (Point | Other, {}, "expected valid params, got: object missing required field `x` - at `params`; or expected valid params, got: object missing required field `name` - at `params`"),
            (Binary, "text", "expected params to be bytes, got str"),
        ],
    )  # fmt: skip
    def test_what_does_not_fit_is_told_with_the_path_of_the_field(self, kind, value, message):
        with pytest.raises(BadRequest) as caught:
            Reader(kind)(value, "params")
        assert str(caught.value) == message

    @pytest.mark.parametrize("kind", [Colour, Literal["a"]])
    def test_what_a_client_sent_is_quoted_in_part_only(self, kind):
        with pytest.raises(BadRequest) as caught:
            Reader(kind)("x" * 60_000, "params")
        assert len(str(caught.value)) < 600

    def test_a_path_that_a_client_made_is_short_and_has_no_quotes_of_ours(self):
        class Tagged(pydantic.BaseModel):
            tags: dict[str, int]

        with pytest.raises(BadRequest) as caught:
            Reader(Tagged)({"tags": {"`" * 60_000: "x"}}, "params")
        assert str(caught.value).endswith("'`")
        assert len(str(caught.value)) < 1000

    def test_an_error_within_the_application_s_own_validation_is_no_bad_request(self):
        with pytest.raises(RuntimeError, match="hunter2"):
            Reader(Broken)({"id": 1}, "params")

    def test_a_model_of_another_kind_tells_by_its_value_error(self):
        class Homemade:
            @classmethod
            def model_validate_json(cls, text):
                raise ValueError("never")

        with pytest.raises(BadRequest, match="expected valid params, got: never - at `params.a`"):
            Reader(msgspec.defstruct("Around", [("a", Homemade)]))({"a": 1}, "params")

    @pytest.mark.parametrize("kind", [Any, Binary])
    def test_bytes_are_binary_data_where_no_other_type_is_declared(self, kind):
        got = Reader(kind)(b"ab", "data")
        assert isinstance(got, Binary)
        assert got.value == b"ab"

    @pytest.mark.parametrize(
        "kind", [object, complex, list[object], dict[str, typing.TextIO], Point | object]
    )
    def test_a_type_that_json_does_not_have_is_refused(self, kind):
        with pytest.raises(TypeError, match="expected a type that is read from JSON, got"):
            Reader(kind)

    @pytest.mark.parametrize("kind", [list[Point | Other], dict[int | Item, int], int | list[int | Item]])
    def test_a_type_that_cannot_be_told_apart_is_refused(self, kind):
        with pytest.raises(TypeError, match="not supported"):
            Reader(kind)

    def test_a_type_may_be_of_itself(self):
        class Tree(msgspec.Struct):
            leaves: list["Tree"] = []

        globals()["Tree"] = Tree
        try:
            assert Reader(Tree)({"leaves": [{}]}, "data") == Tree([Tree()])
        finally:
            del globals()["Tree"]

    def test_its_repr_says_of_what(self):
        assert repr(Reader(Point)) == "<Reader of Point>"
        assert repr(Reader(list[int])) == "<Reader of list[int]>"


class TestConforming:
    @pytest.mark.parametrize(
        ("kind", "value"),
        [(None.__class__, None), (Point, Point(1)), (Point, {"x": 1}), (list[int], [1]), (float, 1), (Item, Item(id=2)),
         (Item, {"id": 2}), (Any, object()), (Point | Other, {"name": "n"}), (Binary, Binary(b""))],
    )  # fmt: skip
    def test_what_fits(self, kind, value):
        conform(value, kind)

    @pytest.mark.parametrize(
        ("kind", "value"),
        [(None.__class__, 1), (Point, {"x": "1"}), (list[int], ["1"]), (int, 1.5), (Item, {"id": "2"}), (str, None),
         (Point | Other, {}), (Point, Binary(b"")), (complex, 1), (Strict, {"at": 5})],
    )  # fmt: skip
    def test_what_does_not(self, kind, value):
        with pytest.raises((TypeError, ValueError)):
            conform(value, kind)
