"""What is declared about a source: its name, its parameters, who may watch, and what it may not be beside."""

import functools
import inspect
import typing
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_ws import BadRequest, Hub, Router, Session, Source, Undeclared
from asgi_ws.patterns import MAX_BYTES, Pattern

pytestmark = pytest.mark.anyio

if typing.TYPE_CHECKING:
    from nowhere import Unknown


async def power(module: int, interval: float = 0.1) -> AsyncIterator[float]:
    yield interval * module


async def ticks():
    yield 1


def here():
    frame = inspect.currentframe().f_back
    return f"{__file__}:{frame.f_lineno}"


class TestNames:
    def test_the_full_name_has_all_parameters_sorted(self):
        source = Source("power", power)
        assert source.complete("power?module=4") == "power?interval=0.1&module=4"
        assert source.complete("power?module=4&interval=2") == "power?interval=2.0&module=4"
        assert source.name_for({"module": "4"}) == "power?interval=0.1&module=4"
        assert (
            source.render(module=4) == source.render(interval=0.1, module=4) == "power?interval=0.1&module=4"
        )
        assert source.read("power?module=4") == {"module": 4, "interval": 0.1}

    @given(st.integers(), st.floats(allow_nan=False, allow_infinity=False))
    def test_a_full_name_is_its_own_completion(self, module, interval):
        source = Source("power", power)
        name = source.render(module=module, interval=interval)
        assert source.complete(name) == name
        assert source.render(**source.read(name)) == name

    def test_one_without_parameters_is_called_by_its_name(self):
        source = Source("ticks", ticks)
        assert source.complete("ticks") == source.complete("ticks?") == source.name_for({}) == "ticks"
        with pytest.raises(BadRequest, match=r"it has none\), got 'a'"):
            source.complete("ticks?a=1")

    @pytest.mark.parametrize(
        "name", ["power", "power?modul=4", "power?module=x", "power?module=4&\0=1", "power?\ud800"]
    )
    def test_a_name_with_parameters_that_cannot_be_is_a_bad_request(self, name):
        with pytest.raises(BadRequest, match="expected"):
            Source("power", power).complete(name)

    def test_a_full_name_is_no_longer_than_a_channels(self):
        async def echo(text: str):
            yield text

        source = Source("echo", echo)
        longest = "x" * (MAX_BYTES - len("echo?text="))
        assert len(source.complete(f"echo?text={longest}")) == MAX_BYTES
        for text in (longest + "x", "é" * 50):
            with pytest.raises(BadRequest, match="expected a channel name of 1 to 255 bytes"):
                source.name_for({"text": text})
        with pytest.raises(BadRequest, match="expected parameter 'text' of source 'echo' to be text"):
            source.name_for({"text": "\ud800"})

    def test_values_that_cannot_be_are_refused(self):
        source = Source("power", power)
        with pytest.raises(ValueError, match="'module' of source 'power' to be an integer, got '4'"):
            source.render(module="4")
        with pytest.raises(TypeError, match="expected interval, module for source 'power', got other"):
            source.render(other=1)

    def test_a_value_outside_its_constraint_is_refused(self):
        import msgspec

        async def limited(module: typing.Annotated[int, msgspec.Meta(ge=1)]):
            yield module

        with pytest.raises(ValueError, match="ge 1"):
            Source("limited", limited).render(module=0)

    @pytest.mark.parametrize("name", ["", "a?b", "{name}", "a{b", "x\0", "é" * 200, None, 5])
    def test_what_is_no_name_is_refused_with_the_place(self, name):
        with pytest.raises(ValueError, match=rf"{__file__}:\d+: expected "):
            Router().source(name)(ticks)

    @pytest.mark.parametrize("name", ["broadcast", "user:7", "user:", "$x"])
    def test_the_hubs_own_are_refused_with_the_place(self, name):
        for router in (Router(), Hub()):
            with pytest.raises(ValueError, match=rf"{__file__}:\d+: expected a pattern beside the hub's own"):
                router.source(name)(ticks)

    def test_names_with_segments(self):
        hub = Hub()
        source = hub.source("lab:2/power", event="power")(power)
        assert hub.full_name("lab:2/power?module=4") == "lab:2/power?interval=0.1&module=4"
        assert hub.find_source("lab:2/power?x") is source


class TestDeclaring:
    def test_the_decorated_name_is_the_source(self):
        hub = Hub()

        place = here(), hub.source("power", max_instances=3, event="reading", slow="drop_oldest")(power)
        source = place[1]
        assert isinstance(source, Source)
        assert source.place == place[0]
        assert (source.max_instances, source.event, source.slow) == (3, "reading", "drop_oldest")
        assert source.function is power
        assert hub.find_source("power?module=4") is source
        assert hub.find("power") is None
        assert repr(source) == f"<Source 'power' declared at {place[0]}>"

    def test_what_is_left_open(self):
        source = Router().source("power")(power)
        assert (source.max_instances, source.event, source.slow) == (64, "power", "latest")

    def test_other_names_are_nobodys(self):
        router = Router()
        assert router.find_source("power") is None
        router.source("power")(power)
        assert router.find_source("powers") is None
        assert router.full_name("powers?module=4") == "powers?module=4"

    def test_what_is_no_async_generator_function_is_refused(self):
        async def coroutine(module: int): ...
        def generator(module: int):
            yield 1

        for function in (coroutine, generator, lambda: None, 5):
            with pytest.raises(
                TypeError, match=r"expected source 'x' to be an async generator function .*, got "
            ):
                Router().source("x")(function)

    def test_a_partial_of_one_is_one(self):
        source = Source("power", functools.partial(power, interval=1.0))
        assert source.complete("power?module=4") == "power?interval=1.0&module=4"

    def test_a_session_is_refused_for_the_generator_is_shared(self):
        async def one(session: Session):
            yield 1

        async def two(who: "Session", module: "Unknown"):
            yield 1

        async def three(session: Session | None = None):
            yield 1

        for function in (one, two):
            with pytest.raises(
                TypeError, match=r"to take no Session, got .*: all who watch share it; @.*subscribe_right"
            ):
                Router().source("x")(function)
        with pytest.raises(TypeError, match="a name has to spell it"):
            Router().source("x")(three)

    @pytest.mark.parametrize("count", [0, -1, 1.5, True, "64", None])
    def test_max_instances_is_one_or_more(self, count):
        with pytest.raises(ValueError, match="expected max_instances to be an integer of 1 or more, got"):
            Router().source("x", max_instances=count)(ticks)

    def test_the_event_has_an_events_name(self):
        with pytest.raises(
            ValueError, match="expected an event name .*got 'a/b'; event= gives its events another"
        ):
            Router().source("a/b")(ticks)
        with pytest.raises(ValueError, match="expected an event name .*got 'c d'$"):
            Router().source("a", event="c d")(ticks)
        assert Router().source("a/b", event="tick")(ticks).event == "tick"

    @pytest.mark.parametrize("slow", ["fast", "", None])
    def test_slow_is_a_policy(self, slow):
        with pytest.raises(ValueError, match="expected slow to be resync, .*, latest, got"):
            Router().source("x", slow=slow)(ticks)

    def test_a_failed_declaration_leaves_nothing_behind(self):
        router = Router()
        with pytest.raises(TypeError):
            router.source("x")(5)
        router.source("x")(ticks)


class TestRight:
    def test_it_takes_the_session_and_any_of_the_parameters(self):
        source = Source("power", power)

        @source.subscribe_right
        async def may(who: Session, module: int): ...

        assert inspect.iscoroutinefunction(may)

    def test_it_may_take_nothing(self):
        @Source("power", power).subscribe_right
        async def may(): ...

    def test_what_it_cannot_have_is_refused(self):
        async def other(session: Session, channel: str): ...
        def sync(session: Session): ...

        for function, words in (
            (other, "to be a Session, interval, module, got channel"),
            (sync, "to be async"),
        ):
            with pytest.raises(TypeError, match=words):
                Source("power", power).subscribe_right(function)

    def test_there_is_one(self):
        source = Source("power", power)

        @source.subscribe_right
        async def one(): ...

        with pytest.raises(
            ValueError, match="expected the subscribe_right of source 'power' to be one function, got .*two"
        ):

            @source.subscribe_right
            async def two(): ...


RIVALS = ["power", "{name}", "{name:path}", "{kind}:{id}", "{kind}/x", "power?x", "power?x:{id}"]
STRANGERS = [
    "powers",
    "power:{id}",
    "power/{id}",
    "x/power",
    "{n:int}",
    "{x:uuid}",
    "{x:float}",
    "powe",
    "x:{name:path}",
]


class TestClashes:
    @pytest.mark.parametrize("pattern", RIVALS)
    @pytest.mark.parametrize("source_first", [False, True])
    def test_a_pattern_that_could_answer_for_a_sources_name_is_refused_with_both_places(
        self, pattern, source_first
    ):
        router = Router()
        declare = [lambda: router.source("power")(power), lambda: router.channel(pattern, public=True)]
        if not source_first:
            declare.reverse()
        declare[0]()
        with pytest.raises(ValueError, match="expected a source or a channel at most") as caught:
            declare[1]()
        message = str(caught.value)
        assert f"source 'power' ({__file__}:" in message
        assert f"channel {pattern!r} ({__file__}:" in message

    @pytest.mark.parametrize("pattern", STRANGERS)
    def test_others_are_welcome(self, pattern):
        router = Router()
        router.source("power")(power)
        router.channel(pattern, public=True)

    @pytest.mark.parametrize(
        ("name", "pattern", "clash"),
        [
            ("lab:power", "lab:{x}", True),
            ("lab:power", "lab:{x:path}", True),
            ("lab:power", "{x:path}", True),
            ("lab:power", "{x}:{y}", True),
            ("lab:power", "{x}:power", True),
            ("lab:power", "lab:{x:int}", False),
            ("lab:power", "lab/{x}", False),
            ("lab:power", "lab", False),
            ("lab:power", "{x}", False),
            ("lab:power", "{n:int}:{x}", False),
            ("lab:4", "lab:{x:int}", True),
            ("4:power", "{n:int}:{x}", True),
        ],
    )
    def test_segment_by_segment(self, name, pattern, clash):
        assert Source(name, power, event="x").rivals(Pattern(pattern)) is clash

    @given(
        st.lists(
            st.sampled_from(["a", "b", "1", "{x}", "{y:int}", "{z:path}", ":", "/", "a?b"]),
            min_size=1,
            max_size=5,
        ),
        st.sampled_from(["a", "a:b", "a:1", "1"]),
        st.sampled_from(["", "?", "?b", "?x=1", "?x=a:b", "?x=/a/1"]),
    )
    def test_no_pattern_beside_a_source_matches_any_of_its_names(self, pieces, name, query):
        try:
            pattern = Pattern("".join(pieces))
        except ValueError:
            return
        if not Source(name, ticks, event="x").rivals(pattern):
            assert pattern.match(name + query) is None

    def test_two_sources_of_one_name_are_refused_with_both_places(self):
        router = Router()
        first = here(), router.source("power")(power)
        with pytest.raises(ValueError, match="one source at most of a name") as caught:
            router.source("power")(ticks)
        assert str(caught.value).count(__file__) == 2
        assert first[0] in str(caught.value)
        assert router.find_source("power") is first[1]


class TestIncluding:
    def test_what_was_declared_before_and_what_comes_after(self):
        hub, outer, inner = Hub(), Router(), Router()
        one = inner.source("one")(ticks)
        outer.include_router(inner)
        hub.include_router(outer)
        two = inner.source("two")(ticks)
        assert [hub.find_source(name) for name in ("one", "two")] == [one, two]

    def test_what_clashes_is_refused(self):
        hub = Hub()
        hub.channel("power", public=True)
        router = Router()
        router.source("power")(power)
        with pytest.raises(ValueError, match="expected a source or a channel at most"):
            hub.include_router(router)
        hub.source("ticks")(ticks)
        router = Router()
        router.source("ticks")(ticks)
        with pytest.raises(ValueError, match="one source at most"):
            hub.include_router(router)
        later = Router()
        hub.include_router(later)
        with pytest.raises(ValueError, match="expected a source or a channel at most"):
            later.channel("ticks", public=True)


class TestPublishing:
    @pytest.mark.parametrize("name", ["power", "power?module=4", "power?interval=0.1&module=4"])
    async def test_to_a_source_is_refused_and_says_why(self, name):
        async with Hub() as hub:
            place = here(), hub.source("power")(power)
            with pytest.raises(
                Undeclared, match="belongs to source 'power'.*what it yields is all"
            ) as caught:
                await hub.publish(name, "power", 1)
            assert place[0] in str(caught.value)
            with pytest.raises(Undeclared, match="belongs to source"):
                hub.publish_nowait(name, "power", 1)
            with pytest.raises(Undeclared, match="belongs to source"):
                await hub.feed(name, ticks())
