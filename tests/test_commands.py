"""Commands: which functions can be one, how `params` become arguments, and what their results are held against."""

import dataclasses
import datetime as dt
import functools
import typing
from typing import Annotated, Any, TypedDict

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_ws import BadRequest, Session
from asgi_ws.commands import Command
from tests.fakes import done

if typing.TYPE_CHECKING:
    from nowhere import Unknown

SESSION: Any = object()


class Struct(msgspec.Struct):
    n: int
    m: str = "m"


@dataclasses.dataclass
class Data:
    n: int


class Dict(TypedDict):
    n: int


class Model(pydantic.BaseModel):
    n: int


@pydantic.dataclasses.dataclass
class Half:
    n: int


T = typing.TypeVar("T")


class Page(msgspec.Struct, typing.Generic[T]):
    items: list[T]


class Status(msgspec.Struct):
    done: bool


def call(function, params=None):
    return done(Command("c", function)(SESSION, {} if params is None else params))


class TestWhole:
    @pytest.mark.parametrize("kind", [Struct, Data, Dict, Model, Annotated[Struct, "it"]])
    @pytest.mark.parametrize("with_session", [False, True])
    def test_one_object_is_the_whole_params(self, kind, with_session):
        async def alone(params: kind):
            return params

        async def beside(params: kind, who: Session):
            assert who is SESSION
            return params

        got = call(beside if with_session else alone, {"n": 1, "later": 2})
        assert (got["n"] if kind is Dict else got.n) == 1

    def test_a_generic_one_too(self):
        async def command(page: Page[int]):
            return page

        assert call(command, {"items": [1]}) == Page([1])
        with pytest.raises(BadRequest, match=r"expected `int`, got `str` - at `params.items\[0\]`"):
            call(command, {"items": ["1"]})

    @pytest.mark.parametrize("kind", [Struct, Data, Dict, Model])
    def test_what_does_not_fit_names_the_field(self, kind):
        async def command(params: kind): ...

        with pytest.raises(BadRequest, match=r"at `params.n`"):
            call(command, {"n": "one"})
        with pytest.raises(BadRequest, match="expected `object`, got `array`|valid dictionary|be an object"):
            call(command, [1])
        with pytest.raises(BadRequest, match="required"):
            call(command)

    def test_a_default_is_refused(self):
        async def command(params: Struct = Struct(1)): ...  # noqa: B008

        with pytest.raises(TypeError, match="expected the whole params to have no default, got params"):
            Command("c", command)

    @pytest.mark.parametrize("kind", [Struct | None, Struct | Data, Model | int])
    def test_one_of_several_is_refused(self, kind):
        async def command(params: kind): ...

        with pytest.raises(TypeError, match="expected the whole params as one type, or fields"):
            Command("c", command)

    def test_a_pydantic_dataclass_whose_checks_would_be_skipped_is_refused(self):
        async def command(params: Half): ...

        with pytest.raises(TypeError, match="expected a Pydantic model"):
            Command("c", command)


class TestFields:
    def test_each_parameter_is_a_field_and_a_default_makes_it_optional(self):
        async def command(
            a: int, who: Session, b: str = "b", *, c: list[int], d: Any = None, e: Struct | None = None
        ):
            assert who is SESSION
            return a, b, c, d, e

        assert call(command, {"a": 1, "c": []}) == (1, "b", [], None, None)
        given = {"a": 1, "b": "x", "c": [2], "d": {"y": 1}, "e": {"n": 1}, "unknown": 1, "__proto__": {}}
        assert call(command, given) == (1, "x", [2], {"y": 1}, Struct(1))

    def test_a_default_is_python_s_own_and_need_not_be_of_the_type(self):
        missing = object()

        async def command(a: int = missing, b: list = [1]):  # noqa: B006
            return a, b

        assert call(command) == (missing, [1])

    def test_none_at_all(self):
        async def command():
            return 1

        async def only(session: Session):
            return 2

        assert call(command) == 1
        assert call(only, {"a": 1}) == 2
        with pytest.raises(BadRequest, match="expected `object`, got `null` - at `params`"):
            done(Command("c", command)(SESSION, None))

    @pytest.mark.parametrize("kind", [Any, int | str, typing.Literal["a"], "int", dict[str, int]])
    def test_one_of_any_other_type_is_a_field(self, kind):
        async def command(a: kind):
            return a

        value = {dict[str, int]: {"x": 1}, typing.Literal["a"]: "a"}.get(kind, 5)
        assert call(command, {"a": value}) == value

    def test_one_that_is_no_object_is_a_field(self):
        async def command(ids: list[int]):
            return ids

        assert call(command, {"ids": [1]}) == [1]
        with pytest.raises(BadRequest, match="expected `object`, got `array`"):
            call(command, [1])

    def test_objects_beside_each_other_are_fields(self):
        async def command(a: Struct, b: Model):
            return a.n + b.n

        assert call(command, {"a": {"n": 1}, "b": {"n": 2}}) == 3
        with pytest.raises(BadRequest, match=r"at `params.b.n`"):
            call(command, {"a": {"n": 1}, "b": {"n": "x"}})

    def test_what_annotated_adds_is_held(self):
        async def command(n: Annotated[int, msgspec.Meta(ge=1)]): ...

        with pytest.raises(BadRequest, match="expected `int` >= 1 - at `params.n`"):
            call(command, {"n": 0})

    def test_without_an_annotation_anything_goes(self):
        async def command(a, b=2):
            return a, b

        assert call(command, {"a": {"x": [None]}}) == ({"x": [None]}, 2)

    def test_a_session_that_only_a_type_checker_sees(self):
        async def command(n: "int", session: "Session"):
            return n, session

        async def hidden(n: "int", session: "Session", other: "Unknown"): ...

        assert call(command, {"n": 1}) == (1, SESSION)
        with pytest.raises(BadRequest, match="expected `int`"):
            call(command, {"n": "1"})
        with pytest.raises(
            TypeError, match="expected types that exist when the program runs, got 'Unknown' for other"
        ):
            Command("c", hidden)

    @given(
        st.dictionaries(
            st.sampled_from(["a", "b", "c", "d"]), st.integers() | st.text() | st.none(), max_size=4
        )
    )
    def test_the_arguments_are_exactly_the_fields_or_the_first_that_does_not_fit_is_named(self, params):
        async def command(a: int, b: str, c: int = -1, d: str | None = "d"):
            return {"a": a, "b": b, "c": c, "d": d}

        kinds = {"a": int, "b": str, "c": int, "d": (str, type(None))}
        wrong = {name for name, value in params.items() if not isinstance(value, kinds[name])}
        if wrong or not params.keys() >= {"a", "b"}:
            with pytest.raises(BadRequest) as caught:
                call(command, params)
            named = [
                name
                for name in kinds
                if f"`params.{name}`" in str(caught.value) or f"`{name}`" in str(caught.value)
            ]
            assert set(named) <= wrong | ({"a", "b"} - params.keys())
            assert len(named) == 1
        else:
            assert call(command, params) == {"c": -1, "d": "d"} | params


class TestRegistration:
    def refused(self, function, match, name="c", error=TypeError):
        with pytest.raises(error, match=match):
            Command(name, function, "app.py:12")

    def test_what_cannot_be_given_is_refused_with_place_and_reason(self):
        async def args(*args): ...
        async def kwargs(**kwargs): ...
        async def positional(a, /): ...
        async def two(a: Session, b: Session): ...
        async def unreadable(a: object): ...
        async def confusing(a: list[Struct | Model]): ...
        async def unknown() -> "Unknown": ...
        def sync(): ...
        async def generator():
            yield 1

        prefix = "app.py:12: command 'c': expected "
        self.refused(args, prefix + r"parameters that can be given by name, got \*args")
        self.refused(kwargs, prefix + r"parameters that can be given by name, got \*\*kwargs")
        self.refused(positional, prefix + "parameters that can be given by name, got a")
        self.refused(two, prefix + "one Session at most, got a and b")
        self.refused(unreadable, prefix + "a type that is read from JSON, got object")
        self.refused(confusing, "app.py:12: command 'c': .*not supported")
        self.refused(unknown, prefix + "types that exist when the program runs, got 'Unknown' for the result")
        for function in (sync, generator):
            self.refused(function, "app.py:12: expected command 'c' to be async, got .*" + function.__name__)

    @pytest.mark.parametrize("name", ["", "x" * 65, "a b", "é", "$x", None, "a\n"])
    def test_the_name_follows_the_grammar_of_events(self, name):
        async def command(): ...

        self.refused(command, "app.py:12: expected a command name of 1 to 64 of", name, ValueError)

    @pytest.mark.parametrize(
        "name", ["a", "x" * 64, "cancel_task", "task.cancel", "__proto__", "constructor"]
    )
    def test_these_are_names(self, name):
        async def command(): ...

        assert repr(Command(name, command, "app.py:12")) == f"<Command {name!r} declared at app.py:12>"

    def test_methods_and_wrapped_functions(self):
        class Tasks:
            async def cancel(self, n: int):
                return n

        def logged(function):
            @functools.wraps(function)
            async def wrapper(*args, **kwargs):
                return await function(*args, **kwargs)

            return wrapper

        @logged
        async def wrapped(n: int, session: Session):
            return n

        assert call(Tasks().cancel, {"n": 1}) == 1
        assert call(wrapped, {"n": 1}) == 1


class TestResults:
    @pytest.mark.parametrize(
        ("kind", "result"),
        [(None, None), (int, 1), (Status, Status(done=True)), (Dict, {"n": 1}), (Model, Model(n=1)), (Any, object),
         (list[Status], [Status(done=True)]), (Status | None, None), (dt.datetime, dt.datetime.now(dt.UTC))],
    )  # fmt: skip
    def test_a_result_of_the_type_passes_as_it_is(self, kind, result):
        async def command() -> kind:
            return result

        assert call(command) is result

    @pytest.mark.parametrize(
        ("kind", "result"),
        [
            (None, 1),
            (int, "1"),
            (Status, {"done": "yes"}),
            (Dict, {}),
            (Model, {"n": "1"}),
            (list[Status], [1]),
        ],
    )
    def test_another_one_is_the_application_s_error(self, kind, result):
        async def command() -> kind:
            return result

        with pytest.raises(TypeError, match="expected the result of command 'c' to be .*, got "):
            call(command)

    def test_without_an_annotation_anything_goes(self):
        async def command():
            return object

        assert call(command) is object
