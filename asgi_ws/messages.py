"""The messages of protocol version 1, as types.

`msgspec` checks what clients send against the first group and writes the second. A field that is
`UNSET` is absent on the wire; one that is `None` is `null`.
"""

from typing import Annotated, Any

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

PROTOCOL = 1
MAX_REQUESTS = 128
MAX_HISTORY = 1000

# JavaScript's integers end at 2⁵³; the bytes of a text are counted in `codecs`, as Meta counts characters.
MAX_REF = 2**53 - 1
MAX_REF_BYTES = 64
Ref = Annotated[int, Meta(ge=-MAX_REF, le=MAX_REF)] | Annotated[str, Meta(max_length=MAX_REF_BYTES)]
Offset = Annotated[int, Meta(ge=0, le=MAX_REF)]
Epoch = Annotated[str, Meta(max_length=64)]
Token = Annotated[str, Meta(min_length=1)]

# Where a request lacks what is the application's: no value in any codec is empty.
NOTHING = Raw()


# What clients send.


class Subscribe(Struct, tag="subscribe", tag_field="type"):
    """Join a channel; with `epoch` and `offset` resume it, with `"offset":0` alone have all that is kept."""

    channel: str
    ref: Ref | None = None
    epoch: Epoch | None = None
    offset: Offset | None = None


class Unsubscribe(Struct, tag="unsubscribe", tag_field="type"):
    """Leave a channel."""

    channel: str
    ref: Ref | None = None


class Auth(Struct, tag="auth", tag_field="type"):
    """Say who you are, or say it again before the token expires."""

    token: Token
    ref: Ref | None = None

    def __repr__(self) -> str:
        return f"Auth(token=***, ref={self.ref!r})"  # a token is in no log


class Ping(Struct, tag="ping", tag_field="type"):
    """Are you there? From either side."""

    ref: Ref | UnsetType | None = UNSET


class Pong(Struct, tag="pong", tag_field="type"):
    """I am. From either side."""

    ref: Ref | UnsetType | None = UNSET


class Call(Struct, tag="call", tag_field="type"):
    """Have a command of the application done; `params` is an object, `{}` where it is absent."""

    command: str
    ref: Ref | None = None
    params: Raw = NOTHING


class Publish(Struct, tag="publish", tag_field="type"):
    """Publish to a channel that takes it from clients; `data` is `null` where it is absent."""

    channel: str
    event: str
    ref: Ref | None = None
    data: Raw = NOTHING
    key: str | None = None


class After(Struct):
    """A position."""

    epoch: Epoch
    offset: Offset


class History(Struct, tag="history", tag_field="type"):
    """Have the latest events of a channel, or those after a position."""

    channel: str
    ref: Ref | None = None
    limit: Annotated[int, Meta(ge=1, le=MAX_HISTORY)] = 100
    after: After | None = None


class AskPresence(Struct, tag="presence", tag_field="type"):
    """Who is in a channel? Only its subscribers may know."""

    channel: str
    ref: Ref | None = None


Request = Subscribe | Unsubscribe | Call | Publish | AskPresence | History | Auth | Ping | Pong
REQUEST_TYPES = ("subscribe", "unsubscribe", "call", "publish", "presence", "history", "auth", "ping", "pong")


# What the server sends.


class Welcome(Struct, tag="welcome", tag_field="type"):
    """The first message, always. `heartbeat` is in seconds, `time` in milliseconds since 1970."""

    session: str
    protocol: int
    features: list[str]
    heartbeat: float
    user: str | None
    time: int
    pong: bool | UnsetType = UNSET
    auth: str | UnsetType = UNSET


class Subscribed(Struct, tag="subscribed", tag_field="type"):
    """A channel is joined; its events follow. The position is the one after which they follow."""

    channel: str
    ref: Ref | UnsetType = UNSET
    epoch: str | UnsetType = UNSET
    offset: int | UnsetType = UNSET
    recovered: bool | UnsetType = UNSET
    data: Raw | Any = UNSET
    binary: bool | UnsetType = UNSET


class Unsubscribed(Struct, tag="unsubscribed", tag_field="type"):
    """A channel is left, or the server ended it; no event of it follows."""

    channel: str
    code: str
    ref: Ref | UnsetType = UNSET
    message: str | UnsetType = UNSET
    resubscribe: bool = False


class Reply(Struct, tag="reply", tag_field="type"):
    """A request succeeded."""

    data: Raw | Any
    ref: Ref | UnsetType = UNSET
    binary: bool | UnsetType = UNSET


class Event(Struct, tag="event", tag_field="type", kw_only=True):
    """One publication, or with no channel what the application sent to this session alone."""

    channel: str | UnsetType = UNSET
    event: str
    data: Raw | Any
    offset: int | UnsetType = UNSET
    time: int
    sender: str | UnsetType = field(default=UNSET, name="from")
    id: str | UnsetType = UNSET
    binary: bool | UnsetType = UNSET


class Moved(Struct, tag="position", tag_field="type"):
    """An event that this session is not to have went by."""

    channel: str
    offset: int


class Gap(Struct, tag="gap", tag_field="type"):
    """Something between the last position and this one is lost for this session."""

    channel: str
    epoch: str | UnsetType = UNSET
    offset: int | UnsetType = UNSET
    dropped: int | UnsetType = UNSET
    data: Raw | Any = UNSET
    binary: bool | UnsetType = UNSET


class Member(Struct):
    """A user in a channel, over all of its sessions; `since` in milliseconds since 1970."""

    user: str
    sessions: int
    info: Raw | Any
    since: int


class Joined(Struct, tag="join", tag_field="type"):
    """A user is in the channel, with a first session."""

    channel: str
    member: Member


class Left(Struct, tag="leave", tag_field="type"):
    """A user has been out of the channel for five seconds, with every session."""

    channel: str
    member: Member


class Counts(Struct, tag="presence", tag_field="type"):
    """How many are in a channel; once a second at most."""

    channel: str
    users: int
    sessions: int


class Present(Struct):
    """Who is in a channel: what a `presence` request is answered with."""

    members: list[Member]
    users: int
    sessions: int


class Error(Struct, tag="error", tag_field="type"):
    """A request failed; the connection stays."""

    code: str
    message: str
    ref: Ref | UnsetType = UNSET
    channel: str | UnsetType = UNSET
    retry_after: float | UnsetType = UNSET


class Disconnect(Struct, tag="disconnect", tag_field="type"):
    """The connection is about to be closed; reconnect after a random time within `delay` seconds."""

    code: int
    reason: str
    reconnect: bool
    delay: tuple[float, float] | UnsetType = UNSET


Message = (
    Welcome
    | Subscribed
    | Unsubscribed
    | Event
    | Moved
    | Gap
    | Joined
    | Left
    | Counts
    | Reply
    | Error
    | Disconnect
    | Ping
    | Pong
)
