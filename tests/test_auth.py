"""Who a session is: the application's function, else what its framework knows, else nobody."""

import pytest
from starlette.authentication import BaseUser, SimpleUser, UnauthenticatedUser
from starlette.requests import HTTPConnection

from asgi_ws import Forbidden, Hub, Identity, Unauthorized
from asgi_ws.auth import bearer_token, identify
from tests.fakes import Client

pytestmark = pytest.mark.anyio


def connection(authorization=None, **scope):
    headers = [] if authorization is None else [(b"authorization", authorization.encode())]
    return HTTPConnection({"type": "websocket", "headers": headers, "path": "/stream", **scope})


class TestBearerToken:
    @pytest.mark.parametrize(
        ("header", "token"),
        [
            (None, None),
            ("", None),
            ("Bearer abc", "abc"),
            ("bearer abc", "abc"),
            ("BEARER   abc  ", "abc"),
            ("Bearer", None),
            ("Bearer ", None),
            ("Basic abc", None),
            ("abc", None),
            ("Bearer a b", "a b"),
        ],
    )
    def test_is_that_of_the_authorization_header(self, header, token):
        assert bearer_token(connection(header)) == token


class TestTheApplicationsFunction:
    async def test_has_the_connection_and_the_token(self):
        given = connection("Bearer abc")
        asked = []

        async def who(connection, token):
            asked.append((connection, token))
            return Identity("7")

        assert await identify(given, who, "abc") == Identity("7")
        assert asked == [(given, "abc")]

    async def test_none_is_anonymous_whatever_the_framework_says(self):
        async def nobody(connection, token):
            return None

        assert await identify(connection(user=SimpleUser("ann")), nobody, None) is None

    async def test_what_it_raises_is_passed_on(self):
        async def refuse(connection, token):
            raise Unauthorized("who are you?")

        with pytest.raises(Unauthorized, match="who are you"):
            await identify(connection(), refuse, None)

    @pytest.mark.parametrize("wrong", ["7", 7, {"user": "7"}, True])
    async def test_anything_else_is_refused_with_what_was_expected(self, wrong):
        async def who(connection, token):
            return wrong

        with pytest.raises(TypeError, match=f"an Identity or None, got {type(wrong).__name__}"):
            await identify(connection(), who, None)

    @pytest.mark.parametrize("user", ["", "a\nb", "\ud800", "x" * 251, "é" * 126])
    async def test_a_user_that_can_name_no_channel_is_refused_where_it_comes_from(self, user):
        async def who(connection, token):
            return Identity(user)

        with pytest.raises(
            ValueError, match="expected the user of an Identity to be 1 to 250 bytes of UTF-8"
        ):
            await identify(connection(), who, None)

    async def test_a_user_that_is_no_text_is_refused_where_it_comes_from(self):
        async def who(connection, token):
            return Identity(7)

        with pytest.raises(TypeError, match="user.*str.*int"):
            await identify(connection(), who, None)


class TestTheFrameworksUser:
    class Django:
        is_authenticated = True
        pk = 42
        username = "ann"

    class Nameless:
        is_authenticated = True
        pk = None
        username = ""

    class Raises(BaseUser):
        is_authenticated = True
        display_name = "Ann"

    @pytest.mark.parametrize(
        ("user", "id"),
        [
            (SimpleUser("ann"), "ann"),
            (Django(), "42"),
            (Raises(), "Ann"),
            (type("U", (), {"is_authenticated": True, "id": 0})(), "0"),
        ],
    )
    async def test_that_is_authenticated_is_the_identity(self, user, id):
        assert await identify(connection(user=user), None, None) == Identity(id)

    @pytest.mark.parametrize("user", [None, UnauthenticatedUser(), object()])
    async def test_any_other_is_anonymous(self, user):
        assert await identify(connection(user=user), None, None) is None
        assert await identify(connection(), None, None) is None

    async def test_one_without_an_id_is_refused(self):
        with pytest.raises(Unauthorized, match="to have an identity, got Nameless without one"):
            await identify(connection(user=self.Nameless()), None, None)


class TestInASession:
    async def test_a_user_has_a_channel_of_their_own(self):
        hub = Hub()

        @hub.authenticate
        async def who(connection, token):
            return token and Identity(token)

        assert hub.authenticator is who
        async with hub, Client(hub, headers={"authorization": "Bearer ann"}) as ann, Client(hub) as nobody:
            assert (await ann.receive("welcome"))["user"] == "ann"
            assert {(await ann.receive("subscribed"))["channel"] for _ in range(2)} == {
                "broadcast",
                "user:ann",
            }
            assert (await nobody.receive("welcome"))["user"] is None
            assert (await nobody.receive("subscribed"))["channel"] == "broadcast"
            assert (await nobody.subscribe("user:ann"))["code"] == "not_found"
            await hub.publish_to_user("ann", "letter", 1)
            await hub.broadcast("tick", 2)
            assert sorted(await ann.events(2)) == [1, 2]
            assert await nobody.events(1) == [2]

    @pytest.mark.parametrize(
        ("error", "code", "reason"),
        [
            (Unauthorized("expired"), 4001, "expired"),
            (Unauthorized(), 4001, "unauthorized"),
            (Forbidden("banned"), 4003, "banned"),
            (Forbidden(), 4003, "forbidden"),
            (RuntimeError("secret"), 1011, "internal error"),
        ],
    )
    async def test_who_is_refused_reads_why_and_nothing_from_inside(self, error, code, reason):
        hub = Hub()

        @hub.authenticate
        async def who(connection, token):
            raise error

        async with hub, Client(hub, headers={"authorization": "Bearer abc"}) as client:
            await client.ended()
            assert (client.closed["code"], client.closed["reason"]) == (code, reason)
            assert (await hub.status())["active_connections"] == 0

    async def test_an_identity_is_a_value(self):
        identity = Identity("7", expires_at=5.0, info={"name": "Ann"})
        assert identity == Identity("7", 5.0, {"name": "Ann"})
        with pytest.raises(AttributeError):
            identity.user = "8"
