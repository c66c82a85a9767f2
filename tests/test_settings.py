import logging
import math
import sys
from datetime import timedelta
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from asgi_ws import settings
from asgi_ws.errors import SettingsError
from asgi_ws.settings import (
    Settings,
    describe,
    duration,
    format_duration,
    format_size,
    origin,
    redact,
    size,
    unknown,
)

DEFAULTS = {
    "enabled": True,
    "broadcaster": "memory://",
    "namespace": "asgi_ws",
    "prefix": "/ws",
    "heartbeat": 25.0,
    "send_timeout": 10.0,
    "auth_timeout": 10.0,
    "command_timeout": 10.0,
    "history": 100,
    "history_ttl": 300.0,
    "history_channel_bytes": 1024**2,
    "history_bytes": 64 * 1024**2,
    "position_ttl": 24 * 3600.0,
    "outbox_messages": 1000,
    "outbox_bytes": 1024**2,
    "slow": "resync",
    "max_message_bytes": 64 * 1024,
    "max_event_bytes": 256 * 1024,
    "max_subscriptions": 128,
    "max_connections": None,
    "allowed_origins": (),
    "refuse": "close",
    "fast": True,
    "require_auth": False,
    "token_cookie": None,
    "token_in_query": False,
    "api_key": None,
    "public_stats": False,
    "live": False,
}
DURATIONS = ["heartbeat", "send_timeout", "auth_timeout", "command_timeout", "history_ttl", "position_ttl"]
SIZES = ["outbox_bytes", "max_message_bytes", "max_event_bytes"]
SIZES_OR_0 = ["history_channel_bytes", "history_bytes"]
COUNTS = ["outbox_messages", "max_subscriptions", "max_connections"]
SECRET = "s3cr3t"

# A busy machine is not a failure.
in_its_own_time = hypothesis_settings(deadline=None)


@pytest.fixture(autouse=True)
def fresh_process():
    """Each test is a process that has not warned yet."""
    settings._warn.cache_clear()


def from_environment(name, text):
    return getattr(Settings.load({f"ASGI_WS_{name.upper()}": text}), name)


def from_keyword(name, value):
    return getattr(Settings.load({}, **{name: value}), name)


def refused(environ=None, **keywords):
    """The message of the error."""
    with pytest.raises(SettingsError) as caught:
        Settings.load(environ or {}, **keywords)
    return str(caught.value)


# Where a value comes from.


def test_the_settings_and_their_defaults():
    assert msgspec.structs.asdict(Settings.load({})) == DEFAULTS == msgspec.structs.asdict(Settings())


def test_the_environment_is_that_of_the_process_unless_given(monkeypatch):
    monkeypatch.setenv("ASGI_WS_HEARTBEAT", "7s")
    assert Settings.load().heartbeat == 7
    assert [row.value for row in describe() if row.name == "heartbeat"] == ["7s"]
    monkeypatch.setenv("ASGI_WS_HEARTBEET", "7s")
    assert unknown() == [("ASGI_WS_HEARTBEET", "ASGI_WS_HEARTBEAT")]


def test_a_keyword_wins_over_the_environment_which_wins_over_the_default():
    environ = {"ASGI_WS_HEARTBEAT": "7s", "ASGI_WS_HISTORY": "7"}
    loaded = Settings.load(environ, heartbeat=8)
    assert (loaded.heartbeat, loaded.history, loaded.history_ttl) == (8, 7, 300)


def test_a_keyword_spares_its_variables_from_being_read_at_all():
    environ = {"ASGI_WS_API_KEY": "a b", "ASGI_WS_API_KEY_FILE": "/nowhere", "ASGI_WS_HISTORY": "many"}
    assert Settings.load(environ, api_key="k", history=1).api_key == "k"


@pytest.mark.parametrize("blank", ["", " ", "\n"])
@pytest.mark.parametrize("name", DEFAULTS)
def test_an_empty_variable_is_unset(name, blank):
    assert from_environment(name, blank) == DEFAULTS[name]


def test_space_around_a_variable_does_not_matter():
    assert from_environment("heartbeat", " 7s\n") == 7
    assert from_environment("namespace", "shop ") == "shop"


@pytest.mark.parametrize("name", DEFAULTS)
def test_none_is_a_value_only_where_it_is_the_default(name):
    if DEFAULTS[name] is None:
        assert getattr(Settings.load({f"ASGI_WS_{name.upper()}": "5"}, **{name: None}), name) is None
    else:
        message = refused(**{name: None})
        assert message.startswith(f"{name}: expected ")
        assert message.endswith(", got None")


def test_an_unknown_keyword_is_an_error_that_names_the_nearest():
    assert refused(hartbeat=5) == "hartbeat is no setting; did you mean heartbeat?"
    assert refused(HEARTBEAT=5) == "HEARTBEAT is no setting; did you mean heartbeat?"
    assert refused(zzz=5) == "zzz is no setting"
    with pytest.raises(SettingsError, match="hartbeat is no setting"):
        describe({}, hartbeat=5)


def test_settings_do_not_change_and_take_no_positions():
    with pytest.raises(AttributeError):
        Settings().heartbeat = 5
    with pytest.raises(TypeError):
        Settings(True)


def test_an_error_is_a_value_error_too_and_carries_no_cause():
    with pytest.raises(ValueError, match="^ASGI_WS_HEARTBEAT: expected a duration .*, got 'soon'$") as caught:
        Settings.load({"ASGI_WS_HEARTBEAT": "soon"})
    assert caught.value.__suppress_context__


# What a value looks like.


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("25", 25),
        ("0.5", 0.5),
        ("25s", 25),
        ("5m", 300),
        ("24h", 86400),
        ("500ms", 0.5),
        ("0.1s", 0.1),
        ("1.5h", 5400),
        ("007", 7),
    ],
)
@pytest.mark.parametrize("name", DURATIONS)
def test_a_duration_is_seconds(name, text, seconds):
    for value in from_environment(name, text), from_keyword(name, text):
        assert value == seconds
        assert type(value) is float


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(25, 25.0), (0.5, 0.5), (timedelta(minutes=5), 300.0), (Fraction(1), None), (True, None)],
)
def test_a_duration_by_keyword_may_be_a_number_or_a_timedelta(value, seconds):
    if seconds is None:
        assert (
            refused(heartbeat=value)
            == f"heartbeat: expected a duration above 0 such as 25s, 5m, 24h or 500ms, got {value!r}"
        )
    else:
        assert from_keyword("heartbeat", value) == seconds


BAD_DURATIONS = [
    "0",
    "0s",
    "-1",
    "-1s",
    "+1",
    "nan",
    "inf",
    "1e3",
    "1_000",
    "5 m",
    "5M",
    "1d",
    "s",
    ".5",
    "5.",
    "1.2.3",
    "٥",
    "9" * 400,
    "9" * 5000,
    "0." + "0" * 400 + "1",
    "5m\n5m",
]


@pytest.mark.parametrize("text", BAD_DURATIONS)
@pytest.mark.parametrize("name", DURATIONS)
def test_what_is_no_duration(name, text):
    assert refused({f"ASGI_WS_{name.upper()}": text}).startswith(
        f"ASGI_WS_{name.upper()}: expected a duration above 0 "
    )
    assert refused(**{name: text}).endswith(f", got {text!r}")


@pytest.mark.parametrize(
    "value", [0, -1, -0.5, math.nan, math.inf, -math.inf, 10**400, timedelta(0), timedelta(-1), [5], b"5s"]
)
def test_what_is_no_duration_by_keyword(value):
    assert refused(heartbeat=value).endswith(f", got {value!r}")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("65536", 65536),
        ("64KiB", 65536),
        ("1MiB", 1 << 20),
        ("1GiB", 1 << 30),
        ("64KB", 64000),
        ("64kB", 64000),
        ("1MB", 10**6),
        ("2GB", 2 * 10**9),
        ("1.5KiB", 1536),
    ],
)
@pytest.mark.parametrize("name", SIZES + SIZES_OR_0)
def test_a_size_is_bytes(name, text, number):
    for value in from_environment(name, text), from_keyword(name, text), from_keyword(name, number):
        assert value == number
        assert type(value) is int


@pytest.mark.parametrize(
    "value",
    ["-1", "1.5", "0.1KiB", "64 KiB", "64kib", "64K", "KiB", "nan", "9" * 5000, -1, 1.0, math.nan, True],
)
@pytest.mark.parametrize("name", SIZES + SIZES_OR_0)
def test_what_is_no_size(name, value):
    message = refused(**{name: value})
    assert message.startswith(f"{name}: expected ")
    assert "65536, 64KiB or 1MiB" in message
    assert message.endswith(f", got {value!r}")


@pytest.mark.parametrize("zero", ["0", "0KiB", 0])
def test_only_what_is_kept_as_history_may_be_0(zero):
    for name in SIZES_OR_0:
        assert from_keyword(name, zero) == 0
    for name in SIZES:
        assert refused(**{name: zero}).startswith(f"{name}: expected a size above 0 ")


@pytest.mark.parametrize("name", ["history", *COUNTS])
def test_a_count_is_a_whole_number(name):
    assert from_environment(name, "17") == from_keyword(name, 17) == from_keyword(name, "17") == 17
    for wrong in "-1", "1.0", "1_0", "+1", "many", "٥", -1, 1.0, True, math.inf:
        assert refused(**{name: wrong}).startswith(f"{name}: expected a whole number")


@pytest.mark.parametrize("name", ["token", "__Host-session", "a.b", "x" * 128])
def test_a_cookies_name_is_one_that_a_cookie_can_have(name):
    assert from_environment("token_cookie", name) == name


@pytest.mark.parametrize("name", ["a b", "a;b", "a=b", "é", "x" * 129, '"a"'])
def test_a_cookies_name_is_no_other(name):
    assert refused(token_cookie=name).startswith("token_cookie: expected a cookie's name")


def test_only_the_history_counts_down_to_0():
    assert from_environment("history", "0") == 0
    for name in COUNTS:
        assert refused(**{name: 0}) == f"{name}: expected a whole number above 0, got 0"


@pytest.mark.parametrize(
    "name", ["enabled", "public_stats", "live", "fast", "require_auth", "token_in_query"]
)
def test_a_switch_has_four_words_for_each_side(name):
    for on in "true", "TRUE", "1", "yes", "Yes", "on":
        assert from_environment(name, on) is True
    for off in "false", "False", "0", "no", "off", "OFF":
        assert from_environment(name, off) is False
    assert from_keyword(name, True) is True
    assert from_keyword(name, False) is False
    assert (
        refused({f"ASGI_WS_{name.upper()}": "maybe"})
        == f"ASGI_WS_{name.upper()}: expected true or false (1/0, yes/no, on/off), got 'maybe'"
    )
    assert refused(**{name: 2}).endswith(", got 2")


def test_a_namespace_is_a_short_plain_word():
    for good in "a", "a" * 64, "Shop_2-eu":
        assert from_environment("namespace", good) == good
    for bad in "", "a" * 65, "a b", "a:b", "a.b", "ä", "a\n", 5:
        assert refused(namespace=bad) == f"namespace: expected 1 to 64 of A-Z a-z 0-9 _ -, got {bad!r}"


def test_a_prefix_begins_with_a_slash_and_ends_without():
    given = {"/ws": "/ws", "/ws/": "/ws", "/": "", "": "", "/a/b/": "/a/b", "/ä": "/ä"}
    for text, prefix in given.items():
        assert from_keyword("prefix", text) == prefix
    for bad in "ws", "//", "/a//b", "/a b", "/a?b", "/a#b", "/a%20b", "https://a", 5:
        assert refused(prefix=bad) == f"prefix: expected a path such as /ws, got {bad!r}"


def test_a_broadcaster_is_a_url():
    for good in (
        "memory://",
        "memory://?workers=allow",
        "redis+sentinel://h:26379,h2/m/0",
        "nats://h",
        "x-1.y://h",
    ):
        assert from_environment("broadcaster", good) == good
    for bad in "redis", "redis:/h", "://h", "1redis://h", "redis://a b", "", 5:
        assert (
            refused(broadcaster=bad) == f"broadcaster: expected a URL such as redis://host:6379, got {bad!r}"
        )


def test_a_refusal_is_by_close_code_or_by_http():
    assert from_environment("refuse", "http") == "http"
    assert from_environment("refuse", "close") == "close"
    assert refused({"ASGI_WS_REFUSE": "HTTP"}) == "ASGI_WS_REFUSE: expected close or http, got 'HTTP'"


def test_origins_are_a_list():
    both = ("https://a.example", "*")
    for written in "https://a.example,*", " https://a.example , * ,", ["https://a.example", "*"], both:
        assert from_keyword("allowed_origins", written) == both
    assert from_environment("allowed_origins", "https://a.example,*") == both
    assert from_environment("allowed_origins", ",") == ()
    assert refused(allowed_origins=5).endswith(", got 5")
    assert refused(allowed_origins=["https://a.example", ""]).startswith(
        "allowed_origins: expected origins such as "
    )


@pytest.mark.parametrize(
    ("text", "as_sent"),
    [
        ("https://example.com", "https://example.com"),
        ("https://Example.COM", "https://example.com"),
        ("https://example.com:443", "https://example.com"),
        ("http://example.com:80", "http://example.com"),
        ("http://example.com:443", "http://example.com:443"),
        ("http://localhost:5173", "http://localhost:5173"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("http://127.0.0.1:65535", "http://127.0.0.1:65535"),
        ("https://*.example.com", "https://*.example.com"),
        ("https://*.example.com:8443", "https://*.example.com:8443"),
        ("capacitor://localhost", "capacitor://localhost"),
        ("*", "*"),
    ],
)
def test_an_origin_is_written_as_a_browser_sends_it(text, as_sent):
    assert origin(text) == as_sent == origin(as_sent)


@pytest.mark.parametrize(
    "text",
    [
        "example.com",
        "null",
        "https://",
        "https://a/",
        "https://a/b",
        "https://a?b",
        "https://u@a",
        "https://a:0",
        "https://a:080",
        "https://a:65536",
        "https://a:",
        "https://*",
        "https://a.*.b",
        "https://*a.b",
        "https://a..b",
        "*.example.com",
        "**",
        "https://ä.example",
        "https://a b",
        5,
    ],
)
def test_what_is_no_origin(text):
    with pytest.raises(ValueError):
        origin(text)
    assert refused(allowed_origins=[text]).endswith(f", got {[text]!r}")


# Secrets.


def test_a_secret_may_be_in_a_file(tmp_path):
    file = tmp_path / "key"
    for written in SECRET, f"{SECRET}\n", f"{SECRET}\r\n":
        file.write_bytes(written.encode())
        assert Settings.load({"ASGI_WS_API_KEY_FILE": str(file)}).api_key == SECRET
        assert Settings.load({"ASGI_WS_API_KEY_FILE": str(file), "ASGI_WS_API_KEY": ""}).api_key == SECRET
    assert Settings.load({"ASGI_WS_API_KEY_FILE": ""}).api_key is None


def test_a_secret_given_twice_is_an_error(tmp_path):
    message = refused({"ASGI_WS_API_KEY": SECRET, "ASGI_WS_API_KEY_FILE": str(tmp_path / "key")})
    assert message == "expected ASGI_WS_API_KEY or ASGI_WS_API_KEY_FILE, got both"


def test_a_file_that_cannot_be_read_is_named_with_its_variable(tmp_path):
    path = str(tmp_path / "none")
    message = refused({"ASGI_WS_API_KEY_FILE": path})
    assert (
        message == f"ASGI_WS_API_KEY_FILE: expected a readable file, got {path!r}: No such file or directory"
    )
    assert "Is a directory" in refused({"ASGI_WS_API_KEY_FILE": str(tmp_path)})


@pytest.mark.parametrize(
    ("contents", "got"),
    [
        (b"", "''"),
        (b"\n", "''"),
        (b"s3cr3t s3cr3t", "'***'"),
        (b"s3cr3t\ns3cr3t", "'***'"),
        (b"s3cr3t\xff", "'***'"),
    ],
)
def test_a_wrong_secret_in_a_file_is_not_printed(tmp_path, contents, got):
    (tmp_path / "key").write_bytes(contents)
    message = refused({"ASGI_WS_API_KEY_FILE": str(tmp_path / "key")})
    assert message == f"ASGI_WS_API_KEY_FILE: expected visible ASCII without a space, got {got}"


@pytest.mark.parametrize(
    "wrong", [f"{SECRET} {SECRET}", f"{SECRET}ä", SECRET.encode(), [SECRET], f"{SECRET}\n"]
)
def test_a_wrong_secret_is_not_printed(wrong):
    message = refused(api_key=wrong)
    assert message.startswith("api_key: expected visible ASCII")
    assert SECRET not in message


def test_a_wrong_broadcaster_is_printed_without_its_password():
    for wrong in (
        f"redis:user:{SECRET}@host",
        f"redis://user:{SECRET}@host name",
        f"redis://:{SECRET}@host x".encode(),
    ):
        message = refused(broadcaster=wrong)
        assert message.startswith("broadcaster: expected a URL ")
        assert "***@host" in message
        assert SECRET not in message


def test_settings_show_themselves_without_secrets():
    shown = repr(
        Settings.load(
            {}, api_key=SECRET, broadcaster=f"redis://user:{SECRET}@host", heartbeat=0.5, prefix="/"
        )
    )
    assert SECRET not in shown
    assert shown.startswith(
        "Settings(enabled=true, broadcaster=redis://user:***@host, namespace=asgi_ws, prefix=/, heartbeat=500ms, "
    )
    assert "api_key=***" in shown
    assert "heartbeat=inf" in repr(Settings(heartbeat=math.inf))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("memory://", "memory://"),
        ("memory://?workers=allow", "memory://?workers=allow"),
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://user:pw@host:6379/0", "redis://user:***@host:6379/0"),
        ("redis://:pw@host", "redis://:***@host"),
        ("redis://pw@host:6379", "redis://***@host:6379"),
        ("redis://user:p@/?:w@host", "redis://user:***@host"),
        ("redis://me@corp:pw@host", "redis://***@corp:***@host"),
        ("nats://pw@host", "nats://***@host"),
        ("nats://a:pw@h1,nats://b:pw@h2", "nats://a:***@h1,nats://b:***@h2"),
        ("nats://a:pw@h1,b:pw@h2", "nats://a:***@h2"),
        ("redis+sentinel://:pw@h1:1,h2:1/m/0", "redis+sentinel://:***@h1:1,h2:1/m/0"),
        (
            "redis+sentinel://h1:1,h2:1/m/0?sentinel_password=pw&x=1",
            "redis+sentinel://h1:1,h2:1/m/0?sentinel_password=***&x=1",
        ),
        ("postgresql://user@host/db", "postgresql://user@host/db"),
        ("postgresql://user:pw@h1,h2/db", "postgresql://user:***@h1,h2/db"),
        ("postgresql://host/db?user=me&Password=pw", "postgresql://host/db?user=me&Password=***"),
        ("user:pw@host", "user:***@host"),
        ("redis:/pw@host", "redis:/***@host"),
    ],
)
def test_a_url_is_shown_without_its_password(url, shown):
    assert redact(url) == shown
    assert redact(shown) == shown


@in_its_own_time
@given(
    user=st.text("aZ0@/?", max_size=5),
    password=st.text("aZ0:@/?&=# \n'", max_size=5),
    scheme=st.sampled_from(["redis", "nats", "postgresql"]),
)
def test_no_password_survives_however_badly_it_is_escaped(user, password, scheme):
    assert SECRET not in redact(f"{scheme}://{user}:{password}{SECRET}{password}@host:1/0")


# Written and read back.


@in_its_own_time
@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False))
def test_every_duration_reads_back(seconds):
    assert duration(format_duration(seconds)) == seconds


@in_its_own_time
@given(st.integers(min_value=0))
def test_every_size_reads_back(number):
    assert size(format_size(number), least=0) == number


@in_its_own_time
@given(st.integers(1, 10**6), st.sampled_from([("ms", 0.001), ("s", 1), ("m", 60), ("h", 3600)]))
def test_a_duration_in_any_unit_is_its_product(number, unit):
    name, seconds = unit
    assert duration(f"{number}{name}") == pytest.approx(number * seconds)
    assert duration(timedelta(milliseconds=number)) == duration(f"{number}ms")


@in_its_own_time
@given(st.text() | st.from_regex(r"\A-?[0-9.]{1,4}(s|m|KiB|MB)?\Z"))
def test_any_text_is_read_or_refused(text):
    for read in duration, size, settings.count, origin:
        try:
            value = read(text)
        except ValueError:
            continue
        assert isinstance(value, str) or 0 < value <= sys.float_info.max or read is settings.count


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (25.0, "25s"),
        (300.0, "5m"),
        (86400.0, "24h"),
        (90.0, "90s"),
        (0.5, "500ms"),
        (1.5, "1500ms"),
        (1e-7, "0.0000001s"),
        (60, "1m"),
    ],
)
def test_a_duration_is_written_in_its_largest_whole_unit(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (1, "1"),
        (1000, "1000"),
        (1024, "1KiB"),
        (1536, "1536"),
        (64 << 20, "64MiB"),
        (3 << 30, "3GiB"),
    ],
)
def test_a_size_is_written_in_its_largest_whole_unit(number, text):
    assert format_size(number) == text


# Told to people.


def test_every_setting_is_described():
    rows = describe({})
    assert [row.name for row in rows] == list(DEFAULTS)
    for row in rows:
        assert row.variable == f"ASGI_WS_{row.name.upper()}"
        assert row.description
        assert row.value == row.default
        assert row.origin == "default"


def test_a_description_has_origin_and_unit(tmp_path):
    (tmp_path / "key").write_text(SECRET)
    environ = {
        "ASGI_WS_HEARTBEAT": "90",
        "ASGI_WS_API_KEY_FILE": str(tmp_path / "key"),
        "ASGI_WS_BROADCASTER": f"redis://u:{SECRET}@h",
    }
    rows = {row.name: row for row in describe(environ, history_bytes=2048, allowed_origins="*,https://a")}

    def told(name):
        row = rows[name]
        return row.value, row.default, row.origin, row.unit

    assert told("heartbeat") == ("90s", "25s", "environment", "seconds")
    assert told("history_bytes") == ("2KiB", "64MiB", "keyword", "bytes")
    assert told("api_key") == ("***", "none", "file", "")
    assert told("broadcaster") == ("redis://u:***@h", "memory://", "environment", "")
    assert told("allowed_origins") == ("*,https://a", "none", "keyword", "")
    assert told("max_connections") == ("none", "none", "default", "sessions")
    assert told("enabled") == ("true", "true", "default", "")
    assert rows["history"].unit == "events"
    assert rows["outbox_messages"].unit == "messages"
    assert rows["max_subscriptions"].unit == "channels"
    assert SECRET not in repr(rows)


def test_what_is_told_can_be_written_into_the_environment():
    changed = Settings.load(
        {},
        heartbeat=0.25,
        prefix="/",
        allowed_origins=["*", "https://a"],
        live=True,
        history_bytes=0,
        max_connections=5,
        refuse="http",
    )
    keywords = {name: getattr(changed, name) for name in DEFAULTS}
    told = {row.variable: row.value for row in describe({}, **keywords) if row.value != "none"}
    assert Settings.load(told) == changed


def test_the_units_are_those_of_the_kinds():
    units = {row.name: row.unit for row in describe({})}
    assert {name for name, unit in units.items() if unit == "seconds"} == set(DURATIONS)
    assert {name for name, unit in units.items() if unit == "bytes"} == {*SIZES, *SIZES_OR_0}


# Names that are not ours.


def test_an_unknown_variable_is_told_with_the_nearest():
    environ = dict.fromkeys(
        [
            "ASGI_WS_ZZZ",
            "ASGI_WS_HARTBEAT",
            "ASGI_WS_HEARTBEAT",
            "ASGI_WS_HEARTBEAT_FILE",
            "ASGI_WS_APIKEY_FILE",
            "ASGI_WS_API_KEY_FILE",
            "ASGI_WS_live",
            "HOME",
        ],
        "x",
    )
    assert unknown(environ) == [
        ("ASGI_WS_APIKEY_FILE", "ASGI_WS_API_KEY_FILE"),
        ("ASGI_WS_HARTBEAT", "ASGI_WS_HEARTBEAT"),
        ("ASGI_WS_HEARTBEAT_FILE", "ASGI_WS_HEARTBEAT"),
        ("ASGI_WS_ZZZ", None),
        ("ASGI_WS_live", "ASGI_WS_LIVE"),
    ]


@pytest.mark.parametrize(
    "name",
    [
        "SERVICE_HOST",
        "SERVICE_PORT",
        "SERVICE_PORT_HTTP",
        "PORT",
        "PORT_8000_TCP",
        "PORT_8000_TCP_PROTO",
        "PORT_8000_TCP_PORT",
        "PORT_8000_TCP_ADDR",
        "PORT_53_UDP",
        "PORT_53_UDP_ADDR",
        "TEST_REDIS",
    ],
)
def test_what_kubernetes_and_our_tests_set_is_ignored(name):
    assert unknown({f"ASGI_WS_{name}": "tcp://10.0.0.1:8000"}) == []


@pytest.mark.parametrize("name", ["PORTS", "SERVICE", "SERVICE_NAME", "PORT_HTTP", "TESTS"])
def test_only_the_names_of_kubernetes_are_ignored(name):
    assert [found for found, _ in unknown({f"ASGI_WS_{name}": ""})] == [f"ASGI_WS_{name}"]


def test_no_setting_has_a_name_that_is_ignored():
    assert not any(settings._NOT_OURS.fullmatch(row.variable) for row in describe({}))


def test_load_warns_once_of_each_unknown_name_and_never_prints_a_value(caplog):
    environ = {
        "ASGI_WS_HARTBEAT": SECRET,
        "ASGI_WS_ZZZ": SECRET,
        "ASGI_WS_PORT": SECRET,
        "ASGI_WS_HISTORY": "5",
    }
    with caplog.at_level(logging.WARNING, "asgi_ws"):
        Settings.load(environ)
        Settings.load(environ)
    assert caplog.record_tuples == [
        ("asgi_ws", logging.WARNING, "ASGI_WS_HARTBEAT is no setting; did you mean ASGI_WS_HEARTBEAT?"),
        ("asgi_ws", logging.WARNING, "ASGI_WS_ZZZ is no setting"),
    ]


def test_describe_does_not_warn(caplog):
    describe({"ASGI_WS_ZZZ": "1"})
    assert not caplog.records
