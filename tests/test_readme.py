"""What the README and the protocol's page show is what happens: their code runs, their sessions are typed."""

import asyncio
import contextlib
import json
import re
import shlex
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx2
import pytest
import websockets
from starlette.responses import HTMLResponse

from tests.servers import DEADLINE, Served, receive, serve, welcomed

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PROTOCOL = (ROOT / "docs/protocol.md").read_text()
SETTINGS = (ROOT / "docs/settings.md").read_text()

FENCED = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
DISCONNECTED = re.compile(r'Disconnected \(code: (?P<code>\d+), reason: "(?P<reason>.*)"\)')
MOUNTED = re.compile(r'app\.mount\("(?P<path>.+?)", hub\)')


class Block(NamedTuple):
    """A fenced block: its language, its text, and the line on which it begins."""

    language: str
    text: str
    line: int


def blocks(page: str, *languages: str) -> list[Block]:
    found = (
        Block(m["language"], m["text"], page.count("\n", 0, m.start()) + 1) for m in FENCED.finditer(page)
    )
    return [block for block in found if block.language in languages]


def begins_an_app(block: Block) -> bool:
    return "app = FastAPI(" in block.text


def run(block: Block, namespace: dict[str, Any]) -> dict[str, Any]:
    """Run a Python block: an app begins anew, whatever else goes on in the namespace before it."""
    if begins_an_app(block):
        namespace = {"__name__": "app"}
    exec(compile(block.text, f"line {block.line}", "exec", dont_inherit=True), namespace)
    return namespace


APPS = [block for block in blocks(README, "python") if begins_an_app(block)]


class Reader:
    """Someone who types what a page shows into two terminals, and compares what comes back."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.ws: Any = None
        self.response: httpx2.Response | None = None
        self.known: dict[str, str] = {}  # ids and epochs: as shown, and as they really are

    async def follow(self, block: Block) -> None:
        for number, line in enumerate(block.text.splitlines(), block.line + 1):
            try:
                await self._line(line)
            except Exception as error:
                raise AssertionError(f"line {number} shows {line!r}, but: {error!r}") from error
        await self._hear_nothing_more()

    async def _line(self, line: str) -> None:
        match line[:2]:
            case "$ ":
                await self._command(shlex.split(self._really(line[2:])))
            case "> ":
                await self.ws.send(self._really(line[2:]))
            case "< ":
                async with asyncio.timeout(DEADLINE):
                    self._compare(json.loads(line[2:]), json.loads(await self.ws.recv()))
            case _:
                await self._output(line)

    async def _command(self, words: list[str]) -> None:
        program, url = words[0], next(word for word in words if "://" in word)
        path = url.partition(urlsplit(url).netloc)[2]
        if program == "curl":
            assert words[1:3] == ["-X", "POST"]
            self.response = await asyncio.to_thread(self.served.post, path)
            return
        assert program == "wscat"
        await self.leave()
        options = dict(zip(words[1::2], words[2::2], strict=True))
        headers = dict(part.split(": ", 1) for part in [options.get("-H")] if part)
        subprotocols = [options["-s"]] if "-s" in options else None
        self.ws = await self.served.connect(path, additional_headers=headers, subprotocols=subprotocols)

    async def _output(self, line: str) -> None:
        if found := DISCONNECTED.fullmatch(line):
            async with asyncio.timeout(DEADLINE):
                with pytest.raises(websockets.ConnectionClosed):
                    await self.ws.recv()
            assert (self.ws.close_code, self.ws.close_reason) == (int(found["code"]), found["reason"])
            self.ws = None
        else:
            assert self.response is not None
            assert self.response.status_code == 200
            self._compare(json.loads(line), self.response.json())

    def _compare(self, shown: Any, got: Any, key: str = "") -> None:
        match shown:
            case dict():
                assert shown.keys() == got.keys(), got
                for name in shown:
                    self._compare(shown[name], got[name], name)
            case list():
                assert len(shown) == len(got), got
                for one, other in zip(shown, got, strict=True):
                    self._compare(one, other)
            case int() if key in {"time", "since"}:
                assert abs(got - time.time() * 1000) < 60_000
            case str() if key in {"session", "epoch"}:
                assert self.known.setdefault(shown, got) == got
                assert len(set(self.known.values())) == len(self.known)
            case str():
                assert self._really(shown) == got
            case _:
                assert shown == got

    def _really(self, text: str) -> str:
        for shown, got in self.known.items():
            text = text.replace(shown, got)
        return text

    async def _hear_nothing_more(self) -> None:
        if self.ws is not None:
            await self.ws.send('{"type":"ping","ref":"the end of a block"}')
            assert await receive(self.ws) == {"type": "pong", "ref": "the end of a block"}

    async def leave(self) -> None:
        if self.ws is not None:
            await self.ws.close()
            self.ws = None


@pytest.mark.anyio
@pytest.mark.parametrize("server", ["uvicorn", "fast", "wsproto"])
@pytest.mark.parametrize("page", [README, PROTOCOL], ids=["README.md", "docs/protocol.md"])
async def test_a_session_that_is_shown_is_what_happens(page, server):
    namespace: dict[str, Any] = {}
    reader: Reader | None = None
    sessions = 0
    async with contextlib.AsyncExitStack() as serving:
        for block in blocks(page, "python", "console"):
            if block.language == "python":
                # Declarations may be added to an app that runs; a new app needs a new server.
                namespace = run(block, namespace)
                if begins_an_app(block):
                    await serving.aclose()
                    reader = None
                continue
            if reader is None:
                reader = Reader(serving.enter_context(serve(namespace["app"], server)))
                serving.push_async_callback(reader.leave)
            await reader.follow(block)
            sessions += 1
    assert sessions >= 5


@pytest.mark.anyio
@pytest.mark.parametrize("block", APPS, ids=lambda block: f"line {block.line}")
async def test_every_app_of_the_readme_reaches_its_clients(block):
    namespace = run(block, {})
    mounted = MOUNTED.search(block.text)
    path = mounted["path"] if mounted else "/ws"
    with serve(namespace["app"]) as served:
        async with served.connect(f"{path}/stream") as ws:
            await welcomed(ws)
            await asyncio.to_thread(namespace["hub"].from_thread.broadcast, "tick", 1)
            assert (await receive(ws))["data"] == 1
            assert served.get(f"{path}/status").json()["active_connections"] == 1


def test_the_tests_of_the_readme_pass():
    namespace: dict[str, Any] = {}
    passed = 0
    for block in blocks(README, "python"):
        namespace = run(block, namespace)
        for name in re.findall(r"^def (test_\w+)", block.text, re.MULTILINE):
            namespace[name]()
            passed += 1
    assert passed


def test_the_settings_that_are_shown_are_taken():
    for block in blocks(SETTINGS, "python"):
        hub = run(block, {})["hub"]
        assert (hub.settings.heartbeat, hub.settings.history) == (10.0, 500)


# The page that listens, in a real browser.

CHROMIUM = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium"))), None)

WATCHED = """
window.sockets = []
window.WebSocket = class extends WebSocket {
  constructor(...all) { super(...all); sockets.push(this) }
}
Math.random = () => 0.05
"""


@pytest.fixture
def page_of_the_readme():
    """The first app of the README with a page that runs its script; what it logs, and the page."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    app = run(APPS[0], {})["app"]
    (script,) = blocks(README, "js")
    app.add_route("/", lambda _: HTMLResponse(f"<!doctype html><script>{script.text}</script>"))
    with serve(app) as served, sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.add_init_script(WATCHED)
        yield page, served
        browser.close()


def order(page, served, number):
    """Place an order and wait until the page has logged it."""
    with page.expect_console_message(lambda message: message.text.startswith("order.created")) as logged:
        served.post(f"/orders/{number}")
    return logged.value.args[1].json_value()


def wait_for_session(page, number):
    page.wait_for_function(f"sockets.length === {number} && sockets.at(-1).readyState === WebSocket.OPEN")


def test_the_script_of_the_readme_listens_and_goes_on_where_it_was(page_of_the_readme):
    page, served = page_of_the_readme
    page.goto(served.http)
    wait_for_session(page, 1)
    assert order(page, served, 1) == {"number": 1}
    page.evaluate("sockets.at(-1).close(4100)")
    page.wait_for_function("sockets.at(-1).readyState === WebSocket.CLOSED")
    assert page.evaluate("sockets.length") == 1  # away for 0.4 s
    assert order(page, served, 2) == {"number": 2}
    wait_for_session(page, 2)
    assert order(page, served, 3) == {"number": 3}


def test_the_script_of_the_readme_stays_away_where_it_is_told_to(page_of_the_readme):
    page, served = page_of_the_readme
    page.goto(served.http)
    wait_for_session(page, 1)
    page.evaluate("connect = () => { window.cameBack = true }; Math.random = () => 0")
    for code, comes_back in (4003, False), (1008, False), (1000, False), (4200, True):
        page.evaluate("window.cameBack = false")
        page.evaluate(f"sockets.at(-1).onclose({{ code: {code} }})")
        page.evaluate("new Promise(done => setTimeout(done, 50))")
        assert page.evaluate("cameBack") is comes_back
