"""What a channel has kept: by pages, from the top or after a position, for clients and for the application."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_ws import BadRequest, Binary, Hub, NotRunning, Position, Unavailable, Undeclared
from asgi_ws.history import Page
from tests.fakes import FakeBroker, publication

pytestmark = pytest.mark.anyio

TOP = Position("e", 99)


def pages(sizes, recovered):
    kept = [publication("", "", "x" * (size - 2), epoch="e", offset=n * 2) for n, size in enumerate(sizes, 1)]
    return Page(TOP, kept, recovered)


class TestPages:
    @given(st.lists(st.integers(2, 50), max_size=20), st.sampled_from([True, None]), st.integers(1, 300))
    def test_as_much_as_fits_and_one_at_least_is_in_a_page(self, sizes, recovered, max_bytes):
        page = pages(sizes, recovered)
        cut = page.within(max_bytes)
        kept = len(cut.publications)
        if recovered:
            assert list(cut.publications) == page.publications[:kept]
            assert cut.position == (TOP if kept == len(sizes) else cut.publications[-1].position)
        else:
            assert list(cut.publications) == page.publications[len(sizes) - kept :]
            assert cut.position == TOP
        total = sum(one.size for one in cut.publications)
        assert total <= max_bytes or kept == 1
        if kept < len(sizes):
            following = page.publications[kept] if recovered else page.publications[-kept - 1]
            assert total + following.size > max_bytes
        else:
            assert kept == len(sizes)

    def test_what_could_not_be_recovered_is_empty_and_says_so(self):
        page = Page(TOP, (), recovered=False)
        assert page.within(1) == page
        assert page.answer([]) == {"epoch": "e", "offset": 99, "recovered": False, "events": []}


class TestHub:
    async def test_the_latest_events_in_order_as_they_are_in_json(self):
        async with Hub() as hub:
            hub.channel("room", public=True)
            for number in range(5):
                position = await hub.publish("room", "said", {"n": number}, key=f"k{number}")
            page = await hub.history("room", limit=2)
            assert (page["epoch"], page["offset"]) == (position.epoch, 5)
            assert page.keys() == {"epoch", "offset", "events"}
            one, two = page["events"]
            assert one.pop("time") <= two.pop("time")
            base = {"type": "event", "channel": "room", "event": "said"}
            assert one == {**base, "data": {"n": 3}, "offset": 4, "id": "k3"}
            assert two == {**base, "data": {"n": 4}, "offset": 5, "id": "k4"}
            assert len((await hub.history("room"))["events"]) == 5

    async def test_page_by_page_after_a_position(self):
        async with Hub() as hub:
            hub.channel("room", public=True)
            first = await hub.publish("room", "said", 0)
            for number in range(1, 8):
                await hub.publish("room", "said", number)
            found, after = [], first
            while True:
                page = await hub.history("room", after, 3)
                assert page["recovered"]
                if not page["events"]:
                    break
                found += [event["data"] for event in page["events"]]
                after = Position(page["epoch"], page["offset"])
            assert found == [1, 2, 3, 4, 5, 6, 7]
            assert after == Position(first.epoch, 8)

    async def test_what_is_no_longer_kept_is_said_and_nothing_is_given(self):
        async with Hub() as hub:
            hub.channel("room", public=True, history=2)
            positions = [await hub.publish("room", "said", number) for number in range(5)]
            page = await hub.history("room", positions[0])
            assert page == {"epoch": positions[0].epoch, "offset": 5, "recovered": False, "events": []}
            assert (await hub.history("room", Position("another", 1)))["recovered"] is False
            assert len((await hub.history("room", positions[2]))["events"]) == 2

    async def test_a_channel_that_nothing_was_published_to(self):
        async with Hub() as hub:
            hub.channel("room", public=True)
            page = await hub.history("room")
            assert (page["offset"], page["events"]) == (0, [])
            assert (await hub.history("room", Position(page["epoch"], 0)))["recovered"]

    async def test_binary_data_is_base64(self):
        async with Hub() as hub:
            hub.channel("room", public=True)
            await hub.publish("room", "photo", Binary(b"ab"))
            (event,) = (await hub.history("room"))["events"]
            assert (event["data"], event["binary"]) == ("YWI=", True)

    async def test_what_cannot_be_asked_is_refused(self):
        async with Hub() as hub:
            hub.channel("room", public=True)
            hub.channel("cursor", public=True, history=0)
            with pytest.raises(BadRequest, match="expected a channel with history, got 'cursor'"):
                await hub.history("cursor")
            with pytest.raises(Undeclared, match="did you mean 'room'"):
                await hub.history("rom")
            with pytest.raises(BadRequest, match="expected a limit of 1 or more, got 0"):
                await hub.history("room", limit=0)
            with pytest.raises(BadRequest, match="expected a channel name"):
                await hub.history("\n")
        with pytest.raises(NotRunning):
            await hub.history("room")

    async def test_without_the_feature_no_channel_has_a_history(self):
        async with Hub(broadcaster=FakeBroker(None)) as hub:
            hub.channel("room", public=True)
            with pytest.raises(BadRequest, match="expected a channel with history"):
                await hub.history("room")

    async def test_a_broker_that_is_away_is_said(self):
        broker = FakeBroker()
        async with Hub(broadcaster=broker) as hub:
            hub.channel("room", public=True)
            broker.errors["history"] = Unavailable("away")
            with pytest.raises(Unavailable):
                await hub.history("room")

    async def test_a_hub_that_is_disabled_has_none(self):
        hub = Hub(enabled=False)
        hub.channel("room", public=True)
        assert await hub.history("room") == {"epoch": "", "offset": 0, "events": []}
        assert (await hub.history("room", Position("e", 1)))["recovered"] is False
