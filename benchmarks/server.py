"""A rival's process, and what the operating system says of it."""

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO

import msgspec

from benchmarks import machine
from benchmarks.order import Order, Report
from benchmarks.rivals import Rival
from benchmarks.void import Void

START = 30.0  # seconds until it must be up
_REST = 0.1  # seconds of which it must use less than a twentieth to be at rest
# Each process begins elsewhere, so that two of them do not try the same ports at once.
_ports = itertools.cycle(range(20_000 + os.getpid() * 97 % 9_000, 30_000))
_PAGE_KB = os.sysconf("SC_PAGE_SIZE") // 1024

Line = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Server:
    """A rival that runs, alone on its core.

    Attributes:
        rival: Which one.
        port: Where it serves.
    """

    def __init__(self, rival: Rival, port: int, pid: int, line: Line) -> None:
        self.rival = rival
        self.port = port
        self.pid = pid
        self._reader, self._writer = line
        self._answers: deque[asyncio.Future[bytes]] = deque()

    async def report(self) -> Report:
        """Ask it what it gave up."""
        return msgspec.json.decode(await self.obey(Order(turns=0)) or b"{}", type=Report)

    def obey(self, order: Order) -> asyncio.Future[bytes]:
        """Have it publish; its answer comes when it has, or `b""` when it has ended.

        It carries out one order after the other.
        """
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._answers.append(answer)
        self._writer.write(msgspec.json.encode(order) + b"\n")
        return answer

    async def read_answers(self) -> None:
        """Hand out answers until the line breaks."""
        with contextlib.suppress(OSError):
            async for line in self._reader:
                self._answers.popleft().set_result(line)
        for answer in self._answers:
            answer.set_result(b"")

    def cpu(self) -> float:
        """Return the seconds of CPU that all its threads have used, user and system, to the nanosecond."""
        # The clock's id is as clock_getcpuclockid(3) makes it.
        return time.clock_gettime((~self.pid << 3) | 2)

    def waited(self) -> float:
        """Return the seconds that its main thread was ready to run while somebody else had its core."""
        return int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[1]) / 1e9

    async def rest(self) -> None:
        """Wait until it has nothing to do: a rival may subscribe a client after it has accepted it."""
        busy = _REST
        while busy > _REST / 20:
            before = self.cpu() + self.waited()
            await asyncio.sleep(_REST)
            busy = self.cpu() + self.waited() - before

    def memory(self) -> int:
        """Return its resident memory in kB."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * _PAGE_KB


@contextlib.asynccontextmanager
async def running(rival: Rival) -> AsyncIterator[Server]:
    """Run a rival until the block ends.

    Raises:
        Void: It does not start.
    """
    line: asyncio.Future[Line] = asyncio.get_running_loop().create_future()
    control = await asyncio.start_server(lambda *ends: line.set_result(ends), "127.0.0.1", 0)
    port = _free_port()
    with tempfile.TemporaryFile() as log:
        process = _start(rival, port, control.sockets[0].getsockname()[1], log)
        try:
            await _up(process, line, port, log)
            server = Server(rival, port, process.pid, line.result())
            reading = asyncio.get_running_loop().create_task(server.read_answers())
            yield server
            reading.cancel()
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
            control.close()


def _start(rival: Rival, port: int, control: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("ASGI_WS_")}
    theirs = {"BENCH_PORT": str(port), "BENCH_CONTROL": str(control), "PYTHONPATH": str(machine.ROOT)}
    environment = {**ours, **theirs, **rival.environment()}
    with machine.on_core(machine.SERVER_CORE):
        return subprocess.Popen(  # noqa: S603
            rival.command(), cwd=machine.ROOT, env=environment, stdout=log, stderr=log
        )


async def _up(
    process: subprocess.Popen[bytes], line: asyncio.Future[Line], port: int, log: IO[bytes]
) -> None:
    deadline = time.monotonic() + START
    while not (line.done() and _answers(port)):
        if process.poll() is not None or time.monotonic() > deadline:
            raise Void(f"it does not start: {_last_line(log)}")
        await asyncio.sleep(0.02)


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    return (log.read().decode(errors="replace").strip().splitlines() or ["it says nothing"])[-1]


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    # Below the ports that the system gives to clients, for there will be thousands of them.
    while True:
        port = next(_ports)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
