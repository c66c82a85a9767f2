"""The command line: `asgi-ws demo`, `serve`, `config`."""

import contextlib
import socket
import sys
from collections.abc import Iterable
from typing import Any

import click
import uvicorn
from uvicorn.main import main as uvicorn_command

from asgi_ws import demo as demo_app
from asgi_ws import settings
from asgi_ws.errors import HubError
from asgi_ws.hub import Hub
from asgi_ws.version import __version__

# uvicorn's defaults are those of HTTP. Deflate costs 34 kB and CPU time per connection, and lets a small
# message be a bomb; 16 MiB is no message; and a client that does not read would hold up a stop for ever.
SAFE: dict[str, Any] = {
    "ws": "asgi_ws.server:WebSocketProtocol",
    "ws_per_message_deflate": False,
    "ws_max_size": 1 << 20,
    "timeout_graceful_shutdown": 30,
}
# Seconds that a demo's stop waits for pages that do not answer: whoever pressed Ctrl-C waits, too.
DEMO_SHUTDOWN = 1


class _Group(click.Group):
    """Says in one line what is wrong, where it is no mistake of ours."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except HubError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Group)
@click.version_option(__version__)
def cli() -> None:
    """The realtime layer for any ASGI app."""


@cli.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any that is free."
)
def demo(host: str, port: int) -> None:
    """Show this machine's own readings, live, on a page; nothing else is needed."""
    app, key = demo_app.make_app()
    with _listen(host, port) as listener:
        options = {**SAFE, "timeout_graceful_shutdown": DEMO_SHUTDOWN, "log_level": "warning"}
        server = _Demo(uvicorn.Config(app, **options), f"{_url(listener)}/#key={key}")
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again, once it has stopped
            server.run(sockets=[listener])


# uvicorn's own command with other defaults; an option or UVICORN_* in the environment still wins.
cli.add_command(
    click.Command(
        "serve",
        params=uvicorn_command.params,
        callback=uvicorn_command.callback,
        context_settings={"auto_envvar_prefix": "UVICORN", "default_map": SAFE},
        help="Serve module:app with uvicorn, with the fast WebSocket class and safe defaults.",
    )
)


@cli.command()
@click.option("--check", is_flag=True, help="Exit with 1 if a value is wrong or a name unknown.")
def config(*, check: bool) -> None:
    """Print every setting with its value, and where that comes from."""
    if check:
        Hub()  # which finds its broadcaster, too
    else:
        settings.Settings.load()  # both log what is unknown
    rows = [
        (setting.variable, setting.value, setting.origin, setting.unit, setting.description)
        for setting in settings.describe()
    ]
    click.echo(_table([("NAME", "VALUE", "ORIGIN", "UNIT", "DESCRIPTION"), *rows]))
    if check and settings.unknown():
        sys.exit(1)


class _Demo(uvicorn.Server):
    """Says where the page is as soon as it is there."""

    def __init__(self, config: uvicorn.Config, address: str) -> None:
        super().__init__(config)
        self._address = address

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        click.echo(f"This machine, live: {self._address}\nCtrl-C ends it.")


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        why = str(error.strerror).partition(" (while")[0]
        raise click.ClickException(
            f"cannot listen on port {port} of {host}: {why}; choose another with --port or --host"
        ) from error


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://[{here}]:{port}" if ":" in here else f"http://{here}:{port}"


def _table(rows: Iterable[tuple[str, ...]]) -> str:
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
