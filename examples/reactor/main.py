"""The Reactor behind a web application: what is emitted here, every browser hears."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel

from asgi_ws import Hub

if __package__:  # uvicorn examples.reactor.main:app
    from .reactor import Reactor
else:  # uvicorn main:app
    from reactor import Reactor  # type: ignore[import-not-found, no-redef]

STATIC = Path(__file__).parent / "static"

# Off: emitting still calls the handlers, nothing is broadcast, and /ws/stream refuses.
hub = Hub(enabled=os.environ.get("REACTOR_ENABLED", "true"))
reactor = Reactor(hub)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
    async with hub, reactor, asyncio.TaskGroup() as tasks:
        uptime = tasks.create_task(report_uptime())
        yield {"hub": hub}
        uptime.cancel()


app = FastAPI(title="PulseAI Reactor", lifespan=lifespan)
app.mount("/ws", hub)  # /ws/stream, /ws/status, /ws/stats, /ws/health
app.mount("/static", StaticFiles(directory=STATIC))


class Task(BaseModel):
    name: str
    seconds: float = 0.0


class Note(BaseModel):
    text: str


@app.get("/live")
def live() -> FileResponse:
    return FileResponse(STATIC / "live.html")


@app.post("/tasks")
async def complete_task(task: Task) -> Task:
    await reactor.emit("task.completed", task)
    return task


@app.post("/notes")
def add_note(note: Note) -> Note:  # a `def` endpoint runs in a worker thread, and cannot await
    reactor.emit_nowait("note.added", note)
    return note


@app.get("/reactor")
def reactor_stats() -> dict[str, int]:
    return reactor.stats()


class Totals:
    """A handler of the Reactor that emits in its turn: a running total of the tasks."""

    def __init__(self) -> None:
        self.tasks = 0
        self.seconds = 0.0

    def add(self, task: Task) -> None:
        self.tasks += 1
        self.seconds += task.seconds
        reactor.emit_nowait("task.totals", {"tasks": self.tasks, "seconds": self.seconds})


reactor.on("task.completed", Totals().add)


async def report_uptime() -> None:
    """Emit once a second how long this process has run, and how long it has worked."""
    started = time.monotonic()
    while True:
        seconds = {"up": round(time.monotonic() - started, 1), "cpu": round(time.process_time(), 3)}
        await reactor.emit("reactor.uptime", seconds)
        await asyncio.sleep(1)
