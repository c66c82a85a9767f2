"""The command `asgi-ws`, also as `python -m asgi_ws`."""

import sys

# What the command needs besides the package's own dependencies; the extra `server` brings it.
_NEEDED = ("click", "psutil", "uvicorn")


def main() -> None:
    """Run the command, or say what to install for it."""
    try:
        from asgi_ws.cli import cli
    except ModuleNotFoundError as error:
        if error.name not in _NEEDED:
            raise
        sys.exit(
            f'the command asgi-ws needs {error.name}, which is missing: pip install "asgi-ws-hub[server]"'
        )
    cli(prog_name="asgi-ws")


if __name__ == "__main__":
    main()
