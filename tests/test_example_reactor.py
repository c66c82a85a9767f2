"""examples/reactor: the bus by itself, then the whole system as its users run it."""

import asyncio
import contextlib
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from websockets.exceptions import ConnectionClosed

from asgi_ws import Hub
from examples.reactor import reactor as module
from examples.reactor.reactor import Reactor
from tests.servers import DEADLINE, Served, eventually, receive, send, serve, until, welcomed

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "reactor"
NODE = shutil.which("node")


# The bus by itself.


@pytest.fixture
async def reactor():
    async with Hub() as hub, Reactor(hub) as running:
        yield running


@pytest.fixture(params=["emit", "emit_nowait"])
def emit(request, reactor):
    """Both ways to emit, as one that is awaited."""

    async def emit_nowait(*event):
        reactor.emit_nowait(*event)

    return reactor.emit if request.param == "emit" else emit_nowait


def stats(emitted=1, handlers_failed=0, broadcasts_failed=0):
    return {
        "emitted": emitted,
        "handlers_failed": handlers_failed,
        "broadcasts_failed": broadcasts_failed,
    }


class Heard(list):
    """What a handler has been called with."""

    async def later(self, data):
        await asyncio.sleep(0)
        self.append(data)


async def test_sync_and_async_handlers_are_called_with_the_data(reactor, emit):
    heard = Heard()
    reactor.on("task.completed", heard.append)
    reactor.on("task.completed", heard.later)
    reactor.on("task.failed", heard.append)
    await emit("task.completed", {"id": 7})
    await eventually(lambda: heard == [{"id": 7}] * 2)
    assert reactor.stats() == stats()


async def test_emit_returns_when_its_handlers_are_done(reactor):
    heard = Heard()
    reactor.on("tick", heard.later)
    await reactor.emit("tick")
    assert heard == [None]


async def test_anything_that_is_async_when_called_is_awaited(reactor, emit):
    class Listener(Heard):
        __call__ = Heard.later

    heard, listener = Heard(), Listener()
    reactor.on("tick", functools.partial(heard.later))
    reactor.on("tick", listener)
    await emit("tick", 1)
    await eventually(lambda: heard == listener == [1])


async def test_off(reactor, emit):
    heard = Heard()
    reactor.on("tick", heard.append)
    reactor.on("tick", heard.later)
    reactor.off("tick", heard.append)
    reactor.off("tick", print)
    reactor.off("never", print)
    await emit("tick", 1)
    await eventually(lambda: heard == [1])


async def test_a_slow_handler_holds_up_no_other(reactor, emit):
    go, heard = asyncio.Event(), Heard()

    async def slow(data):
        await go.wait()

    reactor.on("tick", slow)
    reactor.on("tick", heard.later)
    emitting = asyncio.ensure_future(emit("tick", 1))
    await eventually(lambda: heard == [1])
    go.set()
    await emitting


async def test_an_error_of_a_handler_is_its_own(reactor, emit, caplog):
    heard = Heard()

    def fail(data):
        raise ValueError("sync")

    async def fail_later(data):
        raise ValueError("async")

    for handler in (fail, fail_later, heard.append, heard.later):
        reactor.on("tick", handler)
    await emit("tick", 1)
    await eventually(lambda: heard == [1, 1])
    await eventually(lambda: reactor.stats() == stats(handlers_failed=2))
    assert [str(record.exc_info[1]) for record in caplog.records] == ["sync", "async"]
    assert reactor._hub.stats()["events_emitted"] == 1


async def test_a_handler_that_awaits_something_cancelled_does_not_cancel_the_emit(reactor, emit):
    heard, cancelled = Heard(), asyncio.get_running_loop().create_future()
    cancelled.cancel()

    async def wait(data):
        await cancelled

    reactor.on("tick", wait)
    reactor.on("tick", heard.later)
    await emit("tick", 1)
    await eventually(lambda: heard == [1])


async def test_an_emit_that_is_cancelled_cancels_its_handlers(reactor):
    begun, ended = asyncio.Event(), []

    async def wait(data):
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(data)

    reactor.on("tick", wait)
    emitting = asyncio.ensure_future(reactor.emit("tick", 1))
    await begun.wait()
    emitting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await emitting
    assert ended == [1]


NOT_BROADCAST = {
    "a name with a space": ("no name", 1),
    "an empty name": ("", 1),
    "a long name": ("n" * 65, 1),
    "a name that is not ASCII": ("задача", 1),
    "an object": ("tick", object()),
    "a loop": ("tick", (loop := [], loop.append(loop))),
    "too much": ("tick", "x" * 300_000),
}


@pytest.mark.parametrize(("event", "data"), NOT_BROADCAST.values(), ids=NOT_BROADCAST)
async def test_what_cannot_be_broadcast_still_reaches_the_handlers(reactor, emit, caplog, event, data):
    heard = Heard()
    reactor.on(event, heard.append)
    await emit(event, data)
    assert heard == [data]
    assert reactor.stats() == stats(broadcasts_failed=1)
    assert [record.message for record in caplog.records] == [f"a broadcast of {event!r} failed"]
    assert reactor._hub.stats()["events_emitted"] == 0


async def test_an_error_of_the_hub_breaks_nothing(reactor, emit, caplog, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("the hub is on fire")

    monkeypatch.setattr(reactor._hub, "broadcast", fail)
    monkeypatch.setattr(reactor._hub, "broadcast_nowait", fail)
    heard = Heard()
    reactor.on("tick", heard.append)
    await emit("tick", 1)
    assert heard == [1]
    assert reactor.stats() == stats(broadcasts_failed=1)
    assert "the hub is on fire" in caplog.text


async def test_a_hub_that_has_stopped_breaks_nothing(caplog):
    hub = Hub()
    reactor, heard = Reactor(hub), Heard()
    reactor.on("tick", heard.append)
    async with hub, reactor:
        pass
    await reactor.emit("tick", 1)
    reactor.emit_nowait("tick", 2)
    assert heard == [1, 2]
    assert reactor.stats() == stats(emitted=2, broadcasts_failed=1)  # the other waits for the next start
    assert "NotRunning" in caplog.text


async def test_a_disabled_hub_broadcasts_nothing_and_the_handlers_are_called():
    hub, heard = Hub(enabled="off"), Heard()
    async with hub, Reactor(hub) as reactor:
        reactor.on("tick", heard.append)
        await reactor.emit("tick", 1)
        reactor.emit_nowait("tick", 2)
        assert heard == [1, 2]
        assert reactor.stats() == stats(emitted=2)
        assert hub.stats()["events_emitted"] == 0


async def test_a_stop_waits_for_the_handlers_but_not_for_ever(monkeypatch):
    heard, ended = Heard(), asyncio.Event()

    async def never(data):
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with Hub() as hub:
        async with Reactor(hub) as reactor:
            reactor.on("tick", heard.later)
            reactor.emit_nowait("tick", 1)
        assert heard == [1]
        monkeypatch.setattr(module, "STOP_WAIT", 0.05)
        async with reactor:
            reactor.on("tick", never)
            reactor.emit_nowait("tick", 2)
        async with asyncio.timeout(DEADLINE):
            await ended.wait()


async def test_what_waits_for_the_start_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "MAX_WAITING", 2)
    hub, heard = Hub(), Heard()
    reactor = Reactor(hub)
    reactor.on("tick", heard.later)
    for n in range(3):
        reactor.emit_nowait("tick", n)
    assert reactor.stats() == stats(emitted=3, handlers_failed=1)
    async with hub, reactor:
        await eventually(lambda: heard == [0, 1])


async def test_emit_nowait_from_everywhere_at_once():
    hub = Hub(history=1000)
    reactor = Reactor(hub)
    called = []

    @contextlib.asynccontextmanager
    async def lifespan(app):
        async with hub, reactor:
            yield

    async def handle(data):
        called.append((threading.get_ident(), *data))
        if data[0] == "elsewhere":
            reactor.emit_nowait("answer", ["loop", data[1]])

    def emit_all(sender):
        for n in range(50):
            reactor.emit_nowait("question", [sender, n])

    reactor.on("question", handle)
    emit_all("before the start")
    with serve(Starlette(routes=[Mount("/ws", hub)], lifespan=lifespan)) as served:
        threads = [
            threading.Thread(target=emit_all, args=[sender]) for sender in ("elsewhere", "there", "yonder")
        ]
        async with served.connect("/ws/stream?resume=.0.broadcast") as ws:
            for thread in threads:
                thread.start()
            events = [(await receive(ws, "event"))["data"] for _ in range(250)]
            for thread in threads:
                thread.join(DEADLINE)
        until(lambda: len(called) == 200)
    for sender in ("before the start", "elsewhere", "there", "yonder", "loop"):
        assert [n for who, n in events if who == sender] == list(range(50))
    assert len({thread for thread, *_ in called}) == 1  # the loop's
    assert reactor.stats() == stats(emitted=250)


# The whole system.


class Running(Served):
    """The example as a process of its own, and what it has logged."""

    def __init__(self, port: int, log: list[str]) -> None:
        super().__init__(port)
        self.log = log

    async def stats(self) -> dict:
        return (await asyncio.to_thread(self.get, "/ws/stats")).json()

    async def empty(self) -> None:
        """Wait until nobody is connected, whoever was before."""
        await asyncio.to_thread(
            until, lambda: self.get("/ws/status").json()["active_connections"] == 0, "all to be gone"
        )


@contextlib.contextmanager
def uvicorn(app="examples.reactor.main:app", cwd=ROOT, port=0, **environ) -> Iterator[Running]:
    command = [sys.executable, "-m", "uvicorn", app, "--port", str(port), "--no-access-log"]
    # Several that run at once from one shell would be taken for workers of one application.
    ours = {"ASGI_WS_HEARTBEAT": "0.3", "ASGI_WS_BROADCASTER": "memory://?workers=allow"}
    environ = {**os.environ, **ours, **environ}
    with process(command, "stderr", cwd=cwd, env=environ) as (running, log):
        found = until(lambda: re.search(r"running on \S+:(\d+)", "".join(log)) or running.poll() is not None)
        assert running.poll() is None, "".join(log)
        yield Running(int(found[1]), log)
        running.terminate()
        assert running.wait(DEADLINE) in {0, -signal.SIGTERM}
    for trouble in ("Traceback", "WARNING", "ERROR", "never awaited", "was destroyed"):
        assert trouble not in "".join(log)


@contextlib.contextmanager
def process(command, stream, **options):
    """Run a command, with the lines of its stdout or stderr as they come."""
    options = {"stdin": subprocess.PIPE, stream: subprocess.PIPE, "text": True, **options}
    with subprocess.Popen(command, **options) as running:
        lines = []
        reader = threading.Thread(target=lambda: [lines.append(line) for line in getattr(running, stream)])
        reader.start()
        try:
            yield running, lines
        finally:
            running.kill()
            reader.join(DEADLINE)


@pytest.fixture(scope="module")
def example():
    with uvicorn() as running:
        yield running


async def heard(ws, event):
    """Return the next event of a name."""
    async with asyncio.timeout(DEADLINE):
        while (message := await receive(ws, "event"))["event"] != event:
            pass
    return message


async def test_the_welcome_comes_first(example):
    async with example.connect() as ws:
        welcome = await receive(ws)
        assert welcome["type"] == "welcome"
        assert welcome["heartbeat"] == 0.3
        subscribed = await receive(ws)
        assert (subscribed["type"], subscribed["channel"]) == ("subscribed", "broadcast")


async def test_the_heartbeat_beats_and_a_ping_is_answered(example):
    async with example.connect() as ws:
        await welcomed(ws)
        for _ in range(2):
            assert await receive(ws, "ping") == {"type": "ping"}
        await send(ws, type="pong")
        await send(ws, type="ping", ref=1)
        assert await receive(ws, "pong") == {"type": "pong", "ref": 1}


async def test_real_events_come_by_themselves(example):
    async with example.connect() as ws:
        await welcomed(ws)
        first, second = [(await heard(ws, "reactor.uptime"))["data"] for _ in range(2)]
        assert 0 <= first["up"] < second["up"]
        assert 0 < first["cpu"] <= second["cpu"]


async def test_an_async_emit_reaches_the_browser_and_then_what_its_handler_emits(example):
    async with example.connect() as ws:
        await welcomed(ws)
        totals = []
        for name in ("one", "two"):
            task = {"name": name, "seconds": 1.5}
            assert (await asyncio.to_thread(example.post, "/tasks", json=task)).json() == task
            assert (await heard(ws, "task.completed"))["data"] == task
            totals.append((await heard(ws, "task.totals"))["data"])
        assert totals[1]["tasks"] == totals[0]["tasks"] + 1
        assert totals[1]["seconds"] == totals[0]["seconds"] + 1.5


async def test_a_sync_emit_of_a_def_endpoint_reaches_the_browser(example):
    async with example.connect() as ws:
        await welcomed(ws)
        note = {"text": "здравствуйте <b>"}
        assert (await asyncio.to_thread(example.post, "/notes", json=note)).json() == note
        assert (await heard(ws, "note.added"))["data"] == note


async def test_many_clients_each_hear_every_event_in_order(example):
    clients, posts = 30, 25
    expected = [str(n) for n in range(posts)]
    async with contextlib.AsyncExitStack() as stack:
        http = await stack.enter_async_context(httpx2.AsyncClient(base_url=example.http, timeout=DEADLINE))
        streams = [await stack.enter_async_context(example.connect()) for _ in range(clients)]
        for ws in streams:
            await welcomed(ws)

        async def post(path, field):
            for text in expected:
                (await http.post(path, json={field: text})).raise_for_status()

        await asyncio.gather(post("/tasks", "name"), post("/notes", "text"))

        async def listen(ws):
            # A task is two events, a note is one; the clock's come between them.
            events = []
            while len(events) < 3 * posts:
                event = await receive(ws, "event")
                if event["event"] != "reactor.uptime":
                    events.append(event)
            return events

        async with asyncio.timeout(DEADLINE):
            first, *others = await asyncio.gather(*map(listen, streams))
    assert all(events == first for events in others)
    assert [e["data"]["name"] for e in first if e["event"] == "task.completed"] == expected
    assert [e["data"]["text"] for e in first if e["event"] == "note.added"] == expected
    tasks = [e["data"]["tasks"] for e in first if e["event"] == "task.totals"]
    assert tasks == list(range(tasks[0], tasks[0] + posts))


async def test_status_stats_and_health_tell_the_truth(example):
    await example.empty()
    before = await example.stats()
    async with example.connect() as one, example.connect() as two:
        await welcomed(one)
        await welcomed(two)
        status = example.get("/ws/status").json()
        assert (status["status"], status["active_connections"]) == ("ok", 2)
        assert status["connections"] == {"stream": 2}
        health = example.get("/ws/health")
        assert (health.status_code, health.json()["status"]) == (200, "healthy")
        assert health.json()["active_connections"] == 2

        # Every event is a broadcast, so the offset of the newest one is how many there were.
        example.post("/notes", json={"text": "before"})
        newest = (await heard(one, "note.added"))["offset"]
        stats = await example.stats()
        example.post("/notes", json={"text": "after"})
        assert newest <= stats["events_emitted"] < (await heard(one, "note.added"))["offset"]

        assert stats["active_connections"] == 2
        assert stats["connections_total"] == before["connections_total"] + 2
        assert stats["events_delivered"] > before["events_delivered"]
        assert (stats["publish_failed"], stats["events_dropped"]) == (0, 0)
    reactor = example.get("/reactor").json()
    assert reactor["emitted"] >= stats["events_emitted"]
    assert (reactor["handlers_failed"], reactor["broadcasts_failed"]) == (0, 0)


async def test_whoever_disconnects_is_forgotten_and_the_others_go_on(example):
    await example.empty()
    before = await example.stats()
    async with example.connect() as staying:
        await welcomed(staying)
        async with example.connect() as closing, example.connect() as vanishing:
            await welcomed(closing)
            await welcomed(vanishing)
            assert (await example.stats())["active_connections"] == 3
            vanishing.transport.abort()
        await asyncio.to_thread(
            until, lambda: example.get("/ws/status").json()["active_connections"] == 1, "two to be gone"
        )
        await asyncio.to_thread(example.post, "/notes", json={"text": "still here?"})
        assert (await heard(staying, "note.added"))["data"] == {"text": "still here?"}
        assert example.get("/ws/status").json()["subscriptions"] == 1
    await example.empty()
    after = await example.stats()
    ended = Counter(after["disconnects"]) - Counter(before["disconnects"])
    assert ended.pop("1000") == 2
    assert list(ended.values()) == [1]  # 1006 by the RFC; uvicorn says 1005


async def test_the_page_and_its_script(example):
    page = example.get("/live")
    assert page.headers["content-type"].startswith("text/html")
    for path in re.findall(r'from "(/.+?)"', page.text):
        assert "javascript" in example.get(path).headers["content-type"]
    assert "//" not in re.sub(r"// .*", "", page.text)  # nothing from elsewhere


async def test_reactor_enabled_false():
    with uvicorn(REACTOR_ENABLED="false") as example:
        async with example.connect() as ws:
            with pytest.raises(ConnectionClosed) as closed:
                await receive(ws)
        assert closed.value.rcvd.code == 1013
        assert "disabled" in closed.value.rcvd.reason
        assert example.post("/tasks", json={"name": "done all the same"}).status_code == 200
        assert example.post("/notes", json={"text": "noted"}).status_code == 200
        reactor = example.get("/reactor").json()
        assert reactor["emitted"] >= 4  # task, totals, note and the clock
        assert (reactor["handlers_failed"], reactor["broadcasts_failed"]) == (0, 0)
        assert (await example.stats())["events_emitted"] == 0
        assert example.get("/ws/status").json()["status"] == "disabled"
        health = example.get("/ws/health")
        assert (health.status_code, health.json()["status"]) == (200, "disabled")


async def test_it_runs_from_its_own_folder_too():
    with uvicorn("main:app", EXAMPLE) as example:
        async with example.connect() as ws:
            await welcomed(ws)
            await heard(ws, "reactor.uptime")
        assert example.get("/live").status_code == 200


# The page's script, in Node.

PAGE = """
import { connect } from "./reactor.mjs";

globalThis.window = new EventTarget();
globalThis.location = { href: process.argv[2] };
globalThis.WebSocket = class extends WebSocket {
  constructor(...args) {
    super(...args);
    globalThis.socket = this;
    // Node 20 has no close event for a connection that failed; every browser does.
    this.onerror = () => this.onclose?.({ code: 1006, reason: "" });
  }
};
for (const type of ["reactor:open", "reactor:closed", "reactor:missed", "note.added"]) {
  window.addEventListener(type, ({ detail }) => console.log(JSON.stringify([type, detail])));
}
const disconnect = connect();
process.stdin.on("data", (text) => (text.toString() === "lose\\n" ? socket.close(4100) : disconnect()));
"""


def node_has_websockets():
    code = "process.exit(typeof WebSocket === 'function' ? 0 : 1)"
    return (
        NODE and subprocess.run([NODE, "--experimental-websocket", "-e", code], check=False).returncode == 0
    )


@pytest.mark.skipif(not node_has_websockets(), reason="needs Node 20.10 or newer")
def test_the_script_reconnects_and_misses_nothing(tmp_path):
    shutil.copy(EXAMPLE / "static" / "reactor.js", tmp_path / "reactor.mjs")
    (tmp_path / "page.mjs").write_text(PAGE)
    command = [NODE, "--experimental-websocket", "--no-warnings", str(tmp_path / "page.mjs")]
    with contextlib.ExitStack() as stack:
        with uvicorn() as example:
            page, lines = stack.enter_context(process([*command, example.http + "/live"], "stdout"))
            heard = iter_lines(lines)

            def tell(word):
                page.stdin.write(word + "\n")
                page.stdin.flush()

            assert next(heard)[0] == "reactor:open"
            example.post("/notes", json={"text": "first"})
            assert next(heard) == ["note.added", {"text": "first"}]

            # A connection that is lost: what is said meanwhile comes after it, once.
            tell("lose")
            event, detail = next(heard)
            assert (event, detail["code"]) == ("reactor:closed", 4100)
            assert 0.25 <= detail["retry"] <= 0.5
            example.post("/notes", json={"text": "meanwhile"})
            assert next(heard)[0] == "reactor:open"
            assert next(heard) == ["note.added", {"text": "meanwhile"}]

        # A server that restarts with nothing in its memory: that is said.
        event, detail = next(heard)
        assert (event, detail["code"]) == ("reactor:closed", 1012)
        assert detail["retry"] is not None
        with uvicorn(port=example.port) as example:
            while (event := next(heard)[0]) == "reactor:closed":
                pass
            assert event == "reactor:open"
            assert next(heard) == ["reactor:missed", "broadcast"]
            example.post("/notes", json={"text": "last"})
            assert next(heard) == ["note.added", {"text": "last"}]

            tell("disconnect")
            event, detail = next(heard)
            assert (event, detail["code"], detail["retry"]) == ("reactor:closed", 1000, None)
            page.stdin.close()
            assert page.wait(DEADLINE) == 0  # no timer is left
            assert len(lines) == 0


def iter_lines(lines):
    while True:
        until(lambda: lines, "the page")
        yield json.loads(lines.pop(0))


@pytest.mark.skipif(NODE is None, reason="needs Node")
@pytest.mark.parametrize("path", ["static/reactor.js", "frontend/ReactorProvider.jsx"])
def test_the_scripts_parse(path):
    script = (EXAMPLE / path).read_text()
    subprocess.run([NODE, "--check", "--input-type=module", "-"], input=script, text=True, check=True)
