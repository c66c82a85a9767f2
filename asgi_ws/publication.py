"""What travels from a publisher to the sessions, and the form it has on its way between processes."""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import msgspec

RECORD_VERSION = 1

Slow = Literal["resync", "disconnect", "drop_oldest", "drop_newest", "latest"]
"""What is done where a client is too slow for a channel's events."""


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a channel: after the event `offset`, in the life of its data that `epoch` names.

    A dataclass, so that a FastAPI route may return it.
    """

    epoch: str
    offset: int


class Retention(NamedTuple):
    """How much of a channel is kept: `size` publications (0: none, and no positions), `ttl` seconds."""

    size: int
    ttl: float


class Binary:
    """Bytes that are an event's whole data, and travel raw: bin in MessagePack, base64 in JSON."""

    __slots__ = ("value",)

    def __init__(self, value: bytes | bytearray | memoryview) -> None:
        self.value = bytes(value)

    def __repr__(self) -> str:
        return f"<Binary {len(self.value)} bytes>"


class Publication(msgspec.Struct, kw_only=True):
    """An event with its place in its channel.

    Attributes:
        data: JSON text as UTF-8, made once by the publisher; the raw bytes where `binary`.
        time: When it was published, seconds since 1970.
        epoch, offset: Its position; `""` and 0 on a channel without history.
        previous: The offset before it in its channel. Offsets increase, not always by one;
            0 where it is not known.
        key: Makes it idempotent (`id` on the wire).
        sender: The user on whose behalf it came, set by the server (`from` on the wire).
        exclude: The session that is not to have it.
    """

    channel: str
    event: str
    data: bytes
    time: float
    epoch: str = ""
    offset: int = 0
    previous: int = 0
    key: str | None = None
    sender: str | None = None
    exclude: str | None = None
    binary: bool = False

    @property
    def size(self) -> int:
        """The bytes it is worth where bytes are bounded: its text, not Python's objects around it."""
        return len(self.data) + len(self.event) + len(self.channel)

    @property
    def position(self) -> Position:
        """The position after it."""
        return Position(self.epoch, self.offset)

    @property
    def before(self) -> Position:
        """The position before it, as far as that is known."""
        return Position(self.epoch, self.previous or self.offset - 1)

    def continues(self, position: Position) -> bool:
        """Whether nothing is missing between a position and this; where it cannot be known, nothing is."""
        return self.epoch == position.epoch and self.previous in {0, position.offset}

    def to_record(self) -> bytes:
        """Return the form that brokers carry; a position is the broker's to give, so it is not in it."""
        return _encoder.encode(_Record.of(self))

    @classmethod
    def from_record(cls, record: bytes) -> Self:
        """Read what a node of this version, an older or a newer one wrote.

        Raises:
            ValueError: It is no record.
        """
        try:
            fields = _decoder.decode(record).fields()
        except (msgspec.MsgspecError, RecursionError) as error:
            raise ValueError(
                f"expected a record of version {RECORD_VERSION} or near, got: {error}"
            ) from error
        if not math.isfinite(fields["time"]):
            raise ValueError(f"expected a record with a time, got {fields['time']}")
        return cls(**fields)


class _Record(msgspec.Struct, array_like=True, gc=False):
    """Fields are only ever appended, with a default: so versions n and n+1 read each other."""

    version: int
    channel: str
    event: str
    data: bytes
    time: float
    key: str | None = None
    sender: str | None = None
    exclude: str | None = None
    binary: bool = False

    @classmethod
    def of(cls, publication: Publication) -> Self:
        return cls(RECORD_VERSION, *(getattr(publication, name) for name in cls.__struct_fields__[1:]))

    def fields(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__struct_fields__[1:]}


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Record)
