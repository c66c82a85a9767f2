"""One worker per memory hub: with more, each would be an island whose clients hear a part of the events."""

import asyncio
import hashlib
import logging
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType

from asgi_ws.errors import SettingsError

if sys.platform != "win32":  # where nothing is checked
    import fcntl

PATIENCE = 10.0  # seconds that a second worker waits for the end of the first: reload, HUP
_POLL = 0.05  # seconds
_log = logging.getLogger("asgi_ws")


class SoleWorker:
    """The claim to be the one process of its parent, `sys.argv` and namespace that runs memory hubs."""

    def __init__(self, namespace: str, *, patience: float = PATIENCE) -> None:
        self._namespace = namespace
        self._patience = patience
        self._path: Path | None = None

    async def acquire(self) -> None:
        """Hold the claim; SettingsError if another worker has it and keeps it for `patience` seconds.

        Where it cannot be checked (no writable temp directory, no locks) a warning says so, and all goes on.
        """
        if sys.platform == "win32" or self._path in _fds or run_by_pytest():
            return
        try:
            self._path = await self._claim()
        except OSError as error:
            _log.warning("cannot check for one worker (memory://, namespace %r): %s", self._namespace, error)

    def release(self) -> None:
        """Let another worker have it; nothing happens the second time, nor in a forked child."""
        if self._path in _fds:
            _give_back(self._path)
        self._path = None

    async def _claim(self) -> Path:
        path = _lock_path(self._namespace)
        memory = f"memory:// (namespace {self._namespace!r})"
        deadline = None
        while first := _take(path):
            if deadline is None:
                deadline = time.monotonic() + self._patience
                _log.warning("%s waits %g s for the first worker (%s) to end", memory, self._patience, first)
            elif time.monotonic() >= deadline:
                raise SettingsError(
                    f"ASGI_WS_BROADCASTER: expected one worker for {memory}, got a second beside the first "
                    f"({first}); neither would hear the other's events. Run one, set a broadcaster that "
                    "works between processes, or memory://?workers=allow if it is meant."
                )
            await asyncio.sleep(_POLL)
        return path


def run_by_pytest() -> bool:
    """Whether a pytest session runs in this very process: pytest's own, or a worker of xdist.

    A server that a test starts has none, though it inherits PYTEST_*, may import pytest and, if started by
    multiprocessing, has pytest's `sys.argv`. Only a session has pytest's import hook in `sys.meta_path` or,
    with `--assert=plain`, no hook but its frames on a stack (where Playwright's greenlets would hide them).
    """
    hooked = any(type(finder).__module__ == "_pytest.assertion.rewrite" for finder in sys.meta_path)
    forked = multiprocessing.parent_process() is not None  # perhaps, hook and all, from a session
    return (hooked and not forked) or any(map(_in_session, sys._current_frames().values()))


def _in_session(frame: FrameType | None) -> bool:
    while frame and frame.f_globals.get("__name__") != "_pytest.main":
        # Beyond multiprocessing's first frame is, in a forked process, the stack of the test that forked it.
        frame = None if frame.f_code.co_qualname == "BaseProcess._bootstrap" else frame.f_back
    return frame is not None


# The lock is a POSIX record lock, for its owner is the process: a forked child neither keeps it nor gives it
# back. flock and a bound abstract socket belong to the descriptor, which children share: one left behind
# would keep every later worker out. In return *any* close of the file by this process drops the lock, so only
# the code below opens it, under `_guard`.
_guard = threading.Lock()
_fds: dict[Path, int] = {}
_hubs: Counter[Path] = Counter()


def _forget() -> None:
    _fds.clear()
    _hubs.clear()
    _guard.release()


if sys.platform != "win32":
    os.register_at_fork(before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_forget)


def _lock_path(namespace: str) -> Path:
    pids = Path("/proc/self/ns/pid")  # containers may share host name, temp directory and a parent 0
    host = (os.uname().nodename, pids.readlink() if pids.is_symlink() else None)
    identity = ascii((host, os.getppid(), str(Path.cwd()), sys.argv, namespace))
    digest = hashlib.sha256(identity.encode()).hexdigest()[:32]
    return Path(tempfile.gettempdir(), f"asgi_ws-{os.geteuid()}-{digest}.lock")


def _take(path: Path) -> str:
    """Count one more hub of this process as holder, or tell who has the lock instead."""
    with _guard, ExitStack() as undo:
        if path not in _fds:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            undo.callback(os.close, fd)
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return f"pid {os.pread(fd, 20, 0).decode('ascii', 'replace').strip() or 'unknown'}"
            if not _is_at(path, fd):
                return "just gone"  # it removed the file between our open and our lock
            os.pwrite(fd, b"%-20d" % os.getpid(), 0)
            _fds[path] = fd
            undo.pop_all()
        _hubs[path] += 1
        return ""


def _give_back(path: Path) -> None:
    with _guard:
        _hubs[path] -= 1
        if _hubs[path] == 0:
            fd = _fds.pop(path)
            with suppress(OSError):
                if _is_at(path, fd):  # else a cleaner removed it, and this is the next worker's
                    path.unlink()
            os.close(fd)


def _is_at(path: Path, fd: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(fd))
    return False
