"""The demo: this machine's readings and what is typed, in two clients alike; and a stop that is one."""

import asyncio
import json
import logging
import re
import signal
import socket
import time

import httpx2
import psutil
import pytest
import websockets

from asgi_ws import Unavailable
from asgi_ws import demo as demo_app
from tests.commands import demo, run, running
from tests.servers import eventually, receive, serve, until, welcomed

READINGS = ["machine.load", "machine.memory", "machine.network", "machine.processes"]
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def app():
    app, key = demo_app.make_app()
    with serve(app) as served:
        served.key = key
        yield served


async def events(ws, count):
    return [await receive(ws, "event") for _ in range(count)]


def active_connections(served):
    return served.get("/ws/status").json()["active_connections"]


def bearer(key):
    return {"authorization": f"Bearer {key}"}


# As people run it.


@pytest.mark.anyio
async def test_two_clients_hear_the_same_live_events_in_the_same_order():
    with demo() as served:
        page = served.get("/")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert served.get("/ws/health").json()["status"] == "healthy"
        async with served.connect() as one, served.connect() as two:
            await welcomed(one)
            await welcomed(two)
            heard = {event["offset"]: event for event in await events(one, 9)}
            also = {event["offset"]: event for event in await events(two, 9)}
            both = sorted(heard.keys() & also.keys())
            assert len(both) >= 5
            for seen in (heard, also):
                assert list(seen) == sorted(seen)
            assert [heard[offset] for offset in both] == [also[offset] for offset in both]
        assert {event["event"] for event in heard.values()} == set(READINGS)
        assert served.command.stop() == 0
        assert served.command.output.splitlines() == [f"This machine, live: {served.page}", "Ctrl-C ends it."]


@pytest.mark.anyio
async def test_ctrl_c_ends_it_at_once_even_with_open_pages():
    with demo() as served, socket.create_connection(("127.0.0.1", served.port)) as silent:
        # One that reads nothing and never answers a close frame: a suspended laptop.
        silent.sendall(
            b"GET /ws/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        async with served.connect() as ws:
            await welcomed(ws)
            await eventually(lambda: active_connections(served) == 2, "both connections")
            began = time.monotonic()
            served.command.process.send_signal(signal.SIGINT)
            with pytest.raises(websockets.ConnectionClosed) as closed:
                await events(ws, 1000)
            assert closed.value.rcvd.code == 1012
            code = await asyncio.to_thread(served.command.wait)
        assert code == 0
        assert time.monotonic() - began < 5
        assert "Traceback" not in served.command.output


def test_a_port_in_use_is_said_in_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        told = run("demo", "--port", port)
    assert told.returncode == 1
    expected = f"Error: cannot listen on port {port} of 127.0.0.1: Address already in use; choose another"
    assert told.stderr.startswith(expected)
    assert told.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "environ", "said"),
    [
        (["--port", "65536"], {}, "65536 is not in the range"),
        (["--host", "no.such.host.invalid"], {}, "cannot listen on port 8000 of no.such.host.invalid: "),
        ([], {"ASGI_WS_HEARTBEAT": "soon"}, "ASGI_WS_HEARTBEAT: expected a duration"),
    ],
)
def test_what_cannot_be_is_said_without_a_traceback(options, environ, said):
    told = run("demo", *options, **environ)
    assert told.returncode != 0
    assert said in told.stderr
    assert "Traceback" not in told.stderr


@pytest.mark.parametrize(("host", "shown"), [("0.0.0.0", r"127\.0\.0\.1"), ("::1", r"\[::1\]")])
def test_the_printed_address_can_be_opened(host, shown):
    if host == "::1" and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    with running("demo", "--host", host, "--port", "0") as command:
        command.said(rf"http://{shown}:\d+/#key=")


def has_ipv6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


# Its application.


def test_the_page_is_the_hubs_and_loads_nothing_from_elsewhere(app):
    page = app.get("/").text
    assert app.get("/ws/live").text == page
    # The name of SVG is no address that anything is loaded from.
    assert set(re.findall(r"(?:https?:)?//[\w.-]+\w", page.replace("://", "//"))) <= {"//www.w3.org"}
    assert not re.search(r"<script[^>]+src|<link[^>]+href=.(?!data:)|@import|url\(", page)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", page)


def test_the_counts_need_the_key_that_was_made(app):
    assert len(app.key) >= 24
    assert app.get("/ws/stats").status_code == 401
    assert "nodes" not in app.get("/ws/status").json()
    assert app.get("/ws/stats", headers=bearer(app.key)).json()["events_emitted"] >= 0
    assert len(app.get("/ws/status", headers=bearer(app.key)).json()["nodes"]) == 1


def test_a_key_in_the_environment_is_kept(monkeypatch):
    monkeypatch.setenv("ASGI_WS_API_KEY", "open-sesame")
    assert demo_app.make_app()[1] == "open-sesame"


def test_every_start_makes_another_key():
    assert demo_app.make_app()[1] != demo_app.make_app()[1]


@pytest.mark.anyio
async def test_what_is_said_reaches_everyone(app):
    async with app.connect() as one, app.connect() as two:
        await welcomed(one)
        await welcomed(two)
        text = "grüß dich \U0001f600 <b>"
        answer = await asyncio.to_thread(app.post, "/say", json={"text": f"  {text} "})
        assert answer.status_code == 200
        for ws in (one, two):
            said = await receive(ws, "event")
            while said["event"] != "said":
                said = await receive(ws, "event")
            assert said["data"] == {"text": text}
            assert said["offset"] == answer.json()["offset"]


@pytest.mark.parametrize("text", ["x", "x" * 280, "\U0001f600" * 280])
def test_a_text_of_1_to_280_characters_is_taken(app, text):
    body = json.dumps({"text": text})  # the longest way to write it: escapes
    assert app.post("/say", content=body, headers=JSON).status_code == 200


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "as JSON, got something else"),
        (b"hello", "as JSON, got something else"),
        (b"\xff\xfe", "as JSON, got something else"),
        (b'{"text": "\xff"}', "as JSON, got something else"),
        (b'{"text": "\\ud800"}', "as JSON, got something else"),
        (b"[]", "as JSON, got something else"),
        (b"{}", "as JSON, got something else"),
        (b'{"text": 1}', "as JSON, got something else"),
        (b'{"text": null}', "as JSON, got something else"),
        (b'{"text": "a"} {}', "as JSON, got something else"),
        (b'{"a": ' + b"[" * 10_000, "as JSON, got something else"),
        (b'{"text": ""}', "expected a text of 1 to 280 characters, got 0"),
        (b'{"text": " \\n "}', "expected a text of 1 to 280 characters, got 0"),
        (b'{"text": "' + b"x" * 281 + b'"}', "expected a text of 1 to 280 characters, got 281"),
        (b'{"text": "' + b"x" * 20_000 + b'"}', "expected at most 16384 bytes, got more"),
    ],
)
def test_anything_else_is_refused_with_what_was_expected(app, body, why):
    answer = app.post("/say", content=body, headers=JSON)
    assert answer.status_code == 400
    assert answer.json()["code"] == "bad_request"
    assert answer.json()["message"].startswith("expected ")
    assert why in answer.json()["message"]


def test_a_form_of_another_site_cannot_say_anything(app):
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = app.post("/say", content=b'{"text": "hello"}', headers={"content-type": kind})
        assert answer.status_code == 400
        assert answer.json()["message"].startswith("expected the content type application/json, got ")


def test_half_a_body_is_nobodys_trouble(app, caplog):
    with socket.create_connection(("127.0.0.1", app.port)) as client:
        client.sendall(
            b"POST /say HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b'Content-Length: 100\r\nExpect: 100-continue\r\n\r\n{"text": '
        )
        # The server asks for the rest, so the application waits for it.
        assert client.recv(1000).startswith(b"HTTP/1.1 100 Continue")
    until(lambda: not app.server.server_state.tasks, "the request to end")
    assert "Exception in ASGI application" not in caplog.text


def test_a_page_can_ask_whether_it_may_say_something(app):
    assert httpx2.head(f"{app.http}/say").status_code == 204
    assert httpx2.head(f"{app.http}/ws/say").status_code == 404


# Its readings.


def test_the_readings_are_this_machines():
    taken = demo_app.Machine().read()
    assert list(taken) == READINGS
    assert taken["machine.load"]["cpus"] == psutil.cpu_count()
    assert 0 <= taken["machine.load"]["cpu_percent"] <= 100
    assert taken["machine.memory"]["total_mib"] == psutil.virtual_memory().total // (1 << 20)
    assert 0 < taken["machine.memory"]["used_percent"] < 100
    assert taken["machine.processes"]["count"] >= 1
    assert len(taken["machine.processes"]["busiest"]) <= 3
    assert taken["machine.network"]["received_kib_s"] >= 0


def test_what_cannot_be_read_here_is_left_out_and_said_once(monkeypatch, caplog):
    machine = demo_app.Machine()
    monkeypatch.setattr(psutil, "net_io_counters", lambda: None)
    with caplog.at_level(logging.WARNING, "asgi_ws"):
        assert "machine.network" not in machine.read()
        assert list(machine.read()) == ["machine.load", "machine.memory", "machine.processes"]
    assert [record.message for record in caplog.records] == [
        "machine.network cannot be read on this machine: LookupError('no network interface')"
    ]


@pytest.mark.anyio
async def test_a_broker_that_is_away_does_not_end_the_readings(monkeypatch, caplog):
    class Hub:
        published = []

        async def broadcast(self, event, data):
            if not caplog.records:
                raise Unavailable("away")
            self.published.append(event)

    monkeypatch.setattr(demo_app, "INTERVAL", 0.01)
    publishing = asyncio.create_task(demo_app._publish_readings(Hub()))
    await eventually(lambda: len(Hub.published) >= len(READINGS))
    publishing.cancel()
    assert [record.message for record in caplog.records] == ["machine.load was not published: away"]
