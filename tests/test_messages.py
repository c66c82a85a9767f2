"""The messages as types: what each says on the wire, and what a request may and may not contain."""

from typing import Any, get_args

import msgspec
import pytest
from msgspec import UNSET

from asgi_ws import endings, errors
from asgi_ws.messages import (
    MAX_HISTORY,
    MAX_REF,
    REQUEST_TYPES,
    After,
    AskPresence,
    Auth,
    Call,
    Counts,
    Disconnect,
    Error,
    Event,
    Gap,
    History,
    Joined,
    Left,
    Member,
    Message,
    Moved,
    Ping,
    Pong,
    Present,
    Publish,
    Reply,
    Request,
    Subscribe,
    Subscribed,
    Unsubscribe,
    Unsubscribed,
    Welcome,
)

SAID = {
    "welcome": (
        Welcome(session="s", protocol=1, features=[], heartbeat=25.0, user=None, time=5),
        {"session": "s", "protocol": 1, "features": [], "heartbeat": 25.0, "user": None, "time": 5},
    ),
    "welcome where the server does not ping": (
        Welcome(session="s", protocol=1, features=[], heartbeat=25.0, user="7", time=5, pong=True),
        {
            "session": "s", "protocol": 1, "features": [], "heartbeat": 25.0, "user": "7", "time": 5,
            "pong": True,
        },
    ),
    "subscribed": (Subscribed(channel="a"), {"channel": "a"}),
    "subscribed with all": (
        Subscribed(channel="a", ref=1, epoch="e", offset=0, recovered=False),
        {"channel": "a", "ref": 1, "epoch": "e", "offset": 0, "recovered": False},
    ),
    "subscribed with a state": (
        Subscribed(channel="a", data=[1], binary=True), {"channel": "a", "data": [1], "binary": True}
    ),
    "reply": (Reply(data=5), {"data": 5}),
    "reply with all": (Reply(data=None, ref="r", binary=True), {"data": None, "ref": "r", "binary": True}),
    "unsubscribed": (
        Unsubscribed(channel="a", code="client"), {"channel": "a", "code": "client", "resubscribe": False}
    ),
    "unsubscribed by the server": (
        Unsubscribed(channel="a", code="server", message="m", resubscribe=True),
        {"channel": "a", "code": "server", "message": "m", "resubscribe": True},
    ),
    "event": (
        Event(channel="a", event="e", data=None, time=5),
        {"channel": "a", "event": "e", "data": None, "time": 5},
    ),
    "event with all": (
        Event(channel="a", event="e", data=[1], offset=2, time=5, sender="7", id="k", binary=True),
        {
            "channel": "a", "event": "e", "data": [1], "offset": 2, "time": 5, "from": "7", "id": "k",
            "binary": True,
        },
    ),
    "event to one session": (Event(event="e", data=1, time=5), {"event": "e", "data": 1, "time": 5}),
    "position": (Moved(channel="a", offset=2), {"channel": "a", "offset": 2}),
    "gap": (
        Gap(channel="a", epoch="e", offset=9, dropped=3),
        {"channel": "a", "epoch": "e", "offset": 9, "dropped": 3},
    ),
    "welcome where who it is has to be said": (
        Welcome(session="s", protocol=1, features=[], heartbeat=25.0, user=None, time=5, auth="required"),
        {
            "session": "s", "protocol": 1, "features": [], "heartbeat": 25.0, "user": None, "time": 5,
            "auth": "required",
        },
    ),
    "join": (
        Joined("a", Member(user="7", sessions=1, info={"name": "Ann"}, since=5)),
        {"channel": "a", "member": {"user": "7", "sessions": 1, "info": {"name": "Ann"}, "since": 5}},
    ),
    "leave": (
        Left("a", Member(user="7", sessions=0, info=None, since=5)),
        {"channel": "a", "member": {"user": "7", "sessions": 0, "info": None, "since": 5}},
    ),
    "presence": (
        Counts(channel="a", users=1, sessions=2), {"channel": "a", "users": 1, "sessions": 2}
    ),
    "reply with presence": (
        Reply(ref=1, data=Present(members=[], users=1, sessions=2)),
        {"ref": 1, "data": {"members": [], "users": 1, "sessions": 2}},
    ),
    "error": (Error(code="c", message="m"), {"code": "c", "message": "m"}),
    "error with all": (
        Error(code="c", message="m", ref="r", channel="a", retry_after=1.5),
        {"code": "c", "message": "m", "ref": "r", "channel": "a", "retry_after": 1.5},
    ),
    "disconnect": (
        Disconnect(code=1012, reason="restart", reconnect=True, delay=(0.2, 8.0)),
        {"code": 1012, "reason": "restart", "reconnect": True, "delay": [0.2, 8.0]},
    ),
    "disconnect for good": (
        Disconnect(code=4010, reason="", reconnect=False), {"code": 4010, "reason": "", "reconnect": False}
    ),
    "ping": (Ping(), {}),
    "pong": (Pong(), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", SAID)
def test_a_message_has_these_fields_on_the_wire_and_no_other(name):
    message, fields = SAID[name]
    expected = {"type": name.split()[0], **fields}
    assert msgspec.json.decode(msgspec.json.encode(message)) == expected
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(message)) == expected


def test_every_message_of_the_server_is_tried_here():
    assert {type(message) for message, _ in SAID.values()} == set(get_args(Message))


def test_the_types_of_requests_are_the_tags_of_their_messages():
    assert {kind.__struct_config__.tag for kind in get_args(Request)} == set(REQUEST_TYPES)


def read(**request: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(request), type=Request)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"type": "subscribe", "channel": "a"}, Subscribe("a")),
        ({"type": "subscribe", "channel": "a", "offset": 0}, Subscribe("a", offset=0)),
        (
            {"type": "subscribe", "channel": "a", "epoch": "e", "offset": MAX_REF},
            Subscribe("a", None, "e", MAX_REF),
        ),
        ({"type": "unsubscribe", "channel": "a", "ref": -MAX_REF}, Unsubscribe("a", -MAX_REF)),
        ({"type": "history", "channel": "a"}, History("a", None, 100)),
        (
            {"type": "history", "channel": "a", "limit": MAX_HISTORY, "after": {"epoch": "e", "offset": 0}},
            History("a", limit=MAX_HISTORY, after=After("e", 0)),
        ),
        ({"type": "auth", "token": "abc", "ref": 7}, Auth("abc", 7)),
        ({"type": "presence", "channel": "a", "ref": "r"}, AskPresence("a", "r")),
        ({"type": "ping", "ref": "x" * 64, "later": 1}, Ping(ref="x" * 64)),
        ({"type": "pong"}, Pong(ref=UNSET)),
    ],
)
def test_a_request_is_read(request_, message):
    assert read(**request_) == message


def test_what_is_the_application_s_is_not_read_but_kept():
    call, publish = (
        read(type="call", command="c", params={"a": [1]}),
        read(type="publish", channel="a", event="e"),
    )
    assert isinstance(call, Call)
    assert bytes(call.params) == b'{"a":[1]}'
    assert isinstance(publish, Publish)
    assert bytes(publish.data) == b""


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"type": "nonsense"},
        {"type": "subscribe"},
        {"type": "subscribe", "channel": None},
        {"type": "subscribe", "channel": "a", "ref": MAX_REF + 1},
        {"type": "subscribe", "channel": "a", "ref": 1.5},
        {"type": "subscribe", "channel": "a", "ref": "x" * 65},
        {"type": "subscribe", "channel": "a", "offset": -1},
        {"type": "subscribe", "channel": "a", "offset": MAX_REF + 1},
        {"type": "subscribe", "channel": "a", "offset": "1"},
        {"type": "subscribe", "channel": "a", "epoch": "x" * 65, "offset": 1},
        {"type": "unsubscribe"},
        {"type": "call"},
        {"type": "call", "command": 1},
        {"type": "publish", "channel": "a"},
        {"type": "publish", "event": "a"},
        {"type": "publish", "channel": "a", "event": "e", "key": 1},
        {"type": "history"},
        {"type": "history", "channel": "a", "limit": 0},
        {"type": "history", "channel": "a", "limit": MAX_HISTORY + 1},
        {"type": "history", "channel": "a", "limit": True},
        {"type": "history", "channel": "a", "after": 5},
        {"type": "history", "channel": "a", "after": {"epoch": "e"}},
        {"type": "history", "channel": "a", "after": {"epoch": "e", "offset": -1}},
        {"type": "auth"},
        {"type": "auth", "token": ""},
        {"type": "auth", "token": None},
        {"type": "presence"},
        {"type": "presence", "users": 1, "sessions": 1},
        {"type": "ping", "ref": True},
    ],
)
def test_a_request_that_is_none_is_not_read(request_):
    with pytest.raises(msgspec.ValidationError):
        read(**request_)


def test_a_token_is_in_no_log():
    assert repr(Auth("secret", 7)) == "Auth(token=***, ref=7)"


# Error codes and close codes, which other people's programs depend on.


def test_the_error_codes_are_those_of_the_contract():
    codes = {kind.code for kind in [errors.RequestError, *errors.RequestError.__subclasses__()]}
    assert codes == {
        "bad_request", "unauthorized", "forbidden", "not_found", "already_subscribed", "limit_exceeded",
        "rate_limited", "too_large", "unavailable", "timeout", "internal",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("code", "delay"),
    [
        *((code, None) for code in (1000, 1008, 4000, 4001, 4003, 4004, 4010, 4011, 4012, 4050, 4099)),
        *((code, (0.2, 8.0)) for code in (1001, 1002, 1003, 1005, 1006, 1007, 1009, 1011, 1012, 1013)),
        *((code, (0.2, 8.0)) for code in (4100, 4101, 4102, 4103, 4105, 4150, 4199, 3000, 4300, 4999)),
        *((code, (0.0, 1.0)) for code in (4200, 4250, 4299)),
    ],
)
def test_the_range_of_a_close_code_says_whether_to_reconnect(code, delay):
    assert endings.delay_of(code) == delay


def test_each_ending_has_the_code_of_the_contract():
    named = {name: value.code for name, value in vars(endings).items() if isinstance(value, endings.Ending)}
    assert named.items() >= {
        "NORMAL": 1000, "TOO_BIG": 1009, "INTERNAL": 1011, "RESTART": 1012, "TRY_LATER": 1013,
        "UNAUTHORIZED": 4001, "FORBIDDEN": 4003, "NO_SUCH": 4004, "DISCONNECTED": 4010, "AUTH_TIMED_OUT": 4012,
        "OVER_CAPACITY": 4100, "TOO_SLOW": 4102, "EXPIRED": 4103, "NO_SIGN_OF_LIFE": 4105,
    }.items()  # fmt: skip


@pytest.mark.parametrize("reason", ["", "x" * 123, "x" * 124, "é" * 62, "👋" * 31, "x" + "👋" * 31])
def test_a_reason_is_cut_to_what_a_close_frame_can_carry_and_never_within_a_character(reason):
    cut = endings.NORMAL.because(reason).reason
    assert len(cut.encode()) <= 123
    assert reason.startswith(cut)
    assert len(cut.encode()) > 119 or cut == reason
