"""The command `asgi-ws`, in processes of its own."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.servers import DEADLINE, Served, until

ASGI_WS = [sys.executable, "-m", "asgi_ws"]


def run(
    *arguments: str, command: list[str] | None = None, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [*(command or ASGI_WS), *arguments],
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )


class Running:
    """A command that runs, and what it has said so far on both of its outputs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.output = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def said(self, pattern: str) -> re.Match[str]:
        """Wait until it has said something."""

        def look() -> re.Match[str] | None:
            found = re.search(pattern, self.output)
            assert found or self._reader.is_alive(), f"it ended without {pattern!r}: {self.output}"
            return found

        return until(look, f"{pattern!r} in {self.output!r}")

    def stop(self, sig: int = signal.SIGINT) -> int:
        """Send a signal and wait for the end."""
        self.process.send_signal(sig)
        return self.wait()

    def wait(self, seconds: float = DEADLINE) -> int:
        code = self.process.wait(seconds)
        self._reader.join(seconds)
        return code

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                self.output += line


@contextlib.contextmanager
def running(*arguments: str, cwd: Path | None = None, **environ: str) -> Iterator[Running]:
    """Run the command until the block ends, then end it as Ctrl-C does."""
    process = subprocess.Popen(
        [*ASGI_WS, *arguments],
        cwd=cwd,
        env=os.environ | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    command = Running(process)
    try:
        yield command
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                command.wait(10)
        # What it may have started, reloader's and workers' children, is in its group.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        command.wait()


class Demo(Served):
    """The demo that a command runs, by the address it has printed."""

    def __init__(self, command: Running) -> None:
        found = command.said(r"http://127\.0\.0\.1:(\d+)/#key=(\S+)")
        super().__init__(int(found[1]))
        self.command = command
        self.page = found[0]
        self.key = found[2]


@contextlib.contextmanager
def demo(port: int = 0, **environ: str) -> Iterator[Demo]:
    """Run the demo, on a free port unless told otherwise."""
    with running("demo", "--port", str(port), **environ) as command:
        yield Demo(command)
