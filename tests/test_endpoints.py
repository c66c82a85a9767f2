"""URLs beside `/stream`: each has a channel, a kind and rights of its own, and nothing else."""

import asyncio
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.routing import Mount
from websockets.exceptions import ConnectionClosed

import asgi_ws
from asgi_ws import (
    Forbidden,
    Hub,
    HubMiddleware,
    Identity,
    LimitExceeded,
    NotFound,
    Router,
    Session,
    SettingsError,
    Unauthorized,
)
from asgi_ws.endpoints import MAX_PATH, OWN_PATHS, Endpoint
from tests.fakes import Client, turns
from tests.servers import receive, serve, welcomed

pytestmark = pytest.mark.anyio


def dialogs(**options):
    """A hub with dialogs, their endpoint, and what else there may be."""
    hub = Hub()

    @hub.channel("dialog:{dialog_id:int}")
    async def dialog(session: Session, dialog_id: int):
        if dialog_id == 404:
            raise NotFound("no such dialog")
        if dialog_id == 403:
            raise Forbidden("not yours")
        if dialog_id == 401:
            raise Unauthorized("sign in")
        if dialog_id == 500:
            raise RuntimeError("secret")

    hub.channel("orders", public=True)
    hub.channel("room:{name}", public=True)
    hub.endpoint("/dialogs/{dialog_id:int}", channel="dialog:{dialog_id}", **options)
    return hub


async def joined(client, count=1):
    """The welcome's fields, and the names of the channels that follow it."""
    welcome = await client.receive("welcome")
    return welcome, [(await client.receive("subscribed"))["channel"] for _ in range(count)]


async def ending(client):
    await client.ended()
    return client.closed["code"], client.closed["reason"]


class TestASession:
    async def test_has_the_channel_of_its_url_from_the_start_and_hears_it(self):
        hub = dialogs()
        async with hub, Client(hub, "/dialogs/5") as five, Client(hub, "/dialogs/6") as six:
            assert (await joined(five))[1] == ["dialog:5"]
            assert (await joined(six))[1] == ["dialog:6"]
            await hub.publish("dialog:5", "said", "to five")
            await hub.publish("dialog:6", "said", "to six")
            assert await five.events(1) == ["to five"]
            assert await six.events(1) == ["to six"]

    async def test_calls_publishes_and_looks_back_only_where_its_endpoint_lists_it(self):
        hub = dialogs(commands=["add"], channels=["room:{name}"])
        room = hub.channel("wall:{name}", public=True)
        listed = next(entry.value for entry in hub.channels if entry.pattern.text == "room:{name}")

        @room.publish_right
        @listed.publish_right
        async def anyone(name: str) -> None: ...

        @hub.command("add")
        async def add(a: int, b: int) -> int:
            return a + b

        @hub.command("drop")
        async def drop() -> None:
            raise AssertionError("not listed")

        async def answer(client: Client, **request: object) -> object:
            client.send(ref=1, **request)
            message = await client.receive("reply", "error")
            return message.get("code", message.get("data"))

        async with hub, Client(hub, "/dialogs/5") as client, Client(hub) as stream:
            await joined(client)
            await joined(stream)
            assert await answer(client, type="call", command="add", params={"a": 1, "b": 2}) == 3
            assert await answer(client, type="call", command="drop") == "not_found"
            assert await answer(stream, type="call", command="drop") == "internal"
            for channel, code in (("room:x", None), ("wall:x", "not_found"), ("broadcast", "not_found")):
                got = await answer(client, type="publish", channel=channel, event="said", data=1)
                assert code is None or got == code, channel
                assert await answer(client, type="history", channel=channel) == (code or "forbidden")
            assert await answer(client, type="history", channel="dialog:5") != "forbidden"

    async def test_has_nothing_that_its_endpoint_does_not_list(self):
        hub = dialogs()

        @hub.authenticate
        async def who(connection, token):
            return Identity("7")

        async with hub, Client(hub, "/dialogs/5") as client:
            assert (await joined(client))[0]["user"] == "7"
            for channel in ("orders", "dialog:6", "broadcast", "user:7", "room:x", "nothing"):
                answer = await client.subscribe(channel)
                expected = f"expected a channel of this server, got {channel!r}"  # it does not exist here
                assert (answer["code"], answer["message"]) == ("not_found", expected)
            await hub.broadcast("tick", 1)
            await hub.publish_to_user("7", "letter", 2)
            await hub.publish("dialog:5", "said", 3)
            assert await client.events(1) == [3]

    async def test_has_what_its_endpoint_lists(self):
        hub = dialogs(channels=["orders", "room:{name}"], broadcast=True, user=True)

        @hub.authenticate
        async def who(connection, token):
            return Identity("7")

        async with hub, Client(hub, "/dialogs/5") as client:
            assert set((await joined(client, 3))[1]) == {"dialog:5", "broadcast", "user:7"}
            assert (await client.subscribe("orders"))["type"] == "subscribed"
            assert (await client.subscribe("room:x"))["type"] == "subscribed"
            assert (await client.subscribe("dialog:6"))["code"] == "not_found"
            assert (await client.subscribe("user:8"))["code"] == "not_found"

    async def test_one_name_of_a_pattern_in_the_list_is_one_name(self):
        hub = dialogs(channels=["room:x"])
        async with hub, Client(hub, "/dialogs/5") as client:
            await joined(client)
            assert (await client.subscribe("room:x"))["type"] == "subscribed"
            assert (await client.subscribe("room:y"))["code"] == "not_found"

    async def test_may_leave_its_channel_and_come_back(self):
        hub = dialogs()
        async with hub, Client(hub, "/dialogs/5") as client:
            await joined(client)
            client.send(type="unsubscribe", channel="dialog:5", ref=1)
            assert (await client.receive("unsubscribed"))["code"] == "client"
            assert (await client.subscribe("dialog:5"))["type"] == "subscribed"

    async def test_a_refused_subscribe_later_on_is_an_error_and_no_end(self):
        hub, may = Hub(), []

        @hub.channel("dialog:{n:int}")
        async def dialog(n):
            if may:
                raise Forbidden("no more")

        hub.endpoint("/d/{n:int}", channel=dialog)
        async with hub, Client(hub, "/d/5") as client:
            await joined(client)
            client.send(type="unsubscribe", channel="dialog:5")
            may.append(False)
            assert (await client.subscribe("dialog:5"))["code"] == "forbidden"
            assert client.closed is None

    async def test_resumes_its_channel_by_the_url(self):
        hub = dialogs()
        async with hub:
            first = await hub.publish("dialog:5", "said", 1)
            await hub.publish("dialog:5", "said", 2)
            query = f"resume={first.epoch}.1.dialog:5".encode()
            async with Client(hub, "/dialogs/5", query_string=query) as client:
                await client.receive("welcome")
                subscribed = await client.receive("subscribed")
                assert (subscribed["channel"], subscribed["recovered"]) == ("dialog:5", True)
                assert await client.events(1) == [2]

    async def test_knows_its_kind_and_status_counts_by_it(self):
        hub, kinds = dialogs(kind="admin", broadcast=True), []
        hub.endpoint("/site/{dialog_id:int}", channel="dialog:{dialog_id:int}")

        @hub.on_connect
        async def note(session, connection):
            kinds.append(session.kind)

        async with hub:
            assert (await hub.status())["connections"] == {"stream": 0, "admin": 0, "dialog": 0}
            async with Client(hub, "/dialogs/5") as one, Client(hub, "/site/5") as two, Client(hub) as three:
                for client in (one, two, three):
                    await client.receive("subscribed")
                assert (await hub.status())["connections"] == {"stream": 1, "admin": 1, "dialog": 1}
        assert sorted(kinds) == ["admin", "dialog", "stream"]

    async def test_two_endpoints_of_one_channel_have_rights_of_their_own(self):
        hub = dialogs(kind="admin", channels=["orders"])
        hub.endpoint("/site/{dialog_id:int}", channel="dialog:{dialog_id}", kind="site")
        hub.channel("site:{n:int}", public=True)
        async with hub, Client(hub, "/dialogs/5") as admin, Client(hub, "/site/5") as site:
            await joined(admin)
            await joined(site)
            assert (await admin.subscribe("orders"))["type"] == "subscribed"
            assert (await site.subscribe("orders"))["code"] == "not_found"
            await hub.publish("orders", "created", "secret")
            await hub.publish("dialog:5", "said", "both")
            assert sorted(await admin.events(2)) == ["both", "secret"]
            assert await site.events(1) == ["both"]

    async def test_without_a_channel_has_what_is_listed(self):
        hub = Hub()
        hub.endpoint("/bell", broadcast=True)
        async with hub, Client(hub, "/bell") as client:
            assert (await joined(client))[1] == ["broadcast"]
            assert (await hub.status())["connections"] == {"stream": 0, "bell": 1}

    async def test_of_one_name_of_a_pattern(self):
        hub = dialogs()
        hub.endpoint("/lobby", channel="room:lobby")
        async with hub, Client(hub, "/lobby") as client:
            assert (await joined(client))[1] == ["room:lobby"]
            assert (await hub.status())["connections"]["room"] == 1


class TestRefused:
    @pytest.mark.parametrize(
        ("number", "expected"),
        [
            (401, (4001, "sign in")),
            (403, (4003, "not yours")),
            (404, (4004, "no such dialog")),
            (500, (1011, "internal error")),
        ],
    )
    async def test_the_endpoints_channel_closes_the_connection(self, number, expected):
        hub = dialogs()
        async with hub, Client(hub, f"/dialogs/{number}") as client:
            assert await ending(client) == expected
            assert (await hub.status())["active_connections"] == 0

    async def test_another_channel_of_the_url_is_an_error_and_the_connection_stays(self):
        hub = dialogs(channels=["dialog:{dialog_id}"])
        async with hub, Client(hub, "/dialogs/5", channels=["dialog:403", "orders"]) as client:
            await client.receive("welcome")
            answers = [await client.receive() for _ in range(3)]
            assert {a["channel"]: a.get("code", a["type"]) for a in answers} == {
                "dialog:5": "subscribed", "dialog:403": "forbidden", "orders": "not_found",
            }  # fmt: skip
            assert client.closed is None

    @pytest.mark.parametrize(
        "path", ["/dialogs/x", "/dialogs/007", "/dialogs/", "/dialogs/5/6", "/dialogs/-1"]
    )
    async def test_a_path_that_is_none(self, path):
        hub = dialogs()
        async with hub, Client(hub, path) as client:
            assert await ending(client) == (4004, "no such endpoint")

    async def test_a_path_whose_channel_is_none(self):
        hub = Hub()
        hub.channel("room:{name}", public=True)
        hub.endpoint("/rooms/{name}", channel="room:{name}")
        async with hub:
            for name in ("x" * 255, "a\x01b", "é" * 200):
                async with Client(hub, f"/rooms/{name}", raw_path=b"") as client:
                    assert (await ending(client))[0] == 4004
            async with Client(hub, "/rooms/" + "x" * MAX_PATH) as client:
                assert await ending(client) == (4004, "no such endpoint")

    async def test_authenticate_of_the_endpoint_is_asked_first_and_in_place_of_the_hubs(self):
        asked = []

        async def jwt(connection, token):
            asked.append(("jwt", connection.path_params, token))
            if token == "bad":
                raise Unauthorized("no")
            return Identity("7")

        hub = dialogs(authenticate=jwt)

        @hub.authenticate
        async def who(connection, token):
            asked.append("hub")

        async with hub:
            async with Client(hub, "/dialogs/403", headers={"authorization": "Bearer bad"}) as client:
                assert await ending(client) == (4001, "no")
            async with Client(hub, "/dialogs/5", headers={"authorization": "Bearer good"}) as client:
                assert (await joined(client))[0]["user"] == "7"
            async with Client(hub) as client:
                await joined(client)
        assert asked == [("jwt", {"dialog_id": 403}, "bad"), ("jwt", {"dialog_id": 5}, "good"), "hub"]

    async def test_origins_of_an_endpoint_replace_the_setting_and_the_same_origin(self):
        hub = Hub(allowed_origins=["https://any.example"])
        hub.channel("orders", public=True)
        hub.endpoint("/site", channel="orders", origins=["https://shop.example", "https://*.shop.example"])

        async def connect(path, origin):
            headers = {"host": "app.example"} | ({} if origin is None else {"origin": origin})
            async with Client(hub, path, headers=headers) as client:
                message = await client.receive() if client.closed is None and origin in allowed else None
                if message is None:
                    return await ending(client)
                return message["type"]

        async with hub:
            allowed = {None, "https://shop.example", "https://eu.shop.example"}
            for origin in allowed:
                assert await connect("/site", origin) == "welcome"
            for origin in ("https://any.example", "https://app.example", "null", "https://evil.example"):
                code, reason = await connect("/site", origin)
                assert (code, reason) == (4003, f"origin {origin!r} is not in the origins= of /site")
            allowed = {"https://any.example", "https://app.example"}
            for origin in allowed:
                assert await connect("/stream", origin) == "welcome"
            assert (await connect("/stream", "https://shop.example"))[0] == 4003


class TestSources:
    def hub(self, path="/power"):
        hub = Hub()

        @hub.source("power")
        async def power(module: int, interval: float = 0.1):
            yield module
            await asyncio.Event().wait()

        hub.endpoint(path, source="power")
        return hub

    async def test_the_query_has_the_parameters_of_the_source(self):
        hub = self.hub()
        async with hub, Client(hub, "/power", query_string=b"module=4&token=x") as client:
            assert (await joined(client))[1] == ["power?interval=0.1&module=4"]
            assert (await hub.status())["connections"] == {"stream": 0, "power": 1}

    async def test_the_path_may_have_them_too(self):
        hub = self.hub("/power/{module:int}")
        async with hub, Client(hub, "/power/4") as client:
            assert (await joined(client))[1] == ["power?interval=0.1&module=4"]

    @pytest.mark.parametrize(
        ("query", "reason"),
        [
            (b"", "expected parameter 'module' of source 'power' to be an integer, got none"),
            (b"modul=4", "expected a parameter of source 'power' (interval, module), got 'modul'"),
            (b"module=4&module=5", "expected each parameter once, got 'module' twice"),
        ],
    )
    async def test_a_query_that_is_not_the_sources_is_refused(self, query, reason):
        hub = self.hub()
        async with hub, Client(hub, "/power", query_string=query) as client:
            assert await ending(client) == (1008, reason)
            assert hub.stats()["rejected"] == {"query": 1}

    async def test_one_may_be_listed_by_its_name(self):
        hub = self.hub()
        endpoint = hub.endpoint("/page", broadcast=True, channels=["power"])
        async with hub:
            assert endpoint.lists("power?module=4", hub.sources["power"])
            assert not endpoint.lists("power?module=4", self.hub().sources["power"])

    async def test_one_that_nothing_declares_stops_the_start(self):
        hub = Hub()
        hub.endpoint("/power", source="power")
        with pytest.raises(
            SettingsError, match=r"endpoint '/power' to name a declared source .*, got 'power'"
        ):
            await hub.__aenter__()


class TestDeclaring:
    def refused(self, match, error=ValueError, router=None, **options):
        with pytest.raises(error, match=match):
            (router or Router()).endpoint(options.pop("path", "/x"), **{"channel": "orders", **options})

    @pytest.mark.parametrize(
        "path", ["", "x", "/", "//", "/a//b", "/a b", "/a?b", "/a#b", "/{", "/{a}b", None, 5]
    )
    def test_a_path_is_a_path(self, path):
        self.refused("expected", path=path)

    @pytest.mark.parametrize("path", OWN_PATHS)
    def test_the_hubs_own_paths_are_refused_with_both_places(self, path):
        self.refused(
            rf"got '{re.escape(path)}' \(the hub's own\) and '.*' \(.*test_endpoints.py:\d+\)", path=path
        )
        self.refused("the hub's own", path=path + "/")

    def test_a_literal_wins_over_a_parameter(self):
        router = Router()
        wide = router.endpoint("/{name}", channel="room:{name}")
        exact = router.endpoint("/lobby", channel="room:lobby")
        assert router.endpoints.find("/lobby") == (exact, {})
        assert router.endpoints.find("/other") == (wide, {"name": "other"})
        assert router.endpoints.find("/status") is None

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("/d/{a:int}", "/d/{b:int}"),
            ("/d/{a:int}", "/d/{b}"),
            ("/d/5", "/d/5/"),
            ("/d/{a:path}", "/d/{b}"),
        ],
    )
    def test_two_that_could_answer_for_one_path_are_refused_with_both_places(self, one, other):
        router = Router()
        router.endpoint(one, channel="a")
        match = rf"got '{re.escape(one)}' \(.*py:\d+\) and '{re.escape(other.rstrip('/'))}' \(.*py:\d+\)"
        self.refused(match, router=router, path=other)

    def test_also_when_routers_are_included(self):
        hub, router = Hub(), Router()
        hub.endpoint("/d", channel="a")
        router.endpoint("/d", channel="b")
        with pytest.raises(ValueError, match=r"test_endpoints.py:\d+\) and '/d' \(.*test_endpoints.py:\d+"):
            hub.include_router(router)

    async def test_an_included_router_brings_its_endpoints_now_and_later(self):
        hub, router = Hub(), Router()
        hub.channel("orders", public=True)
        router.endpoint("/now", channel="orders")
        hub.include_router(router)
        async with hub:
            router.endpoint("/later", channel="orders")
            for path in ("/now", "/later"):
                async with Client(hub, path) as client:
                    assert (await joined(client))[1] == ["orders"]
            with pytest.raises(SettingsError, match="'nowhere'"):
                router.endpoint("/never", channel="nowhere")

    def test_what_contradicts_itself_is_refused(self):
        self.refused("a channel or a source, got both: 'orders' and 'power'", TypeError, source="power")
        self.refused("a channel, a source, or something listed, got nothing", channel=None)
        self.refused("expected a list, got 'orders'", TypeError, channels="orders")
        self.refused("expected a list, got 'https://a.example'", TypeError, origins="https://a.example")
        self.refused("expected origins such as .* got 'shop.example'", origins=["shop.example"])
        self.refused(
            "expected authenticate to be async", TypeError, authenticate=lambda connection, token: None
        )
        self.refused("expected a kind of 1 to 64", kind="a b")
        self.refused("expected a kind of 1 to 64", kind="")
        self.refused("expected a channel's name or a declared channel, got 5", TypeError, channel=5)
        self.refused("parameter", channel="a:{b!}")

    def test_authenticate_may_be_an_object_that_is_called(self):
        class Site:
            async def __call__(self, connection, token):
                return None

        assert Router().endpoint("/x", channel="a", authenticate=Site()).authenticate is not None

    @pytest.mark.parametrize(
        ("options", "kind"),
        [
            ({"channel": "dialog:{n}"}, "dialog"),
            ({"channel": "{n}:dialog"}, "dialog"),
            ({"channel": "{n:path}"}, "p"),
            ({"source": "power"}, "power"),
            ({"broadcast": True}, "p"),
            ({"channel": "a", "kind": "b"}, "b"),
        ],
    )
    def test_the_kind_is_the_sources_name_or_the_channels_first_literal(self, options, kind):
        assert Endpoint("/p/{n}", **options).kind == kind

    def test_its_repr_says_what_and_where(self):
        assert repr(Endpoint("/p", channel="a", place="app.py:12")) == "<Endpoint '/p' declared at app.py:12>"

    START = {
        "a channel that nothing declares": (
            "/x",
            {"channel": "nothing"},
            "a declared channel .*, got 'nothing'",
        ),
        "a pattern that nothing declares": ("/{a}", {"channel": "nothing:{a}"}, "got 'nothing:{a}'"),
        "another parameter": (
            "/x/{id:int}",
            {"channel": "dialog:{n}"},
            "of path '/x/{id:int}' to be those of channel 'dialog:{n:int}', got id:int and n:int",
        ),
        "another converter": ("/x/{n}", {"channel": "dialog:{n}"}, "got n:str and n:int"),
        "another converter in the channel": ("/x/{n}", {"channel": "dialog:{n:str}"}, "got 'dialog:{n:str}'"),
        "no parameter": ("/x", {"channel": "dialog:{n}"}, "got none and n:int"),
        "one too many": ("/x/{n:int}/{m}", {"channel": "dialog:{n}"}, "got n:int, m:str and n:int"),
        "one for a name": ("/x/{n:int}", {"channel": "dialog:5"}, "channel 'dialog:5', got n:int and none"),
        "a name that is none": ("/x", {"channel": "dialog:x"}, "got 'dialog:x'"),
        "a list with an unknown": ("/x", {"channels": ["nothing"]}, "got 'nothing'"),
        "an unknown command": ("/x", {"commands": ["nothing"]}, "a declared command .*, got 'nothing'"),
        "the hub's own broadcast": ("/x", {"channel": "broadcast"}, "got 'broadcast'"),
        "anybody's letters": ("/x/{user:path}", {"channel": "user:{user}"}, "got 'user:{user}'"),
        "anybody's letters in the list": ("/x", {"channels": ["user:7"]}, "got 'user:7'"),
    }

    @pytest.mark.parametrize("wrong", START)
    async def test_what_is_not_declared_stops_the_start_and_names_the_place(self, wrong):
        path, options, match = self.START[wrong]
        hub = Hub()
        hub.channel("dialog:{n:int}", public=True)
        hub.endpoint(path, **options)
        with pytest.raises(SettingsError) as caught:
            await hub.__aenter__()
        assert re.search(match.replace("{", r"\{").replace("}", r"\}"), str(caught.value))
        assert re.match(r".*test_endpoints\.py:\d+: expected ", str(caught.value))

    async def test_a_command_that_is_declared_may_be_listed(self):
        hub = Hub()
        hub.commands = {"cancel": object()}
        endpoint = hub.endpoint("/x", commands=["cancel"])
        async with hub:
            assert endpoint.allows("cancel")
            assert not endpoint.allows("other")
            assert hub.stream.allows("other")

    @given(st.from_regex(r"(/[a-z0-9:{}éß+-]{1,8}){1,3}/?", fullmatch=True))
    def test_a_path_is_served_or_refused_and_never_both(self, path):
        router = Router()
        try:
            endpoint = router.endpoint(path, broadcast=True)
        except ValueError:
            return
        if not endpoint.path.params:
            assert router.endpoints.find(path.removesuffix("/")) == (endpoint, {})


@pytest.mark.parametrize("server", ["uvicorn", "fast", "hypercorn"])
@pytest.mark.parametrize("mounted", ["mount", "middleware", "bare"])
async def test_on_a_server_wherever_the_hub_is_mounted(server, mounted):
    hub = dialogs()
    hub.channel("zimmer:{name}", public=True)
    hub.endpoint("/zimmer/{name}", channel="zimmer:{name}")
    app, prefix = {
        "mount": (Starlette(routes=[Mount("/a/{tenant}/ws", hub)], lifespan=hub.lifespan), "/a/b/ws"),
        "middleware": (HubMiddleware(Starlette(), hub=hub), "/ws"),
        "bare": (hub, ""),
    }[mounted]
    with serve(app, server) as served:
        for path in ("/dialogs/5", "/dialogs/5/"):
            async with served.connect(prefix + path) as ws:
                await welcomed(ws, 1)
                await ws.send('{"type":"ping","ref":1}')
                assert (await receive(ws, "pong"))["ref"] == 1
        async with served.connect(prefix + "/zimmer/gr%C3%BCn%20%F0%9F%98%80") as ws:
            await receive(ws, "welcome")
            assert (await receive(ws))["channel"] == "zimmer:grün 😀"
        async with served.connect(prefix + "/dialogs/403") as ws:
            with pytest.raises(ConnectionClosed):
                while True:
                    await ws.recv()
            assert ws.close_code == 4003
        plain = served.get(prefix + "/dialogs/5")
        assert (plain.status_code, plain.json()["code"]) == (426, "bad_request")
        assert served.post(prefix + "/dialogs/5").status_code == 405
        assert served.get(prefix + "/dialogs/x").status_code == 404


@pytest.mark.parametrize(
    ("path", "found"), [("/ws", False), ("/ws/", False), ("/ws/ws", True), ("/ws/ws/", True)]
)
async def test_the_path_is_that_below_the_mount(path, found):
    hub = Hub()
    hub.endpoint("/ws", broadcast=True)
    async with hub:
        async with Client(hub, path, root_path="/ws") as client:
            if found:
                assert (await joined(client))[1] == ["broadcast"]
            else:
                assert (await ending(client))[0] == 4004


async def test_middleware_passes_on_what_is_no_endpoint():
    hub = dialogs()
    middleware = HubMiddleware(Starlette(), hub=hub)
    scope = {"type": "websocket", "root_path": "", "path": "/ws/dialogs/5"}
    assert middleware._mounted(scope) is not None
    assert middleware._mounted({**scope, "path": "/ws/dialogs/x"}) is None


async def test_the_reason_of_a_full_source_is_to_come_back_later():
    hub = Hub()

    @hub.channel("full")
    async def full():
        raise LimitExceeded("expected at most 64 instances, got one more")

    hub.endpoint("/full", channel=full)
    async with hub, Client(hub, "/full") as client:
        assert await ending(client) == (4100, "expected at most 64 instances, got one more")


def test_an_endpoint_is_no_name_of_the_front_door():
    assert "Endpoint" not in asgi_ws.__all__


async def test_a_session_that_ends_while_its_channel_is_asked_leaves_nothing():
    hub = dialogs()
    async with hub, Client(hub, "/dialogs/5") as client:
        client.leave()
        await client.ended()
        await turns()
        assert (await hub.status())["subscriptions"] == 0
