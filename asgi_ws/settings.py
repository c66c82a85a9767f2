"""What an operator may set, where it comes from, and what it means.

A setting is the keyword `heartbeat`, else the variable `ASGI_WS_HEARTBEAT`, else its default; a secret may
also be in the file that `ASGI_WS_<NAME>_FILE` names. `Settings` is the whole list: each field says how it is
written, what it means and in which unit, and `describe` tells that to people.
"""

import difflib
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, Self, get_args

from msgspec import Struct
from msgspec.structs import fields

from asgi_ws.errors import SettingsError
from asgi_ws.publication import Slow

Source = Literal["default", "environment", "keyword", "file"]
_Environ = Mapping[str, str]
_Units = Mapping[str, Fraction | int]
_PREFIX = "ASGI_WS_"

# Largest first: a value is written in the first unit of which it is a whole number.
_SECONDS: _Units = {"h": 3600, "m": 60, "s": 1, "ms": Fraction(1, 1000), "": 1}
_BINARY: _Units = {"GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10, "": 1}
_BYTES: _Units = {**_BINARY, "GB": 10**9, "MB": 10**6, "KB": 10**3, "kB": 10**3}
_SWITCH = dict.fromkeys(("true", "1", "yes", "on"), True) | dict.fromkeys(("false", "0", "no", "off"), False)
_PATH = r"(/[^/\s?#%]+)*/?"
_HOST = r"(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\]"
_ORIGIN = rf"(([a-z][a-z0-9+.-]*)://(?:{_HOST}))(?::([1-9][0-9]{{0,4}}))?"
_COOKIE = r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}"
# What Kubernetes puts into every pod beside a Service called `asgi-ws`, and what our own tests use.
_NOT_OURS = re.compile(r"ASGI_WS_((SERVICE_)?PORT|SERVICE_(HOST|PORT_\w+)|PORT_\d+_\w+|TEST_.*)")


# Reading: each of these raises a ValueError where what was given does not fit.
def duration(value: object) -> float:
    """Seconds of a number, a `timedelta`, or text such as `25`, `0.5`, `500ms`, `5m`; finite and above 0."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    exact = _quantity(value, _SECONDS) if isinstance(value, str) else _number(value, int, float)
    seconds = float(exact) if exact <= sys.float_info.max else 0.0
    return seconds if seconds > 0 else _refuse()


def size(value: object, least: int = 1) -> int:
    """Bytes of a whole number, or of text such as `65536`, `64KiB`, `1MB`; not below `least`."""
    exact = _quantity(value, _BYTES) if isinstance(value, str) else _number(value, int)
    return int(exact) if exact >= least and exact == int(exact) else _refuse()


def count(value: object, least: int = 1) -> int:
    """A whole number, not below `least`."""
    number = int(_text("[0-9]+", value) if isinstance(value, str) else _number(value, int))
    return number if number >= least else _refuse()


def origin(value: object) -> str:
    """`https://example.com`, `https://*.example.com` or `*`, as sent: lower case, and no usual port."""
    text = _text(r"\s*\S+\s*", value).strip().lower()
    if text == "*":
        return text
    portless, scheme, port = _match(_ORIGIN, text).groups()
    if port == {"http": "80", "https": "443"}.get(scheme):
        return str(portless)
    return text if port is None or int(port) < 1 << 16 else _refuse()


def _origins(value: object) -> tuple[str, ...]:
    entries = filter(str.strip, value.split(",")) if isinstance(value, str) else value
    return tuple(map(origin, entries)) if isinstance(entries, Iterable) else _refuse()


def _switch(value: object) -> bool:
    text = str(value).lower()
    return _SWITCH[text] if text in _SWITCH else _refuse()


def _quantity(text: str, units: _Units) -> Fraction:
    number, unit = _match(r"([0-9]+(?:\.[0-9]+)?)([A-Za-z]*)", text).groups()
    return Fraction(number) * units[unit] if unit in units else _refuse()


def _number(value: Any, *kinds: type) -> Any:
    return value if isinstance(value, kinds) and not isinstance(value, bool) else _refuse()


def _text(pattern: str, value: object) -> str:
    return _match(pattern, value)[0]


def _match(pattern: str, value: object) -> re.Match[str]:
    return (re.fullmatch(pattern, value) if isinstance(value, str) else None) or _refuse()


def _refuse() -> NoReturn:
    raise ValueError


def format_duration(seconds: float) -> str:
    """`25s`, `5m`, `24h`, `500ms`; `inf` in `Settings` that were not loaded."""
    if math.isinf(seconds):
        return "inf"
    return _in_units(Fraction(repr(seconds)), _SECONDS) or f"{Decimal(repr(seconds)):f}s"


def format_size(number: int) -> str:
    """`64KiB`, `1MiB`; plain bytes where no unit divides them."""
    return str(_in_units(Fraction(number), _BINARY)) if number else "0"


def _in_units(exact: Fraction, units: _Units) -> str | None:
    return next((f"{exact // scale}{unit}" for unit, scale in units.items() if exact % scale == 0), None)


def redact(url: str) -> str:
    """The URL with its password hidden: `redis://user:***@host`.

    Too much is hidden rather than too little: up to the last `@`, which a password may have unescaped; a lone
    name before it, mostly a token, but for PostgreSQL a user; what the query calls a password or the like.
    """
    return ",".join(_redact(server) for server in re.split(r",(?=[\w+.-]+://)", url))


def _redact(url: str) -> str:
    url = re.sub(r"^((?:[\w+.-]+:/+)?+[^:]*):.*@", r"\1:***@", url, flags=re.DOTALL)
    url = re.sub(r"^(?!postgres)([\w+.-]+:/+)[^:]+@", r"\1***@", url)
    return re.sub(r"(?i)([?&][^=&]*(?:pass|pwd|token|secret)[^=&]*=)[^&]*", r"\1***", url)


class Kind(NamedTuple):
    """How one kind of setting is read, written and, where it can hold a secret, hidden."""

    expected: str
    read: Callable[[object], Any]
    write: Callable[[Any], str] = str
    unit: str = ""
    hide: Callable[[str], str] = str


SWITCH = Kind("true or false (1/0, yes/no, on/off)", _switch, lambda value: str(value).lower())
DURATION = Kind("a duration above 0 such as 25s, 5m, 24h or 500ms", duration, format_duration, "seconds")
SIZE = Kind("a size above 0 such as 65536, 64KiB or 1MiB", size, format_size, "bytes")
SIZE_OR_0 = Kind("0 or a size such as 65536, 64KiB or 1MiB", partial(size, least=0), format_size, "bytes")
EVENTS_OR_0 = Kind("a whole number, 0 or above", partial(count, least=0), unit="events")
MESSAGES = Kind("a whole number above 0", count, unit="messages")
CHANNELS = Kind("a whole number above 0", count, unit="channels")
SESSIONS = Kind("a whole number above 0", count, unit="sessions")
NAMESPACE = Kind("1 to 64 of A-Z a-z 0-9 _ -", partial(_text, "[A-Za-z0-9_-]{1,64}"))
PREFIX = Kind("a path such as /ws", lambda value: _text(_PATH, value).rstrip("/"), lambda path: path or "/")
URL = Kind("a URL such as redis://host:6379", partial(_text, r"[A-Za-z][A-Za-z0-9+.-]*://\S*"), hide=redact)
ORIGINS = Kind("origins such as https://example.com, https://*.example.com or *", _origins, ",".join)
SLOW = Kind(" or ".join(get_args(Slow)), partial(_text, "|".join(get_args(Slow))))
REFUSE = Kind("close or http", partial(_text, "close|http"))
COOKIE = Kind("a cookie's name, as 1 to 128 of A-Z a-z 0-9 and !#$%&'*+-.^_`|~", partial(_text, _COOKIE))
SECRET = Kind("visible ASCII without a space", partial(_text, "[!-~]+"), hide=lambda text: text and "***")


class Settings(Struct, frozen=True, kw_only=True):
    """A hub's settings; durations are seconds, sizes bytes. `load` checks them, `Settings(...)` does not."""

    enabled: Annotated[bool, SWITCH, "false: no session is accepted, publishing does nothing"] = True
    broadcaster: Annotated[str, URL, "what carries publications between processes"] = "memory://"
    namespace: Annotated[str, NAMESPACE, "the hub's identity, and the prefix of every key"] = "asgi_ws"
    prefix: Annotated[str, PREFIX, "where HubMiddleware serves the hub's routes"] = "/ws"
    heartbeat: Annotated[float, DURATION, "from one ping of a session to the next"] = 25.0
    send_timeout: Annotated[float, DURATION, "one write that takes longer aborts the connection"] = 10.0
    auth_timeout: Annotated[float, DURATION, "until a session has said who it is, else close 4012"] = 10.0
    command_timeout: Annotated[float, DURATION, "the longest that a function of the application may run"] = (
        10.0
    )
    history: Annotated[int, EVENTS_OR_0, "kept per channel; 0: none, and no positions"] = 100
    history_ttl: Annotated[float, DURATION, "how long an event is kept"] = 300.0
    history_channel_bytes: Annotated[int, SIZE_OR_0, "kept per channel; the oldest go first"] = 1 << 20
    history_bytes: Annotated[int, SIZE_OR_0, "kept per node in memory; the oldest go first"] = 64 << 20
    position_ttl: Annotated[float, DURATION, "from a channel's last publish to a new epoch"] = 86400.0
    outbox_messages: Annotated[int, MESSAGES, "the most that wait for one session"] = 1000
    outbox_bytes: Annotated[int, SIZE, "the most that wait for one session"] = 1 << 20
    slow: Annotated[Slow, SLOW, "what is done with a client that is too slow for a channel"] = "resync"
    max_message_bytes: Annotated[int, SIZE, "the largest message of a client, else close 1009"] = 64 << 10
    max_event_bytes: Annotated[int, SIZE, "the largest event, encoded; a larger one raises"] = 256 << 10
    max_subscriptions: Annotated[int, CHANNELS, "the most that one session has"] = 128
    max_connections: Annotated[int | None, SESSIONS, "the most that one node takes"] = None
    allowed_origins: Annotated[tuple[str, ...], ORIGINS, "who may connect besides the same origin"] = ()
    refuse: Annotated[Literal["close", "http"], REFUSE, "how to refuse: close code or HTTP status"] = "close"
    fast: Annotated[bool, SWITCH, "false: never bypasses the app's send, see docs/deploying.md"] = True
    require_auth: Annotated[bool, SWITCH, "true: who is anonymous has to send auth first"] = False
    token_cookie: Annotated[str | None, COOKIE, "the cookie that has the token"] = None
    token_in_query: Annotated[bool, SWITCH, "true: ?token= is a token; servers log it"] = False
    api_key: Annotated[str | None, SECRET, "with it set, stats and nodes are for its bearers"] = None
    public_stats: Annotated[bool, SWITCH, "true: numbers are given without the API key"] = False
    live: Annotated[bool, SWITCH, "true: the live page is served"] = False

    @classmethod
    def load(cls, environ: _Environ = os.environ, **keywords: object) -> Self:
        """Each setting by keyword, else from the environment, else by default; or a SettingsError."""
        for name, nearest in unknown(environ):
            _warn(name, nearest)
        return cls(**{setting.name: value for setting, value, _ in _find_all(environ, keywords)})

    def __repr__(self) -> str:
        shown = (f"{setting.name}={setting.show(getattr(self, setting.name))}" for setting in _SETTINGS)
        return f"Settings({', '.join(shown)})"


class Described(NamedTuple):
    """One setting for people to read: values as one would write them, secrets hidden, `none` for none."""

    name: str
    variable: str
    value: str
    default: str
    origin: Source
    unit: str
    description: str


class _Setting(NamedTuple):
    name: str
    default: Any
    kind: Kind
    description: str

    @property
    def variables(self) -> list[str]:
        variable = f"{_PREFIX}{self.name.upper()}"
        return [variable, f"{variable}_FILE"] if self.kind is SECRET else [variable]

    def find(self, environ: _Environ, keywords: Mapping[str, object]) -> tuple[Any, Source]:
        if self.name in keywords:
            return self.read(self.name, keywords[self.name]), "keyword"
        match [name for name in self.variables if environ.get(name, "").strip()]:
            case []:
                return self.default, "default"
            case [name] if name == self.variables[0]:
                return self.read(name, environ[name].strip()), "environment"
            case [name]:
                return self.read(name, _contents(name, environ[name].strip())), "file"
            case names:
                raise SettingsError(f"expected {' or '.join(names)}, got both")

    def read(self, where: str, value: object) -> Any:
        if value is None and self.default is None:
            return None
        try:
            return self.kind.read(value)
        except ValueError:
            got = repr(self.kind.hide(value)) if isinstance(value, str) else self.kind.hide(repr(value))
            raise SettingsError(f"{where}: expected {self.kind.expected}, got {got}") from None

    def show(self, value: Any) -> str:
        return "none" if value in (None, ()) else self.kind.hide(self.kind.write(value))

    def describe(self, value: Any, source: Source) -> Described:
        shown = self.variables[0], self.show(value), self.show(self.default)
        return Described(self.name, *shown, source, self.kind.unit, self.description)


_SETTINGS = [_Setting(field.name, field.default, *get_args(field.type)[1:]) for field in fields(Settings)]


def describe(environ: _Environ = os.environ, **keywords: object) -> list[Described]:
    """Every setting, with the value that `Settings.load` of the same arguments gives it, and its origin."""
    return [setting.describe(value, source) for setting, value, source in _find_all(environ, keywords)]


def unknown(environ: _Environ = os.environ) -> list[tuple[str, str | None]]:
    """Each `ASGI_WS_*` variable that is no setting, with the nearest that is one."""
    known = [name for setting in _SETTINGS for name in setting.variables]
    ours = sorted(name for name in environ if name.startswith(_PREFIX) and not _NOT_OURS.fullmatch(name))
    return [(name, _nearest(name, known)) for name in ours if name not in known]


def _find_all(environ: _Environ, keywords: Mapping[str, object]) -> list[tuple[_Setting, Any, Source]]:
    known = [setting.name for setting in _SETTINGS]
    for name in sorted(keywords.keys() - known):
        raise SettingsError(f"{name} is no setting{_hint(_nearest(name, known))}")
    return [(setting, *setting.find(environ, keywords)) for setting in _SETTINGS]


def _contents(name: str, path: str) -> str:
    try:
        return Path(path).read_text("utf-8", "replace").rstrip("\r\n")
    except OSError as error:
        raise SettingsError(f"{name}: expected a readable file, got {path!r}: {error.strerror}") from error


@cache  # says each once in a process
def _warn(name: str, nearest: str | None) -> None:
    logging.getLogger("asgi_ws").warning("%s is no setting%s", name, _hint(nearest))


def _nearest(name: str, known: Iterable[str]) -> str | None:
    # Compared without the prefix: it would make all of them look near.
    bare = {other.removeprefix(_PREFIX).upper(): other for other in known}
    near = difflib.get_close_matches(name.removeprefix(_PREFIX).upper(), bare, 1)
    return bare[near[0]] if near else None


def _hint(nearest: str | None) -> str:
    return f"; did you mean {nearest}?" if nearest else ""
