"""What stands behind the `?` of a source's name: one spelling for each value, and each value from its spelling."""

import enum
import math
import typing
import uuid
from typing import Annotated, Literal
from urllib.parse import quote, urlencode

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_ws import BadRequest
from asgi_ws.queries import Query
from asgi_ws.session import Session

if typing.TYPE_CHECKING:
    from nowhere import Unknown


class Unit(enum.Enum):
    WATT = "W"
    DBM = "dBm"


class Port(enum.IntEnum):
    A = 1
    B = 2
    ALSO_A = 1


class Side(enum.StrEnum):
    LEFT = "left&right"
    RIGHT = "r=2"


def everything(
    flag: bool,
    count: int,
    level: float,
    text: str,
    id: uuid.UUID,
    unit: Unit,
    port: Port,
    side: Side,
    mode: Literal["fast", "slow", 3],
    limit: int | None = None,
    ünit: str = "é",  # noqa: PLC2401
): ...


VALUES = st.fixed_dictionaries(
    {
        "flag": st.booleans(),
        "count": st.integers(),
        "level": st.floats(allow_nan=False, allow_infinity=False),
        "text": st.text(st.characters(codec="utf-8")),
        "id": st.uuids(),
        "unit": st.sampled_from(Unit),
        "port": st.sampled_from(Port),
        "side": st.sampled_from(Side),
        "mode": st.sampled_from(["fast", "slow", 3]),
        "limit": st.none() | st.integers(),
        "ünit": st.text(st.characters(codec="utf-8")),
    }
)


def query(function):
    return Query(function, "source 'power'")


def types_of(params):
    return {name: type(value) for name, value in params.items()}


class TestRoundTrip:
    @given(VALUES)
    def test_values_to_text_to_the_same_values_and_the_same_text(self, params):
        one = query(everything)
        text = one.write(params)
        read = one.read(one.split(text))
        assert read == params
        assert types_of(read) == types_of(params)
        assert one.write(read) == text

    @given(VALUES)
    def test_the_text_is_plain_ascii_and_sorted(self, params):
        text = query(everything).write(params)
        assert text.isascii()
        assert text.isprintable()
        assert " " not in text
        names = [part.partition("=")[0] for part in text.split("&")]
        expected = [quote(name) for name in sorted(params) if params[name] is not None]
        assert names == expected

    @given(VALUES)
    def test_what_a_browsers_urlsearchparams_writes_is_understood(self, params):
        one = query(everything)
        parts = one.split(one.write(params))
        assert one.read(one.split(urlencode(list(reversed(parts.items()))))) == params

    @given(st.text())
    def test_any_text_is_values_that_round_trip_or_a_bad_request(self, text):
        one = query(everything)
        try:
            params = one.read(one.split(text))
        except BadRequest:
            return
        assert one.read(one.split(one.write(params))) == params

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (0.1, "0.1"),
            (1.0, "1.0"),
            (1, "1.0"),
            (1e16, "1e16"),
            (1e-7, "1e-07"),
            (-0.0, "0.0"),
            (-2.5, "-2.5"),
        ],
    )
    def test_how_a_float_is_spelt(self, value, text):
        def one(level: float): ...

        assert query(one).write({"level": value}) == f"level={text}"
        assert str(query(one).read({"level": text})["level"]) == str(float(value) + 0.0)

    @pytest.mark.parametrize(
        ("text", "value"), [("007", 7), ("-0", 0), ("2.5e1", 25.0), (".5", 0.5), ("4", 4.0), ("4.", 4.0)]
    )
    def test_a_value_may_be_spelt_otherwise(self, text, value):
        def whole(n: int): ...
        def real(n: float): ...

        assert query(whole if isinstance(value, int) else real).read({"n": text}) == {"n": value}

    def test_what_has_a_default_may_be_left_out_and_is_written(self):
        def one(module: int, interval: float = 0.1): ...

        assert query(one).write(query(one).read({"module": "4"})) == "interval=0.1&module=4"

    def test_none_is_left_out(self):
        def one(limit: int | None = None, name: Annotated[str, "a name"] | None = None): ...

        assert query(one).write({"limit": None, "name": None}) == ""
        assert query(one).read({}) == {"limit": None, "name": None}
        assert query(one).read({"name": ""}) == {"limit": None, "name": ""}

    def test_an_integer_for_a_float_default_becomes_one(self):
        def one(interval: float = 1): ...

        assert type(query(one).read({})["interval"]) is float

    def test_annotated_with_constraints_of_msgspec(self):
        def one(module: Annotated[int, msgspec.Meta(ge=1, le=8)], note: Annotated[str, "anything"] = "x"): ...

        assert query(one).read({"module": "8"}) == {"module": 8, "note": "x"}
        with pytest.raises(BadRequest, match=r"'module' .* to be an integer \(ge 1, le 8\), got '9'"):
            query(one).read({"module": "9"})

    def test_without_parameters(self):
        def one(): ...

        assert query(one).write(query(one).read(query(one).split(""))) == ""
        assert repr(query(one)) == "<Query without parameters>"
        with pytest.raises(BadRequest, match=r"a parameter of source 'power' \(it has none\), got 'a'"):
            query(one).read({"a": ""})


class TestWrong:
    def one(
        self,
        module: int,
        interval: float = 0.1,
        unit: Unit = Unit.WATT,
        on: bool = True,
        id: uuid.UUID | None = None,
    ): ...

    @pytest.fixture
    def query(self):
        return query(self.one)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "expected parameter 'module' of source 'power' to be an integer, got none"),
            ("module=", "'module' of source 'power' to be an integer, got ''"),
            ("module", "'module' of source 'power' to be an integer, got ''"),
            ("module=x", "'module' of source 'power' to be an integer, got 'x'"),
            ("module=1.0", "to be an integer, got '1.0'"),
            ("module=1_0", "to be an integer, got '1_0'"),
            ("module=%204", "to be an integer, got ' 4'"),
            ("module=٤", "to be an integer, got '٤'"),
            ("module=4&interval=nan", "'interval' of source 'power' to be a finite number, got 'nan'"),
            ("module=4&interval=inf", "to be a finite number, got 'inf'"),
            ("module=4&interval=1e999", "to be a finite number, got '1e999'"),
            ("module=4&interval=1_0.0", "to be a finite number"),
            ("module=4&interval=0x10", "to be a finite number"),
            ("module=4&unit=kW", "'unit' of source 'power' to be one of W, dBm, got 'kW'"),
            ("module=4&unit=WATT", "to be one of W, dBm, got 'WATT'"),
            ("module=4&on=yes", "'on' of source 'power' to be true or false, got 'yes'"),
            ("module=4&on=True", "to be true or false, got 'True'"),
            ("module=4&id=7", "'id' of source 'power' to be a UUID, got '7'"),
            (
                "module=4&modul=5",
                r"a parameter of source 'power' \(id, interval, module, on, unit\), got 'modul'",
            ),
            ("module=4&module=4", "each parameter of source 'power' once, got 'module' twice"),
            ("module=%ff", "expected UTF-8 in the parameters of source 'power', got 'module=%ff'"),
            ("%ff=4", "expected UTF-8"),
            ("module=4&Module=5", "got 'Module'"),
        ],
    )
    def test_what_cannot_be_is_a_bad_request_that_names_it(self, query, text, words):
        with pytest.raises(BadRequest, match=words):
            query.read(query.split(text))

    def test_the_message_is_short_however_long_the_text(self, query):
        for text in ("module=" + "9" * 10_000 + "x", "x" * 10_000 + "=1", "module=%ff" + "1" * 10_000):
            with pytest.raises(BadRequest) as caught:
                query.read(query.split(text))
            assert len(str(caught.value)) < 250

    def test_more_digits_than_python_reads_are_no_integer(self, query):
        with pytest.raises(BadRequest, match="to be an integer"):
            query.read({"module": "9" * 10_000})

    def test_a_lone_surrogate_is_no_text(self):
        def one(text: str): ...

        with pytest.raises(BadRequest, match="'text' .* to be text"):
            query(one).read({"text": "\ud800"})

    @pytest.mark.parametrize(
        "params",
        [{"module": True}, {"module": "4"}, {"module": 4, "interval": math.nan}, {"module": 4, "unit": "W"},
         {"module": 4, "on": 1}, {"module": 4, "id": "x"}, {"module": 4, "interval": 10**400}],
    )  # fmt: skip
    def test_a_value_of_another_type_is_not_written(self, query, params):
        with pytest.raises(ValueError, match="expected parameter '.*' of source 'power' to be"):
            query.write(query.fill(params))

    @pytest.mark.parametrize("params", [{}, {"modul": 4}, {"module": 4, "x": 1}])
    def test_a_parameter_too_few_or_too_many_is_not_filled(self, query, params):
        with pytest.raises(TypeError, match="expected id, interval, module, on, unit for source 'power'"):
            query.fill(params)


class Mixed(enum.Enum):
    A = "a"
    B = 1.5


class Empty(enum.Enum): ...


class TestRegistration:
    def refused(self, function, match):
        with pytest.raises(TypeError, match=match):
            query(function)

    def test_what_a_name_cannot_spell_is_refused_with_the_reason(self):
        def nothing(module): ...
        def listed(module: list[int]): ...
        def bare(module: list): ...
        def mapped(module: dict[str, int]): ...
        def raw(module: bytes): ...
        def either(module: int | str): ...
        def three(module: int | str | None = None): ...
        def alike(module: Literal[1, "1"]): ...
        def none(module: Literal["a", None]): ...  # noqa: PYI061
        def true(module: Literal[True]): ...
        def mixed(module: Mixed): ...
        def empty(module: Empty): ...
        def anything(module: typing.Any): ...
        def session(module: Session): ...
        def unknown(module: "Unknown"): ...
        def annotated(module: Annotated[list[int], msgspec.Meta(min_length=1)]): ...

        for function in (nothing, listed, bare, mapped, raw, either, three, alike, none, true, mixed, empty,
                         anything, session, unknown, annotated):  # fmt: skip
            self.refused(
                function, r"parameter 'module' of .* to be annotated as bool, .*: a name has to spell it"
            )

    def test_an_annotation_elsewhere_that_means_nothing_at_run_time_is_no_matter(self):
        def one(module: int) -> "Unknown": ...

        assert query(one).names == ["module"]

    def test_annotations_as_text_are_read(self):
        def one(module: "int", unit: "Unit" = Unit.DBM): ...

        assert query(one).read({"module": "4"}) == {"module": 4, "unit": Unit.DBM}

    def test_what_is_not_given_by_name_is_refused(self):
        def positional(module: int, /): ...
        def rest(*module: int): ...
        def named(**module: int): ...

        for function in (positional, rest, named):
            self.refused(function, "'module' of .* to be one that is given by its name")

    def test_a_default_that_is_not_of_its_type_is_refused(self):
        def text(module: int = "4"): ...
        def nan(module: float = math.nan): ...
        def flag(module: int = True): ...
        def surrogate(module: str = "\ud800"): ...
        def value(module: Unit = "W"): ...
        def none(module: int = None): ...
        def large(module: float = 10**400): ...
        def outside(module: Annotated[int, msgspec.Meta(ge=1)] = 0): ...

        for function in (text, nan, flag, surrogate, value, none, large, outside):
            self.refused(function, "expected the default of parameter 'module' of .* to be .*, got ")

    def test_what_may_be_none_is_none_by_default(self):
        def five(module: int | None = 5): ...
        def must(module: int | None): ...

        for function in (five, must):
            self.refused(function, "'module' of .* to have the default None, got .*: no text is None")

    def test_a_constraint_that_cannot_be_is_refused(self):
        def one(module: Annotated[bool, msgspec.Meta(ge=1)]): ...

        self.refused(one, "`ge`")
