"""A memory hub is for one worker: real servers refuse a second one, and nothing else is kept from starting."""

import asyncio
import inspect
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import pytest

from asgi_ws.broadcasters import workers
from asgi_ws.broadcasters.workers import SoleWorker, run_by_pytest
from asgi_ws.errors import SettingsError

fcntl = pytest.importorskip("fcntl", reason="nothing is checked on Windows")

DEADLINE = 20.0  # seconds for anything that a test waits for
WAITS = "for the first worker (pid "

APP = """
import os
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from asgi_ws.broadcasters.workers import SoleWorker


@asynccontextmanager
async def lifespan(app):
    sole = SoleWorker("asgi_ws", patience=float(os.environ["PATIENCE"]))
    await sole.acquire()
    yield
    sole.release()


app = Starlette(routes=[Route("/", lambda request: PlainTextResponse(f"VERSION {os.getpid()}"))], lifespan=lifespan)
"""

# Does what the lines of its input say with hubs by name, and says when it is done.
PROBE = """
import asyncio, os, signal, sys
from asgi_ws.broadcasters.workers import SoleWorker

hubs = {}
print("ready", flush=True)
for line in sys.stdin:
    match line.split():
        case ["acquire", name, patience]:
            hubs[name] = SoleWorker(name, patience=float(patience))
            try:
                asyncio.run(hubs[name].acquire())
                print("held", flush=True)
            except Exception as error:
                print(repr(error), flush=True)
        case ["release", name]:
            hubs[name].release()
            print("released", flush=True)
        case ["fork"]:
            if not os.fork():
                signal.pause()
            print("forked", flush=True)
        case ["fork-and-release", name]:
            if not (child := os.fork()):
                hubs[name].release()
                asyncio.run(hubs[name].acquire())  # of its own: it has another parent
                hubs[name].release()
                os._exit(0)
            print("child", os.waitpid(child, 0)[1], flush=True)
"""


class Program:
    """A child process whose output goes to a file; it and all its children end with the `with` block."""

    def __init__(self, *command: str, cwd: Path, env: dict[str, str] | None = None) -> None:
        handle, name = tempfile.mkstemp(dir=cwd, suffix=".log")
        self.output = Path(name)
        self.popen = subprocess.Popen(
            command,
            cwd=cwd,
            env={"PATIENCE": "0.3", **os.environ, "TMPDIR": str(cwd), **(env or {})},
            stdin=subprocess.PIPE,
            stdout=handle,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
            start_new_session=True,
        )
        os.close(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            os.killpg(self.popen.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.popen.wait(DEADLINE)
        self.popen.stdin.close()

    @property
    def log(self) -> str:
        return self.output.read_text()

    def until(self, done, what: str):
        """What `done()` returns as soon as that is true."""
        deadline = time.monotonic() + DEADLINE
        while not (found := done()):
            assert time.monotonic() < deadline, f"no {what} in {DEADLINE} s:\n{self.log}"
            time.sleep(0.02)
        return found

    def said(self, text: str) -> None:
        self.until(lambda: text in self.log, repr(text))

    def ended(self) -> int:
        self.until(lambda: self.popen.poll() is not None, "end")
        return self.popen.returncode

    def terminated(self) -> None:
        self.popen.terminate()
        self.ended()


class Server(Program):
    """A program that serves APP at `port`."""

    def __init__(self, *command: str, port: int, cwd: Path, env: dict[str, str] | None = None) -> None:
        super().__init__(sys.executable, "-m", *command, cwd=cwd, env=env)
        self.port = port

    def answer(self, started: str = "") -> str | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=DEADLINE) as response:
                text = response.read().decode()
        except (OSError, urllib.error.URLError):
            return None
        return text if text.startswith(started) else None

    def serves(self, started: str = "") -> str:
        return self.until(lambda: self.answer(started), f"answer {started!r}")

    def refuses_second_worker(self) -> None:
        self.said(
            "ASGI_WS_BROADCASTER: expected one worker for memory:// (namespace 'asgi_ws'), got a second"
        )
        assert WAITS in self.log


class Probe(Program):
    """PROBE, told what to do; all probes of one test are workers of each other."""

    def __init__(self, cwd: Path, *under: str) -> None:
        (cwd / "probe.py").write_text(PROBE)
        super().__init__(*under, sys.executable, str(cwd / "probe.py"), cwd=cwd)
        self.said("ready\n")

    def does(self, command: str) -> str:
        before = len(self.log)
        self.begins(command)
        self.until(
            lambda: self.log[before:].endswith("\n") and WAITS not in self.last, f"answer to {command!r}"
        )
        return self.last

    def begins(self, command: str) -> None:
        self.popen.stdin.write(command + "\n")

    @property
    def last(self) -> str:
        return self.log.splitlines()[-1]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def port() -> int:
    return free_port()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "main.py").write_text(APP.replace("VERSION", "v1"))
    return tmp_path


def uvicorn(app: str, port: int, *more: str) -> list[str]:
    return ["uvicorn", app, "--port", str(port), *more]


def gunicorn(port: int, *more: str) -> list[str]:
    command = ["gunicorn", "main:app", "-k", "uvicorn_worker.UvicornWorker", "-b", f"127.0.0.1:{port}"]
    return [*command, "--no-control-socket", *more]


def locks(directory: Path) -> list[Path]:
    return list(directory.glob("asgi_ws-*.lock"))


# Several workers


def test_uvicorn_with_workers_refuses(site, port):
    more = ["--workers", "2", "--timeout-worker-healthcheck", "1"]
    with Server(*uvicorn("main:app", port, *more), port=port, cwd=site) as server:
        server.refuses_second_worker()
        server.ended()  # with status 0, which is uvicorn's habit


def test_uvicorn_with_web_concurrency_refuses(site, port):
    env = {"WEB_CONCURRENCY": "2"}
    with Server(*uvicorn("main:app", port), port=port, cwd=site, env=env) as server:
        server.refuses_second_worker()


def test_uvicorn_run_with_workers_refuses(site, port):
    serve = (
        f"import uvicorn\nif __name__ == '__main__':\n    uvicorn.run('main:app', port={port}, workers=2)\n"
    )
    (site / "serve.py").write_text(serve)
    with Server("serve", port=port, cwd=site) as server:
        server.refuses_second_worker()


@pytest.mark.parametrize("more", [[], ["--preload"]])
def test_gunicorn_with_workers_refuses(site, port, more):
    with Server(*gunicorn(port, "-w", "2", *more), port=port, cwd=site) as server:
        server.refuses_second_worker()
        assert server.ended() != 0


def test_the_same_command_again_refuses_and_names_the_first(site):
    first, second = free_port(), free_port()
    with ExitStack() as stack:
        one = stack.enter_context(
            Server("uvicorn", "main:app", port=first, cwd=site, env={"UVICORN_PORT": str(first)})
        )
        assert one.serves() == f"v1 {one.popen.pid}"
        two = stack.enter_context(
            Server("uvicorn", "main:app", port=second, cwd=site, env={"UVICORN_PORT": str(second)})
        )
        two.refuses_second_worker()
        assert f"beside the first (pid {one.popen.pid})" in two.log
        assert one.serves()


# One worker


def test_different_apps_of_one_parent_start(site):
    (site / "other.py").write_text(APP.replace("VERSION", "other"))
    first, second = free_port(), free_port()
    with (
        Server(*uvicorn("main:app", first), port=first, cwd=site) as one,
        Server(*uvicorn("other:app", second), port=second, cwd=site) as two,
    ):
        one.serves("v1")
        two.serves("other")
        assert len(locks(site)) == 2
        one.terminated()
        two.terminated()
    assert not locks(site)


def test_uvicorn_reload_serves_again(site, port):
    with Server(*uvicorn("main:app", port, "--reload"), port=port, cwd=site) as server:
        server.serves("v1")

        def changed() -> bool:  # more than once: what uvicorn sees first of a file is no change to it
            (site / "main.py").write_text(APP.replace("VERSION", "v2"))
            return "Reloading..." in server.log

        server.until(changed, "reload")
        server.serves("v2")
        server.terminated()
    assert not locks(site)


def test_gunicorn_with_one_worker_serves_after_hup(site, port):
    env = {"PATIENCE": "10"}
    with Server(*gunicorn(port, "-w", "1"), port=port, cwd=site, env=env) as server:
        before = server.serves()
        server.popen.send_signal(signal.SIGHUP)
        server.until(lambda: server.answer() not in (None, before), "new worker")
        assert "ASGI_WS_BROADCASTER" not in server.log
        server.terminated()
    assert not locks(site)


def test_gunicorn_serves_after_its_worker_was_killed(site, port):
    with Server(*gunicorn(port, "-w", "1"), port=port, cwd=site) as server:
        before = server.serves()
        os.kill(int(before.split()[1]), signal.SIGKILL)
        server.until(lambda: server.answer() not in (None, before), "new worker")
        assert WAITS not in server.log


# The lock


def test_the_second_waits_and_has_it_as_soon_as_the_first_ends(tmp_path):
    with Probe(tmp_path) as one, Probe(tmp_path) as two:
        assert one.does("acquire a 0") == "held"
        two.begins("acquire a 60")
        two.said(f"{WAITS}{one.popen.pid}) to end")
        assert one.does("release a") == "released"
        two.said("held\n")
        assert one.does("acquire a 0").startswith("SettingsError(")


def test_a_killed_process_leaves_no_lock(tmp_path):
    with Probe(tmp_path) as two:
        with Probe(tmp_path) as one:
            assert one.does("acquire a 0") == "held"
        assert len(locks(tmp_path)) == 1
        assert two.does("acquire a 0") == "held"
        assert WAITS not in two.log
        assert two.does("release a") == "released"
        assert not locks(tmp_path)


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    with Probe(tmp_path) as one, Probe(tmp_path) as two:
        assert one.does("acquire a 0") == "held"
        assert one.does("fork") == "forked"
        one.popen.kill()  # the child lives on
        one.ended()
        assert two.does("acquire a 0") == "held"


def test_a_forked_child_does_not_give_the_lock_back(tmp_path):
    with Probe(tmp_path) as one, Probe(tmp_path) as two:
        assert one.does("acquire a 0") == "held"
        assert one.does("fork-and-release a") == "child 0"
        assert two.does("acquire a 0").startswith("SettingsError(")


def test_other_namespaces_are_free(tmp_path):
    with Probe(tmp_path) as one, Probe(tmp_path) as two:
        assert one.does("acquire a 0") == "held"
        assert two.does("acquire b 0") == "held"


def test_processes_of_other_parents_are_free(tmp_path):
    shell = ["sh", "-c", '"$@"; exit', "sh"]  # which stays, to be the parent
    with Probe(tmp_path) as one, Probe(tmp_path, *shell) as two:
        assert one.does("acquire a 0") == "held"
        assert two.does("acquire a 0") == "held"


def test_a_removed_lock_file_is_no_harm(tmp_path):
    with Probe(tmp_path) as one, Probe(tmp_path) as two, Probe(tmp_path) as three:
        assert one.does("acquire a 0") == "held"
        locks(tmp_path)[0].unlink()
        assert two.does("acquire a 0") == "held"  # the price of a cleaner in the temp directory
        assert one.does("release a") == "released"
        assert three.does("acquire a 0").startswith("SettingsError(")  # the second's file is still there


# In this process, which counts as a worker of the probes


@pytest.fixture
def checked(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "run_by_pytest", lambda: False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "getppid", os.getpid)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "probe.py")])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_patience_is_ten_seconds():
    assert workers.PATIENCE == 10.0
    assert inspect.signature(SoleWorker).parameters["patience"].default == 10.0


@pytest.mark.anyio
async def test_hubs_of_one_process_share_the_lock(checked):
    one, two = SoleWorker("a"), SoleWorker("a")
    await one.acquire()
    await two.acquire()
    with Probe(checked) as probe:
        one.release()
        one.release()
        assert probe.does("acquire a 0").startswith("SettingsError(")
        two.release()
        assert probe.does("acquire a 0") == "held"


@pytest.mark.anyio
async def test_a_hub_starts_again(checked):
    hub = SoleWorker("a")
    for _ in range(3):
        await hub.acquire()
        await hub.acquire()
        assert len(locks(checked)) == 1
        hub.release()
        assert not locks(checked)


def test_hubs_of_threads_share_the_lock(checked):
    failures = []

    def cycle() -> None:
        try:
            for _ in range(100):
                hub = SoleWorker("a", patience=0)
                asyncio.run(hub.acquire())
                hub.release()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=cycle) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert not failures
    assert not locks(checked)


@pytest.mark.anyio
async def test_refusal_says_what_to_set(checked, caplog):
    with Probe(checked) as probe:
        assert probe.does("acquire a 0") == "held"
        with pytest.raises(SettingsError) as caught:
            await SoleWorker("a", patience=0).acquire()
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("asgi_ws", logging.WARNING)
    expected = [
        "ASGI_WS_BROADCASTER",
        "memory:// (namespace 'a')",
        f"pid {probe.popen.pid}",
        "memory://?workers=allow",
    ]
    assert [word for word in expected if word not in str(caught.value)] == []


@pytest.mark.anyio
async def test_waiting_leaves_the_loop_free_and_nothing_behind_when_cancelled(checked):
    with Probe(checked) as probe:
        assert probe.does("acquire a 0") == "held"
        hub = SoleWorker("a", patience=60)
        task = asyncio.create_task(hub.acquire())
        began = time.monotonic()
        for _ in range(100):
            await asyncio.sleep(0.002)
        assert time.monotonic() - began < 2.5  # 5 s if every poll took the loop along
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        hub.release()
        assert probe.does("release a") == "released"
        assert not locks(checked)


@pytest.mark.anyio
async def test_without_a_temp_directory_all_goes_on(checked, monkeypatch, caplog):
    monkeypatch.setattr(tempfile, "tempdir", str(checked / "gone"))
    hub = SoleWorker("a")
    await hub.acquire()
    hub.release()
    (record,) = caplog.records
    assert "cannot check for one worker (memory://, namespace 'a'): " in record.getMessage()


@pytest.mark.anyio
async def test_a_lock_on_a_file_that_its_holder_removed_is_none(checked, monkeypatch):
    lockf, attempts = fcntl.lockf, []

    def late(fd: int, command: int) -> None:
        attempts.append(fd)
        if len(attempts) == 1:
            locks(checked)[0].unlink()
        lockf(fd, command)

    monkeypatch.setattr(fcntl, "lockf", late)
    hub = SoleWorker("a")
    await hub.acquire()
    assert len(attempts) == 2
    with Probe(checked) as probe:
        assert probe.does("acquire a 0").startswith("SettingsError(")
    hub.release()


@pytest.mark.anyio
async def test_a_link_in_the_temp_directory_is_not_followed(checked, caplog):
    hub = SoleWorker("a")
    await hub.acquire()
    (path,) = locks(checked)
    hub.release()
    (checked / "precious").write_text("precious")
    path.symlink_to(checked / "precious")
    await hub.acquire()
    assert (checked / "precious").read_text() == "precious"
    assert "cannot check" in caplog.text


@pytest.mark.anyio
async def test_windows_is_not_checked(checked, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "win32")
        await SoleWorker("a").acquire()
    assert not locks(checked)


# pytest

INNER = """
import multiprocessing, subprocess, sys, time
from pathlib import Path

import pytest

from asgi_ws.broadcasters.workers import SoleWorker, run_by_pytest

SCRIPT = "import pytest; from asgi_ws.broadcasters.workers import run_by_pytest; print(run_by_pytest())"


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.anyio
async def test_hubs_in_all_workers_at_once(request):
    assert run_by_pytest()
    hub = SoleWorker("asgi_ws", patience=0)
    await hub.acquire()
    xdist = getattr(request.config, "workerinput", {"workerid": "only", "workercount": 1})
    Path(xdist["workerid"] + ".holds").touch()
    deadline = time.monotonic() + 20
    while len(list(Path().glob("*.holds"))) < xdist["workercount"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    hub.release()


def answer(connection):
    connection.send(run_by_pytest())


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_process_of_multiprocessing(method):
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    process = context.Process(target=answer, args=(theirs,))
    process.start()
    assert ours.poll(20) and ours.recv() is False
    process.join(20)


def test_subprocess():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=20)
    assert done.stdout == "False\\n"


def test_thread():
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor() as pool:
        assert pool.submit(run_by_pytest).result(20)
"""


def test_this_process_is_run_by_pytest():
    assert run_by_pytest()


def test_this_process_is_run_by_pytest_in_a_greenlet_as_well():
    greenlet = pytest.importorskip("greenlet")  # Playwright's, whose event loop runs in one
    assert greenlet.greenlet(run_by_pytest).switch()


@pytest.mark.parametrize(
    ("passed", "more"),
    [
        (5, []),
        (4, ["-n", "2", "--dist=each", "-k", "hubs or thread"]),
        (4, ["-n", "2", "--dist=each", "-k", "hubs or thread", "--assert=plain"]),
    ],
)
def test_processes_that_pytest_runs_are_not_checked(tmp_path, passed, more):
    (tmp_path / "test_inner.py").write_text(INNER)
    command = ["pytest", "-p", "no:cacheprovider", *more]
    with Program(sys.executable, "-m", *command, cwd=tmp_path) as program:
        assert program.ended() == 0, program.log
        assert f"{passed} passed" in program.log
    assert not locks(tmp_path)
