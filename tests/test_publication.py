"""Records: what one node writes every other reads, of this version, the last or the next."""

import dataclasses

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_ws.publication import RECORD_VERSION, Binary, Position, Publication, Retention

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
names = st.none() | text
publications = st.builds(
    Publication,
    channel=text,
    event=text,
    data=st.binary(max_size=200),
    time=st.floats(0, 1e11),
    epoch=text,
    offset=st.integers(0, 2**53),
    previous=st.integers(0, 2**53),
    key=names,
    sender=names,
    exclude=names,
    binary=st.booleans(),
)
in_its_own_time = settings(deadline=None)  # a busy machine is no failure

PLACE = ("epoch", "offset", "previous")
MINIMAL = [RECORD_VERSION, "room", "said", b"1", 1.5]


@in_its_own_time
@given(publications)
def test_what_is_written_is_read_and_its_place_is_the_brokers_to_give(publication):
    read = Publication.from_record(publication.to_record())
    for field in Publication.__struct_fields__:
        if field not in PLACE:
            assert getattr(read, field) == getattr(publication, field)
    assert (read.epoch, read.offset, read.previous) == ("", 0, 0)


@in_its_own_time
@given(
    publications,
    st.lists(st.none() | st.integers(-(2**63), 2**64 - 1) | text, max_size=3),
    st.integers(1, 1000),
)
def test_what_a_newer_node_appends_is_not_in_the_way(publication, more, version):
    fields = msgspec.msgpack.decode(publication.to_record())
    newer = msgspec.msgpack.encode([version, *fields[1:], *more])
    assert Publication.from_record(newer) == Publication.from_record(publication.to_record())


@pytest.mark.parametrize("count", range(len(MINIMAL), 9))
def test_what_an_older_node_did_not_write_yet_has_its_default(count):
    whole = [*MINIMAL, "key", "ann", "s1", True]
    read = Publication.from_record(msgspec.msgpack.encode(whole[:count]))
    assert (read.channel, read.event, read.data, read.time) == ("room", "said", b"1", 1.5)
    assert [read.key, read.sender, read.exclude, read.binary][: count - 5] == whole[5:count]
    assert [read.key, read.sender, read.exclude, read.binary][count - 5 :] == [None, None, None, False][
        count - 5 :
    ]


def test_a_record_begins_with_its_version():
    record = Publication(channel="room", event="said", data=b"1", time=1.5).to_record()
    assert msgspec.msgpack.decode(record)[:5] == MINIMAL


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"\xc1",
        b"not a record",
        b"\x00" * 100,
        b'{"channel":"room"}',
        msgspec.msgpack.encode({"channel": "room"}),
        msgspec.msgpack.encode(MINIMAL[:4]),
        msgspec.msgpack.encode(["1", *MINIMAL[1:]]),
        msgspec.msgpack.encode([1, 2, 3, 4, 5]),
        msgspec.msgpack.encode([*MINIMAL, 5]),
        msgspec.msgpack.encode(MINIMAL) + b"\x00",
        msgspec.msgpack.encode(MINIMAL)[:-3],
        b"\x91" * 100_000,
    ],
    ids=range(13),
)
def test_junk_is_a_value_error(junk):
    with pytest.raises(ValueError, match=f"expected a record of version {RECORD_VERSION} or near, got: "):
        Publication.from_record(junk)


def test_a_channel_that_is_no_utf8_is_a_value_error_too():
    with pytest.raises(ValueError, match="utf-8"):
        Publication.from_record(b"\x95\x01\xa1\xff\xa1a\xc4\x001")


def test_nesting_without_end_is_a_value_error_too():
    whole = msgspec.msgpack.encode([*MINIMAL, None, None, None, False])
    with pytest.raises(ValueError, match="record"):
        Publication.from_record(b"\x9a" + whole[1:] + b"\x91" * 100_000 + b"\xc0")


@pytest.mark.parametrize("time", [float("nan"), float("inf")])
def test_a_time_that_is_none_is_a_value_error(time):
    with pytest.raises(ValueError, match="record"):
        Publication.from_record(msgspec.msgpack.encode([*MINIMAL[:4], time]))


@in_its_own_time
@given(st.binary(max_size=100))
def test_whatever_comes_is_a_publication_or_a_value_error(record):
    try:
        assert Publication.from_record(record).channel is not None
    except ValueError:
        pass


def test_its_size_is_what_it_carries():
    small = Publication(channel="room", event="said", data=b"12345", time=1.0)
    assert small.size == len("room") + len("said") + 5


def test_a_position_is_a_value_that_a_route_may_return():
    position = Position("e", 5)
    assert position == Position("e", 5) != Position("e", 6)
    assert len({position, Position("e", 5)}) == 1
    assert dataclasses.asdict(position) == {"epoch": "e", "offset": 5}
    with pytest.raises(AttributeError):
        position.offset = 6


def test_retention_is_a_size_and_seconds():
    assert Retention(100, 300.0) == Retention(size=100, ttl=300.0)


@pytest.mark.parametrize("value", [b"\x00\xff", bytearray(b"\x00\xff"), memoryview(b"\x00\xff")])
def test_binary_is_a_copy_of_its_bytes(value):
    binary = Binary(value)
    assert binary.value == b"\x00\xff"
    assert type(binary.value) is bytes
    assert repr(binary) == "<Binary 2 bytes>"
