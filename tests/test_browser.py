"""The live page in a real browser: on the demo, under other paths, and through every way to lose a connection."""

import json
import os
import re
import shutil
import signal
import time

import pytest
from playwright.sync_api import expect, sync_playwright
from starlette.applications import Starlette
from starlette.routing import Mount

from asgi_ws import Hub
from asgi_ws.endings import Ending
from tests.commands import demo
from tests.servers import DEADLINE, serve

BROWSERS = ("chromium-headless-shell", "chromium")
WELCOME = {
    "type": "welcome",
    "session": "s1",
    "protocol": 1,
    "features": [],
    "heartbeat": 25.0,
    "user": None,
    "time": 1,
}
AT_ONCE = Ending(4250, "again")
SUBSCRIBED = {"type": "subscribed", "channel": "broadcast", "epoch": "e1", "offset": 7}


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        missing = "expected Chromium, got none: apt-get install -y chromium-headless-shell"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)
    expect.set_options(timeout=DEADLINE * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Open pages, each in a window of its own; `page.errors` is what its console complains of."""
    contexts = []

    def open_page(url=None, **options):
        context = browser.new_context(**options)
        context.set_default_timeout(DEADLINE * 1000)
        contexts.append(context)
        page = context.new_page()
        page.errors = []
        page.on("console", lambda message: message.type == "error" and page.errors.append(message.text))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        if url is not None:
            page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def site():
    """A server with the page, and nothing that it would hear by itself."""
    hub = Hub(live=True)
    app = Starlette(routes=[Mount("/deep/er/ws", hub)], lifespan=hub.lifespan)
    with serve(app) as served:
        served.hub = hub
        served.page = served.http + "/deep/er/ws/live"
        yield served


class Fake:
    """The server's end of a page's WebSockets, in place of a server."""

    def __init__(self, page):
        self.page = page
        self.connections = []
        page.route_web_socket(re.compile("/stream"), lambda ws: self.connections.append(ws))

    def next(self, count=1):
        """Wait for the page's connection number `count`."""
        wait(self.page, lambda: len(self.connections) >= count)
        return self.connections[count - 1]


def wait(page, condition):
    """Wait for something to become true; Playwright's callbacks run while the test is in one of its calls."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"waited {DEADLINE} s"
        page.wait_for_timeout(10)


def wait_in(page, expression):
    # wait_for_function evaluates in the page, whose policy forbids that.
    wait(page, lambda: page.evaluate(expression))


def fake(page, url):
    server = Fake(page)
    page.goto(url)
    return server


def fake_and_frozen(page, url):
    """The same, where no time passes but by `page.clock.fast_forward`."""
    page.clock.install(time=0)
    page.clock.pause_at(1000)
    return fake(page, url)


def tell(connection, *messages):
    for message in messages:
        connection.send(json.dumps(message))


def event(offset, name="tick", data=None):
    return {
        "type": "event",
        "channel": "broadcast",
        "event": name,
        "data": data,
        "offset": offset,
        "time": 1_700_000_000_000,
    }


def state(page):
    return page.locator("body")


def is_in(page, name):
    expect(state(page)).to_have_attribute("data-state", name)


def rows(page):
    """The rows from the top: offset → (event, data as shown)."""
    script = "rows => rows.map(row => ['offset', 'event', 'data'].map(name => row.querySelector(`.${name}`).textContent))"
    return {
        int(offset): (name, data) for offset, name, data in page.locator("#events tr").evaluate_all(script)
    }


def events_at_least(page, count):
    wait_in(page, f"document.querySelectorAll('#events tr').length >= {count}")


# The main job, on the demo.


def test_two_windows_see_the_same_events_and_come_back_after_a_restart(open_page):
    with demo() as first:
        pages = [open_page(first.page), open_page(first.page)]
        one, two = pages
        for page in pages:
            is_in(page, "open")
            expect(page.locator("#session")).to_have_text(re.compile(r"^[\w-]{16}$"))
            page.evaluate("addEventListener('said', ({ detail }) => { window.heard = detail })")

        text = "<img src=x onerror=alert(1)> grüß dich"
        one.fill("#text", text)
        one.press("#text", "Enter")
        expect(one.locator("#text")).to_have_value("")
        for page in pages:
            said = page.locator("#events tr", has=page.get_by_text("said", exact=True))
            expect(said.locator(".data")).to_have_text(f'{{"text": "{text}"}}')
            assert page.evaluate("window.heard") == {"text": text}
            assert page.locator("#events img").count() == 0
            events_at_least(page, 9)
        seen, also = rows(one), rows(two)
        for shown in (seen, also):
            assert list(shown) == list(range(max(shown), min(shown) - 1, -1))
        both = seen.keys() & also.keys()
        assert len(both) >= 5
        assert {offset: seen[offset] for offset in both} == {offset: also[offset] for offset in both}

        for page in pages:
            expect(page.locator("#connections")).to_have_text("2")
            expect(page.locator("#published")).to_have_text(re.compile(r"^\d+$"))
            assert page.errors == []
        first.command.stop(signal.SIGKILL)
        for page in pages:
            is_in(page, "waiting")
            expect(page.locator("#countdown")).to_have_text(re.compile(r"^in \d+ s$"))

    with demo(first.port, ASGI_WS_API_KEY=first.key):
        for page in pages:
            is_in(page, "open")
            # Another process, another epoch: that something is lost is said, and then it goes on.
            gap = page.locator("#events tr.note", has=page.get_by_text("gap", exact=True))
            expect(gap.locator(".data")).to_contain_text("is lost")
            wait_in(page, "!document.querySelector('#events tr').classList.contains('note')")
            expect(page.locator("#connections")).to_have_text("2")


# Where it is served.


@pytest.mark.parametrize("tail", ["", "/", "?channel=broadcast", "?stream=/deep/er/ws/stream"])
def test_the_hubs_own_page_finds_its_stream_under_any_path(open_page, site, tail):
    page = open_page(site.page + tail)
    is_in(page, "open")
    expect(page.locator("#connections")).to_have_text(re.compile("[1-9]"))
    expect(page.locator("#published")).to_have_text(re.compile(r"^\d+$"))
    expect(page.locator("#say")).to_be_hidden()
    expect(page.locator("#unlock")).to_be_hidden()
    assert page.errors == []


def test_the_key_goes_to_no_other_server(open_page, site):
    page = open_page(site.page + "?stream=ws://127.0.0.1:9/ws/stream#key=secret")
    is_in(page, "refused")
    expect(page.locator("#state")).to_have_text("refused: 127.0.0.1:9 is another server")
    page.click("#again")
    is_in(page, "refused")


def test_a_key_can_be_typed(open_page):
    hub = Hub(live=True, api_key="open-sesame")
    with serve(Starlette(routes=[Mount("/ws", hub)], lifespan=hub.lifespan)) as served:
        page = open_page(served.http + "/ws/live")
        expect(page.locator("#connections")).to_have_text("1")
        expect(page.locator("#published")).to_have_text("–")
        for typed, why in (("wrong", "this is not the hub's API key"), ("open-sesame", None)):
            page.get_by_label("API key").fill(typed)
            page.get_by_role("button", name="Show the numbers").click()
            if why:
                expect(page.locator("#why")).to_have_text(why)
        expect(page.locator("#published")).to_have_text("0")
        expect(page.locator("#unlock")).to_be_hidden()


# Ways to lose a connection.


def test_nothing_is_lost_over_a_reconnect(open_page, site):
    page = open_page(site.page)
    is_in(page, "open")
    page.evaluate("window.heard = []; addEventListener('tick', ({ detail }) => heard.push(detail))")
    publish = site.hub.broadcast_nowait  # Playwright has a loop in this thread, so from_thread refuses
    for n in range(3):
        publish("tick", n)
    wait_in(page, "heard.length === 3")
    session = page.locator("#session").text_content()
    run = site.hub._lifecycle
    # The close and the next events in one turn of the loop: they are published while nobody is there.
    run.loop.call_soon_threadsafe(
        lambda: (run.run.sessions[session].end(AT_ONCE), site.hub.broadcast_nowait("tick", 3))
    )
    wait_in(page, "heard.length === 4")
    publish("tick", 4)
    wait_in(page, "heard.length === 5")
    assert page.evaluate("heard") == [0, 1, 2, 3, 4]
    note = page.locator("#events tr.note")
    expect(note).to_have_count(1)
    expect(note.locator(".event")).to_have_text("recovered")
    assert page.locator("#session").text_content() != session


def test_it_resumes_where_it_left_off(open_page, site):
    page = open_page()
    server = fake(page, site.page)
    first = server.next(1)
    assert first.url.endswith("/deep/er/ws/stream")
    passed = {"type": "position", "channel": "broadcast", "offset": 9}
    other = {"type": "subscribed", "channel": "täsk:1.2&3", "epoch": "x", "offset": 0}
    tell(first, WELCOME, SUBSCRIBED, other, {"type": "subscribed", "channel": "no-history"}, event(8), passed)
    is_in(page, "open")
    first.close(code=4200)
    second = server.next(2)
    assert second.url.endswith("/stream?resume=e1.9.broadcast&resume=x.0.t%C3%A4sk%3A1.2%263")


@pytest.mark.parametrize("code", [1000, 1008, 4001, 4003, 4050, 4099])
def test_it_does_not_come_back_after_these_codes(open_page, site, code):
    page = open_page()
    server = fake_and_frozen(page, site.page)
    tell(server.next(1), WELCOME)
    is_in(page, "open")
    server.next(1).close(code=code, reason="so it is")
    is_in(page, "refused")
    expect(page.locator("#state")).to_have_text(f"refused: {code} so it is")
    page.clock.fast_forward(60_000)
    assert len(server.connections) == 1
    page.get_by_role("button", name="Connect now").click()
    tell(server.next(2), WELCOME)
    is_in(page, "open")


@pytest.mark.parametrize(
    ("code", "most"), [(1011, 2), (1012, 2), (1013, 2), (4100, 2), (4199, 2), (4200, 1), (4299, 1), (4300, 2)]
)
def test_it_comes_back_after_these_codes(open_page, site, code, most):
    page = open_page()
    server = fake_and_frozen(page, site.page)
    tell(server.next(1), WELCOME)
    is_in(page, "open")
    server.next(1).close(code=code)
    is_in(page, "waiting")
    page.clock.fast_forward(most * 1000)
    server.next(2)


def test_it_obeys_what_the_server_says_before_it_closes(open_page, site):
    page = open_page()
    server = fake_and_frozen(page, site.page)
    farewell = {
        "type": "disconnect",
        "code": 1012,
        "reason": "restart",
        "reconnect": True,
        "delay": [600, 660],
    }
    tell(server.next(1), WELCOME, farewell)
    server.next(1).close(code=1012, reason="restart")
    is_in(page, "waiting")
    expect(page.locator("#state")).to_have_text("reconnecting (1012 restart)")
    expect(page.locator("#countdown")).to_have_text(re.compile(r"^in 6\d\d s$"))
    page.clock.fast_forward(599_000)
    assert len(server.connections) == 1
    page.clock.fast_forward(61_000)
    tell(server.next(2), WELCOME, farewell | {"reconnect": False})
    server.next(2).close(code=1012)
    is_in(page, "refused")


def test_attempts_become_rarer_to_a_bound(open_page, site):
    page = open_page()
    server = fake_and_frozen(page, site.page)
    page.evaluate("Math.random = () => 1 - Number.EPSILON")  # the longest that each may wait
    for attempt, most in enumerate([2, 4, 8, 16, 20, 20], 1):
        server.next(attempt).close(code=1011)
        expect(page.locator("#countdown")).to_have_text(f"in {most} s")
        page.clock.fast_forward(most * 1000)
    tell(server.next(7), WELCOME)
    is_in(page, "open")
    page.clock.fast_forward(11_000)
    server.next(7).close(code=1011)
    expect(page.locator("#countdown")).to_have_text("in 2 s")


def test_silence_is_a_lost_connection(open_page, site):
    page = open_page()
    server = fake_and_frozen(page, site.page)
    tell(server.next(1), WELCOME)
    is_in(page, "open")
    page.clock.fast_forward(34_000)
    tell(server.next(1), {"type": "ping"})
    expect(page.locator("#heartbeat")).to_contain_text("every 25 s, last at ")
    page.clock.fast_forward(34_000)
    is_in(page, "open")
    page.clock.fast_forward(2_000)
    expect(page.locator("#state")).to_have_text("reconnecting (1006 nothing heard for 35 s)")


def test_it_answers_pings_where_it_is_asked_to(open_page, site):
    page = open_page()
    server = fake(page, site.page)
    heard = []
    connection = server.next(1)
    connection.on_message(lambda message: heard.append(message))
    tell(connection, WELCOME | {"pong": True}, {"type": "ping"})
    wait(page, lambda: heard)
    assert heard == ['{"type":"pong"}']


def test_a_channel_that_is_refused_is_not_asked_for_again_but_one_that_failed_is(open_page, site):
    page = open_page()
    server = fake_and_frozen(page, site.page)
    error = {"type": "error", "channel": "broadcast", "message": "expected another"}
    tell(server.next(1), WELCOME, SUBSCRIBED, error | {"code": "not_found"})
    server.next(1).close(code=4200)
    is_in(page, "waiting")
    page.clock.fast_forward(1000)
    assert "resume" not in server.next(2).url
    tell(server.next(2), WELCOME, SUBSCRIBED, error | {"code": "unavailable"})
    expect(page.locator("#state")).to_have_text("reconnecting (1013 unavailable)")
    page.clock.fast_forward(20_000)
    assert "resume=e1.7.broadcast" in server.next(3).url


# What it shows.


def test_rows_are_bounded_and_the_newest_is_on_top(open_page, site):
    page = open_page()
    server = fake(page, site.page)
    long = {"text": "x" * 5000}
    tell(server.next(1), WELCOME, SUBSCRIBED, *(event(n) for n in range(8, 508)), event(508, data=long))
    expect(page.locator("#received")).to_have_text("501")
    expect(page.locator("#events tr")).to_have_count(200)
    shown = rows(page)
    assert list(shown) == list(range(508, 308, -1))
    assert len(shown[508][1]) == 2001
    assert shown[507] == ("tick", "null")


def test_it_can_be_paused(open_page, site):
    page = open_page()
    server = fake(page, site.page)
    tell(server.next(1), WELCOME, SUBSCRIBED, event(8))
    expect(page.locator("#events tr")).to_have_count(1)
    pause = page.get_by_role("button", name="Pause")
    pause.click()
    expect(pause).to_have_attribute("aria-pressed", "true")
    tell(server.next(1), event(9))
    expect(page.locator("#received")).to_have_text("2")
    expect(page.locator("#events tr")).to_have_count(1)
    pause.click()
    expect(page.locator("#events tr")).to_have_count(2)


def test_losses_and_the_ends_of_channels_are_said(open_page, site):
    page = open_page()
    server = fake(page, site.page)
    gap = {"type": "gap", "channel": "broadcast", "epoch": "e2", "offset": 90, "dropped": 3}
    end = {"type": "unsubscribed", "channel": "broadcast", "code": "forbidden", "message": "no longer yours"}
    error = {"type": "error", "channel": "a", "code": "not_found", "message": "expected another"}
    tell(server.next(1), WELCOME, SUBSCRIBED, gap, end, {"type": "from the future"}, error)
    expect(page.locator("#events tr.note")).to_have_count(3)
    said = ["not_found: expected another", "no longer yours", "3 events are lost"]
    assert page.locator("#events .data").all_text_contents() == said
    assert page.errors == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_and_can_be_read(open_page, site, scheme, width):
    page = open_page(color_scheme=scheme, viewport={"width": width, "height": 800})
    server = fake(page, site.page)
    tell(server.next(1), WELCOME, SUBSCRIBED, event(8, "a.name." + "x" * 50, {"word": "y" * 300}))
    expect(page.locator("#events tr")).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate("for (const form of document.forms) form.hidden = false")
    assert page.evaluate(CONTRASTS) == []
    assert page.evaluate(
        "[...document.querySelectorAll('input')].every((input) => input.labels.length === 1)"
    )


# The texts whose colour differs from the background behind them by less than WCAG's 4.5 to 1.
CONTRASTS = """
() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data;
  };
  const luminance = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = (element) => {
    const colour = getComputedStyle(element).backgroundColor;
    return rgb(colour)[3] === 255 ? colour : behind(element.parentElement);
  };
  return [...document.querySelectorAll("body *")]
    .filter((element) => element.checkVisibility() && [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
    .map((element) => {
      const [a, b] = [getComputedStyle(element).color, behind(element)].map(rgb).map(luminance);
      return [element.outerHTML.slice(0, 80), (Math.max(a, b) + .05) / (Math.min(a, b) + .05)];
    })
    .filter(([, contrast]) => contrast < 4.5);
}
"""
