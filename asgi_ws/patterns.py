"""The grammar of names: what channels and events may be called, and the patterns that declare many at once.

A pattern is text whose segments, between `:` and `/`, are each either literal or one whole parameter:

    orders                          one name
    dialog:{dialog_id:int}          Starlette's converters, those that the app registered too
    team:{team}/room:{room:uuid}    a parameter ends at `:` and `/` ...
    files/{name:path}               ... but `path`, only last, takes all that is left, even nothing

A value has one spelling: `dialog:007` is no name of `dialog:{dialog_id:int}`, for 7 is spelt `7`.

Two patterns that could answer for one name are compared from the left: at the first place where one has a
literal and the other a parameter, the literal wins. Two that this does not decide cannot live in one map.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from decimal import Decimal
from difflib import get_close_matches
from itertools import chain, repeat
from keyword import iskeyword
from reprlib import Repr
from threading import Lock
from typing import Any, Generic, NamedTuple, TypeVar

from starlette import convertors

from asgi_ws.errors import BadRequest

V = TypeVar("V")

MAX_BYTES = 255
MAX_KEY_BYTES = 128
MAX_CACHED_NAMES = 10_000

# No C0, DEL or C1; no lone surrogates, which UTF-8 cannot carry.
_is_channel = re.compile(rf"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{{1,{MAX_BYTES}}}").fullmatch
_is_event = re.compile(r"[A-Za-z0-9_.:-]{1,64}").fullmatch

_split_name = re.compile(r"([:/])").split
_split_pattern = re.compile(r"([:/])(?![^{}]*\})").split  # not at the `:` of {name:converter}
_as_parameter = re.compile(r"\{([^{}:]*)(?::([^{}]*))?\}").fullmatch

# What a converter may raise for what is not its own: Starlette's assert, the app's do as they like.
_UNFIT = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)

# No text is spelt by both of a pair: a UUID always has its dashes. All others may overlap, the app's too.
_APART = (
    {convertors.IntegerConvertor, convertors.UUIDConvertor},
    {convertors.FloatConvertor, convertors.UUIDConvertor},
)

_plain = str.__str__  # a member of a `str` enum would be formatted as `Color.RED` further down
_repr = Repr()
_repr.maxstring = _repr.maxother = 80


def check_channel(name: str) -> str:
    """`name`, if a channel can be called so; else raises `BadRequest`."""
    if isinstance(name, str) and _is_channel(name) and (name.isascii() or len(name.encode()) <= MAX_BYTES):
        return _plain(name)
    expected = f"a channel name of 1 to {MAX_BYTES} bytes of UTF-8 without control characters"
    raise BadRequest(f"expected {expected}, got {_shown(name)}")


def check_event(name: str) -> str:
    """`name`, if an event can be called so; else raises `BadRequest`."""
    if isinstance(name, str) and _is_event(name):
        return _plain(name)
    raise BadRequest(f"expected an event name of 1 to 64 of A-Z a-z 0-9 _ . : -, got {_shown(name)}")


def check_key(key: object) -> None:
    """Refuse what cannot make a publish idempotent with `BadRequest`; `None` is no key, and fine."""
    if key is None:
        return
    # A lone surrogate is no text that UTF-8 can carry; replaced by nothing, it is missing in the count.
    size = len(key.encode(errors="ignore")) if isinstance(key, str) else 0
    if not (isinstance(key, str) and len(key) <= size <= MAX_KEY_BYTES and key):
        raise BadRequest(f"expected a key of 1 to {MAX_KEY_BYTES} bytes, got {_shown(key)}")


def _shown(name: object) -> str:
    """Short enough for a message, whatever a client sent."""
    if not isinstance(name, str):
        return type(name).__name__
    shown = _repr.repr(_plain(name))
    return shown if len(name) < _repr.maxstring else f"{shown} ({len(name)} characters)"


class Parameter:
    """One `{name:converter}` of a pattern: it reads a value from its text, and spells it."""

    def __init__(self, name: str, converter: str) -> None:
        _check_parameter(name, converter)
        convertor = convertors.CONVERTOR_TYPES[converter]
        self.name, self.converter, self.kind = name, converter, type(convertor)
        self.rest = isinstance(convertor, convertors.PathConvertor)
        self.reach = ".*" if self.rest else "[^:/]*"
        self.spell = _spell_float if self.kind is convertors.FloatConvertor else convertor.to_string
        self._convert = convertor.convert
        self.fits = re.compile(rf"(?={self.reach}\Z)(?:{convertor.regex})", re.DOTALL).fullmatch

    def read(self, text: str) -> Any:
        """The value that is spelt `text`; raises one of `_UNFIT` where none is."""
        if self.fits(text):
            value = self._convert(text)
            if self.spell(value) == text:
                return value
        raise ValueError(f"expected the text of a {self.converter}, got {_shown(text)}")


Piece = str | Parameter  # a literal segment, a separator, or a parameter


def _check_parameter(name: str, converter: str) -> None:
    if not name.isidentifier() or iskeyword(name):
        raise ValueError(f"expected a parameter name that is a Python identifier, got {name!r}")
    if converter not in convertors.CONVERTOR_TYPES:
        known = ", ".join(convertors.CONVERTOR_TYPES)
        raise ValueError(f"expected a converter of {known} for the parameter {name!r}, got {converter!r}")


def _spell_float(value: float) -> str:
    """`0.1`, where Starlette's `0.10000000000000000555` would leave the name `0.1` without a pattern."""
    return format(Decimal(repr(float(value))), "f").removesuffix(".0")


def _parse(text: str) -> tuple[Piece, ...]:
    if not isinstance(text, str) or not text:
        raise ValueError(f"expected a pattern such as 'dialog:{{dialog_id:int}}', got {_shown(text)}")
    pieces = tuple(_parse_piece(piece, text) for piece in _split_pattern(text))
    parameters = _parameters_of(pieces)
    if any(parameter.rest for parameter in parameters if parameter is not pieces[-1]):
        raise ValueError(f"expected a path parameter only as the last segment, got {text!r}")
    if len({parameter.name for parameter in parameters}) < len(parameters):
        raise ValueError(f"expected each parameter name once, got {text!r}")
    return pieces


def _parse_piece(piece: str, text: str) -> Piece:
    if "{" not in piece and "}" not in piece:
        return piece
    found = _as_parameter(piece)
    if found is None:
        expected = "each segment between ':' and '/' to be literal, or one whole {name} or {name:converter}"
        raise ValueError(f"expected {expected}, got {piece!r} in {text!r}")
    return Parameter(*found.groups("str"))


def _parameters_of(pieces: Sequence[Piece]) -> list[Parameter]:
    return [piece for piece in pieces if isinstance(piece, Parameter)]


class Pattern:
    """The names of one shape, such as `dialog:{dialog_id:int}`; malformed text is a `ValueError`.

    `params`: each parameter's converter, by name; `first_literal`: the first segment of plain text, if any.
    """

    def __init__(self, text: str) -> None:
        self.text, self.pieces = text, _parse(text)
        self._parameters = _parameters_of(self.pieces)
        self.params = {parameter.name: parameter.converter for parameter in self._parameters}
        self.first_literal = next((p for p in self.pieces[::2] if p and isinstance(p, str)), None)
        outline = [re.escape(p) if isinstance(p, str) else f"({p.reach})" for p in self.pieces]
        self._fits = re.compile("".join(outline), re.DOTALL).fullmatch

    def match(self, name: str) -> dict[str, Any] | None:
        """The parameters' values in `name`; None where it is no name of this pattern."""
        found = self._fits(name)
        if found is None:
            return None
        pairs = zip(self._parameters, found.groups(), strict=True)
        try:
            return {parameter.name: parameter.read(text) for parameter, text in pairs}
        except _UNFIT:
            return None

    def render(self, /, **params: Any) -> str:
        """The name for these values.

        Raises:
            TypeError: a parameter is missing or unexpected.
            ValueError: the name would not match back to these very values (`5.7` as int, `a:b` as str, ...).

        """
        if params.keys() != self.params.keys():
            raise TypeError(f"expected {list(self.params)} for {self.text!r}, got {list(params)}")
        try:
            name = "".join(p if isinstance(p, str) else p.spell(params[p.name]) for p in self.pieces)
        except _UNFIT:
            name = None
        if name is None or self.match(name) != params:
            raise ValueError(f"expected values that {self.text!r} reads back, got {_repr.repr(params)}")
        return name

    def rivals(self, other: "Pattern") -> bool:
        """Whether a name could be of both, and no literal against a parameter decides whose it is."""
        for mine, theirs in zip(self.pieces, other.pieces, strict=False):
            if isinstance(mine, str) or isinstance(theirs, str):
                if mine != theirs:
                    return False
            elif mine.rest or theirs.rest:
                return True
            elif {mine.kind, theirs.kind} in _APART:
                return False
        return len(self.pieces) == len(other.pieces)

    def likened(self, name: str) -> str:
        """What most resembles `name` in this pattern: each parameter takes its place's text, if that fits."""
        pairs = zip(self.pieces, chain(_split_name(name), repeat("")), strict=False)
        return "".join(p if isinstance(p, str) else text if p.fits(text) else "" for p, text in pairs)

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"


class Entry(NamedTuple, Generic[V]):
    """A pattern, what it stands for, and where the app registered it (`file.py:12`)."""

    pattern: Pattern
    value: V
    place: str


class _Fork(Generic[V]):
    """A tree of patterns, one piece a level: what may come next, and whose names end here."""

    def __init__(self) -> None:
        self.branches: defaultdict[str | None, _Fork[V]] = defaultdict(_Fork)  # None: a parameter's
        self.ends: list[Entry[V]] = []
        self.rests: list[Entry[V]] = []

    def grow(self, entry: Entry[V]) -> None:
        fork = self
        for piece in entry.pattern.pieces:
            if isinstance(piece, Parameter) and piece.rest:
                fork.rests.append(entry)
                return
            fork = fork.branches[piece if isinstance(piece, str) else None]
        fork.ends.append(entry)

    def fitting(self, pieces: Sequence[str], at: int = 0) -> Iterator[Entry[V]]:
        """Those of the shape of a name in pieces: literals first at every fork, so the best is first."""
        if at == len(pieces):
            yield from self.ends
            return
        for branch in (pieces[at], None):
            if branch in self.branches:
                yield from self.branches[branch].fitting(pieces, at + 1)
        yield from self.rests


class PatternMap(Generic[V]):
    """From names to what their patterns stand for; iterates over its entries as they were added.

    Any thread may ask. To find a name again costs one look into a dict, without a lock.
    """

    def __init__(self) -> None:
        self._entries: list[Entry[V]] = []
        self._tree: _Fork[V] = _Fork()
        self._found: dict[str, tuple[V, dict[str, Any]]] = {}
        self._lock = Lock()

    def add(self, pattern: Pattern | str, value: V, place: str) -> None:
        """Let `pattern` stand for `value`; `ValueError` if another could answer for one of its names."""
        entry = Entry(pattern if isinstance(pattern, Pattern) else Pattern(pattern), value, place)
        with self._lock:
            self._refuse_rivals(entry)
            self._entries.append(entry)
            self._tree.grow(entry)
            self._found.clear()  # a new literal may win a name that was a parameter's

    def find(self, name: str) -> tuple[V, dict[str, Any]] | None:
        """The value of the best pattern for `name`, and the parameters: a dict of the caller's own."""
        found = self._found.get(name) or self._search(name)
        return found and (found[0], found[1].copy())

    def nearest(self, name: str) -> str | None:
        """The text of the pattern that whoever wrote `name` may have meant. Slow: for error messages."""
        texts = {pattern.likened(name): pattern.text for pattern, _, _ in self}
        close = get_close_matches(name, texts, n=1)
        return texts[close[0]] if close else None

    def __iter__(self) -> Iterator[Entry[V]]:
        return iter(self._entries.copy())

    def _refuse_rivals(self, entry: Entry[V]) -> None:
        for other in self._entries:
            if entry.pattern.rivals(other.pattern):
                got = " and ".join(f"{pattern.text!r} ({place})" for pattern, _, place in (other, entry))
                raise ValueError(f"expected one pattern at most to answer for any name, got {got}")

    def _search(self, name: str) -> tuple[V, dict[str, Any]] | None:
        with self._lock:  # as in `add`, so that nothing kept is older than the tree
            for pattern, value, _ in self._tree.fitting(_split_name(name)):
                params = pattern.match(name)
                if params is not None:
                    return self._keep(name, (value, params))
        return None

    def _keep(self, name: str, found: tuple[V, dict[str, Any]]) -> tuple[V, dict[str, Any]]:
        self._found[name] = found
        if len(self._found) > MAX_CACHED_NAMES:
            del self._found[next(iter(self._found))]
        return found
