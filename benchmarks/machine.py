"""Where this runs: its cores, and what a result must name to be worth anything."""

import contextlib
import importlib.metadata
import os
import platform
import resource
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
_CORES = sorted(os.sched_getaffinity(0))
GENERATOR_CORE, SERVER_CORE = _CORES[0], _CORES[-1]


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """Run on one core, and whoever is started meanwhile with all its threads too."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def allow_many_files() -> None:
    """Raise the limit of open files, for us and for the servers that we start."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def describe() -> dict[str, Any]:
    """Return the machine."""
    return {
        "cpu": _cpu(),
        "cores": len(_CORES),
        "server_core": SERVER_CORE,
        "generator_core": GENERATOR_CORE,
        "kernel": platform.release(),
        "loop_ns": _speed(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "load": [round(load, 2) for load in os.getloadavg()],
        "commit": _commit(),
    }


def versions(distributions: Iterable[str]) -> dict[str, str]:
    """Return the versions of what is installed of these."""
    found = {}
    for name in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def output(*command: str) -> str:
    """Return what a command prints, `""` if it is not there or fails."""
    if shutil.which(command[0]) is None:
        return ""
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)  # noqa: S603
    return run.stdout.strip() if run.returncode == 0 else ""


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _speed() -> float:
    """Return the nanoseconds of a turn of a plain loop here: builds of Python, and clouds, differ."""
    count = 1_000_000
    with on_core(SERVER_CORE):
        begin = time.process_time()
        for _ in range(count):
            pass
        return round((time.process_time() - begin) / count * 1e9, 1)


def _commit() -> str:
    commit = output("git", "rev-parse", "--short=12", "HEAD")
    changed = output("git", "--no-optional-locks", "status", "--porcelain", "--untracked-files=no")
    return f"{commit}+changes" if changed else commit
