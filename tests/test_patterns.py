"""Names are checked cheaply; a pattern reads what it renders, and nothing else; a map has one answer for a name."""

import enum
import math
import re
import threading
import uuid

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from starlette.convertors import CONVERTOR_TYPES, Convertor, FloatConvertor, IntegerConvertor, PathConvertor

from asgi_ws import patterns
from asgi_ws.errors import BadRequest
from asgi_ws.patterns import Parameter, Pattern, PatternMap, check_channel, check_event

ROOM = uuid.UUID("0f0e0d0c-0b0a-0908-0706-050403020100")


in_its_own_time = settings(deadline=None)  # a busy machine is no failure


class HexConvertor(Convertor[int]):
    """One of the app's own: the text may be that of an int, of a float, of a str."""

    regex = "[0-9a-f]+"

    def convert(self, value):
        return int(value, 16)

    def to_string(self, value):
        return f"{value:x}"


class WideConvertor(Convertor[list]):
    """Careless: its expression would run over separators, its `convert` raises a KeyError."""

    regex = "one|.*"

    def convert(self, value):
        return {"one": [1], "a:b": [2]}[value]

    def to_string(self, value):
        return {1: "one", 2: "a:b"}[value[0]]


class RestConvertor(PathConvertor):
    regex = "[a-z/]*"


@pytest.fixture(autouse=True, scope="module")
def the_apps_own_converters():
    own = {"hex": HexConvertor(), "wide": WideConvertor(), "rest": RestConvertor()}
    CONVERTOR_TYPES.update(own)
    yield
    for name in own:
        del CONVERTOR_TYPES[name]


def mapped(*texts):
    """A map in which every pattern stands for its own text."""
    names = PatternMap()
    for line, text in enumerate(texts, 1):
        names.add(text, text, f"app.py:{line}")
    return names


class TestCheckChannel:
    @pytest.mark.parametrize(
        "name", ["a", "task:42", "a b", "{x}", "*", ">", "$", "é", "日本語", "🎉", "x" * 255, "é" * 127 + "x"]
    )
    def test_a_name(self, name):
        assert check_channel(name) == name

    @pytest.mark.parametrize(
        "name",
        [
            "",
            "x" * 256,
            "é" * 128,
            "🎉" * 64,
            "a\n",
            "\0",
            "a\x1fb",
            "\x7f",
            "\x80",
            "\x9f",
            "\ud800",
            "a\udfff",
        ],
    )
    def test_no_name(self, name):
        with pytest.raises(BadRequest, match="^expected a channel name of 1 to 255 bytes .*, got '"):
            check_channel(name)

    @in_its_own_time
    @given(st.text(st.characters(codec=None), max_size=300))
    def test_is_what_the_contract_says(self, name):
        try:
            size = len(name.encode())
        except UnicodeEncodeError:
            size = 0
        control = any(ord(c) < 32 or 127 <= ord(c) < 160 for c in name)
        try:
            assert check_channel(name) == name
            assert 1 <= size <= 255 and not control
        except BadRequest as error:
            assert not 1 <= size <= 255 or control
            assert str(error).encode()

    @pytest.mark.parametrize(("name", "type_"), [(5, "int"), (None, "NoneType"), (b"a", "bytes")])
    def test_of_what_is_no_text_the_type_is_told(self, name, type_):
        with pytest.raises(BadRequest, match=f", got {type_}$"):
            check_channel(name)

    def test_the_message_is_short_and_can_be_sent(self):
        with pytest.raises(BadRequest, match=r"\(10000000 characters\)$") as caught:
            check_channel("\ud800" * 10_000_000)
        assert len(str(caught.value).encode()) < 300

    def test_a_member_of_an_enum_becomes_its_text(self):
        class Room(str, enum.Enum):  # noqa: UP042 - the point: its format() is not its text
            LOBBY = "lobby"

        assert f"{check_channel(Room.LOBBY)}" == "lobby"
        assert f"{check_event(Room.LOBBY)}" == "lobby"


class TestCheckEvent:
    @pytest.mark.parametrize("name", ["a", "order.created", "A-Z_0:9", "x" * 64])
    def test_a_name(self, name):
        assert check_event(name) == name

    @pytest.mark.parametrize("name", ["", "x" * 65, "a b", "a\n", "é", "a/b", "\ud800", "٣", 5, None])
    def test_no_name(self, name):
        with pytest.raises(BadRequest, match="^expected an event name of 1 to 64 of .*, got "):
            check_event(name)


class TestText:
    @pytest.mark.parametrize(
        ("text", "params", "first_literal"),
        [
            ("orders", {}, "orders"),
            ("dialog:{dialog_id:int}", {"dialog_id": "int"}, "dialog"),
            ("team:{team}/room:{room:uuid}", {"team": "str", "room": "uuid"}, "team"),
            ("{name:path}", {"name": "path"}, None),
            ("/dialogs/{id:float}", {"id": "float"}, "dialogs"),
            ("{tenant}:orders", {"tenant": "str"}, "orders"),
            ("{self}:{params}", {"self": "str", "params": "str"}, None),
            ("a::b/", {}, "a"),
            ("/", {}, None),
            ("x:{y:hex}", {"y": "hex"}, "x"),
        ],
    )
    def test_well_formed(self, text, params, first_literal):
        pattern = Pattern(text)
        assert (pattern.text, pattern.params, pattern.first_literal) == (text, params, first_literal)
        assert list(pattern.params) == list(params)
        assert repr(pattern) == f"Pattern({text!r})"

    @pytest.mark.parametrize("text", [
        "{", "}", "a:{x", "a:x}", "{x:{y}}", "{{x}}", "{a}{b}", "a{x}", "{x}a", "a:b{x:int}:c",
    ])  # fmt: skip
    def test_a_segment_is_literal_or_one_whole_parameter(self, text):
        with pytest.raises(ValueError, match="^expected each segment .*, got .* in "):
            Pattern(text)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "expected a pattern such as 'dialog:{dialog_id:int}', got ''"),
            (len, "expected a pattern such as .*, got builtin_function_or_method"),
            ("{}", "expected a parameter name that is a Python identifier, got ''"),
            ("a:{1x}", "expected .* identifier, got '1x'"),
            ("a:{x y}", "expected .* identifier, got 'x y'"),
            ("a:{class}", "expected .* identifier, got 'class'"),
            (
                "{x:integer}",
                "expected a converter of str, path, int, .* for the parameter 'x', got 'integer'",
            ),
            ("{x:}", "expected a converter of .*, got ''"),
            ("{x:int:int}", "expected a converter of .*, got 'int:int'"),
            ("{a/b}", "expected .* identifier, got 'a/b'"),
            ("{x}:{x}", "expected each parameter name once, got '{x}:{x}'"),
            ("{x:path}:a", "expected a path parameter only as the last segment, got '{x:path}:a'"),
            ("{x:path}/", "expected a path parameter only as the last segment, got"),
            ("{x:rest}:{y:path}", "expected a path parameter only as the last segment, got"),
        ],
    )
    def test_malformed(self, text, message):
        with pytest.raises(ValueError, match=f"^{message}"):
            Pattern(text)


class TestMatch:
    @pytest.mark.parametrize(
        ("text", "name", "params"),
        [
            ("orders", "orders", {}),
            ("a.c", "a.c", {}),
            ("dialog:{dialog_id:int}", "dialog:7", {"dialog_id": 7}),
            ("dialog:{dialog_id:int}", "dialog:0", {"dialog_id": 0}),
            ("{x:float}", "0.1", {"x": 0.1}),
            ("{x:float}", "5", {"x": 5.0}),
            ("{x:float}", "10", {"x": 10.0}),
            ("{x:float}", "0.0000001", {"x": 1e-7}),
            ("team:{team}/room:{room:uuid}", f"team:a b/room:{ROOM}", {"team": "a b", "room": ROOM}),
            ("{name:path}", "a:b/c", {"name": "a:b/c"}),
            ("{name:path}", "", {"name": ""}),
            ("{name:path}", "a\nb", {"name": "a\nb"}),
            ("f/{name:path}", "f/", {"name": ""}),
            ("f/{x}/{name:path}", "f/1//:", {"x": "1", "name": "/:"}),
            ("x:{y:hex}", "x:ff", {"y": 255}),
            ("x:{y:wide}", "x:one", {"y": [1]}),
            ("{y:rest}", "a/b", {"y": "a/b"}),
        ],
    )
    def test_a_name_and_its_values(self, text, name, params):
        pattern = Pattern(text)
        found = pattern.match(name)
        assert found == params
        assert {name: type(value) for name, value in found.items()} == {n: type(v) for n, v in params.items()}
        assert pattern.render(**found) == name

    @pytest.mark.parametrize(
        ("text", "name"),
        [
            ("orders", "order"),
            ("orders", "orders\n"),
            ("a.c", "abc"),
            ("a:b", "a/b"),
            ("dialog:{dialog_id:int}", "dialog:007"),
            ("dialog:{dialog_id:int}", "dialog:"),
            ("dialog:{dialog_id:int}", "dialog"),
            ("dialog:{dialog_id:int}", "dialog:-1"),
            ("dialog:{dialog_id:int}", "dialog:٣"),
            ("dialog:{dialog_id:int}", "dialog:7\n"),
            ("dialog:{dialog_id:int}", "dialog:" + "9" * 5000),
            ("{x:float}", "5.0"),
            ("{x:float}", "0.10000000000000000555"),
            ("{x:float}", "9" * 400),
            ("{x:uuid}", str(ROOM).upper()),
            ("{x:uuid}", ROOM.hex),
            ("{x}", "a:b"),
            ("{x}", "a/b"),
            ("{x}", ""),
            ("{x:hex}", "0f"),
            ("x:{y:wide}", "x:two"),
            ("x:{y:wide}", "x:a:b"),
            ("f/{name:path}", "f"),
            ("{y:rest}", "a/B"),
        ],
    )
    def test_no_name(self, text, name):
        assert Pattern(text).match(name) is None


class TestRender:
    @pytest.mark.parametrize(
        ("params", "got"), [({}, "[]"), ({"a": 1}, "['a']"), ({"a": 1, "b": 2, "c": 3}, "['a', 'b', 'c']")]
    )
    def test_it_takes_the_patterns_parameters_and_no_others(self, params, got):
        with pytest.raises(
            TypeError, match=re.escape(f"expected ['a', 'b'] for '{{a:int}}:{{b:int}}', got {got}")
        ):
            Pattern("{a:int}:{b:int}").render(**params)

    @pytest.mark.parametrize(
        ("converter", "value"),
        [
            ("int", -1),
            ("int", 5.7),
            ("int", "5"),
            ("int", "x"),
            ("int", None),
            ("float", math.nan),
            ("float", math.inf),
            ("float", -0.5),
            ("float", "0.5"),
            ("float", None),
            ("str", ""),
            ("str", "a:b"),
            ("str", "a/b"),
            ("str", None),
            ("str", 5),
            ("uuid", "5"),
            ("uuid", str(ROOM)),
            ("path", 5),
            ("hex", "ff"),
            ("hex", -1),
            ("wide", [2]),
            ("wide", [3]),
            ("wide", 1),
        ],
    )
    def test_a_value_that_does_not_read_back_is_refused(self, converter, value):
        with pytest.raises(ValueError, match="^expected values that .* reads back, got "):
            Pattern(f"a:{{x:{converter}}}").render(x=value)

    def test_an_int_too_long_for_python_to_write_is_a_value_error_too(self):
        with pytest.raises(ValueError):
            Pattern("{x:int}").render(x=10**5000)

    def test_text_cannot_move_into_the_next_parameter(self):
        pattern = Pattern("{a}:{b:path}")
        with pytest.raises(ValueError):
            pattern.render(a="1:2", b="3")
        assert pattern.render(a="1", b="2:3") == "1:2:3"

    def test_a_float_is_written_as_people_write_it(self):
        pattern = Pattern("{x:float}")
        assert [pattern.render(x=x) for x in (0.1, 5.0, 1e22, 1e-7, 3)] == [
            "0.1",
            "5",
            "1" + "0" * 22,
            "0.0000001",
            "3",
        ]

    def test_the_message_is_short(self):
        with pytest.raises(ValueError) as caught:
            Pattern("{x}").render(x=":" * 10_000)
        assert len(str(caught.value)) < 300


# Few letters, so that names meet patterns; texts that several converters read.
literals = st.sampled_from(["", "a", "b", "7", "x.y"])
separators = st.sampled_from(":/")
texts = st.sampled_from(["", "a", "b", "7", "0.5", "007", "ff", "x.y", str(ROOM), ROOM.hex, "one"])
values = {
    "str": st.text(st.characters(exclude_characters=":/"), min_size=1, max_size=5),
    "path": st.text(st.sampled_from("a7:/é\n"), max_size=5),
    "int": st.integers(min_value=0, max_value=10**40),
    "float": st.floats(min_value=0.0, allow_infinity=False).map(abs),
    "uuid": st.uuids(),
    "hex": st.integers(min_value=0),
    "wide": st.just([1]),
    "rest": st.sampled_from(["", "a", "a/b"]),
}
ordinary = st.sampled_from(["str", "int", "float", "uuid", "hex", "wide"])
lasting = st.sampled_from(["path", "rest"])


class ConverterName(str):
    """Marks a segment that is to be a parameter."""

    __slots__ = ()


@st.composite
def pattern_texts(draw):
    segments = draw(st.lists(literals | ordinary.map(ConverterName), min_size=1, max_size=4))
    if draw(st.booleans()):
        segments[-1] = ConverterName(draw(lasting))
    texts = [f"{{p{at}:{s}}}" if isinstance(s, ConverterName) else s for at, s in enumerate(segments)]
    text = texts[0] + "".join(draw(separators) + text for text in texts[1:])
    assume(text)
    return text


@st.composite
def names(draw):
    first, *rest = draw(st.lists(texts, min_size=1, max_size=5))
    return first + "".join(draw(separators) + text for text in rest)


def rank(text):
    """By the rule, written independently: literals before parameters, from the left."""
    segments = re.split(r"[:/](?![^{]*\})", text)
    return [segment.startswith("{") for segment in segments]


@in_its_own_time
@given(pattern_texts(), st.data())
def test_what_is_rendered_matches_back(text, data):
    pattern = Pattern(text)
    params = {name: data.draw(values[converter], name) for name, converter in pattern.params.items()}
    name = pattern.render(**params)
    assert pattern.match(name) == params


@in_its_own_time
@given(pattern_texts(), names())
def test_what_matches_renders_back(text, name):
    pattern = Pattern(text)
    params = pattern.match(name)
    assert params is None or pattern.render(**params) == name


@in_its_own_time
@given(st.lists(pattern_texts(), max_size=8), st.lists(names(), max_size=8))
def test_a_map_agrees_with_asking_every_pattern(candidates, asked):
    found = PatternMap()
    for text in candidates:
        try:
            found.add(text, text, "here")
        except ValueError as error:
            assert "at most" in str(error)
    for name in asked * 2:  # the second time from the cache
        answers = [(entry.value, entry.pattern.match(name)) for entry in found]
        answers = sorted((a for a in answers if a[1] is not None), key=lambda answer: rank(answer[0]))
        assert found.find(name) == (answers[0] if answers else None)
        assert all(rank(one[0]) < rank(other[0]) for one, other in zip(answers, answers[1:], strict=False))


@in_its_own_time
@given(pattern_texts(), pattern_texts(), names())
def test_rivals_is_the_same_from_either_side(one, other, name):
    one, other = Pattern(one), Pattern(other)
    assert one.rivals(other) == other.rivals(one)
    assert one.rivals(one)
    if rank(one.text) == rank(other.text) and one.match(name) is not None and other.match(name) is not None:
        assert one.rivals(other)


class TestMapRefusals:
    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("a", "a"),
            ("x:{a:int}", "x:{b}"),
            ("x:{a:int}", "x:{a:float}"),
            ("x:{a:int}", "x:{b:int}"),
            ("x:{a:uuid}", "x:{b}"),
            ("x:{a:hex}", "x:{b:uuid}"),
            ("x:{a:wide}", "x:{b:int}"),
            ("a:{x}", "a:{x:path}"),
            ("a:{x}:c", "a:{x:path}"),
            ("{x:int}", "{x:path}"),
            ("{x:path}", "{y:path}"),
            ("{x:path}", "{y:rest}"),
            ("{a:uuid}/{b:int}", "{a:uuid}/{b:float}"),
        ],
    )
    def test_refused_either_way_round(self, one, other):
        for first, second in [(one, other), (other, one)]:
            patterns_ = PatternMap()
            patterns_.add(first, 1, "app.py:5")
            message = f"expected one pattern at most .* {first!r} (app.py:5) and {second!r} (app.py:9)"
            with pytest.raises(ValueError, match=re.escape(message).replace(r"\.\*", ".*")):
                patterns_.add(second, 2, "app.py:9")
            assert [entry.value for entry in patterns_] == [1]

    def test_a_subclass_of_starlettes_converter_may_overlap_everything(self):
        class Signed(IntegerConvertor):
            regex = "-?[0-9]+"

        CONVERTOR_TYPES["signed"] = Signed()
        try:
            with pytest.raises(ValueError):
                mapped("x:{a:signed}", "x:{b:uuid}")
            assert Pattern("x:{a:signed}").match("x:7") == {"a": 7}
        finally:
            del CONVERTOR_TYPES["signed"]

    def test_a_float_of_the_apps_own_is_spelt_as_it_says(self):
        class Cents(FloatConvertor):
            def to_string(self, value):
                return f"{value:.2f}"

        CONVERTOR_TYPES["cents"] = Cents()
        try:
            assert Pattern("{x:cents}").render(x=0.5) == "0.50"
        finally:
            del CONVERTOR_TYPES["cents"]


class TestFind:
    @pytest.mark.parametrize(
        ("texts", "name", "expected"),
        [
            (["task:{id}", "task:all"], "task:all", ("task:all", {})),
            (["task:{id}", "task:all"], "task:al", ("task:{id}", {"id": "al"})),
            (["a:{x}:c", "a:b:{y}"], "a:b:c", ("a:b:{y}", {"y": "c"})),
            (["a:{x}:c", "a:b:{y}"], "a:d:c", ("a:{x}:c", {"x": "d"})),
            (["x:{a:int}", "x:{a:uuid}"], "x:5", ("x:{a:int}", {"a": 5})),
            (["x:{a:int}", "x:{a:uuid}"], f"x:{ROOM}", ("x:{a:uuid}", {"a": ROOM})),
            (["x:{a:float}", "x:{a:uuid}"], "x:5", ("x:{a:float}", {"a": 5.0})),
            (["x:{a:int}", "x:{a:uuid}"], "x:" + "1" * 32, ("x:{a:int}", {"a": int("1" * 32)})),
            (["{name:path}", "a:{x:int}"], "a:5", ("a:{x:int}", {"x": 5})),
            (["{name:path}", "a:{x:int}"], "a:b", ("{name:path}", {"name": "a:b"})),
            (["{name:path}", "a:{x:int}"], "a:5:6", ("{name:path}", {"name": "a:5:6"})),
            (["{name:path}", "a"], "a", ("a", {})),
            (["a:{x:path}", "a:b:{y:int}"], "a:b:c", ("a:{x:path}", {"x": "b:c"})),
            (["a:{x:path}", "a:"], "a:", ("a:", {})),
            (["a:{x:path}", "a"], "a", ("a", {})),
            (["a/{x}", "a:{x:path}"], "a:1/2", ("a:{x:path}", {"x": "1/2"})),
            (["a:b:c:{x:int}", "a:{x}:c:d"], "a:b:c:d", ("a:{x}:c:d", {"x": "b"})),
            (["{a:int}:x", "{b}:y"], "5:y", ("{b}:y", {"b": "5"})),
            (["/dialogs/{id:int}"], "/dialogs/5", ("/dialogs/{id:int}", {"id": 5})),
            (["a:b"], "a", None),
            (["a:b"], "a:b:c", None),
            (["a:{x:int}"], "a:007", None),
            ([], "a", None),
        ],
    )
    def test_the_best(self, texts, name, expected):
        for order in (texts, texts[::-1]):
            assert mapped(*order).find(name) == expected

    def test_a_pattern_or_its_text_may_be_added_and_iteration_tells_what_was(self):
        names = PatternMap()
        pattern = Pattern("a:{x}")
        names.add(pattern, None, "app.py:1")
        names.add("b", 2, "app.py:2")
        (first, second) = names
        assert first == (pattern, None, "app.py:1")
        assert (second.pattern.text, second.value, second.place) == ("b", 2, "app.py:2")
        assert names.find("a:1") == (None, {"x": "1"})

    def test_more_may_be_added_while_one_iterates(self):
        names = mapped("a", "b")
        for entry in names:
            names.add(entry.value * 2, None, "here")
        assert [entry.pattern.text for entry in names] == ["a", "b", "aa", "bb"]

    def test_everyone_gets_parameters_of_their_own(self):
        names = mapped("a:{x}")
        for _ in range(3):
            _, params = names.find("a:1")
            assert params == {"x": "1"}
            params.clear()

    def test_a_later_literal_wins_a_name_that_was_found_before(self):
        names = mapped("a:{x}")
        assert names.find("a:b") == ("a:{x}", {"x": "b"})
        names.add("a:b", "a:b", "here")
        assert names.find("a:b") == ("a:b", {})

    @pytest.mark.parametrize("shape", ["c{}:{{id:int}}", "/c{}/{{id:int}}", "app:c{}:{{id:int}}", "c{}"])
    def test_a_thousand_patterns_cost_what_ten_do(self, monkeypatch, shape):
        asked = []
        match = Pattern.match
        monkeypatch.setattr(Pattern, "match", lambda self, name: asked.append(self) or match(self, name))
        names = mapped(*(shape.format(i) for i in range(1000)))
        names.find(shape.format(500).replace("{id:int}", "7"))
        assert len(asked) == 1
        names.find(shape.format(500).replace("{id:int}", "7"))
        assert len(asked) == 1, "from the cache"


class TestCache:
    def test_it_is_bounded_and_the_oldest_goes(self, monkeypatch):
        monkeypatch.setattr(patterns, "MAX_CACHED_NAMES", 3)
        names = mapped("a:{x:int}")
        for i in range(5):
            assert names.find(f"a:{i}") == ("a:{x:int}", {"x": i})
        assert list(names._found) == ["a:2", "a:3", "a:4"]

    def test_what_is_not_found_is_not_kept(self):
        names = mapped("a:{x:int}")
        assert names.find("a:b") is None
        assert not names._found

    def test_threads_may_ask_while_patterns_are_added(self, monkeypatch):
        monkeypatch.setattr(patterns, "MAX_CACHED_NAMES", 5)
        names = mapped("a:{x:int}")
        failures = []

        def ask():
            try:
                for i in range(2000):
                    assert names.find(f"a:{i % 17}")[1] in ({"x": i % 17}, {})
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for i in range(17):
            names.add(f"a:{i}", i, "here")
        for thread in threads:
            thread.join()
        assert not failures
        assert [names.find(f"a:{i}") for i in range(17)] == [(i, {}) for i in range(17)]
        assert len(names._found) == 5


class TestNearest:
    @pytest.mark.parametrize(
        ("name", "nearest"),
        [
            ("dialgo:5", "dialog:{dialog_id:int}"),
            ("dialog:abc", "dialog:{dialog_id:int}"),
            ("dialog:007", "dialog:{dialog_id:int}"),
            ("dialog", "dialog:{dialog_id:int}"),
            ("orders2", "orders"),
            ("Orders", "orders"),
            (f"room:{ROOM}", "rooms:{room:uuid}"),
            ("fils/a/b/c", "files/{name:path}"),
            ("zzz", None),
        ],
    )
    def test_the_pattern_that_was_meant(self, name, nearest):
        known = mapped(
            "orders", "dialog:{dialog_id:int}", "rooms:{room:uuid}", "files/{name:path}", "{number:int}"
        )
        assert known.find(name) is None
        assert known.nearest(name) == nearest

    def test_none_in_an_empty_map(self):
        assert PatternMap().nearest("a") is None


def test_a_parameter_says_why_a_text_is_not_its_own():
    with pytest.raises(ValueError, match="^expected the text of a int, got 'x'$"):
        Parameter("id", "int").read("x")
