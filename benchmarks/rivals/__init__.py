"""Who is compared: each a small program of its own, written as its documentation has it."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.dialects import AsgiWs, Dialect, Litestar, PubSub, SocketIO

_HERE = Path(__file__).parent
_NODE_MODULES = Path(os.environ.get("BENCHMARKS_NODE_MODULES", _HERE.parent / "node_modules"))

ALL = frozenset({"fanout", "burst", "latency", "memory", "connect", "channels", "slow", "inbound", "growth"})
# Most have no channels by URL, and some no answer to a request; growth is long, and asked of few.
_MOST = ALL - {"channels", "growth"}
_PUBSUB_ONLY = _MOST - {"inbound"}


class Rival:
    """One of those compared: a Python program of this package.

    Attributes:
        scenarios: In which of them it takes part.
        distributions: What it is made of, to tell the versions.
    """

    def __init__(
        self,
        name: str,
        about: str,
        *,
        needs: str,
        distributions: Sequence[str],
        scenarios: frozenset[str] = _MOST,
        dialect: Dialect | None = None,
    ) -> None:
        self.name = name
        self.about = about
        self.distributions = tuple(distributions)
        self.scenarios = scenarios
        self.dialect = dialect or Dialect()
        self._needs = needs

    def __repr__(self) -> str:
        return f"<Rival {self.name}>"

    @property
    def missing(self) -> str:
        """How to install it where it is not; `""` where it is."""
        return "" if self._is_there() else self._install()

    def command(self) -> list[str]:
        """Return the command that runs it."""
        return [sys.executable, "-m", f"benchmarks.rivals.{self.name}"]

    def environment(self) -> dict[str, str]:
        """Return what it needs in its environment besides."""
        return {}

    def version(self) -> str:
        """Return its version, where `distributions` does not say it."""
        return ""

    def _is_there(self) -> bool:
        try:
            return importlib.util.find_spec(self._needs) is not None
        except ModuleNotFoundError:  # the package that it would be in
            return False

    def _install(self) -> str:
        return f"{Path(sys.executable)} -m pip install -r benchmarks/requirements.txt"


class OurOwn(Rival):
    """A part of this project."""

    def _install(self) -> str:
        return f"not in this version: no module {self._needs}"


class NodeRival(Rival):
    """One that runs in Node, or in Bun."""

    def command(self) -> list[str]:
        return [self._runtime(), str(_HERE / f"{self.name}.cjs")]

    def environment(self) -> dict[str, str]:
        return {"NODE_PATH": str(_NODE_MODULES), "NODE_ENV": "production"}

    def version(self) -> str:
        """Return the package's version, and that of Node where it runs there."""
        package = msgspec.json.decode((_NODE_MODULES / self._needs / "package.json").read_bytes())
        return f"{package['version']} on {self._runtime().rpartition('/')[2]}"

    def _runtime(self) -> str:
        return str(_NODE_MODULES / ".bin/bun") if self._needs == "bun" else shutil.which("node") or "node"

    def _is_there(self) -> bool:
        return shutil.which(self._runtime()) is not None and (_NODE_MODULES / self._needs).exists()

    def _install(self) -> str:
        return "npm install --prefix benchmarks"


_UVICORN = ("uvicorn", "uvloop", "websockets")
_STARLETTE = ("starlette", *_UVICORN)

RIVALS = (
    Rival(
        "raw",
        "uvloop alone: one prepared frame written to each transport; the floor",
        needs="uvloop",
        distributions=("uvloop",),
        scenarios=ALL,
    ),
    OurOwn(
        "asgi_ws",
        "this project on its own WebSocket class, as `asgi-ws serve` runs it",
        needs="asgi_ws.server",
        distributions=("asgi-ws-hub", "msgspec", *_STARLETTE),
        scenarios=ALL,
        dialect=AsgiWs(),
    ),
    Rival(
        "asgi_ws_stock",
        "this project on uvicorn as it comes",
        needs="uvicorn",
        distributions=("asgi-ws-hub", "msgspec", *_STARLETTE),
        scenarios=ALL,
        dialect=AsgiWs(),
    ),
    Rival(
        "starlette_loop",
        "Starlette: for ws in all: await ws.send_text(); one stuck client stops all",
        needs="uvicorn",
        distributions=_STARLETTE,
    ),
    Rival(
        "starlette_queue",
        "Starlette with a queue and a writer task for each connection",
        needs="uvicorn",
        distributions=_STARLETTE,
    ),
    Rival(
        "broadcaster",
        "encode/broadcaster, memory://, as in its README",
        needs="broadcaster",
        distributions=("broadcaster", *_STARLETTE),
        scenarios=_PUBSUB_ONLY,
    ),
    Rival(
        "litestar_channels",
        "Litestar's channels plugin, memory backend, its own WebSocket handler",
        needs="litestar",
        distributions=("litestar", *_UVICORN),
        scenarios=_PUBSUB_ONLY,
        dialect=Litestar(),
    ),
    Rival(
        "python_socketio",
        "python-socketio, AsyncServer, WebSocket from the start",
        needs="socketio",
        distributions=("python-socketio", "python-engineio", *_UVICORN),
        dialect=SocketIO(),
    ),
    Rival(
        "django_channels",
        "Django Channels on Daphne; its in-memory layer is meant for tests, but needs no Redis",
        needs="channels",
        distributions=("channels", "daphne", "Django", "Twisted", "autobahn"),
        scenarios=frozenset({"fanout", "memory", "connect", "inbound"}),
    ),
    Rival(
        "fastapi_pubsub",
        "fastapi-websocket-pubsub: each delivery is a call that the client answers",
        needs="fastapi_websocket_pubsub",
        distributions=("fastapi-websocket-pubsub", "fastapi-websocket-rpc", "fastapi", *_STARLETTE),
        scenarios=frozenset({"fanout", "memory", "connect"}),
        dialect=PubSub(),
    ),
    NodeRival(
        "node_ws",
        "Node's ws: for (const client of clients) client.send(text)",
        needs="ws",
        distributions=(),
    ),
    NodeRival(
        "node_socketio",
        "Socket.IO on Node: io.emit(), WebSocket from the start",
        needs="socket.io",
        distributions=(),
        dialect=SocketIO(),
    ),
    NodeRival(
        "bun",
        "Bun.serve: server.publish(), which is uWebSockets in C++",
        needs="bun",
        distributions=(),
        scenarios=_MOST | {"growth"},
    ),
)


def find(name: str) -> Rival:
    """Return the rival of a name.

    Raises:
        KeyError: None has it.
    """
    return {rival.name: rival for rival in RIVALS}[name]
