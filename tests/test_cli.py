"""The command line, as people run it: in processes of its own."""

import importlib.metadata
import os
import re
import signal
import sys

import pytest
import uvicorn
import websockets
from msgspec.structs import fields

from asgi_ws import Settings
from asgi_ws.__main__ import main
from asgi_ws.cli import cli
from tests.commands import run, running
from tests.servers import Served, until, welcomed

EXTRA = 'pip install "asgi-ws-hub[server]"'
MIB = 1 << 20

APP = """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute
from asgi_ws import Hub

hub = Hub()


async def echo(ws):
    await ws.accept()
    async for text in ws.iter_text():
        await ws.send_text(text)


async def home(request):
    return PlainTextResponse("VERSION")


app = Starlette(
    routes=[Route("/", home), WebSocketRoute("/echo", echo), Mount("/ws", hub)], lifespan=hub.lifespan
)


def make():
    return app
"""


@pytest.fixture
def site(tmp_path):
    (tmp_path / "site_of_test.py").write_text(APP)
    return tmp_path


def served(command):
    return Served(int(command.said(r"running on http://127\.0\.0\.1:(\d+)")[1]))


# The command itself.


def test_the_installed_command_is_ours():
    [entry] = importlib.metadata.entry_points(group="console_scripts", name="asgi-ws")
    assert entry.load() is main


def test_help_names_the_commands():
    told = run("--help")
    assert told.returncode == 0
    for name in ("demo", "serve", "config"):
        assert re.search(rf"^  {name} ", told.stdout, re.MULTILINE)


@pytest.mark.parametrize("module", ["click", "uvicorn", "psutil"])
def test_a_missing_extra_is_one_line_that_says_what_to_install(module):
    block = f"import sys; sys.modules[{module!r}] = None; from asgi_ws.__main__ import main; main()"
    told = run("demo", command=[sys.executable, "-c", block])
    assert told.returncode == 1
    assert told.stdout == ""
    assert EXTRA in told.stderr
    assert told.stderr.count("\n") == 1


def test_another_missing_module_is_not_blamed_on_the_extra():
    block = "import sys; sys.modules['uvicorn.main'] = None; from asgi_ws.__main__ import main; main()"
    told = run(command=[sys.executable, "-c", block])
    assert told.returncode == 1
    assert "ModuleNotFoundError" in told.stderr
    assert EXTRA not in told.stderr


# asgi-ws config


def test_config_prints_every_setting_in_columns():
    told = run("config", ASGI_WS_HEARTBEAT="300s", ASGI_WS_API_KEY="open-sesame")
    assert (told.returncode, told.stderr) == (0, "")
    head, *lines = told.stdout.splitlines()
    starts = [head.index(column) for column in ("NAME", "VALUE", "ORIGIN", "UNIT", "DESCRIPTION")]
    rows = {}
    for line in lines:
        assert all(
            line[start - 1] == " " != line[start] for start in starts[1:] if line[start : start + 2].strip()
        )
        cells = [line[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True)]
        rows[cells[0]] = cells[1:]
    assert set(rows) == {f"ASGI_WS_{field.name.upper()}" for field in fields(Settings)}
    assert rows["ASGI_WS_HEARTBEAT"][:3] == ["5m", "environment", "seconds"]
    assert rows["ASGI_WS_SEND_TIMEOUT"][:3] == ["10s", "default", "seconds"]
    assert rows["ASGI_WS_API_KEY"][:2] == ["***", "environment"]
    assert all(row[3] for row in rows.values())
    assert "open-sesame" not in told.stdout


def test_config_check_passes_where_all_is_well():
    told = run("config", "--check", ASGI_WS_HEARTBEAT="5m")
    assert (told.returncode, told.stderr) == (0, "")


@pytest.mark.parametrize("options", [(), ("--check",)])
def test_config_refuses_a_wrong_value(options):
    told = run("config", *options, ASGI_WS_HEARTBEAT="soon")
    assert told.returncode == 1
    assert told.stderr.startswith("Error: ASGI_WS_HEARTBEAT: expected a duration")
    assert "Traceback" not in told.stderr


def test_config_check_tries_what_only_a_hub_can():
    told = run("config", "--check", ASGI_WS_BROADCASTER="carrier-pigeon://roof")
    assert told.returncode == 1
    assert "ASGI_WS_BROADCASTER: expected" in told.stderr


@pytest.mark.parametrize(("options", "code"), [((), 0), (("--check",), 1)])
def test_an_unknown_name_is_a_warning_and_in_a_check_an_error(options, code):
    told = run("config", *options, ASGI_WS_HARTBEAT="5m")
    assert told.returncode == code
    assert told.stderr == "ASGI_WS_HARTBEAT is no setting; did you mean ASGI_WS_HEARTBEAT?\n"


# asgi-ws serve


@pytest.mark.anyio
async def test_serve_has_safe_websocket_defaults(site):
    with running("serve", "site_of_test:app", "--workers", "1", "--port", "0", cwd=site) as command:
        server = served(command)
        async with server.connect("/echo", compression="deflate") as ws:
            assert "Sec-WebSocket-Extensions" not in ws.response.headers
            await ws.send("x" * (MIB - 1))
            assert len(await ws.recv()) == MIB - 1
            with pytest.raises(websockets.ConnectionClosed) as closed:
                await ws.send("x" * (2 * MIB))
                await ws.recv()
            assert closed.value.rcvd.code == 1009
        async with server.connect() as ws:
            await welcomed(ws)
        assert command.stop() == 0
        assert "Traceback" not in command.output


@pytest.mark.anyio
async def test_what_the_user_sets_wins(site):
    options = ("--factory", "--ws-per-message-deflate", "true", "--port", "0")
    with running(
        "serve", "site_of_test:make", *options, cwd=site, UVICORN_WS_MAX_SIZE=str(4 * MIB)
    ) as command:
        async with served(command).connect("/echo", compression="deflate") as ws:
            assert "permessage-deflate" in ws.response.headers["Sec-WebSocket-Extensions"]
            await ws.send("x" * (2 * MIB))
            assert len(await ws.recv()) == 2 * MIB


def test_serve_has_uvicorns_options_and_our_defaults(monkeypatch):
    serve = cli.commands["serve"]
    assert {option.name for option in serve.params} == {option.name for option in uvicorn.main.params}
    ours = {
        "ws": "asgi_ws.server:WebSocketProtocol",
        "ws_max_size": MIB,
        "ws_per_message_deflate": False,
        "timeout_graceful_shutdown": 30,
    }
    usual = uvicorn.main.make_context("uvicorn", ["x:app"]).params
    assert serve.make_context("serve", ["x:app"]).params == usual | ours
    monkeypatch.setenv("UVICORN_TIMEOUT_GRACEFUL_SHUTDOWN", "5")
    assert serve.make_context("serve", ["x:app"]).params["timeout_graceful_shutdown"] == 5
    given = serve.make_context("serve", ["x:app", "--timeout-graceful-shutdown", "7"])
    assert given.params["timeout_graceful_shutdown"] == 7


def test_serve_reloads(site):
    with running("serve", "site_of_test:app", "--reload", "--port", "0", cwd=site) as command:
        server = served(command)
        command.said("Application startup complete")
        assert server.get("/").text == "VERSION"
        path = site / "site_of_test.py"
        path.write_text(APP.replace("VERSION", "ANOTHER"))
        later = path.stat().st_mtime + 2  # its reloader compares seconds on some file systems
        os.utime(path, (later, later))
        until(lambda: server.get("/").text == "ANOTHER", "the reload")


def test_serve_starts_workers(site):
    allow = {"ASGI_WS_BROADCASTER": "memory://?workers=allow"}
    with running("serve", "site_of_test:app", "--workers", "2", "--port", "0", cwd=site, **allow) as command:
        server = served(command)
        until(lambda: command.output.count("Application startup complete") == 2, "both workers")
        pids = set()
        until(lambda: len(pids) == 2 or pids.add(server.get("/ws/status").json()["nodes"][0]["pid"]), "both")
        assert command.stop(signal.SIGTERM) in {0, -signal.SIGTERM}


def test_serve_says_what_it_cannot_import(site):
    told = run("serve", "no_such_module_here:app")
    assert told.returncode != 0
    assert "Could not import module" in told.stderr
    assert "Traceback" not in told.stderr
