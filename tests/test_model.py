"""A hub against a model of its promise: publishes, subscribes, resumes, drops, stalls and time, at random.

Every interleaving is the test's: one loop, clients in memory, a clock that is moved by hand. Each rule lets
the loop run some turns or come to rest; when it rests, every client that reads has to have heard it all.
"""

import asyncio
import itertools
import logging
import os
from collections import Counter
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec.structs import replace

from asgi_ws import Broadcaster, Hub, Position, Session
from asgi_ws.broadcasters import History
from asgi_ws.broadcasters.memory import MemoryBroadcaster
from asgi_ws.publication import Publication
from asgi_ws.settings import Settings
from asgi_ws.testing import connect, hub_time, settle
from asgi_ws.testing.cable import Cable, scope_for
from tests.adopted import AdoptedCable
from tests.promise import Broken, Ledger, View, expect

# The channels, by what is declared for them; a policy for the slow is one more line.
ROOMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "short": {"history": 3},
    "brief": {"history_ttl": 10.0},
    "none": {"history": 0},
    "oldest": {"slow": "drop_oldest"},
    "newest": {"slow": "drop_newest"},
    "latest": {"slow": "latest"},
    "strict": {"slow": "disconnect"},
    "asked": {},  # its function waits while the door is shut
}
HISTORY, HISTORY_TTL = 10, 60.0
OUTBOX_MESSAGES, OUTBOX_BYTES = 80, 128 * 1024  # as much as may have to be replayed at once
EXAMPLES = int(os.environ.get("ASGI_WS_TEST_EXAMPLES", "100"))


class Recorded(MemoryBroadcaster):
    """`memory://`, whose every publication is also in the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(
            Settings.load({}, broadcaster="memory://?workers=allow", history_bytes=ledger_bytes(ledger))
        )
        self.ledger = ledger

    async def start(self, receiver: Any) -> None:
        self._hear = receiver
        await super().start(self)

    def deliver(self, publication: Publication) -> None:
        self._hand_over(publication)

    def missed(self, channel: str, position: Position | None) -> None:
        raise AssertionError("memory loses nothing")

    def _hand_over(self, publication: Publication) -> None:
        self._hear.deliver(publication)

    def _publish(self, publication: Publication, retention: Any) -> Position | None:
        position = super()._publish(publication, retention)
        number = msgspec.json.decode(publication.data)["n"]
        self.ledger.record(publication.channel, position, number, publication.exclude, publication.time)
        return position


def ledger_bytes(ledger: Ledger) -> int:
    return 64 << 20 if ledger.certain else 20_000


class Remote(Broadcaster):
    """The same, as if it were elsewhere: nothing is there at once, and the way to the node may lose things.

    Attributes:
        turns: How many turns of the loop each way takes.
        losing: How many of the next publications are lost on their way.
    """

    kind = "remote"
    features = MemoryBroadcaster.features

    def __init__(self, ledger: Ledger) -> None:
        self.inner = Recorded(ledger)
        self.ledger = ledger
        self.turns = 2
        self.losing = 0
        self.channels: set[str] = set()
        self._sent = self._arrived = 0

    @property
    def clock(self) -> Any:
        return self.inner.clock

    @clock.setter
    def clock(self, clock: Any) -> None:
        self.inner.clock = clock

    async def start(self, receiver: Any) -> None:
        self.receiver = receiver
        await self.inner.start(self)

    async def stop(self) -> None:
        await self.inner.stop()

    async def ping(self) -> float:
        return 0.0

    def deliver(self, publication: Publication) -> None:
        """Send a publication to the node: in order, some turns later."""
        self._sent += 1
        if self.losing and publication.offset:
            self.losing -= 1
            self.ledger.lost.add((publication.channel, publication.epoch, publication.offset))
            publication = None
        self._carry(publication, self.turns)

    def missed(self, channel: str, position: Position | None) -> None:
        raise AssertionError("memory loses nothing")

    async def publish(self, publication: Publication, retention: Any) -> Position | None:
        await self._way()
        position = await self.inner.publish(publication, retention)
        await self._way()
        return position

    async def subscribe(self, channel: str) -> None:
        await self._way()
        self.channels.add(channel)
        await self._way()

    async def unsubscribe(self, channel: str) -> None:
        await self._way()
        self.channels.discard(channel)
        await self._way()

    async def position(self, channel: str) -> Position | None:
        await self._way()
        position = await self.inner.position(channel)
        await self._arrival()
        return position

    async def history(self, channel: str, after: Any, retention: Any, limit: Any) -> History:
        await self._way()
        found = await self.inner.history(channel, after, retention, limit)
        await self._arrival()
        return found

    async def _way(self) -> None:
        for _ in range(self.turns):
            await asyncio.sleep(0)

    async def _arrival(self) -> None:
        # What an answer covers is delivered before it: that is the interface's promise.
        sent = self._sent
        while self._arrived < sent:
            await asyncio.sleep(0)

    def _carry(self, publication: Publication | None, turns: int) -> None:
        if turns:
            asyncio.get_running_loop().call_soon(self._carry, publication, turns - 1)
            return
        self._arrived += 1
        if publication is not None and publication.channel in self.channels:
            self.receiver.deliver(publication)


class Asked:
    """A request that waits for its answer."""

    def __init__(
        self, kind: str, channel: str, expected: str, resume: Position | None, index: int, exact: bool
    ) -> None:
        self.kind = kind
        self.channel = channel
        self.expected = expected
        self.resume = resume  # an epoch of "" asks for all that is kept
        self.index = index
        self.exact = exact


class Watcher:
    """A client that holds everything it is told against the ledger."""

    def __init__(self, machine: "Promised", query: str, urls: dict[str, Asked], binary: bool) -> None:
        self.machine = machine
        self.ledger = machine.ledger
        self.binary = binary
        self.session = ""
        self.views: dict[str, View] = {}
        self.known: dict[str, Position] = {}  # where to resume
        self.held = set(urls)  # what the session has, once everything asked for is done
        self.asked: dict[Any, Asked] = {}
        self.joining = urls  # what the URL asks for
        self.unread: list[Any] = []
        self.has_stalled = False
        offered = ["asgi-ws.v1.msgpack"] if binary else []
        scope = scope_for(f"/stream{query}", (("host", "test"),), offered)
        self.cable = machine.cable(machine.hub, scope, self._received)

    @property
    def open(self) -> bool:
        return self.cable.ended is None

    @property
    def may_be_too_slow(self) -> bool:
        """Whether it has held its writer up, or has a channel where a large turn alone is too much."""
        return self.has_stalled or not self.views.keys().isdisjoint({"none", "strict"})

    def ask(self, requests: list[tuple[str, str, Position | None]], exact: bool) -> None:
        """Send requests in one message."""
        messages = []
        for kind, channel, resume in requests:
            ref = next(self.machine.numbers)
            message: dict[str, Any] = {"type": kind, "channel": channel, "ref": ref}
            if kind == "subscribe":
                expected = "already_subscribed" if channel in self.held else "subscribed"
                self.held.add(channel)
                if resume is not None:
                    message |= {"offset": resume.offset} | ({"epoch": resume.epoch} if resume.epoch else {})
            else:
                expected = "unsubscribed" if channel in self.held else "not_found"
                self.held.discard(channel)
            # What is on its way may be heard by who comes meanwhile.
            index = len(self.ledger.plain[channel]) if self.machine.rested else 0
            self.asked[ref] = Asked(kind, channel, expected, resume, index, exact and len(requests) == 1)
            messages.append(message)
        self.write(messages if len(messages) > 1 else messages[0])

    def write(self, message: Any) -> None:
        self.cable.put(
            msgspec.msgpack.encode(message) if self.binary else msgspec.json.encode(message).decode()
        )

    def read(self) -> None:
        while self.unread:
            self._take(self.unread.pop(0))
        for channel, view in self.views.items():
            if view.position is not None:
                self.known[channel] = view.position

    def at_rest(self) -> None:
        if not self.open:
            return
        waits = {asked.channel for asked in (*self.asked.values(), *self.joining.values())}
        allowed = {"asked"} if not self.machine.door.is_set() else set()
        expect(waits <= allowed, "expected every request to be answered", waits)
        for view in self.views.values():
            view.at_rest()

    def _received(self, payload: Any) -> None:
        assert isinstance(payload, bytes) is self.binary
        message = msgspec.msgpack.decode(payload) if self.binary else msgspec.json.decode(payload)
        if message["type"] == "ping":
            self.write({"type": "pong"})
        else:
            self.unread.append(message)

    def _take(self, message: dict[str, Any]) -> None:
        kind, channel = message["type"], message.get("channel")
        match kind:
            case "welcome":
                self.session = message["session"]
            case "event" | "gap" | "position":
                view = self.views.get(channel)
                expect(view, "expected nothing of a channel that it does not have", channel, message)
                {"event": view.event, "gap": view.gap, "position": view.moved}[kind](message)
            case "subscribed":
                self._subscribed(message)
            case "unsubscribed":
                asked = self._answered(message)
                expect(asked.expected == kind, "expected", asked.expected, "got", message)
                expect(self.views.pop(channel, None), "expected it to have been subscribed", message)
            case "error":
                asked = self._answered(message)
                expect(asked.expected == message["code"], "expected", asked.expected, "got", message)
            case "disconnect":
                expect(self.may_be_too_slow, "expected to stay connected, for it always reads", message)
            case _:
                raise Broken(f"unexpected: {message}")

    def _answered(self, message: dict[str, Any]) -> Asked:
        if "ref" in message:
            asked = self.asked.pop(message["ref"], None)
        else:
            asked = self.joining.pop(message["channel"], None)
        expect(asked, "expected an answer to something, once", message)
        assert asked is not None
        return asked

    def _subscribed(self, message: dict[str, Any]) -> None:
        asked, channel = self._answered(message), message["channel"]
        expect(asked.expected == "subscribed", "expected", asked.expected, "got", message)
        expect(channel not in self.views, "expected one subscription a channel", message)
        resume, room = asked.resume, ROOMS.get(channel, {})
        is_resume = resume is not None and bool(resume.epoch)
        expect(
            ("recovered" in message) is is_resume,
            "expected recovered on a resume, and only there",
            message,
            resume,
        )
        if room.get("history") == 0:
            expect("offset" not in message, "expected no position without history", message)
            view = View(self.ledger, channel, self.session, None, asked.index)
            view.exact = asked.exact
        else:
            position = Position(message["epoch"], message["offset"])
            self._check_begin(channel, position, message.get("recovered"), resume, room)
            view = View(
                self.ledger, channel, self.session, position, 0, conflates=room.get("slow") == "latest"
            )
        self.views[channel] = view

    def _check_begin(
        self,
        channel: str,
        position: Position,
        recovered: bool | None,
        resume: Position | None,
        room: dict[str, Any],
    ) -> None:
        size = room.get("history", HISTORY)
        oldest = self.machine.clock.time() - room.get("history_ttl", HISTORY_TTL)
        expect(self.ledger.exists(channel, position), "expected a position that there is", channel, position)
        if recovered:
            expect(position == resume, "expected to go on where it was", resume, position)
        elif recovered is False:
            assert resume is not None
            must = self.ledger.must_recover(channel, resume, size, oldest)
            expect(not must, "expected to recover what is kept", channel, resume, position)
        elif resume is not None:
            must = self.ledger.certain and [
                entry
                for entry in self.ledger.logs[channel, position.epoch][-size:]
                if entry.time >= oldest and entry.offset <= position.offset
            ]
            expect(not must, "expected all that is kept", channel, position, must)


class Promised(RuleBasedStateMachine):
    """The hub, on a broadcaster that a subclass may replace."""

    broadcaster: ClassVar[Any] = Recorded

    def cable(self, app: Any, scope: Any, received: Any) -> Any:
        return Cable(app, scope, received, lambda: None)

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.numbers = itertools.count(1)
        self.watchers: dict[int, Watcher] = {}
        self.positions: list[tuple[str, Position]] = []  # that somebody has had once
        self.keys: dict[tuple[str, str], tuple[Position | None, float]] = {}
        self.rested = True

    @initialize(plenty=st.booleans())
    def begin(self, plenty: bool) -> None:
        self.ledger = Ledger()
        self.ledger.certain = plenty
        self.broker = self.broadcaster(self.ledger)
        self.hub = Hub(
            broadcaster=self.broker,
            history=HISTORY,
            history_ttl=HISTORY_TTL,
            outbox_messages=OUTBOX_MESSAGES,
            outbox_bytes=OUTBOX_BYTES,
            command_timeout=10 * 24 * 3600.0,
        )
        self.door = asyncio.Event()
        self.door.set()
        for name, options in ROOMS.items():
            if name == "asked":
                self.hub.channel(name, **options)(self._may)
            else:
                self.hub.channel(name, public=True, **options)
        self._time = hub_time(self.hub)
        self.clock = self._time.__enter__()
        self.broker.clock = self.clock.time
        self.runner.run(self.hub.__aenter__())

    async def _may(self, session: Session) -> None:
        await self.door.wait()

    # What happens.

    SLOT = st.integers(0, 4)
    CHANNEL = st.sampled_from([*ROOMS, "broadcast"])
    TURNS = st.sampled_from([None, None, 0, 1, 2, 3, 5, 8])
    HOW = st.sampled_from(["fresh", "own", "own", "own", "own", "stale", "forged", "above", "kept"])

    @rule(
        slot=SLOT,
        channels=st.lists(st.tuples(CHANNEL, HOW), max_size=4, unique_by=lambda pair: pair[0]),
        binary=st.booleans(),
        turns=TURNS,
    )
    def connect(self, slot: int, channels: list[tuple[str, str]], binary: bool, turns: int | None) -> None:
        old = self.watchers.get(slot)
        if old is not None and old.open:
            return
        urls, query = {}, []
        asked = dict(channels)
        for channel in {"broadcast": None, **asked}:
            resume = self._resume(old, channel, asked.get(channel, "fresh"))
            index, exact = (
                len(self.ledger.plain[channel]) if self.rested else 0,
                self.rested and turns is None,
            )
            urls[channel] = Asked("subscribe", channel, "subscribed", resume, index, exact)
            if resume is not None:
                query.append(f"resume={resume.epoch}.{resume.offset}.{channel}")
            elif channel in asked:
                query.append(f"channel={channel}")

        async def act() -> None:
            self.watchers[slot] = Watcher(self, "?" + "&".join(query), urls, binary)
            if old is not None:
                self.watchers[slot].known = dict(old.known)

        self._do(act(), turns)

    @rule(
        slot=SLOT,
        requests=st.lists(
            st.tuples(st.sampled_from(["subscribe", "subscribe", "unsubscribe"]), CHANNEL, HOW),
            min_size=1,
            max_size=5,
        ),
        turns=TURNS,
    )
    def ask(self, slot: int, requests: list[tuple[str, str, str]], turns: int | None) -> None:
        watcher = self._open(slot)
        if watcher is None:
            return

        async def act() -> None:
            exact = self.rested and turns is None
            watcher.ask(
                [(kind, channel, self._resume(watcher, channel, how)) for kind, channel, how in requests],
                exact,
            )

        self._do(act(), turns)

    @rule(
        channel=CHANNEL,
        count=st.sampled_from([1, 1, 2, 3, 5, 20, 50, 100]),
        size=st.sampled_from([0, 0, 100, 1500]),
        exclude=st.none() | SLOT,
        nowait=st.booleans(),
        turns=TURNS,
    )
    def publish(
        self, channel: str, count: int, size: int, exclude: int | None, nowait: bool, turns: int | None
    ) -> None:
        watcher = None if exclude is None else self.watchers.get(exclude)
        session = (watcher.session or None) if watcher else None

        async def act() -> None:
            for _ in range(count):
                data = {"n": next(self.numbers), "pad": "x" * size}
                if nowait:
                    self.hub.publish_nowait(channel, "said", data, exclude=session)
                else:
                    await self.hub.publish(channel, "said", data, exclude=session)

        self._do(act(), turns)

    @rule(channels=st.lists(CHANNEL, min_size=2, max_size=12), turns=TURNS)
    def publish_at_once(self, channels: list[str], turns: int | None) -> None:
        async def act() -> None:
            await asyncio.gather(*(self.hub.publish(c, "said", {"n": next(self.numbers)}) for c in channels))

        self._do(act(), turns)

    @rule(channel=CHANNEL, key=st.sampled_from(["a", "b"]), turns=TURNS)
    def publish_once(self, channel: str, key: str, turns: int | None) -> None:
        async def act() -> None:
            position = await self.hub.publish(channel, "said", {"n": next(self.numbers)}, key=key)
            first, until = self.keys.get((channel, key), (None, 0.0))
            if self.clock.time() < until:
                expect(position == first, "expected a key's first position", first, position)
            else:
                self.keys[channel, key] = position, self.clock.time() + 300.0

        self._do(act(), turns)

    @rule(slot=SLOT, abnormal=st.booleans(), turns=TURNS)
    def leave(self, slot: int, abnormal: bool, turns: int | None) -> None:
        watcher = self._open(slot)
        if watcher is None:
            return

        async def act() -> None:
            watcher.cable.cut(1006 if abnormal else 1001)
            if turns is None:
                await asyncio.wait([watcher.cable.task])

        self._do(act(), turns)

    @rule(slot=SLOT, after=st.integers(0, 5))
    def stall(self, slot: int, after: int) -> None:
        if (watcher := self._open(slot)) is not None:
            watcher.has_stalled = True
            watcher.cable.stall(after)

    @rule(slot=SLOT, turns=TURNS)
    def read(self, slot: int, turns: int | None) -> None:
        watcher = self._open(slot)
        if watcher is None:
            return

        async def act() -> None:
            watcher.cable.resume()

        self._do(act(), turns)

    @rule(seconds=st.sampled_from([0.5, 3.0, 9.0, 12.0, 61.0, 301.0]))
    def time_passes(self, seconds: float) -> None:
        self._do(self.clock.advance(seconds), None)

    @rule(really=st.sampled_from([False] * 9 + [True]))
    def a_day_passes(self, really: bool) -> None:
        # Positions are forgotten as well: from here on, what resumes may find a new epoch.
        if really and self.ledger.certain:
            self.ledger.certain = False
            for watcher in self.watchers.values():  # a day of pings is long
                watcher.cable.cut(1006)
            self._do(self.clock.advance(25 * 3600), None)

    @rule(turns=TURNS)
    def the_door(self, turns: int | None) -> None:
        async def act() -> None:
            (self.door.clear if self.door.is_set() else self.door.set)()

        self._do(act(), turns)

    # Only where nothing is on its way, which keeps its order.
    @precondition(lambda self: self.rested and hasattr(self, "broker") and isinstance(self.broker, Remote))
    @rule(turns=st.integers(0, 6), losing=st.sampled_from([0, 0, 0, 1, 2]))
    def the_way(self, turns: int, losing: int) -> None:
        self.broker.turns = turns
        self.broker.losing = losing

    @invariant()
    def every_view_is_as_promised(self) -> None:
        for watcher in self.watchers.values():
            watcher.read()

    def teardown(self) -> None:
        try:
            if hasattr(self, "hub"):
                self._end()
        finally:
            self.runner.close()

    def _end(self) -> None:
        async def everybody_reads() -> None:
            self.door.set()
            for watcher in self.watchers.values():
                watcher.cable.resume()

        async def nobody_is_left() -> None:
            for watcher in self.watchers.values():
                watcher.cable.cut(1001)
            await settle()
            run = self.hub._lifecycle.run
            assert run is not None
            expect(not run.sessions, "expected no session to be left", run.sessions)
            expect(not run.node.fanout.topics, "expected no channel to be left", run.node.fanout.topics)
            await self.hub.__aexit__()
            left = asyncio.all_tasks() - {asyncio.current_task()}
            expect(not left, "expected no task to be left", left)

        self._do(everybody_reads(), None)
        self.runner.run(nobody_is_left())
        self._time.__exit__(None, None, None)

    # How it is done.

    def _do(self, action: Any, turns: int | None) -> None:
        """Do something, and let the loop run some turns, or come to rest."""

        async def act() -> None:
            await action
            for _ in range(
                5 if turns is None else 0
            ):  # a broker that is far away takes more than a thousand turns
                await settle()
            for _ in range(turns or 0):
                await asyncio.sleep(0)

        self.runner.run(act())
        self.rested = turns is None
        for watcher in self.watchers.values():
            watcher.read()
            if self.rested and not watcher.cable.stalled:
                watcher.at_rest()
        self._remember()

    def _open(self, slot: int) -> Watcher | None:
        watcher = self.watchers.get(slot)
        return watcher if watcher is not None and watcher.open else None

    def _remember(self) -> None:
        for watcher in self.watchers.values():
            for channel, position in watcher.known.items():
                if (channel, position) not in self.positions[-50:]:
                    self.positions.append((channel, position))

    def _resume(self, watcher: Watcher | None, channel: str, how: str) -> Position | None:
        own = watcher.known.get(channel) if watcher is not None else None
        stale = [position for name, position in self.positions if name == channel]
        match how:
            case "own":
                return own
            case "stale":
                return stale[len(stale) // 2] if stale else None
            case "forged":
                return Position("forged", own.offset if own else 3)
            case "above":
                return Position(own.epoch, own.offset + 100_000) if own else None
            case "kept":
                return Position("", 0)
        return None


class PromisedFromAfar(Promised):
    """The same, on a broadcaster that takes its time and may lose things on the way."""

    broadcaster = Remote


class PromisedAtOnce(Promised):
    """The same, over connections that the hub has adopted."""

    def cable(self, app: Any, scope: Any, received: Any) -> Any:
        return AdoptedCable(app, scope, received)


QUICK = settings(
    max_examples=EXAMPLES,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
    phases=[
        phase
        for phase in Phase
        if os.environ.get("ASGI_WS_TEST_SHRINK", "1") == "1" or phase is not Phase.shrink
    ],
)


@pytest.mark.parametrize("machine", [Promised, PromisedFromAfar, PromisedAtOnce])
def test_every_view_is_in_order_and_complete_or_the_loss_was_said(machine):
    run_state_machine_as_test(machine, settings=QUICK)


# The test itself: a hub that breaks its promise is noticed.


class Silent(Recorded):
    """Loses one publication in twenty, and says nothing of it."""

    def _hand_over(self, publication: Publication) -> None:
        if publication.offset % 20 == 7:
            return
        if publication.offset % 20 == 8:
            publication = replace(publication, previous=publication.offset - 2)
        super()._hand_over(publication)


class Twofold(Recorded):
    """Hands one publication over twice."""

    def _hand_over(self, publication: Publication) -> None:
        super()._hand_over(publication)
        if publication.offset % 10 == 3:
            super()._hand_over(replace(publication, previous=0))


class Reversed(Recorded):
    """Hands two over in the wrong order."""

    waits: Publication | None = None

    def _hand_over(self, publication: Publication) -> None:
        if publication.offset % 10 == 4:
            self.waits = replace(publication, previous=0)
            return
        super()._hand_over(replace(publication, previous=0))
        if publication.offset % 10 == 5 and self.waits is not None:
            super()._hand_over(self.waits)


class Holed(Recorded):
    """Its history lacks something in the middle, and claims to be complete."""

    async def history(self, channel: str, after: Any, retention: Any, limit: Any) -> History:
        found = await super().history(channel, after, retention, limit)
        kept = found.publications
        return found._replace(publications=[*kept[:1], *kept[2:]]) if len(kept) > 2 else found


class Credulous(Recorded):
    """Believes any position."""

    async def history(self, channel: str, after: Any, retention: Any, limit: Any) -> History:
        found = await super().history(channel, after, retention, limit)
        return found._replace(complete=True)


class Forgetful(Recorded):
    """Recovers nobody."""

    async def history(self, channel: str, after: Any, retention: Any, limit: Any) -> History:
        found = await super().history(channel, after, retention, limit)
        return found if after is None else found._replace(complete=False, publications=())


class Repeating(Recorded):
    """Knows no key again."""

    async def publish(self, publication: Publication, retention: Any) -> Position | None:
        return self._publish(publication, retention)


class Indiscreet(Recorded):
    """Leaves nobody out."""

    def _hand_over(self, publication: Publication) -> None:
        super()._hand_over(replace(publication, exclude=None))


@pytest.mark.parametrize(
    "broken", [Silent, Twofold, Reversed, Holed, Credulous, Forgetful, Repeating, Indiscreet]
)
def test_a_broken_promise_is_noticed(broken, caplog):
    class Deceived(Promised):
        broadcaster = broken

    caplog.set_level(logging.CRITICAL, "asgi_ws")
    found = settings(QUICK, max_examples=2000, phases=[Phase.generate], database=None, print_blob=False)
    with pytest.raises(BaseException) as raised:
        run_state_machine_as_test(Deceived, settings=found)
    assert broke(raised.value), raised.value


def broke(error: BaseException) -> bool:
    """Whether it is the promise that was broken, once or in several ways."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(broke, error.exceptions))
    return isinstance(error, Broken)


# What it has found, each by itself.


@pytest.mark.anyio
async def test_who_resumes_more_channels_than_an_outbox_holds_hears_them_all():
    hub = Hub()
    hub.channel("room:{n:int}", public=True)
    for number in range(100):
        for room in range(30):
            await hub.publish(f"room:{room}", "said", number)
    rooms = {f"room:{room}": Position("", 0) for room in range(30)}
    async with connect(hub, "/stream", resume=rooms) as client:
        await settle()
        heard = Counter(event["channel"] for event in client.events)
        assert heard == dict.fromkeys(rooms, 100)
        await hub.publish("room:7", "said", 100)
        assert [event["data"] for event in client.events if event["channel"] == "room:7"] == [*range(100)]
        await settle()
        assert client.events[-1]["data"] == 100
        assert {message["type"] for message in client.messages} == {"welcome", "subscribed", "event"}


@pytest.mark.anyio
@pytest.mark.parametrize("history", [0, 100])
async def test_one_turn_of_several_channels_makes_nobody_too_slow_who_reads(history):
    hub = Hub()
    hub.channel("room:{n:int}", public=True, history=history, slow="disconnect")
    async with connect(hub, "/stream?" + "&".join(f"channel=room:{n}" for n in range(9))) as client:
        for number in range(900):  # in one turn: the memory broadcaster never waits
            await hub.publish(f"room:{number % 9}", "said", number)
        await settle()
        assert len(client.events) == 900


@pytest.mark.anyio
async def test_events_that_leave_a_session_out_do_not_make_it_too_slow():
    hub = Hub()
    hub.channel("room", public=True, slow="disconnect")
    async with connect(hub, "/stream?channel=room") as client:
        for number in range(900):
            await hub.publish("room", "said", number, exclude=client.session)
        await settle()
        assert client.position("room").offset == 900


@pytest.mark.anyio
async def test_a_long_replay_ends_without_a_gap():
    hub = Hub(history=10_000, history_channel_bytes=64 << 20)
    hub.channel("room", public=True)
    for number in range(5000):
        await hub.publish("room", "said", number)
    async with connect(hub, "/stream", resume={"room": Position("", 0)}) as client:
        await settle()
        await hub.publish("room", "said", 5000)
        await settle()
        assert [event["data"] for event in client.events] == list(range(5001))
        assert "gap" not in {message["type"] for message in client.messages}
