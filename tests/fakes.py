"""Stand-ins for what a room of the house has around it: a broker, a subscriber, a client, a clock."""

import asyncio
import heapq
import itertools
import json
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Self
from urllib.parse import urlencode

import msgspec

from asgi_ws import clock
from asgi_ws.broadcasters import Broadcaster, Change, History
from asgi_ws.codecs import JSON
from asgi_ws.publication import Position, Publication

DEADLINE = 10.0  # seconds that anything may take here

_ids = itertools.count(1)


def publication(channel: str = "room", event: str = "said", data: Any = None, **fields: Any) -> Publication:
    """A publication as a hub makes one; `data` is anything that JSON can carry."""
    fields = {"time": time.time(), **fields}
    return Publication(channel=channel, event=event, data=msgspec.json.encode(data), **fields)


def done(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run what awaits nothing that is not ready, without a loop; the memory broadcaster never waits."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise AssertionError("expected no waiting")


async def until(condition: Callable[[], Any], what: str = "the condition") -> Any:
    """Let the loop run until something is true."""
    deadline = time.monotonic() + DEADLINE
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {DEADLINE} s for {what}"
        await asyncio.sleep(0.001)
    return value


async def turns(count: int = 5) -> None:
    """Let the loop run some turns: for what must *not* happen, or happens without waiting for anything."""
    for _ in range(count):
        await asyncio.sleep(0)


class Clock:
    """A clock that moves by hand."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Alarm:
    """A timer of `Alarms`."""

    def __init__(self, callback: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.callback: Callable[..., Any] | None = callback
        self.args = args

    def cancel(self) -> None:
        self.callback = None

    def ring(self) -> None:
        callback, self.callback = self.callback, None
        if callback is not None:
            callback(*self.args)


class Alarms(clock.Clock):
    """A hub's clock that moves by hand, and calls whatever falls due on its way; no loop is needed.

    Attributes:
        set: How many timers were ever set.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self.set = 0
        self._alarms: list[tuple[float, int, Alarm]] = []

    @property
    def timers(self) -> int:
        """How many timers are set."""
        return sum(alarm.callback is not None for _, _, alarm in self._alarms)

    def time(self) -> float:
        return self.now + 1_000_000.0

    def monotonic(self) -> float:
        return self.now

    def call_later(self, seconds: float, callback: Callable[..., object], *args: Any) -> Alarm:
        self.set += 1
        alarm = Alarm(callback, args)
        heapq.heappush(self._alarms, (self.now + seconds, self.set, alarm))
        return alarm

    def advance(self, seconds: float = 0.0) -> None:
        """Let so much time pass; 0 lets happen what is due now."""
        end = self.now + seconds
        while self._alarms and self._alarms[0][0] <= end:
            self.step()
        self.now = end

    def step(self) -> None:
        """Call what is due next, and nothing else."""
        when, _, alarm = heapq.heappop(self._alarms)
        self.now = max(self.now, when)
        alarm.ring()


class TimeTravel(asyncio.SelectorEventLoop):
    """A loop whose time stands still while there is something to do, and jumps to the next timer else."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__()

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        timers = [timer.when() for timer in self._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
        if timers and not self._ready:  # type: ignore[attr-defined]
            self.now = max(self.now, min(timers))
        super()._run_once()  # type: ignore[misc]

    def timers(self) -> int:
        """How many timers are set."""
        return sum(not timer.cancelled() for timer in self._scheduled)  # type: ignore[attr-defined]


def travel(main: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine where sleeping takes no time."""
    with asyncio.Runner(loop_factory=TimeTravel) as runner:
        return runner.run(main)


class FakeReceiver:
    """Hears what a broadcaster delivers; as a node does, in its place."""

    def __init__(self) -> None:
        self.heard: list[Publication] = []
        self.gaps: list[tuple[str, Position | None]] = []
        self.changes: list[Change] = []

    def deliver(self, publication: Publication) -> None:
        self.heard.append(publication)

    def missed(self, channel: str, position: Position | None) -> None:
        self.gaps.append((channel, position))

    def changed(self, change: Change) -> None:
        self.changes.append(change)


class FakeBroker(Broadcaster):
    """A broadcaster that is not embedded, whose every answer can be held back or fail.

    Attributes:
        gates: By the name of a call, an event that it waits for before it does anything; as
            `"history answered"`, one that its answer waits for on its way back.
        errors: By the name of a call, what it raises.
        calls: What was called, with the channel.
        channels: What is subscribed to.
    """

    kind = "fake"
    features = frozenset({"history", "idempotency", "total_order"})

    def __init__(self, *features: Any) -> None:
        if features:
            self.features = frozenset(features) - {None}
        self.gates: dict[str, asyncio.Event] = {}
        self.errors: dict[str, BaseException] = {}
        self.calls: list[tuple[str, str]] = []
        self.channels: set[str] = set()
        self.epochs: dict[str, str] = defaultdict(lambda: "e1")
        self.logs: dict[str, list[Publication]] = defaultdict(list)
        self.tops: dict[str, int] = defaultdict(int)
        self.keys: dict[Any, Position | None] = {}
        self.receiver: Any = None
        self.starts = self.stops = 0
        self.running = False

    def called(self, name: str) -> list[str]:
        return [channel for call, channel in self.calls if call == name]

    def gate(self, name: str) -> asyncio.Event:
        """Hold a call back until the event that this returns is set."""
        self.gates[name] = asyncio.Event()
        return self.gates[name]

    def emit(self, publication: Publication) -> None:
        """Deliver what came from the broker, as far as it is subscribed to."""
        if publication.channel in self.channels:
            self.receiver.deliver(publication)

    def keep(self, publication: Publication) -> Position:
        """Give a publication its position."""
        channel = publication.channel
        publication.epoch, publication.previous = self.epochs[channel], self.tops[channel]
        self.tops[channel] += 2  # offsets increase, not by one
        publication.offset = self.tops[channel]
        self.logs[channel].append(publication)
        return Position(publication.epoch, publication.offset)

    async def start(self, receiver: Any) -> None:
        self.starts += 1
        await self._begin("start")
        self.receiver = receiver
        self.running = True

    async def stop(self) -> None:
        self.stops += 1
        await self._begin("stop")
        self.channels.clear()
        self.running = False

    async def ping(self) -> float:
        await self._begin("ping")
        return 0.001

    async def publish(self, publication: Publication, retention: Any) -> Position | None:
        await self._begin("publish", publication.channel)
        assert self.running, "published between a stop and the next start"
        place = publication.channel, publication.key
        if publication.key is not None and place in self.keys:
            return self.keys[place]
        position = None
        if retention.size and "history" in self.features:
            position = self.keep(publication)
        self.keys[place] = position
        self.emit(publication)
        return position

    async def subscribe(self, channel: str) -> None:
        await self._begin("subscribe", channel)
        self.channels.add(channel)
        await self._answer("subscribe")

    async def unsubscribe(self, channel: str) -> None:
        await self._begin("unsubscribe", channel)
        self.channels.discard(channel)
        await self._answer("unsubscribe")

    async def position(self, channel: str) -> Position | None:
        await self._begin("position", channel)
        position = Position(self.epochs[channel], self.tops[channel])
        await self._answer("position")
        return position

    async def history(
        self, channel: str, after: Position | None, retention: Any, limit: int | None
    ) -> History:
        await self._begin("history", channel)
        top = Position(self.epochs[channel], self.tops[channel])
        log = self.logs[channel]
        floor = log[0].previous if log else top.offset
        if after is not None and not (after.epoch == top.epoch and floor <= after.offset <= top.offset):
            return History(top, (), complete=False)
        found = [kept for kept in log if after is None or kept.offset > after.offset]
        if limit is not None and len(found) > limit:
            top = Position(top.epoch, found[limit].previous)
        await self._answer("history")
        return History(top, found[:limit], complete=True)

    async def _begin(self, name: str, channel: str = "") -> None:
        self.calls.append((name, channel))
        await self._wait(name)
        if name in self.errors:
            raise self.errors[name]

    async def _answer(self, name: str) -> None:
        await self._wait(f"{name} answered")

    async def _wait(self, name: str) -> None:
        gate = self.gates.get(name)
        if gate is None:
            await asyncio.sleep(0)  # a broker is never there at once
        else:
            await gate.wait()


class FakeSubscriber:
    """Who hears a channel; everything it was handed is, read, in `messages`."""

    def __init__(self, codec: Any = JSON) -> None:
        self.id = f"s{next(_ids)}"
        self.codec = codec
        self.direct: Any = None
        self.room: int | None = None  # for how many messages, where it is bounded
        self.lagging: list[Any] = []
        self.given_up = False
        self.writes = 0
        self.batches: list[Any] = []
        self._collected: list[Any] = []
        self._payloads: list[Any] = []

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [self._read(payload) for payload in self._payloads]

    def deliver(self, batch: Any) -> bool:
        taken = self.collect(batch)
        self.wake()
        return taken

    def collect(self, batch: Any) -> bool:
        if self.room is not None and self.room < len(batch.payloads):
            return False
        self.batches.append(batch)
        self._collected += batch.payloads
        if self.room is not None:
            self.room -= len(batch.payloads)
        return True

    def wake(self) -> None:
        self.writes += 1
        self._payloads += self._collected
        self._collected = []

    def has_room(self, publications: Any) -> bool:
        return True

    def replay(self, batch: Any) -> None:
        self.deliver(batch)

    def tell(self, message: Any) -> None:
        (self._collected or self._payloads).append(self.codec.encode(message))  # in its place

    def squeeze(self, batch: Any) -> bool:
        return False

    def slow(self, channel: str, policy: str) -> None:
        pass

    def lag(self, subscription: Any) -> None:
        self.lagging.append(subscription)

    def give_up(self, batch: Any) -> None:
        self.given_up = True

    def heard(self, field: str = "data") -> list[Any]:
        """One field of every event, in order."""
        return [message[field] for message in self.messages if message["type"] == "event"]

    def _read(self, payload: Any) -> dict[str, Any]:
        decode = msgspec.json.decode if self.codec.kind == "text" else msgspec.msgpack.decode
        try:
            return decode(payload)
        except msgspec.DecodeError:
            return {"type": "unreadable"}


class Client:
    """A WebSocket client of an ASGI app, without a network: `async with Client(hub) as client`."""

    def __init__(
        self,
        app: Any,
        path: str = "/stream",
        *,
        channels: Iterable[str] = (),
        headers: dict[str, str] | None = None,
        **scope: Any,
    ) -> None:
        self._app = app
        self._incoming: asyncio.Queue[Any] = asyncio.Queue()
        self._outgoing: asyncio.Queue[Any] = asyncio.Queue()
        self._reading = asyncio.Event()
        self._reading.set()
        self.closed: dict[str, Any] | None = None
        self.scope = {
            "type": "websocket",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "ws",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": urlencode([("channel", name) for name in channels]).encode(),
            "headers": [(name.encode(), value.encode()) for name, value in (headers or {}).items()],
            "subprotocols": [],
            "extensions": {},
            "state": {},
            **scope,
        }

    async def __aenter__(self) -> Self:
        await self._incoming.put({"type": "websocket.connect"})
        self._task = asyncio.get_running_loop().create_task(self._app(self.scope, self._receive, self._send))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.resume()
        self.leave()
        await self.ended()

    async def ended(self) -> None:
        """Wait until the app is done with this connection."""
        async with asyncio.timeout(DEADLINE):
            await asyncio.shield(self._task)

    def leave(self, code: int = 1001) -> None:
        """Be gone; nothing more is read."""
        self._incoming.put_nowait({"type": "websocket.disconnect", "code": code})

    def pause(self) -> None:
        """Read nothing more: the server's writes do not finish."""
        self._reading.clear()

    def resume(self) -> None:
        self._reading.set()

    def send(self, **message: Any) -> None:
        self._incoming.put_nowait({"type": "websocket.receive", "text": json.dumps(message)})

    async def receive(self, *types: str) -> dict[str, Any]:
        """Return the next message, or the next of some types."""
        async with asyncio.timeout(DEADLINE):
            while True:
                message = await self._outgoing.get()
                if not types or message["type"] in types:
                    return message

    async def subscribe(self, channel: str, **fields: Any) -> dict[str, Any]:
        """Subscribe and return the answer."""
        ref = next(_ids)
        self.send(type="subscribe", channel=channel, ref=ref, **fields)
        async with asyncio.timeout(DEADLINE):
            while (answer := await self.receive("subscribed", "error")).get("ref") != ref:
                pass
        return answer

    async def events(self, count: int) -> list[Any]:
        """The data of the next events."""
        return [(await self.receive("event"))["data"] for _ in range(count)]

    async def _receive(self) -> Any:
        return await self._incoming.get()

    async def _send(self, message: Any) -> None:
        await self._reading.wait()
        if message["type"] == "websocket.send":
            self._outgoing.put_nowait(msgspec.json.decode(message["text"]))
        elif message["type"] == "websocket.close":
            self.closed = message
            self.leave(message["code"])
