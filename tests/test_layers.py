"""Arrows only point down: which room may know of which is this table, and a room that is not in it is no room."""

import ast
import graphlib
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "asgi_ws"

# From the ground up. A module knows of those below its floor only: never of its own floor, never of one above.
FLOORS = (
    "errors version",
    # words, each for itself
    "clock eager endings frames lifespan memo messages metrics origins publication",
    "server.keepalive",
    # names, settings, who it is; publishing from threads
    "patterns settings threads broadcasters.workers",
    # how it is written, what waits to be written; the URLs that are served
    "codecs",
    "auth outbox values queries",
    "endpoints",
    # a channel on this node, and what ticks
    "topic heartbeat",
    "broadcasters fanout session",
    "broadcasters.members room answers handlers",
    "broadcasters.memory presence",
    "node inquiries",
    "channels commands hooks sources",
    "history snapshots",
    # what is declared, what runs
    "router generators",
    "catchup",
    "run",
    "lanes lifecycle joins feed",
    "admission calls",
    "requests",
    # bytes to sessions, and back
    "transports",
    "transports.handshake",
    "transports.bypass transports.conversation",
    "transports.direct",
    "transports.websocket",
    "routes server.connection",
    "server.protocol",
    # what a developer holds
    "hub server",
    "middleware demo",
    "",  # the front door: asgi_ws itself
    # what users test with: nothing below knows of it
    "testing.cable testing.inbox testing.rest testing.running",
    "testing.client testing.hours",
    "testing",
    # what an operator types
    "cli",
    "__main__",
)

# What any room may stand on, besides the standard library.
CORE = {"anyio", "msgspec", "starlette"}
# Packages of the extras, and the only rooms that may know them.
OPTIONAL = {
    "click": {"cli"},
    "psutil": {"demo"},
    "uvicorn": {"cli", "demo", "server"},
    "websockets": {"server"},
}
# No await in here, so nothing comes in between.
SYNCHRONOUS = (
    "codecs fanout frames messages metrics origins patterns publication topic endings heartbeat values "
    "broadcasters.members room"
)


def table():
    return {name: floor for floor, names in enumerate(FLOORS) for name in names.split() or [""]}


def sources():
    """Every module's name below the package, and its path; the package itself is ``""``."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


SOURCES = sources()


def imports(name, source, known):
    """The modules of the package, and the packages beside it, that a module imports, wherever it does so."""
    ours, others = set(), set()
    for node in ast.walk(ast.parse(source)):
        for target in targets(node, name, known):
            top, _, rest = target.partition(".")
            if top == "asgi_ws":
                ours.add(rest)
            elif top not in sys.stdlib_module_names:
                others.add(top)
    return ours - {name}, others


def targets(node, name, known):
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            is_package = SOURCES[name].name == "__init__.py"
            here = ["asgi_ws", *name.split(".")] if name else ["asgi_ws"]
            here = here[: len(here) - node.level + is_package]
            base = ".".join([*here, *([base] if base else [])])
        for alias in node.names:
            inner = f"{base}.{alias.name}"
            yield inner if inner.removeprefix("asgi_ws.") in known else base


def graph():
    return {name: imports(name, path.read_text("utf-8"), SOURCES) for name, path in SOURCES.items()}


GRAPH = graph()


def test_every_module_has_its_place_and_every_place_its_module():
    assert set(SOURCES) == set(table())


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_a_module_knows_only_of_those_below(name):
    floors = table()
    if name not in floors:
        pytest.fail(f"asgi_ws.{name} is in no floor of the table")
    upward = sorted(other for other in GRAPH[name][0] if floors.get(other, 99) >= floors[name])
    assert not upward, f"asgi_ws.{name} (floor {floors[name]}) imports {upward}"


def test_there_is_no_cycle():
    tuple(graphlib.TopologicalSorter({name: ours for name, (ours, _) in GRAPH.items()}).static_order())


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_a_package_from_elsewhere_is_known_where_it_belongs(name):
    for other in GRAPH[name][1] - CORE:
        assert other in OPTIONAL, f"asgi_ws.{name} imports {other}, which is no dependency"
        assert name.partition(".")[0] in OPTIONAL[other], f"asgi_ws.{name} imports {other}"


@pytest.mark.parametrize("name", SYNCHRONOUS.split())
def test_where_nothing_is_awaited_nothing_comes_in_between(name):
    awaits = [
        node.lineno
        for node in ast.walk(ast.parse(SOURCES[name].read_text("utf-8")))
        if isinstance(node, ast.Await | ast.AsyncFor | ast.AsyncWith | ast.AsyncFunctionDef)
    ]
    assert not awaits, f"asgi_ws.{name} awaits in lines {awaits}"


@pytest.mark.parametrize("name", ["utils", "util", "common", "base", "core", "types", "helpers", "misc"])
def test_no_room_without_a_reason(name):
    assert not any(name in module.split(".") for module in SOURCES)


class TestTheTestItself:
    @pytest.mark.parametrize(
        ("source", "expected"),
        [
            ("import asgi_ws.hub", {"hub"}),
            ("from asgi_ws import hub", {"hub"}),
            ("from asgi_ws import Hub", {""}),
            ("from asgi_ws.hub import Hub", {"hub"}),
            ("from asgi_ws.broadcasters import memory, Broadcaster", {"broadcasters.memory", "broadcasters"}),
            ("from . import hub", {"hub"}),
            ("from .hub import Hub", {"hub"}),
            ("from .broadcasters.memory import Log", {"broadcasters.memory"}),
            ("def f():\n    from asgi_ws.hub import Hub", {"hub"}),
            ("import os, asyncio", set()),
        ],
    )
    def test_finds_an_import_however_it_is_written(self, source, expected):
        assert imports("errors", source, SOURCES)[0] == expected

    def test_also_relative_ones_of_a_package_and_of_what_is_in_it(self):
        assert imports("broadcasters.memory", "from . import workers\nfrom ..errors import X", SOURCES)[
            0
        ] == {
            "broadcasters.workers",
            "errors",
        }
        assert imports("broadcasters", "from . import memory\nfrom ..errors import X", SOURCES)[0] == {
            "broadcasters.memory",
            "errors",
        }

    def test_finds_packages_from_elsewhere(self):
        assert imports("errors", "import uvicorn.config\nfrom click import command\nimport ssl", SOURCES)[
            1
        ] == {
            "uvicorn",
            "click",
        }
