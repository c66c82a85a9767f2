"""Where channels are declared: in any order, each name once, and a mistake names both places."""

import inspect
import re
import types

import pytest

from asgi_ws import Channel, Hub, NotRunning, Router, Session, SettingsError, Undeclared
from asgi_ws.router import own_channels
from asgi_ws.settings import Settings
from tests.fakes import Client, done

pytestmark = pytest.mark.anyio


def here():
    """The place of the caller's line, as messages name it."""
    frame = inspect.currentframe().f_back
    return f"{__file__}:{frame.f_lineno}"


async def ask(session: Session):
    """Everybody may."""


class TestDeclaring:
    def test_a_channel_knows_its_place(self):
        place = here(), Router().channel("orders", public=True)
        assert place[1].place == place[0]

    def test_however_deep_the_package_is_in_between(self):
        hub = Hub()
        router = Router()
        hub.include_router(router)
        place = here(), router.channel("orders", public=True)
        assert place[1].place == place[0]

    def test_and_is_found_by_its_names_with_their_parameters(self):
        router = Router()
        orders = router.channel("orders", public=True)
        dialog = router.channel("dialog:{dialog_id:int}", public=True)
        assert router.find("orders") == (orders, {})
        assert router.find("dialog:5") == (dialog, {"dialog_id": 5})
        assert router.find("dialog:05") is None
        assert router.find("nothing") is None

    def test_a_decorator_gives_the_channel_back(self):
        router = Router()

        @router.channel("orders")
        async def orders(): ...

        assert isinstance(orders, Channel)
        assert router.find("orders") == (orders, {})

    def test_two_for_one_name_are_refused_with_both_places(self):
        router = Router()
        first = here(), router.channel("team:{name}", public=True)
        with pytest.raises(ValueError, match="one pattern at most") as caught:
            second = here(), router.channel("team:{other}", public=True)
        second = f"{__file__}:{int(first[0].rpartition(':')[2]) + 2}"
        assert f"'team:{{name}}' ({first[0]}) and 'team:{{other}}' ({second})" in str(caught.value)

    def test_a_literal_beside_a_parameter_is_no_conflict_and_wins(self):
        router = Router()
        some = router.channel("team:{name}", public=True)
        one = router.channel("team:one", public=True)
        assert router.find("team:one")[0] is one
        assert router.find("team:two")[0] is some

    @pytest.mark.parametrize("pattern", ["broadcast", "user:{id}", "user:7", "$x", "$", "user:"])
    def test_the_hubs_own_names_are_refused_with_the_place(self, pattern):
        with pytest.raises(ValueError, match="expected a pattern beside the hub's own") as caught:
            place = here(), Router().channel(pattern, public=True)
        place = re.escape(f"{__file__}:")
        assert re.match(
            rf"{place}\d+: expected .* \(broadcast, user:…, \$…\), got '{re.escape(pattern)}'",
            str(caught.value),
        )

    @pytest.mark.parametrize("pattern", ["broadcasts", "users:{id}", "user", "a:$"])
    def test_what_only_looks_like_them_is_anybodys(self, pattern):
        Router().channel(pattern, public=True)

    @pytest.mark.parametrize("pattern", ["{$}", "", "a{b}", "{n:nothing}", None])
    def test_what_is_no_pattern_is_refused(self, pattern):
        with pytest.raises(ValueError, match="expected"):
            Router().channel(pattern, public=True)

    @pytest.mark.parametrize("pattern", ["{kind}:{id}", "{name:path}"])
    def test_a_pattern_for_every_name_does_not_answer_for_the_hubs_own(self, pattern):
        hub = Hub()
        hub.channel(pattern, public=True)
        for name in ("broadcast", "user:7"):
            assert hub.find(name)[0].own
        assert hub.find("$internal") is None


class TestOwn:
    def test_every_hub_has_broadcast_and_user(self):
        hub = Hub()
        assert hub.find("broadcast")[0].own
        assert hub.find("user:7") == (hub.find("user:8")[0], {"user": "7"})
        assert hub.find("user:a:b/c")[1] == {"user": "a:b/c"}
        assert [channel.pattern.text for channel in own_channels()] == ["broadcast", "user:{user:path}"]

    def test_names_with_a_dollar_are_nobodys(self):
        hub = Hub()
        hub.channel("{name:path}", public=True)
        assert hub.find("$x") is None
        assert hub.find("x$") is not None


class TestIncluding:
    def test_what_was_declared_before_and_what_comes_after(self):
        hub, router = Hub(), Router()
        before = router.channel("before", public=True)
        hub.include_router(router)
        after = router.channel("after", public=True)
        assert hub.find("before")[0] is before
        assert hub.find("after")[0] is after

    def test_nested_in_any_order(self):
        hub, outer, inner = Hub(), Router(), Router()
        one = inner.channel("one", public=True)
        outer.include_router(inner)
        hub.include_router(outer)
        two = inner.channel("two", public=True)
        three = outer.channel("three", public=True)
        assert [hub.find(name)[0] for name in ("one", "two", "three")] == [one, two, three]
        assert outer.find("two")[0] is two
        assert inner.find("three") is None

    def test_a_hub_hears_of_a_router_that_is_included_into_an_included_one(self):
        hub, outer, inner = Hub(), Router(), Router()
        hub.include_router(outer)
        one = inner.channel("one", public=True)
        outer.include_router(inner)
        assert hub.find("one")[0] is one

    def test_what_two_declare_is_refused_with_both_places(self):
        hub, router = Hub(), Router()
        first = here(), hub.channel("orders", public=True)
        second = here(), router.channel("{name}", public=True)
        hub.include_router(router)  # a literal against a parameter
        router = Router()
        third = here(), router.channel("orders", public=True)
        with pytest.raises(ValueError, match="one pattern at most") as caught:
            hub.include_router(router)
        assert first[0] in str(caught.value)
        assert third[0] in str(caught.value)
        assert second[0] not in str(caught.value)

    def test_also_where_it_is_declared_only_later(self):
        hub, router = Hub(), Router()
        hub.include_router(router)
        first = here(), hub.channel("orders", public=True)
        with pytest.raises(ValueError, match="one pattern at most") as caught:
            router.channel("orders", public=True)
        assert first[0] in str(caught.value)

    def test_twice_is_refused(self):
        router = Router()
        Hub().include_router(router)
        with pytest.raises(ValueError, match="expected a router that is in no other, got <"):
            Hub(namespace="other").include_router(router)

    def test_into_itself_is_refused(self):
        router = Router()
        with pytest.raises(ValueError, match="expected a router that is in no other"):
            router.include_router(router)

    def test_into_one_that_is_in_it_is_refused(self):
        outer, inner = Router(), Router()
        outer.include_router(inner)
        try:
            inner.include_router(outer)
        except ValueError:
            return
        raise AssertionError("expected a ValueError")

    async def test_a_router_of_a_module_works_like_the_hub(self):
        module = types.ModuleType("rooms")
        module.router = Router()
        room = module.router.channel("room:{n:int}", public=True)
        hub = Hub()
        hub.include_router(module.router)
        async with hub, Client(hub, channels=["room:5"]) as client:
            for _ in range(2):
                await client.receive("subscribed")
            await room(n=5).publish("said", "hello")
            assert await client.events(1) == ["hello"]


class TestStart:
    async def test_neither_function_nor_public_is_refused_by_name_and_place(self):
        hub = Hub()
        place = here(), hub.channel("orders")
        with pytest.raises(
            SettingsError, match="'orders' to have a function or public=True, got neither"
        ) as caught:
            await hub.__aenter__()
        assert str(caught.value).startswith(place[0])

    async def test_also_in_a_router(self):
        hub, router = Hub(), Router()
        hub.include_router(router)
        router.channel("orders")
        with pytest.raises(SettingsError, match="'orders'"):
            await hub.__aenter__()

    async def test_once_it_has_one_it_starts(self):
        hub = Hub()
        orders = hub.channel("orders")
        with pytest.raises(SettingsError):
            await hub.__aenter__()
        orders(ask)
        async with hub:
            pass

    async def test_what_is_declared_while_it_runs_counts_at_once(self):
        async with Hub() as hub:
            with pytest.raises(Undeclared):
                await hub.publish("late", "said", 1)
            hub.channel("late", public=True)
            assert (await hub.publish("late", "said", 1)).offset == 1


class TestPublishing:
    @pytest.mark.parametrize("verb", ["publish", "publish_nowait"])
    async def test_a_router_in_no_hub_is_not_running_and_names_the_place(self, verb):
        router = Router()
        place = here(), router.channel("room:{n:int}", public=True)
        with pytest.raises(NotRunning, match=r"'room:5' to be in a hub \(hub.include_router\)") as caught:
            await getattr(place[1](n=5), verb)("said", 1)
        assert str(caught.value).startswith(place[0])

    async def test_settings_of_the_hub_fill_what_a_declaration_leaves_open(self):
        router = Router()
        default = router.channel("a", public=True)
        own = router.channel("b", public=True, history=5, history_ttl=7.0)
        none = router.channel("c", public=True, history=0)
        Hub(history=50, history_ttl=70.0).include_router(router)
        assert [(*channel.retention,) for channel in (default, own, none)] == [
            (50, 70.0),
            (5, 7.0),
            (0, 70.0),
        ]
        assert Settings().history == 100


class TestCommands:
    def declare(self, router, name="c"):
        @router.command(name)
        async def command(n: int) -> int:
            return n

        return command

    def test_the_function_stays_what_it_is(self):
        command = self.declare(hub := Hub())
        assert done(command(5)) == 5
        assert repr(hub.commands["c"]).startswith("<Command 'c' declared at ")
        assert hub.commands["c"].place.partition(":")[0] == __file__

    def test_a_router_s_commands_are_the_hub_s_declared_before_or_after(self):
        hub, router, inner = Hub(), Router(), Router()
        self.declare(inner, "first")
        router.include_router(inner)
        hub.include_router(router)
        self.declare(inner, "second")
        assert hub.commands.keys() == router.commands.keys() == inner.commands.keys() == {"first", "second"}

    @pytest.mark.parametrize("nested", [False, True])
    def test_a_second_one_is_refused_with_both_places(self, nested):
        hub, router = Hub(), Router()
        if nested:
            hub.include_router(router)
        self.declare(hub)
        with pytest.raises(
            ValueError, match="expected one command 'c', got a second; the first is at "
        ) as caught:
            self.declare(router if nested else hub)
        assert str(caught.value).count(__file__) == 2
        assert router.commands == {}

    def test_including_what_is_declared_already_is_refused(self):
        hub, router = Hub(), Router()
        self.declare(hub)
        self.declare(router)
        with pytest.raises(ValueError, match="expected one command 'c'"):
            hub.include_router(router)

    def test_what_cannot_be_a_command_is_refused_with_the_place(self):
        with pytest.raises(TypeError, match=rf"{__file__}:\d+: command 'c': expected parameters"):

            @Hub().command("c")
            async def command(*args): ...
